"""Describe and check every case of every dataset of a campaign.

python -m jobs.ingest CONFIG [--no-report] [--set key=value] [--dry-run]
"""

from typing import Annotated

import typer

from atlas_ray.cluster.session import ray_session
from atlas_ray.data.ingest import collect
from atlas_ray.job import ConfigArgument, DryRunOption, SetOption, open_campaign, out, print_table, run
from atlas_ray.lock import locked
from atlas_ray.steps.ingest import ingest_step, report_step

ReportOption = Annotated[bool, typer.Option("--report/--no-report", help="Write ingest.html: organs, volumes, geometry, pictures.")]


def main(config: ConfigArgument, report: ReportOption = True, set_: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Describe and check every case; write the manifest, the labels and the quarantine list. Images stay where they are."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    workspace = campaign.open_workspace()
    if dry_run:
        found = collect(campaign.datasets, campaign.load_organs(), workspace, data_root=campaign.data_root)
        print_table(
            f"would ingest into {workspace.manifest}", ("case", "split", "image"), [(c.case_id, c.split, c.image) for c in found]
        )
        return
    with locked(workspace, "jobs.ingest"), ray_session():
        done = ingest_step(campaign)
        page = report_step(campaign) if report else None
    rows = [(q.case_id, q.reason) for q in done.quarantined]
    print_table(f"{len(done.cases)} cases, {len(done.skipped)} unchanged, {len(rows)} quarantined", ("quarantined", "reason"), rows)
    if page:
        out.print(f"what was ingested, with pictures: {page}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
