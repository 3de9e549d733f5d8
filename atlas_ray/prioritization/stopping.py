"""When the rounds may end. A rule looks at what a round brought and says yes or no, with its reason for the record."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from atlas_ray.prioritization.audit import AuditResult
from atlas_ray.schema import Fraction, Schema


class RoundOutcome(Schema):
    """What a finished round tells the stop rules.

    Args:
        rounds: rounds finished so far, this one and round 0 included.
        top_case: the case that was first on the priority list; None where no case had an organ to revise.
        top_case_reviewed: whether the annotator has finished with it.
        top_voxels_revised: voxels the annotator changed in it, summed over organs.
        top_voxels_labeled: voxels of the organs that were up for revision in it, as annotated in the end.
        audit: of the cases that were not on the list.
    """

    rounds: NonNegativeInt
    top_case: str | None
    top_case_reviewed: bool = False
    top_voxels_revised: NonNegativeInt = 0
    top_voxels_labeled: NonNegativeInt = 0
    audit: AuditResult = AuditResult()


class StopDecision(Schema):
    """Whether a rule was met, and why or why not."""

    rule: str
    met: bool
    reason: str


class TopCaseNeedsNone(Schema):
    """The paper's rule (section 2.2, step 7): stop when the case of the highest priority needs no revision.

    Annotators touch up a voxel here and there in a perfect label, so "none" is a share.

    Args:
        max_revised_share: of the labeled voxels; 0.001 is 0.1 %, of the order of a Dice of 0.9995.
        max_audit_bound: what the audit's bound on the share of unqueried cases with an error may be at most; None asks for no
            audit.
    """

    rule: Literal["top_case_needs_none"] = "top_case_needs_none"
    max_revised_share: Fraction = 0.001
    max_audit_bound: Fraction | None = None

    def met(self, outcome: RoundOutcome) -> StopDecision:
        top = self._top_case(outcome)
        if self.max_audit_bound is None:
            return top
        audit = outcome.audit
        found = f"{audit.with_error} of {audit.audited} audited cases had an error, so at most {audit.bound:.1%} of the others do"
        reason = f"{top.reason}; {found}; {self.max_audit_bound:.1%} is the limit"
        return self._say(top.met and audit.bound <= self.max_audit_bound, reason)

    def _top_case(self, outcome: RoundOutcome) -> StopDecision:
        if outcome.top_case is None:
            return self._say(True, "no case had an organ to revise")
        if not outcome.top_case_reviewed:
            return self._say(False, f"{outcome.top_case}, the case of highest priority, has not been reviewed")
        share = outcome.top_voxels_revised / max(1, outcome.top_voxels_labeled)
        changed = f"{outcome.top_voxels_revised} of {outcome.top_voxels_labeled} voxels ({share:.3%}) of {outcome.top_case}"
        return self._say(
            share <= self.max_revised_share,
            f"{changed}, the case of highest priority, were revised; {self.max_revised_share:.3%} is the limit",
        )

    def _say(self, met: bool, reason: str) -> StopDecision:
        return StopDecision(rule=self.rule, met=met, reason=reason)


class MaxRounds(Schema):
    """Stop after a number of rounds, round 0 included; the paper took three weeks for two after round 0."""

    rule: Literal["max_rounds"] = "max_rounds"
    rounds: PositiveInt = 3

    def met(self, outcome: RoundOutcome) -> StopDecision:
        reason = f"{outcome.rounds} rounds finished of at most {self.rounds}"
        return StopDecision(rule=self.rule, met=outcome.rounds >= self.rounds, reason=reason)


StopRule = Annotated[TopCaseNeedsNone | MaxRounds, Field(discriminator="rule")]
