"""Does the attention find the errors of new cases? The study's three ways of looking, on its holdout.

They are compared in the reference arm, after its first round: there every case of the pool has been revised, so that calibrated
attention has learned from as many revisions as the study can give. What it learned from are round 0's predictions of the pool; what
it is asked about are round 1's of the holdout.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from atlas_ray.config import Campaign
from atlas_ray.evaluation.bootstrap import Interval
from atlas_ray.progress import Advance
from atlas_ray.schema import Schema
from atlas_ray.simulation.arms import arm_campaign, arms_of, study_of
from atlas_ray.steps.attention import attention_step

ROUND = 1


class ModeResult(Schema):
    """One mode on the holdout.

    Args:
        errors, regions: of error and of attention, over all organs.
        sensitivity, precision: mean over organs, as in the paper's table 1.
    """

    mode: str
    errors: int
    regions: int
    sensitivity: Interval
    precision: Interval


def compare_modes(campaign: Campaign, *, bar: Callable[[str, int], AbstractContextManager[Advance]]) -> tuple[ModeResult, ...]:
    """Every mode the study asks for; cases that are predicted already are not predicted again."""
    study = study_of(campaign)
    arm = arm_campaign(campaign, arms_of(study)[0])
    results = []
    with bar("modes of attention", len(study.modes)) as advance:
        for mode in study.modes:
            report = attention_step(arm, ROUND, mode=mode, alpha=study.alpha)
            results.append(
                ModeResult(
                    mode=mode,
                    errors=sum(row.counts.errors for row in report.organs),
                    regions=sum(row.counts.regions for row in report.organs),
                    sensitivity=report.sensitivity,
                    precision=report.precision,
                )
            )
            advance()
    return tuple(results)
