"""What the priority list may have missed: a random sample of the cases it passes over, read without knowing that it is one."""

import random
from collections.abc import Sequence

from pydantic import Field, NonNegativeInt

from atlas_ray.prioritization.strategies import RankedCase
from atlas_ray.schema import Fraction, Schema


class AuditResult(Schema):
    """What the audit of a round says of all cases that were not on its list.

    Args:
        audited: audit cases that are finished.
        with_error: of them, in how many something had to be changed.
        bound: the share of unqueried cases with an error is below it with the audit's confidence; 1 where nothing was audited.
    """

    audited: NonNegativeInt = 0
    with_error: NonNegativeInt = 0
    bound: Fraction = 1.0


class Audit(Schema):
    """How many cases beyond the list are read, and what counts as an error in them.

    Args:
        cases: how many, drawn anew each round; 0 is no audit. Without any error found, 59 put the 95 % bound below 5 %.
        confidence: of the bound, which is one-sided.
        max_revised_share: of a case's labeled voxels; more than this changed is an error.
    """

    cases: NonNegativeInt = 0
    seed: int = 0
    confidence: float = Field(default=0.95, gt=0, lt=1)
    max_revised_share: Fraction = 0.001

    def draw(self, ranked: Sequence[RankedCase], listed: Sequence[str], round_index: int) -> tuple[str, ...]:
        """Case ids, drawn evenly from the ranked cases that are not listed; the same for the same seed and round."""
        left = sorted({case.case_id for case in ranked} - set(listed))
        return tuple(random.Random(f"audit/{self.seed}/{round_index}").sample(left, min(self.cases, len(left))))

    def mixed(self, listed: Sequence[str], audited: Sequence[str], round_index: int) -> list[str]:
        """The list in its order with the audit cases at random places, so that nobody can tell them by where they stand."""
        chance = random.Random(f"audit-places/{self.seed}/{round_index}")
        places = set(chance.sample(range(len(listed) + len(audited)), len(audited)))
        rest, extra = iter(listed), iter(audited)
        return [next(extra) if place in places else next(rest) for place in range(len(listed) + len(audited))]

    def result(self, revised_shares: Sequence[float]) -> AuditResult:
        """Of the share of voxels that was changed in each finished audit case."""
        errors = sum(share > self.max_revised_share for share in revised_shares)
        bound = upper_bound(errors, len(revised_shares), self.confidence)
        return AuditResult(audited=len(revised_shares), with_error=errors, bound=bound)


def upper_bound(events: int, trials: int, confidence: float) -> float:
    """The one-sided upper bound of Clopper and Pearson (1934) on a share of which `events` in `trials` were seen.

    Exact for independent draws; from a finite number of cases, as here, it is on the safe side.
    """
    from scipy.stats import beta

    if events >= trials:
        return 1.0
    return float(beta.ppf(confidence, events + 1, trials - events))
