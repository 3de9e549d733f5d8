"""Every described dataset, as a miniature in its published layout: which files there are, with which ids where, and what ingest
makes of them is written here by hand, not read from the descriptions.

A miniature is 24 x 20 x 16 voxels. What has an id lies in cells of 3 x 3 x 3 voxels that do not touch: small letters in the
patient's left half, capitals in the right, so "aB" is one cell on either side.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from ct_files import source
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from atlas_ray.data.ingest import ingest
from atlas_ray.organs import CONFIGS, load_organs
from atlas_ray.records import Case
from atlas_ray.volume import Volume, read_volume, reorient, write_volume
from atlas_ray.workspace import Workspace

SHAPE, SPACING = (24, 20, 16), (2.0, 2.0, 3.0)
AFFINE = np.diag([*SPACING, 1.0])
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Cells = dict[Any, str]  # id, or name of a mask -> letters


def cell(letter: str) -> tuple[slice, slice, slice]:
    """In RAS: three columns of cells in each half, three rows, three slices; a smaller first index is the patient's left."""
    number = LETTERS.index(letter.lower())
    x, y, z = number % 3, number // 3 % 3, number // 9
    start = 1 + 4 * x + (12 if letter.isupper() else 0)
    return slice(start, start + 3), slice(1 + 4 * y, 4 + 4 * y), slice(1 + 4 * z, 4 + 4 * z)


def painted(cells: Cells, dtype: Any = np.uint8) -> np.ndarray:
    voxels = np.zeros(SHAPE, dtype)
    for value, letters in cells.items():
        for letter in letters:
            voxels[cell(letter)] = value
    return voxels


def ct(seed: int) -> np.ndarray:
    """A body that fills the slices below a slab of air."""
    voxels = np.random.default_rng(seed).integers(20, 60, SHAPE).astype(np.int16)
    voxels[:, :, 14:] = -1000
    return voxels


