"""Volume: voxels and where they lie in the patient.

The only module that reads and writes images (NIfTI-1/-2 and DICOM series) and the only one that knows nibabel.

Conventions: arrays are [X, Y, Z] as nibabel gives them; affines map voxel index to millimeters in RAS+; "RAS" names the
direction in which each array axis grows, so in RAS a smaller first index is the patient's LEFT. Spacing is in mm, in array order.
"""

import contextlib
import io
import itertools
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import nibabel.filebasedimages
import nibabel.orientations
import nibabel.spatialimages
import nibabel.wrapstruct
import numpy as np
import numpy.typing as npt
from isal import igzip, igzip_lib, isal_zlib

from atlas_ray.exceptions import CaseError, GeometryError
from atlas_ray.schema import IntTriple, Triple
from atlas_ray.storage import new_file, place

Array = npt.NDArray[Any]
Affine = npt.NDArray[np.float64]  # [4, 4]

GZIP_LEVEL = 1  # isal's fastest: labels shrink as well as at zlib 6, CT to within 3 %
PIECE = 2**20  # bytes read or written at a time; stays in the processor's cache
DEFLATE_LIMIT = 1032  # no deflate stream unfolds to more times its size
LARGEST_HEADER = 2**26  # bytes, extensions included
LARGEST_SURPLUS = 2**20  # bytes after the last voxel; some writers pad
NIFTI_KINDS = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}  # by the header's first field, its own size in bytes
HEADER_ERRORS = (
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
    nibabel.wrapstruct.WrapStructError,
    ValueError,
    OverflowError,
)
DICOM_ERRORS = (  # what pydicom raises for absent or empty tags, cut pixel data, and encodings without a decoder
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OSError,
    EOFError,
    struct.error,
    zlib.error,
    LookupError,
    ArithmeticError,
)
OF_A_SLICE = ("SeriesInstanceUID", "ImagePositionPatient")
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"  # SOPClassUID
DICOM_START = 128  # bytes before "DICM"
GRAYSCALE = ("MONOCHROME1", "MONOCHROME2")  # which of them says how to show values, not what they are
PIXEL_TAGS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
FARTHEST_MM = 1e6  # no scanner's origin lies a kilometer away; what does is not a number of millimeters
FORM_CODES = range(6)  # of sform and qform; nibabel takes any other for 0 and reads the other form
SINGLE_FILE = {348: b"n+1\0", 540: b"n+2\0"}  # a header of a pair has its voxels elsewhere
UNKNOWN_UNIT, MILLIMETER = 0, 2  # of the low three bits of xyzt_units
LARGEST_SLICE = 2**25  # bytes of a DICOM file with one slice, also once it is inflated; 512 x 512 has half a megabyte
MOST_ELEMENTS = 10_000  # of a DICOM file; a CT has about a hundred
UNIT_TOLERANCE = 0.01  # of the length of a direction, and of the cosine of the angle between two; DICOM's text rounds them
LARGEST_HU = 1e5  # 16 stored bits reach 65,535, and are clamped; what lies beyond was rescaled wrongly
SLICE_GAP_TOLERANCE = 0.05  # of the median gap; scanners round positions to 0.01 mm, a missing slice doubles a gap


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """One 3-D image and its geometry.

    Args:
        voxels: [X, Y, Z]; HU for a CT, label ids for a label map; the file's own dtype (float32 where it is scaled).
        affine: [4, 4] float64, voxel index -> RAS+ mm.
        header: the NIfTI header it was read with, so that results can be written on the very same grid; None for DICOM.
    """

    voxels: Array
    affine: Affine
    header: Any = None

    @property
    def shape(self) -> IntTriple:
        return self.voxels.shape

    @property
    def spacing(self) -> Triple:
        """Voxel edge lengths in mm, array-axis order."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_volume_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def orientation(self) -> str:
        """Such as "RAS" or "LPS": the nearest anatomical direction each axis grows toward."""
        return "".join(nibabel.aff2axcodes(self.affine))

    def with_voxels(self, voxels: Array) -> "Volume":
        """Other voxels on this grid. Raises GeometryError for another shape."""
        if voxels.shape != self.voxels.shape:
            raise GeometryError(f"voxels of shape {voxels.shape} do not fit the grid {self.shape}")
        return replace(self, voxels=voxels)


# --- orientation ----------------------------------------------------------------------------------------------------


def reorient(volume: Volume, orientation: str = "RAS") -> Volume:
    """Permute and flip axes (a view, nothing is interpolated) so that they grow toward `orientation`.

    Args:
        volume: any of the 48 orientations; an oblique one is turned to its nearest anatomical axes.
        orientation: three of L/R, P/A, I/S.
    """
    start = nibabel.io_orientation(volume.affine)
    end = nibabel.orientations.axcodes2ornt(tuple(orientation))
    return _turned(volume, nibabel.orientations.ornt_transform(start, end))


def axes_from_ras(grid: Volume) -> tuple[IntTriple, tuple[bool, bool, bool]]:
    """How an array in RAS becomes one on this grid: its axis i is axis axes[i] in RAS, run through backwards where flipped[i]."""
    (x, y, z), flipped = nibabel.io_orientation(grid.affine).T
    a, b, c = (bool(direction < 0) for direction in flipped)
    return (int(x), int(y), int(z)), (a, b, c)


def same_grid(a: Volume, b: Volume, *, tolerance_mm: float = 0.01) -> bool:
    """Whether two volumes have the same shape and their corners coincide within `tolerance_mm`."""
    return a.shape == b.shape and corner_distance_mm(a.affine, b.affine, a.shape) <= tolerance_mm


def corner_distance_mm(a: Affine, b: Affine, shape: IntTriple) -> float:
    """Largest distance between the eight corners of one grid under two affines."""
    corners = np.array([[x, y, z, 1] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1) for z in (0, shape[2] - 1)])
    return float(np.linalg.norm(corners @ (a - b).T, axis=1).max())


def onto_grid_of(label: Volume, image: Volume, *, tolerance_mm: float = 0.01) -> Volume:
    """A label stored in another orientation than its image, permuted and flipped onto the image's grid.

    Raises:
        GeometryError: the grids differ by more than axis order and direction.
    """
    if same_grid(label, image, tolerance_mm=tolerance_mm):
        return Volume(label.voxels, image.affine, image.header)
    turned = _turned(label, nibabel.io_orientation(np.linalg.inv(image.affine) @ label.affine))
    if same_grid(turned, image, tolerance_mm=tolerance_mm):
        return Volume(turned.voxels, image.affine, image.header)
    off_mm = corner_distance_mm(turned.affine, image.affine, image.shape)
    raise GeometryError(
        f"label grid {label.shape} {label.orientation} is not the image's {image.shape} {image.orientation} "
        f"(corners up to {off_mm:.1f} mm apart, {tolerance_mm:g} allowed)"
    )


def _turned(volume: Volume, change: Array) -> Volume:
    """Axes permuted and flipped as nibabel's orientation array [3, 2] (axis, direction) says; a view."""
    voxels = nibabel.orientations.apply_orientation(volume.voxels, change)
    return Volume(voxels, volume.affine @ nibabel.orientations.inv_ornt_aff(change, volume.shape))


