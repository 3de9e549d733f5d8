"""Training on real Ray Train: two gloo workers, partial labels, and a run that lost its workers ends with the very same weights.

Four steps of a tiny U-Net on two invented cases; each run costs its workers' start, so two runs answer all questions.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_plans import cache, make_plan

from atlas_ray.cluster import training
from atlas_ray.cluster.tracking import step_run
from atlas_ray.cluster.training import Resources, TrainingPlan, progress_file, train
from atlas_ray.config import Campaign
from atlas_ray.exceptions import AtlasError
from atlas_ray.segmentation.architectures import UNet, start_from_prior
from atlas_ray.segmentation.checkpoints import read_checkpoint

pytestmark = [
    # Ray Data 2.60 sets its own deprecated options whenever it makes a context
    pytest.mark.filterwarnings("ignore:`use_[a-z0-9_]+` is deprecated:DeprecationWarning"),
]

TWO_WORKERS = Resources(workers=2, max_failures=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    cache(folder / "a", "liver")
    cache(folder / "b", "spleen")
    return folder


@pytest.fixture(scope="module")
def campaign(root: Path) -> Campaign:
    """Only for tracking: training itself needs no more than its plan."""
    return Campaign.model_validate(
        {
            "name": "small",
            "workspace": str(root / "workspace"),
            "datasets": [{"source": "phantom", "name": "a", "count": 1, "split": "train"}],
            "architectures": [{"architecture": "unet", "features": [4, 8]}],
            "patches": {"patch": [16, 16, 16]},
            "inference": {"window": [16, 16, 16]},
        }
    )


@pytest.fixture(scope="module")
def trained(ray_session: None, root: Path, campaign: Campaign) -> TrainingPlan:
    """Two workers, undisturbed, tracked."""
    with step_run(campaign, 0, "train-unet", kind="train") as run:
        plan = make_plan(root, "undisturbed", tracking_uri=campaign.tracking_uri, run_id=run.run_id)
        train(plan, TWO_WORKERS)
    return plan


def weights(plan: TrainingPlan) -> dict[str, torch.Tensor]:
    return read_checkpoint(Path(plan.output))[1]


def start_weights(plan: TrainingPlan) -> dict[str, torch.Tensor]:
    torch.manual_seed(plan.schedule.seed)
    network = plan.architecture.build(len(plan.organs))
    start_from_prior(network, plan.architecture)
    return network.state_dict()


# --- one training ---------------------------------------------------------------------------------------------------


def test_the_checkpoint_says_what_it_is_and_where_it_comes_from(trained: TrainingPlan) -> None:
    header, state, _ = read_checkpoint(Path(trained.output))
    assert header.organs == ("liver", "spleen", "thymus")
    assert header.architecture == UNet(features=(4, 8), residual_units=1)
    assert header.spacing == (2, 2, 2)
    assert header.provenance == trained.provenance
    assert set(state) == set(start_weights(trained))
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_the_networks_learned_something(trained: TrainingPlan) -> None:
    start, end = start_weights(trained), weights(trained)
    moved = [name for name in start if not torch.equal(start[name], end[name])]
    assert any(name.startswith("body.") for name in moved)


def test_an_organ_nobody_labels_keeps_its_output_exactly_as_it_started(trained: TrainingPlan) -> None:
    """Partial labels: no gradient at all, not a small one; without weight decay nothing else moves a weight either."""
    start, end = start_weights(trained), weights(trained)
    for name in ("head.weight", "head.bias"):
        assert torch.equal(end[name][2], start[name][2])
        assert not torch.equal(end[name][0], start[name][0])
        assert not torch.equal(end[name][1], start[name][1])


def test_losses_and_validation_dice_are_tracked_in_the_run_the_driver_made(trained: TrainingPlan) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=trained.tracking_uri)
    run = client.get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(trained.run_id, "train/loss")] == [2, 4, 6]
    assert 0 < run.data.metrics["train/loss"] < 5
    assert run.data.metrics["train/learning_rate"] < 0.01
    assert 0 <= run.data.metrics["validation/liver"] <= 1
    assert "validation/spleen" not in run.data.metrics  # case a has no ground truth for it
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert len(client.search_runs(experiments, "tags.kind = 'train'")) == 1


def test_progress_is_told_by_one_worker_only(trained: TrainingPlan) -> None:
    lines = progress_file(trained).read_text().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["unet step 2/6", "unet step 4/6", "unet step 6/6", "unet step 6"]
    assert "validation Dice" in lines[-1]


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_whose_workers_die_ends_with_the_weights_it_would_have_had(
    trained: TrainingPlan, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second worker dies in step 5, once, after the checkpoint of step 4 has reached Ray's storage."""
    plan = make_plan(root, "disturbed")
    died = root / "died"
    kept = root / "train" / "disturbed" / "checkpoint_manager_snapshot.json"  # Ray writes it when it has taken a checkpoint
    undisturbed_worker = training.train_worker

    def worker_that_dies_once(config: dict[str, Any]) -> None:  # sent by value; runs in the worker's process
        import os
        import signal
        import time

        from atlas_ray.cluster.loop import TrainingLoop

        step = TrainingLoop._step

        def fatal(loop: Any, number: int, batch: Any) -> float:
            if number == 5 and loop.rank == 1 and not died.exists():
                until = time.monotonic() + 300
                while not (kept.exists() and '"step":4' in kept.read_text()) and time.monotonic() < until:
                    time.sleep(0.2)
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return step(loop, number, batch)

        TrainingLoop._step = fatal  # type: ignore[method-assign]
        undisturbed_worker(config)

    monkeypatch.setattr(training, "train_worker", worker_that_dies_once)
    train(plan, TWO_WORKERS)
    assert died.exists()
    assert "unet resumes at step 4" in progress_file(plan).read_text().splitlines()
    expected, got = weights(trained), weights(plan)
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


# --- without Ray ----------------------------------------------------------------------------------------------------


def test_a_finished_training_returns_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path, "done")
    Path(plan.output).write_bytes(b"weights")
    monkeypatch.setitem(sys.modules, "ray.train", None)  # importing it now fails
    assert train(plan, TWO_WORKERS) == tmp_path / "done.pt"
    assert (tmp_path / "done.pt").read_bytes() == b"weights"


def test_without_a_labeled_case_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match=r"training empty: no case has a label; ingest a dataset with split: train"):
        train(make_plan(tmp_path, "empty", cases=()), TWO_WORKERS)
