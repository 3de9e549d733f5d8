"""Ingest of real folders: what a case becomes, and for what reason it is set aside."""

import contextlib
import errno
import gzip
import hashlib
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from ct_files import AFFINE, SHAPE, ct_voxels, label_voxels, save_ct, save_label, source

from atlas_ray.data import ingest as ingest_module
from atlas_ray.data.ingest import IngestChecks, Ingested, collect, ingest, ingest_case, sha256_of
from atlas_ray.data.labels import join_masks
from atlas_ray.data.sources import Candidate
from atlas_ray.exceptions import CaseError, DatasetError
from atlas_ray.organs import Organ, Organs, load_organs
from atlas_ray.records import Case, Quarantined
from atlas_ray.volume import Volume, read_volume, reorient, write_volume
from atlas_ray.workspace import Workspace, file_sha256

OURS = Organs(
    name="ours",
    organs=tuple(Organ(name=n, label_id=i, color="#000000") for n, i in (("liver", 1), ("spleen", 2), ("pancreas", 9))),
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "campaign")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def files(root: Path, **fields: Any) -> Any:
    return source(**{"source": "files", "name": "set", "root": str(root), "split": "pool", "images": "*/ct.nii.gz", **fields})


def ingest_one(root: Path, workspace: Workspace, organs: Organs = OURS, **fields: Any) -> Case | Quarantined:
    (candidate,) = files(root, **fields).candidates(workspace, organs)
    return ingest_case(candidate, organs, workspace, IngestChecks())


def reason(result: Case | Quarantined) -> str:
    assert isinstance(result, Quarantined)
    assert "\n" not in result.reason
    assert result.step == "ingest"
    return result.reason


def usable(result: Case | Quarantined) -> Case:
    assert isinstance(result, Case), result
    return result


# --- what a case becomes ---------------------------------------------------------------------------------------------


def test_a_case_is_described_and_its_image_left_where_it_is(data: Path, workspace: Workspace) -> None:
    path = save_ct(data / "p.1" / "ct.nii.gz")
    before = path.read_bytes()
    case = usable(ingest_one(data, workspace, license="CC0"))
    assert case == Case(
        case_id="p.1",
        image=str(path),
        sha256=hashlib.sha256(before).hexdigest(),
        shape=SHAPE,
        spacing=(2, 3, 5),
        orientation="RAS",
        source="set",
        license="CC0",
        split="pool",
    )
    assert path.read_bytes() == before
    assert not workspace.label("p.1").exists()
    assert not list(workspace.root.rglob("*.nii.gz"))


def test_volumes_of_labeled_organs_are_recorded(data: Path, workspace: Workspace) -> None:
    save_ct(data / "p1" / "ct.nii.gz")  # voxels of 2 x 3 x 5 mm
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[:4, :5, 2] = 1
    voxels[6, 6, 6] = 2
    save_label(data / "p1" / "label.nii.gz", voxels)
    fields = {
        "images": "*/ct.nii.gz",
        "labels": "{case}/label.nii.gz",
        "ids": {1: "liver", 2: "spleen", 3: "pancreas"},
        "split": "train",
    }
    case = usable(ingest_one(data, workspace, labeled_organs=["liver", "pancreas"], **fields))
    assert (case.label_sha256, case.truth_sha256) == (file_sha256(workspace.label("p1")), None)
    record = Ingested.model_validate_json(workspace.ingested("p1").read_bytes())
    assert record.organ_ml == pytest.approx({"liver": 0.6, "pancreas": 0.0})  # 20 voxels of 30 mm3; the spleen is not known


