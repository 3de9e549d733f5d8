"""What a training run is: how long, how fast, on what patches."""

import math

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from atlas_ray.schema import Schema
from atlas_ray.segmentation.precision import Precision


class Pace(Schema):
    """What may differ between architectures; None keeps the section's value."""

    steps: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    batch: PositiveInt | None = None
    precision: Precision | None = None


class Schedule(Schema):
    """Optimizer and schedule of one training. Defaults follow the authors' train.py (paper-algorithm a.7).

    Args:
        steps: optimizer steps.
        batch: patches per step and worker.
        learning_rate: peak, reached after `warmup_steps`, then a half cosine down to 1 % of it.
        weight_decay: of AdamW.
        gradient_clip: largest norm of the gradient.
        precision: of the forward pass; weights and losses stay in float32. "auto" is bfloat16 where the machine has units for it.
            On a CPU train Swin UNETR in float32: torch 2.13's bfloat16 gradient of a convolution over 2x2x1 voxels depends on
            what was in memory before (measured; up to 1e30).
        seed: start weights, patches and augmentation follow from it.
        checkpoint_every: steps between checkpoints (what a killed worker loses at most).
        log_every: steps between logged losses.
        validate_every: steps between validations; 0 validates at the end only.
        validation_cases: holdout cases watched during training; nothing is selected by them.
        per_architecture: architecture -> what differs for it.
    """

    steps: PositiveInt = 100_000
    batch: PositiveInt = 2
    learning_rate: PositiveFloat = 1e-4
    weight_decay: float = 1e-5
    warmup_steps: NonNegativeInt = 100
    gradient_clip: PositiveFloat = 12.0
    precision: Precision = "auto"
    seed: int = 0
    checkpoint_every: PositiveInt = 500
    log_every: PositiveInt = 20
    validate_every: NonNegativeInt = 0
    validation_cases: NonNegativeInt = 2
    per_architecture: dict[str, Pace] = Field(default_factory=dict)

    def of(self, architecture: str) -> "Schedule":
        """The schedule of one architecture."""
        pace = self.per_architecture.get(architecture)
        return self if pace is None else self.model_copy(update=pace.model_dump(exclude_none=True))

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step, 0-based."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
