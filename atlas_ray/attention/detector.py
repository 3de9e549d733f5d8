"""Learned error detectors, one per organ: which candidates for attention are likely errors. Pure numpy; steps/learn_attention.py
learns them. They are kept as JSON, because a pickle from a workspace would run whatever it holds.

Axes: C candidates, F features.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat, PositiveInt

from atlas_ray.attention.anatomy_rules import RULES, AnatomyRules, OrganCohort
from atlas_ray.attention.candidates import FEATURES, Candidates
from atlas_ray.attention.sparse import OrganAttention
from atlas_ray.schema import Fraction, Schema

Numbers = npt.NDArray[np.float64]
COHORT = RULES.index("cohort")


class Logistic(Schema):
    """Logistic regression on standardized features."""

    learner: Literal["logistic"] = "logistic"
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    def probabilities(self, features_CF: Numbers) -> Numbers:
        z = (features_CF - np.array(self.means)) / np.array(self.scales)
        return _logistic(z @ np.array(self.weights) + self.bias)


class Tree(Schema):
    """One regression tree, node by node; a feature of -1 is a leaf."""

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]

    def values(self, features_CF: npt.NDArray[np.float32]) -> Numbers:
        feature, threshold = np.array(self.feature), np.array(self.threshold)
        left, right = np.array(self.left), np.array(self.right)
        node, rows = np.zeros(len(features_CF), np.int64), np.arange(len(features_CF))
        while (is_inner := feature[node] >= 0).any():
            goes_left = features_CF[rows, feature[node]] <= threshold[node]
            node = np.where(is_inner, np.where(goes_left, left[node], right[node]), node)
        return np.array(self.value)[node]


class Boosting(Schema):
    """Gradient-boosted trees on the logit; compared in float32, as scikit-learn does."""

    learner: Literal["boosting"] = "boosting"
    start: float
    rate: float
    trees: tuple[Tree, ...]

    def probabilities(self, features_CF: Numbers) -> Numbers:
        narrow_CF = features_CF.astype(np.float32)
        logit = np.full(len(features_CF), self.start)
        for tree in self.trees:
            logit += self.rate * tree.values(narrow_CF)
        return _logistic(logit)


Scorer = Annotated[Logistic | Boosting, Field(discriminator="learner")]


class LogisticLearner(Schema):
    """Few parameters: for few revised cases.

    Args:
        c: inverse strength of the L2 penalty.
    """

    learner: Literal["logistic"] = "logistic"
    c: PositiveFloat = 0.3


class BoostingLearner(Schema):
    """Gradient-boosted trees: sees that depth and entropy only count together."""

    learner: Literal["boosting"] = "boosting"
    trees: PositiveInt = 80
    depth: PositiveInt = 3
    rate: PositiveFloat = 0.1
    share: float = Field(default=0.7, gt=0, le=1)  # of the candidates that each tree sees


Learner = Annotated[LogisticLearner | BoostingLearner, Field(discriminator="learner")]


class OrganDetector(Schema):
    """What was learned for one organ.

    Args:
        scorer: None where the physical thresholds stay in force.
        threshold: candidates of at least this probability are shown.
        scope: whose revised cases set the threshold: the organ's own, or those of several organs with few.
        cases: calibration cases with an error; needed: how many alpha takes.
        candidates, errors: that the scorer was learned from.
        missed_share: mean share of missed error volume in cases that the threshold was not chosen on; None where there were
            too few.
        without_candidate: share of the error volume that no candidate touches, and no threshold can find.
        is_kept: whether alpha can be promised; where too much has no candidate it is promised of the rest.
    """

    organ: str
    scorer: Scorer | None = None
    threshold: float = 0.0
    scope: Literal["organ", "group", "none"] = "none"
    cases: int = 0
    needed: int = 0
    candidates: int = 0
    errors: int = 0
    missed_share: Fraction | None = None
    without_candidate: Fraction = 0.0
    is_kept: bool = False


class AttentionDetector(Schema):
    """What a round's revisions taught about errors.

    Args:
        round: whose revisions were the last to be learned from.
        features: whose order the scorers expect; two of the cohort's follow.
        cohort: organ -> what it is usually like.
        anatomy: the rules the candidates were made by.
    """

    round: int
    alpha: float
    features: tuple[str, ...] = FEATURES
    cohort: dict[str, OrganCohort]
    anatomy: AnatomyRules
    organs: tuple[OrganDetector, ...]

    def of(self, organ: str) -> OrganDetector | None:
        """Its detector; None where it has none that can be used."""
        if self.features != FEATURES:
            return None
        return next((own for own in self.organs if own.organ == organ and own.scorer is not None), None)

    def attention(self, organ: str, candidates: Candidates) -> OrganAttention:
        """What is shown of an organ that has a detector: heat is evidence times the probability of an error."""
        own = self.of(organ)
        if own is None or own.scorer is None:
            raise ValueError(f"no detector of {organ!r}; there are those of {', '.join(o.organ for o in self.organs if o.scorer)}")
        values, counts = judged(candidates, self.cohort.get(organ), self.anatomy)
        if not len(candidates):
            return candidates.shown(np.zeros(0))
        probability_C = own.scorer.probabilities(values)
        return candidates.shown(np.where(counts & (probability_C >= own.threshold), np.maximum(probability_C, 1e-6), 0.0))


def judged(candidates: Candidates, cohort: OrganCohort | None, rules: AnatomyRules) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """Features with the organ's two z against the cohort appended [C, F + 2], and which candidates count at all: an organ's whole
    surface does only where the organ is an outlier."""
    volume_z, center_z = cohort.outlying(candidates.organ_shape) if cohort else (0.0, 0.0)
    z_C2 = np.broadcast_to(np.clip((volume_z, center_z), -10, 10), (len(candidates), 2))
    counts_C = (candidates.source_C != COHORT) | rules.is_outlier(volume_z, center_z)
    return np.column_stack([candidates.features_CF, z_C2]), counts_C


def cohorts(cases: Sequence[Mapping[str, Candidates]]) -> dict[str, OrganCohort]:
    """What every organ is usually like, of the cases' candidates."""
    found = {}
    for organ in dict.fromkeys(name for case in cases for name in case):
        if cohort := OrganCohort.of([case[organ].organ_shape for case in cases if organ in case]):
            found[organ] = cohort
    return found


@functools.lru_cache(maxsize=4)
def load_detector(path: Path, sha256: str) -> AttentionDetector:
    """A detector's file; read once per process.

    Args:
        sha256: of the file, so that another one is read anew.
    """
    return AttentionDetector.model_validate_json(path.read_bytes())


def _logistic(logit: Numbers) -> Numbers:
    result: Numbers = 1 / (1 + np.exp(-np.clip(logit, -60, 60)))
    return result
