"""What a round's predictions are worth, measured against reference labels.

python -m jobs.evaluate WORD CONFIG [--round N] [--split holdout] [--set key=value] [--dry-run]
"""

from collections.abc import Callable
from typing import Annotated

import typer

from atlas_ray.cluster.session import ray_session
from atlas_ray.config import Campaign, load_config
from atlas_ray.exceptions import ConfigError
from atlas_ray.job import (
    ConfigArgument,
    DryRunOption,
    RoundOption,
    SetOption,
    job_with_words,
    open_campaign,
    print_table,
    progress,
    run,
)
from atlas_ray.records import Split
from atlas_ray.steps.attention import Mode, attention_step, table_1
from atlas_ray.steps.bias import bias_step
from atlas_ray.steps.compare import compare_step
from atlas_ray.steps.errors import errors_step
from atlas_ray.steps.evaluate import evaluate_step
from atlas_ray.steps.false_positives import false_positives_step
from atlas_ray.steps.label_quality import finished_label, given_labels, label_quality_step

app = job_with_words(__doc__)
JudgeOption = Annotated[
    str | None,
    typer.Option("--networks", metavar="CONFIG", help="Let another campaign's networks judge, which never saw these cases."),
]
WorstOption = Annotated[int, typer.Option("--worst", min=1, help="How many to print.")]
EvaluatedSplit = Annotated[Split, typer.Option("--split", help="Which split's predictions to compare with their reference.")]
ModeOption = Annotated[
    Mode | None, typer.Option("--mode", help="Another attention than the campaign's: the round predicts its cases once more.")
]
AlphaOption = Annotated[
    float | None,
    typer.Option(
        "--alpha", min=0.001, max=0.999, help="Share of the error volume that --mode calibrated may miss; 0.1 by default."
    ),
]
RoundsOption = Annotated[str, typer.Option("--rounds", metavar="N,M", help="The earlier and the later round.")]


def _on_a_split(measure: Callable[[Campaign, int, Split], None]) -> Callable[[Campaign, int, Split], None]:
    """A word that measures the predicted cases of a split of one round, and has no options of its own."""

    def command(
        config: ConfigArgument,
        round_: RoundOption = 0,
        split: EvaluatedSplit = "holdout",
        set_: SetOption = None,
        dry_run: DryRunOption = False,
    ) -> None:
        if campaign := _campaign(config, set_, round_, split, dry_run=dry_run):
            with ray_session():
                measure(campaign, round_, split)

    app.command(name=measure.__name__.replace("_", "-"), help=measure.__doc__)(command)
    return measure


@_on_a_split
def dice(campaign: Campaign, round_: int, split: Split) -> None:
    """Dice of the ensemble and of each architecture, and the ensemble's surface Dice."""
    evaluation = evaluate_step(campaign, round_, split=split)
    names = list(evaluation.architectures)
    rows = [
        (row.organ, row.dice, row.surface_dice, *(evaluation.architectures[name][index].dice for name in names))
        for index, row in enumerate(evaluation.organs)
    ]
    means = (evaluation.mean_dice, evaluation.mean_surface_dice, *evaluation.mean_by_architecture.values())
    columns = ("organ", "ensemble", f"surface Dice, {campaign.evaluation.tolerance_mm:g} mm", *names)
    print_table(f"round {round_}: Dice on {evaluation.cases} {split} cases", columns, [*rows, ("mean", *means)])


