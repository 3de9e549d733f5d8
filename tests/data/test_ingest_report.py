"""The page about what was ingested: its numbers by hand, its pictures as a radiologist would have them."""

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from atlas_ray.config import Campaign
from atlas_ray.data.ingest import Ingested
from atlas_ray.data.ingest_report import (
    Ingestion,
    draw_case,
    far_volumes,
    fullest_slice,
    ingest_page,
    labeled_cases,
    pictured_cases,
    read_ingestion,
    reason_kind,
)
from atlas_ray.organs import Organ, Organs
from atlas_ray.records import Case, Quarantined
from atlas_ray.steps.ingest import ingest_step, report_step
from atlas_ray.volume import Volume, reorient, write_volume
from atlas_ray.workspace import Workspace, write_lines

ORGANS = Organs(
    name="two",
    organs=(Organ(name="liver", label_id=1, color="#ff0000"), Organ(name="spleen", label_id=2, color="#0000ff")),
)


def case(case_id: str, source: str = "a", organs: tuple[str, ...] = (), **fields: object) -> Case:
    described = {
        "image": f"/data/{case_id}.nii.gz",
        "sha256": case_id,
        "shape": (4, 4, 4),
        "spacing": (1, 1, 5),
        "orientation": "LPS",
    }
    described |= {"source": source, "license": "CC0", "split": "train" if organs else "pool", "labeled_organs": organs}
    return Case.model_validate(described | {"case_id": case_id} | fields)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_come_from_the_manifest_and_the_records_alone(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    cases = [case("p1", "a", ("liver",)), case("p2", "b", ("liver", "spleen")), case("p3", "b")]
    write_lines(workspace.manifest, cases)
    record = Ingested(fingerprint="f", case=cases[1], organ_ml={"liver": 1500.0, "spleen": 0.0})
    workspace.ingested("p2").parent.mkdir()
    workspace.ingested("p2").write_text(record.model_dump_json())
    workspace.ingested("p3").write_text("{}")  # of another version
    workspace.add_to_quarantine(
        Quarantined(case_id="p9", step="ingest", reason="no label at /x"), Quarantined(case_id="p1", step="predict-000", reason="?")
    )
    found = read_ingestion(workspace)
    assert [e.case_id for e in found.quarantined] == ["p9"]
    assert found.milliliters == {"p1": {}, "p2": {"liver": 1500.0, "spleen": 0.0}, "p3": {}}
    assert found.sources == ("a", "b")
    assert labeled_cases(found.cases) == {("liver", "a"): 1, ("liver", "b"): 1, ("spleen", "b"): 1}
    page = ingest_page("two", found, [(cases[0], "it is gone")], ORGANS)
    assert "3 cases of 2 datasets, 1 set aside." in page
    assert "<tr><td>liver</td><td>1</td><td>1</td><td>2</td></tr>" in page
    assert "<tr><td>spleen</td><td></td><td>1</td><td>1</td></tr>" in page
    assert "Labeled as not there: spleen in 1." in page
    assert "no label at /x" in page
    assert "p1 (a, LPS, 1 x 1 x 5 mm): it is gone" in page


def test_a_volume_far_from_its_organs_others_is_listed() -> None:
    milliliters = {f"p{i}": {"liver": 1500.0 + 50 * i, "spleen": 200.0} for i in range(9)}
    milliliters["cut"] = {"liver": 300.0}
    milliliters["none"] = {"liver": 0.0}
    cases = tuple(case(name, organs=tuple(of)) for name, of in milliliters.items())
    (far,) = far_volumes(Ingestion(cases, (), milliliters), ORGANS)
    deviation, case_id, organ, ml, median = far
    assert (case_id, organ, ml) == ("cut", "liver", 300.0)
    assert median == pytest.approx(1675, rel=0.01)  # between the fifth and sixth of ten
    assert deviation > 10
    few = dict(list(milliliters.items())[-4:])
    assert far_volumes(Ingestion(cases, (), few), ORGANS) == []


def test_reasons_that_differ_in_numbers_and_paths_are_one_kind() -> None:
    assert reason_kind("shape (5, 4, 3): every edge must have at least 8 voxels") == reason_kind(
        "shape (1, 40, 3): every edge must have at least 8 voxels"
    )
    assert reason_kind("/data/a 1.nii: no label") != reason_kind("/data/b.nii: no image")


# --- pictures --------------------------------------------------------------------------------------------------------


def test_of_every_dataset_a_few_labeled_cases_are_pictured() -> None:
    cases = [case(f"a{i}", "a", ("liver",) if i > 1 else ()) for i in range(6)] + [case("b0", "b")]
    assert [c.case_id for c in pictured_cases(cases)] == ["a3", "a5", "b0"]


def test_the_fullest_slice_shows_most_organs() -> None:
    labels = np.zeros((2, 2, 6), np.uint8)
    assert fullest_slice(labels, 2) == 3
    labels[0, 0, 0:3] = 1
    labels[1, 1, 2] = 2
    assert fullest_slice(labels, 2) == 2
    assert fullest_slice(labels, 0) == 1  # both have one organ


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR"])
def test_pictures_show_the_right_on_the_left_the_front_and_the_head_up(tmp_path: Path, orientation: str) -> None:
    workspace = Workspace(tmp_path)
    ras = np.diag([3.0, 3, 5, 1])
    labels = np.zeros((40, 30, 20), np.uint8)
    labels[28:36, 10:26, 12:17] = 1  # right, front, near the head: RAS grows toward the right hand's side
    labels[4:10, 4:14, 3:14] = 2  # left, back, near the feet
    for path, voxels in ((tmp_path / "ct.nii.gz", np.zeros(labels.shape, np.int16)), (workspace.label("p"), labels)):
        write_volume(path, reorient(Volume(voxels, ras), orientation))
    _, png = draw_case(case("p", organs=("liver", "spleen"), image=str(tmp_path / "ct.nii.gz")), workspace=workspace, organs=ORGANS)
    assert isinstance(png, bytes)
    picture = imread(io.BytesIO(png))[..., :3]
    picture = picture[:, : int(picture.shape[1] * 0.8)]  # without the legend
    axial, coronal = picture[:, : picture.shape[1] // 2], picture[:, picture.shape[1] // 2 :]

    def center(panel: np.ndarray, channel: int) -> tuple[float, float]:
        """(row, column) of what is tinted."""
        rows, columns = np.nonzero(panel[..., channel] - panel[..., 2 - channel] > 0.2)
        return float(rows.mean()), float(columns.mean())

    for panel in (axial, coronal):
        (liver_row, liver_column), (spleen_row, spleen_column) = center(panel, 0), center(panel, 2)
        assert liver_column < spleen_column
        assert liver_row < spleen_row


def test_a_case_without_its_image_says_so(tmp_path: Path) -> None:
    _, said = draw_case(case("gone"), workspace=Workspace(tmp_path), organs=ORGANS)
    assert "/data/gone.nii.gz cannot be read" in str(said)


def test_a_page_is_written_after_ingest(tmp_path: Path, in_this_process: None) -> None:
    scan = {"spacing": [8, 8, 8], "field_of_view_mm": [320, 256, 320], "orientation": "LPS"}
    campaign = Campaign.model_validate(
        {
            "name": "small",
            "workspace": str(tmp_path / "workspace"),
            "datasets": [{"source": "phantom", "name": "a", "count": 1, "seed": 1, "split": "train", "phantom": scan}],
        }
    )
    ingest_step(campaign)
    page = report_step(campaign)
    assert page == campaign.open_workspace().root / "ingest.html"
    content = page.read_text()
    assert "1 cases of 1 datasets, 0 set aside." in content
    assert content.count("data:image/png;base64,") == 4
