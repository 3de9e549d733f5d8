"""The prediction stream: every output on its input's own grid, every bad case a row, nothing done twice.

Two networks with a known answer: an nnU-Net whose weights are set by hand so that it finds what is brighter than its surroundings,
and a U-Net that says "liver, 73 %" everywhere. Together they call liver exactly the bright cube, and disagree everywhere else.
"""

import errno
import json
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from atlas_ray.attention import packed
from atlas_ray.attention.packed import attend
from atlas_ray.cluster import finishing, prediction
from atlas_ray.cluster.prediction import (
    Ensemble,
    PredictionSummary,
    Row,
    finish_case,
    forget_attempts,
    plan_predictions,
    predict_cases,
    read_case,
    retry_failed,
)
from atlas_ray.config import Campaign
from atlas_ray.exceptions import AtlasError
from atlas_ray.lock import held_claim, locked
from atlas_ray.prioritization.error_types import DEFAULT_ERROR_TYPES
from atlas_ray.progress import Advance, Pace, not_shown
from atlas_ray.records import Case
from atlas_ray.segmentation.architectures import NNUNet, UNet
from atlas_ray.segmentation.checkpoints import CheckpointHeader, Provenance, save_checkpoint
from atlas_ray.segmentation.pseudo_labels import native_slabs
from atlas_ray.storage import create
from atlas_ray.workspace import Workspace, anatomy_in, read_sums

# Ray Data 2.60 sets its own deprecated options whenever it makes a context
pytestmark = pytest.mark.filterwarnings("ignore:`use_[a-z0-9_]+` is deprecated:DeprecationWarning")

ORGANS = """
name: two
organs:
  - {name: liver, label_id: 6, color: "#c8604f"}
  - {name: spleen, label_id: 2, color: "#9b6bd6"}
"""
SHAPE, SPACING = (16, 20, 8), (2.0, 2.0, 4.0)  # in RAS
CUBE = (slice(3, 9), slice(5, 15), slice(2, 6))  # bright; off center in every axis
NNUNET, UNET = NNUNet(features=(2, 4), convs_per_stage=1), UNet(features=(4, 8), residual_units=1)
FOLDER_LISTING = [
    "SHA256SUMS",
    "architectures/nnunet.nii.gz",
    "architectures/unet.nii.gz",
    "attention/liver.nii.gz",
    "attention/spleen.nii.gz",
    "components.jsonl",
    "heat.nii.gz",
    "pseudo_label.nii.gz",
    "scores.json",
]


def make_campaign(root: Path, **changes: Any) -> Campaign:
    root.mkdir(exist_ok=True)
    (root / "two.yaml").write_text(ORGANS)
    return Campaign.model_validate(
        {
            "name": "small",
            "workspace": str(root / "workspace"),
            "organs": str(root / "two.yaml"),
            "datasets": [{"source": "phantom", "name": "unused", "count": 1, "split": "pool"}],
            "preprocessing": {"spacing": (2, 2, 2)},
            "architectures": [NNUNET, UNET],
            "patches": {"patch": (16, 16, 16)},
            "inference": {"window": (16, 20, 16), "overlap": 0.25, "precision": "float32"},
            "attention": {"mode": "physical"},
            **changes,
        }
    )


def finds_bright_things() -> dict[str, torch.Tensor]:
    """Only the skip connection is used: the CT, normalized over the window twice, then 4 v - 6 for the liver."""
    network = NNUNET.build(2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        weights = dict(network.named_parameters())
        weights["encoder.stages.0.0.convs.0.conv.weight"][0, 0, 1, 1, 1] = 1
        weights["decoder.stages.0.convs.0.conv.weight"][0, 2, 1, 1, 1] = 1  # channels 0 and 1 come from below
        weights["decoder.seg_layers.0.weight"][0, 0] = 4
        weights["decoder.seg_layers.0.bias"].copy_(torch.tensor([-6.0, -8.0]))
    return network.state_dict()


def says_liver_everywhere(liver_logit: float) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = UNET.build(2)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([liver_logit, -8.0]))
    return network.state_dict()


