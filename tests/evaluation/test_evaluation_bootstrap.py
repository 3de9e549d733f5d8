"""Intervals over cases: what must hold whatever is drawn, and small cases by hand."""

import numpy as np
import pytest

from atlas_ray.evaluation.bootstrap import Interval, _bca, bootstrap, bootstrap_mean, bootstrap_ratio, paired_difference
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
    half = bootstrap_mean([0.0, 1.0] * 50, Rules(resamples=500, confidence=0.5))  # 0.5 +- 0.67 * 0.05
    assert (half.low, half.high) == pytest.approx((0.466, 0.534), abs=0.015)


def test_two_cases_by_hand():
    """A quarter of the draws are 0 and 0, a quarter 1 and 1: more than 2.5 % at either end, and nothing is skewed."""
    found = bootstrap_mean([0.0, 1.0], RULES)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_one_case_in_a_hundred_may_well_have_been_five():
    """Draws hold the case 0, 1, 2.. times, as Poisson(1) has it: plain percentiles end at 3 of 100. Corrected by hand:

    With ties half, 0.37 + 0.37 / 2 of the draws lie below the value: the bias is z(0.55) = 0.13. The acceleration is a sixth of the
    skewness of Poisson(1): 0.16. The upper end is at Phi(0.13 + 2.09 / (1 - 0.16 * 2.09)) = Phi(3.3), where 5 or 6 lie; the lower
    one at Phi(0.13 - 1.83 / (1 + 0.16 * 1.83)) = Phi(-1.3), a tenth: 0.
    """
    found = bootstrap_mean([1.0] + [0.0] * 99, RULES)
    assert found.value == 0.01
    assert found.low == 0
    assert 0.04 <= found.high <= 0.06


def test_a_bias_moves_both_ends_twice_by_hand():
    """60 % of a thousand draws are below the value, z = 0.25; without skew the ends are at Phi(0.51 -+ 1.96)."""
    low, high = _bca(600, np.arange(1000.0), np.array([599.0, 601.0]), 0.95)
    assert (low, high) == pytest.approx((73.3, 992.2), abs=1)


def test_agrees_with_scipy():
    from scipy.stats import bootstrap as peer

    values = [0.95, 0.93, 0.6, 0.75, 0.9, 0.91, 0.99, 0.7, 0.96, 0.94]  # skewed: the ends of plain percentiles are higher
    theirs = peer((values,), np.mean, n_resamples=4000, method="BCa", rng=np.random.default_rng(1)).confidence_interval
    ours = bootstrap_mean(values, Rules(resamples=4000))
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


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
    assert paired_difference(after, before, RULES).excludes_zero  # or lost
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
