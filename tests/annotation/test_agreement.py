"""Agreement by hand: rows of voxels, a digit per voxel. 1 is the liver, 2 the spleen, 3 the aorta, 0 nothing."""

import numpy as np
import pytest

from atlas_ray.annotation.agreement import agreement
from atlas_ray.organs import Organs


def row(digits: str) -> np.ndarray:
    """One voxel after the other along x; the row is one voxel wide and high."""
    return np.array([int(d) for d in digits], np.uint8).reshape(-1, 1, 1)


def test_every_organ_one_of_the_readings_has(organs: Organs) -> None:
    """A row of two voxels has an edge of surface in its middle, a corner at either end; moved by one voxel, a corner is off."""
    rows = agreement(row("1100200"), row("0110003"), organs, (10.0, 10.0, 10.0), tolerance_mm=1)
    edge, corner = 2**0.5 / 2, 3**0.5 / 8  # areas, in squares of a voxel's edge
    assert [(r.organ, r.dice, r.surface_dice, r.ml) for r in rows] == [
        ("liver", 0.5, pytest.approx((edge + corner) / (edge + 2 * corner)), (2.0, 2.0)),
        ("spleen", 0.0, 0.0, (1.0, 0.0)),
        ("aorta", 0.0, 0.0, (0.0, 1.0)),
    ]
    (moved,) = agreement(row("1100"), row("0110"), organs, (10.0, 10.0, 10.0), tolerance_mm=10)
    assert (moved.dice, moved.surface_dice, moved.tolerance_mm) == (0.5, 1.0, 10)
    with pytest.raises(ValueError, match="share one grid"):
        agreement(row("11"), row("111"), organs, (1.0, 1.0, 1.0))
