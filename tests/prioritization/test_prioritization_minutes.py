"""The minutes that logged times teach."""

import numpy as np
import pytest

from atlas_ray.prioritization.minutes import MinutesModel, TimedOrgan


def test_minutes_of_an_organ_by_hand():
    """2 + 3 * 0.5 + 4 ml * 0.25."""
    model = MinutesModel(per_organ=2, per_component=0.5, per_ml=0.25)
    assert model.organ_minutes(np.array([[3, 0]]), np.array([[4000.0, 0.0]])).tolist() == [[4.5, 2.0]]


def test_one_time_against_a_belief_of_four_organs_by_hand():
    """Least of (a + 2 b - 7)^2 + 4 (a - 1)^2 + 4 (2 b)^2, the component's rate in the unit of two components: a = 2, b = 1/2."""
    believed = MinutesModel(per_organ=1, per_component=0, per_ml=0, weight=4)
    learned = believed.learned([TimedOrgan(components=2, attention_ml=0, minutes=7)])
    assert (learned.per_organ, learned.per_component, learned.per_ml) == pytest.approx((2, 0.5, 0))


def test_with_nothing_logged_it_stays_what_it_was():
    assert MinutesModel(per_case=3).learned([]) == MinutesModel(per_case=3)


def test_many_times_are_believed():
    """Two minutes an organ, half a minute a component, a quarter of a minute a ml."""
    logged = [
        TimedOrgan(components=c, attention_ml=ml, minutes=2 + 0.5 * c + 0.25 * ml) for c in range(1, 20) for ml in (1, 8, 30, 100)
    ]
    learned = MinutesModel(per_case=9, per_organ=9, per_component=9, per_ml=9, weight=0.001).learned(logged, [1.5] * 100)
    assert (learned.per_organ, learned.per_component, learned.per_ml) == pytest.approx((2, 0.5, 0.25), abs=0.05)
    assert learned.per_case == pytest.approx(1.5, abs=0.01)


def test_a_few_move_it_a_little_and_no_rate_is_negative():
    believed = MinutesModel(per_case=4, per_organ=1, per_component=0, per_ml=0, weight=4)
    once = believed.learned([TimedOrgan(components=1, attention_ml=0, minutes=5)], [8])
    assert once.per_case == pytest.approx((4 * 4 + 8) / 5)
    assert 1 < once.per_organ + once.per_component < 5
    falling = [TimedOrgan(components=c, attention_ml=1, minutes=10 - c) for c in range(1, 9)]
    learned = believed.learned(falling)
    assert min(learned.per_organ, learned.per_component, learned.per_ml) >= 0