def test_a_share_that_stalls_is_waited_for(data: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    save_ct(data / "p1" / "ct.nii.gz")
    stalls = iter([OSError(errno.EIO, "stale"), OSError(errno.ETIMEDOUT, "slow")])

    def stalling(*args: Any, **fields: Any) -> Volume:
        for error in stalls:
            raise CaseError("cannot be read") from error
        return read_volume(*args, **fields)

    monkeypatch.setattr("atlas_ray.data.ingest.read_volume", stalling)
    (candidate,) = files(data).candidates(workspace, OURS)
    assert "cannot be read" in reason(ingest_case(candidate, OURS, workspace, IngestChecks()))
    assert usable(ingest_case(candidate, OURS, workspace, IngestChecks(), patience_s=30)).case_id == "p1"


def test_a_label_map_is_renumbered_on_the_images_header(data: Path, workspace: Workspace) -> None:
    image = nibabel.Nifti1Image(ct_voxels(), AFFINE)
    image.header["descrip"], image.header["cal_max"] = b"portal phase", 400
    image.header.set_sform(AFFINE, 2)
    (data / "p1").mkdir()
    (data / "p1" / "ct.nii.gz").write_bytes(gzip.compress(image.to_bytes()))
    save_label(data / "p1" / "l.nii.gz", label_voxels(id_6=(1, 2, 3), id_5=(4, 4, 4), id_11=(5, 6, 7)).astype(np.float32))
    case = usable(ingest_one(data, workspace, split="train", labels="{case}/l.nii.gz", ids="btcv"))
    assert case.labeled_organs == ("liver", "spleen", "pancreas")
    assert case.truth is None
    written = nibabel.load(workspace.label("p1"))
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(written.dataobj, label_voxels(id_1=(1, 2, 3), id_9=(5, 6, 7)))  # id 5 is the esophagus, not ours
    for field in ("dim", "pixdim", "descrip", "cal_max", "sform_code", "qform_code", "srow_x", "quatern_b"):
        assert written.header[field].tobytes() == image.header[field].tobytes(), field


def test_a_label_in_another_orientation_comes_onto_the_images_grid(data: Path, workspace: Workspace) -> None:
    save_ct(data / "p1" / "ct.nii.gz")
    ras = Volume(label_voxels(id_6=(1, 2, 3), id_1=(8, 0, 7)), AFFINE)
    for number, orientation in enumerate(("LAS", "SPR", "ILA")):
        write_volume(data / "p1" / "l.nii.gz", reorient(ras, orientation))
        usable(ingest_one(data, workspace, split="train", labels="{case}/l.nii.gz", ids="btcv"))
        label = read_volume(workspace.label("p1"))
        assert np.array_equal(label.affine, AFFINE), number
        assert np.array_equal(label.voxels, label_voxels(id_1=(1, 2, 3), id_2=(8, 0, 7)))


def test_training_sees_only_labeled_organs_and_truth_all(data: Path, workspace: Workspace) -> None:
    save_ct(data / "p1" / "ct.nii.gz")
    voxels = label_voxels(id_6=(1, 2, 3), id_1=(4, 4, 4), id_11=(5, 6, 7))
    save_label(data / "p1" / "l.nii.gz", voxels)
    labels = {"labels": "{case}/l.nii.gz", "ids": "btcv"}
    partly = usable(ingest_one(data, workspace, split="train", labeled_organs=["pancreas", "liver"], **labels))
    assert partly.labeled_organs == ("liver", "pancreas")
    assert np.array_equal(read_volume(workspace.label("p1")).voxels, label_voxels(id_1=(1, 2, 3), id_9=(5, 6, 7)))
    hidden = usable(ingest_one(data, workspace, truth=True, **labels))
    assert (hidden.labeled_organs, hidden.truth) == ((), str(workspace.truth("p1")))
    assert np.array_equal(read_volume(workspace.truth("p1")).voxels, label_voxels(id_1=(1, 2, 3), id_2=(4, 4, 4), id_9=(5, 6, 7)))
    assert not workspace.label("p1").exists()  # the earlier run's is gone: training looks for the file
    holdout = usable(ingest_one(data, workspace, split="holdout", **labels))
    assert holdout.truth
    assert holdout.labeled_organs == ("liver", "spleen", "pancreas")


# --- masks -----------------------------------------------------------------------------------------------------------


def save_masks(folder: Path, **places: list[tuple[int, int, int]]) -> None:
    for organ, voxels in places.items():
        mask = np.zeros(SHAPE, np.int8)
        for place in voxels:
            mask[place] = 1
        save_label(folder / f"{organ}.nii.gz", mask)


def test_masks_are_joined_and_a_missing_one_is_not_labeled(data: Path, workspace: Workspace) -> None:
    save_ct(data / "p1" / "ct.nii.gz")
    save_masks(data / "p1" / "seg", liver=[(1, 1, 1), (1, 1, 2)], pancreas=[(3, 3, 3)], heart=[(0, 0, 0)])
    masks = {"labels": "{case}/seg/{organ}.nii.gz", "split": "train"}
    case = usable(ingest_one(data, workspace, **masks))
    assert case.labeled_organs == ("liver", "pancreas")
    expected = label_voxels(id_1=(1, 1, 1), id_9=(3, 3, 3)) + label_voxels(id_1=(1, 1, 2))
    assert np.array_equal(read_volume(workspace.label("p1")).voxels, expected)
    assert "no mask of spleen" in reason(ingest_one(data, workspace, **{**masks, "split": "pool"}, truth=True))
    shutil.rmtree(data / "p1" / "seg")
    assert "no mask of liver, spleen, pancreas, such as" in reason(ingest_one(data, workspace, **masks))


def test_an_empty_mask_says_that_the_organ_is_absent(data: Path, workspace: Workspace) -> None:
    save_ct(data / "p1" / "ct.nii.gz")
    save_masks(data / "p1", liver=[(1, 1, 1)], spleen=[])
    case = usable(ingest_one(data, workspace, split="train", labels="{case}/{organ}.nii.gz"))
    assert case.labeled_organs == ("liver", "spleen")


@pytest.mark.parametrize(
    "order", [("liver", "spleen", "pancreas"), ("pancreas", "spleen", "liver"), ("spleen", "pancreas", "liver")]
)
def test_a_contested_voxel_goes_to_the_smallest_organ_in_any_order(order: tuple[str, ...]) -> None:
    # one row of six voxels
    rows = {
        "liver": [1, 1, 1, 1, 0, 0],  # 4 voxels
        "spleen": [0, 0, 1, 1, 1, 0],  # 3
        "pancreas": [0, 0, 0, 1, 1, 1],  # 3, as many as the spleen, but a later channel
    }
    masks = ((name, np.array(rows[name], bool)[:, None, None]) for name in order)
    labels, contested = join_masks(masks, OURS, (6, 1, 1))
    assert labels[:, 0, 0].tolist() == [1, 1, 2, 2, 2, 9]
    assert contested == 3


def test_a_mask_may_have_any_one_value_but_not_two(data: Path, workspace: Workspace) -> None:
    save_ct(data / "p1" / "ct.nii.gz")
    masks = {"labels": "{case}/{organ}.nii.gz", "split": "train"}
    save_label(data / "p1" / "liver.nii.gz", 255 * label_voxels(id_1=(1, 1, 1)))
    usable(ingest_one(data, workspace, **masks))
    assert np.array_equal(read_volume(workspace.label("p1")).voxels, label_voxels(id_1=(1, 1, 1)))
    for bad in (label_voxels(id_1=(1, 1, 1), id_2=(2, 2, 2)), label_voxels(id_1=(1, 1, 1)) * np.float32(-1)):
        save_label(data / "p1" / "liver.nii.gz", bad)
        assert "a mask has 0 and one positive value" in reason(ingest_one(data, workspace, **masks))


# --- reasons for quarantine ------------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    save_ct(path)
    path.write_bytes(path.read_bytes()[:-200])


def without_geometry(path: Path) -> None:
    image = nibabel.Nifti1Image(ct_voxels(), None)
    path.write_bytes(gzip.compress(image.to_bytes()))


def forms_disagree(path: Path) -> None:
    image = nibabel.Nifti1Image(ct_voxels(), AFFINE)
    mirrored = AFFINE @ np.diag([-1.0, 1, 1, 1])
    image.header.set_sform(AFFINE, 1)
    image.header.set_qform(mirrored, 1)
    path.write_bytes(gzip.compress(image.to_bytes()))


def with_nan(path: Path) -> None:
    voxels = ct_voxels().astype(np.float32)
    voxels[3, 4, 5], voxels[6, 6, 6] = np.nan, np.inf
    save_ct(path, voxels=voxels)


def rescaled(low: float, high: float, dtype: Any) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        voxels = ct_voxels().astype(np.float64)
        span = (voxels - voxels.min()) / (voxels.max() - voxels.min())
        save_ct(path, voxels=(low + span * (high - low)).astype(dtype))

    return save


def padded_8_bit(path: Path) -> None:
    voxels = np.interp(ct_voxels(), [-1000, ct_voxels().max()], [0, 255]).astype(np.int16)
    voxels[0] = -3024
    save_ct(path, voxels=voxels)


REASONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not an image": (lambda p: p.write_text("<html>403 Forbidden</html>"), "is not a NIfTI file"),
    "empty file": (lambda p: p.touch(), "is not a NIfTI file"),
    "truncated": (truncated, "cannot be read"),
    "no geometry": (without_geometry, "sform_code and qform_code are both 0"),
    "forms disagree": (forms_disagree, "sform and qform disagree by 44.0 mm; 1 mm are allowed"),
    "NaN": (with_nan, r"2 voxels are NaN or infinite, the first at (3, 4, 5)"),
    "8 bit": (rescaled(0, 255, np.uint8), "values from 0 to 255 are not CT in HU: some must reach -200"),
    "0..1": (rescaled(0, 1, np.float32), "values from 0 to 1 are not CT in HU"),
    "-1..1": (rescaled(-1, 1, np.float32), "values from -1 to 1 are not CT in HU"),
    "windowed": (rescaled(-175, 250, np.int16), "values from -175 to 250 are not CT in HU"),
    "no intercept": (rescaled(0, 4095, np.int16), "missing its rescale intercept"),
    "8 bit with padding": (padded_8_bit, "values from 0 to 255 are not CT in HU"),
    "too bright": (rescaled(-1000, 1e6, np.float32), "none may exceed 32767"),
    "only air": (lambda p: save_ct(p, voxels=np.full(SHAPE, -1000, np.int16)), "some must reach 10 (tissue)"),
    "only padding": (lambda p: save_ct(p, voxels=np.full(SHAPE, -3024, np.int16)), "nothing but padding"),
    "four dimensions": (
        lambda p: p.write_bytes(gzip.compress(nibabel.Nifti1Image(np.zeros((8, 8, 8, 2), np.int16), AFFINE).to_bytes())),
        "three dimensions are allowed",
    ),
    "few slices": (lambda p: save_ct(p, voxels=ct_voxels()[:, :, :3]), "every edge must have at least 8 voxels"),
    "micrometers": (
        lambda p: save_ct(p, affine=np.diag([2000.0, 3000, 5000, 1])),
        "2000 x 3000 x 5000 mm; 0.1 to 12 mm are allowed",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_an_unusable_image_has_one_clear_reason(name: str, data: Path, workspace: Workspace) -> None:
    corrupt, expected = REASONS[name]
    (data / "p1").mkdir()
    corrupt(data / "p1" / "ct.nii.gz")
    result = ingest_one(data, workspace)
    assert expected in reason(result)
    assert result.path == str(data / "p1" / "ct.nii.gz")


USABLE: dict[str, Callable[[Path], Any]] = {
    "clipped": lambda p: save_ct(p, voxels=np.clip(ct_voxels() * 30, -1024, 1023).astype(np.int16)),
    "int32": lambda p: save_ct(p, voxels=ct_voxels().astype(np.int32)),
    "float32": lambda p: save_ct(p, voxels=ct_voxels().astype(np.float32) + 0.4),
    "metal": lambda p: save_ct(p, voxels=np.where(ct_voxels() == 42, 30_710, ct_voxels()).astype(np.int16)),
}


@pytest.mark.parametrize("name", USABLE)
def test_what_real_ct_look_like_is_usable(name: str, data: Path, workspace: Workspace) -> None:
    USABLE[name](data / "p1" / "ct.nii.gz")
    usable(ingest_one(data, workspace))


def test_padding_beside_air_is_usable(data: Path, workspace: Workspace) -> None:
    voxels = ct_voxels()
    voxels[0] = -3024
    save_ct(data / "p1" / "ct.nii.gz", voxels=voxels)
    usable(ingest_one(data, workspace))


def test_stored_values_with_an_intercept_are_usable(data: Path, workspace: Workspace) -> None:
    raw = bytearray(nibabel.Nifti1Image((ct_voxels() + 1024).astype(np.uint16), AFFINE).to_bytes())
    raw[112:116], raw[116:120] = np.float32(1).tobytes(), np.float32(-1024).tobytes()
    (data / "p1").mkdir()
    (data / "p1" / "ct.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    usable(ingest_one(data, workspace))


LABEL_REASONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: None, "no label at"),
    "unknown id": (lambda p: save_label(p, label_voxels(id_77=(1, 1, 1))), "label ids 77 have no organ; known are 1, 2, 3"),
    "fractions": (lambda p: save_label(p, label_voxels(id_1=(1, 1, 1)) * np.float32(0.5)), "holds 0.5; whole numbers"),
    "another shape": (lambda p: save_label(p, label_voxels()[:, :, :-1]), "is not the image's (12, 10, 8) RAS"),
    "another origin": (lambda p: save_label(p, label_voxels(), affine=AFFINE + np.eye(4, k=3) * 30), "corners up to 30.0 mm apart"),
    "truncated": (truncated, "cannot be read"),
}


@pytest.mark.parametrize("name", LABEL_REASONS)
def test_an_unusable_label_has_one_clear_reason(name: str, data: Path, workspace: Workspace) -> None:
    save_ct(data / "p1" / "ct.nii.gz")
    corrupt, expected = LABEL_REASONS[name]
    corrupt(data / "p1" / "l.nii.gz")
    found = reason(ingest_one(data, workspace, split="train", labels="{case}/l.nii.gz", ids="btcv"))
    assert expected in found
    assert not workspace.label("p1").exists()


def test_a_rounded_label_header_is_no_other_grid(data: Path, workspace: Workspace) -> None:
    save_ct(data / "p1" / "ct.nii.gz")
    save_label(data / "p1" / "l.nii.gz", label_voxels(id_6=(1, 1, 1)), affine=AFFINE + 0.01 * np.diag([1, 1, 1, 0]))
    usable(ingest_one(data, workspace, split="train", labels="{case}/l.nii.gz", ids="btcv"))
    assert np.array_equal(read_volume(workspace.label("p1")).affine, AFFINE)


def test_dicom_folders_that_are_empty_or_ambiguous(data: Path, workspace: Workspace, shared_data: Path) -> None:
    import pydicom

    (data / "p1").mkdir()
    assert "holds no DICOM image" in reason(ingest_one(data, workspace, images="{case}/"))
    for path in sorted((shared_data / "cptac_pda_189" / "dicom").iterdir())[:10]:
        shutil.copy(path, data / "p1")
        other = pydicom.dcmread(path)
        other.SeriesInstanceUID = "1.2.3"
        other.save_as(data / "p1" / f"other-{path.name}")
    assert "holds 2 series; choose one with series_uid" in reason(ingest_one(data, workspace, images="{case}/"))
    case = usable(ingest_one(data, workspace, images="{case}/", series_uid={"p1": "1.2.3"}))
    assert (case.series_uid, case.shape) == ("1.2.3", (512, 512, 10))


def test_a_series_has_one_hash_whatever_its_files_are_called(data: Path, shared_data: Path) -> None:
    for number, path in enumerate(sorted((shared_data / "cptac_pda_189" / "dicom").iterdir())[:4]):
        for folder, name in (("a", path.name), ("b", f"{9 - number}.dcm")):
            (data / folder).mkdir(exist_ok=True)
            shutil.copy(path, data / folder / name)
    assert sha256_of(data / "a") == sha256_of(data / "b")
    (data / "b" / "9.dcm").unlink()
    assert sha256_of(data / "a") != sha256_of(data / "b")


# --- a campaign ------------------------------------------------------------------------------------------------------


def three_cases(data: Path) -> Any:
    for seed, name in enumerate(("c", "a", "b")):
        save_ct(data / name / "ct.nii.gz", seed=seed)
    return files(data)


def test_one_bad_case_does_not_stop_the_others(data: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    three = three_cases(data)
    truncated(data / "a" / "ct.nii.gz")
    report = ingest([three], OURS, workspace)
    assert [c.case_id for c in report.cases] == ["b", "c"]
    assert [q.case_id for q in report.quarantined] == ["a"]
    assert workspace.cases() == list(report.cases)
    assert workspace.quarantined() == list(report.quarantined)
    assert [record.getMessage() for record in caplog.records] == [f"a: {report.quarantined[0].reason}"]


def test_a_second_run_reads_no_image_again(data: Path, workspace: Workspace) -> None:
    three = three_cases(data)
    first = ingest([three], OURS, workspace)
    manifest = workspace.manifest.read_bytes()

    def refuse(function: Any, candidates: Iterable[Candidate]) -> list[Case | Quarantined]:
        assert list(candidates) == []
        return []

    second = ingest([three], OURS, workspace, map_cases=refuse)
    assert (first.skipped, set(second.skipped)) == ((), {"a", "b", "c"})
    assert second.cases == first.cases
    assert workspace.manifest.read_bytes() == manifest


def recording(done: list[str]) -> Any:
    def run(function: Callable[[Candidate], Case | Quarantined], candidates: Iterable[Candidate]) -> Iterable[Case | Quarantined]:
        for candidate in reversed(list(candidates)):  # a cluster gives results in any order
            done.append(candidate.case_id)
            yield pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(candidate)))

    return run


