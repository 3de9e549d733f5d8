"""The training loop: steps, validation, checkpoints, exact resume.

Patches, augmentation and learning rate are functions of the step, so a run that lost its workers continues with the numbers it
would have had. Axis letters: B batch, K organs, X Y Z.
"""

import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atlas_ray.cluster.reporting import Reporter, State
from atlas_ray.cluster.tracking import Run
from atlas_ray.cluster.training import TrainingCase, TrainingPlan, progress_file
from atlas_ray.data.patches import Batch, CachedCase, Deck, draw_batch, open_cached
from atlas_ray.exceptions import AtlasError
from atlas_ray.segmentation.architectures import start_from_prior
from atlas_ray.segmentation.averaging import Average, blended
from atlas_ray.segmentation.checkpoints import CheckpointHeader, load_into, read_checkpoint, save_checkpoint
from atlas_ray.segmentation.inference import Inference, normalize, predict_ensemble
from atlas_ray.segmentation.losses import supervised_loss
from atlas_ray.segmentation.metrics import mean_organ_dice, mean_over_organs, organ_dice
from atlas_ray.segmentation.precision import uses_bfloat16
from atlas_ray.segmentation.pseudo_labels import label_map
from atlas_ray.storage import append_line, place

MAX_REFUSED_STEPS = 20
Weights = dict[str, Tensor]


