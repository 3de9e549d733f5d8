"""Where an ensemble's prediction is likely to be wrong: criteria per voxel and organ, and three modes that join them.

A criterion turns probabilities into evidence; where evidence exceeds its threshold it fires. A mode opens what fired,
numbers the criteria as bits and adds up a heat. `FaithfulAttention` repeats the paper's authors to the constant
(reference/paper-algorithm.md a.3, a.4); `PhysicalAttention` measures in millimeters, so that thin errors survive on
thick slices and a size does not depend on the scanner's grid; `CalibratedAttention` learns from revisions which of it are errors.

This file says what is measured and from where on it counts; `attention.kernels` computes it.

Axes: M architectures, K organs (channels), X Y Z the array axes of the grid the probabilities lie on.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from atlas_ray.attention.anatomy_rules import AnatomyRules
from atlas_ray.attention.detector import BoostingLearner, Learner
from atlas_ray.attention.rules import MAX_ARCHITECTURES, Kind, Rule, one_term_entropies
from atlas_ray.attention.sparse import GridAttention
from atlas_ray.exceptions import LabelError
from atlas_ray.organs import Organs
from atlas_ray.schema import IntTriple, Schema, Triple

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]

LN_2 = math.log(2)
BYTE = 255

# No criterion fires on less evidence than this, so where every architecture's byte is 0 there is nothing to compute.
MIN_THRESHOLD = 0.01


# --- criteria -------------------------------------------------------------------------------------------------------


class Inconsistency(Schema):
    """Where the architectures disagree: population standard deviation of their soft predictions.

    Args:
        threshold: the paper's 0.1. Two architectures must differ by more than 0.2; one of three against the other two by
            more than 0.212. One architecture never disagrees with itself.
    """

    MAXIMUM: ClassVar[float] = 0.5  # half say 0, half say 1

    criterion: Literal["inconsistency"] = "inconsistency"
    threshold: float = Field(default=0.1, ge=MIN_THRESHOLD, lt=0.5)

    def rule(self) -> Rule:
        return Rule(Kind.INCONSISTENCY, self.threshold, self.MAXIMUM)


class Uncertainty(Schema):
    """Where each architecture by itself is undecided: mean over architectures of -p ln p, one term, natural logarithm.

    One term only, as the authors have it, so it is not symmetric: its maximum 1/e lies at p = 0.368, and
    above 0.05 it holds 0.0111 < p < 0.9487 (0.0114..0.9476 after rounding down to bytes).

    Args:
        threshold: the paper's 0.05.
        levels: each architecture's entropy is rounded down to this many steps per nat before the mean, as the authors' uint8
            files do; None keeps it as computed.
    """

    MAXIMUM: ClassVar[float] = 1 / math.e

    criterion: Literal["uncertainty"] = "uncertainty"
    threshold: float = Field(default=0.05, ge=MIN_THRESHOLD, lt=1 / math.e)
    levels: PositiveInt | None = BYTE

    def rule(self) -> Rule:
        entropies = one_term_entropies()
        if self.levels is not None:
            entropies = np.floor(entropies * self.levels) / self.levels
        return Rule(Kind.UNCERTAINTY, self.threshold, self.MAXIMUM, table=entropies)


class Overlap(Schema):
    """Where two organs claim one voxel that must not touch (organs.overlap_partners): one of the two is wrong.

    Args:
        threshold: an organ claims a voxel where its mean probability exceeds this; the paper's 0.5.
    """

    MAXIMUM: ClassVar[float] = 1.0

    criterion: Literal["overlap"] = "overlap"
    threshold: float = Field(default=0.5, ge=MIN_THRESHOLD, lt=1)

    def rule(self) -> Rule:
        return Rule(Kind.OVERLAP, self.threshold, self.MAXIMUM, opened=False)


class PredictiveEntropy(Schema):
    """Where the ensemble as a whole is undecided: binary entropy of the mean probability, nats.

    Args:
        threshold: 0.6 nats marks mean probabilities of 0.29..0.71. One of three architectures dissenting outright (mean 1/3,
            0.637 nats) is inside; the outer half of an organ's blurred rim is not.
    """

    MAXIMUM: ClassVar[float] = LN_2

    criterion: Literal["predictive_entropy"] = "predictive_entropy"
    threshold: float = Field(default=0.6, ge=MIN_THRESHOLD, lt=LN_2)

    def rule(self) -> Rule:
        return Rule(Kind.PREDICTIVE_ENTROPY, self.threshold, self.MAXIMUM)


class Disagreement(Schema):
    """Where the architectures contradict each other: entropy of the mean minus mean of the entropies, nats.

    The mutual information between prediction and architecture (BALD). Unlike a standard deviation it stays near 0 on a rim
    where all architectures are alike unsure, which is where every organ border lies.

    Args:
        threshold: 0.1 nats is two architectures at p = 0.72 and 0.28; {0.9, 0.9, 0.3} gives 0.19, {0.9, 0.8, 0.65} gives 0.03.
    """

    MAXIMUM: ClassVar[float] = LN_2

    criterion: Literal["disagreement"] = "disagreement"
    threshold: float = Field(default=0.1, ge=MIN_THRESHOLD, lt=LN_2)

    def rule(self) -> Rule:
        return Rule(Kind.DISAGREEMENT, self.threshold, self.MAXIMUM)


Criterion = Annotated[
    Inconsistency | Uncertainty | Overlap | PredictiveEntropy | Disagreement,
    Field(discriminator="criterion"),
]


# --- modes ----------------------------------------------------------------------------------------------------------


class FaithfulAttention(Schema):
    """The authors' rules (paper section 2.1; paper-algorithm a.3, a.4), computed in float64 as they do.

    Soft predictions are zeroed outside `support`; entropies come from what is not zeroed. The opening
    counts voxels: whatever is thinner than 5 voxels in any axis is lost, so 5 mm slices hide errors thinner than 25 mm. That
    blindness is part of the published method and kept; `PhysicalAttention` is the mode without it.

    Stated differences: bytes are round(255 p), where the authors round down; and an entropy is that of the byte, where they take
    the probability's before it is stored.

    Args:
        opening_voxels: erosions, then dilations, with the full 3x3x3 structure, of inconsistency and uncertainty.
        min_component_mm3: the authors drop no component.
    """

    mode: Literal["faithful"] = "faithful"
    inconsistency: Inconsistency = Inconsistency()
    uncertainty: Uncertainty = Uncertainty()
    overlap: Overlap = Overlap()
    opening_voxels: NonNegativeInt = 2
    min_component_mm3: NonNegativeFloat = 0.0

    @property
    def criterion_names(self) -> tuple[str, ...]:
        """Names in bit order."""
        return self.inconsistency.criterion, self.uncertainty.criterion, self.overlap.criterion

    def halo(self, spacing: Triple) -> IntTriple:
        """Voxels of context on each side with which a slab gives what the whole volume gives."""
        return _halo((self.opening_voxels,) * 3)

    def look(
        self,
        bytes_MKXYZ: Bytes,
        *,
        organs: Organs,
        spacing: Triple,
        support_MXYZ: Words | None = None,
        skip: frozenset[str] = frozenset(),
        label_threshold: float = 0.5,
        inner: slice = slice(None),
        own_labels: bool = False,
        threads: int | None = None,
    ) -> GridAttention:
        """Attention of every organ that is not skipped, and the labels, of one grid or of a slab of it.

        Args:
            bytes_MKXYZ: uint8, probability b / 255, channels in the order of `organs`; C order, else it is copied.
            organs: gives overlap partners and label ids.
            spacing: mm; not used here, the authors count voxels.
            support_MXYZ: uint32, bit k is set where organ k counts in an architecture (its post-processed mask, dilated by one
                voxel); None for everywhere.
            skip: organs whose attention is not wanted (the dataset labels them). They still take part as overlap partners.
            label_threshold: mean probability that a label exceeds.
            inner: slices along Z that the result covers; the others are context, of which `halo` is enough.
            own_labels: whether each architecture's own label map is wanted.
            threads: how many may run; None for as many as the process has cores.

        Raises:
            LabelError: the arrays do not fit the organ set or each other, or `skip` names no organ of it.
        """
        rules = [self.inconsistency.rule(), self.uncertainty.rule(), self.overlap.rule()]
        steps = (self.opening_voxels,) * 3
        how = _How(rules, steps, summed=True, masked_spread=True, label_threshold=label_threshold, own_labels=own_labels)
        return _look(how, bytes_MKXYZ, support_MXYZ, organs, skip, inner, threads)


class PhysicalAttention(Schema):
    """Criteria and sizes in physical units, from the probabilities as they are.

    Heat is the strongest criterion's evidence as a share of the most it could be, 0..1. `support` limits only what an organ
    claims (a speck that post-processing removed overlaps nothing); entropy and disagreement look at every voxel.

    What is not covered: errors all architectures make alike and are sure of.

    Args:
        criteria: their union is the attention map; bits in this order.
        opening_radius_mm: removes what is thinner than about 2 mm in plane on a fine grid: the rim of half-decided voxels that
            interpolation from the networks' 1.5 mm grid leaves around every organ. The opening is a box of whole voxels; on
            an axis whose half voxel exceeds the radius it does nothing, so with 1 mm a single slice thicker than 2 mm
            survives. Overlap is never opened.
        min_component_mm3: 64 is a 4 mm cube, less than the smallest correction worth the annotator's look.
    """

    mode: Literal["physical"] = "physical"
    criteria: tuple[Criterion, ...] = Field(default=(PredictiveEntropy(), Disagreement(), Overlap()), min_length=1, max_length=8)
    opening_radius_mm: NonNegativeFloat = 1.0
    min_component_mm3: NonNegativeFloat = 64.0

    @model_validator(mode="after")
    def _each_once(self) -> "PhysicalAttention":
        if len(set(self.criterion_names)) < len(self.criteria):
            raise ValueError(f"a criterion is listed twice: {', '.join(self.criterion_names)}")
        return self

    @property
    def criterion_names(self) -> tuple[str, ...]:
        """Names in bit order."""
        return tuple(criterion.criterion for criterion in self.criteria)

    def halo(self, spacing: Triple) -> IntTriple:
        """Voxels of context on each side with which a slab gives what the whole volume gives."""
        return _halo(self._steps(spacing))

    def look(
        self,
        bytes_MKXYZ: Bytes,
        *,
        organs: Organs,
        spacing: Triple,
        support_MXYZ: Words | None = None,
        skip: frozenset[str] = frozenset(),
        label_threshold: float = 0.5,
        inner: slice = slice(None),
        own_labels: bool = False,
        threads: int | None = None,
    ) -> GridAttention:
        """Attention and labels of one grid or of a slab of it; arguments and errors as `FaithfulAttention`, spacing in mm."""
        rules, steps = [criterion.rule() for criterion in self.criteria], self._steps(spacing)
        how = _How(rules, steps, summed=False, masked_spread=False, label_threshold=label_threshold, own_labels=own_labels)
        return _look(how, bytes_MKXYZ, support_MXYZ, organs, skip, inner, threads)

    def _steps(self, spacing: Triple) -> IntTriple:
        x, y, z = (int(self.opening_radius_mm / edge + 0.5) for edge in spacing)
        return x, y, z


class CalibratedAttention(Schema):
    """Candidates that a detector, learned from the annotator's revisions of earlier rounds, takes for errors (attention.detector).

    Candidates are the components of a permissive physical attention and what anatomical rules point at. An organ without a
    detector, as every organ of a first round, has `fallback`'s attention.

    Args:
        alpha: the expected share of an organ's error volume in a case that attention may miss; 0.1 takes at least 9 revised cases
            with an error.
        candidates: permissive criteria.
        anatomy: what counts as implausible.
        learner: what a detector is.
        fallback: where there is no detector.
    """

    mode: Literal["calibrated"] = "calibrated"
    alpha: float = Field(default=0.1, ge=0.001, lt=1)
    candidates: PhysicalAttention = PhysicalAttention(
        criteria=(PredictiveEntropy(threshold=0.5), Disagreement(threshold=0.05), Overlap(threshold=0.3))
    )
    anatomy: AnatomyRules = AnatomyRules()
    learner: Learner = BoostingLearner()
    fallback: PhysicalAttention = PhysicalAttention()

    @model_validator(mode="after")
    def _same_criteria(self) -> "CalibratedAttention":
        if self.candidates.criterion_names != self.fallback.criterion_names:
            own, other = ", ".join(self.candidates.criterion_names), ", ".join(self.fallback.criterion_names)
            raise ValueError(f"candidates have {own}, fallback has {other}; both need the same criteria")
        if len(self.candidates.criteria) > 7:
            raise ValueError("candidates and fallback: at most 7 criteria, the eighth is anatomy")
        return self

    @property
    def criterion_names(self) -> tuple[str, ...]:
        """Names in bit order."""
        return (*self.candidates.criterion_names, "anatomy")

    @property
    def min_component_mm3(self) -> float:
        return min(self.candidates.min_component_mm3, self.fallback.min_component_mm3)


Attention = Annotated[FaithfulAttention | PhysicalAttention | CalibratedAttention, Field(discriminator="mode")]


# --- what both modes do ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _How:
    """A mode in the kernel's words; the names are explained at `kernels.Plan`."""

    rules: Sequence[Rule]
    steps: IntTriple
    summed: bool
    masked_spread: bool
    label_threshold: float
    own_labels: bool


