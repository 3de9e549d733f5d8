"""Intervals over cases: what must hold whatever is drawn, and small cases by hand."""

import numpy as np
import pytest

from atlas_ray.evaluation.bootstrap import Interval, bootstrap, bootstrap_mean, bootstrap_ratio, paired_difference
from atlas_ray.evaluation.components import Rules
from atlas_ray.evaluation.ranking import auroc

RULES = Rules(resamples=500)


def test_too_few_cases_have_a_value_and_no_interval():
    assert bootstrap_mean([], RULES) == Interval(value=None)
    assert bootstrap_mean([None, None], RULES) == Interval(value=None)
    assert bootstrap_mean([0.5, None], RULES) == Interval(value=0.5)


def test_equal_cases_leave_no_doubt():
    found = bootstrap_mean([0.5] * 10, RULES)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_an_interval_holds_its_value_and_narrows_with_more_cases():
    few, many = bootstrap_mean([0.0, 1.0] * 5, RULES), bootstrap_mean([0.0, 1.0] * 50, RULES)
    for found in (few, many):
        assert found.low < found.value == 0.5 < found.high
    assert many.high - many.low < 0.5 * (few.high - few.low)
    # 100 coins: 0.5 +- 1.96 * 0.05
    assert many.low == pytest.approx(0.402, abs=0.03)
    assert many.high == pytest.approx(0.598, abs=0.03)


def test_it_is_the_same_every_time_and_another_with_another_seed():
    values = [0.1, 0.4, 0.45, 0.9, 0.7]
    assert bootstrap_mean(values, RULES) == bootstrap_mean(values, RULES)
    assert bootstrap_mean(values, RULES) != bootstrap_mean(values, Rules(resamples=500, seed=1))


def test_coverage_of_a_mean():
    """Of 100 samples of a known mean, about 95 intervals hold it; 12 normal values: the bootstrap is a little too narrow."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        found = bootstrap_mean(list(random.normal(3.0, 1.0, 12)), Rules(resamples=200))
        held += found.low <= 3.0 <= found.high
    assert 84 <= held <= 99


def test_a_pooled_share_weighs_cases_by_their_errors():
    assert bootstrap_ratio([1, 0], [1, 9], RULES).value == pytest.approx(0.1)
    assert bootstrap_ratio([0, 0], [0, 0], RULES).value is None
    mostly_without = bootstrap_ratio([3, 0, 0], [4, 0, 0], RULES)
    assert mostly_without.value == 0.75
    assert mostly_without.low == mostly_without.high == 0.75  # draws without any error say nothing and are left out


def test_pairs_are_drawn_together():
    before, after = [0.1, 0.9, 0.5, 0.3], [0.2, 1.0, 0.6, 0.4]
    found = paired_difference(before, after, RULES)
    assert found.value == pytest.approx(0.1)
    assert found.excludes_zero  # every case gained, however different the cases are
    assert not paired_difference(before, before, RULES).excludes_zero
    assert paired_difference([None, 0.5], [0.5, None], RULES).value is None
    with pytest.raises(ValueError):
        paired_difference([0.5], [], RULES)


def test_a_statistic_that_says_nothing():
    assert bootstrap(5, lambda drawn: None, RULES) == Interval(value=None)


def test_text():
    assert Interval(value=0.784, low=0.701, high=0.838).text == "0.784 (0.701 to 0.838)"
    assert Interval(value=0.784).text == "0.784"
    assert Interval(value=None).text == "-"


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([3, 2, 1], [True, False, False], 1.0),
        ([1, 2, 3], [True, False, False], 0.0),
        ([1, 1, 1, 1], [True, True, False, False], 0.5),  # ties are half
        ([4, 3, 2, 1], [True, False, True, False], 0.75),  # of the four pairs one is the wrong way round
        ([1, 2], [True, True], None),
        ([], [], None),
    ],
)
def test_auroc_by_hand(scores, positive, expected):
    assert auroc(scores, positive, RULES).value == expected


def test_auroc_has_an_interval():
    found = auroc([5, 4, 3, 2, 1, 0], [True, True, False, True, False, False], RULES)
    assert found.value == pytest.approx(8 / 9)
    assert found.low < found.value <= found.high <= 1
    with pytest.raises(ValueError, match="2 scores for 1 cases"):
        auroc([1, 2], [True], RULES)
