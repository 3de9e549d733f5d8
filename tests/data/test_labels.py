"""What is not certain is not labeled: pairs, parts, tumors of no organ, files that are not there."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from ct_files import AFFINE, SHAPE, ct_voxels, save_ct, save_label, source
from pydantic import ValidationError

from atlas_ray.data.ingest import IngestChecks, ingest_case
from atlas_ray.exceptions import DatasetError
from atlas_ray.organs import Organ, Organs, load_organs
from atlas_ray.records import Case, Quarantined
from atlas_ray.volume import Volume, read_volume, reorient, write_volume
from atlas_ray.workspace import Workspace

NAMES = ("kidney_left", "kidney_right", "liver", "spleen")
OURS = Organs(name="ours", organs=tuple(Organ(name=n, label_id=i, color="#000000") for i, n in enumerate(NAMES, 1)))
PAIR: dict[str, Any] = {"ids": {1: "kidneys", 2: "liver"}, "pairs": {"kidneys": ["kidney_left", "kidney_right"]}}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "campaign")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    save_ct(tmp_path / "data" / "p1" / "ct.nii.gz")
    return tmp_path / "data"


def one(data: Path, workspace: Workspace, **fields: Any) -> Case | Quarantined:
    described = source(
        **{"source": "files", "name": "set", "root": str(data), "split": "pool", "images": "{case}/ct.nii.gz", **fields}
    )
    (candidate,) = described.candidates(workspace, OURS)
    return ingest_case(candidate, OURS, workspace, IngestChecks())


def usable(result: Case | Quarantined) -> Case:
    assert isinstance(result, Case), result
    return result


def labels(**boxes: tuple[slice, slice, slice] | list[tuple[slice, slice, slice]]) -> np.ndarray:
    """id_3=box, or several boxes."""
    voxels = np.zeros(SHAPE, np.uint8)
    for name, given in boxes.items():
        for box in given if isinstance(given, list) else [given]:
            voxels[box] = int(name.removeprefix("id_"))
    return voxels


def box(x: slice, y: slice = slice(3, 6), z: slice = slice(2, 5)) -> tuple[slice, slice, slice]:
    return x, y, z


LEFT, RIGHT, CROSSING = box(slice(2, 4)), box(slice(8, 10)), box(slice(3, 9))


# --- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["RAS", "LPS", "LAS", "SPR"])
def test_sides_are_the_patients_however_the_file_is_turned(stored: str, data: Path, workspace: Workspace) -> None:
    given = labels(id_1=[LEFT, RIGHT], id_2=box(slice(4, 7), slice(7, 9)))
    write_volume(data / "p1" / "ct.nii.gz", reorient(Volume(ct_voxels(), AFFINE), stored))
    write_volume(data / "p1" / "l.nii.gz", reorient(Volume(given, AFFINE), stored))
    case = usable(one(data, workspace, labels="{case}/l.nii.gz", **PAIR))
    assert (case.orientation, case.labeled_organs) == (stored, ("kidney_left", "kidney_right", "liver"))
    written = reorient(read_volume(workspace.label("p1"))).voxels
    assert np.array_equal(written, labels(id_1=LEFT, id_2=RIGHT, id_3=box(slice(4, 7), slice(7, 9))))


UNCERTAIN = {
    "one": ([LEFT], "kidneys: one component of 18 voxels: the other is missing, or they touch"),
    "touching": ([CROSSING], "kidneys: one component of 54 voxels"),
    "both on one side": (
        [box(slice(7, 9)), box(slice(10, 11), slice(3, 6), slice(2, 4))],
        "kidneys: 2 components, all on the patient's right",
    ),
    "across": ([CROSSING, box(slice(10, 11))], "kidneys: a component of 54 voxels lies across the midline"),
}


@pytest.mark.parametrize("name", UNCERTAIN)
def test_an_uncertain_pair_is_not_labeled_in_that_case(
    name: str, data: Path, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    boxes, reason = UNCERTAIN[name]
    save_label(data / "p1" / "l.nii.gz", labels(id_1=boxes, id_2=box(slice(4, 7), slice(7, 9))))
    with caplog.at_level(logging.INFO):
        case = usable(one(data, workspace, labels="{case}/l.nii.gz", split="train", **PAIR))
    assert case.labeled_organs == ("liver",)
    assert set(case.not_labeled) == {"kidney_left", "kidney_right"}
    assert case.not_labeled["kidney_left"].startswith(reason)
    assert np.array_equal(read_volume(workspace.label("p1")).voxels, labels(id_3=box(slice(4, 7), slice(7, 9))))
    assert any("kidney_left is not labeled: kidneys:" in record.getMessage() for record in caplog.records)


def test_a_pair_that_is_not_there_is_known_to_be_absent(data: Path, workspace: Workspace) -> None:
    save_label(data / "p1" / "l.nii.gz", labels(id_2=LEFT))
    case = usable(one(data, workspace, labels="{case}/l.nii.gz", **PAIR))
    assert (case.labeled_organs, case.not_labeled) == (("kidney_left", "kidney_right", "liver"), {})


def test_three_components_go_to_their_sides(data: Path, workspace: Workspace) -> None:
    upper = box(slice(8, 10), slice(3, 6), slice(6, 7))
    save_label(data / "p1" / "l.nii.gz", labels(id_1=[LEFT, RIGHT, upper]))
    usable(one(data, workspace, labels="{case}/l.nii.gz", **PAIR))
    assert np.array_equal(read_volume(workspace.label("p1")).voxels, labels(id_1=LEFT, id_2=[RIGHT, upper]))


def test_a_reference_must_be_certain(data: Path, workspace: Workspace) -> None:
    save_label(data / "p1" / "l.nii.gz", labels(id_1=LEFT))
    rules = {**PAIR, "ids": {1: "kidneys", 2: "liver", 3: "spleen"}}
    result = one(data, workspace, labels="{case}/l.nii.gz", truth=True, **rules)
    assert isinstance(result, Quarantined)
    assert "a reference must know every organ; kidney_left: kidneys: one component" in result.reason
    only = one(data, workspace, labels="{case}/l.nii.gz", split="train", labeled_organs=["kidney_left"], **rules)
    assert isinstance(only, Quarantined)
    assert "no organ is labeled for certain" in only.reason


def test_a_mask_of_both_is_split_too(data: Path, workspace: Workspace) -> None:
    save_label(data / "p1" / "both_kidneys.nii.gz", labels(id_1=[LEFT, RIGHT]))
    save_label(data / "p1" / "liver.nii.gz", labels(id_1=box(slice(4, 7), slice(7, 9))))
    masks = {"mask_names": {"kidneys": "both_kidneys"}, "labeled_organs": ["kidney_left", "kidney_right", "liver"]}
    case = usable(one(data, workspace, labels="{case}/{organ}.nii.gz", pairs=PAIR["pairs"], **masks))
    assert case.labeled_organs == ("kidney_left", "kidney_right", "liver")
    assert case.origins["kidney_right"].rule == "side of kidneys"
    written = read_volume(workspace.label("p1")).voxels
    assert np.array_equal(written, labels(id_1=LEFT, id_2=RIGHT, id_3=box(slice(4, 7), slice(7, 9))))


def test_kidneys_of_a_real_patient_are_told_apart_by_the_real_body(shared_data: Path, tmp_path: Path, workspace: Workspace) -> None:
    """A real CT and its nine organs, with one id for both kidneys."""
    nine = load_organs("abdomenatlas_1_0")
    given = read_volume(shared_data / "ts1" / "labels.nii.gz")
    left, right = nine.label_id("kidney_left"), nine.label_id("kidney_right")
    (tmp_path / "data" / "ts1").mkdir(parents=True)
    shutil.copy(shared_data / "ts1" / "ct.nii.gz", tmp_path / "data" / "ts1" / "ct.nii.gz")
    write_volume(tmp_path / "data" / "ts1" / "l.nii.gz", given.with_voxels(np.where(given.voxels == right, left, given.voxels)))
    ids = {organ.label_id: organ.name for organ in nine if organ.label_id != right} | {left: "kidneys"}
    rules = {"images": "{case}/ct.nii.gz", "labels": "{case}/l.nii.gz", "ids": ids, "pairs": PAIR["pairs"]}
    described = source(source="files", name="set", root=str(tmp_path / "data"), split="pool", **rules)
    (candidate,) = described.candidates(workspace, nine)
    case = usable(ingest_case(candidate, nine, workspace, IngestChecks()))
    assert case.labeled_organs == nine.names
    assert np.array_equal(read_volume(workspace.label("ts1")).voxels, given.voxels)


# --- tumors, parts, several files ------------------------------------------------------------------------------------


def test_an_organ_beside_a_tumor_of_no_organ_is_not_labeled(data: Path, workspace: Workspace) -> None:
    beside = box(slice(4, 5))  # shares a face with LEFT
    save_label(data / "p1" / "l.nii.gz", labels(id_1=LEFT, id_2=RIGHT, id_14=beside))
    case = usable(one(data, workspace, labels="{case}/l.nii.gz", ids={1: "liver", 2: "spleen"}, unknown_ids=[14]))
    assert case.labeled_organs == ("spleen",)
    assert case.not_labeled == {"liver": "touches id 14, which may be a part of it"}


def test_a_part_that_is_missing_leaves_its_organ_unlabeled(data: Path, workspace: Workspace) -> None:
    save_label(data / "p1" / "upper.nii.gz", labels(id_1=LEFT))
    save_label(data / "p1" / "liver.nii.gz", labels(id_1=RIGHT))
    masks = {"mask_names": {"spleen": ["upper", "lower"]}, "labeled_organs": ["liver", "spleen"]}
    case = usable(one(data, workspace, labels="{case}/{organ}.nii.gz", **masks))
    assert case.labeled_organs == ("liver",)
    assert case.not_labeled == {"spleen": "no mask of spleen, such as lower.nii.gz"}


def test_where_absence_means_nothing_an_organ_without_a_voxel_is_not_labeled(data: Path, workspace: Workspace) -> None:
    save_label(data / "p1" / "l.nii.gz", labels(id_1=LEFT))
    rules = {"labels": "{case}/l.nii.gz", "ids": {1: "liver", 2: "spleen"}}
    assert usable(one(data, workspace, **rules)).labeled_organs == ("liver", "spleen")
    case = usable(one(data, workspace, absent="unknown", **rules))
    assert case.labeled_organs == ("liver",)
    assert case.not_labeled["spleen"].startswith("no voxel")


def test_of_several_files_the_revised_goes_first_wherever_it_is_listed(data: Path, workspace: Workspace) -> None:
    save_label(data / "p1" / "a.nii.gz", labels(id_1=LEFT, id_2=RIGHT))
    save_label(data / "p1" / "b.nii.gz", labels(id_1=box(slice(5, 7))))
    revised = {"path": "{case}/b.nii.gz", "ids": {1: "liver"}, "source": "revised"}
    original = {"path": "{case}/a.nii.gz", "ids": {1: "liver", 2: "spleen"}}
    for order in ([original, revised], [revised, original]):
        case = usable(one(data, workspace, labels=order))
        assert {n: o.source for n, o in case.origins.items()} == {"liver": "revised", "spleen": "original"}
        assert np.array_equal(read_volume(workspace.label("p1")).voxels, labels(id_3=box(slice(5, 7)), id_4=RIGHT))
    (data / "p1" / "b.nii.gz").unlink()
    assert usable(one(data, workspace, labels=[original, revised])).origins["liver"].source == "original"
    (data / "p1" / "a.nii.gz").unlink()
    result = one(data, workspace, labels=[original, revised])
    assert isinstance(result, Quarantined)
    assert "no label at" in result.reason
    assert "a.nii.gz" in result.reason
    assert "b.nii.gz" in result.reason


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"labels": "{case}/{organ}/*.png", "ids": {1: "liver"}}, "pictures of slices hold ids"),
        ({"labels": [{"path": "x.nii.gz"}]}, "need `ids`"),
        ({"labels": [{"path": "x.nii.gz", "ids": "btcv"}], "ids": "btcv"}, "each has its own ids; write it there"),
        ({"labels": "x.nii.gz", "ids": {1: "p"}, "pairs": {"p": ["spleen", "spleen"]}}, "then the left and the right organ"),
        ({"images": "floor{part}/ct.nii.gz"}, "say by {case} which part names the case"),
    ],
)
def test_rules_that_cannot_be_meant(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        source(**{"source": "files", "name": "set", "root": ".", "split": "pool", "images": "{case}.nii.gz", **fields})


def test_organs_and_pairs_must_exist(data: Path, workspace: Workspace) -> None:
    with pytest.raises(DatasetError, match=r"no organ set knows \['kidney_lef'\].* did you mean 'kidney_left'"):
        one(data, workspace, labels="x.nii.gz", ids={1: "p"}, pairs={"p": ["kidney_lef", "kidney_right"]})
    with pytest.raises(DatasetError, match=r"pairs \['liver'\] are organs"):
        one(data, workspace, labels="x.nii.gz", ids={1: "liver"}, pairs={"liver": ["kidney_left", "kidney_right"]})
    with pytest.raises(DatasetError, match="split train, but its labels have none of kidney_left"):
        one(data, workspace, labels="x.nii.gz", ids={1: "colon"}, split="train")


# --- nnU-Net ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"labels": {"background": 0, "milz": 1}}', r"no organ set knows \['milz'\]"),
        ('{"labels": {"background": 0, "whole": [1, 2]}}', r"has regions \(whole\); say by `ids`"),
        ("{}", "is no nnU-Net dataset.json with `labels`"),
        ("not json", "is no nnU-Net dataset.json"),
    ],
)
def test_a_dataset_json_that_cannot_be_used(text: str, match: str, data: Path, workspace: Workspace) -> None:
    (data / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match=match):
        one(data, workspace, labels="{case}/l.nii.gz", ids="dataset.json")


def test_names_of_a_dataset_json_are_translated(data: Path, workspace: Workspace) -> None:
    (data / "dataset.json").write_text('{"labels": {"background": 0, "Milz": 1, "left lung": 2, "liver": 3}}')
    save_label(data / "p1" / "l.nii.gz", labels(id_1=LEFT, id_2=RIGHT))
    names = {"Milz": "spleen", "left lung": ""}
    case = usable(one(data, workspace, labels="{case}/l.nii.gz", ids="dataset.json", organ_names=names))
    assert case.labeled_organs == ("liver", "spleen")
    assert np.array_equal(read_volume(workspace.label("p1")).voxels, labels(id_4=LEFT))


# --- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_need_a_series(data: Path, workspace: Workspace) -> None:
    (data / "p1" / "1.png").touch()
    result = one(data, workspace, labels="{case}/*.png", ids={255: "liver"})
    assert isinstance(result, Quarantined)
    assert "are slices of a DICOM series; the image is" in result.reason


def test_pictures_that_do_not_fit_are_named(shared_data: Path, tmp_path: Path, workspace: Workspace) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "p1").symlink_to(shared_data / "cptac_pda_189" / "dicom")
    rules = {"images": "{case}/", "labels": "ground/{case}/*.png", "ids": {255: "liver"}}
    ground = data / "ground" / "p1"
    ground.mkdir(parents=True)

    def reason() -> str:
        result = one(data, workspace, **rules, include=["p1"])
        assert isinstance(result, Quarantined)
        return result.reason

    assert "no label at" in reason()
    for k in range(34):
        PIL.Image.new("L", (512, 512)).save(ground / f"{k}.png")
    assert "34 pictures such as" in reason()
    PIL.Image.new("L", (512, 511)).save(ground / "34.png")
    assert "34.png has 512x511 pixels, its slice has 512x512" in reason()
    PIL.Image.new("RGB", (512, 512)).save(ground / "34.png")
    assert "34.png has colors; gray is allowed" in reason()
    (ground / "34.png").write_bytes((ground / "33.png").read_bytes()[:60])
    assert "34.png cannot be read" in reason()