class TrainingLoop:
    """One worker's state between steps.

    Args:
        plan: what to train on what.
        reporter: where this worker runs.
    """

    def __init__(self, plan: TrainingPlan, reporter: Reporter) -> None:
        self.plan, self.schedule, self.reporter = plan, plan.schedule, reporter
        self.rank, self.device = reporter.rank, reporter.device
        torch.manual_seed(plan.schedule.seed)  # every worker starts from the same weights
        self.parent: Weights | None = None  # to be blended with at the end
        self.bare = self._start_network().to(self.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.network = reporter.prepare(self.bare)
        self.average = Average(self.bare, self.schedule.ema_decay) if self.schedule.ema_decay is not None else None
        self.optimizer = torch.optim.AdamW(
            [p for p in self.bare.parameters() if p.requires_grad],
            lr=self.schedule.learning_rate,
            weight_decay=self.schedule.weight_decay,
        )
        self.bfloat16 = uses_bfloat16(self.schedule.precision, self.device)
        self.refused_in_a_row, self.refused = 0, 0  # steps
        self.best: Weights | None = None
        self.best_dice, self.without_gain = -1.0, 0  # of the best validation; validations since
        self.deck = Deck([self._open(case) for case in plan.cases])
        self.run_log = Run(plan.tracking_uri, plan.run_id) if self.rank == 0 and plan.run_id else None

    def run(self) -> None:
        """Train from the last kept state to the end, and write the checkpoint."""
        first = self._resume()
        losses: list[float] = []
        began = time.monotonic()
        for step, batch in self._batches(first):
            losses.append(self._step(step, batch))
            done = step + 1
            if done % self.schedule.log_every == 0 or done == self.schedule.steps:
                self._log(done, losses, (time.monotonic() - began) / (done - first))
                losses.clear()
            if self._is_due(self.schedule.validate_every, done):
                self._validate(done)
                if self._gives_up(done):
                    break
            if self._is_due(self.schedule.checkpoint_every, done):
                self.reporter.keep(done, lambda done=done: self._state(done))  # type: ignore[misc]
        else:
            self._validate(self.schedule.steps)
        self._finish()

    def _start_network(self) -> nn.Module:
        plan = self.plan
        network = plan.architecture.build(len(plan.organs))
        start_from_prior(network, plan.architecture)
        if plan.parent is not None:
            header, state, _ = read_checkpoint(place(plan.parent))
            report = load_into(network, plan.architecture, plan.organs.names, header, state)
            self._tell(f"starts from {place(plan.parent).name} of round {header.provenance.round}: {report}")
            if self.schedule.parent_share and not (report.fresh_organs or report.missing or report.mismatched):
                self.parent = {key: tensor.clone().to(self.device) for key, tensor in network.state_dict().items()}
        return network

    def _open(self, case: TrainingCase) -> CachedCase:
        names, trust = self.plan.organs.names, self.schedule.trust
        weights = [trust.of(case.sources[name]) if name in case.sources else 0.0 for name in names]
        revised = [case.sources.get(name) == "revised" for name in names]
        return open_cached(
            place(case.folder), np.array(weights, np.float32), revised=np.array(revised), is_annotated=case.is_annotated
        )

    def _is_due(self, every: int, done: int) -> bool:
        return bool(every) and done % every == 0 and done < self.schedule.steps

    def _batches(self, first: int) -> Iterator[tuple[int, Batch]]:
        """Batches from step `first` on, the next one drawn while this one is used."""

        def draw(step: int) -> Batch:
            return draw_batch(
                self.deck,
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

    # --- a step ---

    def _step(self, step: int, batch: Batch) -> float:
        images = torch.from_numpy(normalize(batch.hu_B1XYZ, self.plan.preprocessing.window_hu)).to(self.device)
        images = images.contiguous(memory_format=torch.channels_last_3d)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate_at(step)
        self.network.train()
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            logits = self.network(images)
        loss = self._loss(logits if isinstance(logits, list) else [logits], batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.bare.parameters(), self.schedule.gradient_clip)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.refused_in_a_row = 0
            if self.average is not None:
                self.average.update(self.bare, step)
        else:
            self._refuse(step)
        return float(loss.detach())

    def _loss(self, outputs: list[Tensor], batch: Batch) -> Tensor:
        targets, trust, revised, focus = (
            torch.from_numpy(np.ascontiguousarray(part)).to(self.device)
            for part in (batch.targets_BKXYZ, batch.trust_BK, batch.revised_BK, batch.focus_BXYZ)
        )
        gain_BK = 1 + (self.schedule.trust.in_attention - 1) * revised.float()
        return supervised_loss(outputs, targets, trust, focus_BXYZ=focus, gain_BK=gain_BK)

    def _refuse(self, step: int) -> None:
        """Leave out a step whose gradient is infinite or NaN: one such update would spoil every weight for good."""
        self.refused_in_a_row += 1
        self.refused += 1
        self._tell(f"step {step}: gradient not finite, step left out ({self.refused} so far)")
        if self.refused_in_a_row >= MAX_REFUSED_STEPS:
            raise AtlasError(
                f"{self.refused_in_a_row} steps in a row had no finite gradient; lower learning_rate, or use precision: float32"
            )

    # --- what is told ---

    def _log(self, done: int, losses: list[float], seconds_per_step: float) -> None:
        if self.rank:
            return
        loss = float(np.mean(losses))
        left = (self.schedule.steps - done) * seconds_per_step
        self._tell(f"step {done}/{self.schedule.steps}  loss {loss:.3f}  {seconds_per_step:.2f} s/step  {left:.0f} s left")
        if self.run_log is not None:
            self.run_log.metrics(
                {
                    "train/loss": loss,
                    "train/seconds_per_step": seconds_per_step,
                    "train/learning_rate": self.schedule.learning_rate_at(done - 1),
                    "train/refused_steps": self.refused,
                },
                step=done,
            )

    def _tell(self, line: str) -> None:
        """A line of progress; only the first worker speaks."""
        if self.rank:
            return
        append_line(progress_file(self.plan), f"{self.plan.architecture.architecture} {line}")

    # --- validation ---

    def _validate(self, done: int) -> None:
        """Sliding windows over the validation cases, with the weights that would be saved."""
        if self.rank or not self.plan.validation:
            return
        network = self._saved_network().eval()
        settings = self.plan.inference.model_copy(update={"coarse": None, "compile": False})  # nobody to look first, few cases
        member = settings.prepare(network, device=self.device)
        dices = [self._case_dice(case, member, settings) for case in self.plan.validation]
        rows = mean_organ_dice(dices, self.plan.organs)
        mean = mean_over_organs(rows)
        self._tell(f"step {done}  validation Dice {mean or 0.0:.3f}")
        self._remember(mean or 0.0)
        if self.run_log is not None:
            self.run_log.metrics({"validation/mean": mean, **{f"validation/{r.organ}": r.dice for r in rows}}, step=done)

    def _case_dice(self, case: TrainingCase, member: Callable[..., Any], settings: Inference) -> dict[str, float | None]:
        """Dice at the networks' spacing of the organs this case has ground truth for."""
        cached = self._open(case)
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
        return {name: value for name, value in scores.items() if name in case.sources}

    def _remember(self, dice: float) -> None:
        """Keep the weights of the best validation, where the schedule selects by it."""
        if dice > self.best_dice:
            self.best_dice, self.without_gain = dice, 0
            if self.schedule.keep == "best":
                self.best = {key: tensor.clone() for key, tensor in self._weights().items()}
        else:
            self.without_gain += 1

    def _gives_up(self, done: int) -> bool:
        patience = self.schedule.patience
        if patience is None or not self.reporter.agree(self.without_gain >= patience):
            return False
        self._tell(f"step {done}: {patience} validations without a better Dice than {self.best_dice:.3f}, training ends")
        return True

    # --- states and checkpoints ---

    def _weights(self) -> Weights:
        """What is validated and saved."""
        state: Weights = self._trained_network().state_dict()
        return state if self.parent is None else blended(state, self.parent, self.schedule.parent_share)

    def _saved_network(self) -> nn.Module:
        """A network with these weights."""
        if self.parent is None:
            return self._trained_network()
        network = copy.deepcopy(self._trained_network())
        network.load_state_dict(self._weights())
        return network

    def _trained_network(self) -> nn.Module:
        return self.bare if self.average is None else self.average.network

    def _state(self, done: int) -> State:
        """Everything the next step depends on that is not a function of its number."""
        return {
            "step": done,
            "network": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.network.state_dict(),
            "refused": [self.refused_in_a_row, self.refused],
            "best": self.best,
            "selection": [self.best_dice, self.without_gain],
        }

    def _resume(self) -> int:
        """Load the last kept state, if any; the first step still to do."""
        state = self.reporter.latest()
        if state is None:
            return 0
        self.bare.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.network.load_state_dict(state["average"])
        self.refused_in_a_row, self.refused = state["refused"]
        self.best, (self.best_dice, self.without_gain) = state["best"], state["selection"]
        self._tell(f"resumes at step {state['step']}")
        return int(state["step"])

    def _finish(self) -> None:
        if self.rank:
            return
        if self.best is not None and self.plan.last_output is not None:
            self._save(place(self.plan.last_output), self._weights())
        self._save(place(self.plan.output), self.best or self._weights())

    def _save(self, path: Path, weights: Weights) -> None:
        header = CheckpointHeader(
            architecture=self.plan.architecture,
            organs=self.plan.organs.names,
            spacing=self.plan.preprocessing.spacing,
            window_hu=self.plan.preprocessing.window_hu,
            provenance=self.plan.provenance,
        )
        save_checkpoint(path, header, {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()})
