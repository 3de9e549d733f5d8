"""What is said about strategies, on arms of two cases whose numbers are worked out by hand."""

import math

import numpy as np
import pytest

from atlas_ray.evaluation.components import Detection, Rules
from atlas_ray.simulation.curves import areas, comparison, efficiency, standing, two_way
from atlas_ray.simulation.points import Point, Work

RULES = Rules(resamples=200)


def point(round_index: int, minutes: float, dice: dict[str, float], *, looked_at: int = 0, voxels: int = 0) -> Point:
    cases = tuple(f"p{n}" for n in range(looked_at))
    return Point(
        round=round_index,
        work=Work(minutes=minutes, looked_at=cases, changed=cases[:1], voxels=voxels),
        networks=dice,
        surface=dice,
        labels={f"p{n}": 0.9 for n in range(4)},
        organ_voxels=1000,
        detection=Detection(errors=4, hit=3, regions=2, right=1),
    )


def arm(*steps: tuple[float, float, float]) -> list[Point]:
    """Points of (minutes, Dice of case a, Dice of case b); a case and 10 voxels a round."""
    return [point(r, m, {"a": a, "b": b}, looked_at=r, voxels=10 * r) for r, (m, a, b) in enumerate(steps)]


FULL = [arm((0, 0.5, 0.5), (1, 0.9, 0.9))]


def test_the_area_is_a_mean_over_the_minutes():
    """Case a: 0.6 to 0.8 over ten minutes, then 0.8 to 0.9 over thirty: (10 * 0.7 + 30 * 0.85) / 40. Cut at ten: 0.7.

    Cut within a step of ten minutes to 0.9, with more steps to come: (10 * 0.7 + 5 * 0.825) / 15."""
    seeds = [arm((0, 0.6, 0.5), (10, 0.8, 0.5), (40, 0.9, 0.5))]
    assert areas(seeds, "networks", 40) == pytest.approx(np.array([[(7 + 25.5) / 40, 0.5]]))
    assert areas(seeds, "networks", 10) == pytest.approx(np.array([[0.7, 0.5]]))
    longer = [arm((0, 0.6, 0.5), (10, 0.8, 0.5), (20, 0.9, 0.5), (40, 1, 0.5))]
    assert areas(longer, "networks", 15) == pytest.approx(np.array([[11.125 / 15, 0.5]]))


def test_an_arm_with_nothing_left_to_ask_stays_where_it_is():
    assert areas([arm((0, 0.6, 0.5), (10, 0.8, 0.5))], "networks", 20) == pytest.approx(np.array([[0.75, 0.5]]))


def test_what_the_reference_less_its_margin_has_cost():
    seeds = [arm((0, 0.5, 0.5), (10, 0.8, 0.8), (20, 0.9, 0.89)), arm((0, 0.5, 0.5), (12, 0.8, 0.8), (20, 0.9, 0.89))]
    found = standing(seeds, FULL, RULES, margin=0.01, horizon=20)
    assert found.reached is not None  # 0.895 of 0.9
    assert (found.reached.round, found.reached.minutes, found.reached.cases) == (2, 20, 0.5)  # two of four
    assert (found.minutes, found.cases, found.changed, found.voxels) == (20, 0.5, 0.25, 0.02)
    assert found.final["networks"].value == pytest.approx(0.895)
    assert found.sensitivity == (0.75,) * 3
    assert found.precision == (0.5,) * 3
    assert standing(seeds, FULL, RULES, margin=0.001, horizon=20).reached is None


def test_every_measure_has_its_own_curve_and_seeds_are_averaged():
    """Two seeds, 0.1 off their mean: 0.5, 0.7, 0.8, 0.85 halve the way to the reference's 0.9 with each million voxels."""
    networks = ((0.5, 0.6, 0.7, 0.75), (0.5, 0.8, 0.9, 0.95))
    seeds = [
        [
            point(r, 10 * r, {"a": dice, "b": dice}, voxels=1_000_000 * (r + 1)).model_copy(
                update={
                    "surface": {"a": dice - 0.3, "b": dice - 0.3},
                    "labels": {"p": dice + 0.04, "q": dice + 0.04},
                    "detection": Detection(errors=4, hit=hit, regions=4, right=4 - hit),
                }
            )
            for r, dice in enumerate(curve)
        ]
        for curve, hit in zip(networks, (3, 0), strict=True)
    ]
    reference = [[p.model_copy(update={"labels": {"p": 1.0, "q": 1.0}}) for p in FULL[0]]]  # its labels are no goal for networks
    found = standing(seeds, reference, RULES, margin=0.12, horizon=10)
    assert {m: i.value for m, i in found.final.items()} == pytest.approx({"networks": 0.85, "surface": 0.55, "labels": 0.89})
    assert {m: i.value for m, i in found.aubc.items()} == pytest.approx({"networks": 0.6, "surface": 0.3, "labels": 0.64})
    assert found.efficiency == pytest.approx(math.log(2), rel=1e-3)
    assert found.reached is not None
    assert (found.reached.round, found.reached.minutes, found.minutes) == (2, 20, 30)
    assert (found.sensitivity, found.precision) == ((3 / 8,) * 4, (5 / 8,) * 4)


def test_a_comparison_is_paired():
    """The cases differ far more than the strategies; pairing takes that away, in whatever order they are written down."""
    ours = [arm((0, 0.3, 0.9), (10, 0.42, 0.99))]
    other = [[p.model_copy(update={"networks": {c: p.networks[c] for c in "ba"}}) for p in arm((0, 0.3, 0.9), (10, 0.40, 0.97))]]
    found = comparison(ours, other, "other", RULES, horizon=10)
    assert found.aubc["networks"].value == pytest.approx(0.01)
    final = found.final["networks"]
    assert final.value == pytest.approx(0.02)
    assert (final.low, final.high) == pytest.approx((0.02, 0.02))
    assert final.excludes_zero
    assert not two_way(np.array([[0.1, -0.1, 0.05, -0.06]]), RULES).excludes_zero


def test_seeds_are_a_sample_too():
    """Half of the draws take one seed twice."""
    found = two_way(np.array([[0.1, 0.1], [0.9, 0.9]]), RULES)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.1, 0.9))


def test_efficiency_is_the_rate_of_the_curve():
    x = np.array([0.0, 1.0, 2.0, 4.0])
    dice = 0.9 - 0.4 * np.exp(-0.7 * x)
    assert efficiency(x, dice, 0.9) == pytest.approx(0.7, rel=1e-3)
    assert efficiency(x, 0.9 - 0.4 * 2.0 ** -(x / 3), 0.9) == pytest.approx(math.log(2) / 3, rel=1e-3)
    assert efficiency(x, dice, 0.4) is None  # starts above the reference
    assert efficiency(np.zeros(4), dice, 0.9) is None