def test_only_what_changed_is_done_again(data: Path, workspace: Workspace) -> None:
    for seed, name in enumerate("abc"):
        save_ct(data / name / "ct.nii.gz", seed=seed)
        save_label(data / name / "l.nii.gz", label_voxels(id_6=(1, 1, 1)))
    labels = {"split": "train", "labels": "{case}/l.nii.gz", "ids": "btcv"}
    done: list[str] = []

    def again(organs: Organs = OURS, checks: IngestChecks | None = None, **fields: Any) -> list[str]:
        done.clear()
        ingest([files(data, **labels, **fields)], organs, workspace, checks or IngestChecks(), map_cases=recording(done))
        return sorted(done)

    assert again() == ["a", "b", "c"]
    assert again() == []
    save_ct(data / "a" / "ct.nii.gz", seed=77)
    assert again() == ["a"]
    os.utime(data / "b" / "l.nii.gz", ns=(1, 1))
    assert again() == ["b"]
    workspace.label("c").unlink()
    assert again() == ["c"]
    assert again(labeled_organs=["liver"]) == ["a", "b", "c"]
    assert again(labeled_organs=["liver"], checks=IngestChecks(air_hu=-100)) == ["a", "b", "c"]
    tenth = Organs(name="more", organs=(*OURS.organs, Organ(name="aorta", label_id=10, color="#ffffff")))
    assert again(tenth) == ["a", "b", "c"]


