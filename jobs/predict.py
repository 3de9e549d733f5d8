"""Pseudo-labels and attention maps of every case, by the ensemble of a round.

python -m jobs.predict CONFIG [--round N] [--split pool] [--set key=value] [--dry-run]
"""

from atlas_ray.cluster.prediction import plan_predictions, retry_failed
from atlas_ray.cluster.session import ray_session
from atlas_ray.job import (
    ConfigArgument,
    DryRunOption,
    RetryFailedOption,
    RoundOption,
    SetOption,
    SplitOption,
    open_campaign,
    print_table,
    progress,
    run,
)
from atlas_ray.lock import locked
from atlas_ray.steps.predict import predict_step, to_predict


def main(
    config: ConfigArgument,
    round_: RoundOption = 0,
    split: SplitOption = None,
    set_: SetOption = None,
    again: RetryFailedOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Predict what is not predicted yet. A bad case is set aside with its reason; the others go on."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    splits = tuple(split or ("train", "pool", "holdout"))
    cases = to_predict(campaign, splits)
    if dry_run:
        plan = plan_predictions(campaign, round_, cases)
        states = {c.case_id: "to do" for c in plan.todo} | {q.case_id: f"set aside: {q.reason}" for q in plan.failed}
        print_table(
            f"would predict {len(plan.todo)} of {len(cases)} cases in round {round_}",
            ("case", "state"),
            [(c.case_id, states.get(c.case_id, "done")) for c in cases],
        )
        return
    with locked(campaign.open_workspace(), "jobs.predict"), ray_session(), progress("predict", len(cases)) as advance:
        if again:
            retry_failed(campaign, round_)
        summary = predict_step(campaign, round_, splits=splits, progress=advance)
    title = f"{summary.predicted} predicted, {summary.skipped} done before"
    print_table(title, ("failed", "reason"), [(q.case_id, q.reason) for q in summary.failed])
    if summary.predicted:
        peaks = f"peak memory {summary.actor_peak_mb:.0f} MB in an actor, {summary.finish_peak_mb:.0f} MB in a task after it"
        busy = f"actors in their networks {summary.times.busy('networks'):.0%} of the time"
        seconds = [(stage, f"{seconds:.1f}") for stage, seconds in summary.times.seconds.items()]
        print_table(f"{busy}; {peaks}", ("stage", "seconds of all workers"), seconds)


if __name__ == "__main__":
    run(main)
