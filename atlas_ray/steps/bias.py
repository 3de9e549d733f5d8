"""Label bias: how alike networks, their average, annotators and the reference are on a round's cases (paper figure 6)."""

from functools import partial
from itertools import chain

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.drafts import read_draft
from atlas_ray.annotation.merge import paint_edits
from atlas_ray.annotation.queue import Queue
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.cluster.tasks import map_cases
from atlas_ray.config import Campaign
from atlas_ray.evaluation.components import Rules
from atlas_ray.evaluation.plots import maker_matrix
from atlas_ray.evaluation.raters import PairMean, PairScore, compare_makers, pair_means
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.records import Case, Split
from atlas_ray.schema import Schema
from atlas_ray.steps.measured import Table, publish
from atlas_ray.volume import read_labels
from atlas_ray.workspace import Workspace

AVERAGE, ANNOTATION, REFERENCE = "average", "annotation", "reference"


class BiasReport(Schema):
    """Every pair of label makers on the cases that both have labeled."""

    round: int
    split: str
    cases: int
    rules: Rules
    pairs: tuple[PairMean, ...]
    scores: tuple[PairScore, ...]


def bias_step(campaign: Campaign, round_index: int, *, split: Split = "holdout") -> BiasReport:
    """Compare every two label maps of each predicted case of a split; the report is written and tracked.

    Raises:
        WorkspaceError: no case of the split is predicted.
    """
    workspace, organs, rules = campaign.open_workspace(), campaign.load_organs(), campaign.evaluation
    predicted = workspace.predicted(round_index)
    cases = [c for c in workspace.cases() if c.split == split and c.case_id in predicted]
    if not cases:
        raise WorkspaceError(f"round {round_index} has no predicted {split} case; run `python -m jobs.predict CONFIG`")
    one = partial(_scores_of, campaign_json=campaign.model_dump_json(), round_index=round_index, organs=organs)
    scores = tuple(chain.from_iterable(map_cases(one, cases)))
    report = BiasReport(
        round=round_index, split=split, cases=len(cases), rules=rules, pairs=tuple(pair_means(scores, rules)), scores=scores
    )
    publish(
        campaign,
        round_index,
        f"bias_{split}",
        report,
        metrics={f"bias_dice/{p.first}_{p.second}": p.dice.value for p in report.pairs},
        tables={"pairs": _pairs(report), "per_case": Table.of(scores)},
        plots={"figure_6": maker_matrix(report.pairs, title=f"{len(cases)} {split} cases: Dice below, surface Dice above")},
    )
    return report


def label_makers(campaign: Campaign, round_index: int, case: Case, organs: Organs) -> dict[str, LabelMap]:
    """Who labeled the case -> its label map: the architectures and members, their average, both readers where two read it, the
    annotation that was merged of it, and the reference, as far as there is one."""
    workspace = campaign.open_workspace()
    paths = {name: workspace.architecture_label(round_index, case.case_id, name) for name in campaign.ensemble_names}
    paths[AVERAGE] = workspace.pseudo_label(round_index, case.case_id)
    maps = {name: read_labels(path) for name, path in paths.items()}
    maps |= _readings(campaign, workspace, round_index, case, organs)
    for name, path in ((ANNOTATION, workspace.annotation(round_index, case.case_id)), (REFERENCE, workspace.truth(case.case_id))):
        if path.exists():
            maps[name] = read_labels(path)
    return maps


def _readings(campaign: Campaign, workspace: Workspace, round_index: int, case: Case, organs: Organs) -> dict[str, LabelMap]:
    """Both readers' label maps of a case that was read twice and handed in; nothing else."""
    if case.split == "holdout":  # never queried
        return {}
    with open_database(campaign.database_url) as database:
        items = [i for i in Queue(database).items(round_index) if i.case_id == case.case_id]
        if len(items) < 2 or any(item.state != "submitted" for item in items):
            return {}
        draft = read_draft(workspace, round_index, case, organs).voxels
        revisions = Revisions(database)
        return {
            f"reader {item.reading}": paint_edits(draft, revisions.edits(round_index, case.case_id, reading=item.reading), organs)
            for item in items
        }


def _scores_of(case: Case, *, campaign_json: str, round_index: int, organs: Organs) -> list[PairScore]:
    campaign = Campaign.model_validate_json(campaign_json)
    maps = label_makers(campaign, round_index, case, organs)
    absent = campaign.open_workspace().case_scores(round_index, case.case_id).absent
    tolerance_mm = campaign.evaluation.tolerance_mm
    return compare_makers(case.case_id, maps, organs, case.spacing, tolerance_mm=tolerance_mm, unknown=absent)


def _pairs(report: BiasReport) -> Table:
    columns = ("first", "second", "cases", "dice", "dice_low", "dice_high", "surface_dice", "surface_low", "surface_high")
    return Table(
        columns,
        tuple(
            (
                *(p.first, p.second, p.cases),
                *(p.dice.value, p.dice.low, p.dice.high),
                *(p.surface_dice.value, p.surface_dice.low, p.surface_dice.high),
            )
            for p in report.pairs
        ),
    )
