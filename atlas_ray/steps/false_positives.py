"""What a round predicts on cases that do not have an organ or a tumor at all (paper section 4)."""

from functools import partial

from atlas_ray.cluster.tasks import map_cases
from atlas_ray.config import Campaign
from atlas_ray.evaluation.components import Rules
from atlas_ray.evaluation.false_positives import FalsePositives, false_components_mm3, false_positives
from atlas_ray.organs import Organs
from atlas_ray.records import Case, Split
from atlas_ray.schema import Schema
from atlas_ray.steps.measured import Table, measured_cases, publish
from atlas_ray.volume import read_labels
from atlas_ray.workspace import Workspace


class FalseComponent(Schema):
    """A predicted piece of an organ that the case does not have."""

    case_id: str
    organ: str
    volume_mm3: float


class FalsePositiveReport(Schema):
    """By organ, over the cases whose reference does not have it; organs that every case has are left out."""

    round: int
    split: str
    cases: int
    rules: Rules
    organs: tuple[FalsePositives, ...]
    components: tuple[FalseComponent, ...]


def false_positives_step(campaign: Campaign, round_index: int, *, split: Split = "holdout") -> FalsePositiveReport:
    """Count false components of the pseudo-labels; the report is written and tracked.

    Raises:
        WorkspaceError: no predicted case of the split has a reference.
    """
    cases, organs, rules = measured_cases(campaign, round_index, split), campaign.load_organs(), campaign.evaluation
    one = partial(_components_of, root=campaign.workspace, round_index=round_index, organs=organs, rules=rules)
    found = dict(zip([c.case_id for c in cases], map_cases(one, cases), strict=True))
    rows = []
    for organ in organs.names:
        without = [by_organ[organ] for by_organ in found.values() if organ in by_organ]
        if without:
            rows.append(false_positives(organ, without, rules))
    components = tuple(
        FalseComponent(case_id=case_id, organ=organ, volume_mm3=volume)
        for case_id, by_organ in found.items()
        for organ, volumes in by_organ.items()
        for volume in volumes
    )
    report = FalsePositiveReport(
        round=round_index, split=split, cases=len(cases), rules=rules, organs=tuple(rows), components=components
    )
    publish(
        campaign,
        round_index,
        f"false_positives_{split}",
        report,
        metrics={
            **{f"false_positive_rate/{row.organ}": row.rate.value for row in rows},
            "false_positives/components": float(len(components)),
        },
        tables={"per_component": Table.of(components)},
        plots={},
    )
    return report


def _components_of(case: Case, *, root: str, round_index: int, organs: Organs, rules: Rules) -> dict[str, list[float]]:
    """Organ that the case does not have -> volumes of what is predicted of it, mm3."""
    workspace = Workspace(root)
    there = set(organs.present(read_labels(workspace.truth(case.case_id))))
    predicted = read_labels(workspace.pseudo_label(round_index, case.case_id))
    return {
        name: false_components_mm3(organs.mask(predicted, name), case.voxel_volume_mm3, rules)
        for name in organs.names
        if name not in there
    }
