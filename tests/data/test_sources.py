"""Sources list their cases from real folders, and say what is wrong with a description."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ct_files import SHAPE, label_voxels, save_ct, save_label, source
from pydantic import ValidationError

from atlas_ray.data.datasets import load_dataset
from atlas_ray.data.labels import LabelMapFile, OrganMasks
from atlas_ray.data.patterns import find_cases, part_of
from atlas_ray.data.sources import Candidate, prepare
from atlas_ray.exceptions import ConfigError, DatasetError, LabelError
from atlas_ray.organs import CONFIGS, Organ, Organs, load_organs
from atlas_ray.volume import read_volume
from atlas_ray.workspace import Workspace

OURS = Organs(
    name="ours", organs=(Organ(name="liver", label_id=1, color="#000000"), Organ(name="spleen", label_id=2, color="#ffffff"))
)
PHANTOM = {"spacing": [8, 8, 8]}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "campaign")


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def files(root: Path | str, **fields: Any) -> Any:
    return source(**{"source": "files", "name": "somewhere", "root": str(root), "split": "pool", **fields})


def listed(root: Path, workspace: Workspace, **fields: Any) -> list[Candidate]:
    return files(root, **fields).candidates(workspace, OURS)


# --- which cases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "case"),
    [
        ("*/ct.nii.gz", "1.2.840.7/ct.nii.gz", "1.2.840.7"),
        ("*.nii.gz", "case.v2.1.nii.gz", "case.v2.1"),
        ("*.nii", "a.b.nii", "a.b"),
        ("acrin*/ct.nii.gz", "acrin_1/ct.nii.gz", "acrin_1"),
        ("img/img{case}.nii.gz", "img/img0001.nii.gz", "0001"),
        ("imagesTr/{case}_0000.nii.gz", "imagesTr/liver_3.1_0000.nii.gz", "liver_3.1"),
        ("*/{case}/ct.nii.gz", "site_b/007/ct.nii.gz", "007"),
        ("**/{case}/ct.nii.gz", "a/b/c/ct.nii.gz", "c"),
        ("{case}/{case}.nii.gz", "p1/p1.nii.gz", "p1"),
        ("BDMAP_[0-9]*/ct.nii.gz", "BDMAP_12/ct.nii.gz", "BDMAP_12"),
        ("p?/{case}.nii", "p1/x.nii", "x"),
        ("ts1/ct.nii.gz", "ts1/ct.nii.gz", "ct"),
    ],
)
def test_what_names_a_case(pattern: str, path: str, case: str, tmp_path: Path) -> None:
    touch(tmp_path, path)
    assert find_cases(tmp_path, pattern) == [(case, tmp_path / path)]


def test_a_placeholder_may_be_narrowed_and_a_part_is_shared(tmp_path: Path, workspace: Workspace) -> None:
    touch(
        tmp_path, "imagesTr/amos_0004.nii.gz", "imagesTr/amos_0507.nii.gz", "imagesVa/amos_0008.nii.gz", "imagesTs/amos_0009.nii.gz"
    )
    pattern = "images{part:[TV][ra]}/amos_{case:0[0-4]??}.nii.gz"
    assert [case for case, _ in find_cases(tmp_path, pattern)] == ["0004", "0008"]
    assert part_of("imagesVa/amos_0008.nii.gz", pattern) == "Va"
    found = listed(tmp_path, workspace, images=pattern, labels="labels{part}/amos_{case}.nii.gz", ids="btcv")
    assert [c.labels[0].path for c in found] == [f"{tmp_path}/labelsTr/amos_0004.nii.gz", f"{tmp_path}/labelsVa/amos_0008.nii.gz"]


def test_what_does_not_match_is_no_case(tmp_path: Path) -> None:
    touch(tmp_path, "p1/p2.nii.gz", "._p3/._p3.nii.gz", "p4/other.nii.gz")
    assert find_cases(tmp_path, "{case}/{case}.nii.gz") == []


def test_a_pattern_that_ends_in_a_slash_means_folders(tmp_path: Path) -> None:
    touch(tmp_path, "p1/1.dcm", "p2/1.dcm", "README.txt", ".cache/x")
    assert [case for case, _ in find_cases(tmp_path, "{case}/")] == ["p1", "p2"]
    assert [case for case, _ in find_cases(tmp_path, "*")] == ["README.txt", "p1", "p2"]


def test_cases_come_by_id_whatever_the_folder_order(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, "b/x/ct.nii.gz", "a/z/ct.nii.gz", "c/y/ct.nii.gz")
    found = listed(tmp_path, workspace, images="*/{case}/ct.nii.gz")
    assert [c.case_id for c in found] == ["x", "y", "z"]
    assert found[0].image == str(tmp_path / "b/x/ct.nii.gz")


def test_case_ids_are_safe_names_from_a_template(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, "Müller 1 (pv)/ct.nii.gz")
    assert [c.case_id for c in listed(tmp_path, workspace, images="*/ct.nii.gz")] == ["M-ller-1--pv-"]
    named = listed(tmp_path, workspace, images="*/ct.nii.gz", case_id="{name}.{case}")
    assert [c.case_id for c in named] == ["somewhere.M-ller-1--pv-"]


def test_include_exclude_and_limit(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, *(f"{n}/ct.nii.gz" for n in "abcde"))

    def chosen(**fields: Any) -> list[str]:
        return [c.case_id for c in listed(tmp_path, workspace, images="*/ct.nii.gz", case_id="s_{case}", **fields)]

    assert chosen(include=["b", "s_d"]) == ["s_b", "s_d"]
    assert chosen(exclude=["a", "s_c"]) == ["s_b", "s_d", "s_e"]
    assert chosen(exclude=["a"], limit=2) == ["s_b", "s_c"]
    with pytest.raises(DatasetError, match=r"somewhere: include/exclude name \['x'\]"):
        chosen(include=["a", "x"])


def test_a_root_is_relative_to_data_root(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, "set/a/ct.nii.gz")
    found = files("set", images="*/ct.nii.gz").candidates(workspace, OURS, str(tmp_path))
    assert found[0].image == str(tmp_path / "set/a/ct.nii.gz")
    absolute = files(tmp_path / "set", images="*/ct.nii.gz").candidates(workspace, OURS, "/elsewhere")
    assert absolute == found


def test_a_missing_root_and_an_empty_match_are_named(tmp_path: Path, workspace: Workspace) -> None:
    with pytest.raises(DatasetError, match=r"somewhere: no folder .*/gone \(root: '.*/gone'\)"):
        listed(tmp_path / "gone", workspace, images="*/ct.nii.gz")
    with pytest.raises(DatasetError, match=r"somewhere: nothing in .* matches '\*/ct\.nii\.gz'"):
        listed(tmp_path, workspace, images="*/ct.nii.gz")


def test_one_id_for_two_images_of_a_dataset_names_both(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, "a/1/ct.nii.gz", "b/1/ct.nii.gz")
    with pytest.raises(DatasetError, match=r"a/1/ct\.nii\.gz and .*b/1/ct\.nii\.gz are both case '1'"):
        listed(tmp_path, workspace, images="*/{case}/ct.nii.gz")


def test_several_series_are_chosen_by_case(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, "a/1.dcm", "b/1.dcm", "c/1.dcm")
    found = listed(tmp_path, workspace, images="{case}/", case_id="x_{case}", series_uid={"a": "1.2", "x_b": "3.4"})
    assert [c.series_uid for c in found] == ["1.2", "3.4", None]


# --- which labels ----------------------------------------------------------------------------------------------------


def test_a_label_map_by_the_name_of_an_organ_set(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, "img/img01.nii.gz")
    (case,) = listed(tmp_path, workspace, images="img/img{case}.nii.gz", labels="lab/label{case}.nii.gz", ids="btcv", split="train")
    (label,) = case.labels
    assert isinstance(label, LabelMapFile)
    assert label.path == str(tmp_path / "lab/label01.nii.gz")
    assert (label.ids[1], label.ids[6], label.ids[5]) == ("spleen", "liver", "")  # the campaign has no esophagus
    assert (label.dataset, label.name) == ("somewhere", "lab/label01.nii.gz")
    assert case.labeled_organs == ("liver", "spleen")  # channel order, and only the campaign's
    assert not case.truth


def test_masks_per_organ_with_names_of_their_own(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, "site/p1/ct.nii.gz")
    (case,) = listed(
        tmp_path,
        workspace,
        images="*/{case}/ct.nii.gz",
        labels="{folder}/segmentations/{organ}.nii.gz",
        mask_names={"spleen": "milz"},
    )
    (label,) = case.labels
    assert isinstance(label, OrganMasks)
    assert label.paths == {
        "liver": (str(tmp_path / "site/p1/segmentations/liver.nii.gz"),),
        "spleen": (str(tmp_path / "site/p1/segmentations/milz.nii.gz"),),
    }


def test_labeled_organs_may_be_fewer_than_the_ids_name(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, "a/ct.nii.gz")
    labels = {"images": "*/ct.nii.gz", "labels": "{case}/l.nii.gz", "ids": {1: "spleen", 2: "liver", 3: "liver", 4: ""}}
    assert listed(tmp_path, workspace, **labels)[0].labeled_organs == ("liver", "spleen")
    assert listed(tmp_path, workspace, **labels, labeled_organs=["spleen"])[0].labeled_organs == ("spleen",)
    with pytest.raises(DatasetError, match=r"labeled_organs \['aorta'\] are not in its labels, which have \['liver', 'spleen'\]"):
        listed(tmp_path, workspace, **labels, labeled_organs=["aorta"])


def test_a_misspelled_organ_is_not_silently_unlabeled(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, "a/ct.nii.gz")
    with pytest.raises(DatasetError, match=r"no organ set knows \['livver'\]; .* did you mean 'liver'\?"):
        listed(tmp_path, workspace, images="*/ct.nii.gz", labels="{case}/l.nii.gz", ids={1: "livver"})


def test_truth_is_hidden_from_training_and_must_be_complete(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, "a/ct.nii.gz")
    labels = {"images": "*/ct.nii.gz", "labels": "{case}/l.nii.gz", "truth": True}
    (case,) = listed(tmp_path, workspace, **labels, ids="btcv")
    assert (case.truth, case.labeled_organs) == (True, ())
    with pytest.raises(DatasetError, match="truth must know every organ of the campaign; its labels lack spleen"):
        listed(tmp_path, workspace, **labels, ids={1: "liver"})


def test_complete_labels_of_a_holdout_are_truth_too(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, "a/ct.nii.gz")
    labels = {"images": "*/ct.nii.gz", "labels": "{case}/l.nii.gz", "split": "holdout"}
    assert listed(tmp_path, workspace, **labels, ids="btcv")[0].truth
    assert not listed(tmp_path, workspace, **labels, ids={1: "liver"})[0].truth


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"labels": "{case}.nii.gz"}, "need `ids`"),
        ({"ids": "btcv"}, "need `labels`"),
        ({"truth": True}, "truth needs `labels`"),
        ({"split": "train"}, "split train needs labels that training may see; 'somewhere' has none"),
        ({"split": "train", "labels": "{case}.nii.gz", "ids": "btcv", "truth": True}, "split train needs labels"),
        ({"images": "**/ct.nii.gz"}, "say by {case} which part names the case"),
        ({"images": "{id}/ct.nii.gz"}, r"holds {id}; {case}, {part} are allowed"),
        ({"labels": "{patient}/{organ}.nii.gz"}, r"holds {patient}; {case}, {part}, {folder}, {organ} are allowed"),
        ({"case_id": "{}"}, r"holds {}; {case}, {name} are allowed"),
        ({"name": "a b"}, "pattern"),
        ({"lables": "x"}, "Extra inputs"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_description_that_cannot_be_meant(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        files("x", **{"images": "*/ct.nii.gz", **fields})


# --- described datasets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((CONFIGS / "datasets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_described_dataset_is_complete(path: Path) -> None:
    dataset = load_dataset(path.stem)
    assert dataset.name == path.stem
    assert dataset.title
    assert dataset.license
    assert dataset.citation


def test_a_described_dataset_is_used_by_name(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, "Training/img/img0001.nii.gz", "Training/img/img0002.nii.gz")
    btcv = source(source="dataset", dataset="btcv", root=str(tmp_path), split="train", exclude=["0002"])
    (case,) = btcv.candidates(workspace, load_organs("abdomenatlas_1_0"))
    assert (case.case_id, case.source, len(case.labeled_organs)) == ("btcv_0001", "btcv", 9)
    assert "syn3193805" in case.license


def test_what_a_campaign_says_goes_before_what_the_file_says(tmp_path: Path, workspace: Workspace) -> None:
    touch(tmp_path, "a/ct.nii.gz")
    own = source(
        source="dataset", dataset="images", name="own", license="ours", images="{case}/ct.nii.gz", root=str(tmp_path), split="pool"
    )
    (case,) = own.candidates(workspace, OURS)
    assert (case.case_id, case.source, case.license, case.labels) == ("a", "own", "ours", ())


def test_a_described_dataset_of_ones_own_is_a_path(tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / "mine.yaml").write_text('name: mine\nimages: "{case}.nii"\n')
    touch(tmp_path / "data", "7.nii")
    mine = source(source="dataset", dataset=str(tmp_path / "mine.yaml"), root=str(tmp_path / "data"), split="pool")
    assert [c.case_id for c in mine.candidates(workspace, OURS)] == ["7"]


def test_what_is_no_dataset_is_named(tmp_path: Path, workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"dataset 'btvc' not found .* one of: abdomenatlas_1_0, .*btcv.*, images"):
        load_dataset("btvc")
    (tmp_path / "bad.yaml").write_text("name: bad\nimage: x\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml does not describe a dataset: images: Field required"):
        load_dataset(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match="dataset 'images': split train needs labels"):
        source(source="dataset", dataset="images", root=".", split="train").candidates(workspace, OURS)


def test_the_discriminator_is_checked() -> None:
    with pytest.raises(ValidationError, match="'files', 'dataset', 'phantom', 'textured'"):
        source(source="dicom", name="x")


# --- synthetic -------------------------------------------------------------------------------------------------------


def phantom(**fields: Any) -> Any:
    return source(**{"source": "phantom", "name": "made", "count": 2, "split": "pool", "phantom": PHANTOM, **fields})


def test_phantoms_are_listed_without_being_made(workspace: Workspace) -> None:
    organs = load_organs("abdomenatlas_1_0")
    found = phantom().candidates(workspace, organs)
    assert [c.case_id for c in found] == ["made_0000", "made_0001"]
    assert not workspace.root.exists()
    assert all(c.truth and not c.labeled_organs for c in found)
    assert phantom(split="train").candidates(workspace, organs)[0].labeled_organs == organs.names
    assert phantom(labeled_organs=["stomach", "aorta"]).candidates(workspace, organs)[0].labeled_organs == ("aorta", "stomach")
    with pytest.raises(LabelError, match="'gizzard' is not in organ set"):
        phantom(labeled_organs=["gizzard"]).candidates(workspace, organs)
    with pytest.raises(ValidationError, match="split train needs labels"):
        phantom(split="train", labeled_organs=[])


def test_no_patient_is_made_twice(workspace: Workspace) -> None:
    organs = load_organs("abdomenatlas_1_0")
    sources = [phantom(name=name, seed=seed, count=50) for name in ("a", "b") for seed in (0, 1)]
    seeds = [c.recipe.seed for s in sources for c in s.candidates(workspace, organs)]
    assert len(set(seeds)) == 200
    assert [c.recipe.seed for c in sources[0].candidates(workspace, organs)] == seeds[:50]


def test_a_phantom_is_made_once_and_again_for_another_recipe(workspace: Workspace) -> None:
    organs = load_organs("abdomenatlas_1_0")
    candidate = pickle.loads(pickle.dumps(phantom(count=1).candidates(workspace, organs)[0]))
    prepare(candidate, organs)
    image, label = Path(candidate.image), Path(candidate.labels[0].path)
    assert image == workspace.synthetic("made") / "made_0000" / "ct.nii.gz"
    assert read_volume(image).spacing == (8, 8, 8)
    assert read_volume(image).shape == read_volume(label).shape
    assert len(organs.present(read_volume(label).voxels)) >= 7
    made = image.stat().st_mtime_ns
    prepare(candidate, organs)
    assert image.stat().st_mtime_ns == made
    prepare(phantom(count=1, phantom={"spacing": [10, 10, 10]}).candidates(workspace, organs)[0], organs)
    assert read_volume(image).spacing == (10, 10, 10)


def test_a_folder_that_was_left_unfinished_is_made_again(workspace: Workspace) -> None:
    organs = load_organs("abdomenatlas_1_0")
    (candidate,) = phantom(count=1).candidates(workspace, organs)
    touch(Path(candidate.image).parent, "ct.nii.gz")
    prepare(candidate, organs)
    assert read_volume(candidate.image).spacing == (8, 8, 8)


def test_label_maps_are_textured_in_their_own_numbering_and_labeled_in_ours(tmp_path: Path, workspace: Workspace) -> None:
    voxels = label_voxels()
    voxels[3:8, 3:7, 2:6] = 6  # liver in BTCV's numbering
    voxels[9:11, 3:7, 2:6] = 5  # esophagus, which the campaign does not have
    save_label(tmp_path / "labels" / "0008.nii.gz", voxels)
    semi = source(source="textured", name="semi", root=str(tmp_path), labels="labels/*.nii.gz", ids="btcv", split="holdout")
    (candidate,) = semi.candidates(workspace, OURS)
    assert (candidate.case_id, candidate.truth, candidate.labeled_organs) == ("semi_0008", True, ("liver", "spleen"))
    prepare(candidate, OURS)
    ct, label = read_volume(candidate.image), read_volume(candidate.labels[0].path)
    assert (ct.shape, ct.voxels.dtype) == (SHAPE, np.int16)
    assert np.array_equal(ct.affine, label.affine)
    assert np.array_equal(label.voxels, np.where(voxels == 6, 1, 0))


def test_textured_sources_need_labels_of_every_organ(tmp_path: Path, workspace: Workspace) -> None:
    save_label(tmp_path / "a.nii.gz", label_voxels())
    organs = load_organs("abdomenatlas_1_1")
    semi = source(source="textured", name="semi", root=str(tmp_path), labels="*.nii.gz", ids="btcv", split="pool")
    with pytest.raises(DatasetError, match="btcv lacks bladder"):
        semi.candidates(workspace, organs)


def test_real_candidates_need_no_preparation(tmp_path: Path, workspace: Workspace) -> None:
    save_ct(tmp_path / "a" / "ct.nii.gz")
    prepare(listed(tmp_path, workspace, images="*/ct.nii.gz")[0], OURS)
    assert not workspace.root.exists()
