"""Rank the predicted cases and put the ones worth the annotator's time into the queue.

python -m jobs.prioritize CONFIG [--round N] [--set key=value] [--labels] [--dry-run]
"""

from typing import Annotated

import typer

from atlas_ray.job import ConfigArgument, DryRunOption, RoundOption, SetOption, open_campaign, print_table, run
from atlas_ray.lock import locked
from atlas_ray.steps.prioritize import labels_to_review, prioritize_step, queue_labels_step, round_scores


def main(
    config: ConfigArgument,
    round_: RoundOption = 0,
    set_: SetOption = None,
    labels: Annotated[bool, typer.Option("--labels", help="queue the labels that exist for review; needs no prediction")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Write the priority list (CSV, Parquet, plot) and fill the annotation queue up to the budget."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    if labels:
        if dry_run:
            number = len(labels_to_review(campaign))
        else:
            with locked(campaign.open_workspace(), "jobs.prioritize"):
                number = queue_labels_step(campaign, round_)
        print_table(f"round {round_}", ("would queue labels" if dry_run else "new labels to review",), [(str(number),)])
        return
    if dry_run:
        ranked = campaign.strategy.rank(round_scores(campaign, round_))
        chosen = set(campaign.effort.budget(ranked).case_ids)
        rows = [(r.rank, r.case_id, f"{r.score:.0f}", "yes" if r.case_id in chosen else "") for r in ranked]
        print_table(f"would queue {len(chosen)} of {len(ranked)} cases", ("rank", "case", "score", "queued"), rows)
        return
    with locked(campaign.open_workspace(), "jobs.prioritize"):
        budget = prioritize_step(campaign, round_)
    workspace = campaign.open_workspace()
    rows = [("cases", f"{budget.cases} of {budget.of_cases}"), ("minutes", f"{budget.minutes:.0f}"), ("days", f"{budget.days:.1f}")]
    print_table(f"round {round_}: {workspace.priority_csv(round_)}", ("budget", ""), rows)


if __name__ == "__main__":
    run(main)