def save(path: Path, voxels: np.ndarray, orientation: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = reorient(Volume(voxels, AFFINE), orientation)
    if path.suffix == ".gz":
        write_volume(path, volume)
    else:
        import nibabel

        nibabel.save(nibabel.Nifti1Image(volume.voxels, volume.affine), path)


def save_series(folder: Path, voxels: np.ndarray, name_of: Callable[[int], str]) -> None:
    """Axial slices in LPS; `name_of` gives the file of the k-th slice from below."""
    folder.mkdir(parents=True)
    lps, uid = voxels[::-1, ::-1], generate_uid()
    for k in range(SHAPE[2]):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = generate_uid()
        slice_.SeriesInstanceUID, slice_.Modality = uid, "CT"
        slice_.Columns, slice_.Rows = SHAPE[:2]
        slice_.PixelSpacing, slice_.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        last = (np.array(SHAPE[:2]) - 1) * SPACING[:2]
        slice_.ImagePositionPatient = [-float(last[0]), -float(last[1]), k * SPACING[2]]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, 0
        slice_.PixelData = np.ascontiguousarray(lps[:, :, k].T).astype("<i2").tobytes()
        slice_.save_as(folder / name_of(k), enforce_file_format=True)


def save_pictures(folder: Path, voxels: np.ndarray, name_of: Callable[[int], str], mode: str = "L") -> None:
    folder.mkdir(parents=True)
    lps = voxels[::-1, ::-1]
    for k in range(SHAPE[2]):
        PIL.Image.fromarray(np.ascontiguousarray(lps[:, :, k].T)).convert(mode).save(folder / name_of(k))


@dataclass(frozen=True)
class Mini:
    """One dataset as published.

    Args:
        images: path -> orientation; a path that ends in / is a DICOM series.
        labels: path -> what lies where: id -> cells, or for masks name -> cells.
        ours: what a campaign with all 32 organs gets of its first case.
        nine: what the nine organs' campaign gets of them where it is not the same.
        case_id: of the first case.
        not_ours: other files that must be no case.
    """

    images: dict[str, str]
    labels: dict[str, Cells]
    ours: dict[str, str]
    case_id: str
    nine: dict[str, str] | None = None
    not_ours: tuple[str, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)

    def build(self, root: Path) -> None:
        for number, (path, orientation) in enumerate(self.images.items()):
            if path.endswith("/"):
                save_series(root / path, ct(number), lambda k: f"1-{k + 1:03d}.dcm")
            else:
                save(root / path, ct(number), orientation)
        for path, cells in self.labels.items():
            if "{organ}" in path:
                for name, letters in cells.items():
                    save(root / path.replace("{organ}", name), painted({1: letters}), "LPS")
            else:
                save(root / path, painted(cells), "LAS")
        for path in self.not_ours:
            save(root / path, ct(99), "RAS")
        for path, text in self.texts.items():
            (root / path).write_text(text)


BTCV = {
    "spleen": "a",
    "kidney_right": "B",
    "kidney_left": "c",
    "gall_bladder": "D",
    "esophagus": "e",
    "liver": "FG",
    "stomach": "h",
}
BTCV |= {"aorta": "i", "postcava": "J", "portal_vein_and_splenic_vein": "K", "pancreas": "l", "adrenal_gland_right": "M"}
BTCV |= {"adrenal_gland_left": "n"}
ATLAS = {
    "aorta": "a",
    "gall_bladder": "B",
    "kidney_left": "c",
    "kidney_right": "D",
    "liver": "EF",
    "pancreas": "g",
    "postcava": "H",
}
ATLAS |= {"spleen": "i", "stomach": "j"}
ATLAS_1_1 = ATLAS | {"adrenal_gland_left": "k", "adrenal_gland_right": "L", "bladder": "m", "celiac_trunk": "n", "colon": "oP"}
ATLAS_1_1 |= {"duodenum": "Q", "esophagus": "r", "femur_left": "s", "femur_right": "T", "hepatic_vessel": "U", "intestine": "v"}
ATLAS_1_1 |= {"lung_left": "w", "lung_right": "X", "portal_vein_and_splenic_vein": "Y", "prostate": "z", "rectum": "q"}
FLARE = {
    "liver": "AB",
    "kidney_right": "C",
    "spleen": "d",
    "pancreas": "e",
    "aorta": "f",
    "postcava": "G",
    "adrenal_gland_right": "H",
}
FLARE |= {"adrenal_gland_left": "i", "gall_bladder": "J", "esophagus": "k", "stomach": "l", "duodenum": "M", "kidney_left": "n"}
FLARE_IDS = {1: "AB", 2: "C", 3: "d", 4: "e", 5: "f", 6: "G", 7: "H", 8: "i", 9: "J", 10: "k", 11: "l", 12: "M", 13: "n"}
TOTAL = {"spleen": "a", "kidney_right": "B", "kidney_left": "c", "gallbladder": "D", "esophagus": "e", "liver": "F", "stomach": "g"}
TOTAL |= {"aorta": "h", "inferior_vena_cava": "I", "portal_vein_and_splenic_vein": "J", "pancreas": "k", "adrenal_gland_right": "L"}
TOTAL |= {"adrenal_gland_left": "m", "duodenum": "N", "lung_upper_lobe_left": "o", "lung_lower_lobe_left": "p"}
TOTAL |= {
    "lung_upper_lobe_right": "Q",
    "lung_middle_lobe_right": "R",
    "lung_lower_lobe_right": "S",
    "colon": "t",
    "small_bowel": "U",
}
TOTAL |= {"urinary_bladder": "v", "femur_left": "w", "femur_right": "X", "heart": "b", "vertebrae_L1": "f"}
TOTAL_OURS = {"spleen": "a", "kidney_right": "B", "kidney_left": "c", "gall_bladder": "D", "esophagus": "e", "liver": "F"}
TOTAL_OURS |= {"stomach": "g", "aorta": "h", "postcava": "I", "portal_vein_and_splenic_vein": "J", "pancreas": "k"}
TOTAL_OURS |= {"adrenal_gland_right": "L", "adrenal_gland_left": "m", "duodenum": "N", "lung_left": "op", "lung_right": "QRS"}
TOTAL_OURS |= {"colon": "t", "intestine": "U", "bladder": "v", "femur_left": "w", "femur_right": "X"}

MINIS: dict[str, Mini] = {
    "btcv": Mini(
        images={"Training/img/img0001.nii.gz": "LAS"},
        labels={"Training/label/label0001.nii.gz": dict(zip(range(1, 14), BTCV.values(), strict=True))},
        not_ours=("Testing/img/img0061.nii.gz",),
        ours=BTCV,
        case_id="btcv_0001",
    ),
    "pancreas_ct": Mini(
        images={"Pancreas-CT/PANCREAS_0001/11-24-2015-PANCREAS0001-Pancreas-18957/Pancreas-99667/": "LPS"},
        labels={
            "label_tcia_multiorgan/label0001.nii.gz": {1: "a", 3: "b", 4: "C", 5: "d", 6: "EF", 7: "g", 11: "h", 14: "I"},
            "TCIA_pancreas_labels-02-05-2017/label0001.nii.gz": {1: "hj"},
        },
        ours={
            "spleen": "a",
            "kidney_left": "b",
            "gall_bladder": "C",
            "esophagus": "d",
            "liver": "EF",
            "stomach": "g",
            "pancreas": "hj",
            "duodenum": "I",
        },
        case_id="pancreas_0001",
    ),
    "lits": Mini(
        images={"Training Batch 1/volume-3.nii": "LPS", "media/nas/Training Batch 2/volume-40.nii": "RAS"},
        labels={
            "Training Batch 1/segmentation-3.nii": {1: "ABC", 2: "d"},
            "media/nas/Training Batch 2/segmentation-40.nii": {1: "A"},
        },
        ours={"liver": "ABC", "liver_tumor": "d"},
        nine={"liver": "ABCd"},
        case_id="lits_3",
    ),
    "kits": Mini(
        images={"case_00000/imaging.nii.gz": "SLA"},  # as published, the first axis runs along the patient
        labels={"case_00000/segmentation.nii.gz": {1: "aB", 2: "c", 3: "D"}},
        ours={"kidney_left": "a", "kidney_right": "B", "kidney_tumor": "c", "kidney_cyst": "D"},
        nine={"kidney_left": "ac", "kidney_right": "BD"},
        case_id="kits_00000",
    ),
    "word": Mini(
        images={"imagesTr/word_0002.nii.gz": "LPS", "imagesVal/word_0001.nii.gz": "LPS"},
        labels={
            "labelsTr/word_0002.nii.gz": {
                1: "AB",
                2: "c",
                3: "d",
                4: "E",
                5: "f",
                6: "G",
                7: "h",
                8: "i",
                9: "J",
                10: "k",
                11: "l",
                12: "mN",
                13: "o",
                14: "p",
                15: "q",
                16: "R",
            },
            "labelsVal/word_0001.nii.gz": {1: "A", 12: "mN"},
        },
        ours={
            "liver": "AB",
            "spleen": "c",
            "kidney_left": "d",
            "kidney_right": "E",
            "stomach": "f",
            "gall_bladder": "G",
            "esophagus": "h",
            "pancreas": "i",
            "duodenum": "J",
            "colon": "k",
            "intestine": "l",
            "adrenal_gland_left": "m",
            "adrenal_gland_right": "N",
            "rectum": "o",
            "bladder": "p",
            "femur_left": "q",
            "femur_right": "R",
        },
        case_id="word_0002",
    ),
    "abdomenct_1k": Mini(
        images={
            "AbdomenCT-1K-ImagePart1/Case_00001_0000.nii.gz": "RAS",
            "AbdomenCT-1K-ImagePart3/Case_00701_0000.nii.gz": "LPS",
        },
        labels={"Mask/Case_00001.nii.gz": {1: "A", 2: "bC", 3: "d", 4: "e"}, "Mask/Case_00701.nii.gz": {1: "A", 2: "bC"}},
        ours={"liver": "A", "kidney_left": "b", "kidney_right": "C", "spleen": "d", "pancreas": "e"},
        case_id="abdomenct1k_Case_00001",
    ),
    "amos": Mini(
        images={"imagesTr/amos_0001.nii.gz": "LAS", "imagesVa/amos_0008.nii.gz": "LPS"},
        labels={
            "labelsTr/amos_0001.nii.gz": {
                1: "a",
                2: "B",
                3: "c",
                4: "D",
                5: "e",
                6: "FG",
                7: "h",
                8: "i",
                9: "J",
                10: "k",
                11: "L",
                12: "m",
                13: "N",
                14: "o",
                15: "p",
            },
            "labelsVa/amos_0008.nii.gz": {6: "F"},
        },
        not_ours=("imagesTr/amos_0507.nii.gz", "imagesTs/amos_0002.nii.gz"),  # MR, and CT without labels
        ours={
            "spleen": "a",
            "kidney_right": "B",
            "kidney_left": "c",
            "gall_bladder": "D",
            "esophagus": "e",
            "liver": "FG",
            "stomach": "h",
            "aorta": "i",
            "postcava": "J",
            "pancreas": "k",
            "adrenal_gland_right": "L",
            "adrenal_gland_left": "m",
            "duodenum": "N",
            "bladder": "o",
        },
        case_id="amos_0001",
    ),
    "ct_org": Mini(
        images={"volume-0.nii.gz": "LPS"},
        labels={"labels-0.nii.gz": {1: "A", 2: "b", 3: "cD", 4: "eF", 5: "g", 6: "h"}},
        ours={"liver": "A", "bladder": "b", "lung_left": "c", "lung_right": "D", "kidney_left": "e", "kidney_right": "F"},
        case_id="ctorg_0",
    ),
    "abdomenct_12organ": Mini(
        images={"img/Organ12_0001_0000.nii.gz": "RAS"},
        labels={
            "label/Organ12_0001.nii.gz": {
                1: "A",
                2: "bC",
                3: "d",
                4: "e",
                5: "f",
                6: "G",
                7: "h",
                8: "I",
                9: "j",
                10: "K",
                11: "l",
                12: "m",
            }
        },
        ours={
            "liver": "A",
            "kidney_left": "b",
            "kidney_right": "C",
            "spleen": "d",
            "pancreas": "e",
            "aorta": "f",
            "postcava": "G",
            "stomach": "h",
            "gall_bladder": "I",
            "esophagus": "j",
            "adrenal_gland_right": "K",
            "adrenal_gland_left": "l",
            "celiac_trunk": "m",
        },
        case_id="Organ12_0001",
    ),
    "msd_liver": Mini(
        images={"imagesTr/liver_0.nii.gz": "LAS"},
        labels={"labelsTr/liver_0.nii.gz": {1: "AB", 2: "C"}},
        not_ours=("imagesTs/liver_132.nii.gz", "imagesTr/._liver_0.nii.gz"),
        ours={"liver": "AB", "liver_tumor": "C"},
        nine={"liver": "ABC"},
        case_id="msd_liver_0",
    ),
    "msd_lung": Mini(
        images={"imagesTr/lung_001.nii.gz": "LAS"},
        labels={"labelsTr/lung_001.nii.gz": {1: "a"}},
        ours={"lung_tumor": "a"},
        nine={},
        case_id="msd_lung_001",
    ),
    "msd_pancreas": Mini(
        images={"imagesTr/pancreas_001.nii.gz": "LAS"},
        labels={"labelsTr/pancreas_001.nii.gz": {1: "ab", 2: "c"}},
        ours={"pancreas": "ab", "pancreas_tumor": "c"},
        nine={"pancreas": "abc"},
        case_id="msd_pancreas_001",
    ),
    "msd_hepaticvessel": Mini(
        images={"imagesTr/hepaticvessel_001.nii.gz": "LAS"},
        labels={"labelsTr/hepaticvessel_001.nii.gz": {1: "A", 2: "B"}},
        ours={"hepatic_vessel": "A", "hepatic_vessel_tumor": "B"},
        nine={},
        case_id="msd_hepaticvessel_001",
    ),
    "msd_spleen": Mini(
        images={"imagesTr/spleen_2.nii.gz": "LAS"},
        labels={"labelsTr/spleen_2.nii.gz": {1: "a"}},
        ours={"spleen": "a"},
        case_id="msd_spleen_2",
    ),
    "msd_colon": Mini(
        images={"imagesTr/colon_001.nii.gz": "LAS"},
        labels={"labelsTr/colon_001.nii.gz": {1: "a"}},
        ours={"colon_tumor": "a"},
        nine={},
        case_id="msd_colon_001",
    ),
    "flare22": Mini(
        images={"images/FLARE22_Tr_0001_0000.nii.gz": "RAS"},
        labels={"labels/FLARE22_Tr_0001.nii.gz": FLARE_IDS},
        ours=FLARE,
        case_id="FLARE22_Tr_0001",
    ),
    "flare23": Mini(
        images={"imagesTr2200/FLARE23_0001_0000.nii.gz": "RAS"},
        labels={"labelsTr2200/FLARE23_0001.nii.gz": {1: "AB", 3: "d", 13: "n", 14: "z"}},  # the others are not labeled here
        ours={"liver": "AB", "spleen": "d", "kidney_left": "n"},
        case_id="FLARE23_0001",
    ),
    "totalsegmentator_v1": Mini(
        images={"s0000/ct.nii.gz": "RAS"},
        labels={"s0000/segmentations/{organ}.nii.gz": TOTAL},
        ours=TOTAL_OURS,
        case_id="totalseg_s0000",
    ),
    "totalsegmentator_v2": Mini(
        images={"s0000/ct.nii.gz": "LPS"},
        labels={
            "s0000/segmentations/{organ}.nii.gz": {**TOTAL, "prostate": "y", "kidney_cyst_left": "z", "kidney_cyst_right": ""},
        },
        ours=TOTAL_OURS | {"prostate": "y", "kidney_left": "cz"},
        case_id="totalseg_s0000",
    ),
    "abdomenatlas_1_0": Mini(
        images={"BDMAP_00000001/ct.nii.gz": "LPS"},
        labels={"BDMAP_00000001/segmentations/{organ}.nii.gz": ATLAS},
        ours=ATLAS,
        case_id="BDMAP_00000001",
    ),
    "abdomenatlas_1_1": Mini(
        images={"BDMAP_00000001/ct.nii.gz": "LPS"},
        labels={
            "BDMAP_00000001/segmentations/{organ}.nii.gz": ATLAS_1_1,
            "BDMAP_00000001/combined_labels.nii.gz": {1: "a"},
        },
        ours=ATLAS_1_1,
        case_id="BDMAP_00000001",
    ),
    "images_and_labels": Mini(
        images={"images/p1.nii.gz": "RAS"},
        labels={"labels/p1.nii.gz": {6: "A", 1: "b"}},  # liver and spleen of the 32 organs' own numbering
        ours={"liver": "A", "spleen": "b"},
        nine={"pancreas": "A", "aorta": "b"},  # the same numbers in the nine organs'
        case_id="p1",
    ),
    "nnunet_raw": Mini(
        images={"imagesTr/p_001_0000.nii.gz": "RAS"},
        labels={"labelsTr/p_001.nii.gz": {1: "a", 2: "B"}},
        texts={"dataset.json": '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "spleen": 1, "liver": 2}}'},
        ours={"spleen": "a", "liver": "B"},
        case_id="p_001",
    ),
}
ELSEWHERE = {"images", "dicom", "chaos"}  # no labels, or a test of their own below


def test_every_described_dataset_has_its_miniature() -> None:
    assert {path.stem for path in (CONFIGS / "datasets").glob("*.yaml")} == MINIS.keys() | ELSEWHERE


def ingested(root: Path, workspace: Workspace, dataset: str, organs: str = "universal_32", **fields: Any) -> list[Case]:
    described = source(**{"source": "dataset", "dataset": dataset, "root": str(root), "split": "pool", **fields})
    report = ingest([described], load_organs(organs), workspace)
    assert report.quarantined == ()
    return list(report.cases)


def label_in_ras(workspace: Workspace, case: Case) -> np.ndarray:
    if not case.labeled_organs:
        return np.zeros(SHAPE, np.uint8)
    return reorient(read_volume(workspace.label(case.case_id))).voxels


@pytest.mark.parametrize("dataset", MINIS)
def test_a_miniature_in_the_published_layout(dataset: str, tmp_path: Path) -> None:
    mini = MINIS[dataset]
    mini.build(tmp_path / "data")
    for organs, expected in (("universal_32", mini.ours), ("abdomenatlas_1_0", mini.ours if mini.nine is None else mini.nine)):
        workspace, ids = Workspace(tmp_path / organs), {o.name: o.label_id for o in load_organs(organs)}
        cases = ingested(tmp_path / "data", workspace, dataset, organs)
        assert len(cases) == len(mini.images)
        (case,) = [case for case in cases if case.case_id == mini.case_id]
        with_labels = {name: letters for name, letters in expected.items() if name in ids}
        whole = dataset == "images_and_labels"  # its ids are the campaign's own, all of them, whether a case has the organ or not
        assert set(case.labeled_organs) == set(ids if whole else with_labels)
        assert np.array_equal(label_in_ras(workspace, case), painted({ids[n]: c for n, c in with_labels.items()}))
        assert {origin.dataset for origin in case.origins.values()} <= {dataset}
        assert set(case.origins) == set(case.labeled_organs)


@pytest.mark.parametrize("upward", [True, False], ids=["from below", "from above"])
def test_chaos_pictures_belong_to_the_slices_of_their_place_by_name(upward: bool, tmp_path: Path) -> None:
    """Some of its series are named from above. Names are compared as numbers: 9 comes before 10."""

    def number(k: int) -> int:
        return k if upward else SHAPE[2] - 1 - k

    ground = tmp_path / "data" / "Train_Sets" / "CT" / "1"
    save_series(ground / "DICOM_anon", ct(0), lambda k: f"IMG-0004-{number(k) + 1}.dcm")
    save_pictures(ground / "Ground", painted({255: "ABC"}), lambda k: f"liver_GT_{number(k):03d}.png", mode="1")
    (ground.parents[1] / "MR" / "2" / "T2SPIR" / "DICOM_anon").mkdir(parents=True)
    workspace = Workspace(tmp_path / "campaign")
    (case,) = ingested(tmp_path / "data", workspace, "chaos", "abdomenatlas_1_0")
    assert (case.case_id, case.labeled_organs, case.orientation) == ("chaos_1", ("liver",), "LPS")
    assert np.array_equal(label_in_ras(workspace, case), painted({5: "ABC"}))
    assert case.origins["liver"].file == "Train_Sets/CT/1/Ground/*.png"


MADE_UP = """
name: made_up
title: a hospital of three floors
license: CC0-1.0
citation: nobody
images: "floor{part:[0-9]}/{case}/ct.nii.gz"
labels:
  - path: "floor{part}/{case}/organs.nii.gz"
    ids: {10: liver, 20: [liver_tumor, liver], 30: kidneys, 40: ""}
    pairs: {kidneys: [kidney_left, kidney_right]}
  - path: "floor{part}/{case}/{organ}.nii.gz"
    mask_names: {spleen: [spleen_upper, spleen_lower]}
    ids: {1: spleen}
  - path: "reviewed/{case}.nii.gz"
    source: revised
    ids: {7: liver}
labeled_organs: [liver, kidney_left, kidney_right, spleen]
"""


def test_a_dataset_of_ones_own_is_one_yaml_file(tmp_path: Path) -> None:
    (tmp_path / "made_up.yaml").write_text(MADE_UP)
    root, workspace = tmp_path / "data", Workspace(tmp_path / "campaign")
    for number, case in enumerate(("floor1/anna", "floor2/bert")):
        save(root / case / "ct.nii.gz", ct(number), "LPS")
        save(root / case / "organs.nii.gz", painted({10: "A", 20: "B", 30: "cD", 40: "e"}), "RAS")
    for part, letters in (("upper", "f"), ("lower", "g")):
        save(root / "floor1" / "anna" / f"spleen_{part}.nii.gz", painted({255: letters}), "RAS")
    save(root / "reviewed" / "bert.nii.gz", painted({7: "AHe"}), "LAS")
    anna, bert = ingested(root, workspace, str(tmp_path / "made_up.yaml"), "abdomenatlas_1_0")
    assert (anna.labeled_organs, anna.not_labeled) == (("kidney_left", "kidney_right", "liver", "spleen"), {})
    assert np.array_equal(label_in_ras(workspace, anna), painted({5: "AB", 3: "c", 4: "D", 8: "fg"}))
    assert anna.origins["kidney_left"].model_dump() == {
        "dataset": "made_up",
        "file": "floor1/anna/organs.nii.gz",
        "source": "original",
        "rule": "side of kidneys",
    }
    assert bert.labeled_organs == ("kidney_left", "kidney_right", "liver")
    assert bert.not_labeled == {"spleen": "no floor2/bert/{organ}.nii.gz"}
    assert np.array_equal(label_in_ras(workspace, bert), painted({5: "AHe", 3: "c", 4: "D"}))  # the revised liver, whole
    assert (bert.origins["liver"].source, bert.origins["liver"].file) == ("revised", "reviewed/bert.nii.gz")
