"""What a training run is: how long, how fast, on what patches."""

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from atlas_ray.records import LabelSource
from atlas_ray.schema import Schema
from atlas_ray.segmentation.precision import Precision


class Pace(Schema):
    """What may differ between architectures; None keeps the section's value."""

    steps: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    batch: PositiveInt | None = None
    precision: Precision | None = None


class Trust(Schema):
    """How much the loss believes a label, by who said it. 0 means nothing is known of the organ.

    The authors weigh all labels alike (paper-algorithm a.7); the order is ours: what a person changed is where the networks were
    wrong, and what nobody has looked at may be.

    Args:
        revised, original, confirmed, pseudo: see annotation.merge.OrganProvenance.
        in_attention: how many times as much a voxel of a revised organ counts where the organ had attention.
    """

    revised: NonNegativeFloat = 2.0
    original: NonNegativeFloat = 1.0
    confirmed: NonNegativeFloat = 0.8
    pseudo: NonNegativeFloat = 0.0
    in_attention: float = Field(default=2.0, ge=1)

    def of(self, source: LabelSource) -> float:
        """Weight of an organ whose label comes from there."""
        return float(getattr(self, source))


class Schedule(Schema):
    """Optimizer and schedule of one training. Defaults follow the authors' train.py (paper-algorithm a.7).

    Args:
        steps: optimizer steps.
        batch: patches per step and worker.
        learning_rate: peak, reached after `warmup_steps`, then a half cosine down to 1 % of it.
        weight_decay: of AdamW.
        gradient_clip: largest norm of the gradient.
        ema_decay: keep an average of the weights, each step's with a share of 1 - ema_decay; the average is validated and saved.
            None saves the weights themselves.
        parent_share: share of the parent's weights in what is validated and saved (`averaging.blended`): gives back part of what
            fine-tuning costs the cases that the parent knew. A network without a parent, or with organs or tensors that its parent
            lacks, is saved as it was trained.
        precision: of the forward pass; weights and losses stay in float32. "auto" is bfloat16 where the machine has units for it.
            On a CPU train Swin UNETR in float32: torch 2.13's bfloat16 gradient of a convolution over 2x2x1 voxels depends on
            what was in memory before (measured; up to 1e30).
        seed: start weights, patches and augmentation follow from it.
        checkpoint_every: steps between checkpoints (what a killed worker loses at most).
        log_every: steps between logged losses.
        validate_every: steps between validations; 0 validates at the end only.
        validation_cases: cases watched during training.
        validate_on: whose cases those are. "holdout": nothing may be selected by them. "train": labeled cases that are left out of
            the training for it, the same ones in every round.
        patience: validations in a row without a better mean Dice after which the training ends; None trains all steps.
        keep: which weights become the checkpoint; with "best" the last ones lie beside it.
        trust: what labels count in the loss.
        per_architecture: architecture -> what differs for it.
    """

    steps: PositiveInt = 100_000
    batch: PositiveInt = 2
    learning_rate: PositiveFloat = 1e-4
    weight_decay: float = 1e-5
    warmup_steps: NonNegativeInt = 100
    gradient_clip: PositiveFloat = 12.0
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    parent_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Precision = "auto"
    seed: int = 0
    checkpoint_every: PositiveInt = 500
    log_every: PositiveInt = 20
    validate_every: NonNegativeInt = 0
    validation_cases: NonNegativeInt = 2
    validate_on: Literal["holdout", "train"] = "holdout"
    patience: PositiveInt | None = None
    keep: Literal["last", "best"] = "last"
    trust: Trust = Trust()
    per_architecture: dict[str, Pace] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _selects_fairly(self) -> "Schedule":
        if self.patience is None and self.keep == "last":
            return self
        if self.validate_on != "train" or not self.validate_every or not self.validation_cases:
            raise ValueError(
                "patience and keep: best select weights by validation, which needs validate_every, validation_cases and "
                "validate_on: train; selected by the holdout they would look better than they are"
            )
        return self

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