def save_networks(campaign: Campaign, *, liver_logit: float = 1.0) -> dict[str, str]:
    """Architecture -> sha256 of its checkpoint in round 0."""
    origin = Provenance(round=0, cases=1, data_key="abc", steps=1, seed=0, created="2026-01-01T00:00:00+00:00")
    shas = {}
    for architecture, state in ((NNUNET, finds_bright_things()), (UNET, says_liver_everywhere(liver_logit))):
        header = CheckpointHeader(
            architecture=architecture, organs=("liver", "spleen"), spacing=(2, 2, 2), window_hu=(-175, 250), provenance=origin
        )
        path = campaign.open_workspace().checkpoint(0, architecture.architecture)
        shas[architecture.architecture] = save_checkpoint(path, header, state)
    return shas


def save_case(folder: Path, case_id: str, *, orientation: str = "LPS", **fields: Any) -> Case:
    """A CT of -100 HU with a cube of 100 HU, stored in any orientation with a header of its own."""
    voxels = np.full(SHAPE, -100, np.int16)
    voxels[CUBE] = 100
    ras = nibabel.Nifti1Image(voxels, np.array([[2.0, 0, 0, -31], [0, 2, 0, 12], [0, 0, 4, -400], [0, 0, 0, 1]]))
    change = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(tuple(orientation))
    )
    image = ras.as_reoriented(change)
    image.set_sform(image.affine, code=2)
    image.set_qform(image.affine, code=1)
    image.header["descrip"] = b"scanner 7"
    image.header["cal_max"] = 250
    image.header.set_xyzt_units("mm", "sec")
    path = folder / f"{case_id}.nii.gz"
    nibabel.save(image, path)
    spacing = tuple(map(float, image.header.get_zooms()))
    known = {"image": str(path), "sha256": "0" * 64, "shape": image.shape, "spacing": spacing, "orientation": orientation}
    return Case.model_validate({"case_id": case_id, **known, "source": "here", "license": "CC0-1.0", "split": "pool", **fields})


def read_row(campaign: Campaign, case: Case) -> Row:
    row = {"case_id": case.case_id, "case": case.model_dump_json()}
    return read_case(row, campaign_json=campaign.model_dump_json(), round_index=0)


def predict_here(campaign: Campaign, case: Case) -> Row:
    """The three operators of the stream one after the other, in this process."""
    plan = campaign.model_dump_json()
    return finish_case(Ensemble(plan, 0)(read_row(campaign, case)), campaign_json=plan, round_index=0)


def voxels_of(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def bright(case: Case) -> np.ndarray:
    return voxels_of(Path(case.image)) > 0


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    campaign = make_campaign(tmp_path)
    save_networks(campaign)
    return campaign


@pytest.fixture
def workspace(campaign: Campaign) -> Workspace:
    return campaign.open_workspace()


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "PIR", "SAL"])
def test_the_pseudo_label_is_the_bright_cube_in_any_orientation(
    campaign: Campaign, workspace: Workspace, tmp_path: Path, orientation: str
) -> None:
    case = save_case(tmp_path, "a", orientation=orientation)
    assert predict_here(campaign, case)["error"] == ""
    np.testing.assert_array_equal(voxels_of(workspace.pseudo_label(0, "a")), np.where(bright(case), 6, 0))
    np.testing.assert_array_equal(voxels_of(workspace.architecture_label(0, "a", "nnunet")), np.where(bright(case), 6, 0))
    assert (voxels_of(workspace.architecture_label(0, "a", "unet")) == 6).all()


@pytest.mark.parametrize("orientation", ["LPS", "SAL"])
def test_anatomical_rules_correct_the_pseudo_label_and_say_what_they_changed(
    campaign: Campaign, workspace: Workspace, tmp_path: Path, orientation: str
) -> None:
    rule = {"rule": "largest_component", "organs": ["liver"], "smallest_mm3": 1e6}
    strict = Campaign.model_validate({**campaign.model_dump(), "pseudo_labels": {"anatomy": [rule]}})
    case = save_case(tmp_path, "a", orientation=orientation)
    assert predict_here(strict, case)["error"] == ""
    assert not voxels_of(workspace.pseudo_label(0, "a")).any()
    (change,) = json.loads(anatomy_in(workspace.prediction(0, "a")).read_text())["changes"]
    assert change == {"number": 0, "rule": "largest_component", "organ": "liver", "taken": int(bright(case).sum()), "given": 0}
    liver = next(organ for organ in workspace.case_scores(0, "a").organs if organ.organ == "liver")
    assert liver.predicted_ml == 0


