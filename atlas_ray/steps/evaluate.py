"""Dice of a round's networks against reference labels."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from pydantic import Field

from atlas_ray.cluster.tasks import map_cases
from atlas_ray.cluster.tracking import step_run
from atlas_ray.config import Campaign
from atlas_ray.organs import Organs
from atlas_ray.records import OrganDice, Split
from atlas_ray.schema import Schema
from atlas_ray.segmentation.metrics import mean_organ_dice, mean_over_organs, organ_dice
from atlas_ray.steps.measured import measured_cases
from atlas_ray.storage import write_atomically
from atlas_ray.volume import read_labels
from atlas_ray.workspace import Workspace


class Evaluation(Schema):
    """Dice of a round's ensemble and of each architecture on one split, on the images' own grids."""

    round: int
    split: str
    cases: int
    organs: tuple[OrganDice, ...]
    mean_dice: float | None
    architectures: dict[str, tuple[OrganDice, ...]]
    attention_mm3: float | None = None  # mean over the cases
    attention_voxels: float | None = None
    per_case: dict[str, dict[str, float | None]] = Field(default_factory=dict)

    @property
    def mean_by_architecture(self) -> dict[str, float | None]:
        return {name: mean_over_organs(rows) for name, rows in self.architectures.items()}


def evaluate_step(campaign: Campaign, round_index: int, *, split: Split = "holdout") -> Evaluation:
    """Compare predictions with the reference labels of a split; the evaluation is written and tracked.

    Raises:
        WorkspaceError: no predicted case of the split has a reference.
    """
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    cases = measured_cases(campaign, round_index, split)
    one = partial(_dice_of, root=str(workspace.root), round_index=round_index, names=("", *campaign.ensemble_names), organs=organs)
    scores = list(map_cases(one, [c.case_id for c in cases]))
    rows = {name: tuple(mean_organ_dice([s[name] for s in scores], organs)) for name in ("", *campaign.ensemble_names)}
    attention = [workspace.case_scores(round_index, c.case_id) for c in cases]
    evaluation = Evaluation(
        round=round_index,
        split=split,
        cases=len(cases),
        organs=rows[""],
        mean_dice=mean_over_organs(rows[""]),
        architectures={name: rows[name] for name in campaign.ensemble_names},
        attention_mm3=float(np.mean([s.attention_mm3 for s in attention])),
        attention_voxels=float(np.mean([s.attention_voxels for s in attention])),
        per_case={c.case_id: s[""] for c, s in zip(cases, scores, strict=True)},
    )
    path = workspace.evaluation(round_index, split)
    write_atomically(path, evaluation.model_dump_json(indent=2))
    with step_run(campaign, round_index, "evaluate") as run:
        run.metrics(evaluation_metrics(evaluation), step=round_index)
        per_case = [(case, organ, dice) for case, by_organ in evaluation.per_case.items() for organ, dice in by_organ.items()]
        run.table("dice_per_case", ("case", "organ", "dice"), per_case)
        run.artifact(path)
    return evaluation


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float | None]:
    """Every number of an evaluation as "group/name"."""
    return {
        "dice/mean": evaluation.mean_dice,
        **{f"dice/{row.organ}": row.dice for row in evaluation.organs},
        **{f"dice_{name}/mean": mean for name, mean in evaluation.mean_by_architecture.items()},
        **{f"dice_{name}/{row.organ}": row.dice for name, rows in evaluation.architectures.items() for row in rows},
        "attention_holdout/mean_mm3": evaluation.attention_mm3,
        "attention_holdout/mean_voxels": evaluation.attention_voxels,
    }


def _dice_of(
    case_id: str, *, root: str, round_index: int, names: Sequence[str], organs: Organs
) -> dict[str, dict[str, float | None]]:
    """Dice per organ of the ensemble ("") and of every architecture and member; None for an organ that a member does not know."""
    workspace = Workspace(root)
    truth = read_labels(workspace.truth(case_id))
    paths = {
        n: workspace.architecture_label(round_index, case_id, n) if n else workspace.pseudo_label(round_index, case_id)
        for n in names
    }
    absent = workspace.case_scores(round_index, case_id).absent
    found = {name: organ_dice(read_labels(path), truth, organs) for name, path in paths.items()}
    return {
        name: {organ: None if organ in absent.get(name, ()) else value for organ, value in dice.items()}
        for name, dice in found.items()
    }