# --- NIfTI ----------------------------------------------------------------------------------------------------------


def read_volume(path: str | Path, *, series_uid: str | None = None) -> Volume:
    """Read a NIfTI file (.nii, .nii.gz; NIfTI-1 or -2) or a folder that holds a DICOM series.

    Args:
        path: file or folder.
        series_uid: which SeriesInstanceUID, where a folder holds several.

    Raises:
        CaseError: unreadable, truncated, larger than its header says, or not three-dimensional.
        GeometryError: no usable geometry.
    """
    path = place(path)
    if path.is_dir():
        return _read_dicom(path, series_uid)
    try:
        with contextlib.ExitStack() as opened:
            stream: Any = opened.enter_context(path.open("rb"))
            zipped = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            most = path.stat().st_size * (DEFLATE_LIMIT if zipped else 1)
            if zipped:
                stream = opened.enter_context(igzip.open(stream, "rb"))
            header = _read_header(path, stream)
            affine = _affine_of(path, header)
            return Volume(_read_voxels(path, stream, header, most), affine, header)
    except (OSError, EOFError, zlib.error, igzip_lib.IsalError) as error:  # type: ignore[misc]  # isal's stub has the class as a value
        raise CaseError(f"{path} cannot be read: {error or type(error).__name__}") from error


def read_labels(path: str | Path) -> npt.NDArray[np.uint8]:
    """The voxels of a label map, as it lies. Raises CaseError as `read_volume` does."""
    return np.asarray(read_volume(path).voxels, np.uint8)


