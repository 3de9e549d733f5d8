"""Turn the annotators' submitted revisions into the round's annotations.

python -m jobs.merge CONFIG [--round N] [--set key=value] [--dry-run]
"""

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue
from atlas_ray.annotation.review import to_merge
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.job import ConfigArgument, DryRunOption, RoundOption, SetOption, open_campaign, print_table, run
from atlas_ray.lock import locked
from atlas_ray.steps.merge import merge_step
from atlas_ray.steps.prioritize import QUEUE_LABELS


def main(config: ConfigArgument, round_: RoundOption = 0, set_: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Write label and provenance of every case that is done on its image's own grid. May be run again at any time."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    workspace = campaign.open_workspace()
    is_queued = workspace.budget(round_).exists() or QUEUE_LABELS in workspace.finished_steps(round_)
    if not is_queued:  # opening the database would make an empty one
        raise WorkspaceError(f"round {round_} has no queue; run `python -m jobs.prioritize {config} --round {round_}` first")
    if dry_run:
        with open_database(campaign.database_url) as database:
            items = Queue(database).items(round_)
        merged = {i.item_id for i in to_merge(items, second_reader_share=campaign.annotation.second_reader_share)}
        rows = [(i.case_id, i.reading, i.state, i.review or "", i.user, "yes" if i.item_id in merged else "") for i in items]
        print_table(f"would merge of round {round_}", ("case", "reading", "state", "review", "by", "merged"), rows)
        return
    with locked(workspace, "jobs.merge"):
        count = merge_step(campaign, round_)
    folder = workspace.round(round_) / "annotations"
    print_table(f"round {round_}", ("merged cases", "folder"), [(str(count), str(folder))])


if __name__ == "__main__":
    run(main)
