"""What is predicted where there is nothing: on cases without an organ, or without a tumor (paper section 4).

An annotator has to look at every such component to reject it, so their number counts besides the share of cases that have any.
"""

from collections.abc import Sequence

import numpy as np

from atlas_ray.evaluation.bootstrap import Interval
from atlas_ray.evaluation.components import Mask, Rules, regions_of
from atlas_ray.schema import Schema


class FalsePositives(Schema):
    """One organ over the cases that do not have it.

    Args:
        cases: without the organ.
        cases_with_any: of them, with at least one false component.
        components: of all cases together.
        rate: cases_with_any of cases, with a Clopper-Pearson interval.
        median_mm3, largest_mm3: of a component's volume; None without any.
    """

    organ: str
    cases: int
    cases_with_any: int
    components: int
    rate: Interval
    median_mm3: float | None
    largest_mm3: float | None


def false_components_mm3(predicted_XYZ: Mask, voxel_mm3: float, rules: Rules) -> list[float]:
    """Volumes of the connected regions (26 neighbors) of a mask that should be empty, in mm3, in the order of their first voxel."""
    labels, count = regions_of(predicted_XYZ)
    volumes = np.bincount(labels.ravel(), minlength=count + 1)[1:] * voxel_mm3
    return [float(volume) for volume in volumes if volume >= rules.min_false_positive_mm3]


def false_positives(organ: str, components_mm3: Sequence[Sequence[float]], rules: Rules) -> FalsePositives:
    """Of the components of every case without the organ, one list per case."""
    volumes = [volume for case in components_mm3 for volume in case]
    some = sum(1 for case in components_mm3 if case)
    return FalsePositives(
        organ=organ,
        cases=len(components_mm3),
        cases_with_any=some,
        components=len(volumes),
        rate=share_of(some, len(components_mm3), confidence=rules.confidence),
        median_mm3=float(np.median(volumes)) if volumes else None,
        largest_mm3=max(volumes, default=None),
    )


def share_of(part: int, whole: int, *, confidence: float) -> Interval:
    """A share with its exact binomial interval (Clopper and Pearson, Biometrika 1934); None of nothing."""
    if not whole:
        return Interval(value=None)
    from scipy.stats import binomtest

    ends = binomtest(part, whole).proportion_ci(confidence, method="exact")
    return Interval(value=part / whole, low=float(ends.low), high=float(ends.high))