def _read_header(path: Path, stream: io.BufferedIOBase) -> Any:
    """The NIfTI header and its extensions; the stream is left at the first voxel."""
    head = stream.read(min(NIFTI_KINDS))
    sizes = {int.from_bytes(head[:4], order) for order in ("little", "big")} & NIFTI_KINDS.keys()
    if not sizes:
        raise CaseError(f"{path} is not a NIfTI file: its first {len(head)} bytes are no header")
    (size,) = sizes
    head += stream.read(size - len(head))
    try:
        with np.errstate(all="ignore"):
            raw = NIFTI_KINDS[size](head, check=False)
            _require_sound(path, raw, size)
            return NIFTI_KINDS[size].from_fileobj(io.BytesIO(head + stream.read(int(raw["vox_offset"]) - size)))
    except HEADER_ERRORS as error:
        raise CaseError(f"{path} has no valid NIfTI header: {error}") from error


def _require_sound(path: Path, raw: Any, size: int) -> None:
    """What nibabel would put right in silence, and so read as something else than is written. Raises CaseError, ValueError.

    Args:
        raw: the header as it lies, unchecked.
        size: of it, in bytes: which version of NIfTI.
    """
    start, magic = float(raw["vox_offset"]), bytes(raw["magic"].tobytes())
    if not size + 4 <= start <= LARGEST_HEADER:
        raise ValueError(f"its voxels start at byte {start:g}; {size + 4} to {LARGEST_HEADER} are allowed")
    if magic != SINGLE_FILE[size]:
        raise CaseError(f"{path} is no NIfTI file with its voxels in it: magic is {magic!r}, {SINGLE_FILE[size]!r} is allowed")
    if not 0 < (axes := int(raw["dim"][0])) < len(raw["dim"]):
        raise CaseError(f"{path} has {axes} dimensions; NIfTI knows 1 to {len(raw['dim']) - 1}")
    codes = {name: int(raw[name]) for name in ("sform_code", "qform_code")}
    if wrong := {name: code for name, code in codes.items() if code not in FORM_CODES}:
        raise GeometryError(f"{path}: {wrong}; codes from 0 to {max(FORM_CODES)} are allowed")
    edges = np.asarray(raw["pixdim"][1:4], np.float64)
    if codes["qform_code"] != 0 and float(raw["pixdim"][0]) not in (-1, 0, 1):
        raise GeometryError(f"{path}: pixdim[0], the handedness of the qform, is {float(raw['pixdim'][0]):g}; -1 and 1 are allowed")
    if codes["sform_code"] == 0 and codes["qform_code"] != 0 and not (np.isfinite(edges).all() and (edges > 0).all()):
        raise GeometryError(f"{path} has voxels of {edges.tolist()} mm; positive edges are allowed")
    if (unit := int(raw["xyzt_units"]) & 7) not in (UNKNOWN_UNIT, MILLIMETER):
        raise GeometryError(
            f"{path} gives its geometry in another unit (xyzt_units {unit}); millimeters ({MILLIMETER}) are allowed"
        )


def _read_voxels(path: Path, stream: io.BufferedIOBase, header: Any, most: int) -> Array:
    """As stored where it is not scaled, so that int16 stays int16; float32 where it is, or is wider. In the machine's byte order,
    because torch reads no other.

    Args:
        most: bytes that the file can hold after decompression.
    """
    try:
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
    except HEADER_ERRORS as error:
        raise CaseError(f"{path} has no valid NIfTI header: {error}") from error
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape) < 1:
        raise CaseError(f"{path} has shape {shape}; three dimensions are allowed")
    if dtype.kind not in "iuf":
        raise CaseError(f"{path} holds {dtype}; integers and floats are allowed")
    stored = _read_exactly(path, stream, math.prod(map(int, shape)) * int(dtype.itemsize), header.get_data_offset(), most)
    voxels: Array = stored.view(dtype).reshape(shape[:3], order="F")
    scaled = slope is not None and (slope, intercept) != (1, 0)
    wide = dtype.kind == "f" and dtype.itemsize > 4
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit float32 becomes infinite, and is found as such
        voxels = voxels.astype(np.float32 if scaled or wide else dtype.newbyteorder("="), copy=False)
        if scaled:
            voxels *= np.float32(slope)
            voxels += np.float32(intercept)
    return voxels


