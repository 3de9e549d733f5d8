"""Query strategies: in which order the annotator sees the cases of a round, and the organs of each.

Every strategy ranks the same `CaseScores`; equal scores are ordered by case id, so that a list never depends on the order in
which cases were predicted.
"""

import random
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from atlas_ray.records import CaseScores
from atlas_ray.schema import Schema


class RankedCase(Schema):
    """One line of the priority list.

    Args:
        rank: 1 is revised first.
        score: what the strategy sorted by; the unit is the strategy's.
        organs: the organs to revise, first one first.
    """

    case_id: str
    rank: int
    score: float
    organs: tuple[str, ...]


class AttentionSize(Schema):
    """The paper's: attention in voxels, summed over organs. Thin slices have more voxels and rank first."""

    strategy: Literal["attention_size"] = "attention_size"

    def rank(self, scores: Sequence[CaseScores]) -> list[RankedCase]:
        return _ranked(scores, lambda case: float(case.attention_voxels))


class AttentionVolume(Schema):
    """Attention in mm3, summed over organs: the same patient ranks alike at any slice thickness."""

    strategy: Literal["attention_volume"] = "attention_volume"

    def rank(self, scores: Sequence[CaseScores]) -> list[RankedCase]:
        return _ranked(scores, lambda case: case.attention_mm3)


class MeanEntropy(Schema):
    """Mean over organs of the predictive entropy (nats) where the organ is predicted or draws attention.

    Organs that are neither are left out: absent organs would make a case look certain.
    """

    strategy: Literal["mean_entropy"] = "mean_entropy"

    def rank(self, scores: Sequence[CaseScores]) -> list[RankedCase]:
        return _ranked(scores, _mean_entropy)


class RandomOrder(Schema):
    """A random order of cases: the baseline that every strategy has to beat.

    Drawn per case from seed, round and case id: a case keeps its number when others join or leave the pool.
    """

    strategy: Literal["random"] = "random"
    seed: int = 0

    def rank(self, scores: Sequence[CaseScores]) -> list[RankedCase]:
        return _ranked(scores, lambda case: _draw(self.seed, case))


class ForegroundAwareRandom(Schema):
    """Random among the cases that show an organ at all, and random among the organs they show.

    A much harder baseline than plain random on medical volumes (nnActive, arXiv 2511.19183). Cases without predicted
    foreground follow at the end, with no organ to revise.

    Args:
        min_predicted_ml: an organ is there when more than this is predicted.
    """

    strategy: Literal["foreground_aware_random"] = "foreground_aware_random"
    seed: int = 0
    min_predicted_ml: NonNegativeFloat = 0.0

    def rank(self, scores: Sequence[CaseScores]) -> list[RankedCase]:
        return _ranked(scores, lambda case: _draw(self.seed, case) if self._organs(case) else 0.0, self._organs)

    def _organs(self, case: CaseScores) -> tuple[str, ...]:
        there = [organ.organ for organ in case.organs if organ.predicted_ml > self.min_predicted_ml]
        return tuple(sorted(there, key=lambda organ: _draw(self.seed, case, organ)))


Strategy = Annotated[
    AttentionSize | AttentionVolume | MeanEntropy | RandomOrder | ForegroundAwareRandom,
    Field(discriminator="strategy"),
]


def organs_by_heat(case: CaseScores) -> tuple[str, ...]:
    """The paper's order of organs within a case: descending sum of stored heat, organs without any left out; ties by name."""
    hot = [organ for organ in case.organs if organ.heat_sum > 0]
    return tuple(organ.organ for organ in sorted(hot, key=lambda o: (-o.heat_sum, o.organ)))


def _ranked(
    scores: Sequence[CaseScores],
    score: Callable[[CaseScores], float],
    organs: Callable[[CaseScores], tuple[str, ...]] = organs_by_heat,
) -> list[RankedCase]:
    ordered = sorted(((score(case), case) for case in scores), key=lambda pair: (-pair[0], pair[1].case_id))
    return [
        RankedCase(case_id=case.case_id, rank=rank, score=value, organs=organs(case))
        for rank, (value, case) in enumerate(ordered, 1)
    ]


def _mean_entropy(case: CaseScores) -> float:
    entropies = [organ.entropy for organ in case.organs if organ.predicted_ml > 0 or organ.attention_voxels > 0]
    return sum(entropies) / len(entropies) if entropies else 0.0


def _draw(seed: int, case: CaseScores, *what: str) -> float:
    """A number in [0, 1), the same on every machine: random.Random hashes a string seed with SHA-512."""
    return random.Random("/".join([str(seed), str(case.round), case.case_id, *what])).random()
