"""How alike the label maps of one case are, whoever made them: networks, their average, annotators, the reference (figure 6).

If the architectures agree with each other no more than with people, none of them has a habit of its own that a data set made by
it alone would inherit; if they agree with a person more than two persons with each other, their labels are as good as any.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from types import MappingProxyType

import numpy as np

from atlas_ray.evaluation.bootstrap import Interval, bootstrap_mean
from atlas_ray.evaluation.components import Mask, Rules
from atlas_ray.evaluation.surface import surface_dice
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.schema import Schema, Triple


class PairScore(Schema):
    """Two label makers on one organ of one case; None where neither has the organ or one does not know it, 0 where one has it."""

    case_id: str
    first: str
    second: str
    organ: str
    dice: float | None
    surface_dice: float | None


class PairMean(Schema):
    """Two label makers over all cases and organs: the mean over cases of a case's mean over organs."""

    first: str
    second: str
    cases: int
    dice: Interval
    surface_dice: Interval


def symmetric_dice(a_XYZ: Mask, b_XYZ: Mask) -> float | None:
    """2 |A and B| / (|A| + |B|); None where both are empty."""
    size = int(np.count_nonzero(a_XYZ)) + int(np.count_nonzero(b_XYZ))
    return 2 * int(np.count_nonzero(a_XYZ & b_XYZ)) / size if size else None


def compare_makers(
    case_id: str,
    maps: Mapping[str, LabelMap],
    organs: Organs,
    spacing: Triple,
    *,
    tolerance_mm: float,
    unknown: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[PairScore]:
    """Every pair of label maps [X, Y, Z] of one case, organ by organ. Raises ValueError where two are not on one grid.

    Args:
        maps: who made it -> ids of `organs`.
        unknown: who made it -> organs that it cannot label, which is not the same as to find none.
    """
    rows = []
    for first, second in combinations(maps, 2):
        if maps[first].shape != maps[second].shape:
            raise ValueError(f"{case_id}: {first} has shape {maps[first].shape}, {second} has {maps[second].shape}")
        for organ in organs.names:
            dice, surface = None, None
            if not any(organ in unknown.get(maker, ()) for maker in (first, second)):
                a, b = organs.mask(maps[first], organ), organs.mask(maps[second], organ)
                dice, surface = symmetric_dice(a, b), surface_dice(a, b, spacing, tolerance_mm=tolerance_mm)
            rows.append(PairScore(case_id=case_id, first=first, second=second, organ=organ, dice=dice, surface_dice=surface))
    return rows


def pair_means(scores: Sequence[PairScore], rules: Rules) -> list[PairMean]:
    """Of every pair that shares a case, in the order in which they first appear."""
    by_pair: dict[tuple[str, str], dict[str, list[PairScore]]] = {}
    for score in scores:
        by_pair.setdefault((score.first, score.second), {}).setdefault(score.case_id, []).append(score)
    return [
        PairMean(
            first=first,
            second=second,
            cases=len(cases),
            dice=bootstrap_mean([_mean(rows, lambda s: s.dice) for rows in cases.values()], rules),
            surface_dice=bootstrap_mean([_mean(rows, lambda s: s.surface_dice) for rows in cases.values()], rules),
        )
        for (first, second), cases in by_pair.items()
    ]


def _mean(rows: Sequence[PairScore], value: Callable[[PairScore], float | None]) -> float | None:
    known = [v for row in rows if (v := value(row)) is not None]
    return float(np.mean(known)) if known else None