def test_a_repaired_case_leaves_the_quarantine_of_this_step(data: Path, workspace: Workspace) -> None:
    three = three_cases(data)
    truncated(data / "a" / "ct.nii.gz")
    ingest([three], OURS, workspace)
    workspace.add_to_quarantine(Quarantined(case_id="b", step="predict", reason="killed its process"))
    save_ct(data / "a" / "ct.nii.gz", seed=9)
    assert [c.case_id for c in ingest([three], OURS, workspace).cases] == ["a", "b", "c"]
    assert [(q.case_id, q.step) for q in workspace.quarantined()] == [("b", "predict")]


def test_a_case_that_broke_since_leaves_the_manifest(data: Path, workspace: Workspace) -> None:
    three = three_cases(data)
    ingest([three], OURS, workspace)
    truncated(data / "a" / "ct.nii.gz")
    report = ingest([three], OURS, workspace)
    assert [c.case_id for c in report.cases] == ["b", "c"]
    assert ingest([three], OURS, workspace).skipped == ("b", "c")


def test_the_first_of_two_same_images_is_kept(data: Path, workspace: Workspace) -> None:
    save_ct(data / "train" / "z" / "ct.nii.gz", seed=1)
    save_label(data / "train" / "z" / "l.nii.gz", label_voxels())
    save_ct(data / "test" / "a" / "ct.nii.gz", seed=1)
    save_ct(data / "test" / "b" / "ct.nii.gz", seed=2)
    sources = [
        files(data / "train", name="one", split="train", labels="{case}/l.nii.gz", ids="btcv"),
        files(data / "test", name="two", split="holdout"),
    ]
    for _ in range(2):  # the second run finds both finished, and still the same duplicate
        report = ingest(sources, OURS, workspace)
        assert [c.case_id for c in report.cases] == ["b", "z"]
        assert [q.case_id for q in report.quarantined] == ["a"]
        assert "the same image as case z" in report.quarantined[0].reason
    assert set(report.skipped) == {"b", "z"}


