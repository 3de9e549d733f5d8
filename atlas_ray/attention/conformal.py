"""Conformal risk control (Angelopoulos, Bates, Fisch, Lei and Schuster 2022): a threshold with a promise about cases not yet seen.

The loss of a case is the share of its missed error volume: 0 to 1, and never smaller at a higher threshold. With n calibration
cases that are exchangeable with the next one, and R(t) their mean loss at threshold t, a threshold with

    n / (n + 1) R(t) + 1 / (n + 1) <= alpha

keeps the expected loss of the next case at or below alpha. As R >= 0, at least 1 / alpha - 1 cases are needed: 9 at alpha 0.1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
NEVER = -math.inf  # score of a region that no candidate touches


@dataclass(frozen=True, slots=True, eq=False)
class CaseErrors:
    """The error regions of one calibration case; at least one.

    Args:
        volumes_R: of each region, in any unit.
        scores_R: highest score of a candidate that touches it; NEVER where none does.
    """

    volumes_R: Numbers
    scores_R: Numbers

    def loss(self, threshold: float) -> float:
        """Share of the error volume that is missed where candidates scored below the threshold are dropped."""
        return float(self.volumes_R[self.scores_R < threshold].sum() / self.volumes_R.sum())


def needed_cases(alpha: float) -> int:
    """Fewer calibration cases cannot promise alpha, even without a single miss."""
    return math.ceil(1 / alpha - 1 - 1e-9)


def controlled_threshold(cases: Sequence[CaseErrors], alpha: float) -> float | None:
    """The highest threshold that keeps the promise; None where none does.

    Only scores of regions change the loss, so only they are tried.
    """
    n = len(cases)
    if n < needed_cases(alpha):
        return None
    scores = np.concatenate([case.scores_R for case in cases])
    best = None
    for threshold in np.unique(scores[np.isfinite(scores)]).tolist():
        risk = sum(case.loss(threshold) for case in cases) / n
        if n / (n + 1) * risk + 1 / (n + 1) > alpha + 1e-12:
            break  # the loss only grows from here on
        best = float(threshold)
    return best


def held_out_loss(cases: Sequence[CaseErrors], folds: npt.NDArray[np.integer], alpha: float) -> list[float]:
    """Losses of cases that had no part in the threshold they are measured at; those of folds whose rest is too small are left out.

    Args:
        folds: of each case.
    """
    losses = []
    for fold in np.unique(folds).tolist():
        rest = [case for case, own in zip(cases, folds, strict=True) if own != fold]
        threshold = controlled_threshold(rest, alpha)
        if threshold is not None:
            losses += [case.loss(threshold) for case, own in zip(cases, folds, strict=True) if own == fold]
    return losses