@app.command()
def attention(
    config: ConfigArgument,
    round_: RoundOption = 0,
    split: EvaluatedSplit = "holdout",
    mode: ModeOption = None,
    alpha: AlphaOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Does the attention find the errors? The paper's table 1, by component and by voxel."""
    campaign = _campaign(config, set_, round_, split, dry_run=dry_run)
    if campaign is None:
        return
    with ray_session():
        report = attention_step(campaign, round_, split=split, mode=mode, alpha=alpha)
    rules = report.rules
    print_table(f"round {round_}: {report.mode} attention on {report.cases} {split} cases", *table_1(report))
    print_table(
        "what counts",
        ("", ""),
        [
            ("smallest error", f"{rules.min_error_mm3:g} mm3"),
            ("found", f"{rules.min_overlap:.0%} of it covered" if rules.min_overlap else "one voxel of it covered"),
            ("interval", f"{rules.confidence:.0%}, {rules.resamples} draws of cases"),
        ],
    )


@_on_a_split
def errors(campaign: Campaign, round_: int, split: Split) -> None:
    """What kinds of errors there are, and which of them attention points at (figure 3b)."""
    report = errors_step(campaign, round_, split=split)
    rows = [(row.error, row.errors, row.cases, row.volume_ml, row.has_attention) for row in report.types]
    print_table(
        f"round {round_}: errors on {report.cases} {split} cases", ("type", "errors", "cases", "ml", "with attention"), rows
    )


@_on_a_split
def bias(campaign: Campaign, round_: int, split: Split) -> None:
    """How alike networks, their average, readers, annotation and reference are (figure 6)."""
    report = bias_step(campaign, round_, split=split)
    rows = [(pair.first, pair.second, pair.cases, pair.dice.text, pair.surface_dice.text) for pair in report.pairs]
    surface = f"surface Dice, {report.rules.tolerance_mm:g} mm"
    print_table(f"round {round_}: {report.cases} {split} cases", ("", "against", "cases", "Dice", surface), rows)


@_on_a_split
def false_positives(campaign: Campaign, round_: int, split: Split) -> None:
    """What is predicted on cases that do not have the organ or tumor (section 4)."""
    report = false_positives_step(campaign, round_, split=split)
    columns = ("organ", "cases without", "with false", "rate", "components", "median mm3", "largest mm3")
    rows = [
        (row.organ, row.cases, row.cases_with_any, row.rate.text, row.components, row.median_mm3, row.largest_mm3)
        for row in report.organs
    ]
    print_table(f"round {round_}: false positives on {report.cases} {split} cases", columns, rows)


@app.command()
def compare(
    config: ConfigArgument,
    rounds: RoundsOption,
    split: EvaluatedSplit = "holdout",
    set_: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Two rounds on the same cases, with paired intervals. Both need `dice` first."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    numbers = rounds.split(",")
    if len(numbers) != 2 or not all(n.strip().isdigit() for n in numbers):
        raise ConfigError(f"--rounds {rounds!r}: two round numbers are needed, such as 0,1")
    before, after = (int(n) for n in numbers)
    if dry_run:
        rows = [(r, campaign.open_workspace().evaluation(r, split).exists()) for r in (before, after)]
        print_table(f"would compare {split}", ("round", "evaluated"), rows)
        return
    found = compare_step(campaign, (before, after), split=split)
    columns = ("organ", "cases", f"round {before}", f"round {after}", "difference", "clear")
    rows = [
        (r.organ, r.cases, r.before.text, r.after.text, r.difference.text, "yes" if r.difference.excludes_zero else "no")
        for r in (*found.organs, found.mean)
    ]
    print_table(f"Dice on {split}, {found.rules.confidence:.0%} paired intervals", columns, rows)
    print_table("between them", ("minutes", "attention ml before", "after"), [(found.minutes, *found.attention_ml)])


@app.command()
def labels(
    config: ConfigArgument,
    round_: RoundOption = 0,
    judge: JudgeOption = None,
    worst: WorstOption = 20,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Score every given label, original ones too, by what the networks think of it; the worst are worth a look."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    other = load_config(judge) if judge else campaign
    given, workspace = given_labels(campaign, round_, other), campaign.open_workspace()
    todo = [label for _, label in given if not finished_label(label, workspace, round_)]
    if dry_run:
        rows = [(g.case_id, len(g.organs), sum(o.in_sample for o in g.organs), g in todo) for _, g in given]
        print_table(f"would score labels by the networks of {other.name}", ("case", "organs", "in sample", "to do"), rows)
        return
    with ray_session(), progress("labels", len(todo)) as advance:
        scores = label_quality_step(campaign, round_, judge=other, progress=lambda row: advance())
    rows = [
        (
            s.case_id,
            s.organ,
            s.source,
            "yes" if s.in_sample else "no",
            s.score,
            s.dice,
            f"{s.missing_ml:.1f}",
            f"{s.surplus_ml:.1f}",
        )
        for s in scores[:worst]
    ]
    columns = ("case", "organ", "source", "in sample", "score", "Dice", "missing ml", "surplus ml")
    print_table(f"the worst of {len(scores)} labels; all in {workspace.label_quality_csv(round_)}", columns, rows)


def _campaign(config: str, set_: list[str] | None, round_index: int, split: Split, *, dry_run: bool) -> Campaign | None:
    """The campaign; None after a dry run has said which cases would be measured."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    if not dry_run:
        return campaign
    workspace = campaign.open_workspace()
    done = workspace.predicted(round_index)
    rows = [(c.case_id, c.case_id in done, workspace.truth(c.case_id).exists()) for c in workspace.cases() if c.split == split]
    print_table(f"would evaluate {split} in round {round_index}", ("case", "predicted", "has reference"), rows)
    return None


if __name__ == "__main__":
    run(app)
