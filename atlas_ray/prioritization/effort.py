"""How much of a priority list is worth the annotator's time, and how long that takes."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat

from atlas_ray.prioritization.audit import Audit
from atlas_ray.prioritization.strategies import RankedCase
from atlas_ray.schema import Fraction, Schema

Rule = Literal["share", "knee", "min_cases", "max_cases", "no_organ_left"]


class Budget(Schema):
    """What one round asks of the annotator.

    Args:
        case_ids: the cases to revise, first one first.
        cases: how many they are.
        of_cases: how many were ranked.
        share: cases / of_cases.
        minutes, days: expected active annotation time of the list, and working days of `Effort.hours_per_day`.
        next_cases, next_days: the same for the next round, as `Effort.next_round` estimates it.
        by_hand: share of the ranked cases that people have confirmed or revised after both; the networks made the others.
        knee: how many cases lie before the knee of the curve of scores, whether it was used or not; 0 where there is none.
        rule: what set the number.
        audit: cases beyond the list that are read as well, to know what it missed; the annotator is not told which.
    """

    case_ids: tuple[str, ...]
    cases: int
    of_cases: int
    share: Fraction
    minutes: float
    days: float
    knee: int
    rule: Rule
    next_cases: int = 0
    next_days: float = 0.0
    by_hand: Fraction = 0.0
    audit: tuple[str, ...] = ()


class Effort(Schema):
    """The annotator's time and how it is spent.

    The defaults are the paper's (section 2.2): 15 minutes a case, 8 hours a day, and 5 % of the cases, which its authors read
    off the curve of 40 attention sizes: 8,000 cases make 400 to revise, 12.5 days.

    Args:
        rule: "share" takes `budget_share` of the ranked cases; "knee" those before the knee of the curve, and `min_cases`
            where it has none.
        min_cases, max_cases: bounds on either.
        next_round: cases of the next round for one of this one. The paper expects 200 after 400, because attention shrinks as the
            networks learn; together that is 7.5 % of 8,000 by hand and 92.5 % by the networks.
        audit: of cases that are not on the list.
    """

    minutes_per_case: PositiveFloat = 15.0
    hours_per_day: PositiveFloat = 8.0
    rule: Literal["share", "knee"] = "share"
    budget_share: Fraction = 0.05
    min_cases: NonNegativeInt = 1
    max_cases: NonNegativeInt | None = Field(default=None)
    next_round: Fraction = 0.5
    audit: Audit = Audit()

    def budget(self, ranked: Sequence[RankedCase], round_index: int = 0) -> Budget:
        """The first cases of a ranked list. Cases with no organ to revise are passed over: there is nothing to look at.

        Args:
            round_index: the audit draws other cases in every round.
        """
        knee = knee_of([case.score for case in ranked])
        wanted, rule = self._wanted(len(ranked), knee)
        workable = [case.case_id for case in ranked if case.organs]
        if wanted > len(workable):
            wanted, rule = len(workable), "no_organ_left"
        minutes, after = wanted * self.minutes_per_case, round(wanted * self.next_round)
        chosen = tuple(workable[:wanted])
        return Budget(
            case_ids=chosen,
            cases=wanted,
            of_cases=len(ranked),
            share=wanted / len(ranked) if ranked else 0.0,
            minutes=minutes,
            days=minutes / 60 / self.hours_per_day,
            knee=knee,
            rule=rule,
            next_cases=after,
            next_days=after * self.minutes_per_case / 60 / self.hours_per_day,
            by_hand=min(1.0, (wanted + after) / len(ranked)) if ranked else 0.0,
            audit=self.audit.draw(ranked, chosen, round_index),
        )

    def _wanted(self, of_cases: int, knee: int) -> tuple[int, Rule]:
        wanted = knee if self.rule == "knee" else int(self.budget_share * of_cases + 0.5)
        rule: Rule = self.rule
        if wanted < self.min_cases:
            wanted, rule = self.min_cases, "min_cases"
        if self.max_cases is not None and wanted > self.max_cases:
            wanted, rule = self.max_cases, "max_cases"
        return wanted, rule


def knee_of(scores: Sequence[float]) -> int:
    """How many cases stand out before the curve of scores flattens.

    The scores are sorted descending and both axes scaled to 0..1; the knee is the point farthest below the chord from the first
    to the last (the Kneedle idea, Satopää 2011, without smoothing). The number of cases before it is returned: of
    100, 90, 10, 9, 8, 7 it is 2. 0 where there are fewer than three cases, or none lies below the chord: a straight or
    bulging curve has no few outliers that could stand for the rest.
    """
    y = np.sort(np.asarray(scores, np.float64))[::-1]
    if len(y) < 3 or y[0] == y[-1]:
        return 0
    x = np.linspace(0, 1, len(y))
    below = 1 - x - (y - y[-1]) / (y[0] - y[-1])
    return int(below.argmax()) if below.max() > 1e-9 else 0
