"""Pseudo-labels and attention of every case that is not predicted yet."""

from collections.abc import Sequence

from atlas_ray.cluster import prediction
from atlas_ray.cluster.tracking import step_run
from atlas_ray.config import Campaign
from atlas_ray.progress import Advance, not_shown
from atlas_ray.records import Case, Split


def predict_step(
    campaign: Campaign,
    round_index: int,
    *,
    splits: Sequence[Split] = ("train", "pool", "holdout"),
    progress: Advance = not_shown,
) -> prediction.PredictionSummary:
    """Pseudo-labels and attention of every case of the given splits."""
    cases = to_predict(campaign, splits)
    with step_run(campaign, round_index, "predict") as run:
        summary = prediction.predict_cases(campaign, round_index, cases, progress=progress)
        run.metrics(
            {
                "predict/cases": summary.predicted,
                "predict/skipped": summary.skipped,
                "predict/failed": len(summary.failed),
                "predict/actor_peak_mb": summary.actor_peak_mb,
                "predict/finish_peak_mb": summary.finish_peak_mb,
                "predict/networks_busy": summary.times.busy("networks"),
                **{f"predict/seconds/{stage}": seconds for stage, seconds in summary.times.seconds.items()},
            }
        )
    return summary


def to_predict(campaign: Campaign, splits: Sequence[Split]) -> list[Case]:
    """Cases of these splits; a training case whose every organ is labeled has nothing to predict."""
    organs = set(campaign.load_organs().names)
    cases = campaign.open_workspace().cases()
    return [c for c in cases if c.split in splits and not (c.split == "train" and organs <= set(c.labeled_organs))]
