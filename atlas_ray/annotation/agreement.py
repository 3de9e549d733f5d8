"""Agreement of two readings of one case, organ by organ: Dice and surface Dice (evaluation/surface.py).

Empty masks: both empty says nothing about how well people agree, so both numbers are None; one empty is 0.
"""

import numpy as np

from atlas_ray.evaluation.raters import symmetric_dice
from atlas_ray.evaluation.surface import surface_dice
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.schema import Millimeters, Schema, Triple

TOLERANCE_MM = 2.0


class OrganAgreement(Schema):
    """One organ in two readings; ml is its volume in each."""

    organ: str
    dice: float | None
    surface_dice: float | None
    tolerance_mm: Millimeters
    ml: tuple[float, float]


def agreement(
    first: LabelMap, second: LabelMap, organs: Organs, spacing: Triple, *, tolerance_mm: float = TOLERANCE_MM
) -> list[OrganAgreement]:
    """Every organ that one of two label maps [X, Y, Z] of one grid has, in the set's order.

    Args:
        spacing: mm, array-axis order.
        tolerance_mm: how far a surface may be off and still agree.

    Raises:
        ValueError: label maps of different shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"readings of shape {first.shape} and {second.shape} cannot be compared; they share one grid")
    rows = []
    ml = float(np.prod(spacing)) / 1000
    present = {*organs.present(first), *organs.present(second)}
    for name in (name for name in organs.names if name in present):
        a, b = organs.mask(first, name), organs.mask(second, name)
        rows.append(
            OrganAgreement(
                organ=name,
                dice=symmetric_dice(a, b),
                surface_dice=surface_dice(a, b, spacing, tolerance_mm=tolerance_mm),
                tolerance_mm=tolerance_mm,
                ml=(int(a.sum()) * ml, int(b.sum()) * ml),
            )
        )
    return rows
