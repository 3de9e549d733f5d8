"""What the partial-label mask is worth: 14 sources, each labeled for other organs and none for all, assembled into three networks.

python benchmarks/assembly.py [--workspace FOLDER] [--steps N]

Synthetic patients in four orientations and spacings, two per source, four more to measure on. Every training runs twice: once with
organs that a source does not label left out of the loss, once with them counted as background, as the authors' released code has it
(paper-algorithm a.7). Killed, it goes on where it was when the same folder is given again. About 20 minutes on two cores.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import show_rows

from atlas_ray.cluster.session import in_process
from atlas_ray.config import Campaign
from atlas_ray.organs import load_organs
from atlas_ray.steps.evaluate import Evaluation, evaluate_step
from atlas_ray.steps.ingest import ingest_step
from atlas_ray.steps.predict import predict_step
from atlas_ray.steps.train import train_step
from atlas_ray.workspace import write_lines

ORGANS = "abdomenatlas_1_0"
# Channels of the organs that each source labels, much as public datasets do: seven of nine at most, one or two in half of them.
SOURCES = (
    (4,),
    (1, 2, 4, 5, 7, 8),
    (4,),
    (2, 3),
    (1, 2, 3, 4, 5, 7, 8),
    (2, 3, 4, 5, 7),
    (0, 1, 4, 5, 6, 7, 8),
    (2, 3, 4),
    (0, 2, 3, 4, 6, 7),
    (5,),
    (7,),
    (4,),
    (0, 1, 2, 3, 5, 6),
    (0, 6),
)
GRIDS = (("RAS", (4, 4, 4)), ("LPS", (4, 4, 8)), ("LAS", (6, 6, 6)), ("PIR", (5, 5, 5)))
CASES, HOLDOUT = 2, 4
FIELD_OF_VIEW_MM = (384, 336, 384)
SPACING_MM = 8
MASKED, UNMASKED = "with the mask", "unlabeled is background"


def sources() -> list[dict[str, Any]]:
    names = load_organs(ORGANS).names
    made = []
    for number, channels in enumerate(SOURCES):
        orientation, spacing = GRIDS[number % len(GRIDS)]
        phantom = {"orientation": orientation, "spacing": spacing, "field_of_view_mm": FIELD_OF_VIEW_MM}
        fields = {"count": CASES, "split": "train", "labeled_organs": [names[c] for c in channels]}
        made.append({"source": "phantom", "name": f"source_{number + 1:02d}", "phantom": phantom, **fields})
    scan = {"spacing": (4, 4, 4), "field_of_view_mm": FIELD_OF_VIEW_MM}
    return [*made, {"source": "phantom", "name": "unseen", "count": HOLDOUT, "split": "holdout", "phantom": scan}]


def campaign(workspace: Path, steps: int) -> Campaign:
    return Campaign.model_validate(
        {
            "name": "assembly",
            "workspace": str(workspace),
            "organs": ORGANS,
            "datasets": sources(),
            "preprocessing": {"spacing": [SPACING_MM] * 3},
            "architectures": [
                {"architecture": "swin_unetr", "feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
                {"architecture": "nnunet", "features": [8, 16, 32, 64]},
                {"architecture": "unet", "features": [12, 24, 48, 96]},
            ],
            "patches": {"patch": [64, 32, 32], "foreground": 0.9},
            "training": {
                "steps": steps,
                "batch": 2,
                "learning_rate": 0.004,
                "warmup_steps": 20,
                "gradient_clip": 1.0,
                "validation_cases": 0,
                "checkpoint_every": 50,
                "per_architecture": {
                    "swin_unetr": {"learning_rate": 0.002, "precision": "float32"},
                    "unet": {"batch": 4},
                },
            },
            "inference": {"window": [64, 32, 32], "overlap": 0.5, "batch": 4},
        }
    )


def without_the_mask(assembled: Campaign) -> None:
    """Say of every case that all its organs are labeled: those that its label map lacks are now background."""
    workspace, organs = assembled.open_workspace(), assembled.load_organs()
    cases = [c.model_copy(update={"labeled_organs": organs.names}) if c.split == "train" else c for c in workspace.cases()]
    write_lines(workspace.manifest, cases)


def evaluated(assembled: Campaign, *, masked: bool) -> Evaluation:
    ingest_step(assembled)
    if not masked:
        without_the_mask(assembled)
    train_step(assembled, 0, progress=lambda: print(".", end="", flush=True))
    predict_step(assembled, 0, splits=("holdout",))
    return evaluate_step(assembled, 0)


def rows(results: dict[str, Evaluation]) -> list[tuple[Any, ...]]:
    """An organ or a network a row; the last column is who has the higher Dice."""
    first = next(iter(results.values()))
    values: dict[str, list[float | None]] = {}
    for index, organ in enumerate(first.organs):
        values[organ.organ] = [result.organs[index].dice for result in results.values()]
    for name in first.architectures:
        values[f"mean, {name} alone"] = [result.mean_by_architecture[name] for result in results.values()]
    values["**mean, all three**"] = [result.mean_dice for result in results.values()]
    return [(name, *(f"{dice or 0:.3f}" for dice in dices), _winner(list(results), dices)) for name, dices in values.items()]


def _winner(variants: Sequence[str], dices: Sequence[float | None]) -> str:
    ordered = sorted(zip((dice or 0.0 for dice in dices), variants, strict=True), reverse=True)
    return ordered[0][1] if ordered[0][0] > ordered[1][0] else "neither"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "atlas_ray_assembly")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    results = {}
    with in_process():
        for variant, folder in ((MASKED, "masked"), (UNMASKED, "unmasked")):
            results[variant] = evaluated(campaign(args.workspace / folder, args.steps), masked=variant == MASKED)
    print()
    note = (
        f"{len(SOURCES)} sources of {CASES} synthetic CT, labeled for {min(map(len, SOURCES))} to {max(map(len, SOURCES))} of "
        f"{len(load_organs(ORGANS))} organs; {SPACING_MM} mm, {args.steps} steps per training; Dice on {HOLDOUT} other CT."
    )
    show_rows("Assembling partial labels", ("Dice", *results, "winner"), rows(results), note=note)


if __name__ == "__main__":
    main()
