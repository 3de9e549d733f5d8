"""Turn the annotators' submitted revisions into the round's annotations.

python -m jobs.merge CONFIG [--round N] [--set key=value] [--dry-run]
"""

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.job import ConfigArgument, DryRunOption, RoundOption, SetOption, open_campaign, print_table, run
from atlas_ray.steps import database_url, merge_step


def main(config: ConfigArgument, round_: RoundOption = 0, set_: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Write label and provenance of every submitted case on its image's own grid. May be run again at any time."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    if not campaign.open_workspace().budget(round_).exists():  # opening the database would make an empty one
        raise WorkspaceError(f"round {round_} has no queue; run `python -m jobs.prioritize {config} --round {round_}` first")
    if dry_run:
        with open_database(database_url(campaign)) as database:
            items = Queue(database).items(round_)
        print_table(
            f"would merge the submitted of round {round_}", ("case", "state", "by"), [(i.case_id, i.state, i.user) for i in items]
        )
        return
    merged = merge_step(campaign, round_)
    folder = campaign.open_workspace().round(round_) / "annotations"
    print_table(f"round {round_}", ("merged cases", "folder"), [(str(merged), str(folder))])


if __name__ == "__main__":
    run(main)
