"""Inputs as nobody should send them: NIfTI, DICOM, YAML and REST bodies, drawn from a seed, and what our readers make of them.

Every input is either refused with a named error, in one line, or accepted as exactly what was written. What was written is worked
out here by hand from the bytes (NIfTI), the tags (DICOM), the values (YAML), the runs (REST), not by the code under test.
`test_malformed.py` runs a fixed thousand, `benchmarks/fuzz.py` as many as one likes.
"""

import base64
import gzip
import json
import math
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import yaml
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from starlette.testclient import TestClient

sys.path.append(str(Path(__file__).parent / "ui"))
from ui_workspace import SHAPE, make_client, make_workspace

from atlas_ray.config import dump_config, load_config
from atlas_ray.exceptions import CaseError, ConfigError
from atlas_ray.organs import load_organs
from atlas_ray.volume import read_volume

SLOWEST_S = 5.0  # of processor time, which other processes do not take; a wait without end is for pytest's limit
Rng = np.random.Generator


class Violation(AssertionError):
    """A crash, a hang, or something accepted that is not what was written."""


@dataclass
class Tally:
    """What became of the inputs, by kind of damage."""

    refused: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)  # the last refusal of every kind
    violations: list[str] = field(default_factory=list)

    def count(self) -> int:
        return self.refused.total() + self.accepted.total() + len(self.violations)

    def run(self, kind: str, read: Callable[[], str | None]) -> None:
        """`read` returns the reason of a refusal, None for an input that was accepted and is right; it raises Violation."""
        start = time.process_time()
        try:
            reason = read()
        except Violation as error:
            self.violations.append(f"{kind}: {error}")
            return
        except Exception as error:  # whatever is not a named error is a crash
            self.violations.append(f"{kind}: crash, {type(error).__name__}: {error}")
            return
        finally:
            seconds = time.process_time() - start
            self.slowest_s = max(self.slowest_s, seconds)
        if seconds > SLOWEST_S:
            self.violations.append(f"{kind}: took {seconds:.1f} s")
        elif reason is None:
            self.accepted[kind] += 1
        elif not reason.strip() or "\n" in reason:
            self.violations.append(f"{kind}: the reason is not one line: {reason!r}")
        else:
            self.refused[kind] += 1
            self.reasons[kind] = reason