def _read_exactly(path: Path, stream: io.BufferedIOBase, size: int, start: int, most: int) -> npt.NDArray[np.uint8]:
    """The stream's next `size` bytes, written once. What follows is checked too: a gzip file ends with its checksum.

    Args:
        start: bytes read before.
        most: bytes that the file can hold after decompression; nothing is allocated for more.

    Raises:
        CaseError: the file holds less, or so much more that its header cannot be true.
    """
    if start + size > most:
        raise CaseError(f"{path} is truncated: {most} bytes at most after decompression, {start + size} needed")
    data = np.empty(size, np.uint8)
    done = 0
    while done < size:
        count = stream.readinto(data[done : done + PIECE].data)
        if not count:
            raise CaseError(f"{path} is truncated: {start + done} bytes after decompression, {start + size} needed")
        done += count
    surplus = 0
    while piece := stream.read(PIECE):
        surplus += len(piece)
        if surplus > LARGEST_SURPLUS:
            raise CaseError(
                f"{path} unfolds to more than {start + size + surplus} bytes, its header promises {start + size}; "
                f"{LARGEST_SURPLUS} more are allowed"
            )
    return data


def _affine_of(path: Path, header: Any) -> Affine:
    """Of the form that holds: the sform, or else the qform. Raises CaseError where it is missing or no geometry."""
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise GeometryError(f"{path} has no geometry: sform_code and qform_code are both 0")
    with np.errstate(all="ignore"):
        try:
            affine = np.asarray(header.get_best_affine(), np.float64)
        except HEADER_ERRORS as error:
            raise CaseError(f"{path} has no valid quaternion: {error}") from error
        usable = np.isfinite(affine).all() and np.abs(affine).max() < FARTHEST_MM and None not in nibabel.aff2axcodes(affine)
    if not usable or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise GeometryError(f"{path} has an affine that is no grid in mm: {affine[:3].tolist()}")
    return affine


def form_disagreement_mm(volume: Volume) -> float:
    """Largest corner distance between a NIfTI file's sform and qform; 0 where only one is set, infinite where the qform is
    no rotation."""
    header = volume.header
    if header is None or int(header["sform_code"]) == 0 or int(header["qform_code"]) == 0:
        return 0.0
    try:
        with np.errstate(all="ignore"):
            return corner_distance_mm(header.get_sform(), header.get_qform(), volume.shape)
    except ValueError:
        return float("inf")


def nifti_bytes(volume: Volume) -> bytes:
    """The volume as a .nii.gz file's bytes, on the exact grid and header it was read with (scaling dropped: the voxels
    are what they are). Booleans are stored as uint8. Fastest where the voxels lie in file order, first axis fastest."""
    return b"".join(_compressed(volume))


def _compressed(volume: Volume) -> Iterator[bytes]:
    """Parts of the .nii.gz file. The gzip header bears no time, so that the same volume is the same bytes."""
    packer = isal_zlib.compressobj(GZIP_LEVEL, wbits=16 + isal_zlib.MAX_WBITS)
    for part in _file_parts(volume):
        yield packer.compress(part)
    yield packer.flush()


