"""Training and fine-tuning one architecture with Ray Train: data-parallel workers, checkpoints, exact resume.

Patches, augmentation and learning rate are functions of the step, so a run that lost its workers continues with the numbers it
would have had. Axis letters: B batch, K organs, X Y Z.
"""

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from atlas_ray.cluster.tracking import Run
from atlas_ray.data.patches import CachedCase, PatchSampling, draw_batch, open_cached
from atlas_ray.data.preprocess import Preprocessing
from atlas_ray.exceptions import AtlasError
from atlas_ray.organs import Organs
from atlas_ray.schema import Schema
from atlas_ray.segmentation.architectures import Architecture, start_from_prior
from atlas_ray.segmentation.checkpoints import CheckpointHeader, Provenance, load_into, read_checkpoint, save_checkpoint
from atlas_ray.segmentation.inference import Inference, normalize, predict_ensemble
from atlas_ray.segmentation.losses import partial_label_loss
from atlas_ray.segmentation.metrics import mean_organ_dice, mean_over_organs, organ_dice
from atlas_ray.segmentation.precision import uses_bfloat16
from atlas_ray.segmentation.pseudo_labels import PseudoLabels, label_map
from atlas_ray.segmentation.schedule import Schedule

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)
MAX_REFUSED_STEPS = 20


class TrainingCase(Schema):
    """A cache entry and what is known of it."""

    case_id: str
    folder: str
    known_organs: tuple[str, ...]


class TrainingPlan(Schema):
    """Everything a training worker needs; small, so that it travels as the loop's config.

    Args:
        name: unique per round, architecture and data; Ray Train resumes a run of the same name.
        output: where the finished checkpoint goes; its presence means the training is done.
        parent: checkpoint to fine-tune, None to start from random weights.
        storage: Ray Train's folder, shared by all nodes.
        tracking_uri, run_id: of the MLflow run to log to.
    """

    name: str
    output: str
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
    output = Path(plan.output)
    if output.exists():
        return output
    if not plan.cases:
        raise AtlasError(f"training {plan.name}: no case has a label; ingest a dataset with split: train")
    import ray.train
    from ray.train.torch import TorchTrainer

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
            storage_path=plan.storage,
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        with _told(progress_file(plan)):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise AtlasError(f"training {plan.name} failed: {error}") from error
    if not output.exists():
        raise AtlasError(f"training {plan.name} ended without writing {output}")
    return output


def progress_file(plan: TrainingPlan) -> Path:
    """Where the first worker writes what it is doing, line by line; the driver reads it aloud."""
    return Path(plan.storage) / plan.name / "progress.log"


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Log the lines that appear in a file while the block runs. Ray's own forwarding of worker output drowns them."""
    ended = threading.Event()
    start = path.stat().st_size if path.exists() else 0

    def tell() -> None:
        position, last_look = start, False
        while not last_look:
            last_look = ended.wait(1.0)
            if path.exists():
                with path.open() as file:
                    file.seek(position)
                    for line in file.read().splitlines():
                        log.info("%s", line)
                    position = file.tell()

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def train_worker(config: dict[str, Any]) -> None:
    """The loop of one worker, run by Ray Train."""
    import torch
    from ray.train.torch import get_device, prepare_model

    plan = TrainingPlan.model_validate(config["plan"])
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(config["threads"])
    torch.manual_seed(plan.schedule.seed)  # every worker starts from the same weights
    bare = _start_network(plan).to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    network = prepare_model(bare)
    optimizer = torch.optim.AdamW(
        [p for p in bare.parameters() if p.requires_grad], lr=plan.schedule.learning_rate, weight_decay=plan.schedule.weight_decay
    )
    _Loop(plan, bare, network, optimizer, device).run()


def _start_network(plan: TrainingPlan) -> "nn.Module":
    network = plan.architecture.build(len(plan.organs))
    start_from_prior(network, plan.architecture)
    if plan.parent is not None:
        header, state, _ = read_checkpoint(Path(plan.parent))
        report = load_into(network, plan.architecture, plan.organs.names, header, state)
        _tell(plan, f"starts from {Path(plan.parent).name} of round {plan.provenance.round - 1}: {report}")
    return network


