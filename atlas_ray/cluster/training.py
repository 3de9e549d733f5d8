"""Training and fine-tuning one architecture with Ray Train, or in this process; the loop itself is `cluster.loop`."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atlas_ray.cluster.reporting import FolderReporter, RayReporter
from atlas_ray.cluster.session import runs_in_process
from atlas_ray.data.patches import PatchSampling
from atlas_ray.data.preprocess import Preprocessing
from atlas_ray.exceptions import AtlasError
from atlas_ray.organs import Organs
from atlas_ray.records import LabelSource
from atlas_ray.schema import Schema
from atlas_ray.segmentation.architectures import Architecture
from atlas_ray.segmentation.checkpoints import Provenance
from atlas_ray.segmentation.inference import Inference
from atlas_ray.segmentation.pseudo_labels import PseudoLabels
from atlas_ray.segmentation.schedule import Schedule
from atlas_ray.storage import for_arrow, place

log = logging.getLogger(__name__)


class TrainingCase(Schema):
    """A cache entry and what is known of it.

    Args:
        sources: organ -> who says what its label is; of an organ that is not here nothing is known.
        is_annotated: whether a person has annotated any of it in this campaign.
    """

    case_id: str
    folder: str
    sources: dict[str, LabelSource]
    is_annotated: bool = False


class TrainingPlan(Schema):
    """Everything a training worker needs; small, so that it travels as the loop's config.

    Args:
        name: unique per round, architecture and data; Ray Train resumes a run of the same name.
        output: where the finished checkpoint goes; its presence means the training is done.
        last_output: where the last weights go when the best ones are the checkpoint.
        parent: checkpoint to fine-tune, None to start from random weights.
        storage: Ray Train's folder, shared by all nodes.
        tracking_uri, run_id: of the MLflow run to log to.
    """

    name: str
    output: str
    last_output: str | None = None
    parent: str | None
    storage: str
    organs: Organs
    architecture: Architecture
    schedule: Schedule
    patches: PatchSampling
    preprocessing: Preprocessing
    inference: Inference
    pseudo_labels: PseudoLabels
    cases: tuple[TrainingCase, ...]
    validation: tuple[TrainingCase, ...] = ()
    provenance: Provenance
    tracking_uri: str = ""
    run_id: str | None = None


class Resources(Schema):
    """Workers of one training."""

    workers: int = 1
    cpus_per_worker: int = 1
    use_gpu: bool = False
    max_failures: int = 3


def train(plan: TrainingPlan, resources: Resources) -> Path:
    """Run one training to its end and return the checkpoint's path; returns at once where the checkpoint exists.

    Raises:
        AtlasError: no training case, or the workers failed more often than allowed.
    """
    output = place(plan.output)
    if output.exists():
        return output
    if not plan.cases:
        raise AtlasError(f"training {plan.name}: no case has a label; ingest a dataset with split: train")
    with _told(progress_file(plan)):
        if runs_in_process():
            _train_here(plan, resources)
        else:
            _train_on_ray(plan, resources)
    if not output.exists():
        raise AtlasError(f"training {plan.name} ended without writing {output}")
    return output


def _train_here(plan: TrainingPlan, resources: Resources) -> None:
    import torch

    from atlas_ray.cluster.loop import TrainingLoop

    device = torch.device("cuda" if resources.use_gpu else "cpu")
    with torch.random.fork_rng():  # the loop seeds the whole process
        TrainingLoop(plan, FolderReporter(place(plan.storage) / plan.name, device)).run()


def _train_on_ray(plan: TrainingPlan, resources: Resources) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    file_system, folder = for_arrow(plan.storage)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"plan": plan.model_dump(mode="json"), "threads": resources.cpus_per_worker},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=plan.name,
            storage_path=folder,
            storage_filesystem=file_system,
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise AtlasError(f"training {plan.name} failed: {error}") from error


def progress_file(plan: TrainingPlan) -> Path:
    """Where the first worker writes what it is doing, line by line; the driver reads it aloud."""
    return place(plan.storage) / plan.name / "progress.log"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Log the lines that appear in a file while the block runs. Ray's own forwarding of worker output drowns them."""
    ended = threading.Event()
    told = len(_lines(path))

    def tell() -> None:
        nonlocal told
        last_look = False
        while not last_look:
            last_look = ended.wait(1.0)
            new = _lines(path)[told:]
            for line in new:
                log.info("%s", line)
            told += len(new)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def train_worker(config: dict[str, Any]) -> None:
    """What Ray Train runs in every worker."""
    import torch

    from atlas_ray.cluster.loop import TrainingLoop

    reporter = RayReporter()
    if reporter.device.type == "cpu":
        torch.set_num_threads(config["threads"])
    TrainingLoop(TrainingPlan.model_validate(config["plan"]), reporter).run()
