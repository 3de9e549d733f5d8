"""From the points of the arms to what can be said about the strategies, with intervals.

The protocol follows nnActive (arXiv 2511.19183): area under the budget curve (AUBC), final Dice, and the efficiency b of a curve
that rises toward the fully labeled Dice; the budget here is simulated minutes. Dice of a case is the mean over its organs, and
intervals draw seeds and cases with replacement, the same ones for both sides of a comparison.

Axes: S seeds, C cases, P points.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from atlas_ray.evaluation.bootstrap import Interval
from atlas_ray.evaluation.components import Rules, total
from atlas_ray.schema import Schema
from atlas_ray.simulation.points import Point

Floats = npt.NDArray[np.float64]
Measure = Literal["networks", "labels", "surface"]


class Reached(Schema):
    """What the reference's Dice, less the margin, has cost."""

    round: int
    minutes: float
    cases: float
    changed: float
    voxels: float


class Standing(Schema):
    """How a strategy stands, over all seeds.

    Args:
        aubc: measure -> area over the minutes, 0..1.
        final: measure -> at the last point.
        efficiency: b of the fitted curve of the networks' Dice over voxels by hand, per million voxels; None where Dice does not
            rise toward the reference.
        minutes, cases, changed, voxels: means over seeds at the last point; all but minutes as shares of the pool's. `cases` were
            looked at, `changed` were changed by hand.
        reached: the same shares at the first point within the margin of the reference, and its minutes; None where no point is.
        sensitivity, precision: of the attention on the holdout by round, over seeds.
    """

    aubc: dict[Measure, Interval]
    final: dict[Measure, Interval]
    efficiency: float | None
    minutes: float
    cases: float
    changed: float
    voxels: float
    reached: Reached | None
    sensitivity: tuple[float | None, ...]
    precision: tuple[float | None, ...]


class Comparison(Schema):
    """The first strategy less another one."""

    against: str
    aubc: dict[Measure, Interval]
    final: dict[Measure, Interval]


Seeds = Sequence[Sequence[Point]]  # [S][P]


def standing(seeds: Seeds, reference: Seeds, rules: Rules, *, margin: float, horizon: float) -> Standing:
    """One strategy with one annotator.

    Args:
        reference: the arms with every label; their last point counts.
        horizon: minutes that every arm had.
    """
    pool = len(seeds[0][0].labels)
    goal = float(values(reference, "networks")[:, -1].mean())
    mean_P = values(seeds, "networks").mean(axis=(0, 2))
    work = [[point.work for point in points] for points in seeds]
    voxels_P = np.mean([[p.work.voxels / p.organ_voxels for p in points] for points in seeds], axis=0)
    minutes_P = np.mean([[w.minutes for w in points] for points in work], axis=0)
    cases_P = np.mean([[len(w.looked_at) / pool for w in points] for points in work], axis=0)
    changed_P = np.mean([[len(w.changed) / pool for w in points] for points in work], axis=0)
    first = next((p for p, dice in enumerate(mean_P) if dice >= goal - margin), None)
    costs = {"minutes": minutes_P, "cases": cases_P, "changed": changed_P, "voxels": voxels_P}
    detections = [total([points[p].detection for points in seeds]) for p in range(len(mean_P))]
    measures: tuple[Measure, ...] = ("networks", "labels", "surface")
    return Standing(
        aubc={m: two_way(areas(seeds, m, horizon), rules) for m in measures},
        final={m: two_way(values(seeds, m)[:, -1], rules) for m in measures},
        efficiency=efficiency(np.mean([[p.work.voxels for p in points] for points in seeds], axis=0) / 1e6, mean_P, goal),
        **{name: float(column[-1]) for name, column in costs.items()},
        reached=None if first is None else Reached(round=first, **{n: float(column[first]) for n, column in costs.items()}),
        sensitivity=tuple(d.sensitivity for d in detections),
        precision=tuple(d.precision for d in detections),
    )


def comparison(ours: Seeds, other: Seeds, name: str, rules: Rules, *, horizon: float) -> Comparison:
    """At equal minutes, seed by seed and case by case."""
    measures: tuple[Measure, ...] = ("networks", "labels", "surface")
    return Comparison(
        against=name,
        aubc={m: two_way(areas(ours, m, horizon) - areas(other, m, horizon), rules) for m in measures},
        final={m: two_way(values(ours, m)[:, -1] - values(other, m)[:, -1], rules) for m in measures},
    )


def values(seeds: Seeds, measure: Measure) -> Floats:
    """[S, P, C]; the cases in the order of their ids."""
    columns: Callable[[Point], Mapping[str, float]] = lambda point: getattr(point, measure)  # noqa: E731
    return np.array([[[columns(p)[case] for case in sorted(columns(p))] for p in points] for points in seeds])


def areas(seeds: Seeds, measure: Measure, horizon: float) -> Floats:
    """[S, C]: trapezoid from 0 to `horizon` minutes over its length, so that the area is a mean Dice. A curve that ends before,
    because nothing was left to ask, stays as it was; one that oversteps is cut."""
    dice_SPC = values(seeds, measure)
    result = []
    for points, dice_PC in zip(seeds, dice_SPC, strict=True):
        minutes_P = np.array([point.work.minutes for point in points])
        at_end_C = np.array([np.interp(horizon, minutes_P, dice_P) for dice_P in dice_PC.T])
        before = minutes_P < horizon
        times, curve_PC = np.append(minutes_P[before], horizon), np.vstack([dice_PC[before], at_end_C])
        result.append(np.trapezoid(curve_PC, times, axis=0) / horizon)
    return np.array(result)


def two_way(value_SC: Floats, rules: Rules) -> Interval:
    """Mean over seeds and cases, with the interval of drawing both (a crossed bootstrap: seeds and cases are each a sample)."""
    value = float(value_SC.mean())
    S, C = value_SC.shape
    if C < 2:
        return Interval(value=value)
    random = np.random.default_rng(rules.seed)
    drawn = [value_SC[np.ix_(random.integers(0, S, S), random.integers(0, C, C))].mean() for _ in range(rules.resamples)]
    low, high = np.quantile(drawn, [(1 - rules.confidence) / 2, (1 + rules.confidence) / 2])
    return Interval(value=value, low=float(low), high=float(high))


def efficiency(x_P: Floats, dice_P: Floats, full: float) -> float | None:
    """b of Dice(x) = full - (full - Dice(x_0)) exp(-b (x - x_0)) (nnActive's FG-Eff), by least squares; None where the start is not
    below the fully labeled Dice, or nothing was spent."""
    from scipy.optimize import minimize_scalar

    gap, spent_P = full - dice_P[0], x_P - x_P[0]
    if gap <= 0 or spent_P[-1] <= 0:
        return None

    def misfit(log_b: float) -> float:
        return float(np.sum((full - gap * np.exp(-np.exp(log_b) * spent_P) - dice_P) ** 2))

    scale = -np.log(spent_P[-1])
    found = minimize_scalar(misfit, bounds=(scale - 7, scale + 7), method="bounded")
    return float(np.exp(found.x))
