"""Budgets by hand, the paper's among them."""

import pytest

from atlas_ray.prioritization.effort import Effort, knee_of
from atlas_ray.prioritization.strategies import RankedCase


def ranking(scores: list[float]) -> list[RankedCase]:
    return [RankedCase(case_id=f"c{i}", rank=i, score=score, organs=("a",) if score else ()) for i, score in enumerate(scores, 1)]


def test_the_papers_budget():
    """Section 2.2: 8,000 cases, 5 %, 15 minutes a case, 8 hours a day: 400 cases in 12.5 days, then 200; 7.5 % by hand."""
    budget = Effort().budget(ranking([1.0] * 8000))
    assert (budget.cases, budget.share, budget.minutes, budget.days, budget.rule) == (400, 0.05, 6000.0, 12.5, "share")
    assert (budget.next_cases, budget.next_days, budget.by_hand) == (200, 6.25, 0.075)
    assert budget.case_ids[0] == "c1"
    assert budget.case_ids[-1] == "c400"


def test_the_papers_forty_cases():
    """Two of forty (figure 3a), by the share and by the knee of such a curve."""
    curve = [100.0, 90.0, *(20 - i / 2 for i in range(38))]
    for rule in ("share", "knee"):
        budget = Effort(rule=rule).budget(ranking(curve))
        assert (budget.cases, budget.knee, budget.rule, budget.of_cases) == (2, 2, rule, 40)


@pytest.mark.parametrize(
    ("scores", "knee"),
    [
        ([100, 90, 10, 9, 8, 7], 2),
        ([7, 100, 8, 10, 9, 90], 2),  # sorted first
        ([100, 10, 9, 8, 7], 1),
        ([5, 4, 3, 2, 1], 0),  # straight
        ([10, 9.9, 9.8, 0], 0),  # bulging: nearly all stand out
        ([3, 3, 3], 0),
        ([9, 1], 0),
        ([], 0),
    ],
)
def test_knee(scores, knee):
    assert knee_of(scores) == knee


@pytest.mark.parametrize(
    ("effort", "scores", "cases", "rule"),
    [
        (Effort(), [3, 2, 1], 1, "min_cases"),  # 5 % of 3 rounds to none
        (Effort(min_cases=0), [3, 2, 1], 0, "share"),
        (Effort(budget_share=0.5), [5, 4, 3, 2, 1], 3, "share"),  # 2.5 rounds up
        (Effort(budget_share=1, max_cases=2), [5, 4, 3, 2, 1], 2, "max_cases"),
        (Effort(budget_share=1, max_cases=5), [5, 4, 3, 2, 1], 5, "share"),
        (Effort(budget_share=1), [5, 4, 0, 0], 2, "no_organ_left"),
        (Effort(), [0, 0], 0, "no_organ_left"),
        (Effort(), [], 0, "no_organ_left"),
        (Effort(rule="knee"), [5, 4, 3, 2, 1], 1, "min_cases"),
    ],
)
def test_which_rule_sets_the_number(effort, scores, cases, rule):
    budget = effort.budget(ranking(scores))
    assert (budget.cases, budget.rule) == (cases, rule)
    assert len(budget.case_ids) == cases


def test_a_case_with_no_organ_to_revise_is_passed_over():
    ranked = ranking([5, 0, 3, 2])
    budget = Effort(budget_share=0.5, minutes_per_case=30, hours_per_day=4).budget(ranked)
    assert budget.case_ids == ("c1", "c3")
    assert (budget.minutes, budget.days, budget.share) == (60.0, 0.25, 0.5)


def test_more_than_all_cases_are_not_done_by_hand():
    budget = Effort(budget_share=1, next_round=0.25).budget(ranking([4, 3, 2, 1]))
    assert (budget.cases, budget.next_cases, budget.by_hand) == (4, 1, 1.0)
