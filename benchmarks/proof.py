"""The paper's tables and figures from a campaign of our own: table 1, figures 1b, 3a, 3b and 6, false positives; docs/proof.md.

python benchmarks/proof.py [CONFIG] [--set key=value ...] [--out FOLDER] [--page]     CONFIG is configs/proof.yaml

Runs the campaign's first round with its oracle annotator, then measures. Started again it goes on; --page writes the page alone.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from measure import machine

from atlas_ray.config import Campaign, load_config
from atlas_ray.evaluation.paper import paper_figures
from atlas_ray.evaluation.plots import organ_volumes
from atlas_ray.prioritization.effort import Budget
from atlas_ray.steps.attention import AttentionReport, table_1
from atlas_ray.steps.bias import AVERAGE, REFERENCE, BiasReport
from atlas_ray.steps.compare import Comparison
from atlas_ray.steps.errors import ErrorReport
from atlas_ray.steps.evaluate import Evaluation
from atlas_ray.steps.false_positives import FalsePositiveReport
from atlas_ray.storage import write_atomically
from atlas_ray.volume import read_labels

DOCS = Path(__file__).resolve().parents[1] / "docs"
MODES = ("physical", "faithful")
WEAK_DICE = 0.3
Rows = Sequence[Sequence[object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="proof")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=DOCS)
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page of what was measured")
    arguments = parser.parse_args()
    campaign = load_config(arguments.config, arguments.set)
    where = [arguments.config, *(word for change in arguments.set for word in ("--set", change))]
    commands = {
        "round": ["run_round", *where],
        **{mode: ["evaluate", "attention", *where, "--mode", mode] for mode in MODES},
        "dice": ["evaluate", "dice", *where],
        "errors": ["evaluate", "errors", *where],
        "bias": ["evaluate", "bias", *where],
        "false-positives": ["evaluate", "false-positives", *where],
        "compare": ["evaluate", "compare", *where, "--rounds", "0,1"],
    }
    for command in [] if arguments.page else [c for key, c in commands.items() if key != "dice"]:  # the round has evaluated it
        print("---", *command, flush=True)
        subprocess.run([sys.executable, "-m", f"jobs.{command[0]}", *command[1:]], check=True)
    shown = {key: f"python -m jobs.{shlex.join(command)}" for key, command in commands.items()}
    write_atomically(arguments.out / "proof.md", page(campaign, shown, arguments.out / "proof"))


def page(campaign: Campaign, commands: dict[str, str], pictures: Path) -> str:
    """The page, with its pictures written beside it."""
    workspace = campaign.open_workspace()

    def report(name: str) -> bytes:
        return workspace.report(0, name).read_bytes()

    def picture(name: str, data: bytes) -> str:
        write_atomically(pictures / f"{name}.png", data)
        return f"![{name.replace('_', ' ')}]({pictures.name}/{name}.png)"

    def plotted(name: str) -> bytes:
        return workspace.plot(0, name).read_bytes()

    measured = [mode for mode in MODES if workspace.report(0, f"attention_holdout_{mode}").exists()]
    attention = {mode: AttentionReport.model_validate_json(report(f"attention_holdout_{mode}")) for mode in measured}
    errors = ErrorReport.model_validate_json(report("errors_holdout"))
    bias = BiasReport.model_validate_json(report("bias_holdout"))
    false = FalsePositiveReport.model_validate_json(report("false_positives_holdout"))
    compared = workspace.report(1, "compare_holdout_000_001")
    comparison = Comparison.model_validate_json(compared.read_bytes()) if compared.exists() else None
    budget = Budget.model_validate_json(workspace.budget(0).read_bytes())
    evaluation = Evaluation.model_validate_json(workspace.evaluation(0).read_bytes())
    rules, paper = attention[measured[0]].rules, paper_figures().false_positives
    volumes, cases = _volumes(campaign), workspace.cases()
    splits = Counter(case.split for case in cases)
    parts = [
        "# Proof: the paper's tables and figures, from a campaign of our own",
        f"`make proof` makes this page: `python benchmarks/proof.py {campaign.name}`, on {machine()}; {time.strftime('%Y-%m-%d')}.",
        "**What it is.** A small campaign with synthetic patients, small networks trained for minutes, and an oracle for an "
        "annotator. It shows that the method runs from end to end and that its measures measure what they say. It shows nothing "
        f"about real CT. The numbers of the paper ({paper_figures().citation}) come from private patients and large networks: "
        "they stand beside ours as a scale, not as a target.",
        f"**What was run.** `configs/{campaign.name}.yaml`: {splits['train']} labeled patients teach {_listed(campaign)} of "
        f"{len(volumes)} organs; these label {splits['pool']} others, and attention ranks them. The oracle corrects the first "
        f"{budget.cases}, the networks are tuned with what it corrected, and {splits['holdout']} patients that nobody trained on "
        f"or asked about are what everything is measured on. Voxels are {' x '.join(f'{edge:g}' for edge in cases[0].spacing)} mm.",
        f"**How to read it.** Every number has the command that makes it. Brackets hold {rules.confidence:.0%} intervals from "
        f"drawing cases with replacement (BCa, {rules.resamples} draws): they say what other patients of this kind might have "
        "given, and nothing about another training of the networks, of which there is one. A dash: there was nothing to measure.",
        "All that follows needs the campaign's first round:",
        _code(commands["round"]),
        "## What came out",
        *_findings(attention, evaluation, comparison, bias),
        "## The networks before annotation",
        _code(commands["dice"]),
        f"Dice on {evaluation.cases} holdout cases; of the average also surface Dice at {rules.tolerance_mm:g} mm, strict for "
        "such voxels. `cases` have the organ.",
        _table(
            ("organ", "cases", "average", "surface Dice", *evaluation.architectures),
            [
                (row.organ, row.cases, row.dice, row.surface_dice, *(rows[n].dice for rows in evaluation.architectures.values()))
                for n, row in enumerate(evaluation.organs)
            ]
            + [("mean", "", evaluation.mean_dice, evaluation.mean_surface_dice, *evaluation.mean_by_architecture.values())],
        ),
        "## Table 1: does the attention find the errors?",
        f"An error is a connected region of at least {rules.min_error_mm3:g} mm3 where pseudo-label and reference differ. It is "
        f"found where attention covers {f'{rules.min_overlap:.0%}' if rules.min_overlap else 'one voxel'} of it (so does the "
        "paper, for whom an error that is touched is a hit); attention is right by the same rule, from "
        f"{rules.min_attention_mm3:g} mm3 on. Shares are pooled over cases; the mean is over organs. The same counted in voxels "
        "asks much more, because attention is a hint and not a mask; `missed volume` is the share of a case's error volume in "
        "regions that attention does not touch.",
    ]
    for mode, found in attention.items():
        columns, rows = table_1(found)
        parts += [f"### `{mode}`, {found.cases} holdout cases", _code(commands[mode]), _table(columns, rows)]
        parts.append(picture(f"table_1_{mode}", plotted(f"attention_holdout_{mode}_table_1")))
    parts += [
        "## Figure 1b: volumes of the organs",
        _code(commands["round"]),
        picture("figure_1b", organ_volumes(volumes, title=f"Reference labels of {len(cases)} synthetic patients")),
        "## Figure 3a: attention size and who is revised",
        _code(commands["round"]),
        f"The pool in the order of its attention: {budget.cases} of {budget.of_cases} cases are asked about, {budget.minutes:g} "
        f"minutes of an annotator by the paper's estimate of {campaign.effort.minutes_per_case:g} a case. The paper asks about "
        f"{paper_figures().revised_share:.0%}, which of so few cases would be two.",
        picture("figure_3a", plotted("attention_curve")),
        "## Figure 3b: what kinds of errors there are",
        _code(commands["errors"]),
        _table(
            ("type", "errors", "cases", "ml", "with attention"),
            [
                (t.error, t.errors, t.cases, t.volume_ml, f"{t.has_attention} ({t.has_attention / t.errors:.0%})")
                for t in errors.types
            ],
        ),
        picture("figure_3b", plotted("errors_holdout_figure_3b")),
        "## Figure 6: label bias",
        "If architectures agree with each other no more than with the reference, none has a habit that data made by it alone "
        "would inherit; the average should be closer to the reference than any of them. Every number is the "
        "mean over cases of a case's mean over organs; an organ that only one of the two has counts 0.",
        _code(commands["bias"]),
        _table(
            ("", "against", "cases", "Dice", f"surface Dice, {rules.tolerance_mm:g} mm"),
            [(p.first, p.second, p.cases, p.dice.text, p.surface_dice.text) for p in bias.pairs],
        ),
        picture("figure_6", plotted("bias_holdout_figure_6")),
        "## False positives (section 4)",
        _code(commands["false-positives"]),
        "What the average predicts of organs that a patient does not have. Intervals of the rate are Clopper and Pearson's. The "
        f"paper's are of one kind of tumor: {paper.cases_with_any} of {paper.cases} CT without it had at least one, "
        f"{paper.components} in all.",
        _table(
            ("organ", "cases without", "with false", "rate", "components", "median mm3", "largest mm3"),
            [(r.organ, r.cases, r.cases_with_any, r.rate.text, r.components, r.median_mm3, r.largest_mm3) for r in false.organs],
        ),
    ]
    if comparison:
        parts += _two_rounds(comparison, commands["compare"])
    return "\n\n".join(parts) + "\n"


def _two_rounds(comparison: Comparison, command: str) -> list[str]:
    return [
        "## One round of annotation",
        _code(command),
        f"Dice before and after fine-tuning on what the oracle corrected in {comparison.minutes or 0:.0f} simulated minutes, "
        "paired by case. How MLflow shows the two rounds:",
        "![two rounds in MLflow](screenshots/mlflow.png)",
        "Made by `python benchmarks/mlflow_picture.py`.",
        _table(
            ("organ", "cases", "round 0", "round 1", "difference"),
            [(r.organ, r.cases, r.before.text, r.after.text, r.difference.text) for r in (*comparison.organs, comparison.mean)],
        ),
    ]


def _findings(
    attention: Mapping[str, AttentionReport], evaluation: Evaluation, comparison: Comparison | None, bias: BiasReport
) -> list[str]:
    """The page's numbers in a few sentences, and what limits them."""
    paper = paper_figures().attention
    found = "; ".join(f"`{m}`: sensitivity {a.sensitivity.text}, precision {a.precision.text}" for m, a in attention.items())
    alone = {p.first: p.dice for p in bias.pairs if p.second == REFERENCE}
    average = alone.pop(AVERAGE)
    by_organ = {name: mean for name, mean in evaluation.mean_by_architecture.items() if mean is not None}
    strongest = max(by_organ, key=lambda name: by_organ[name])
    best = max(alone, key=lambda name: alone[name].value or 0)
    lines = [
        f"- Attention against errors, mean over organs: {found}. The paper: {paper.mean_sensitivity:g} and "
        f"{paper.mean_precision:g}.",
        f"- The average of the architectures has Dice {average.text} against the reference, the best of them alone "
        f"({best.replace('_', ' ')}) {alone[best].text}: means over patients. By organ, over the patients that have it, "
        f"the average has {evaluation.mean_dice or 0:.3f} and {strongest.replace('_', ' ')} {by_organ[strongest]:.3f}.",
    ]
    if evaluation.attention_mm3 is not None:
        lines.append(
            "- That sensitivity has its price: so little training leaves disagreement along every boundary, and attention covers "
            f"{evaluation.attention_mm3 / 1000:.0f} ml of a case (summed over organs). Precision falls where many of its regions "
            "lie on boundaries that are right."
        )
    if comparison:
        gain = comparison.mean
        clear = "clear of zero" if gain.difference.excludes_zero else "not clear of zero"
        lines.append(
            f"- One round of {comparison.minutes or 0:.0f} simulated minutes takes the mean Dice from {gain.before.text} to "
            f"{gain.after.text}; difference {gain.difference.text}, {clear}."
        )
    if weak := [row.organ.replace("_", " ") for row in evaluation.organs if row.dice is not None and row.dice < WEAK_DICE]:
        lines.append(
            f"- Limit: before annotation the average hardly finds {', '.join(weak)} (Dice below {WEAK_DICE:g}); so short is the "
            "training. That it is not predicted where it is absent, either, says nothing."
        )
    missing = [f"`{mode}` attention" for mode in MODES if mode not in attention] + (
        [] if comparison else ["the round after annotation"]
    )
    if missing:
        lines.append(f"- Not measured for this page: {', '.join(missing)}. `make proof` goes on with it.")
    return ["\n".join(lines)]


def _listed(campaign: Campaign) -> str:
    names = [name.replace("_", " ") for name in campaign.architecture_names]
    return f"{', '.join(names[:-1])} and {names[-1]} the labels"


def _volumes(campaign: Campaign) -> dict[str, list[float]]:
    """Organ -> its volume, ml, in each case with a reference that has it."""
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    volumes: dict[str, list[float]] = {name: [] for name in organs.names}
    for case in workspace.cases():
        if workspace.truth(case.case_id).exists():
            for name, voxels in organs.voxels(read_labels(workspace.truth(case.case_id))).items():
                volumes[name] += [voxels * case.voxel_volume_mm3 / 1000] if voxels else []
    return volumes


def _code(command: str) -> str:
    return f"```\n{command}\n```"


def _table(columns: Sequence[str], rows: Rows) -> str:
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("_", " ")


if __name__ == "__main__":
    main()