def test_one_id_from_two_sources_names_both(data: Path, workspace: Workspace) -> None:
    save_ct(data / "one" / "p1" / "ct.nii.gz")
    save_ct(data / "two" / "p1" / "ct.nii.gz")
    with pytest.raises(DatasetError, match=r"case 'p1' comes from first \(.*\) and from second \(.*case_id"):
        collect([files(data / "one", name="first"), files(data / "two", name="second")], OURS, workspace)


def test_results_may_come_in_any_order_from_pickled_calls(data: Path, workspace: Workspace) -> None:
    report = ingest([three_cases(data)], OURS, workspace, map_cases=recording([]))
    assert [c.case_id for c in report.cases] == ["a", "b", "c"]


def test_a_mistake_of_ours_stops_the_run(data: Path, workspace: Workspace) -> None:
    save_ct(data / "a" / "ct.nii.gz")
    (candidate,) = files(data).candidates(workspace, OURS)
    with pytest.raises(AttributeError):
        ingest_case(candidate, OURS, workspace, None)  # type: ignore[arg-type]


def test_a_tenth_organ_is_a_line_of_yaml(data: Path, workspace: Workspace, tmp_path: Path) -> None:
    nine = (Path(__file__).parents[2] / "configs/organs/abdomenatlas_1_0.yaml").read_text()
    (tmp_path / "ten.yaml").write_text(nine.rstrip() + '\n  - {name: esophagus, label_id: 10, color: "#67e5d0"}\n')
    ten = load_organs(tmp_path / "ten.yaml")
    save_ct(data / "p1" / "ct.nii.gz")
    save_label(data / "p1" / "l.nii.gz", label_voxels(id_5=(1, 1, 1), id_6=(2, 2, 2)))
    sources = [
        files(data, split="train", labels="{case}/l.nii.gz", ids="btcv"),
        source(source="phantom", name="made", count=1, split="pool", phantom={"spacing": [8, 8, 8]}),
    ]
    report = ingest(sources, ten, workspace)
    assert [c.case_id for c in report.cases] == ["made_0000", "p1"]
    assert "esophagus" in report.cases[1].labeled_organs
    assert np.array_equal(read_volume(workspace.label("p1")).voxels, label_voxels(id_10=(1, 1, 1), id_5=(2, 2, 2)))
    assert len(report.cases[1].labeled_organs) == 10


