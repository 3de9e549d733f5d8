"""Mark a round as one that does not go on, and close its queue. Nothing is deleted.

python -m jobs.abandon CONFIG [--round N] [--set key=value] [--dry-run]
"""

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue
from atlas_ray.job import ConfigArgument, DryRunOption, RoundOption, SetOption, open_campaign, print_table, run
from atlas_ray.lock import locked
from atlas_ray.steps.abandon import abandon_round


def main(config: ConfigArgument, round_: RoundOption = 0, set_: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Give up a round. `jobs.run_round --replay STEP` takes it up again; the next round starts from the networks there are."""
    campaign = open_campaign(config, set_, dry_run=True)
    if dry_run:
        counts = {}
        if campaign.has_database:
            with open_database(campaign.database_url) as database:
                counts = Queue(database).counts(round_)
        print_table(f"would abandon round {round_}", ("queue", "cases"), list(counts.items()))
        return
    with locked(campaign.open_workspace(), "jobs.abandon"):
        left = abandon_round(campaign, round_)
    rows = [
        ("items closed", left.closed),
        ("submitted items kept", left.submitted),
        ("revisions kept", left.revisions),
        ("annotations kept, and used by later rounds", left.merged),
        ("predictions kept", left.predicted),
    ]
    print_table(f"round {round_} is abandoned", ("", "number"), rows)


if __name__ == "__main__":
    run(main)
