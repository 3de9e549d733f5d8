"""Release the campaign's current truth as a dataset in AbdomenAtlas' layout.

python -m jobs.export CONFIG [--round N] [--out FOLDER] [--set key=value] [--dry-run]
"""

from pathlib import Path
from typing import Annotated

import typer

from atlas_ray.cluster.session import ray_session
from atlas_ray.job import ConfigArgument, DryRunOption, RoundOption, SetOption, open_campaign, print_table, progress, run
from atlas_ray.release import plan_release, release

OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="Where the release goes; without it, the round's folder.")
]


def main(
    config: ConfigArgument, round_: RoundOption = 0, out: OutOption = None, set_: SetOption = None, dry_run: DryRunOption = False
) -> None:
    """Write labels, masks and tables of every case but the holdout, as known after a round. Images stay where they are."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    planned, unknown = plan_release(campaign, round_)
    folder = (out or campaign.open_workspace().round(round_) / "release").absolute()
    if dry_run:
        rows = [(p.case.case_id, p.basis, p.round) for p in planned] + [(c.case_id, "nothing", None) for c in unknown]
        print_table(f"would release to {folder}", ("case", "from", "round"), rows)
        return
    with ray_session(), progress("export", len(planned)) as advance:
        report = release(campaign, planned, folder, progress=advance)
    rows = [(q.case_id, q.reason) for q in report.failed] + [(c.case_id, "nothing is known of it yet") for c in unknown]
    print_table(f"{len(report.cases)} cases in {folder}, {report.skipped} unchanged", ("left out", "reason"), rows)


if __name__ == "__main__":
    run(main)
