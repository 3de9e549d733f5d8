"""A network that forgot an organ does not go on; the one it came from does, and MLflow says why."""

from typing import Any

import pytest
from cubes import cube_campaign, write, write_cubes

from atlas_ray.annotation.merge import OrganProvenance, Provenance
from atlas_ray.cluster.session import in_process
from atlas_ray.config import Campaign
from atlas_ray.records import Case
from atlas_ray.segmentation.checkpoints import read_checkpoint
from atlas_ray.steps.predict import predict_step
from atlas_ray.steps.promote import Promotions, promote_step
from atlas_ray.steps.train import train_step
from atlas_ray.volume import read_labels
from atlas_ray.workspace import file_sha256, write_atomically, write_lines

pytestmark = [
    # Ray Data 2.60 sets its own deprecated options whenever it makes a context
    pytest.mark.filterwarnings("ignore:`use_[a-z0-9_]+` is deprecated:DeprecationWarning"),
]


def annotate_without_the_spleen(campaign: Campaign, case: Case) -> None:
    """Somebody "revised" the spleen of a case away, in round 0."""
    workspace = campaign.open_workspace()
    write(workspace.annotation(0, case.case_id), read_labels(workspace.label(case.case_id)))  # which holds the liver only
    organs = (
        OrganProvenance(organ="liver", source="original"),
        OrganProvenance(organ="spleen", source="revised", round=0, users=("ada",)),
    )
    record = Provenance(case_id=case.case_id, round=0, organs=organs)
    write_atomically(workspace.provenance(0, case.case_id), record.model_dump_json())


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Campaign:
    """Round 0 is trained and predicted on the holdout; round 1 is fine-tuned on nothing but the case without a spleen."""
    patches = {"patch": [16, 16, 16], "replay": 0.0, "augmentation": {"affine_probability": 0}}
    campaign = cube_campaign(tmp_path_factory.mktemp("gate"), "liver", "spleen", patches=patches)
    both = ("liver", "spleen")
    cases = [write_cubes(campaign, name, "train", seed=seed, labeled=both) for seed, name in enumerate(("t0", "t1"))]
    cases += [write_cubes(campaign, "p", "pool", seed=2, labeled=["liver"]), write_cubes(campaign, "h", "holdout", seed=3)]
    write_lines(campaign.open_workspace().manifest, cases)
    with in_process():
        train_step(campaign, 0)
        annotate_without_the_spleen(campaign, cases[2])
        train_step(campaign, 1)
    return campaign


@pytest.fixture(scope="module")
def gated(campaign: Campaign) -> Promotions:
    with in_process():
        return promote_step(campaign, 1)


def registry(campaign: Campaign) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=campaign.tracking_uri)


def test_what_forgot_an_organ_is_refused(campaign: Campaign, gated: Promotions) -> None:
    (unet,) = gated.architectures
    assert not unet.judgment.promoted
    assert unet.judgment.worst_organ == "spleen"
    assert unet.judgment.worst_drop is not None
    assert unet.judgment.worst_drop > 0.5
    assert unet.judgment.reason.startswith("refused, 0.02 is allowed: of all organs spleen went from 0.")


def test_the_champion_stays_and_the_candidate_is_kept_beside_it(campaign: Campaign, gated: Promotions) -> None:
    workspace, unet = campaign.open_workspace(), gated.architectures[0]
    assert file_sha256(workspace.checkpoint(1, "unet")) == file_sha256(workspace.checkpoint(0, "unet")) == unet.champion
    assert file_sha256(workspace.candidate(1, "unet")) == unet.candidate != unet.champion
    assert unet.champion_round == 0
    assert read_checkpoint(workspace.candidate(1, "unet"))[0].provenance.parent == unet.champion


def test_mlflow_says_who_is_champion_and_why_the_candidate_is_not(campaign: Campaign, gated: Promotions) -> None:
    client, unet = registry(campaign), gated.architectures[0]
    champion, candidate = (client.get_model_version_by_alias("cubes-unet", alias) for alias in ("champion", "candidate"))
    assert (champion.tags["sha256"], champion.tags["round"]) == (unet.champion, "0")
    assert (candidate.tags["sha256"], candidate.tags["round"]) == (unet.candidate, "1")
    assert candidate.tags["gate"] == unet.judgment.reason
    assert candidate.tags["path"] == str(campaign.open_workspace().candidate(1, "unet"))
    experiment = client.get_experiment_by_name("cubes").experiment_id
    (run,) = client.search_runs([experiment], "tags.`atlas_ray.key` = 'round-001/promote'")
    assert run.data.tags["gate.unet"] == unet.judgment.reason


def test_the_next_round_predicts_and_goes_on_with_the_champion(
    campaign: Campaign, gated: Promotions, in_this_process: None
) -> None:
    workspace, champion = campaign.open_workspace(), gated.architectures[0].champion
    predict_step(campaign, 1, splits=("pool", "holdout"))
    assert {n: workspace.case_scores(1, n).checkpoints for n in ("p", "h")} == {key: {"unet": champion} for key in ("p", "h")}
    short = campaign.model_copy(update={"finetuning": campaign.finetuning.model_copy(update={"steps": 2})})
    train_step(short, 2)
    assert read_checkpoint(workspace.checkpoint(2, "unet"))[0].provenance.parent == champion
    promotions = promote_step(short.model_copy(update={"gate": None}), 2)
    assert [one.champion_round for one in promotions.architectures] == [2]
    versions = registry(campaign).search_model_versions("name = 'cubes-unet'")
    assert len(versions) == 3
    assert registry(campaign).get_model_version_by_alias("cubes-unet", "champion").tags["round"] == "2"


def test_asked_again_the_gate_gives_the_same_answer_and_moves_nothing(
    campaign: Campaign, gated: Promotions, in_this_process: None
) -> None:
    workspace = campaign.open_workspace()
    before = workspace.candidate(1, "unet").stat().st_mtime_ns
    assert promote_step(campaign, 1) == gated
    assert workspace.candidate(1, "unet").stat().st_mtime_ns == before


def test_weights_trained_anew_are_judged_anew(campaign: Campaign, gated: Promotions, in_this_process: None) -> None:
    workspace = campaign.open_workspace()
    workspace.checkpoint(1, "unet").unlink()
    other = campaign.model_copy(update={"finetuning": campaign.finetuning.model_copy(update={"steps": 2, "learning_rate": 1e-6})})
    train_step(other, 1)
    (unet,) = promote_step(other, 1).architectures
    assert unet.candidate != gated.architectures[0].candidate
    assert unet.judgment.promoted
    assert file_sha256(workspace.checkpoint(1, "unet")) == unet.champion == unet.candidate
