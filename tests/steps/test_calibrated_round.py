"""Calibrated attention on tiny cases: learned after the merge, used by the next round, measured beside the others."""

import logging
from pathlib import Path

import numpy as np
import pytest
from cubes import HU, SHAPE, cube_campaign, write_cubes

from atlas_ray.annotation.merge import OrganProvenance, Provenance
from atlas_ray.attention.anatomy_rules import AnatomyRules
from atlas_ray.attention.candidates import FEATURES, from_bytes
from atlas_ray.attention.criteria import CalibratedAttention
from atlas_ray.attention.detector import AttentionDetector, Logistic, OrganDetector
from atlas_ray.cluster.calibrated import detector_of
from atlas_ray.cluster.prediction import plan_predictions, predict_cases
from atlas_ray.config import Campaign
from atlas_ray.records import Case
from atlas_ray.segmentation.checkpoints import CheckpointHeader, save_checkpoint
from atlas_ray.segmentation.checkpoints import Provenance as Training
from atlas_ray.steps.attention import attention_step
from atlas_ray.steps.learn_attention import learn_attention_step
from atlas_ray.steps.merge import merge_step
from atlas_ray.storage import write_atomically
from atlas_ray.volume import Volume, read_labels, write_volume
from atlas_ray.workspace import Workspace, seal, write_lines

pytestmark = pytest.mark.usefixtures("in_this_process", "one_thread")
CALIBRATED = {"mode": "calibrated", "anatomy": {"min_piece_mm3": 20}}


def untrained(campaign: Campaign, *rounds: int) -> None:
    """Networks that know nothing, and are unsure everywhere: the same in every round."""
    import torch

    (architecture,) = campaign.architectures
    origin = Training(round=0, cases=1, data_key="", steps=1, seed=0, created="2026-01-01T00:00:00+00:00")
    names = campaign.load_organs().names
    header = CheckpointHeader(architecture=architecture, organs=names, spacing=(1, 1, 1), window_hu=(-175, 250), provenance=origin)
    torch.manual_seed(0)
    weights = architecture.build(len(names)).state_dict()
    for r in rounds:
        save_checkpoint(campaign.open_workspace().checkpoint(r, architecture.architecture), header, weights)


def annotate(workspace: Workspace, case: Case, label: np.ndarray, organs: tuple[str, ...]) -> None:
    path = workspace.annotation(0, case.case_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(label, np.eye(4)))
    entries = tuple(OrganProvenance(organ=name, source="revised", round=0, users=("ada",)) for name in organs)
    provenance = Provenance(case_id=case.case_id, round=0, organs=entries)
    seal(path.parent, workspace.provenance(0, case.case_id).name, provenance.model_dump_json())


@pytest.fixture
def played(tmp_path: Path) -> tuple[Campaign, list[Case]]:
    """A pool of two cases, revised in round 0, and a holdout; predicted by networks that know nothing."""
    campaign = cube_campaign(tmp_path, *HU, attention=CALIBRATED, annotation={"annotator": {"annotator": "oracle"}})
    untrained(campaign, 0, 1)
    cases = [write_cubes(campaign, name, "pool", seed=k) for k, name in enumerate(("a", "b"))]
    cases.append(write_cubes(campaign, "kept", "holdout", seed=9))
    write_lines(campaign.open_workspace().manifest, cases)
    predict_cases(campaign, 0, cases)
    truth = read_labels(campaign.open_workspace().truth("kept"))
    for case in cases[:2]:
        annotate(campaign.open_workspace(), case, truth, tuple(HU))
    return campaign, cases


def by_hand(workspace: Workspace, *, bias: float) -> None:
    """A detector that gives every candidate of the first organ the same probability; the second organ has none."""
    features = len(FEATURES) + 2
    scorer = Logistic(means=(0.0,) * features, scales=(1.0,) * features, weights=(0.0,) * features, bias=bias)
    own = OrganDetector(organ="liver", scorer=scorer, threshold=0.5, scope="organ")
    learned = AttentionDetector(round=0, alpha=0.1, cohort={}, anatomy=AnatomyRules(), organs=(own, OrganDetector(organ="spleen")))
    write_atomically(workspace.attention_detector(0), learned.model_dump_json())


