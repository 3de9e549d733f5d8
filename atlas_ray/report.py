"""What a round is summed up to for the person at the terminal."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from atlas_ray.config import Campaign
from atlas_ray.data.ingest import collect
from atlas_ray.redaction import without_passwords
from atlas_ray.rounds import STEPS, RoundResult


def plan_rows(campaign: Campaign, round_index: int) -> list[tuple[str, str]]:
    """What a round would work on, with what, and which of its steps are already finished."""
    workspace, where = campaign.open_workspace(), campaign.cluster
    found = collect(campaign.datasets, campaign.load_organs(), workspace, data_root=campaign.data_root)
    splits = Counter(candidate.split for candidate in found)
    device = "GPU" if where.use_gpu else "CPU"
    done = workspace.finished_steps(round_index)
    return [
        ("cases", ", ".join(f"{count} {split}" for split, count in splits.items())),
        ("networks", ", ".join(campaign.ensemble_names)),
        ("training", f"{where.train_workers} {device} worker(s) of {where.cpus_per_worker} CPUs"),
        ("prediction", f"up to {where.actors} {device} actor(s)"),
        ("annotator", campaign.annotation.annotator.annotator),
        *((f"step {step}", done.get(step, "to do")) for step in STEPS),
    ]


def round_rows(campaign: Campaign, results: Sequence[RoundResult]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the campaign's table: one row per round, the last one's fine-tuned networks included.

    Attention size is the mean over the holdout, so that rounds compare; cases and minutes are what the round asked of people.
    """
    organs = campaign.load_organs().names
    rows: list[list[Any]] = []
    for result in results:
        effort = [f"{result.annotation.submitted} of {result.budget.of_cases}", f"{result.annotation.minutes:.0f}"]
        rows.append(_row(result.round, result.before, organs, effort))
    last = results[-1]
    if last.after is not None:
        rows.append(_row(last.round + 1, last.after, organs, ["-", "-"]))
    columns = ["round", "mean Dice", *organs, "attention ml", "cases revised", "minutes"]
    flipped = [[columns[i], *(row[i] for row in rows)] for i in range(1, len(columns))]
    return ["", *(f"round {row[0]}" for row in rows)], flipped


def _row(round_index: int, evaluation: Any, organs: Sequence[str], effort: list[str]) -> list[Any]:
    if evaluation is None:
        return [round_index, None, *(None for _ in organs), None, *effort]
    dice = {row.organ: row.dice for row in evaluation.organs}
    attention_ml = None if evaluation.attention_mm3 is None else f"{evaluation.attention_mm3 / 1000:.1f}"
    return [round_index, evaluation.mean_dice, *(dice.get(name) for name in organs), attention_ml, *effort]


def next_commands(campaign: Campaign, config: str, result: RoundResult) -> list[str]:
    """What the user would do next: annotate or look, compare rounds, go on."""
    lines = []
    if result.waiting:
        annotation = result.annotation
        lines.append(f"{annotation.open} cases wait for an annotator, {annotation.to_review} for a reviewer; then run this again")
    if result.stop is not None:
        lines.append(f"stop rule: {'met' if result.stop.met else 'not met'} ({result.stop.reason})")
    store = campaign.tracking_uri
    mlflow = (
        f"mlflow server --backend-store-uri {store} --port 5000"
        if store.startswith("sqlite:")
        else f"open {without_passwords(store)} in a browser"
    )
    lines += [
        f"annotate or look:  python -m ui {campaign.workspace} --round {result.round} --no-auth",
        f"compare rounds:    {mlflow}",
    ]
    if not result.waiting:
        lines.append(f"next round:        python -m jobs.run_round {config} --round {result.round + 1}")
    return lines
