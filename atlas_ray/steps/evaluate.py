"""Dice of a round's networks against reference labels, and surface Dice of their ensemble."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from pydantic import Field

from atlas_ray.cluster.tasks import map_cases
from atlas_ray.cluster.tracking import step_run
from atlas_ray.config import Campaign
from atlas_ray.evaluation.components import Rules
from atlas_ray.evaluation.surface import surface_dice
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.records import Case, OrganDice, Split
from atlas_ray.schema import Schema, Triple
from atlas_ray.segmentation.metrics import mean_organ_dice, mean_over_organs, organ_dice
from atlas_ray.steps.measured import Table, components_table, measured_cases
from atlas_ray.storage import write_atomically
from atlas_ray.volume import read_labels
from atlas_ray.workspace import Workspace

SURFACE = "surface"  # beside the names of networks, which have no such one: "" is the ensemble
PerOrgan = dict[str, float | None]


class Evaluation(Schema):
    """Dice of a round's ensemble and of each architecture on one split, on the images' own grids.

    Args:
        organs: of the ensemble, with its surface Dice at the campaign's `evaluation.tolerance_mm`.
        mean_surface_dice: over the organs; None where an earlier version wrote the evaluation.
        per_case, surface_per_case: case -> organ -> (surface) Dice of the ensemble; None where the reference lacks the organ.
    """

    round: int
    split: str
    cases: int
    organs: tuple[OrganDice, ...]
    mean_dice: float | None
    architectures: dict[str, tuple[OrganDice, ...]]
    attention_mm3: float | None = None  # mean over the cases
    attention_voxels: float | None = None
    mean_surface_dice: float | None = None
    per_case: dict[str, PerOrgan] = Field(default_factory=dict)
    surface_per_case: dict[str, PerOrgan] = Field(default_factory=dict)

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
    one = partial(
        _scores_of,
        root=str(workspace.root),
        round_index=round_index,
        names=("", *campaign.ensemble_names),
        organs=organs,
        rules=campaign.evaluation,
    )
    scores = list(map_cases(one, cases))
    rows = {name: tuple(mean_organ_dice([s[name] for s in scores], organs)) for name in ("", SURFACE, *campaign.ensemble_names)}
    attention = [workspace.case_scores(round_index, c.case_id) for c in cases]
    evaluation = Evaluation(
        round=round_index,
        split=split,
        cases=len(cases),
        organs=tuple(row.model_copy(update={"surface_dice": s.dice}) for row, s in zip(rows[""], rows[SURFACE], strict=True)),
        mean_dice=mean_over_organs(rows[""]),
        mean_surface_dice=mean_over_organs(rows[SURFACE]),
        architectures={name: rows[name] for name in campaign.ensemble_names},
        attention_mm3=float(np.mean([s.attention_mm3 for s in attention])),
        attention_voxels=float(np.mean([s.attention_voxels for s in attention])),
        per_case={c.case_id: s[""] for c, s in zip(cases, scores, strict=True)},
        surface_per_case={c.case_id: s[SURFACE] for c, s in zip(cases, scores, strict=True)},
    )
    path = workspace.evaluation(round_index, split)
    write_atomically(path, evaluation.model_dump_json(indent=2))
    with step_run(campaign, round_index, "evaluate") as run:
        run.metrics(evaluation_metrics(evaluation), step=round_index)
        for name, table in _tables(evaluation).items():
            run.table(name, table.columns, table.rows)
        components = components_table(workspace, round_index, [c.case_id for c in cases])
        run.table("attention_per_component", components.columns, components.rows)
        run.artifact(path)
    return evaluation


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float | None]:
    """Every number of an evaluation as "group/name"."""
    return {
        "dice/mean": evaluation.mean_dice,
        "surface_dice/mean": evaluation.mean_surface_dice,
        **{f"dice/{row.organ}": row.dice for row in evaluation.organs},
        **{f"surface_dice/{row.organ}": row.surface_dice for row in evaluation.organs},
        **{f"dice_{name}/mean": mean for name, mean in evaluation.mean_by_architecture.items()},
        **{f"dice_{name}/{row.organ}": row.dice for name, rows in evaluation.architectures.items() for row in rows},
        "attention_holdout/mean_mm3": evaluation.attention_mm3,
        "attention_holdout/mean_voxels": evaluation.attention_voxels,
    }


def _tables(evaluation: Evaluation) -> dict[str, Table]:
    """What MLflow shows of an evaluation, and puts beside that of another round."""
    names = tuple(evaluation.architectures)
    per_organ = tuple(
        (row.organ, row.cases, row.dice, row.surface_dice, *(evaluation.architectures[name][index].dice for name in names))
        for index, row in enumerate(evaluation.organs)
    )
    per_case = tuple(
        (case, organ, dice, evaluation.surface_per_case[case][organ])
        for case, by_organ in evaluation.per_case.items()
        for organ, dice in by_organ.items()
    )
    return {
        "dice_per_organ": Table(("organ", "cases", "dice", "surface_dice", *(f"dice_{name}" for name in names)), per_organ),
        "dice_per_case": Table(("case", "organ", "dice", "surface_dice"), per_case),
    }


def _scores_of(
    case: Case, *, root: str, round_index: int, names: Sequence[str], organs: Organs, rules: Rules
) -> dict[str, PerOrgan]:
    """Dice per organ of the ensemble ("") and of every architecture and member, None for an organ that a member does not know;
    and the ensemble's surface Dice."""
    workspace, case_id = Workspace(root), case.case_id
    truth = read_labels(workspace.truth(case_id))
    paths = {
        n: workspace.architecture_label(round_index, case_id, n) if n else workspace.pseudo_label(round_index, case_id)
        for n in names
    }
    absent = workspace.case_scores(round_index, case_id).absent
    labels = {name: read_labels(path) for name, path in paths.items()}
    found = {name: organ_dice(label, truth, organs) for name, label in labels.items()}
    found[SURFACE] = _organ_surface_dice(labels[""], truth, organs, case.spacing, rules)
    return {
        name: {organ: None if organ in absent.get(name, ()) else value for organ, value in dice.items()}
        for name, dice in found.items()
    }


def _organ_surface_dice(predicted: LabelMap, truth: LabelMap, organs: Organs, spacing: Triple, rules: Rules) -> PerOrgan:
    """Of every organ; None where the reference does not have it, as Dice."""
    there = organs.present(truth)
    return {
        name: surface_dice(organs.mask(predicted, name), organs.mask(truth, name), spacing, tolerance_mm=rules.tolerance_mm)
        if name in there
        else None
        for name in organs.names
    }