def chosen(rng: Rng, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


# --- NIfTI -----------------------------------------------------------------------------------------------------------

CODES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
FIELDS = {  # name: (offset and format in NIfTI-1, in NIfTI-2)
    "dim": ((40, "8h"), (16, "8q")), "datatype": ((70, "h"), (12, "h")), "bitpix": ((72, "h"), (14, "h")),
    "pixdim": ((76, "8f"), (104, "8d")), "vox_offset": ((108, "f"), (168, "q")), "scl_slope": ((112, "f"), (176, "d")),
    "scl_inter": ((116, "f"), (184, "d")), "xyzt_units": ((123, "B"), (500, "i")), "qform_code": ((252, "h"), (344, "i")),
    "sform_code": ((254, "h"), (348, "i")), "quatern": ((256, "3f"), (352, "3d")), "qoffset": ((268, "3f"), (376, "3d")),
    "srow": ((280, "12f"), (400, "12d")), "magic": ((344, "4s"), (4, "8s")), "intent_code": ((68, "h"), (504, "i")),
    "dim_info": ((39, "B"), (524, "B")), "slice_code": ((122, "B"), (496, "i")), "cal_max": ((124, "f"), (192, "d")),
}  # fmt: skip
HOSTILE_FLOATS = [math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e-40, 1e30, -1e30, 3.4e38]
HOSTILE_INTS = [-(2**15), -1, 0, 1, 2, 3, 7, 8, 255, 2**15 - 1]


class Nifti:
    """A valid small file whose header can be written over, field by field."""

    def __init__(self, rng: Rng) -> None:
        self.version = chosen(rng, [0, 0, 0, 1])
        self.order = chosen(rng, "<<<>")
        shape = [int(n) for n in rng.integers(1, 6, 3)]
        code = chosen(rng, list(CODES))
        dtype = np.dtype(self.order + CODES[code])
        stored = rng.integers(-900, 900, shape) if dtype.kind != "u" else rng.integers(0, 200, shape)
        header = 352 if self.version == 0 else 544
        self.data = bytearray(header + stored.size * dtype.itemsize)
        self.data[header:] = np.asarray(stored).astype(dtype).tobytes(order="F")
        self.data[:4] = struct.pack(self.order + "i", (348, 540)[self.version])
        self.put("dim", 3, *shape, 1, 1, 1, 1)
        self.put("datatype", code)
        self.put("bitpix", dtype.itemsize * 8)
        self.put("pixdim", chosen(rng, [1.0, -1.0]), 2.0, 3.0, 4.0, 0, 0, 0, 0)
        self.put("vox_offset", header)
        self.put("xyzt_units", 2)
        self.put("magic", b"n+1\0" if self.version == 0 else b"n+2\0\r\n\x1a\n")
        forms = chosen(rng, [(1, 0), (0, 1), (1, 1)])
        self.put("sform_code", forms[0])
        self.put("qform_code", forms[1])
        self.put("quatern", *chosen(rng, [(0, 0, 0), (0, 0, 1), (0.5, 0.5, 0.5), (0.1, 0.2, 0.3)]))
        self.put("qoffset", 10, -20, 30)
        self.put("srow", -2, 0, 0, 10, 0, 3, 0.5, -20, 0, 0, 4, 30)
        if rng.random() < 0.3:
            self.put("scl_slope", 2.0)
            self.put("scl_inter", -1000.0)

    def put(self, name: str, *values: Any) -> None:
        offset, form = FIELDS[name][self.version]
        struct.pack_into(self.order + form, self.data, offset, *(_fitting(form, value) for value in values))

    def get(self, name: str) -> tuple[Any, ...]:
        return _field(bytes(self.data), self.version, self.order, name)


def _fitting(form: str, value: Any) -> Any:
    """A value that struct takes for the format; a hostile one is cut to its range."""
    if form[-1] in "fd":
        return float(np.float32(value)) if form[-1] == "f" else float(value)
    if form[-1] in "hiqB":
        bits = {"h": 15, "i": 31, "q": 63, "B": 8}[form[-1]]
        low = 0 if form[-1] == "B" else -(2**bits)
        number = 0 if isinstance(value, float) and not math.isfinite(value) else int(value)
        return min(max(number, low), 2**bits - 1)
    return value


def _field(data: bytes, version: int, order: str, name: str) -> tuple[Any, ...]:
    offset, form = FIELDS[name][version]
    return struct.unpack_from(order + form, data, offset)


def nifti_inputs(rng: Rng, count: int) -> Iterator[tuple[str, bytes]]:
    """(kind of damage, the file's bytes)."""
    kinds = [name for name in globals() if name.startswith("_nifti_")]
    for index in range(count):
        kind = kinds[index % len(kinds)]
        with np.errstate(over="ignore"):
            yield kind.removeprefix("_nifti_").replace("_", " "), globals()[kind](rng)


def _maybe_zipped(rng: Rng, data: bytes) -> bytes:
    return gzip.compress(data, 1) if rng.random() < 0.5 else data


def _nifti_header_bytes(rng: Rng) -> bytes:
    nifti = Nifti(rng)
    for _ in range(int(rng.integers(1, 6))):
        nifti.data[int(rng.integers(0, 352))] = int(rng.integers(256))
    return _maybe_zipped(rng, bytes(nifti.data))


def _nifti_one_field(rng: Rng) -> bytes:
    nifti = Nifti(rng)
    name = chosen(rng, [name for name in FIELDS if name not in ("dim", "srow", "pixdim", "quatern", "qoffset", "magic")])
    nifti.put(name, chosen(rng, HOSTILE_FLOATS + HOSTILE_INTS))
    return _maybe_zipped(rng, bytes(nifti.data))


def _nifti_sizes(rng: Rng) -> bytes:
    nifti = Nifti(rng)
    dims = list(nifti.get("dim"))
    for _ in range(int(rng.integers(1, 4))):
        dims[int(rng.integers(8))] = chosen(rng, [*HOSTILE_INTS, 2**31, 2**40, 2**62])
    nifti.put("dim", *dims)
    return _maybe_zipped(rng, bytes(nifti.data))


def _nifti_affine(rng: Rng) -> bytes:
    nifti = Nifti(rng)
    name = chosen(rng, ["srow", "srow", "pixdim", "quatern", "qoffset"])
    values = list(nifti.get(name))
    for _ in range(int(rng.integers(1, 3))):
        values[int(rng.integers(len(values)))] = chosen(rng, HOSTILE_FLOATS)
    nifti.put(name, *values)
    return _maybe_zipped(rng, bytes(nifti.data))


def _nifti_negative_or_zero_spacing(rng: Rng) -> bytes:
    nifti = Nifti(rng)
    nifti.put("sform_code", 0)
    nifti.put("qform_code", 1)
    nifti.put("pixdim", 1, *(chosen(rng, [-2.0, 0.0, 2.0, math.nan]) for _ in range(3)), 0, 0, 0, 0)
    return _maybe_zipped(rng, bytes(nifti.data))


def _nifti_singular_affine(rng: Rng) -> bytes:
    nifti = Nifti(rng)
    nifti.put("sform_code", 2)
    row = rng.normal(size=4)
    nifti.put("srow", *row, *(row * 2), *rng.normal(size=4))
    return _maybe_zipped(rng, bytes(nifti.data))


def _nifti_type(rng: Rng) -> bytes:
    nifti = Nifti(rng)
    nifti.put("datatype", chosen(rng, [0, 1, 32, 128, 511, 1536, 1792, 2048, 2304, -4, 9999, *CODES]))
    nifti.put("bitpix", chosen(rng, [0, 1, 8, 16, 32, 64, -8]))
    return _maybe_zipped(rng, bytes(nifti.data))


def _nifti_scaling(rng: Rng) -> bytes:
    nifti = Nifti(rng)
    nifti.put("scl_slope", chosen(rng, HOSTILE_FLOATS))
    nifti.put("scl_inter", chosen(rng, HOSTILE_FLOATS))
    return _maybe_zipped(rng, bytes(nifti.data))


def _nifti_voxels_start_elsewhere(rng: Rng) -> bytes:
    nifti = Nifti(rng)
    nifti.put("vox_offset", chosen(rng, [*HOSTILE_FLOATS, 0, 1, 348, 351, 353, 360, 1000, 2**26, 2**40]))
    return _maybe_zipped(rng, bytes(nifti.data))


def _nifti_units_and_intent(rng: Rng) -> bytes:
    nifti = Nifti(rng)
    nifti.put("xyzt_units", chosen(rng, [0, 1, 2, 3, 8, 9, 10, 11, 255]))
    nifti.put("intent_code", chosen(rng, [1002, 1007, 2001, 2003, -1, 9999]))
    nifti.put("dim_info", int(rng.integers(256)))
    return _maybe_zipped(rng, bytes(nifti.data))


def _nifti_magic(rng: Rng) -> bytes:
    nifti = Nifti(rng)
    nifti.put("magic", chosen(rng, [b"ni1\0", b"n+1 ", b"\0\0\0\0", b"n+3\0", b"ni2\0"]))
    return _maybe_zipped(rng, bytes(nifti.data))


def _nifti_cut(rng: Rng) -> bytes:
    data = _maybe_zipped(rng, bytes(Nifti(rng).data))
    return data[: int(rng.integers(len(data)))]


def _nifti_more(rng: Rng) -> bytes:
    data = bytes(Nifti(rng).data) + rng.bytes(int(rng.integers(1, 2000)))
    return _maybe_zipped(rng, data)


def _nifti_extensions(rng: Rng) -> bytes:
    nifti = Nifti(rng)
    start = 348 if nifti.version == 0 else 540
    nifti.data[start] = 1
    body = struct.pack(nifti.order + "ii", chosen(rng, [16, 32, 0, -16, 7, 2**30, 2**31 - 1]), chosen(rng, [4, 6, -1])) + bytes(24)
    if rng.random() < 0.5:
        nifti.data[start + 4 : start + 4] = body
        nifti.put("vox_offset", start + 4 + len(body))
    return _maybe_zipped(rng, bytes(nifti.data))


def _nifti_gzip_bomb(rng: Rng) -> bytes:
    return gzip.compress(bytes(Nifti(rng).data), 1) + _ZEROS


def _nifti_gzip_damage(rng: Rng) -> bytes:
    data = bytearray(gzip.compress(bytes(Nifti(rng).data), 6))
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(2, len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _nifti_gzip_of_gzip(rng: Rng) -> bytes:
    return gzip.compress(gzip.compress(bytes(Nifti(rng).data)))


def _nifti_no_nifti(rng: Rng) -> bytes:
    return bytes(
        chosen(rng, [b"", b"\x1f\x8b", b"hello", bytes(400), rng.bytes(1000), b"\x5c\x01\0\0" + rng.bytes(500), gzip.compress(b"")])
    )


def _nifti_valid(rng: Rng) -> bytes:
    return _maybe_zipped(rng, bytes(Nifti(rng).data))


_ZEROS = gzip.compress(bytes(64 << 20), 6)  # 64 MB of nothing in 64 kB


@dataclass(frozen=True)
class Written:
    voxels: np.ndarray
    affine: np.ndarray


def nifti_by_hand(data: bytes) -> Written | None:
    """What the file's bytes say, by the standard; None where they say nothing that can be taken for a CT's grid."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    found = [(v, o) for v, size in ((0, 348), (1, 540)) for o in "<>" if data[:4] == struct.pack(o + "i", size)]
    if not found:
        return None
    version, order = found[0]

    def one(name: str) -> Any:
        return _field(data, version, order, name)

    dims = one("dim")
    if not 3 <= dims[0] <= 7 or min(dims[1:4]) < 1 or any(n != 1 for n in dims[4 : dims[0] + 1]):
        return None
    if one("datatype")[0] not in CODES or one("xyzt_units")[0] & 7 not in (0, 2):
        return None
    dtype, start = np.dtype(order + CODES[one("datatype")[0]]), one("vox_offset")[0]
    if not math.isfinite(start):
        return None
    size = math.prod(dims[1:4]) * dtype.itemsize
    stored = np.frombuffer(data[int(start) : int(start) + size], dtype).reshape(dims[1:4], order="F")
    (slope,), (intercept,) = one("scl_slope"), one("scl_inter")
    voxels = stored
    if math.isfinite(slope) and slope != 0 and (slope, intercept) != (1, 0):
        voxels = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    affine = np.eye(4)
    if not {one("sform_code")[0], one("qform_code")[0]} <= set(range(6)):
        return None
    if one("sform_code")[0] != 0:
        affine[:3] = np.reshape(one("srow"), (3, 4))
    elif one("qform_code")[0] != 0:
        affine[:3, :3] = _rotation(*one("quatern")) * np.array(one("pixdim")[1:4]) * [1, 1, -1 if one("pixdim")[0] < 0 else 1]
        affine[:3, 3] = one("qoffset")
        if min(one("pixdim")[1:4]) <= 0:
            return None
    else:
        return None
    return Written(voxels, affine) if np.isfinite(affine).all() and abs(np.linalg.det(affine)) > 0 else None


def _rotation(b: float, c: float, d: float) -> np.ndarray:
    rest = 1 - b * b - c * c - d * d
    a = math.sqrt(max(0.0, rest))
    if rest < 1e-7:
        b, c, d = np.array([b, c, d]) / math.sqrt(b * b + c * c + d * d)
    return np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ])  # fmt: skip


def _same(found: np.ndarray, written: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        wanted = written.astype(np.float32) if found.dtype == np.float32 else written
        return found.shape == wanted.shape and bool(np.allclose(found, wanted, rtol=1e-5, atol=0, equal_nan=True))


def check_nifti(data: bytes, folder: Path) -> str | None:
    """Read it; the reason of a refusal, or None. Raises Violation."""
    path = folder / "ct.nii.gz"
    path.write_bytes(data)
    try:
        volume = read_volume(path)
    except CaseError as error:
        return str(error)
    with np.errstate(all="ignore"):
        written = nifti_by_hand(data)
        if written is None:
            raise Violation(f"accepted, but it says nothing: shape {volume.shape}, affine {volume.affine[:3].tolist()}")
        if not _same(volume.voxels, written.voxels):
            raise Violation(f"other voxels: {volume.voxels.ravel()[:3]} for {written.voxels.ravel()[:3]}")
        if not np.allclose(volume.affine, written.affine, rtol=1e-4, atol=1e-4):
            raise Violation(f"another affine: {volume.affine[:3].tolist()} for {written.affine[:3].tolist()}")
    return None


# --- DICOM -----------------------------------------------------------------------------------------------------------

HOSTILE_VALUES = ["", "nan", "inf", "-1", "0", "1e30", "x", "1\\2", "1\\2\\3", "1\\2\\3\\4\\5\\6", "9" * 40]
TAGS = ["ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept"]
NUMBERS = ["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"]


def dicom_slices(rng: Rng) -> list[Dataset]:
    """A small valid series."""
    rows, columns, count = (int(n) for n in rng.integers(2, 6, 3))
    series, tilted = generate_uid(), rng.random() < 0.3
    slices = []
    for k in range(count):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID, one.SOPInstanceUID, one.SeriesInstanceUID = CTImageStorage, generate_uid(), series
        one.Modality, one.Rows, one.Columns = "CT", rows, columns
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation, one.SamplesPerPixel = 16, 16, 15, 1, 1
        one.PhotometricInterpretation = "MONOCHROME2"
        one.PixelSpacing, one.SliceThickness = [1.5, 2.5], 5
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.ImagePositionPatient = [-10, 3 * k if tilted else 7, 5 * k - 40]
        one.RescaleSlope, one.RescaleIntercept = 1, -1024
        one.PixelData = rng.integers(0, 3000, (rows, columns)).astype("<i2").tobytes()
        slices.append(one)
    return slices


def _file_of(one: Dataset) -> bytes:
    buffer = BytesIO()
    with _unchecked():
        one.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class _unchecked:
    """pydicom writes and reads whatever it is given, without warnings."""

    def __enter__(self) -> None:
        self.kept = (pydicom.config.settings.reading_validation_mode, pydicom.config.settings.writing_validation_mode)
        pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
        pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE

    def __exit__(self, *_: object) -> None:
        pydicom.config.settings.reading_validation_mode, pydicom.config.settings.writing_validation_mode = self.kept


def dicom_inputs(rng: Rng, count: int) -> Iterator[tuple[str, list[bytes]]]:
    """(kind of damage, the files of a folder)."""
    kinds = [name for name in globals() if name.startswith("_dicom_")]
    for index in range(count):
        kind = kinds[index % len(kinds)]
        yield kind.removeprefix("_dicom_").replace("_", " "), globals()[kind](rng)


def _dicom_value(rng: Rng) -> list[bytes]:
    slices = dicom_slices(rng)
    name, value = chosen(rng, TAGS), chosen(rng, HOSTILE_VALUES)
    for one in slices if rng.random() < 0.7 else slices[:1]:
        vr = pydicom.datadict.dictionary_VR(name)
        with _unchecked():
            one[pydicom.datadict.tag_for_keyword(name)] = pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(name), vr, len(value), (value + " " * (len(value) % 2)).encode(), 0, False, True
            )
    return [_file_of(one) for one in slices]


def _dicom_number(rng: Rng) -> list[bytes]:
    slices = dicom_slices(rng)
    name, value = chosen(rng, NUMBERS), chosen(rng, [0, 1, 2, 3, 7, 8, 12, 15, 32, 64, 65535])
    for one in slices if rng.random() < 0.7 else slices[:1]:
        setattr(one, name, value)
    return [_file_of(one) for one in slices]


def _dicom_missing(rng: Rng) -> list[bytes]:
    slices = dicom_slices(rng)
    name = chosen(
        rng,
        [
            *TAGS,
            "Rows",
            "Columns",
            "BitsStored",
            "HighBit",
            "SamplesPerPixel",
            "Modality",
            "PixelData",
            "PhotometricInterpretation",
            "SeriesInstanceUID",
        ],
    )
    for one in slices if rng.random() < 0.7 else slices[:1]:
        delattr(one, name)
    return [_file_of(one) for one in slices]


def _dicom_orientation(rng: Rng) -> list[bytes]:
    slices = dicom_slices(rng)
    value = chosen(
        rng, [[0] * 6, [1, 0, 0, 1, 0, 0], [1, 0, 0, 0.6, 0.8, 0], [2, 0, 0, 0, 2, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, 0]]
    )
    for one in slices:
        one.ImageOrientationPatient = value
    return [_file_of(one) for one in slices]


def _dicom_positions(rng: Rng) -> list[bytes]:
    slices = dicom_slices(rng)
    for one in slices:
        if rng.random() < 0.4:
            one.ImagePositionPatient = [-10, 7, float(chosen(rng, [0, 0, 5, -40, -35, 1e9, 4.9]))]
    return [_file_of(one) for one in slices]


def _dicom_kind(rng: Rng) -> list[bytes]:
    slices = dicom_slices(rng)
    name, value = chosen(rng, [("Modality", "MR"), ("PhotometricInterpretation", "RGB"), ("PhotometricInterpretation", "PALETTE"),
                               ("NumberOfFrames", 2), ("NumberOfFrames", 100000), ("Modality", "")])  # fmt: skip
    for one in slices:
        setattr(one, name, value)
    return [_file_of(one) for one in slices]


def _dicom_syntax(rng: Rng) -> list[bytes]:
    slices = dicom_slices(rng)
    whole = [_file_of(one) for one in slices]
    other = chosen(rng, ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.1.99",
                         "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.3.4"])  # fmt: skip
    mine, theirs = b"1.2.840.10008.1.2.1\0", other.encode() + b"\0" * (len(other) % 2)
    return [_with_syntax(data, mine, theirs) for data in whole]


def _with_syntax(data: bytes, mine: bytes, theirs: bytes) -> bytes:
    """The file with another transfer syntax named, its data as it was; the group's length is corrected."""
    at = data.index(mine)
    length = struct.unpack_from("<I", data, 140)[0] + len(theirs) - len(mine)
    start = data[:140] + struct.pack("<I", length) + data[144 : at - 2] + struct.pack("<H", len(theirs))
    return start + theirs + data[at + len(mine) :]


def _dicom_deflate_bomb(rng: Rng) -> list[bytes]:
    (one, *_) = dicom_slices(rng)
    data = _with_syntax(_file_of(one), b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    start = 144 + struct.unpack_from("<I", data, 140)[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return [data[:start] + packer.compress(data[start:]) + packer.flush(zlib.Z_FULL_FLUSH) + _RAW_ZEROS]


_RAW_ZEROS = (lambda packer: packer.compress(bytes(64 << 20)) + packer.flush())(zlib.compressobj(6, zlib.DEFLATED, -15))


def _dicom_cut(rng: Rng) -> list[bytes]:
    whole = [_file_of(one) for one in dicom_slices(rng)]
    return [data[: int(rng.integers(len(data)))] if rng.random() < 0.6 else data for data in whole]


def _dicom_bytes(rng: Rng) -> list[bytes]:
    whole = [bytearray(_file_of(one)) for one in dicom_slices(rng)]
    for data in whole:
        for _ in range(int(rng.integers(0, 3))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return [bytes(data) for data in whole]


def _dicom_no_dicom(rng: Rng) -> list[bytes]:
    return [chosen(rng, [b"", b"hello", bytes(200), bytes(128) + b"DICM", bytes(128) + b"DICM" + rng.bytes(300), rng.bytes(500)])]


def _dicom_valid(rng: Rng) -> list[bytes]:
    return [_file_of(one) for one in dicom_slices(rng)]


def dicom_by_hand(folder: Path) -> Written | None:
    """What the tags of the folder's one series say; None where they do not say it."""
    slices: list[Dataset] = []
    for path in sorted(folder.iterdir()):
        try:
            one = pydicom.dcmread(path)
            if "SeriesInstanceUID" in one and "ImagePositionPatient" in one:
                slices.append(one)
            elif (one.get("SOPClassUID") or one.file_meta.get("MediaStorageSOPClassUID")) in (None, CTImageStorage):
                return None  # a slice of nobody knows what
        except Exception:  # no DICOM: passed over there, too
            if path.read_bytes()[128:132] == b"DICM":
                return None
            continue
    row, column = (np.array(slices[0].ImageOrientationPatient[i : i + 3], float) for i in (0, 3))
    if not (abs(np.linalg.norm(row) - 1) < 0.01 and abs(np.linalg.norm(column) - 1) < 0.01 and abs(row @ column) < 0.01):
        return None
    normal = np.cross(row, column)
    if any(np.shape(one.ImagePositionPatient) != (3,) for one in slices):
        return None
    slices.sort(key=lambda one: float(np.array(one.ImagePositionPatient, float) @ normal))
    down, across = (float(v) for v in slices[0].PixelSpacing)
    positions = np.array([one.ImagePositionPatient for one in slices], float)
    if len(slices) > 1:
        step = (positions[-1] - positions[0]) / (len(slices) - 1)
    else:
        step = normal * float(slices[0].get("SpacingBetweenSlices") or slices[0].SliceThickness)
    if not (down > 0 and across > 0 and step @ normal > 0):
        return None
    if any(one.SamplesPerPixel != 1 or one.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2") for one in slices):
        return None
    if not all(0 < abs(float(one.get("RescaleSlope", 1))) < 100 for one in slices):
        return None
    values = [one.pixel_array * float(one.get("RescaleSlope", 1)) + float(one.get("RescaleIntercept", 0)) for one in slices]
    lps = np.eye(4)
    lps[:3] = np.stack([row * across, column * down, step, positions[0]], axis=1)
    affine = np.diag([-1.0, -1, 1, 1]) @ lps
    hu = np.clip(np.rint(np.stack(values, axis=-1)), -32768, 32767)  # clamped, as volume.py says
    return Written(hu.transpose(1, 0, 2), affine) if np.isfinite(affine).all() else None


def check_dicom(files: list[bytes], folder: Path) -> str | None:
    """As `check_nifti`, for the files of one folder."""
    for old in folder.iterdir():
        old.unlink()
    for index, data in enumerate(files):
        (folder / f"{index}.dcm").write_bytes(data)
    try:
        volume = read_volume(folder)
    except CaseError as error:
        return str(error)
    written = dicom_by_hand(folder)
    if written is None:
        raise Violation(f"accepted, but it says nothing: affine {volume.affine[:3].tolist()}")
    if not _same(volume.voxels, written.voxels):
        raise Violation(f"other voxels: {volume.voxels.ravel()[:3]} for {written.voxels.ravel()[:3]}")
    if not np.allclose(volume.affine, written.affine, rtol=1e-4, atol=1e-3):
        raise Violation(f"another affine: {volume.affine[:3].tolist()} for {written.affine[:3].tolist()}")
    return None


# --- YAML ------------------------------------------------------------------------------------------------------------

CAMPAIGN: dict[str, Any] = {
    "name": "small", "workspace": "w", "datasets": [{"source": "phantom", "name": "pool", "count": 1, "split": "pool"}],
    "architectures": [{"architecture": "unet", "features": [4, 8]}], "patches": {"patch": [16, 16, 16]},
    "inference": {"window": [16, 16, 16], "overlap": 0.5}, "training": {"steps": 10, "batch": 2, "learning_rate": 0.001},
    "annotation": {"lease_minutes": 30.0}, "cluster": {"actors": 2, "task_memory_gb": 1.5}, "effort": {"minutes_per_case": 15.0},
}  # fmt: skip
HOSTILE_YAML = [None, True, -1, 0, 1, 10**30, -(10**400), 1.5, math.nan, math.inf, -math.inf, 1e308, "", "x", "1e-4",
                "0x10", "nan", [], {}, [[]], {"a": 1}, [None], "\x85", "é" * 200, "!!python/object:os.system", b"\0\1"]  # fmt: skip


def yaml_inputs(rng: Rng, count: int) -> Iterator[tuple[str, bytes]]:
    """(kind of damage, the file's bytes)."""
    kinds = [name for name in globals() if name.startswith("_yaml_")]
    for index in range(count):
        kind = kinds[index % len(kinds)]
        yield kind.removeprefix("_yaml_").replace("_", " "), globals()[kind](rng)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, one in inner for leaf in _leaves(one, (*path, key)))]


def _yaml_value(rng: Rng) -> bytes:
    content = json.loads(json.dumps(CAMPAIGN))
    *parents, last = chosen(rng, _leaves(content)[1:])
    node = content
    for part in parents:
        node = node[part]
    node[last] = chosen(rng, HOSTILE_YAML)
    return yaml.safe_dump(content, allow_unicode=True).encode()


def _yaml_key(rng: Rng) -> bytes:
    content = json.loads(json.dumps(CAMPAIGN))
    section = chosen(rng, [content, content["training"], content["inference"], content["datasets"][0]])
    section[chosen(rng, ["stesp", "", " ", "x" * 3000, "é", "organs.x", "__class__", 7, None, True, 1.5, math.nan, (1, 2)])] = 1
    return yaml.dump(content).encode() if rng.random() < 0.5 else yaml.safe_dump(content).encode()


def _yaml_twice(rng: Rng) -> bytes:
    lines = yaml.safe_dump(CAMPAIGN).splitlines()
    return "\n".join([*lines, chosen(rng, ["name: other", "training: {steps: 1}", "training: {batch: 1, batch: 2}"])]).encode()


def _yaml_aliases(rng: Rng) -> bytes:
    depth = int(rng.integers(6, 12))
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth))]
    loop = ["a: &a [*a]", "a: &a {b: *a}", "a: &a\n  <<: *a"]
    return "\n".join([yaml.safe_dump(CAMPAIGN), *(bomb if rng.random() < 0.6 else [chosen(rng, loop)])]).encode()


def _yaml_depth(rng: Rng) -> bytes:
    depth = int(rng.integers(100, 3000))
    return yaml.safe_dump(CAMPAIGN).encode() + b"x: " + b"[" * depth + b"]" * (depth if rng.random() < 0.5 else 0)


def _yaml_size(rng: Rng) -> bytes:
    body = yaml.safe_dump(CAMPAIGN).encode()
    return body + chosen(
        rng, [b"#" + b"x" * (2 << 20), b"x: [" + b"1, " * 200_000 + b"]", b"x: " + b"9" * 5000, b"x: " + b"y" * (1 << 19)]
    )


def _yaml_tag(rng: Rng) -> bytes:
    tags = ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!binary aGVsbG8=", "!x 1", "!!set {a, b}",
            "!!omap [a: 1]", "2026-13-45", "2026-11-30", "12:30:45", "0o17", "017", "1_000", "0b11", "!!float x", "!!int x",
            "!!timestamp x", "!!null x"]  # fmt: skip
    return f"{yaml.safe_dump(CAMPAIGN)}\n{chosen(rng, ['organs', 'x', 'data_root'])}: {chosen(rng, tags)}\n".encode()