def test_every_file_is_written_on_the_exact_grid_and_header_of_the_ct(
    campaign: Campaign, workspace: Workspace, tmp_path: Path
) -> None:
    case = save_case(tmp_path, "a")
    predict_here(campaign, case)
    folder = workspace.prediction(0, "a")
    assert files_of(folder) == FOLDER_LISTING
    ct = nibabel.load(case.image)
    voxel_type = {"datatype", "bitpix", "scl_slope", "scl_inter"}
    for name in FOLDER_LISTING:
        if name.endswith(".nii.gz"):
            output = nibabel.load(folder / name)
            np.testing.assert_array_equal(output.affine, ct.affine)
            assert output.get_data_dtype() == np.uint8
            differing = {key for key in ct.header if ct.header[key].tobytes() != output.header[key].tobytes()}
            assert differing <= voxel_type


def test_a_ct_without_a_nifti_header_comes_back_on_its_affine(campaign: Campaign, workspace: Workspace, tmp_path: Path) -> None:
    """As a DICOM series does."""
    case = save_case(tmp_path, "a")
    plan = campaign.model_dump_json()
    finish_case(Ensemble(plan, 0)({**read_row(campaign, case), "header": b""}), campaign_json=plan, round_index=0)
    np.testing.assert_array_equal(nibabel.load(workspace.pseudo_label(0, "a")).affine, nibabel.load(case.image).affine)
    np.testing.assert_array_equal(voxels_of(workspace.pseudo_label(0, "a")) == 6, bright(case))


def test_attention_lies_where_the_networks_disagree(campaign: Campaign, workspace: Workspace, tmp_path: Path) -> None:
    case = save_case(tmp_path, "a")
    predict_here(campaign, case)
    liver = voxels_of(workspace.attention(0, "a", "liver")) > 0
    far = ~np.logical_or.reduce([np.roll(bright(case), shift, axis) for axis in range(3) for shift in (-1, 0, 1)])
    far[[0, -1]] = far[:, [0, -1]] = far[..., [0, -1]] = False  # an opening may treat the border in its own way
    assert liver[far].all()
    assert not voxels_of(workspace.attention(0, "a", "spleen")).any()
    assert (voxels_of(workspace.heat(0, "a"))[far] > 0).all()


def test_components_lie_in_the_grid_and_count_what_the_attention_shows(
    campaign: Campaign, workspace: Workspace, tmp_path: Path
) -> None:
    predict_here(campaign, save_case(tmp_path, "a", orientation="SAL"))
    bits = voxels_of(workspace.attention(0, "a", "liver"))
    assert bits.shape == (8, 20, 16)
    components = workspace.case_components(0, "a")
    assert components
    assert [c.index for c in components] == list(range(1, len(components) + 1))
    for component in components:
        assert all(0 <= start < stop <= n for (start, stop), n in zip(component.box, bits.shape, strict=True))
        assert component.volume_mm3 == pytest.approx(component.voxels * 2 * 2 * 4)
        assert component.organ == "liver"
        assert component.reason in component.criteria
        assert bits[component.peak] > 0
        assert component.error in {t.error for t in DEFAULT_ERROR_TYPES} | {"unknown"}
    assert sum(c.voxels for c in components) == (bits > 0).sum()


def test_scores_add_up_and_name_the_weights(campaign: Campaign, workspace: Workspace, tmp_path: Path) -> None:
    shas = save_networks(campaign)
    predict_here(campaign, save_case(tmp_path, "a"))
    scores = workspace.case_scores(0, "a")
    assert (scores.case_id, scores.round, scores.attention_mode, scores.checkpoints) == ("a", 0, "physical", shas)
    liver, spleen = scores.organs
    assert liver.attention_voxels == (voxels_of(workspace.attention(0, "a", "liver")) > 0).sum() == scores.attention_voxels
    assert scores.attention_mm3 == pytest.approx(16 * scores.attention_voxels)
    assert liver.predicted_ml == pytest.approx(6 * 10 * 4 * 16 / 1000)
    assert (spleen.attention_voxels, spleen.predicted_ml, spleen.components) == (0, 0, 0)
    assert scores.peak_memory_mb > 0


