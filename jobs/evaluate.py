"""What a round's predictions are worth, measured against reference labels.

python -m jobs.evaluate WORD CONFIG [--round N] [--split holdout] [--set key=value] [--dry-run]
"""

from typing import Annotated

import typer

from atlas_ray.cluster.session import ray_session
from atlas_ray.config import Campaign
from atlas_ray.job import ConfigArgument, DryRunOption, RoundOption, SetOption, job_with_words, open_campaign, print_table, run
from atlas_ray.records import Split
from atlas_ray.steps.evaluate import evaluate_step

app = job_with_words(__doc__)
EvaluatedSplit = Annotated[Split, typer.Option("--split", help="Which split's predictions to compare with their reference.")]


@app.command()
def dice(
    config: ConfigArgument,
    round_: RoundOption = 0,
    split: EvaluatedSplit = "holdout",
    set_: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Dice of the ensemble and of each architecture."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    if dry_run:
        _plan(campaign, round_, split)
        return
    with ray_session():
        evaluation = evaluate_step(campaign, round_, split=split)
    names = list(evaluation.architectures)
    rows = [
        (row.organ, row.dice, *(evaluation.architectures[name][index].dice for name in names))
        for index, row in enumerate(evaluation.organs)
    ]
    rows.append(("mean", evaluation.mean_dice, *(evaluation.mean_by_architecture[name] for name in names)))
    print_table(f"round {round_}: Dice on {evaluation.cases} {split} cases", ("organ", "ensemble", *names), rows)


def _plan(campaign: Campaign, round_index: int, split: Split) -> None:
    workspace = campaign.open_workspace()
    done = workspace.predicted(round_index)
    rows = [(c.case_id, c.case_id in done, workspace.truth(c.case_id).exists()) for c in workspace.cases() if c.split == split]
    print_table(f"would evaluate {split} in round {round_index}", ("case", "predicted", "has reference"), rows)


if __name__ == "__main__":
    run(app)
