"""The random sample of what the list passes over."""

import pytest

from atlas_ray.prioritization.audit import Audit, upper_bound
from atlas_ray.prioritization.effort import Effort
from atlas_ray.prioritization.stopping import RoundOutcome, TopCaseNeedsNone
from atlas_ray.prioritization.strategies import RankedCase


def ranking(count: int) -> list[RankedCase]:
    return [RankedCase(case_id=f"c{i:02d}", rank=i, score=100.0 - i, organs=("a",)) for i in range(1, count + 1)]


@pytest.mark.parametrize(
    ("events", "trials", "bound"),
    [
        (0, 59, 1 - 0.05 ** (1 / 59)),  # without an event: (1 - bound)^n = 5 %; the "rule of three" says 3 / 59
        (0, 1, 0.95),
        (1, 1, 1.0),
        (5, 5, 1.0),
        (0, 0, 1.0),
        (1, 10, 0.3941633),  # 1 - (1 - p)^10 - 10 p (1 - p)^9 = 95 %
    ],
)
def test_clopper_and_pearson(events, trials, bound):
    assert upper_bound(events, trials, 0.95) == pytest.approx(bound, abs=1e-6)


def test_drawn_of_what_is_not_listed_anew_each_round():
    audit, listed = Audit(cases=5), ["c01", "c02"]
    drawn = audit.draw(ranking(30), listed, 0)
    assert len(set(drawn)) == 5
    assert not set(drawn) & set(listed)
    assert audit.draw(ranking(30)[::-1], listed, 0) == drawn
    assert audit.draw(ranking(30), listed, 1) != drawn
    assert Audit(cases=5, seed=1).draw(ranking(30), listed, 0) != drawn
    assert len(Audit(cases=50).draw(ranking(30), listed, 0)) == 28


def test_mixed_in_at_random_places_and_the_list_keeps_its_order():
    audit, listed, extra = Audit(cases=3), [f"c{i}" for i in range(20)], ["x", "y", "z"]
    places = set()
    for round_index in range(20):
        mixed = audit.mixed(listed, extra, round_index)
        assert sorted(mixed) == sorted([*listed, *extra])
        assert [case for case in mixed if case in listed] == listed
        places |= {mixed.index(case) for case in extra}
    assert len(places) > 10  # other ones each round
    assert min(places) <= 2
    assert max(places) >= 20


def test_the_budget_names_them_and_the_bound_counts_them():
    effort = Effort(audit=Audit(cases=10))
    budget = effort.budget(ranking(40), 2)
    assert budget.cases == 2  # 5 %: the audit comes on top
    assert len(budget.audit) == 10
    assert budget.audit == effort.audit.draw(ranking(40), ["c01", "c02"], 2)
    result = effort.audit.result([0.0, 0.001, 0.2])  # of 0.1 % nobody speaks
    assert (result.audited, result.with_error) == (3, 1)
    assert result.bound == pytest.approx(0.8646, abs=1e-4)  # 1 - (1 - p)^3 - 3 p (1 - p)^2 = 95 %


def test_the_stop_rule_may_ask_for_the_bound():
    perfect = {"rounds": 2, "top_case": "c01", "top_case_reviewed": True, "top_voxels_revised": 0, "top_voxels_labeled": 1000}
    good = RoundOutcome(**perfect, audit=Audit().result([0.0] * 59))
    poor = RoundOutcome(**perfect, audit=Audit().result([0.0] * 20))
    rule = TopCaseNeedsNone(max_audit_bound=0.05)
    assert rule.met(good).met
    assert not rule.met(poor).met
    assert "at most 13.9% of the others" in rule.met(poor).reason
    assert not rule.met(RoundOutcome(**perfect)).met  # no audit, no bound
    assert TopCaseNeedsNone().met(RoundOutcome(**perfect)).met