def _look(
    how: _How,
    bytes_MKXYZ: Bytes,
    support_MXYZ: Words | None,
    organs: Organs,
    skip: frozenset[str],
    inner: slice,
    threads: int | None,
) -> GridAttention:
    from atlas_ray.attention import kernels  # numba takes a second to import

    M, K, X, Y, Z = _shape(bytes_MKXYZ, support_MXYZ, organs, skip)
    start, stop, _ = inner.indices(Z)
    support = np.empty(0, np.uint32) if support_MXYZ is None else np.ascontiguousarray(support_MXYZ).reshape(-1)
    values = np.ascontiguousarray(bytes_MKXYZ).reshape(-1)
    if K * X * Y * Z < kernels.TILE:
        values = np.pad(values, (0, kernels.TILE))  # the kernel reads whole tiles
    grid = kernels.Grid(values, support, M, K, X, Y, Z, start, max(start, stop))
    plan = kernels.plan_of(
        how.rules,
        organs,
        architectures=M,
        skip=skip,
        summed=how.summed,
        masked_spread=how.masked_spread,
        label_threshold=how.label_threshold,
    )
    steps_C = [how.steps if rule.opened else (0, 0, 0) for rule in how.rules]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return kernels.attend(grid, plan, steps_C=steps_C, own_labels=how.own_labels, threads=threads or cores)