def test_a_first_round_has_physical_attention_and_keeps_its_candidates(played: tuple[Campaign, list[Case]], tmp_path: Path) -> None:
    campaign, cases = played
    workspace = campaign.open_workspace()
    assert detector_of(campaign, 0).learned is None
    physical = campaign.model_copy(
        update={"attention": campaign.attention.fallback, "workspace": str(tmp_path / "physical")}  # type: ignore[union-attr]
    )
    untrained(physical, 0)
    write_lines(physical.open_workspace().manifest, cases)
    predict_cases(physical, 0, cases[:1])
    for organ in HU:
        calibrated, plain = (w.attention(0, "a", organ) for w in (workspace, physical.open_workspace()))
        np.testing.assert_array_equal(read_labels(calibrated), read_labels(plain))
    found = from_bytes(workspace.candidates(0, "a").read_bytes())
    assert tuple(found) == tuple(HU)
    assert all(own.shape == SHAPE for own in found.values())
    assert workspace.case_scores(0, "a").criteria == ("predictive_entropy", "disagreement", "overlap", "anatomy")


def test_merging_learns_and_says_how_many_cases_are_missing(
    played: tuple[Campaign, list[Case]], caplog: pytest.LogCaptureFixture
) -> None:
    campaign, _ = played
    with caplog.at_level(logging.INFO):
        merge_step(campaign, 0)
    assert "liver: 2 revised cases with an error, 9 needed for alpha 0.1; the physical thresholds stay in force" in caplog.text
    found = detector_of(campaign, 1)
    assert found.learned is not None
    assert found.learned.of("liver") is None
    assert detector_of(campaign, 0).learned is None  # a round does not learn from itself


def test_another_detector_makes_the_next_rounds_attention_anew(played: tuple[Campaign, list[Case]]) -> None:
    campaign, cases = played
    workspace, kept = campaign.open_workspace(), cases[2]
    by_hand(workspace, bias=3.0)
    predict_cases(campaign, 1, [kept])
    assert plan_predictions(campaign, 1, [kept]).todo == ()
    everything = read_labels(workspace.attention(1, "kept", "liver"))
    candidates = from_bytes(workspace.candidates(1, "kept").read_bytes())["liver"]
    places = candidates.places_N[candidates.source_C[candidates.member_N] != 3]  # without the cohort's
    assert sorted(np.flatnonzero(everything)) == sorted(set(places.tolist()))
    by_hand(workspace, bias=-3.0)
    assert plan_predictions(campaign, 1, [kept]).todo == (kept,)
    assert plan_predictions(campaign, 0, cases).todo == ()  # the round it was learned in stays
    predict_cases(campaign, 1, [kept])
    assert not read_labels(workspace.attention(1, "kept", "liver")).any()
    np.testing.assert_array_equal(
        read_labels(workspace.attention(1, "kept", "spleen")), read_labels(workspace.attention(0, "kept", "spleen"))
    )


def test_evaluation_looks_with_what_was_revised_before(played: tuple[Campaign, list[Case]]) -> None:
    """Of a campaign with physical attention: candidates of the revised cases are made beside it, and learned from."""
    campaign, cases = played
    physical = campaign.model_copy(update={"attention": CalibratedAttention().fallback})
    predict_cases(physical, 1, cases[2:])
    report = attention_step(physical, 1, mode="calibrated")
    assert (report.mode, report.cases) == ("calibrated", 1)
    other = Workspace(physical.open_workspace().other_attention("calibrated"))
    assert other.predicted(0) == {"a", "b"}
    assert AttentionDetector.model_validate_json(other.attention_detector(0).read_bytes()).organs[0].cases == 2
    assert not physical.open_workspace().attention_detector(0).exists()


def test_cleared_candidates_are_nothing_to_learn_from(played: tuple[Campaign, list[Case]]) -> None:
    campaign, _ = played
    for case_id in ("a", "b"):
        campaign.open_workspace().candidates(0, case_id).unlink()
    assert isinstance(campaign.attention, CalibratedAttention)
    learned = learn_attention_step(campaign, 0, mode=campaign.attention)
    assert [own.cases for own in learned.organs] == [0, 0]
