"""The bounds that settle a voxel by its bytes, against exact arithmetic over every combination of bytes."""

from fractions import Fraction

import numpy as np
import pytest

from atlas_ray.attention.criteria import Uncertainty
from atlas_ray.attention.rules import (
    NO_TIE,
    band,
    byte_above,
    contrary_bounds,
    limits,
    one_term_entropies,
    spread_bounds,
    sum_bounds,
)


def every_combination(architectures: int, step: int) -> np.ndarray:
    """[M, N] bytes in rising order: every `step`-th byte, and 255."""
    values = np.unique([*range(0, 256, step), 255])
    grid = np.stack(np.meshgrid(*[values] * architectures, indexing="ij")).reshape(architectures, -1)
    return grid[:, np.all(np.diff(grid, axis=0) >= 0, axis=0)]


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.25, 0.49])
@pytest.mark.parametrize(("architectures", "step"), [(1, 1), (2, 1), (3, 3), (4, 9)])
def test_range_settles_the_deviation(architectures, step, threshold):
    bytes_MN = every_combination(architectures, step)
    # variance * (255 M)^2 is a whole number; Fraction(threshold) is the float64 as it is
    exact = architectures * (bytes_MN**2).sum(axis=0) - bytes_MN.sum(axis=0) ** 2
    limit = Fraction(threshold) ** 2 * (255 * architectures) ** 2
    fires = exact > int(limit)  # a whole number exceeds the limit where it exceeds the limit's floor
    maybe, sure = spread_bounds(threshold, architectures)
    spread = np.ptp(bytes_MN, axis=0)
    assert not fires[spread <= maybe].any()
    assert fires[spread > sure].all()
    numpys = np.std(bytes_MN / 255, axis=0) > threshold
    assert np.array_equal(numpys[spread <= maybe], fires[spread <= maybe])
    assert np.array_equal(numpys[spread > sure], fires[spread > sure])


def test_bounds_of_three_architectures_by_hand():
    # 0.1: sum of squared differences of the pairs > 5852; 54 and 54 and 0 apart give 5832, 55: 6050; 62, 31, 31: 5766, 63: 5953
    assert spread_bounds(0.1, 3) == (54, 62)
    assert spread_bounds(0.1, 2) == (50, 51)  # 51 is a tie
    assert spread_bounds(0.1, 1)[0] == 255  # one never disagrees
    assert sum_bounds(0.5, 3) == (382, NO_TIE)
    assert sum_bounds(0.5, 2) == (255, 255)
    assert byte_above(0.5) == 127
    assert band(one_term_entropies(), 0.05) == (3, 239)  # 0.0111 < p < 0.9487


def test_how_many_architectures_make_a_voxel_uncertain_by_hand():
    """Of three, the mean of levels n / 255 exceeds 0.05 where they add up to 39; a byte of 3..241 has level 13 or more."""
    bounds = limits([Uncertainty().rule()], 3, label_threshold=0.5)
    assert (bounds.some_from, bounds.some_count) == (bounds.all_from, bounds.all_count) == (3, 239)
    assert (bounds.one_from, bounds.one_count) == (14, 199)  # -14 ln(14 / 255) = 40.6 and -212 ln(212 / 255) = 39.2


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.4])
@pytest.mark.parametrize(("architectures", "step"), [(1, 1), (2, 1), (3, 3), (4, 9)])
def test_range_settles_the_disagreement(architectures, step, threshold):
    bytes_MN = every_combination(architectures, step)

    def entropy(p):
        p = np.clip(p, 1e-300, 1)
        q = np.clip(1 - p, 1e-300, 1)
        return -p * np.log(p) - q * np.log(q)

    fires = entropy(bytes_MN.mean(axis=0) / 255) - entropy(bytes_MN / 255).mean(axis=0) > threshold
    maybe, sure = contrary_bounds(threshold, architectures)
    spread = np.ptp(bytes_MN, axis=0)
    assert not fires[spread <= maybe].any()
    assert fires[spread > sure].all()


@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("architectures", [1, 2, 3, 4, 6])
def test_sums_settle_the_mean(architectures, threshold):
    above, tie = sum_bounds(threshold, architectures)
    for total in range(255 * architectures + 1):
        fires = Fraction(total, 255 * architectures) > Fraction(threshold)
        if total != tie:
            assert (total > above) == fires
