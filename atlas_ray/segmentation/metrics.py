"""Segmentation metrics; every name here is a key that tracking logs."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from atlas_ray.organs import LabelMap, Organs
from atlas_ray.records import OrganDice


def dice(prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float | None:
    """Dice coefficient 2|A∩B| / (|A|+|B|) of two masks of one shape.

    None where the truth is empty: the case then says nothing about how well the organ is found. A prediction there is an error
    that `false_volume_ml` counts.
    """
    size = int(truth.sum())
    if size == 0:
        return None
    overlap = int(np.logical_and(prediction, truth).sum())
    return 2 * overlap / (size + int(prediction.sum()))


def false_volume_ml(prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_], voxel_mm3: float) -> float:
    """Volume where prediction and truth differ, in ml."""
    return float(np.logical_xor(prediction, truth).sum()) * voxel_mm3 / 1000


def organ_dice(prediction: LabelMap, truth: LabelMap, organs: Organs) -> dict[str, float | None]:
    """Dice of every organ between two label maps of one shape, ids of `organs`."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    return {name: dice(organs.mask(prediction, name), organs.mask(truth, name)) for name in organs.names}


def mean_organ_dice(cases: Sequence[Mapping[str, float | None]], organs: Organs) -> list[OrganDice]:
    """Average over cases, organ by organ, leaving out the cases where the organ is absent."""
    rows = []
    for name in organs.names:
        values = [value for case in cases if (value := case.get(name)) is not None]
        rows.append(OrganDice(organ=name, dice=float(np.mean(values)) if values else None, cases=len(values)))
    return rows


def mean_over_organs(rows: Sequence[OrganDice]) -> float | None:
    """Mean of the organs' Dice, every organ with the same weight."""
    values = [row.dice for row in rows if row.dice is not None]
    return float(np.mean(values)) if values else None