def _yaml_bytes(rng: Rng) -> bytes:
    data = bytearray(yaml.safe_dump(CAMPAIGN).encode())
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(data)


def _yaml_cut(rng: Rng) -> bytes:
    data = yaml.safe_dump(CAMPAIGN).encode()
    return data[: int(rng.integers(len(data)))]


def _yaml_no_campaign(rng: Rng) -> bytes:
    return chosen(rng, [b"", b"\0", b"null", b"[]", b"1", b"- a", b"---\na: 1\n---\nb: 2", b"\xff\xfe", "name: é".encode("utf-16"),
                        b"a: b: c", b"\t", b"? [1]\n: 2", b"%YAML 9.9\n---\na: 1", b"{" * 50, b"&a *a", b"a: *b"])  # fmt: skip


def _yaml_valid(rng: Rng) -> bytes:
    return yaml.safe_dump(CAMPAIGN).encode()


def check_yaml(data: bytes, folder: Path) -> str | None:
    """Load it as a campaign and as an organ set. An accepted campaign has every value that was written, and survives being written
    and read again."""
    path = folder / "campaign.yaml"
    path.write_bytes(data)
    try:
        load_organs(path)
        raise Violation("a campaign is no organ set")
    except ConfigError:
        pass
    try:
        campaign = load_config(path)
    except ConfigError as error:
        return " | ".join(str(error).splitlines())
    written, found = yaml.safe_load(data), json.loads(campaign.model_dump_json())
    _require_written(written, found, ("workspace", "organs", "data_root"))
    again = folder / "again.yaml"
    again.write_text(dump_config(campaign))
    if load_config(again) != campaign:
        raise Violation("written and read again it is another one")
    return None


