"""Confidence intervals by drawing cases with replacement: the cases are the sample, not their voxels or components.

Bias-corrected and accelerated (BCa; Efron, JASA 1987), so that intervals of shares near 0 or 1 are not centered where they
cannot be.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from atlas_ray.evaluation.components import Rules
from atlas_ray.schema import Schema

Indices = npt.NDArray[np.intp]
Statistic = Callable[[Indices], float | None]  # of the cases drawn; None where they say nothing


class Interval(Schema):
    """A number and what it could have been with other cases; low and high are None with fewer than two cases."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """ "0.784 (0.701 to 0.838)"."""
        if self.value is None:
            return "-"
        return f"{self.value:.3f}" + (f" ({self.low:.3f} to {self.high:.3f})" if self.low is not None else "")

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def bootstrap(cases: int, statistic: Statistic, rules: Rules) -> Interval:
    """The statistic over all cases, with its interval. Draws for which it is None are left out.

    Args:
        cases: how many there are; `statistic` gets indices below it.
    """
    everyone = np.arange(cases)
    value = statistic(everyone) if cases else None
    if value is None or cases < 2:
        return Interval(value=value)
    random = np.random.default_rng(rules.seed)
    drawn = _numbers(statistic(random.integers(0, cases, cases)) for _ in range(rules.resamples))
    left_out = _numbers(statistic(np.delete(everyone, case)) for case in range(cases))
    low, high = _bca(value, drawn, left_out, rules.confidence)
    return Interval(value=value, low=low, high=high)


def bootstrap_mean(values: Sequence[float | None], rules: Rules) -> Interval:
    """Mean over the cases that have a value."""
    known = np.array([v for v in values if v is not None])
    return bootstrap(len(known), lambda drawn: float(known[drawn].mean()), rules)


def bootstrap_ratio(parts: Sequence[float], wholes: Sequence[float], rules: Rules) -> Interval:
    """Sum of the parts over the sum of the wholes: a share pooled over cases."""
    part, whole = np.asarray(parts, float), np.asarray(wholes, float)

    def share(drawn: Indices) -> float | None:
        below = whole[drawn].sum()
        return float(part[drawn].sum() / below) if below else None

    return bootstrap(len(part), share, rules)


def paired_difference(before: Sequence[float | None], after: Sequence[float | None], rules: Rules) -> Interval:
    """Mean of after minus before over the cases that have both: the same cases are drawn for both sides.

    Raises ValueError where the two are not of one length.
    """
    return bootstrap_mean([None if a is None or b is None else b - a for a, b in zip(before, after, strict=True)], rules)


def _numbers(values: Any) -> npt.NDArray[np.float64]:
    return np.array([v for v in values if v is not None], float)


def _bca(value: float, drawn: npt.NDArray[np.float64], left_out: npt.NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Ends of the interval; plain percentiles where every draw lies on one side of the value, or all are alike."""
    from scipy.stats import norm

    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    below = (np.count_nonzero(drawn < value) + 0.5 * np.count_nonzero(drawn == value)) / max(1, len(drawn))
    away = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    spread = float((away**2).sum())
    if 0 < below < 1 and spread > 1e-24:
        bias, acceleration = norm.ppf(below), float((away**3).sum()) / (6 * spread**1.5)
        z = bias + norm.ppf(tails)
        tails = norm.cdf(bias + z / (1 - acceleration * z))
    low, high = np.quantile(drawn, tails) if len(drawn) else (value, value)
    return float(low), float(high)
