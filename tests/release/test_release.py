"""Releases of a small campaign in every layout, read back with what others read them with."""

import contextlib
import csv
import errno
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from atlas_ray.annotation.merge import OrganProvenance, Provenance
from atlas_ray.config import Campaign
from atlas_ray.exceptions import AtlasError, ConfigError, WorkspaceError
from atlas_ray.organs import load_organs
from atlas_ray.records import Case, RoundState
from atlas_ray.release.deidentify import Pseudonyms, load_pseudonyms
from atlas_ray.release.dicom_seg import DicomSeg
from atlas_ray.release.export import ReleaseReport, release
from atlas_ray.release.images import place_image
from atlas_ray.release.layouts import choose_layout
from atlas_ray.release.plan import OrganSource, plan_release
from atlas_ray.volume import Volume, read_volume, write_volume
from atlas_ray.workspace import file_sha256, write_lines
from jobs.export import newest_known_round

ORGANS = load_organs("abdomenatlas_1_0")
SHAPE = (12, 10, 6)
LPS = np.array([[-2.0, 0, 0, 20], [0, -2, 0, 30], [0, 0, 5, -40], [0, 0, 0, 1]])
SECRET = "Doe^Jane"
pytestmark = pytest.mark.usefixtures("in_this_process")


def blocks(*boxes: tuple[str, slice]) -> np.ndarray:
    """Label map in which an organ fills some slices along X, but for a rim."""
    voxels = np.zeros(SHAPE, np.uint8)
    for organ, x in boxes:
        voxels[x, 2:8, 1:5] = ORGANS.label_id(organ)
    return voxels