@pytest.mark.parametrize(("split", "watched"), [("train", False), ("holdout", True)])
def test_a_labeled_organ_needs_no_attention_except_in_the_holdout(
    campaign: Campaign, workspace: Workspace, tmp_path: Path, split: str, watched: bool
) -> None:
    predict_here(campaign, save_case(tmp_path, "a", split=split, labeled_organs=("liver",)))
    assert voxels_of(workspace.attention(0, "a", "liver")).any() == watched
    assert bool(workspace.case_components(0, "a")) == watched
    assert (voxels_of(workspace.pseudo_label(0, "a")) == 6).any()


@pytest.mark.parametrize("mode", ["physical", "faithful"])
def test_slabs_do_not_show_in_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """One slab for all, and slabs of a single slice with their context, write the same voxels."""
    outputs: list[dict[str, np.ndarray]] = []
    scores = []
    for memory_mb in (600, 1e-6):
        campaign = make_campaign(tmp_path / f"{memory_mb}", attention={"mode": mode})
        save_networks(campaign)
        case = save_case(tmp_path, "a")
        monkeypatch.setattr(finishing, "native_slabs", partial(native_slabs, memory_mb=memory_mb))
        predict_here(campaign, case)
        workspace = campaign.open_workspace()
        folder = workspace.prediction(0, "a")
        outputs.append({name: voxels_of(folder / name) for name in FOLDER_LISTING if name.endswith(".nii.gz")})
        scores.append(workspace.case_scores(0, "a").organs)
    assert outputs[0]["attention/liver.nii.gz"].any()
    for name, whole in outputs[0].items():
        np.testing.assert_array_equal(whole, outputs[1][name], err_msg=name)
    for one, other in zip(*scores, strict=True):
        assert one.entropy == pytest.approx(other.entropy)
        assert one.attention_voxels == other.attention_voxels


