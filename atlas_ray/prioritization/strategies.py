"""Query strategies: in which order the annotator sees the cases of a round, and the organs of each.

Every strategy ranks the same `Scores`, in columns; equal scores are ordered by case id, so that a list never depends on the order
in which cases were predicted. N cases, K organs.
"""

import hashlib
from collections.abc import Iterable
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat

from atlas_ray.schema import Schema
from atlas_ray.scores import Scores


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

    def rank(self, scores: Scores) -> list[RankedCase]:
        return ranked(scores, scores.attention_voxels_N, organs_by_heat(scores))


class AttentionVolume(Schema):
    """Attention in mm3, summed over organs: the same patient ranks alike at any slice thickness."""

    strategy: Literal["attention_volume"] = "attention_volume"

    def rank(self, scores: Scores) -> list[RankedCase]:
        return ranked(scores, scores.attention_mm3_N, organs_by_heat(scores))


class MeanEntropy(Schema):
    """Mean over organs of the predictive entropy (nats) where the organ is predicted or draws attention.

    Organs that are neither are left out: absent organs would make a case look certain.
    """

    strategy: Literal["mean_entropy"] = "mean_entropy"

    def rank(self, scores: Scores) -> list[RankedCase]:
        counts_NK = (scores.predicted_ml_NK > 0) | (scores.attention_voxels_NK > 0)
        sums_N = scores.entropy_NK.sum(axis=1, where=counts_NK)
        return ranked(scores, sums_N / np.maximum(1, counts_NK.sum(axis=1)), organs_by_heat(scores))


class RandomOrder(Schema):
    """A random order of cases: the baseline that every strategy has to beat.

    Drawn per case from seed, round and case id: a case keeps its number when others join or leave the pool.
    """

    strategy: Literal["random"] = "random"
    seed: int = 0

    def rank(self, scores: Scores) -> list[RankedCase]:
        return ranked(scores, _draws(self.seed, scores), organs_by_heat(scores))


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

    def rank(self, scores: Scores) -> list[RankedCase]:
        there_NK = scores.predicted_ml_NK > self.min_predicted_ml
        draws_NK = np.zeros(there_NK.shape)
        for k, organ in enumerate(scores.organs):
            draws_NK[:, k] = _draws(self.seed, scores, organ)
        score_N = np.where(there_NK.any(axis=1), _draws(self.seed, scores), 0.0)
        return ranked(scores, score_N, organs_in_order(scores, -draws_NK, there_NK))


Strategy = Annotated[
    AttentionSize | AttentionVolume | MeanEntropy | RandomOrder | ForegroundAwareRandom,
    Field(discriminator="strategy"),
]


def organs_by_heat(scores: Scores) -> list[tuple[str, ...]]:
    """The paper's order of organs within each case: descending sum of stored heat, organs without any left out; ties by name."""
    return organs_in_order(scores, scores.heat_sum_NK, scores.heat_sum_NK > 0)


def organs_in_order(scores: Scores, value_NK: npt.NDArray[np.float64], wanted_NK: npt.NDArray[np.bool_]) -> list[tuple[str, ...]]:
    """For each case its wanted organs by descending value, ties by name."""
    by_name_K = np.argsort(scores.organs)
    names_K = np.array(scores.organs, np.object_)[by_name_K]
    keys_NK = np.where(wanted_NK, -np.asarray(value_NK, np.float64), np.inf)[:, by_name_K]
    order_NK = names_K[np.argsort(keys_NK, axis=1, kind="stable")]
    return [tuple(row[:count]) for row, count in zip(order_NK.tolist(), wanted_NK.sum(axis=1).tolist(), strict=True)]


def ranked(scores: Scores, score_N: npt.NDArray[np.float64 | np.int64], organs: Iterable[tuple[str, ...]]) -> list[RankedCase]:
    """The list: descending score, ties by case id.

    Args:
        score_N: of each case.
        organs: of each case, to revise, in the order of `scores`.
    """
    order_N = np.lexsort((scores.case_id_N, -score_N)).tolist()
    ids, values, listed = scores.case_id_N.tolist(), score_N.tolist(), list(organs)
    return [RankedCase(case_id=ids[n], rank=rank, score=values[n], organs=listed[n]) for rank, n in enumerate(order_N, 1)]


def _draws(seed: int, scores: Scores, *what: str) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each case, the same on every machine: the first 8 bytes of a SHA-256."""
    texts = (
        "/".join([str(seed), str(r), c, *what]) for r, c in zip(scores.round_N.tolist(), scores.case_id_N.tolist(), strict=True)
    )
    return np.array([int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 11 for text in texts], np.float64) / 2**53
