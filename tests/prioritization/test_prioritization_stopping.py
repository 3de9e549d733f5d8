"""Stop rules and what they say."""

from pydantic import TypeAdapter

from atlas_ray.prioritization.stopping import MaxRounds, RoundOutcome, StopRule, TopCaseNeedsNone


def outcome(**changes) -> RoundOutcome:
    values = {"rounds": 2, "top_case": "c1", "top_case_reviewed": True, "top_voxels_revised": 0, "top_voxels_labeled": 10_000}
    return RoundOutcome(**{**values, **changes})


def test_top_case_that_needed_nothing_ends_the_campaign():
    decision = TopCaseNeedsNone().met(outcome())
    assert decision.met
    assert decision.reason == ("0 of 10000 voxels (0.000%) of c1, the case of highest priority, were revised; 0.100% is the limit")
    assert TopCaseNeedsNone().met(outcome(top_voxels_revised=10)).met
    assert not TopCaseNeedsNone().met(outcome(top_voxels_revised=11)).met
    assert TopCaseNeedsNone(max_revised_share=0.01).met(outcome(top_voxels_revised=11)).met
    assert not TopCaseNeedsNone(max_revised_share=0.5).met(outcome(top_voxels_revised=6000)).met


def test_top_case_nobody_looked_at_ends_nothing():
    decision = TopCaseNeedsNone().met(outcome(top_case_reviewed=False))
    assert not decision.met
    assert "c1" in decision.reason
    assert "has not been reviewed" in decision.reason


def test_an_organ_that_was_all_erased_or_added_is_a_revision():
    assert not TopCaseNeedsNone().met(outcome(top_voxels_revised=50, top_voxels_labeled=0)).met
    assert TopCaseNeedsNone().met(outcome(top_voxels_revised=0, top_voxels_labeled=0)).met


def test_no_case_with_attention_ends_the_campaign():
    decision = TopCaseNeedsNone().met(outcome(top_case=None))
    assert decision.met
    assert decision.reason == "no case had an organ to revise"
    assert not TopCaseNeedsNone(max_audit_bound=0.05).met(outcome(top_case=None)).met  # and the others were never audited


def test_max_rounds():
    assert not MaxRounds(rounds=3).met(outcome(rounds=2)).met
    assert MaxRounds(rounds=3).met(outcome(rounds=3)).met
    assert MaxRounds(rounds=3).met(outcome(rounds=3)).reason == "3 rounds finished of at most 3"


def test_every_rule_says_its_name_and_decision():
    rules = [TypeAdapter(StopRule).validate_python({"rule": name}) for name in ("top_case_needs_none", "max_rounds")]
    decisions = [rule.met(outcome(top_voxels_revised=5000, rounds=3)) for rule in rules]
    assert [(d.rule, d.met) for d in decisions] == [("top_case_needs_none", False), ("max_rounds", True)]