def test_synthetic_cases_have_truth_for_every_split_and_labels_as_configured(workspace: Workspace) -> None:
    organs = load_organs("abdomenatlas_1_0")
    small = {"spacing": [8, 8, 8]}
    sources = [
        source(source="phantom", name="train", count=1, split="train", labeled_organs=["liver", "spleen"], phantom=small),
        source(source="phantom", name="pool", count=1, split="pool", phantom=small),
        source(source="phantom", name="holdout", count=1, split="holdout", phantom=small),
    ]
    report = ingest(sources, organs, workspace)
    by_split = {c.split: c for c in report.cases}
    assert {s: len(c.labeled_organs) for s, c in by_split.items()} == {"train": 2, "pool": 0, "holdout": 9}
    assert all(c.truth and Path(c.truth).exists() for c in report.cases)
    assert {s: workspace.label(c.case_id).exists() for s, c in by_split.items()} == {"train": True, "pool": False, "holdout": True}
    assert organs.present(read_volume(workspace.label("train_0000")).voxels) == ("liver", "spleen")
    assert len(organs.present(read_volume(workspace.truth("train_0000")).voxels)) >= 7
    assert len(ingest(sources, organs, workspace).skipped) == 3


def test_a_label_map_that_cannot_be_textured_is_set_aside(data: Path, workspace: Workspace) -> None:
    save_label(data / "good.nii.gz", np.repeat(label_voxels(id_6=(1, 1, 1)), 3, axis=0))
    save_label(data / "id.nii.gz", label_voxels(id_77=(1, 1, 1)))
    save_label(data / "soft.nii.gz", label_voxels(id_1=(1, 1, 1)) * np.float32(0.5))
    truncated(data / "short.nii.gz")
    semi = source(source="textured", name="semi", root=str(data), labels="*.nii.gz", ids="btcv", split="pool")
    report = ingest([semi], OURS, workspace)
    assert [c.case_id for c in report.cases] == ["semi_good"]
    reasons = {q.case_id: q.reason for q in report.quarantined}
    assert reasons["semi_id"].startswith(f"{data}/id.nii.gz: label ids 77 have no organ")
    assert reasons["semi_soft"].startswith(f"{data}/soft.nii.gz: a label map holds 0.5")
    assert reasons["semi_short"].startswith(f"{data}/short.nii.gz cannot be read")


