"""Does a score rank the cases that have something before those that have not?"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from atlas_ray.evaluation.bootstrap import Interval, bootstrap
from atlas_ray.evaluation.components import Rules


def auroc(scores: Sequence[float], positive: Sequence[bool], rules: Rules) -> Interval:
    """Area under the ROC curve: the chance that a positive case scores above a negative one, ties half (Mann and Whitney).

    None where all cases are alike. Raises ValueError where the two are not of one length.
    """
    if len(scores) != len(positive):
        raise ValueError(f"{len(scores)} scores for {len(positive)} cases")
    score, is_positive = np.asarray(scores, float), np.asarray(positive, bool)
    return bootstrap(len(score), lambda drawn: _area(score[drawn], is_positive[drawn]), rules)


def _area(score: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float | None:
    from scipy.stats import rankdata

    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return None
    return float((rankdata(score)[positive].sum() - count * (count + 1) / 2) / (count * others))