def save_nifti(path: Path, voxels: np.ndarray) -> Path:
    """With the patient's name wherever a header has room for it."""
    image = nibabel.Nifti1Image(voxels, LPS)
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = SECRET.encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", SECRET.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def save_series(folder: Path) -> Path:
    """SHAPE as a DICOM series on the grid LPS: x and y grow as DICOM's, slices named against their order."""
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(SHAPE[2]):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = CTImageStorage
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = generate_uid()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID, one.Modality = study, series, frame, "CT"
        one.PatientID, one.PatientName, one.PatientBirthDate, one.PatientSex = "P-17", SECRET, "19700101", "F"
        one.StudyDescription = one.InstitutionName = one.AccessionNumber = one.ReferringPhysicianName = SECRET[:16]
        one.PatientAge, one.StudyDate, one.StationName = "055Y", "20200202", SECRET
        one.Rows, one.Columns, one.PixelSpacing = SHAPE[1], SHAPE[0], [2, 2]
        one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-20, -30, -40 + 5 * k]
        one.SliceThickness, one.RescaleSlope, one.RescaleIntercept = 5, 1, -1024
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        one.PixelData = np.full((SHAPE[1], SHAPE[0]), 1024 + k, np.uint16).tobytes()
        one.save_as(folder / f"{99 - k}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """ "full": every organ labeled; "part": the liver alone; "scan": DICOM, liver and spleen; "drafted": only predicted;
    "fixed": annotated; "raw": nothing is known; "held": a holdout."""
    made = Campaign.model_validate(
        {
            "name": "small",
            "workspace": str(tmp_path / "workspace"),
            "datasets": [{"source": "phantom", "name": "a", "count": 1, "seed": 1, "split": "pool"}],
        }
    )
    workspace = made.open_workspace()
    known = {"full": ORGANS.names, "part": ("liver",), "scan": ("liver", "spleen"), "held": ORGANS.names}
    cases = []
    for name in ("full", "part", "scan", "drafted", "fixed", "raw", "held"):
        image = (
            save_series(tmp_path / "data" / SECRET / name)
            if name == "scan"
            else save_nifti(tmp_path / "data" / SECRET / name / "ct.nii.gz", np.full(SHAPE, -900, np.int16))
        )
        cases.append(
            Case(
                case_id=name,
                image=str(image),
                sha256=f"of {name}",
                shape=SHAPE,
                spacing=(2, 2, 5),
                orientation="LPS",
                source="hospital" if name == "scan" else "public",
                license="internal" if name == "scan" else "CC0",
                split="holdout" if name == "held" else "train",
                labeled_organs=known.get(name, ()),
            )
        )
        if name in known:
            label = read_volume(image).with_voxels(blocks(("liver", slice(1, 4)), ("spleen", slice(6, 8))))
            write_volume(workspace.label(name), label)
    write_lines(workspace.manifest, cases)
    for name in ("drafted", "fixed"):
        grid = read_volume(cases[0].image)
        write_volume(workspace.pseudo_label(0, name), grid.with_voxels(blocks(("liver", slice(0, 3)))))
        workspace.scores(0, name).write_text("{}")
    write_volume(workspace.annotation(0, "fixed"), grid.with_voxels(blocks(("liver", slice(0, 3)), ("aorta", slice(5, 6)))))
    entries = [OrganProvenance(organ=n, source="revised" if n == "aorta" else "pseudo", round=0) for n in ORGANS.names]
    workspace.provenance(0, "fixed").write_text(Provenance(case_id="fixed", round=0, organs=tuple(entries)).model_dump_json())
    return made


def export(
    campaign: Campaign, out: Path, layout: str, images: str | None = None, pseudonyms: Pseudonyms | None = None
) -> ReleaseReport:
    chosen = choose_layout(layout, images, pseudonyms)
    planned, _ = plan_release(campaign, 0, pseudonyms)
    return release(campaign, [p for p in planned if not chosen.refusal(p, ORGANS)], out, layout=chosen)


def rows(path: Path, key: str) -> dict[str, dict[str, str]]:
    return {row[key]: row for row in csv.DictReader(path.read_text().splitlines())}


def sums_hold(out: Path) -> bool:
    checked = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out, capture_output=True, check=False)
    return checked.returncode == 0


def header_text(path: Path) -> bytes:
    return bytes(nibabel.load(path).header.binaryblock) + str(nibabel.load(path).header.extensions).encode()


# --- what is released ------------------------------------------------------------------------------------------------


def test_each_case_is_released_as_it_is_best_known(campaign: Campaign) -> None:
    planned, unknown = plan_release(campaign, 0)
    assert {p.case.case_id: (p.basis, p.round) for p in planned} == {
        "full": ("original", None),
        "part": ("original", None),
        "scan": ("original", None),
        "drafted": ("draft", 0),
        "fixed": ("annotation", 0),
    }
    assert [c.case_id for c in unknown] == ["raw"]


def test_abdomenatlas_has_links_labels_and_masks(campaign: Campaign, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = export(campaign, out, "abdomenatlas")
    assert (len(report.cases), report.skipped, report.failed) == (5, 0, ())
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["drafted", "fixed", "full", "part", "provenance", "scan"]
    assert (out / "full" / "ct.nii.gz").is_symlink()
    assert not (out / "scan" / "ct.nii.gz").is_symlink(), "a series cannot be linked under that name"
    assert read_volume(out / "scan" / "ct.nii.gz").voxels[0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert sorted(p.name for p in (out / "part" / "segmentations").iterdir()) == ["liver.nii.gz"]
    combined = read_volume(out / "part" / "combined_labels.nii.gz")
    assert np.unique(combined.voxels).tolist() == [0, ORGANS.label_id("liver")], "the spleen of a liver dataset is nobody's label"
    assert combined.orientation == "LPS"
    mask = read_volume(out / "fixed" / "segmentations" / "aorta.nii.gz").voxels
    assert mask.sum() == 1 * 6 * 4
    assert set(np.unique(mask)) == {0, 1}
    assert load_organs(out / "label_map.yaml") == ORGANS
    assert sums_hold(out)


def test_tables_say_who_says_what_how_much_and_under_which_terms(campaign: Campaign, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(campaign, out, "abdomenatlas")
    dataset = rows(out / "dataset.csv", "case")
    assert (dataset["fixed"]["aorta_source"], dataset["fixed"]["aorta_round"]) == ("revised", "0")
    assert (dataset["part"]["liver_source"], dataset["part"]["spleen_source"]) == ("original", "")
    assert dataset["full"]["liver_ml"] == "1.44"  # 3 x 6 x 4 voxels of 2 x 2 x 5 mm
    assert dataset["full"]["label_map"] == "abdomenatlas_1_0 1.0"
    liver = rows(out / "statistics.csv", "organ")["liver"]
    assert (liver["cases"], liver["original"], liver["pseudo"], liver["ml_median"]) == ("5", "3", "2", "1.440")
    spleen = rows(out / "statistics.csv", "organ")["spleen"]
    assert (spleen["cases"], spleen["absent"], spleen["ml_max"]) == ("4", "2", "0.960")
    assert "| hospital | internal | 1 |" in (out / "LICENSES.md").read_text()
    assert "| public | CC0 | 4 |" in (out / "LICENSES.md").read_text()
    record = json.loads((out / "provenance" / "fixed.json").read_text())
    assert {o["organ"]: o["source"] for o in record["organs"]}["aorta"] == "revised"


def test_no_written_file_names_the_patient(campaign: Campaign, tmp_path: Path) -> None:
    assert SECRET.encode() in header_text(Path(campaign.open_workspace().cases()[0].image))
    for layout, images in (("abdomenatlas", "copy"), ("nnunet", "copy"), ("dicom_seg", None)):
        out = tmp_path / layout
        export(campaign, out, layout, images)
        for path in (p for p in out.rglob("*") if p.is_file()):
            text = header_text(path) if path.name.endswith(".nii.gz") else path.read_bytes()
            assert b"Doe" not in text, path


def test_again_changes_nothing_and_a_new_label_is_written(campaign: Campaign, tmp_path: Path) -> None:
    out, workspace = tmp_path / "out", campaign.open_workspace()
    export(campaign, out, "abdomenatlas", "none")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.nii.gz")}
    assert export(campaign, out, "abdomenatlas", "none").skipped == 5
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.nii.gz")} == before
    (out / "part" / "segmentations" / "liver.nii.gz").unlink()
    label = read_volume(workspace.label("full"))
    write_volume(workspace.label("full"), label.with_voxels(blocks(("liver", slice(1, 5)))))
    assert export(campaign, out, "abdomenatlas", "none").skipped == 3
    assert read_volume(out / "full" / "combined_labels.nii.gz").voxels[4].any()
    assert sums_hold(out)


def test_a_withdrawn_case_leaves_the_release(campaign: Campaign, tmp_path: Path) -> None:
    out, workspace = tmp_path / "out", campaign.open_workspace()
    export(campaign, out, "abdomenatlas")
    (out / "notes.txt").write_text("not ours")
    write_lines(workspace.manifest, [c for c in workspace.cases() if c.case_id != "part"])
    export(campaign, out, "abdomenatlas")
    assert not (out / "part").exists()
    assert not (out / "provenance" / "part.json").exists()
    assert (out / "notes.txt").exists()
    assert Path(tmp_path / "data" / SECRET / "part" / "ct.nii.gz").exists(), "only the link goes"


def test_a_case_that_fails_is_named_and_the_others_are_written(campaign: Campaign, tmp_path: Path) -> None:
    out, workspace = tmp_path / "out", campaign.open_workspace()
    write_volume(workspace.label("full"), Volume(np.zeros((3, 3, 3), np.uint8), LPS))
    with pytest.raises(AtlasError, match=r"1 of 5 cases could not be released.*label of shape \(3, 3, 3\)"):
        export(campaign, out, "abdomenatlas")
    assert "full" not in rows(out / "dataset.csv", "case")
    assert sums_hold(out)


# --- killed ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends an export as a kill does: nothing here catches it."""


@contextlib.contextmanager
def killed_before_the_image_of(case_id: str) -> Iterator[None]:
    """The block ends when all of the case is written but its image."""

    def killing(case: Case, *rest: Any) -> None:
        if case.case_id == case_id:
            raise Killed
        place_image(case, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atlas_ray.release.abdomenatlas.place_image", killing)
        with pytest.raises(Killed):
            yield


def change(campaign: Campaign, case_id: str, **fields: Any) -> None:
    """In the manifest."""
    workspace = campaign.open_workspace()
    write_lines(workspace.manifest, [c.model_copy(update=fields if c.case_id == case_id else {}) for c in workspace.cases()])


def withdraw(campaign: Campaign, case_id: str) -> None:
    workspace = campaign.open_workspace()
    write_lines(workspace.manifest, [c for c in workspace.cases() if c.case_id != case_id])


def accounted_for(out: Path) -> bool:
    """The sums hold, and they and the records of the cases in the table are all there is."""
    listed = {line.split("  ", 1)[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
    records = {f"provenance/{case}.json" for case in rows(out / "dataset.csv", "case")}
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if not p.is_dir()}
    return sums_hold(out) and there == listed | records | {"SHA256SUMS"}


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("is_withdrawn", [True, False])
def test_the_next_export_completes_or_removes_what_a_killed_one_left(
    is_withdrawn: bool, is_first: bool, campaign: Campaign, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if not is_first:
        export(campaign, out, "abdomenatlas")
    change(campaign, "part", labeled_organs=("spleen",))
    with killed_before_the_image_of("part"):
        export(campaign, out, "abdomenatlas")
    assert (out / "part" / "segmentations" / "spleen.nii.gz").exists()
    if is_withdrawn:
        withdraw(campaign, "part")
    export(campaign, out, "abdomenatlas")
    assert accounted_for(out)
    assert (out / "part").exists() != is_withdrawn
    assert not (out / "part" / "segmentations" / "liver.nii.gz").exists(), "of the export before the killed one"


@pytest.mark.parametrize("is_withdrawn", [True, False])
def test_what_a_case_left_that_failed_midway_is_not_released(is_withdrawn: bool, campaign: Campaign, tmp_path: Path) -> None:
    out, workspace = tmp_path / "out", campaign.open_workspace()
    export(campaign, out, "abdomenatlas", "copy")
    write_volume(workspace.label("part"), read_volume(workspace.label("part")).with_voxels(blocks(("liver", slice(1, 5)))))
    (tmp_path / "data" / SECRET / "part" / "ct.nii.gz").write_bytes(b"torn")
    with pytest.raises(AtlasError, match="1 of 5 cases could not be released"):
        export(campaign, out, "abdomenatlas", "copy")
    assert accounted_for(out)
    assert not (out / "part").exists()
    if is_withdrawn:
        withdraw(campaign, "part")
    else:
        save_nifti(tmp_path / "data" / SECRET / "part" / "ct.nii.gz", np.full(SHAPE, -900, np.int16))
    assert export(campaign, out, "abdomenatlas", "copy").skipped == 4
    assert accounted_for(out)


def test_half_written_files_of_a_killed_export_go(campaign: Campaign, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(campaign, out, "abdomenatlas")
    (out / "part" / "segmentations" / f".liver.nii.gz.{uuid.uuid4().hex}.partial").write_bytes(b"half")
    (out / "full" / f".ct.nii.gz.{uuid.uuid4().hex}.partial").symlink_to(tmp_path / "nowhere")
    withdraw(campaign, "part")
    export(campaign, out, "abdomenatlas")
    assert accounted_for(out)
    assert not (out / "part").exists()


def test_an_image_is_replaced_in_one_step(campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, target = campaign.open_workspace().cases()[0], tmp_path / "out" / "ct.nii.gz"
    place_image(case, target, "link")
    before = target.read_bytes()

    def kill(*args: object) -> None:
        raise Killed

    for images in ("link", "copy"):
        monkeypatch.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            place_image(case, target, images)
        monkeypatch.undo()
        assert target.read_bytes() == before
    place_image(case, target, "copy")
    assert not target.is_symlink()


# --- a share that stalls ---------------------------------------------------------------------------------------------


@pytest.fixture
def stalls(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Called with a number: the label of "part" cannot be read for its fingerprint so many times."""

    def for_times(number: int) -> None:
        left = iter(range(number))

        def stalling(path: Path) -> str:
            if path == campaign.open_workspace().label("part") and next(left, None) is not None:
                raise OSError(errno.EIO, "stale")
            return file_sha256(path)

        monkeypatch.setattr("atlas_ray.release.plan.file_sha256", stalling)

    return for_times


def impatient(campaign: Campaign) -> Campaign:
    return campaign.model_copy(update={"cluster": campaign.cluster.model_copy(update={"patience_s": 0, "max_failed_fraction": 1})})


def test_a_share_that_stalls_is_waited_for(campaign: Campaign, tmp_path: Path, stalls: Callable[[int], None]) -> None:
    export(campaign, tmp_path / "out", "abdomenatlas")
    stalls(2)
    report = export(campaign, tmp_path / "out", "abdomenatlas")
    assert (report.skipped, report.failed) == (5, ())


def test_a_case_stays_when_nobody_can_say_whether_it_changed(
    campaign: Campaign, tmp_path: Path, stalls: Callable[[int], None]
) -> None:
    out, campaign = tmp_path / "out", impatient(campaign)
    export(campaign, out, "abdomenatlas")
    stalls(1)
    report = export(campaign, out, "abdomenatlas")
    assert ([q.case_id for q in report.failed], report.skipped) == (["part"], 4)
    assert "part" in rows(out / "dataset.csv", "case")
    assert accounted_for(out)
    assert export(campaign, out, "abdomenatlas").skipped == 5


@pytest.mark.parametrize("fields", [{"license": "internal"}, {"labeled_organs": ("spleen",)}, {"sha256": "of another"}])
def test_it_goes_when_its_record_is_not_as_planned(
    fields: dict[str, Any], campaign: Campaign, tmp_path: Path, stalls: Callable[[int], None]
) -> None:
    out, campaign = tmp_path / "out", impatient(campaign)
    export(campaign, out, "abdomenatlas")
    change(campaign, "part", **fields)
    stalls(1)
    export(campaign, out, "abdomenatlas")
    assert not (out / "part").exists()
    assert accounted_for(out)


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "images", "said"),
    [
        ("tarball", None, "no layout 'tarball'; allowed are abdomenatlas, nnunet, dicom_seg"),
        ("nnunet", "none", "layout nnunet with images 'none'"),
        ("dicom_seg", "copy", "it holds no images"),
    ],
)
def test_a_layout_that_is_none_says_what_is_allowed(name: str, images: str | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choose_layout(name, images)


def test_without_a_round_the_newest_that_was_not_given_up_is_released(campaign: Campaign) -> None:
    """Also of jobs that were run one by one, which record no steps."""
    workspace = campaign.open_workspace()
    assert newest_known_round(workspace) == 0
    for r in (1, 2):
        workspace.predictions(r).mkdir(parents=True)
    workspace.write_round_state(2, RoundState(abandoned="2026-01-02T00:00:00Z"))
    assert newest_known_round(workspace) == 1


# --- nnU-Net ---------------------------------------------------------------------------------------------------------


def test_nnunets_own_check_accepts_the_dataset(campaign: Campaign, tmp_path: Path) -> None:
    out = tmp_path / "Dataset501_small"
    report = export(campaign, out, "nnunet")
    assert [c.case_id for c in report.cases] == ["full", "drafted", "fixed"], "whatever is unknown would be background"
    label = read_volume(out / "labelsTr" / "fixed.nii.gz").voxels
    described = json.loads((out / "dataset.json").read_text())
    assert described["numTraining"] == 3
    assert np.unique(label).tolist() == [0, described["labels"]["aorta"], described["labels"]["liver"]]
    # in a process without threads: its pools fork the one they are in
    verify = "from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity as verify"
    check = f"import sys; {verify}; verify(sys.argv[1], num_processes=1)"
    subprocess.run([sys.executable, "-c", check, str(out)], check=True, timeout=300)
    assert sums_hold(out)


def test_a_partial_label_is_refused_with_the_organs_it_lacks(campaign: Campaign) -> None:
    (part,) = [p for p in plan_release(campaign, 0)[0] if p.case.case_id == "part"]
    assert choose_layout("nnunet").refusal(part, ORGANS).startswith("nothing is known of aorta, gall_bladder, kidney_left")


# --- DICOM SEG -------------------------------------------------------------------------------------------------------


def in_series_order(folder: Path) -> list[Any]:
    return sorted((pydicom.dcmread(p) for p in folder.glob("*.dcm")), key=lambda s: float(s.ImagePositionPatient[2]))


def read_back(path: Path, slices: list[Any]) -> dict[str, np.ndarray]:
    """Segment label -> bool [X, Y, Z] on the series, by highdicom."""
    from highdicom.seg import segread

    seg = segread(path)
    uids = [s.SOPInstanceUID for s in slices]
    frames = seg.get_pixels_by_source_instance(uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
    return {d.SegmentLabel: frames[..., i].transpose(2, 1, 0) > 0 for i, d in enumerate(seg.SegmentSequence)}


def test_dicom_seg_is_the_label_map_voxel_for_voxel(campaign: Campaign, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = export(campaign, out, "dicom_seg")
    assert [c.case_id for c in report.cases] == ["scan"]
    label = read_volume(campaign.open_workspace().label("scan")).voxels
    slices = in_series_order(tmp_path / "data" / SECRET / "scan")
    segments = read_back(out / "segmentations" / "scan.dcm", slices)
    assert list(segments) == ["liver", "spleen"]
    for organ, mask in segments.items():
        assert mask.any()
        assert np.array_equal(mask, ORGANS.mask(label, organ))


def test_dicom_seg_places_its_frames_where_the_slices_lie(campaign: Campaign, tmp_path: Path) -> None:
    """pydicom alone: the frame of the liver in the second slice."""
    out = tmp_path / "out"
    export(campaign, out, "dicom_seg")
    seg = pydicom.dcmread(out / "segmentations" / "scan.dcm")
    slices = in_series_order(tmp_path / "data" / SECRET / "scan")
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (slices[0].StudyInstanceUID, slices[0].FrameOfReferenceUID)
    assert seg.SeriesInstanceUID != slices[0].SeriesInstanceUID
    frames = [
        (
            g.SegmentIdentificationSequence[0].ReferencedSegmentNumber,
            [float(v) for v in g.PlanePositionSequence[0].ImagePositionPatient],
        )
        for g in seg.PerFrameFunctionalGroupsSequence
    ]
    assert len(frames) == 2 * 4, "empty frames are left out"
    plane = seg.pixel_array[frames.index((1, [-20, -30, -35]))]
    expected = np.zeros((10, 12), np.uint8)
    expected[2:8, 1:4] = 1
    assert plane.tolist() == expected.tolist()


def test_dicom_seg_says_what_a_segment_is_and_nothing_of_the_patient(campaign: Campaign, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(campaign, out, "dicom_seg")
    seg = pydicom.dcmread(out / "segmentations" / "scan.dcm")
    liver = seg.SegmentSequence[0]
    assert (liver.SegmentedPropertyTypeCodeSequence[0].CodeValue, liver.SegmentAlgorithmType) == ("10200004", "MANUAL")
    assert seg.PatientID == "P-17"
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyDate", "ReferringPhysicianName"):
        assert not seg[keyword].value, keyword
    for keyword in ("PatientAge", "StudyDescription", "InstitutionName", "StationName"):
        assert keyword not in seg
    first = (out / "segmentations" / "scan.dcm").read_bytes()
    (out / "segmentations" / "scan.dcm").unlink()
    export(campaign, out, "dicom_seg")
    again = pydicom.dcmread(out / "segmentations" / "scan.dcm")
    assert again.SOPInstanceUID == pydicom.dcmread(pydicom.filebase.DicomBytesIO(first)).SOPInstanceUID


def test_paired_organs_have_a_side_and_no_organ_at_all_is_no_error(campaign: Campaign, tmp_path: Path) -> None:
    workspace = campaign.open_workspace()
    cases = [c.model_copy(update={"labeled_organs": ("kidney_left",)}) if c.case_id == "scan" else c for c in workspace.cases()]
    write_lines(workspace.manifest, cases)
    export(campaign, tmp_path / "out", "dicom_seg")
    seg = pydicom.dcmread(tmp_path / "out" / "segmentations" / "scan.dcm")
    (modifier,) = seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert (modifier.CodeValue, modifier.CodeMeaning) == ("7771000", "Left")
    assert not seg.pixel_array.any()


def test_a_tumor_says_which_organ_it_is_in(campaign: Campaign, tmp_path: Path) -> None:
    organs = load_organs("universal_32")
    (scan,) = [p for p in plan_release(campaign, 0)[0] if p.case.case_id == "scan"]
    sources = tuple(OrganSource(organ=name, source="original") for name in ("liver", "liver_tumor"))
    label = read_volume(campaign.open_workspace().label("scan"))
    tumor = label.with_voxels(np.where(label.voxels, organs.label_id("liver_tumor"), 0).astype(np.uint8))
    DicomSeg().write_case(tmp_path, scan.model_copy(update={"organs": sources}), tumor, organs, "digest")
    liver, neoplasm = pydicom.dcmread(tmp_path / "segmentations" / "scan.dcm").SegmentSequence
    assert "AnatomicRegionSequence" not in liver
    assert neoplasm.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert neoplasm.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Neoplasm"
    assert neoplasm.AnatomicRegionSequence[0].CodeMeaning == "Liver"


def test_a_label_beside_its_series_is_refused(campaign: Campaign, tmp_path: Path) -> None:
    workspace = campaign.open_workspace()
    shifted = LPS.copy()
    shifted[0, 3] += 2
    write_volume(workspace.label("scan"), Volume(blocks(("liver", slice(1, 4))), shifted))
    with pytest.raises(AtlasError, match=r"label lies 2\.00 mm off its series"):
        export(campaign, tmp_path / "out", "dicom_seg")


def test_a_real_series_gets_a_segmentation_on_its_grid(campaign: Campaign, shared_data: Path, tmp_path: Path) -> None:
    folder, workspace = shared_data / "cptac_pda_189" / "dicom", campaign.open_workspace()
    image = read_volume(folder)
    label = np.zeros(image.shape, np.uint8)
    label[100:180, 200:300, 10:20] = ORGANS.label_id("liver")
    label[350:400, 250:330, 12:15] = ORGANS.label_id("spleen")
    write_volume(workspace.label("scan"), image.with_voxels(label))
    real = {"image": str(folder), "shape": image.shape, "spacing": image.spacing}
    write_lines(workspace.manifest, [c.model_copy(update=real) for c in workspace.cases() if c.case_id == "scan"])
    export(campaign, tmp_path / "out", "dicom_seg")
    slices = sorted(
        (pydicom.dcmread(p, stop_before_pixels=True) for p in folder.glob("*.dcm")), key=lambda s: float(s.ImagePositionPatient[2])
    )
    for organ, mask in read_back(tmp_path / "out" / "segmentations" / "scan.dcm", slices).items():
        assert np.array_equal(mask, ORGANS.mask(label, organ))


# --- de-identified ---------------------------------------------------------------------------------------------------

PSEUDONYMS = Pseudonyms(key=bytes(32))


def uids_in(dataset: Dataset) -> set[str]:
    """Every UID of a dataset at any depth that DICOM does not define itself."""
    found = set()
    for each in (dataset.file_meta, dataset):
        for element in each.iterall():
            if element.VR == "UI" and not element.value.startswith("1.2.840.10008."):
                found.add(str(element.value))
    return found - {str(dataset.file_meta.ImplementationClassUID)}


def test_a_deidentified_segmentation_names_nobody_and_still_belongs_to_its_series(campaign: Campaign, tmp_path: Path) -> None:
    slices = in_series_order(tmp_path / "data" / SECRET / "scan")
    export(campaign, tmp_path / "out", "dicom_seg", pseudonyms=PSEUDONYMS)
    (path,) = (tmp_path / "out" / "segmentations").iterdir()
    seg = pydicom.dcmread(path)
    theirs = set().union(*(uids_in(one) for one in slices))
    assert not uids_in(seg) & theirs
    assert not [uid for uid in theirs | {"P-17"} if uid.encode() in path.read_bytes()]
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids_in(seg))
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == tuple(
        PSEUDONYMS.uid(uid) for uid in (slices[0].StudyInstanceUID, slices[0].FrameOfReferenceUID)
    )
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == PSEUDONYMS.uid(slices[0].SeriesInstanceUID)
    assert seg.file_meta.MediaStorageSOPInstanceUID == seg.SOPInstanceUID
    assert (seg.PatientID, len(seg.PatientID)) == (PSEUDONYMS.patient("P-17"), 16)
    for one in slices:  # as whoever has the key renames those of the images
        one.SOPInstanceUID = PSEUDONYMS.uid(one.SOPInstanceUID)
    label = read_volume(campaign.open_workspace().label("scan")).voxels
    for organ, mask in read_back(path, slices).items():
        assert np.array_equal(mask, ORGANS.mask(label, organ))


def test_a_deidentified_segmentation_says_by_which_profile(campaign: Campaign, tmp_path: Path) -> None:
    export(campaign, tmp_path / "out", "dicom_seg", pseudonyms=PSEUDONYMS)
    (path,) = (tmp_path / "out" / "segmentations").iterdir()
    seg = pydicom.dcmread(path)
    assert (seg.PatientIdentityRemoved, seg.LongitudinalTemporalInformationModified) == ("YES", "REMOVED")
    assert seg.DeidentificationMethod == "DICOM PS3.15 Basic Application Level Confidentiality Profile"
    (method,) = seg.DeidentificationMethodCodeSequence
    assert (method.CodeValue, method.CodingSchemeDesignator) == ("113100", "DCM")
    dates = {str(element.value) for element in seg.iterall() if element.VR in ("DA", "TM", "DT")}
    assert dates == {"", "19000101", "000000"}, (
        "those of study and patient are empty, the content's is a dummy, others are not there"
    )


@pytest.mark.parametrize("layout", ["abdomenatlas", "nnunet", "dicom_seg"])
def test_no_file_of_a_deidentified_release_bears_a_case_id(layout: str, campaign: Campaign, tmp_path: Path) -> None:
    workspace, out = campaign.open_workspace(), tmp_path / "out"
    images = None if layout == "dicom_seg" else "copy"
    export(campaign, out, layout, images)
    ids = {"full", "part", "scan", "drafted", "fixed"}
    assert ids & {path.stem for path in (out / "provenance").iterdir()}
    export(campaign, out, layout, images, PSEUDONYMS)
    named = [str(path.relative_to(out)) for path in out.rglob("*")]
    assert named
    assert not [name for name in named if ids & set(name.replace(".", "/").replace("_0000", "").split("/"))]
    records = list((out / "provenance").iterdir())
    assert {json.loads(path.read_text())["case_id"] for path in records} <= {PSEUDONYMS.case(case_id) for case_id in ids}
    for path in (out / "dataset.csv", *records):
        assert not [case_id for case_id in ids if f'"{case_id}"' in path.read_text() or f"\n{case_id}," in path.read_text()]
    assert sums_hold(out)
    assert not workspace.pseudonym_key.exists(), "this key is the test's own"


def test_a_link_would_name_its_source(campaign: Campaign) -> None:
    with pytest.raises(ConfigError, match=r"a link to an image names its source; de-identify with --images copy, or none"):
        choose_layout("abdomenatlas", None, PSEUDONYMS)


def test_the_key_is_made_once_and_kept_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "campaign" / "pseudonym.key"
    load_pseudonyms(path, keep=False)
    assert not path.exists()
    first = load_pseudonyms(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_pseudonyms(path).uid("1.2.3") == first.uid("1.2.3") != PSEUDONYMS.uid("1.2.3")
    assert path.read_text().strip() not in repr(first)
    path.write_text("changeme")
    with pytest.raises(WorkspaceError, match=r"pseudonym\.key holds no key of 64 hexadecimal digits"):
        load_pseudonyms(path)