def _require_written(written: Any, found: Any, skipped: tuple[str, ...] = ()) -> None:
    if isinstance(written, dict):
        if not isinstance(found, dict):
            raise Violation(f"{written} became {found!r}")
        for key, value in written.items():
            if key not in skipped:
                if key not in found:
                    raise Violation(f"{key!r} was written and is nowhere")
                _require_written(value, found[key])
    elif isinstance(written, list):
        if not isinstance(found, list) or len(found) != len(written):
            raise Violation(f"{written} became {found!r}")
        for one, other in zip(written, found, strict=True):
            _require_written(one, other)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        if not math.isfinite(found) or abs(found) > 2**53 or float(written) != float(found):
            raise Violation(f"{written!r} became {found!r}")
    elif written != found:
        raise Violation(f"{written!r} became {found!r}")


# --- REST ------------------------------------------------------------------------------------------------------------

BODIES: list[Any] = [
    None, True, 0, -1, 10**400, "", "x", [], {}, [[]], {"seconds": -1}, {"seconds": 1e999}, {"seconds": "x"}, {"note": "y" * 5000},
    {"verdict": "maybe"}, {"verdict": 1}, {"verdict": "rejected"}, {"reading": 3}, {"reading": True}, {"text": ""}, {"text": "\0"},
    {"text": "\ud800"}, {"entries": [{}]}, {"entries": [{"seconds": 1, "organ": "none"}]}, {"entries": "x"}, {"steps": []},
    {"steps": [{}]},
    {"steps": [{"name": "x", "runs": "no base64"}]}, {"steps": [{"name": "<b>", "runs": ""}]}, {"extra": 1}, {"tool": "none"},
    {"tool": "grow", "rev": -1}, {"tool": "smooth", "rev": 0, "radius_mm": 1e30}, {"tool": "threshold", "rev": 0, "low": "nan"},
]  # fmt: skip
TYPES = ["application/json"] * 6 + [
    "application/octet-stream",
    "text/plain",
    "multipart/form-data; boundary=x",
    "",
    "application/xml",
]