def test_ingest_over_ray_tasks(data: Path, workspace: Workspace, ray_session: None) -> None:
    import ray

    def over_tasks(function: Callable[..., Any], candidates: Iterable[Candidate]) -> list[Case | Quarantined]:
        return ray.get([ray.remote(num_cpus=1)(lambda c: function(c)).remote(c) for c in candidates])

    three = three_cases(data)
    truncated(data / "a" / "ct.nii.gz")
    report = ingest([three], OURS, workspace, map_cases=over_tasks)
    assert ([c.case_id for c in report.cases], [q.case_id for q in report.quarantined]) == (["b", "c"], ["a"])


# --- killed ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run as a kill does: nothing here catches it."""


@contextlib.contextmanager
def killed(name: str, call: int) -> Iterator[None]:
    """The block ends where ingest calls its function of that name for the `call`th time."""
    function, calls = getattr(ingest_module, name), iter(range(1, call + 1))

    def killing(*args: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return function(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, name, killing)
        with pytest.raises(Killed):
            yield


def holdout(data: Path) -> Any:
    """One case, of which label and truth are written."""
    save_ct(data / "a" / "ct.nii.gz")
    save_label(data / "a" / "l.nii.gz", label_voxels(id_6=(1, 2, 3), id_1=(4, 4, 4), id_11=(5, 6, 7)))
    return files(data, split="holdout", labels="{case}/l.nii.gz", ids="btcv")


def is_as_the_manifest_says(workspace: Workspace) -> bool:
    (case,) = workspace.cases()
    paths = (workspace.label("a"), workspace.truth("a"))
    return (case.label_sha256, case.truth_sha256) == tuple(file_sha256(p) if p.exists() else None for p in paths)


@pytest.mark.parametrize("checks", [IngestChecks(), IngestChecks(air_hu=-100)], ids=["twin", "changed checks"])
@pytest.mark.parametrize("write", [1, 2])
def test_a_killed_run_leaves_label_and_truth_of_the_one_before(
    write: int, checks: IngestChecks, data: Path, workspace: Workspace
) -> None:
    one = holdout(data)
    ingest([one], OURS, workspace)
    (candidate,) = one.candidates(workspace, OURS)
    with killed("write_volume", write):
        ingest_case(candidate, OURS, workspace, checks)
    assert is_as_the_manifest_says(workspace)
    assert not workspace.ingested("a").exists(), "nobody knows what the killed run has written"
    assert ingest([one], OURS, workspace, checks).skipped == ()
    assert is_as_the_manifest_says(workspace)
    assert ingest([one], OURS, workspace, checks).skipped == ("a",)


def test_a_twin_that_fails_takes_nothing_from_the_one_that_succeeded(data: Path, workspace: Workspace) -> None:
    one = holdout(data)
    ingest([one], OURS, workspace)
    (candidate,) = one.candidates(workspace, OURS)
    truncated(data / "a" / "ct.nii.gz")
    reason(ingest_case(candidate, OURS, workspace, IngestChecks()))
    assert is_as_the_manifest_says(workspace)


def test_a_case_that_broke_keeps_its_files_until_the_manifest_names_it_no_more(data: Path, workspace: Workspace) -> None:
    one = holdout(data)
    ingest([one], OURS, workspace)
    truncated(data / "a" / "ct.nii.gz")
    with killed("write_lines", 1):
        ingest([one], OURS, workspace)
    assert is_as_the_manifest_says(workspace)
    assert ingest([one], OURS, workspace).cases == ()
    assert not any(p.exists() for p in (workspace.ingested("a"), workspace.label("a"), workspace.truth("a")))


def test_a_killed_run_that_drops_the_label_leaves_it_to_the_next(data: Path, workspace: Workspace) -> None:
    ingest([holdout(data)], OURS, workspace)
    unlabeled = files(data, truth=True, labels="{case}/l.nii.gz", ids="btcv")
    with killed("write_volume", 1):
        ingest([unlabeled], OURS, workspace)
    assert is_as_the_manifest_says(workspace)
    ingest([unlabeled], OURS, workspace)
    assert is_as_the_manifest_says(workspace)
    assert not workspace.label("a").exists()


# --- real data -------------------------------------------------------------------------------------------------------


def test_real_cases_of_every_kind(shared_data: Path, workspace: Workspace) -> None:
    organs = load_organs("abdomenatlas_1_0")
    common = {"source": "files", "root": str(shared_data)}
    ts1 = {"images": "{case}/ct.nii.gz", "include": ["ts1"], "labels": "{case}/labels.nii.gz", "ids": "abdomenatlas_1_0"}
    sources = [
        source(**common, **ts1, name="ts1", split="train", license="Apache-2.0"),
        source(source="dataset", dataset="dicom", name="cptac", root=str(shared_data), images="cptac*/dicom/", split="pool"),
        source(source="dataset", dataset="images", name="acrin", root=str(shared_data), images="acrin*/ct.nii.gz", split="pool"),
    ]
    report = ingest(sources, organs, workspace)
    assert report.quarantined == ()
    acrin, cptac, ts1_case = report.cases
    assert (acrin.case_id, acrin.shape, acrin.orientation) == ("acrin_flt_001", (512, 512, 99), "LPS")
    assert (cptac.case_id, cptac.shape, cptac.orientation) == ("cptac_pda_189", (512, 512, 35), "LPS")
    assert ts1_case.labeled_organs == organs.names
    label, given = read_volume(workspace.label("ts1")), read_volume(shared_data / "ts1" / "labels.nii.gz")
    assert np.array_equal(label.voxels, given.voxels)
    assert np.array_equal(label.affine, read_volume(shared_data / "ts1" / "ct.nii.gz").affine)


def test_the_abdomenatlas_layout(shared_data: Path, data: Path, workspace: Workspace) -> None:
    """The case is published without its CT here, so one is made on its grid."""
    organs = load_organs("abdomenatlas_1_0")
    (data / "BDMAP_00000338").mkdir()
    (data / "BDMAP_00000338" / "segmentations").symlink_to(shared_data / "abdomenatlas_338" / "segmentations")
    masks = {n: read_volume(shared_data / "abdomenatlas_338" / "segmentations" / f"{n}.nii.gz") for n in organs.names}
    body = np.where(sum(m.voxels.astype(np.uint8) for m in masks.values()) > 0, 60, -1000)
    write_volume(data / "BDMAP_00000338" / "ct.nii.gz", masks["liver"].with_voxels(body.astype(np.int16)))
    atlas = source(source="dataset", dataset="abdomenatlas_1_0", root=str(data), split="train")
    (case,) = ingest([atlas], organs, workspace).cases
    assert (case.labeled_organs, case.license, case.shape) == (organs.names, "CC BY-NC-SA 4.0", (502, 348, 71))
    label = read_volume(workspace.label(case.case_id))
    claims = sum(m.voxels.astype(np.uint8) for m in masks.values())
    for organ in organs:
        sure = (masks[organ.name].voxels > 0) & (claims == 1)
        assert sure.any()
        assert np.all(label.voxels[sure] == organ.label_id)
    assert np.array_equal(label.voxels > 0, claims > 0)


def test_btcv_labels_in_las_beside_a_ct_in_ras(shared_data: Path, data: Path, workspace: Workspace) -> None:
    """Real expert labels; the CT is made on their grid turned to RAS, as a converter might have left it."""
    organs = load_organs("abdomenatlas_1_0")
    given = read_volume(shared_data / "btcv_labels" / "0023.nii.gz")
    assert given.orientation == "LAS"
    ras = reorient(given)
    (data / "Training" / "label").mkdir(parents=True)
    shutil.copy(shared_data / "btcv_labels" / "0023.nii.gz", data / "Training" / "label" / "label0023.nii.gz")
    write_volume(
        data / "Training" / "img" / "img0023.nii.gz", Volume(np.where(ras.voxels > 0, 60, -1000).astype(np.int16), ras.affine)
    )
    (case,) = ingest([source(source="dataset", dataset="btcv", root=str(data), split="train")], organs, workspace).cases
    assert case.orientation == "RAS"
    label = read_volume(workspace.label("btcv_0023"))
    assert label.orientation == "RAS"
    assert set(organs.names) - set(organs.present(label.voxels)) == {"gall_bladder"}  # it was taken out
    assert int((label.voxels == organs.label_id("liver")).sum()) == int((given.voxels == 6).sum())
    left, right = (float(np.argwhere(organs.mask(label.voxels, f"kidney_{side}"))[:, 0].mean()) for side in ("left", "right"))
    assert left < right  # in RAS a smaller first index is the patient's left
