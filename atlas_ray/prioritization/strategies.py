"""Query strategies: in which order the annotator sees the cases of a round, and the organs of each.

Every strategy ranks the same `Scores`, in columns; equal scores are ordered by case id, so that a list never depends on the order
in which cases were predicted. N cases, K organs.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain, product
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from atlas_ray.prioritization.minutes import MinutesModel
from atlas_ray.schema import Fraction, Schema
from atlas_ray.scores import Scores

IDLE_WORTH = 1e-6  # of attention that is usual: it only decides what comes first when nothing else is left


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
        return ranked(scores, _mean_over_organs(scores, scores.entropy_NK), organs_by_heat(scores))


class MutualInformation(Schema):
    """BALD (Houlsby 2011) with the architectures as the sample: mean over organs of H(mean p) - mean H(p), in nats.

    What the networks disagree about, without what all of them find equally hard. Organs are left out as in `MeanEntropy`.
    """

    strategy: Literal["mutual_information"] = "mutual_information"

    def rank(self, scores: Scores) -> list[RankedCase]:
        return ranked(scores, _mean_over_organs(scores, scores.mutual_information_NK), organs_by_heat(scores))


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


class ClassStratified(Schema):
    """ClaSP-PE (arXiv 2601.13677): most places of the list are stratified by organ, so that no hard organ takes them all, and
    entropy is noised, much in the first round and little in the last, so that early lists are not all of one kind.

    Two places of three (`stratified_share`) go to one organ after the other, the third to the plain entropy of the case; a case
    that was listed for one is not listed again. Scores are log entropy plus Gumbel noise over beta; beta rises evenly on a log
    scale. An organ that nobody is in doubt about gets no place.
    """

    strategy: Literal["class_stratified"] = "class_stratified"
    seed: int = 0
    stratified_share: Fraction = 2 / 3
    beta: tuple[PositiveFloat, PositiveFloat] = (1.0, 100.0)
    rounds: PositiveInt = 5  # over which beta rises

    def rank(self, scores: Scores) -> list[RankedCase]:
        columns = {name: scores.entropy_NK[:, k] for k, name in enumerate(scores.organs) if scores.entropy_NK[:, k].any()}
        lists = {name: self._listed(scores, column_N, name) for name, column_N in columns.items()}
        plain = self._listed(scores, _mean_over_organs(scores, scores.entropy_NK), "")
        organs, turns = organs_by_heat(scores), sorted(lists)
        taken, listed = np.zeros(len(scores), np.bool_), list[RankedCase]()
        ids = scores.case_id_N.tolist()
        while len(listed) < len(scores):
            stratified = int((len(listed) + 1) * self.stratified_share + 1e-9) > int(len(listed) * self.stratified_share + 1e-9)
            name = turns.pop(0) if stratified and turns else ""
            found = next(((n, value) for n, value in (lists[name] if name else plain) if not taken[n]), None)
            if found is None:  # every case that shows this organ is listed; it gets no more turns
                continue
            turns += [name] if name else []
            n, value = found
            taken[n] = True
            first = (name,) if name in organs[n] else ()
            asked = (*first, *(organ for organ in organs[n] if organ not in first))
            listed.append(RankedCase(case_id=ids[n], rank=len(listed) + 1, score=value, organs=asked))
        return listed

    def _listed(self, scores: Scores, entropy_N: npt.NDArray[np.float64], name: str) -> Iterable[tuple[int, float]]:
        """(place in `scores`, noised log entropy), highest first, to be gone through once; for an organ its doubtful cases."""
        low, high = self.beta
        beta = low * (high / low) ** min(1.0, scores.of_round() / max(1, self.rounds - 1))
        gumbel_N = -np.log(-np.log(np.clip(_draws(self.seed, scores, name), 1e-12, 1 - 1e-12)))
        value_N = np.where(entropy_N > 0, np.log(np.maximum(entropy_N, 1e-300)) + gumbel_N / beta, -1e9)
        order_N = np.lexsort((scores.case_id_N, -value_N)).tolist()
        return iter([(n, float(value_N[n])) for n in order_N if not name or entropy_N[n] > 0])


class BenefitPerMinute(Schema):
    """What a correction would bring, over the minutes it takes.

    The benefit of an organ is the Dice it may gain: its attention over its volume, beyond what is usual for the same organ in this
    round. The band of doubt along every border is thereby nobody's error, an organ that is predicted too small stands out, and a
    small organ counts as much as a large one, as it does in the mean Dice. What is usual comes after all that is not. A case is
    asked about its organs in the order of their worth as long as they raise its ratio.

    Args:
        minutes: what is believed of the time; `informed` puts in what was logged.
        spread: what lies within this many deviations (1.48 MAD, a normal's sd) above the organ's median is usual.
        min_ml: volume an organ is taken to have at least, so that a speck for an absent organ is not worth the world.
    """

    strategy: Literal["benefit_per_minute"] = "benefit_per_minute"
    minutes: MinutesModel = MinutesModel()
    spread: NonNegativeFloat = 2.0
    min_ml: PositiveFloat = 5.0

    def rank(self, scores: Scores) -> list[RankedCase]:
        if not len(scores):
            return []
        benefit_NK = self.benefit(scores)
        minutes_NK = self.minutes.organ_minutes(scores.components_NK, scores.attention_mm3_NK)
        worth_NK = benefit_NK / minutes_NK
        order_NK = np.argsort(-worth_NK, axis=1, kind="stable")
        gains_NK = np.cumsum(np.take_along_axis(benefit_NK, order_NK, axis=1), axis=1)
        costs_NK = self.minutes.per_case + np.cumsum(np.take_along_axis(minutes_NK, order_NK, axis=1), axis=1)
        ratios_NK = gains_NK / costs_NK  # of the best 1, 2, ... organs: rises, then falls
        if not ratios_NK.size:
            return ranked(scores, np.zeros(len(scores)), [()] * len(scores))
        places_NK = np.argsort(order_NK, axis=1)
        wanted_NK = (places_NK <= ratios_NK.argmax(axis=1)[:, None]) & (benefit_NK > 0)
        return ranked(scores, ratios_NK.max(axis=1), organs_in_order(scores, worth_NK, wanted_NK))

    def benefit(self, scores: Scores) -> npt.NDArray[np.float64]:
        """[N, K], 0..1: the excess over organ and excess together."""
        share_NK = scores.attention_mm3_NK / 1000 / np.maximum(scores.predicted_ml_NK, self.min_ml)
        median_K = np.median(share_NK, axis=0)
        usual_K = median_K + self.spread * 1.4826 * np.median(np.abs(share_NK - median_K), axis=0)
        excess_NK = np.maximum(0.0, share_NK - usual_K) + IDLE_WORTH * share_NK
        return np.asarray(excess_NK / (1 + excess_NK))


_Plain = (
    AttentionSize
    | AttentionVolume
    | MeanEntropy
    | MutualInformation
    | RandomOrder
    | ForegroundAwareRandom
    | ClassStratified
    | BenefitPerMinute
)
Plain = Annotated[_Plain, Field(discriminator="strategy")]


class Diverse(Schema):
    """Another strategy's list, spread over kinds of error, without errors that are much alike (paper, figure 3b).

    The kind of a case is the organ it is asked about first, and the type of that organ's largest error. Places are given to kinds
    as seats are to parties (D'Hondt): the next one goes to the kind whose best case that is left has the highest score over one
    plus the places its kind has. A kind thereby gets places by what its errors are worth, and none for being rare. A case whose
    error is nearly one that is already listed of its kind comes after all others.

    Args:
        base: the strategy whose score counts, and whose organs are asked about; scores below 0 count as 0, and equal ones keep the
            base's order.
        alike: two errors of one kind are nearly the same when attention and predicted volume each differ by less than this
            factor minus one; 0 keeps all.
    """

    strategy: Literal["diverse"] = "diverse"
    base: Plain = BenefitPerMinute()
    alike: NonNegativeFloat = 0.1

    def rank(self, scores: Scores) -> list[RankedCase]:
        place = {case_id: n for n, case_id in enumerate(scores.case_id_N.tolist())}
        channel = {name: k for k, name in enumerate(scores.organs)}
        listed, seen = defaultdict[tuple[str, str], int](int), _Seen(self.alike)
        seats = list[tuple[float, int, RankedCase]]()
        repeats, idle = list[RankedCase](), list[RankedCase]()
        for case in self.base.rank(scores):  # best first, so that a kind's quotients fall
            if not case.organs:
                idle.append(case)
                continue
            n, k = place[case.case_id], channel[case.organs[0]]
            kind = (case.organs[0], str(scores.error_NK[n, k]))
            if seen.add(kind, float(scores.attention_mm3_NK[n, k]), float(scores.predicted_ml_NK[n, k])):
                seats.append((-max(0.0, case.score) / (1 + listed[kind]), case.rank, case))
                listed[kind] += 1
            else:
                repeats.append(case)
        ordered = [*(case for _, _, case in sorted(seats, key=lambda seat: seat[:2])), *repeats, *idle]
        return [case.model_copy(update={"rank": rank}) for rank, case in enumerate(ordered, 1)]


class _Seen:
    """Errors that were listed, found again by their two sizes on a logarithmic grid whose cells are `alike` wide."""

    def __init__(self, alike: float) -> None:
        self._step = math.log1p(alike)
        self._cells = defaultdict[tuple[tuple[str, str], int, int], list[tuple[float, float]]](list)

    def add(self, kind: tuple[str, str], *sizes: float) -> bool:
        """Take an error in, unless one of its kind that is much like it is there."""
        if not self._step:
            return True
        x, y = (math.log(max(size, 1e-9)) for size in sizes)
        i, j = math.floor(x / self._step), math.floor(y / self._step)
        near = chain.from_iterable(self._cells.get((kind, i + di, j + dj), ()) for di, dj in product((-1, 0, 1), repeat=2))
        if any(abs(x - a) < self._step and abs(y - b) < self._step for a, b in near):
            return False
        self._cells[kind, i, j].append((x, y))
        return True


Strategy = Annotated[_Plain | Diverse, Field(discriminator="strategy")]


def informed(strategy: Strategy, learn: Callable[[MinutesModel], MinutesModel]) -> Strategy:
    """The strategy with its minutes learned, where it has any."""
    if isinstance(strategy, BenefitPerMinute):
        return strategy.model_copy(update={"minutes": learn(strategy.minutes)})
    if isinstance(strategy, Diverse):
        return strategy.model_copy(update={"base": informed(strategy.base, learn)})
    return strategy


def seeded(strategy: Strategy, seed: int) -> Strategy:
    """The strategy with this seed, where it draws anything."""
    if isinstance(strategy, Diverse):
        return strategy.model_copy(update={"base": seeded(strategy.base, seed)})
    return strategy.model_copy(update={"seed": seed}) if "seed" in type(strategy).model_fields else strategy


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


def _mean_over_organs(scores: Scores, value_NK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Over the organs that are predicted or draw attention; 0 where there is none."""
    counts_NK = (scores.predicted_ml_NK > 0) | (scores.attention_voxels_NK > 0)
    return np.asarray(value_NK.sum(axis=1, where=counts_NK) / np.maximum(1, counts_NK.sum(axis=1)))


def _draws(seed: int, scores: Scores, *what: str) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each case, the same on every machine: the first 8 bytes of a SHA-256."""
    texts = (
        "/".join([str(seed), str(r), c, *what]) for r, c in zip(scores.round_N.tolist(), scores.case_id_N.tolist(), strict=True)
    )
    return np.array([int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 11 for text in texts], np.float64) / 2**53