def _shape(bytes_MKXYZ: Bytes, support_MXYZ: Words | None, organs: Organs, skip: frozenset[str]) -> tuple[int, int, int, int, int]:
    """M, K, X, Y, Z of arrays that fit. Raises LabelError."""
    shape = bytes_MKXYZ.shape
    if bytes_MKXYZ.dtype != np.uint8 or len(shape) != 5 or 0 in shape or shape[1] != len(organs):
        needed = f"uint8 [M, {len(organs)}, X, Y, Z] is what organ set {organs.name!r} needs"
        raise LabelError(f"probabilities are {bytes_MKXYZ.dtype} of shape {shape}; {needed}")
    M, K, X, Y, Z = shape
    if M > MAX_ARCHITECTURES or K > 32:
        raise LabelError(f"{M} architectures and {K} organs; at most {MAX_ARCHITECTURES} and 32 are supported")
    if support_MXYZ is not None and (support_MXYZ.dtype != np.uint32 or support_MXYZ.shape != (M, X, Y, Z)):
        raise LabelError(f"support is {support_MXYZ.dtype} of shape {support_MXYZ.shape}; uint32 {(M, X, Y, Z)} is needed")
    for name in skip:
        organs.channel(name)
    return M, K, X, Y, Z


def _halo(steps: IntTriple) -> IntTriple:
    """An opened voxel depends on neighbors up to one erosion and one dilation away."""
    x, y, z = (2 * step for step in steps)
    return x, y, z