class RestTarget:
    """The app over a small workspace, with every route and body it has."""

    def __init__(self, folder: Path) -> None:
        self.client: TestClient = make_client(make_workspace(folder)).__enter__()
        schema = self.client.app.openapi()  # type: ignore[attr-defined]
        self.routes = [(method.upper(), path) for path, methods in schema["paths"].items() for method in methods]
        self.size = math.prod(SHAPE)

    def close(self) -> None:
        self.client.__exit__(None, None, None)

    def inputs(self, rng: Rng, count: int) -> Iterator[tuple[str, tuple[str, str, bytes, dict[str, str]]]]:
        """(route, request)."""
        for index in range(count):
            method, path = self.routes[index % len(self.routes)]
            yield f"{method} {path}", (method, self._address(rng, path), *self._body(rng, method, path))

    def _address(self, rng: Rng, path: str) -> str:
        known = {"case_id": "case_0", "organ": "ball", "name": "unet", "index": "1", "revision": "0", "action": "skip",
                 "model": "current", "strategy": "attention", "session_id": "x"}  # fmt: skip
        strange = [
            "..%2F..%2Fetc%2Fpasswd",
            "%00",
            "-1",
            "99999999999999999999",
            "case_0@2",
            "case_0@x",
            "%F0%9F%98%80",
            "x" * 3000,
            "'--",
        ]
        for name, value in known.items():
            path = path.replace(f"{{{name}}}", value if rng.random() < 0.8 else chosen(rng, strange))
        queries = [
            "",
            "",
            "",
            "?round=-1",
            "?round=x",
            "?seconds=nan",
            "?last=0",
            "?tolerance_mm=inf",
            "?image=case_0",
            "?image=..%2F",
            "?%FF=%00",
        ]
        return path + chosen(rng, queries)

    def _body(self, rng: Rng, method: str, path: str) -> tuple[bytes, dict[str, str]]:
        kind = chosen(rng, TYPES)
        headers = {"If-Match": chosen(rng, ['"0"', '"0"', "0", '"99"', "x", '"-1"', "*", '"' + "9" * 40 + '"'])}
        if kind:
            headers["Content-Type"] = kind
        if method in ("GET", "HEAD"):
            return b"", headers
        if kind == "application/octet-stream" or path.endswith("labels/{organ}"):
            headers["Content-Type"] = "application/octet-stream"
            return self.packed_runs(rng), headers
        if rng.random() < 0.2:
            runs = base64.b64encode(self.packed_runs(rng)).decode()
            return json.dumps({"steps": [{"name": "step", "runs": runs}]}).encode(), headers
        body = json.dumps(chosen(rng, BODIES)).encode()
        damage = rng.random()
        if damage < 0.15:
            body = body[: int(rng.integers(len(body) + 1))]
        elif damage < 0.25:
            body = chosen(
                rng, [b"\xff\xfe", b"{" * 5000, b"[" * 100_000, b'{"a":1,"a":2}', b"NaN", b"1" * 5000, b'{"seconds": 1e400}']
            )
        return body, headers

    def packed_runs(self, rng: Rng) -> bytes:
        """Runs of an edit, compressed: right ones, ones beyond the volume, bombs, pieces."""
        runs = rng.integers(0, self.size, (int(rng.integers(0, 4)), 3)).astype("<u4")
        runs[:, 1], runs[:, 2] = chosen(rng, [1, 1, 0, 2**32 - 1]), chosen(rng, [0, 1, 1, 2])
        return bytes(chosen(rng, [zlib.compress(runs.tobytes()), gzip.compress(runs.tobytes()), zlib.compress(runs.tobytes())[:-2],
                                  runs.tobytes(), _ZLIB_ZEROS, zlib.compress(b"12345"), b""]))  # fmt: skip

    def check(self, request: tuple[str, str, bytes, dict[str, str]]) -> str | None:
        """Send it. A refusal is a 4xx with a reason, or 501 for what is said not to exist here; an accepted edit is in the mask."""
        method, url, body, headers = request
        is_edit = method == "PUT" and url.split("?")[0] == "/api/v1/cases/case_0/labels/ball"
        before = self._mask() if is_edit else None
        answer = self.client.request(method, url, content=body, headers=headers)
        if answer.status_code >= 500 and answer.status_code != 501:
            raise Violation(f"{answer.status_code}: {answer.text[:200]}")
        if answer.status_code >= 400:
            return f"{answer.status_code} {' '.join(answer.text.split())[:300] or answer.reason_phrase}"
        if before is not None:
            inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
            for start, length, value in np.frombuffer(inflate.decompress(body), "<u4").reshape(-1, 3):
                before[start : start + length] = value
            if not np.array_equal(self._mask(), before):
                raise Violation("the stored mask is not the edited one")
        return None

    def _mask(self) -> np.ndarray:
        data = self.client.get("/api/v1/cases/case_0/labels/ball").content  # the client inflates it
        return np.frombuffer(data, np.uint8)[-self.size :].copy()