def _file_parts(volume: Volume) -> Iterator[bytes | memoryview]:
    """Header, extensions, then the voxels a few slices at a time; not copied where they lie in file order."""
    voxels = volume.voxels.view(np.uint8) if volume.voxels.dtype == bool else volume.voxels
    header = _header_for(volume, voxels)
    head = io.BytesIO()
    header.write_to(head)
    yield head.getvalue().ljust(header.get_data_offset(), b"\0")
    step = max(1, PIECE * voxels.shape[2] // max(1, voxels.nbytes))
    for z in range(0, voxels.shape[2], step):
        slices = voxels[:, :, z : z + step].astype(header.get_data_dtype(), copy=False)
        yield np.ascontiguousarray(slices.T).reshape(-1).view(np.uint8).data


def _header_for(volume: Volume, voxels: Array) -> Any:
    """The header a volume was read with, or a new one from its affine, for these voxels as they are."""
    if volume.header is not None:
        header = volume.header.copy()
    else:
        header = nibabel.Nifti1Header()
        header.set_sform(volume.affine, code=1)
        header.set_xyzt_units("mm")
    if header.get_data_shape() != voxels.shape:  # setting it resets what the header says of further axes
        header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    if volume.header is None:  # sets pixdim, which needs the shape
        header.set_qform(volume.affine, code=0 if _is_sheared(volume.affine) else 1)
    header["magic"] = header.single_magic
    header.set_data_offset(0)  # found anew: the extensions say where
    header.set_slope_inter(1, 0)
    return header


def without_text(volume: Volume) -> Volume:
    """The same grid and voxels, with a header that bears no free text and no extension: both may name a patient."""
    if volume.header is None:
        return volume
    header = volume.header.copy()
    header.extensions.clear()
    for field in ("data_type", "db_name", "descrip", "aux_file", "intent_name"):
        if field in header:  # NIfTI-2 has fewer
            header[field] = b""
    return replace(volume, header=header)


def header_bytes(volume: Volume) -> bytes:
    """The NIfTI header as its 348 or 540 bytes, so that it can travel between processes; b"" for a volume without one."""
    return b"" if volume.header is None else bytes(volume.header.binaryblock)


def header_from_bytes(data: bytes) -> Any:
    """The header `header_bytes` gave, either NIfTI version and byte order; None for b""."""
    if not data:
        return None
    kind = nibabel.Nifti1Header if len(data) == 348 else nibabel.Nifti2Header
    return kind(data)


def _is_sheared(affine: Affine) -> bool:
    """A qform cannot say a tilted gantry; setting one would contradict the sform."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4)


def write_volume(path: str | Path, volume: Volume) -> None:
    """Write `.nii.gz` so that the file is either whole or absent."""
    with new_file(place(path)) as file:
        file.writelines(_compressed(volume))


# --- DICOM ----------------------------------------------------------------------------------------------------------


def _says_it_is_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return bytes(stream.read(DICOM_START + 4)[DICOM_START:]) == b"DICM"


def _dicom_errors() -> tuple[type[Exception], ...]:
    """DICOM_ERRORS and pydicom's own, which are none of Python's."""
    import pydicom

    return (*DICOM_ERRORS, pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException)


def dicom_series(folder: str | Path) -> dict[str, list[Path]]:
    """SeriesInstanceUID -> its image files, for one folder (not its subfolders). Files that are no DICOM image are passed over.

    Raises:
        CaseError: the folder cannot be read, or a DICOM file in it does not say its series and place.
    """
    series: dict[str, list[Path]] = {}
    try:
        files = sorted(p for p in place(folder).iterdir() if p.is_file())
    except OSError as error:
        raise CaseError(f"{folder} cannot be read: {error}") from error
    for path in files:
        try:
            head = _dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", *OF_A_SLICE])
            if all(name in head for name in OF_A_SLICE):
                series.setdefault(str(head.SeriesInstanceUID), []).append(path)  # read from its bytes only now
                continue
            kind = head.get("SOPClassUID") or head.file_meta.get("MediaStorageSOPClassUID")  # a directory has the second one only
            is_damaged = kind in (None, CT_IMAGE)
        except _dicom_errors():
            is_damaged = _says_it_is_dicom(path)
        if is_damaged:  # left out, it would be missing at an end of the volume without a gap
            raise CaseError(f"{path} is a damaged DICOM file: it does not say which series it is of, and where it lies")
    return series


def dicom_files(folder: str | Path, series_uid: str | None) -> list[Path]:
    """Files of the one series meant. Raises CaseError when the folder holds none, or several and none is chosen."""
    series = dicom_series(folder)
    if not series:
        raise CaseError(f"{folder} holds no DICOM image")
    if series_uid is None and len(series) > 1:
        listing = ", ".join(f"{uid} ({len(files)} slices)" for uid, files in series.items())
        raise CaseError(f"{folder} holds {len(series)} series; choose one with series_uid: {listing}")
    uid = series_uid or next(iter(series))
    if uid not in series:
        raise CaseError(f"{folder} has no series {uid}; it has {', '.join(series)}")
    return series[uid]


def _dcmread(path: Path, *, stop_before_pixels: bool = False, specific_tags: Sequence[str] = ()) -> Any:
    """One DICOM file, from a disk or a bucket. Raises DICOM_ERRORS; CaseError for one that is larger than a slice can be."""
    from pydicom.filereader import read_partial
    from pydicom.tag import Tag

    elements = itertools.count(1)

    def stop(tag: Any, vr: str | None, length: int) -> bool:
        if next(elements) > MOST_ELEMENTS:
            raise ValueError(f"more than {MOST_ELEMENTS} elements")
        return stop_before_pixels and int(tag) in PIXEL_TAGS

    with path.open("rb") as stream:
        _require_bounded(path, stream)
        return read_partial(stream, stop_when=stop, specific_tags=[Tag(name) for name in specific_tags] or None)


def _require_bounded(path: Path, stream: Any) -> None:
    """The stream is left at its start. Raises CaseError for a file that is, or unfolds to, more than LARGEST_SLICE."""
    from pydicom.filereader import _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    read_preamble(stream, False)
    if _read_file_meta_info(stream).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        size = len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(LARGEST_SLICE), LARGEST_SLICE + 1))
    if size > LARGEST_SLICE:
        raise CaseError(f"{path} is larger than one slice can be; {LARGEST_SLICE} bytes are allowed, also once it is inflated")
    stream.seek(0)


def dicom_grid(folder: str | Path, series_uid: str | None) -> tuple[list[Path], Affine]:
    """The slices of a series in the order of the volume's last axis, and the volume's affine.

    Raises:
        CaseError: as `read_volume`.
    """
    folder = place(folder)
    files = dicom_files(folder, series_uid)
    try:
        heads = [_dcmread(path, stop_before_pixels=True) for path in files]
        _require_one_ct(folder, heads)
        order, affine = _dicom_grid(folder, heads)
    except _dicom_errors() as error:
        raise CaseError(f"{folder}: a slice cannot be read: {_in_one_line(error)}") from error
    return [files[index] for index in order], affine


def read_slices(pictures: Sequence[Path], folder: str | Path, *, series_uid: str | None = None) -> Array:
    """One gray PNG for every slice of a DICOM series, as an array on that series' grid.

    Args:
        pictures: the k-th by name belongs to the series' k-th file by name, numbers in names compared as numbers.

    Raises:
        CaseError: as read_volume of the folder; another number or size of pictures, or one that cannot be read.
    """
    files, _ = dicom_grid(folder, series_uid)
    if len(pictures) != len(files):
        raise CaseError(f"{len(pictures)} pictures such as {pictures[0]} for the {len(files)} slices in {folder}")
    head = _dcmread(files[0], stop_before_pixels=True)
    size = (int(head.Columns), int(head.Rows))
    picture_of = dict(zip(sorted(files, key=_by_number), sorted(pictures, key=_by_number), strict=True))
    voxels = np.empty((*size, len(files)), np.uint16, order="F")
    for k, file in enumerate(files):
        voxels[:, :, k] = _read_picture(picture_of[file], size).T
    return voxels


def _by_number(path: Path) -> list[str | int]:
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", path.name)]


def _read_picture(path: Path, size: tuple[int, int]) -> Array:
    """[rows, columns]; black and white is 0 and 255."""
    import PIL.Image

    try:
        with path.open("rb") as stream, PIL.Image.open(stream, formats=["PNG"]) as picture:
            if picture.size != size:
                raise CaseError(f"{path} has {picture.size[0]}x{picture.size[1]} pixels, its slice has {size[0]}x{size[1]}")
            gray = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise CaseError(f"{path} cannot be read: {error}") from error
    if gray.ndim != 2:
        raise CaseError(f"{path} has colors; gray is allowed")
    return gray


def _read_dicom(folder: Path, series_uid: str | None) -> Volume:
    files, affine = dicom_grid(folder, series_uid)
    voxels: Array | None = None
    try:
        for k, path in enumerate(files):  # one decoded slice at a time: pydicom keeps what it decodes
            slice_XY = _hounsfield(_dcmread(path)).T
            if voxels is None:
                voxels = np.empty((*slice_XY.shape, len(files)), np.int16, order="F")
            voxels[:, :, k] = slice_XY
    except _dicom_errors() as error:
        raise CaseError(f"{folder}: a slice cannot be read: {_in_one_line(error)}") from error
    assert voxels is not None  # a series has a slice
    return Volume(voxels, affine)


def _require_one_ct(folder: Path, heads: list[Any]) -> None:
    if other := sorted({str(h.get("Modality", "CT")) for h in heads} - {"CT"}):
        raise CaseError(f"{folder} holds modality {', '.join(other)}; CT is allowed")
    grids = {(tuple(map(float, h.ImageOrientationPatient)), h.Rows, h.Columns, tuple(map(float, h.PixelSpacing))) for h in heads}
    if len(grids) > 1:
        raise GeometryError(f"{folder}: the slices differ in orientation, size or pixel spacing")


def _dicom_grid(folder: Path, heads: list[Any]) -> tuple[list[int], Affine]:
    """Order of the slices along their normal, and the affine of the stack. DICOM is LPS with rows first: x runs along a row
    (columns), y down the rows; a tilted gantry shears z."""
    first = heads[0]
    row, column = (np.array(first.ImageOrientationPatient[i : i + 3], np.float64) for i in (0, 3))
    _require_directions(folder, row, column, [float(edge) for edge in first.PixelSpacing])
    normal = np.cross(row, column)
    positions = np.array([h.ImagePositionPatient for h in heads], np.float64)
    if positions.shape != (len(heads), 3):
        raise GeometryError(f"{folder}: ImagePositionPatient holds no three numbers")
    order = np.argsort(positions @ normal, kind="stable")
    lps = np.eye(4)
    lps[:3, 0] = row * float(first.PixelSpacing[1])
    lps[:3, 1] = column * float(first.PixelSpacing[0])
    lps[:3, 2] = _slice_step(folder, positions[order], normal, first)
    lps[:3, 3] = positions[order[0]]
    return [int(i) for i in order], np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _require_directions(folder: Path, row: npt.NDArray[np.float64], column: npt.NDArray[np.float64], spacing: list[float]) -> None:
    """Raises GeometryError where row and column are no two unit vectors at a right angle, or pixels have no size."""
    off = max(abs(float(np.linalg.norm(row)) - 1), abs(float(np.linalg.norm(column)) - 1), abs(float(row @ column)))
    if not off <= UNIT_TOLERANCE:
        raise GeometryError(
            f"{folder}: ImageOrientationPatient {[*row.tolist(), *column.tolist()]} is no right angle of unit vectors"
        )
    if len(spacing) != 2 or not all(0 < edge < FARTHEST_MM for edge in spacing):
        raise GeometryError(f"{folder}: pixel spacing {spacing}; two positive millimeters are allowed")


def _slice_step(
    folder: Path, positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64], first: Any
) -> npt.NDArray[np.float64]:
    if not (np.abs(positions) < FARTHEST_MM).all():
        raise GeometryError(f"{folder}: slices lie at {positions.tolist()[0]}, which is no place in mm")
    if len(positions) == 1:
        thickness = float(first.get("SpacingBetweenSlices") or first.SliceThickness)
        if not 0 < thickness < FARTHEST_MM:
            raise GeometryError(f"{folder}: its one slice is {thickness} mm thick; positive millimeters are allowed")
        return normal * thickness
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    if usual <= 0 or gaps.min() < usual * (1 - SLICE_GAP_TOLERANCE) or gaps.max() > usual * (1 + SLICE_GAP_TOLERANCE):
        raise GeometryError(
            f"{folder}: slices are not evenly spaced ({gaps.min():.2f} to {gaps.max():.2f} mm); one is missing or doubled"
        )
    return np.asarray((positions[-1] - positions[0]) / (len(positions) - 1))


def _hounsfield(dicom_slice: Any) -> npt.NDArray[np.int16]:
    """HU of one slice [rows, columns], rounded and clamped to int16. Raises ValueError where the slice does not say them."""
    slope, intercept = float(dicom_slice.get("RescaleSlope", 1)), float(dicom_slice.get("RescaleIntercept", 0))
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        raise ValueError(f"its values are rescaled by {slope:g} and {intercept:g}")
    if (kind := str(dicom_slice.PhotometricInterpretation)) not in GRAYSCALE or dicom_slice.SamplesPerPixel != 1:
        raise ValueError(
            f"its pixels are {kind} of {dicom_slice.SamplesPerPixel} samples; {' and '.join(GRAYSCALE)} of 1 are allowed"
        )
    values = dicom_slice.pixel_array * slope + intercept
    if values.shape != (dicom_slice.Rows, dicom_slice.Columns):
        raise ValueError(f"its pixels are an array of {values.shape}")
    if values.size and np.abs(values).max() > LARGEST_HU:
        raise ValueError(f"its values reach {np.abs(values).max():g}, which are no Hounsfield units")
    return np.asarray(np.clip(np.rint(values), -32768, 32767), np.int16)


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