@pytest.mark.parametrize("mode", ["physical", "faithful"])
def test_a_share_of_a_gpu_changes_where_attention_runs_and_not_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Where torch sees no GPU, the same function in its plain form."""
    outputs: list[dict[str, np.ndarray]] = []
    calls: list[str] = []
    monkeypatch.setattr(packed, "attend", lambda *values, **kwargs: calls.append("") or attend(*values, **kwargs))
    for share in (0.0, 0.5):
        campaign = make_campaign(tmp_path / f"{share}", attention={"mode": mode}, cluster={"gpus_per_task": share})
        save_networks(campaign)
        predict_here(campaign, save_case(tmp_path, "a", orientation="SAL"))
        assert len(calls) == (share > 0)
        folder = campaign.open_workspace().prediction(0, "a")
        outputs.append({name: voxels_of(folder / name) for name in FOLDER_LISTING if name.endswith(".nii.gz")})
    assert outputs[0]["attention/liver.nii.gz"].any()
    for name, expected in outputs[0].items():
        np.testing.assert_array_equal(outputs[1][name], expected, err_msg=name)


# --- bad cases ------------------------------------------------------------------------------------------------------


def truncate(case: Case) -> None:
    path = Path(case.image)
    path.write_bytes(path.read_bytes()[:200])


def attempts(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in (workspace.root / "attempts").rglob("*") if path.is_file())


def test_a_file_that_cannot_be_read_is_an_error_row_however_often_it_is_tried(
    campaign: Campaign, workspace: Workspace, tmp_path: Path
) -> None:
    """It never killed a process, so the reason stays the true one."""
    case = save_case(tmp_path, "a")
    truncate(case)
    for _ in range(campaign.cluster.max_attempts + 1):
        row = predict_here(campaign, case)
        assert "a.nii.gz" in row["error"]
        assert "kills" not in row["error"]
    assert not workspace.prediction(0, "a").exists()


def test_a_ct_that_changed_since_ingest_is_refused(campaign: Campaign, tmp_path: Path) -> None:
    row = predict_here(campaign, save_case(tmp_path, "a", shape=(16, 20, 9)))
    assert "has shape (16, 20, 8), at ingest it had (16, 20, 9)" in row["error"]


def test_a_case_that_kills_its_reader_is_refused_after_max_attempts(campaign: Campaign, tmp_path: Path) -> None:
    """Each start leaves a marker first; a process that dies never takes it back."""
    case = save_case(tmp_path, "a")
    for _ in range(campaign.cluster.max_attempts):
        assert prediction._claim(campaign, "read-000", "a") == ""
    assert "started 3 times without a result" in read_row(campaign, case)["error"]
    assert read_row(campaign, save_case(tmp_path, "b"))["error"] == ""  # only this case
    forget_attempts(campaign, 0, "a")
    assert read_row(campaign, case)["error"] == ""


def test_a_case_that_kills_the_actor_is_refused_after_max_attempts(
    campaign: Campaign, workspace: Workspace, tmp_path: Path
) -> None:
    case = save_case(tmp_path, "a")
    for _ in range(campaign.cluster.max_attempts):
        prediction._claim(campaign, "predict-000", "a")
    assert "kills its process" in predict_here(campaign, case)["error"]
    assert not workspace.prediction(0, "a").exists()


def test_a_finished_case_leaves_no_attempt_behind(campaign: Campaign, workspace: Workspace, tmp_path: Path) -> None:
    predict_here(campaign, save_case(tmp_path, "a"))
    assert attempts(workspace) == []


def test_without_a_checkpoint_the_message_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match=r"nnunet\.pt is missing; run `python -m jobs\.train CONFIG --round 0`"):
        predict_cases(make_campaign(tmp_path), 0, [])


# --- what is no case's fault ----------------------------------------------------------------------------------------


def full_disk(monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """The disk is full the first `times` times that a case is finished; the list of the cases tried."""
    tried: list[str] = []
    finish = prediction.finish

    def finish_or_not(folder: Path, campaign: Campaign, case: Case, *args: Any, **kwargs: Any) -> None:
        tried.append(case.case_id)
        if len(tried) <= times:
            raise OSError(errno.ENOSPC, "No space left on device")
        finish(folder, campaign, case, *args, **kwargs)

    monkeypatch.setattr(prediction, "finish", finish_or_not)
    return tried


def test_a_disk_that_is_full_for_a_moment_costs_nothing(
    in_this_process: None, campaign: Campaign, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = full_disk(monkeypatch, times=1)
    assert done_now(campaign, [save_case(tmp_path, "a")]) == ["a"]
    assert tried == ["a", "a"]
    assert list(workspace.predictions(0).glob(".*")) == []


def test_a_disk_that_stays_full_ends_the_job_and_blames_no_case(
    in_this_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = make_campaign(tmp_path, cluster={"patience_s": 0})
    save_networks(campaign)
    cases = [save_case(tmp_path, name) for name in "ab"]
    with monkeypatch.context() as patch:
        full_disk(patch, times=1)
        with pytest.raises(AtlasError, match=r"workspace is full: .*No space left.*run the same command"):
            predict_cases(campaign, 0, cases)
    assert campaign.open_workspace().quarantined() == []
    assert done_now(campaign, cases) == ["a", "b"]
    assert attempts(campaign.open_workspace()) == []


def test_starts_that_ended_with_their_node_or_job_count_a_third(
    in_this_process: None, campaign: Campaign, workspace: Workspace, tmp_path: Path
) -> None:
    """Spot nodes come and go; but a case that takes its node along every time must not do so for ever."""
    case, limit = save_case(tmp_path, "a"), campaign.cluster.max_attempts
    for number in range(1, 3 * limit):
        create(workspace.attempt("read-000", "a", number), "another_job another_node")
    assert read_row(campaign, case)["error"] == ""
    for number in range(1, 3 * limit + 1):
        create(workspace.attempt("read-000", "a", number), "another_job another_node")
    assert "started 9 times without a result" in read_row(campaign, case)["error"]


def test_cases_that_were_started_before_come_last(campaign: Campaign, workspace: Workspace, tmp_path: Path) -> None:
    cases = [save_case(tmp_path, name) for name in "abcd"]
    create(workspace.attempt("predict-000", "b", 1), "another_job another_node")
    assert [case.case_id for case in plan_predictions(campaign, 0, cases).todo] == ["a", "c", "d", "b"]


def test_what_a_dead_job_left_is_gone_after_the_next(
    in_this_process: None, campaign: Campaign, workspace: Workspace, tmp_path: Path
) -> None:
    case = save_case(tmp_path, "a")
    done_now(campaign, [case])
    (workspace.predictions(0) / ".a.0123.partial").mkdir()
    create(workspace.attempt("finish-000", "a", 1), "another_job another_node")
    assert done_now(campaign, [case]) == []
    assert list(workspace.predictions(0).glob(".*")) == []
    assert attempts(workspace) == []


# --- what is done again ---------------------------------------------------------------------------------------------


def streamed(campaign: Campaign, cases: list[Case], progress: Advance = not_shown) -> tuple[PredictionSummary, list[Row]]:
    """What a run of the stream says, and the rows that reached the driver."""
    rows: list[Row] = []
    stream = prediction.stream

    def watched(*which: Any) -> Iterator[Row]:
        for row in stream(*which):
            rows.append(row)
            yield row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "stream", watched)
        return predict_cases(campaign, 0, cases, progress=progress), rows


def done_now(campaign: Campaign, cases: list[Case]) -> list[str]:
    """Ids of the cases that a run of the stream predicted."""
    _, rows = streamed(campaign, cases)
    return sorted(row["case_id"] for row in rows if not row["error"])


def test_changed_inputs_recompute_exactly_the_affected_cases(in_this_process: None, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    save_networks(campaign)
    cases = [save_case(tmp_path, name, sha256=name * 64) for name in "abc"]
    assert done_now(campaign, cases) == ["a", "b", "c"]
    assert done_now(campaign, cases) == []
    assert done_now(make_campaign(tmp_path, effort={"budget_share": 0.7}, annotation={"lease_minutes": 5}), cases) == []
    changed = [cases[0], cases[1].model_copy(update={"sha256": "d" * 64}), cases[2]]
    assert done_now(campaign, changed) == ["b"]
    other = make_campaign(tmp_path, attention={"mode": "physical", "min_component_mm3": 30})
    assert done_now(other, changed) == ["a", "b", "c"]
    assert done_now(other, changed) == []


def test_a_block_that_is_predicted_once_more_leaves_finished_cases_as_they_are(
    campaign: Campaign, workspace: Workspace, tmp_path: Path
) -> None:
    """What is started again after a loss is a block of cases. Another image's result is replaced all the same."""
    case = save_case(tmp_path, "a")
    predict_here(campaign, case)
    first = workspace.scores(0, "a").stat().st_ino
    predict_here(campaign, case)
    assert workspace.scores(0, "a").stat().st_ino == first
    predict_here(campaign, case.model_copy(update={"sha256": "d" * 64}))
    assert workspace.scores(0, "a").stat().st_ino != first