_ZLIB_ZEROS = zlib.compress(bytes(64 << 20), 6)


# --- all of it -------------------------------------------------------------------------------------------------------


def run_all(folder: Path, *, seed: int, nifti: int, dicom: int, configs: int, requests: int) -> dict[str, Tally]:
    """Draw so many of each, and read them."""
    tallies = {name: Tally() for name in ("NIfTI", "DICOM", "YAML", "REST")}
    rng = np.random.default_rng(seed)
    for name in ("series", "app"):
        (folder / name).mkdir()
    for kind, data in nifti_inputs(rng, nifti):
        tallies["NIfTI"].run(kind, lambda data=data: check_nifti(data, folder))  # type: ignore[misc]
    for kind, files in dicom_inputs(rng, dicom):
        tallies["DICOM"].run(kind, lambda files=files: check_dicom(files, folder / "series"))  # type: ignore[misc]
    for kind, data in yaml_inputs(rng, configs):
        tallies["YAML"].run(kind, lambda data=data: check_yaml(data, folder))  # type: ignore[misc]
    target = RestTarget(folder / "app")
    try:
        for route, request in target.inputs(rng, requests):
            tallies["REST"].run(route, lambda request=request: target.check(request))  # type: ignore[misc]
    finally:
        target.close()
    return tallies
