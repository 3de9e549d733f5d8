"""Volumes read from and written to real files: every type, form and orientation, whole and damaged."""

import gzip
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from atlas_ray.exceptions import CaseError, GeometryError
from atlas_ray.volume import (
    Volume,
    axes_from_ras,
    dicom_series,
    form_disagreement_mm,
    nifti_bytes,
    onto_grid_of,
    read_volume,
    reorient,
    same_grid,
    write_volume,
)

PAIRS = ("RL", "AP", "SI")
ORIENTATIONS = ["".join(letters) for order in permutations(PAIRS) for letters in product(*order)]
AFFINE = np.array([[2.0, 0, 0, -10], [0, 3, 0, -20], [0, 0, 5, 30], [0, 0, 0, 1]])


def stored_as(orientation: str, voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RAS voxels and their affine as a file of another orientation has them, worked out axis by axis."""
    axes = [next(i for i, pair in enumerate(PAIRS) if letter in pair) for letter in orientation]
    new = np.eye(4)
    new[:3, 3] = affine[:3, 3]
    for k, (axis, letter) in enumerate(zip(axes, orientation, strict=True)):
        forward = letter in "RAS"
        new[:3, k] = affine[:3, axis] * (1 if forward else -1)
        if not forward:
            new[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
    turned = voxels.transpose(axes)
    for k, letter in enumerate(orientation):
        if letter in "LPI":
            turned = turned[tuple(slice(None, None, -1) if i == k else slice(None) for i in range(3))]
    return turned, new


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = AFFINE, kind: Any = nibabel.Nifti1Image, **codes: int) -> Path:
    image = kind(voxels, affine)
    image.header.set_sform(affine, codes.get("sform", 1))
    image.header.set_qform(affine, codes.get("qform", 1))
    path.write_bytes(gzip.compress(image.to_bytes()) if path.suffix == ".gz" else image.to_bytes())
    return path


def numbered(shape: tuple[int, ...] = (3, 4, 5), dtype: Any = np.int16) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


# --- orientation ----------------------------------------------------------------------------------------------------


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_file_of_any_orientation_reads_as_the_same_patient(orientation: str, tmp_path: Path) -> None:
    stored, affine = stored_as(orientation, numbered(), AFFINE)
    volume = read_volume(save(tmp_path / "ct.nii.gz", stored, affine))
    assert volume.orientation == orientation
    assert np.array_equal(volume.voxels, stored)
    ras = reorient(volume)
    assert ras.orientation == "RAS"
    assert np.array_equal(ras.voxels, numbered())
    assert np.allclose(ras.affine, AFFINE)
    back = reorient(ras, orientation)
    assert np.array_equal(back.voxels, stored)
    assert np.allclose(back.affine, affine)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_label_of_any_orientation_comes_onto_its_images_grid(orientation: str, tmp_path: Path) -> None:
    image = read_volume(save(tmp_path / "ct.nii.gz", numbered()))
    stored, affine = stored_as(orientation, numbered(dtype=np.uint8), AFFINE)
    label = onto_grid_of(read_volume(save(tmp_path / "label.nii.gz", stored, affine)), image)
    assert np.array_equal(label.voxels, numbered())
    assert label.affine is image.affine
    assert label.header is image.header


def test_reorient_by_hand() -> None:
    # seen from below, first index downward: rows are x, columns are y
    lps = np.array([[1, 2, 3], [4, 5, 6]])[:, :, None]
    ras = np.array([[6, 5, 4], [3, 2, 1]])[:, :, None]
    turned = reorient(Volume(lps, np.diag([-1.0, -1.0, 1.0, 1.0])))
    assert np.array_equal(turned.voxels, ras)
    assert turned.affine[:3, 3].tolist() == [-1, -2, 0]  # the last LPS voxel, (1, 2, 0), lies at x = -1, y = -2


def test_in_ras_a_smaller_first_index_is_the_patients_left() -> None:
    las = np.zeros((4, 1, 1), np.uint8)
    las[3] = 1  # LAS: the first axis grows toward Left, so this is the leftmost voxel
    assert reorient(Volume(las, np.diag([-1.0, 1, 1, 1]))).voxels[:, 0, 0].tolist() == [1, 0, 0, 0]


def test_an_oblique_grid_keeps_its_angle() -> None:
    oblique = AFFINE.copy()
    oblique[:3, :3] = rotation(12) @ np.diag([-2.0, -3, 5])
    volume = Volume(numbered(), oblique)
    assert volume.orientation == "LPS"
    assert np.allclose(volume.spacing, (2, 3, 5))
    turned = reorient(volume)
    assert turned.orientation == "RAS"
    corner = np.array([0, 0, 0, 1])  # voxel (0, 0, 0) of the file is (2, 3, 0) of the result, and lies where it lay
    assert np.allclose(turned.affine @ [2, 3, 0, 1], oblique @ corner)
    assert turned.voxels[2, 3, 0] == volume.voxels[0, 0, 0]


def rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def test_rounding_at_45_degrees_where_axis_names_are_a_toss_up_makes_no_other_grid() -> None:
    image, label = (Volume(numbered(), np.diag([1.0, 1, 1, 1])) for _ in range(2))
    for degrees, volume in ((45 - 1e-6, image), (45 + 1e-6, label)):
        volume.affine[:3, :3] = rotation(degrees) * 2
    assert image.orientation != label.orientation
    assert np.array_equal(onto_grid_of(Volume(label.voxels[::-1], label.affine @ FLIP_X), image).voxels, numbered())


FLIP_X = np.array([[-1.0, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # for three voxels along x


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (np.diag([1.0, 1, 1.2, 1]), "4.0 mm apart"),  # 4 steps of 5 mm become 4 of 6
        (np.array([[1.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "2.0 mm apart"),  # origin one voxel off
    ],
    ids=["spacing", "origin"],
)
def test_a_label_on_another_grid_is_refused(change: np.ndarray, match: str) -> None:
    with pytest.raises(GeometryError, match=match):
        onto_grid_of(Volume(numbered(), AFFINE @ change), Volume(numbered(), AFFINE))


def test_a_label_of_another_shape_is_refused() -> None:
    with pytest.raises(GeometryError, match=r"label grid \(3, 4, 6\) RAS is not the image's \(3, 4, 5\) RAS"):
        onto_grid_of(Volume(numbered((3, 4, 6)), AFFINE), Volume(numbered(), AFFINE))


def test_grids_are_the_same_within_a_tolerance() -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 0.05
    a, b = Volume(numbered(), AFFINE), Volume(numbered(), moved)
    assert same_grid(a, a)
    assert not same_grid(a, b)
    assert same_grid(a, b, tolerance_mm=0.06)


def test_spacing_and_volume_come_from_the_affine() -> None:
    volume = Volume(numbered(), AFFINE)
    assert volume.spacing == (2, 3, 5)
    assert volume.voxel_volume_mm3 == pytest.approx(30)


def test_other_voxels_must_fit() -> None:
    with pytest.raises(GeometryError, match=r"\(3, 4\) do not fit"):
        Volume(numbered(), AFFINE).with_voxels(np.zeros((3, 4)))


@pytest.mark.parametrize("code", [a + b + c for a, b, c in product("RL", "AP", "SI")])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_an_array_in_ras_turns_to_any_of_the_48_orientations(code: str, order: tuple[int, int, int]) -> None:
    ras = Volume(np.arange(2 * 3 * 4).reshape(2, 3, 4), np.diag([1.0, 2.0, 3.0, 1.0]))
    image = reorient(ras, "".join(code[axis] for axis in order))
    axes, flipped = axes_from_ras(image)
    turned = np.flip(np.transpose(ras.voxels, axes), [axis for axis in range(3) if flipped[axis]])
    np.testing.assert_array_equal(turned, image.voxels)


# --- reading NIfTI ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u2", ">u2", "<i4", ">i4", "<f4", ">f4", "<f8", ">f8"])
def test_every_kind_of_file_reads_in_its_own_type(dtype: str, kind: Any, suffix: str, tmp_path: Path) -> None:
    header = kind.header_class(endianness=dtype[0] if dtype[0] in "<>" else "<")
    image = kind(numbered(dtype=np.dtype(dtype)), AFFINE, header=header)
    image.header.set_data_dtype(np.dtype(dtype))
    path = tmp_path / f"ct{suffix}"
    path.write_bytes(gzip.compress(image.to_bytes()) if suffix == ".nii.gz" else image.to_bytes())
    volume = read_volume(path)
    expected = np.dtype(dtype).newbyteorder("=")
    assert volume.voxels.dtype == (np.float32 if expected == np.float64 else expected)
    assert volume.voxels.dtype.isnative
    assert volume.voxels.flags.writeable
    assert np.array_equal(volume.voxels, numbered())
    assert np.allclose(volume.affine, AFFINE)
    again = tmp_path / "again.nii.gz"
    write_volume(again, volume)
    assert np.array_equal(read_volume(again).voxels, numbered())
    assert nibabel.load(again).header.endianness == header.endianness


@pytest.mark.parametrize(("slope", "intercept"), [(0.03, -1024.0), (1.0, -1024.0), (2.0, 0.0)])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8, np.int32, np.float64])
def test_stored_values_are_scaled(dtype: Any, slope: float, intercept: float, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbered(dtype=dtype), AFFINE)
    raw = bytearray(image.to_bytes())
    raw[112:116], raw[116:120] = np.float32(slope).tobytes(), np.float32(intercept).tobytes()
    (tmp_path / "ct.nii").write_bytes(raw)
    volume = read_volume(tmp_path / "ct.nii")
    assert volume.voxels.dtype == np.float32
    assert volume.voxels == pytest.approx(numbered() * slope + intercept, rel=1e-5)


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1)], ids=["both", "sform only", "qform only"])
def test_either_form_is_a_geometry(sform: int, qform: int, tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "ct.nii.gz", numbered(), sform=sform, qform=qform))
    assert np.allclose(volume.affine, AFFINE)
    assert form_disagreement_mm(volume) == pytest.approx(0, abs=1e-5)


def test_no_form_is_no_geometry(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="sform_code and qform_code are both 0"):
        read_volume(with_field(tmp_path / "ct.nii", sform_code=0, qform_code=0))


def test_forms_that_disagree_are_measured(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbered(), AFFINE)
    moved = AFFINE.copy()
    moved[:3, 3] += [3, 4, 0]
    image.header.set_sform(AFFINE, 1)
    image.header.set_qform(moved, 1)
    (tmp_path / "ct.nii").write_bytes(image.to_bytes())
    assert form_disagreement_mm(read_volume(tmp_path / "ct.nii")) == pytest.approx(5, abs=1e-5)


def with_field(path: Path, **fields: Any) -> Path:
    """A small NIfTI-1 file with header fields as no library would write them."""
    raw = bytearray(nibabel.Nifti1Image(numbered(), AFFINE).to_bytes())
    header = np.ndarray((), nibabel.nifti1.header_dtype, raw)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 3}, CaseError, "no valid quaternion"),
        ({"srow_x": 0}, GeometryError, "no grid in mm"),
        ({"srow_x": np.nan}, GeometryError, "no grid in mm"),
        ({"srow_x": [1, 0, 0, 1e20]}, GeometryError, "no grid in mm"),
        ({"dim": [3, 3, 4, 6, 1, 1, 1, 1]}, CaseError, r"truncated: 472 bytes .* 496 needed"),
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, CaseError, "truncated"),
        ({"dim": [3, 3, 4, 0, 1, 1, 1, 1]}, CaseError, "three dimensions are allowed"),
        ({"dim": [2, 3, 4, 1, 1, 1, 1, 1]}, CaseError, "three dimensions are allowed"),
        ({"dim": [4, 3, 4, 1, 5, 1, 1, 1]}, CaseError, "three dimensions are allowed"),
        ({"datatype": 128, "bitpix": 24}, CaseError, "integers and floats are allowed"),
        ({"datatype": 77}, CaseError, "no valid NIfTI header"),
        ({"sizeof_hdr": 12}, CaseError, "not a NIfTI file"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_broken_header_is_a_bad_case(fields: dict[str, Any], error: type[CaseError], match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match):
        read_volume(with_field(tmp_path / "ct.nii", **fields))


def test_a_qform_that_is_no_rotation_beside_a_good_sform_is_a_disagreement(tmp_path: Path) -> None:
    path = with_field(tmp_path / "ct.nii", qform_code=1, quatern_b=3)
    assert form_disagreement_mm(read_volume(path)) == float("inf")


def test_a_fourth_dimension_of_one_is_dropped(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "ct.nii.gz", numbered((3, 4, 5, 1))))
    assert volume.shape == (3, 4, 5)
    write_volume(tmp_path / "again.nii.gz", volume)
    assert nibabel.load(tmp_path / "again.nii.gz").shape == (3, 4, 5)


@pytest.mark.parametrize("keep", [0, 1, 9, 100, 0.5, -9, -1])
def test_a_truncated_gzip_is_a_bad_case(keep: float, tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.nii.gz", np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype(np.int16)).read_bytes()
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(whole[: int(keep * len(whole))] if isinstance(keep, float) else whole[:keep])
    with pytest.raises(CaseError, match=r"ct\.nii\.gz"):
        read_volume(path)


def test_a_flipped_bit_in_a_gzip_is_a_bad_case(tmp_path: Path) -> None:
    path = save(tmp_path / "ct.nii.gz", np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype(np.int16))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 16
    path.write_bytes(damaged)
    with pytest.raises(CaseError, match=r"ct\.nii\.gz"):
        read_volume(path)


@pytest.mark.parametrize("keep", [3, 200, 347, 352, 400])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_truncated_nii_is_a_bad_case(kind: Any, keep: int, tmp_path: Path) -> None:
    path = save(tmp_path / "ct.nii", numbered(), kind=kind)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CaseError, match=r"ct\.nii"):
        read_volume(path)


def zeros_behind(path: Path, count: int) -> Path:
    """A whole file of 472 bytes, and as many zeros behind its voxels as no header promises."""
    path.write_bytes(gzip.compress(nibabel.Nifti1Image(numbered(), AFFINE).to_bytes() + bytes(count)))
    return path


def test_a_file_that_unfolds_to_far_more_than_its_header_promises_is_a_bad_case(tmp_path: Path) -> None:
    path = zeros_behind(tmp_path / "bomb.nii.gz", 100_000_000)
    assert path.stat().st_size < 200_000
    with pytest.raises(CaseError, match=r"unfolds to more than \d{7} bytes, its header promises 472;"):
        read_volume(path)


def test_some_padding_behind_the_voxels_is_passed_over(tmp_path: Path) -> None:
    assert np.array_equal(read_volume(zeros_behind(tmp_path / "padded.nii.gz", 4096)).voxels, numbered())


def test_a_small_file_that_promises_much_is_a_bad_case_before_memory_is_taken(tmp_path: Path) -> None:
    path = with_field(tmp_path / "ct.nii", dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(CaseError, match=r"truncated: \d{6} bytes at most after decompression, 70362\d{9} needed"):
        read_volume(tmp_path / "ct.nii.gz")


@pytest.mark.parametrize("cut", [1, 351, 352, 400])
def test_a_gzip_of_several_members_is_one_file(cut: int, tmp_path: Path) -> None:
    whole = nibabel.Nifti1Image(numbered(), AFFINE).to_bytes()
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(whole[:cut]) + gzip.compress(whole[cut:]))
    assert np.array_equal(read_volume(tmp_path / "ct.nii.gz").voxels, numbered())


@pytest.mark.parametrize("offset", [0, 100, 1e9, -1, np.nan, np.inf])
def test_voxels_that_start_nowhere_are_a_bad_case(offset: float, tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="no valid NIfTI header"):
        read_volume(with_field(tmp_path / "ct.nii", vox_offset=offset, magic=b"ni1"))


def test_what_is_no_file_or_no_nifti_is_a_bad_case(tmp_path: Path) -> None:
    (tmp_path / "page.nii.gz").write_text("<html>404</html>")
    with pytest.raises(CaseError, match="not a NIfTI file"):
        read_volume(tmp_path / "page.nii.gz")
    with pytest.raises(CaseError, match="No such file"):
        read_volume(tmp_path / "missing.nii.gz")


def test_random_damage_to_a_header_is_a_bad_case_or_a_volume(tmp_path: Path) -> None:
    """Whatever a header says, nothing but CaseError comes out: one such file among 8,000 must not end a run."""
    rng = np.random.default_rng(0)
    for kind, size in ((nibabel.Nifti1Image, 348), (nibabel.Nifti2Image, 540)):
        whole = save(tmp_path / "whole.nii", numbered(), kind=kind).read_bytes()
        for _ in range(300):
            raw = bytearray(whole)
            for place in rng.integers(0, size, 2):
                raw[place] = rng.choice([0, 127, 128, 255])
            (tmp_path / "ct.nii").write_bytes(raw)
            try:
                volume = read_volume(tmp_path / "ct.nii")
            except CaseError:
                continue
            assert len(volume.orientation) == 3
            assert min(volume.spacing) > 0
            form_disagreement_mm(volume)


# --- writing NIfTI ---------------------------------------------------------------------------------------------------

MAY_CHANGE = {"datatype", "bitpix", "scl_slope", "scl_inter", "vox_offset"}


def differing_fields(a: Path, b: Path) -> set[str]:
    first, second = nibabel.load(a).header, nibabel.load(b).header
    return {name for name in first.keys() if first[name].tobytes() != second[name].tobytes()}  # noqa: SIM118 - not a dict


def decorated(kind: Any, endianness: str) -> Any:
    header = kind.header_class(endianness=endianness)
    header["descrip"], header["aux_file"], header["cal_max"], header["intent_name"] = b"slab 3", b"none", 1200, b"ct"
    image = kind(numbered(dtype=np.dtype(f"{endianness}i2")), AFFINE, header=header)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_dim_info(0, 1, 2)
    image.header.set_sform(AFFINE, 4)
    image.header.set_qform(AFFINE, 2)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"kept"))
    return image


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_label_has_its_images_header_but_for_the_type(kind: Any, endianness: str, tmp_path: Path) -> None:
    image = decorated(kind, endianness)
    ct = tmp_path / "ct.nii.gz"
    ct.write_bytes(gzip.compress(image.to_bytes()))
    volume = read_volume(ct)
    label = tmp_path / "label.nii.gz"
    write_volume(label, volume.with_voxels((numbered() > 30).astype(np.uint8)))
    assert differing_fields(ct, label) <= MAY_CHANGE
    written = nibabel.load(label)
    assert type(written) is kind
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(written.affine, nibabel.load(ct).affine)
    assert written.header.extensions == image.header.extensions
    assert np.array_equal(np.asanyarray(written.dataobj), numbered() > 30)


@pytest.mark.parametrize("name", ["ts1/ct.nii.gz", "ts1/ct_long.nii.gz", "acrin_flt_001/ct.nii.gz", "btcv_labels/0008.nii.gz"])
def test_real_files_are_written_on_their_own_header(name: str, shared_data: Path, tmp_path: Path) -> None:
    volume = read_volume(shared_data / name)
    write_volume(tmp_path / "label.nii.gz", volume.with_voxels(volume.voxels > 0))
    assert differing_fields(shared_data / name, tmp_path / "label.nii.gz") <= MAY_CHANGE
    assert np.array_equal(read_volume(tmp_path / "label.nii.gz").affine, volume.affine)


def test_common_ct_stays_int16(shared_data: Path) -> None:
    volume = read_volume(shared_data / "ts1/ct.nii.gz")
    assert (volume.voxels.dtype, volume.shape, volume.orientation) == (np.dtype(np.int16), (122, 101, 30), "RAS")


def test_a_slab_is_the_slices_of_the_whole_scan(shared_data: Path) -> None:
    slab, whole = read_volume(shared_data / "ts1/ct.nii.gz"), read_volume(shared_data / "ts1/ct_long.nii.gz")
    assert np.array_equal(slab.voxels, whole.voxels[:, :, 82:112])


def test_scaling_is_dropped_on_writing(tmp_path: Path) -> None:
    raw = bytearray(nibabel.Nifti1Image(numbered(), AFFINE).to_bytes())
    raw[112:116], raw[116:120] = np.float32(2).tobytes(), np.float32(-7).tobytes()
    (tmp_path / "ct.nii").write_bytes(raw)
    volume = read_volume(tmp_path / "ct.nii")
    write_volume(tmp_path / "out.nii.gz", volume)
    assert np.array_equal(read_volume(tmp_path / "out.nii.gz").voxels, numbered() * 2.0 - 7)


def test_a_written_file_needs_no_folder_and_leaves_no_trace(tmp_path: Path) -> None:
    write_volume(tmp_path / "deep" / "label.nii.gz", Volume(numbered() > 3, AFFINE))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["label.nii.gz"]


def test_the_same_volume_gives_the_same_bytes() -> None:
    data = nifti_bytes(Volume(numbered(), AFFINE))
    assert data[4:8] == bytes(4)  # the gzip header's time stamp
    assert nifti_bytes(Volume(np.asfortranarray(numbered()), AFFINE)) == data
    assert nifti_bytes(Volume(numbered()[::-1, :, ::-1][::-1, :, ::-1], AFFINE)) == data


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_file_is_byte_for_byte_what_nibabel_writes(dtype: Any) -> None:
    voxels = np.random.default_rng(0).integers(0, 99, (300, 200, 15)).astype(dtype)  # more than one piece
    image = nibabel.Nifti1Image(voxels, AFFINE)
    image.header.set_sform(AFFINE, 1)
    image.header.set_qform(AFFINE, 1)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1, 0)
    assert gzip.decompress(nifti_bytes(Volume(voxels, AFFINE))) == image.to_bytes()


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_with_a_header_of_its_own_too(kind: Any, endianness: str, tmp_path: Path) -> None:
    image = decorated(kind, endianness)
    (tmp_path / "ct.nii").write_bytes(image.to_bytes())
    image.header.set_slope_inter(1, 0)
    assert gzip.decompress(nifti_bytes(read_volume(tmp_path / "ct.nii"))) == image.to_bytes()


# --- DICOM ----------------------------------------------------------------------------------------------------------


def dicom_slice(k: int, uid: str, **changes: Any) -> Dataset:
    """One 6 x 4 slice (columns x rows): stored value = 100 k + 10 row + column, HU = that - 1024."""
    slice_ = Dataset()
    slice_.file_meta = FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
    slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = generate_uid()
    slice_.SeriesInstanceUID, slice_.Modality = uid, "CT"
    slice_.Rows, slice_.Columns, slice_.PixelSpacing = 4, 6, [0.5, 0.75]  # row distance (y) first
    slice_.ImageOrientationPatient, slice_.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-30, -40, 100 + 2.5 * k]
    slice_.SliceThickness, slice_.RescaleSlope, slice_.RescaleIntercept = 3, 1, -1024
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
    slice_.PixelData = (100 * k + 10 * np.arange(4)[:, None] + np.arange(6)).astype(np.int16).tobytes()
    for name, value in changes.items():
        setattr(slice_, name, value)
    return slice_


def save_series(folder: Path, uid: str = "1.2.3", slices: int = 5, **changes: Any) -> Path:
    """Slices named against their order, so that only their positions can sort them."""
    folder.mkdir(exist_ok=True)
    for k in range(slices):
        dicom_slice(k, uid, **changes).save_as(folder / f"{uid}-{99 - k}.dcm", enforce_file_format=True)
    return folder


def test_a_dicom_series_reads_in_hounsfield_units_and_ras_millimeters(tmp_path: Path) -> None:
    volume = read_volume(save_series(tmp_path / "dicom"))
    assert (volume.shape, volume.spacing, volume.orientation) == ((6, 4, 5), (0.75, 0.5, 2.5), "LPS")
    assert volume.affine[:3, 3].tolist() == [30, 40, 100]
    assert volume.voxels.dtype == np.int16
    assert volume.voxels[5, 3, 4] == 435 - 1024  # slice 4, row 3, column 5
    ras = reorient(volume)
    assert ras.voxels[0, 0, 4] == 435 - 1024  # the last column and row are the patient's left and back


def test_a_dicom_slice_of_its_own_uses_its_thickness(tmp_path: Path) -> None:
    assert read_volume(save_series(tmp_path / "dicom", slices=1)).spacing == (0.75, 0.5, 3)


def test_two_series_in_a_folder_need_a_choice(tmp_path: Path) -> None:
    folder = save_series(save_series(tmp_path / "dicom", "1.2.3"), "1.2.4", slices=3)
    assert {uid: len(files) for uid, files in dicom_series(folder).items()} == {"1.2.3": 5, "1.2.4": 3}
    with pytest.raises(CaseError, match=r"2 series; choose one with series_uid: 1\.2\.3 \(5 slices\), 1\.2\.4 \(3 slices\)"):
        read_volume(folder)
    assert read_volume(folder, series_uid="1.2.4").shape == (6, 4, 3)
    with pytest.raises(CaseError, match=r"no series 9\.9; it has 1\.2\.3, 1\.2\.4"):
        read_volume(folder, series_uid="9.9")


def test_other_files_in_a_dicom_folder_are_passed_over(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "dicom")
    (folder / "LICENSE.txt").write_text("CC BY")
    (folder / "sub").mkdir()
    assert read_volume(folder).shape == (6, 4, 5)


def test_bad_dicom_folders_are_bad_cases(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaseError, match="holds no DICOM image"):
        read_volume(tmp_path / "empty")
    gap = save_series(tmp_path / "gap")
    (gap / "1.2.3-97.dcm").unlink()
    with pytest.raises(GeometryError, match=r"not evenly spaced \(2\.50 to 5\.00 mm\)"):
        read_volume(gap)
    twice = save_series(tmp_path / "twice")
    (twice / "copy.dcm").write_bytes((twice / "1.2.3-97.dcm").read_bytes())
    with pytest.raises(GeometryError, match="not evenly spaced"):
        read_volume(twice)
    with pytest.raises(CaseError, match="modality MR; CT is allowed"):
        read_volume(save_series(tmp_path / "mr", Modality="MR"))
    mixed = save_series(tmp_path / "mixed")
    dicom_slice(9, "1.2.3", PixelSpacing=[1, 1]).save_as(mixed / "scout.dcm", enforce_file_format=True)
    with pytest.raises(GeometryError, match="differ in orientation, size or pixel spacing"):
        read_volume(mixed)


@pytest.mark.parametrize("changes", [{"PixelData": b"\0\0"}, {"PixelSpacing": None}, {"ImageOrientationPatient": [1, 0]}], ids=str)
def test_a_dicom_slice_that_lacks_something_is_a_bad_case(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="a slice cannot be read"):
        read_volume(save_series(tmp_path / "dicom", **changes))


def test_a_truncated_dicom_slice_is_a_bad_case(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "dicom")
    path = folder / "1.2.3-97.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CaseError, match="a slice cannot be read"):
        read_volume(folder)


def test_a_tilted_gantry_is_written_without_a_qform_that_contradicts_it(tmp_path: Path) -> None:
    folder = tmp_path / "dicom"
    folder.mkdir()
    for k in range(5):
        tilted = dicom_slice(k, "1.2.3", ImagePositionPatient=[-30, -40 + 0.5 * k, 100 + 2.5 * k])
        tilted.save_as(folder / f"{k}.dcm", enforce_file_format=True)
    volume = read_volume(folder)
    assert volume.affine[:3, 2].tolist() == [0, -0.5, 2.5]
    write_volume(tmp_path / "label.nii.gz", volume)
    written = read_volume(tmp_path / "label.nii.gz")
    assert np.allclose(written.affine, volume.affine)
    assert form_disagreement_mm(written) == 0


def test_a_real_dicom_series(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "cptac_pda_189" / "dicom"
    volume = read_volume(folder)
    assert volume.shape == (512, 512, 35)
    assert volume.spacing == pytest.approx((0.86, 0.86, 5), abs=0.005)
    assert volume.voxels.min() == -3024  # padding, kept as it is
    first = pydicom.dcmread(sorted(folder.iterdir())[0])
    k = round((float(first.ImagePositionPatient[2]) - volume.affine[2, 3]) / 5)
    expected = first.pixel_array[200, 300] * float(first.RescaleSlope) + float(first.RescaleIntercept)
    assert volume.voxels[300, 200, k] == expected
    write_volume(tmp_path / "label.nii.gz", volume.with_voxels(volume.voxels > 0))
    assert np.allclose(read_volume(tmp_path / "label.nii.gz").affine, volume.affine, atol=1e-4)