class _Loop:
    """One worker's state between steps."""

    def __init__(
        self,
        plan: TrainingPlan,
        bare: "nn.Module",
        network: "nn.Module",
        optimizer: "torch.optim.Optimizer",
        device: "torch.device",
    ) -> None:
        import ray.train

        context = ray.train.get_context()
        self.plan, self.schedule = plan, plan.schedule
        self.bare, self.network, self.optimizer, self.device = bare, network, optimizer, device
        self.bfloat16 = uses_bfloat16(plan.schedule.precision, device)
        self.refused = 0  # steps in a row
        self.rank = context.get_world_rank()
        self.cases = [_open(case, plan.organs) for case in plan.cases]
        self.run_log = Run(plan.tracking_uri, plan.run_id) if self.rank == 0 and plan.run_id else None

    def run(self) -> None:
        first = self._resume()
        losses: list[float] = []
        began = time.monotonic()
        for step, batch in self._batches(first):
            losses.append(self._step(step, batch))
            done = step + 1
            if done % self.schedule.log_every == 0 or done == self.schedule.steps:
                self._log(done, losses, (time.monotonic() - began) / (done - first))
                losses.clear()
            if self.schedule.validate_every and done % self.schedule.validate_every == 0 and done < self.schedule.steps:
                self._validate(done)
            if done % self.schedule.checkpoint_every == 0 and done < self.schedule.steps:
                self._checkpoint(done)
        self._validate(self.schedule.steps)
        self._finish()

    def _batches(self, first: int) -> Iterator[tuple[int, Any]]:
        """Batches from step `first` on, the next one drawn while this one is used."""

        def draw(step: int) -> Any:
            return draw_batch(
                self.cases,
                self.plan.organs,
                self.plan.patches,
                size=self.schedule.batch,
                seed=self.schedule.seed,
                step=step,
                worker=self.rank,
            )

        with ThreadPoolExecutor(1) as pool:
            upcoming = pool.submit(draw, first)
            for step in range(first, self.schedule.steps):
                batch = upcoming.result()
                upcoming = pool.submit(draw, min(step + 1, self.schedule.steps - 1))
                yield step, batch

    def _step(self, step: int, batch: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]) -> float:
        import torch

        hu, targets, known = batch
        images = torch.from_numpy(normalize(hu, self.plan.preprocessing.window_hu)).to(self.device)
        images = images.contiguous(memory_format=torch.channels_last_3d)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate_at(step)
        self.network.train()
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            logits = self.network(images)
        loss = partial_label_loss(logits, torch.from_numpy(targets).to(self.device), torch.from_numpy(known).to(self.device))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.bare.parameters(), self.schedule.gradient_clip)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.refused = 0
        else:
            self._refuse(step)
        return float(loss.detach())

    def _refuse(self, step: int) -> None:
        """Leave out a step whose gradient is infinite or NaN: one such update would spoil every weight for good."""
        self.refused += 1
        _tell(self.plan, f"step {step}: gradient not finite, step left out")
        if self.refused >= MAX_REFUSED_STEPS:
            raise AtlasError(
                f"{self.refused} steps in a row had no finite gradient; lower learning_rate, or use precision: float32"
            )

    def _log(self, done: int, losses: list[float], seconds_per_step: float) -> None:
        if self.rank:
            return
        loss = float(np.mean(losses))
        left = (self.schedule.steps - done) * seconds_per_step
        _tell(self.plan, f"step {done}/{self.schedule.steps}  loss {loss:.3f}  {seconds_per_step:.2f} s/step  {left:.0f} s left")
        if self.run_log is not None:
            self.run_log.metrics(
                {
                    "train/loss": loss,
                    "train/seconds_per_step": seconds_per_step,
                    "train/learning_rate": self.schedule.learning_rate_at(done - 1),
                },
                step=done,
            )

    def _validate(self, done: int) -> None:
        if self.rank or not self.plan.validation:
            return
        self.bare.eval()
        settings = self.plan.inference.model_copy(update={"coarse": None, "compile": False})  # nobody to look first, few cases
        member = settings.prepare(self.bare, device=self.device)
        dices = [self._case_dice(case, member, settings) for case in self.plan.validation]
        rows = mean_organ_dice(dices, self.plan.organs)
        mean = mean_over_organs(rows)
        _tell(self.plan, f"step {done}  validation Dice {mean or 0.0:.3f}")
        if self.run_log is not None:
            self.run_log.metrics({"validation/mean": mean, **{f"validation/{r.organ}": r.dice for r in rows}}, step=done)

    def _case_dice(self, case: TrainingCase, member: Callable[..., Any], settings: Inference) -> dict[str, float | None]:
        """Dice at the networks' spacing of the organs this case has ground truth for."""
        import torch

        cached = _open(case, self.plan.organs)
        predicted = predict_ensemble(
            {self.plan.architecture.architecture: member},
            cached.image[:],
            settings,
            window_hu=self.plan.preprocessing.window_hu,
            spacing=self.plan.preprocessing.spacing,
            device=self.device,
        )
        probabilities = torch.from_numpy(predicted.bytes_MKXYZ[0]).float() / 255
        prediction = label_map(probabilities, self.plan.organs, self.plan.pseudo_labels.threshold)
        scores = organ_dice(prediction, cached.label[:], self.plan.organs)
        return {name: value for name, value in scores.items() if name in case.known_organs}

    def _resume(self) -> int:
        """Load the last reported state, if any; the first step still to do."""
        import ray.train
        import torch

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt", map_location=self.device, weights_only=True)
        self.bare.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        _tell(self.plan, f"resumes at step {state['step']}")
        return int(state["step"])

    def _checkpoint(self, done: int) -> None:
        """Every worker reports; only the first one has something to save."""
        import ray.train
        import torch

        if self.rank:
            ray.train.report({"step": done})
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(
                {"network": self.bare.state_dict(), "optimizer": self.optimizer.state_dict(), "step": done},
                Path(folder) / "state.pt",
            )
            ray.train.report({"step": done}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _finish(self) -> None:
        if self.rank:
            return
        header = CheckpointHeader(
            architecture=self.plan.architecture,
            organs=self.plan.organs.names,
            spacing=self.plan.preprocessing.spacing,
            window_hu=self.plan.preprocessing.window_hu,
            provenance=self.plan.provenance,
        )
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in self.bare.state_dict().items()}
        save_checkpoint(Path(self.plan.output), header, state)


def _tell(plan: TrainingPlan, line: str) -> None:
    """A line of progress; only the first worker speaks."""
    import ray.train

    if ray.train.get_context().get_world_rank():
        return
    path = progress_file(plan)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(f"{plan.architecture.architecture} {line}\n")


def _open(case: TrainingCase, organs: Organs) -> CachedCase:
    known = np.array([name in case.known_organs for name in organs.names])
    return open_cached(Path(case.folder), known)