def test_a_task_that_outlives_its_job_writes_nothing_into_the_next_ones_workspace(
    campaign: Campaign, workspace: Workspace, tmp_path: Path
) -> None:
    """The next job may have other weights and settings, and would not look at what it has finished again."""
    plan, case = campaign.model_dump_json(), save_case(tmp_path, "a")
    with locked(workspace, "first"):
        row = {**Ensemble(plan, 0)(read_row(campaign, case)), "claim": held_claim()}
    with locked(workspace, "second"):
        late = finish_case(dict(row), campaign_json=plan, round_index=0)
        assert not workspace.prediction(0, "a").exists()
        assert late["ends_stream"]
        assert "a later job has taken" in late["error"]
        mine = finish_case({**row, "claim": held_claim()}, campaign_json=plan, round_index=0)
    assert not mine["error"]
    assert workspace.predicted(0) == {"a"}


def test_a_prediction_says_what_its_files_hold(campaign: Campaign, workspace: Workspace, tmp_path: Path) -> None:
    predict_here(campaign, save_case(tmp_path, "a"))
    folder = workspace.prediction(0, "a")
    checked = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert set(read_sums(folder)) == set(FOLDER_LISTING) - {"SHA256SUMS"}
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.name not in ("SHA256SUMS", "scores.json") and path.is_file()]
    assert workspace.case_scores(0, "a").bytes == sum(sizes)


