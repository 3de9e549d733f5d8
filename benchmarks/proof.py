"""The paper's tables and figures from a campaign of our own: table 1, figures 1b, 3a, 3b and 6, false positives; docs/proof.md.

python benchmarks/proof.py [CONFIG] [--set key=value ...] [--out FOLDER]     CONFIG is configs/proof.yaml

Runs the campaign's first round with its oracle annotator, then measures. Started again it goes on.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from measure import machine

from atlas_ray.config import Campaign, load_config
from atlas_ray.evaluation.paper import paper_figures
from atlas_ray.evaluation.plots import organ_volumes
from atlas_ray.prioritization.effort import Budget
from atlas_ray.steps.attention import AttentionReport, table_1
from atlas_ray.steps.bias import BiasReport
from atlas_ray.steps.compare import Comparison
from atlas_ray.steps.errors import ErrorReport
from atlas_ray.steps.false_positives import FalsePositiveReport
from atlas_ray.storage import write_atomically
from atlas_ray.volume import read_labels

DOCS = Path(__file__).resolve().parents[1] / "docs"
MODES = ("physical", "faithful")
Rows = Sequence[Sequence[object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="proof")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=DOCS)
    arguments = parser.parse_args()
    campaign = load_config(arguments.config, arguments.set)
    where = [arguments.config, *(word for change in arguments.set for word in ("--set", change))]
    commands = {
        "round": ["run_round", *where],
        **{mode: ["evaluate", "attention", *where, "--mode", mode] for mode in MODES},
        "errors": ["evaluate", "errors", *where],
        "bias": ["evaluate", "bias", *where],
        "false-positives": ["evaluate", "false-positives", *where],
        "compare": ["evaluate", "compare", *where, "--rounds", "0,1"],
    }
    started = time.monotonic()
    for command in commands.values():
        print("---", *command, flush=True)
        subprocess.run([sys.executable, "-m", f"jobs.{command[0]}", *command[1:]], check=True)
    minutes = (time.monotonic() - started) / 60
    shown = {key: f"python -m jobs.{shlex.join(command)}" for key, command in commands.items()}
    write_atomically(arguments.out / "proof.md", page(campaign, shown, arguments.out / "proof", minutes))


def page(campaign: Campaign, commands: dict[str, str], pictures: Path, minutes: float) -> str:
    """The page, with its pictures written beside it."""
    workspace = campaign.open_workspace()

    def report(name: str) -> bytes:
        return workspace.report(1 if name.startswith("compare") else 0, name).read_bytes()

    def picture(name: str, data: bytes) -> str:
        write_atomically(pictures / f"{name}.png", data)
        return f"![{name.replace('_', ' ')}]({pictures.name}/{name}.png)"

    def plotted(name: str) -> bytes:
        return workspace.plot(0, name).read_bytes()

    attention = {mode: AttentionReport.model_validate_json(report(f"attention_holdout_{mode}")) for mode in MODES}
    errors = ErrorReport.model_validate_json(report("errors_holdout"))
    bias = BiasReport.model_validate_json(report("bias_holdout"))
    false = FalsePositiveReport.model_validate_json(report("false_positives_holdout"))
    comparison = Comparison.model_validate_json(report("compare_holdout_000_001"))
    budget = Budget.model_validate_json(workspace.budget(0).read_bytes())
    rules, paper = attention[MODES[0]].rules, paper_figures().false_positives
    parts = [
        "# Proof",
        f"Made by `make proof` (`python benchmarks/proof.py {campaign.name}`) in {minutes:.0f} minutes on {machine()}; "
        f"{time.strftime('%Y-%m-%d')}. The patients are synthetic: the numbers show that the method and its measures work, and say "
        "nothing about real CT. The paper's numbers are of its private cases and stand beside ours as a scale, not as a target. "
        f"Brackets hold {rules.confidence:.0%} intervals over cases (BCa bootstrap).",
        "Everything below needs the campaign's first round:",
        _code(commands["round"]),
        "## Table 1: does the attention find the errors?",
        f"An error is a connected region of at least {rules.min_error_mm3:g} mm3 where pseudo-label and reference differ. It is "
        f"found where attention covers {f'{rules.min_overlap:.0%}' if rules.min_overlap else 'one voxel'} of it; attention is "
        f"right by the same rule, from {rules.min_attention_mm3:g} mm3 on. Shares are pooled over cases; the mean is over organs.",
    ]
    for mode, found in attention.items():
        columns, rows = table_1(found)
        parts += [f"### `{mode}`, {found.cases} holdout cases", _code(commands[mode]), _table(columns, rows)]
        parts.append(picture(f"table_1_{mode}", plotted(f"attention_holdout_{mode}_table_1")))
    parts += [
        "## Figure 1b: volumes of the organs",
        _code(commands["round"]),
        picture("figure_1b", organ_volumes(_volumes(campaign), title="Reference labels of the holdout")),
        "## Figure 3a: attention size and who is revised",
        _code(commands["round"]),
        f"{budget.cases} of {budget.of_cases} cases, {budget.minutes:g} minutes of an annotator by the paper's estimate.",
        picture("figure_3a", plotted("attention_curve")),
        "## Figure 3b: what kinds of errors there are",
        _code(commands["errors"]),
        _table(
            ("type", "errors", "cases", "ml", "with attention"),
            [(t.error, t.errors, t.cases, t.volume_ml, t.has_attention) for t in errors.types],
        ),
        picture("figure_3b", plotted("errors_holdout_figure_3b")),
        "## Figure 6: label bias",
        _code(commands["bias"]),
        _table(
            ("", "against", "cases", "Dice", f"surface Dice, {rules.tolerance_mm:g} mm"),
            [(p.first, p.second, p.cases, p.dice.text, p.surface_dice.text) for p in bias.pairs],
        ),
        picture("figure_6", plotted("bias_holdout_figure_6")),
        "## False positives (section 4)",
        _code(commands["false-positives"]),
        f"The paper's, of one kind of tumor: {paper.cases_with_any} of {paper.cases} CT without it had at least one, "
        f"{paper.components} in all.",
        _table(
            ("organ", "cases without", "with false", "rate", "components", "median mm3", "largest mm3"),
            [(r.organ, r.cases, r.cases_with_any, r.rate.text, r.components, r.median_mm3, r.largest_mm3) for r in false.organs],
        ),
        "## One round of annotation",
        _code(commands["compare"]),
        f"Dice before and after fine-tuning on what the oracle corrected in {comparison.minutes or 0:g} simulated minutes, paired.",
        _table(
            ("organ", "cases", "round 0", "round 1", "difference"),
            [(r.organ, r.cases, r.before.text, r.after.text, r.difference.text) for r in (*comparison.organs, comparison.mean)],
        ),
    ]
    return "\n\n".join(parts) + "\n"


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
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("_", " ")


if __name__ == "__main__":
    main()
