"""One whole round: ingest, train, predict, prioritize, annotate, merge, fine-tune, evaluate. Start it again to go on.

python -m jobs.run_round CONFIG [--round N] [--replay STEP] [--retry-failed] [--set key=value] [--dry-run]
"""

from typing import Annotated

import typer

from atlas_ray.cluster.session import ray_session
from atlas_ray.job import (
    ConfigArgument,
    DryRunOption,
    RetryFailedOption,
    RoundOption,
    SetOption,
    open_campaign,
    out,
    print_table,
    progress,
    run,
)
from atlas_ray.lock import locked
from atlas_ray.report import next_commands, plan_rows, round_rows
from atlas_ray.rounds import Step, run_round

ReplayOption = Annotated[Step | None, typer.Option("--replay", help="Start the round again from this step; nothing is deleted.")]


def main(
    config: ConfigArgument,
    round_: RoundOption = 0,
    replay: ReplayOption = None,
    again: RetryFailedOption = False,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Run, or go on with, one round. With a human annotator it stops when the queue is filled and goes on when it is worked off."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    if dry_run:
        print_table(f"would run round {round_} in {campaign.workspace}", ("", ""), plan_rows(campaign, round_))
        return
    with locked(campaign.open_workspace(), "jobs.run_round"), ray_session():
        result = run_round(campaign, round_, replay=replay, retry=again, bar=progress)
    if result.skipped:
        out.print(f"skipped, done before: {', '.join(result.skipped)}")
    columns, rows = round_rows(campaign, [result])
    print_table("what the round did (Dice on the holdout)", columns, rows)
    for line in next_commands(campaign, config, result):
        out.print(line)


if __name__ == "__main__":
    run(main)