def test_a_failure_is_not_tried_again_until_its_inputs_change_or_somebody_asks(in_this_process: None, tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, cluster={"max_failed_fraction": 0.5})
    workspace = campaign.open_workspace()
    save_networks(campaign)
    good, bad = save_case(tmp_path, "good"), save_case(tmp_path, "bad", sha256="b" * 64)
    whole = Path(bad.image).read_bytes()
    truncate(bad)
    assert done_now(campaign, [good, bad]) == ["good"]
    (entry,) = workspace.quarantined()
    assert (entry.case_id, entry.step, entry.path) == ("bad", "predict-000", bad.image)

    summary, rows = streamed(campaign, [good, bad])
    assert (rows, summary.skipped, summary.failed) == ([], 1, (entry,))

    Path(bad.image).write_bytes(whole)
    assert retry_failed(campaign, 0) == 1
    assert workspace.quarantined() == []
    assert done_now(campaign, [good, bad]) == ["bad"]

    truncate(bad)
    again = bad.model_copy(update={"sha256": "c" * 64})  # another image, which is broken, too
    assert done_now(campaign, [good, again]) == []
    Path(bad.image).write_bytes(whole)
    assert done_now(campaign, [good, bad.model_copy(update={"sha256": "d" * 64})]) == ["bad"]
    assert workspace.quarantined() == [], "what succeeded is no failure any more"


# --- the stream -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_stream_finishes_the_good_cases_sets_bad_ones_aside_and_repeats_nothing(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = make_campaign(tmp_path, cluster={"max_failed_fraction": 0.5, "cases_per_stream": 3})
    workspace = campaign.open_workspace()
    shas = save_networks(campaign)
    good = [save_case(tmp_path, "lps"), save_case(tmp_path, "labeled", orientation="RAS", split="train", labeled_organs=("liver",))]
    corrupt, killer = save_case(tmp_path, "corrupt"), save_case(tmp_path, "killer")
    truncate(corrupt)
    for _ in range(campaign.cluster.max_attempts):
        prediction._claim(campaign, "predict-000", "killer")

    pace = Pace(4)
    summary, rows = streamed(campaign, [*good, corrupt, killer], pace)
    assert (pace.through, pace.failed, pace.done_before) == (4, 2, 0)
    assert (summary.predicted, summary.skipped, len(summary.failed)) == (2, 0, 2)
    assert min(summary.actor_peak_mb, summary.finish_peak_mb) > 0
    assert sorted(row["case_id"] for row in rows) == ["corrupt", "killer", "labeled", "lps"]
    assert all(len(json.dumps(row, default=str)) < 2000 for row in rows)  # only small rows reach the driver
    assert workspace.predicted(0) == {"lps", "labeled"}
    reasons = {entry.case_id: entry.reason for entry in workspace.quarantined()}
    assert "corrupt.nii.gz" in reasons["corrupt"]
    assert "started 3 times" in reasons["killer"]
    for case in good:
        assert files_of(workspace.prediction(0, case.case_id)) == FOLDER_LISTING
        np.testing.assert_array_equal(voxels_of(workspace.pseudo_label(0, case.case_id)) == 6, bright(case))
    assert not voxels_of(workspace.attention(0, "labeled", "liver")).any()

    with monkeypatch.context() as patch:  # a second run of finished cases starts no stream
        patch.setattr(prediction, "stream", None)
        pace = Pace(2)
        again = predict_cases(campaign, 0, good, progress=pace)
    assert (pace.through, pace.failed, pace.done_before) == (2, 0, 2)
    assert (again.predicted, again.skipped, again.failed) == (0, 2, ())

    # Other weights make the predictions stale. One failure of two is more than a tenth; the good one is done all the same.
    newer = save_networks(campaign, liver_logit=0.5)
    assert newer["unet"] != shas["unet"]
    assert newer["nnunet"] == shas["nnunet"]
    strict = make_campaign(tmp_path, cluster={"max_failed_fraction": 0.1})
    with pytest.raises(AtlasError, match=r"1 of 2 cases failed, 10% are allowed; reasons in .*quarantine\.jsonl"):
        predict_cases(strict, 0, [good[0], corrupt])
    assert workspace.case_scores(0, "lps").checkpoints == newer
    assert workspace.case_scores(0, "labeled").checkpoints == shas
