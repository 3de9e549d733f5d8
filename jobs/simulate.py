"""A whole campaign with the oracle annotator: rounds until the stop rule is met.

python -m jobs.simulate CONFIG [--rounds N] [--set key=value] [--dry-run]
"""

from typing import Annotated

import typer

from atlas_ray.cluster.session import ray_session
from atlas_ray.job import ConfigArgument, DryRunOption, SetOption, open_campaign, out, print_table, progress, run
from atlas_ray.lock import locked
from atlas_ray.report import round_rows
from atlas_ray.rounds import simulate

RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="Most rounds to run.")]


def main(config: ConfigArgument, rounds: RoundsOption = 3, set_: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Play a campaign with known ground truth in place of the annotator, and print its story."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    if dry_run:
        workspace = campaign.open_workspace()
        rows = [(r, ", ".join(workspace.finished_steps(r)) or "to do") for r in range(rounds)]
        print_table(f"would simulate in {campaign.workspace}", ("round", "finished steps"), rows)
        return
    with locked(campaign.open_workspace(), "jobs.simulate"), ray_session():
        results = simulate(campaign, rounds, bar=progress)
    columns, rows = round_rows(campaign, results)
    print_table("campaign (Dice on the holdout)", columns, rows)
    if results[-1].stop:
        out.print(results[-1].stop.reason)


if __name__ == "__main__":
    run(main)
