"""Does the attention find the errors? The paper's table 1 on a round's cases, for the campaign's attention or for another mode."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np

from atlas_ray.attention.criteria import Attention, CalibratedAttention, FaithfulAttention, PhysicalAttention
from atlas_ray.cluster.prediction import predict_cases
from atlas_ray.cluster.tasks import map_cases
from atlas_ray.config import Campaign
from atlas_ray.evaluation.bootstrap import Interval, bootstrap, bootstrap_mean, bootstrap_ratio
from atlas_ray.evaluation.components import Detection, Rules, detect, ratio, total
from atlas_ray.evaluation.paper import paper_figures
from atlas_ray.evaluation.plots import detection_bars
from atlas_ray.lock import locked
from atlas_ray.organs import Organs
from atlas_ray.records import Case, Split
from atlas_ray.schema import Schema
from atlas_ray.steps.learn_attention import learn_attention_step
from atlas_ray.steps.measured import Table, measured_cases, publish
from atlas_ray.storage import write_atomically
from atlas_ray.volume import read_labels
from atlas_ray.workspace import Workspace, write_lines

Mode = Literal["faithful", "physical", "calibrated"]
ATTENTION: dict[str, Attention] = {a.mode: a for a in (FaithfulAttention(), PhysicalAttention(), CalibratedAttention())}


class OrganDetection(Schema):
    """One organ over all cases; shares are pooled: all its regions, whichever case they are in.

    Args:
        missed_share: mean over the cases with an error of the share of its volume that attention misses. Calibrated attention keeps
            its expectation at or below alpha.
    """

    organ: str
    counts: Detection
    sensitivity: Interval
    precision: Interval
    voxel_sensitivity: Interval
    voxel_precision: Interval
    missed_share: Interval = Interval(value=None)


class AttentionReport(Schema):
    """Table 1.

    Args:
        mode: of the attention.
        sensitivity, precision: mean over the organs that have one, as the paper averages.
        per_case: case -> organ -> counts.
    """

    round: int
    split: str
    mode: str
    cases: int
    rules: Rules
    organs: tuple[OrganDetection, ...]
    sensitivity: Interval
    precision: Interval
    per_case: dict[str, dict[str, Detection]]


def attention_step(
    campaign: Campaign, round_index: int, *, split: Split = "holdout", mode: Mode | None = None, alpha: float | None = None
) -> AttentionReport:
    """Compare errors (pseudo-label against reference) with attention; the report is written and tracked.

    Args:
        mode: look with another attention than the campaign's: the round's networks predict the same cases once more into
            `Workspace.other_attention`, because probabilities are not kept.
        alpha: of that other attention, where it is calibrated; None is the default's.

    Raises:
        WorkspaceError: no predicted case of the split has a reference.
    """
    cases, organs, rules = measured_cases(campaign, round_index, split), campaign.load_organs(), campaign.evaluation
    mode = mode or campaign.attention.mode
    seen = campaign if mode == campaign.attention.mode else _look_again(campaign, round_index, cases, mode, alpha)
    one = partial(_detections, root=campaign.workspace, seen=seen.workspace, round_index=round_index, organs=organs, rules=rules)
    per_case = dict(zip([c.case_id for c in cases], map_cases(one, cases), strict=True))
    report = attention_report(per_case, organs.names, round_index=round_index, split=split, mode=mode, rules=rules)
    paper = paper_figures().attention
    shown = {name: (paper.sensitivity[name], paper.precision[name]) for name in organs.names if name in paper.sensitivity}
    bars = detection_bars(
        [(row.organ, row.sensitivity, row.precision) for row in report.organs],
        shown,
        title=f"Attention ({mode}) of round {round_index} on {len(cases)} {split} cases",
    )
    rows = tuple((case, organ, *found.model_dump().values()) for case, by in per_case.items() for organ, found in by.items())
    publish(
        campaign,
        round_index,
        f"attention_{split}_{mode}",
        report,
        metrics=_metrics(report),
        tables={"per_case": Table(("case", "organ", *Detection.model_fields), rows)},
        plots={"table_1": bars},
    )
    return report


def attention_report(
    per_case: dict[str, dict[str, Detection]],
    organ_names: Sequence[str],
    *,
    round_index: int,
    split: str,
    mode: str,
    rules: Rules,
) -> AttentionReport:
    """Pool the counts over cases and put intervals around the shares."""
    cases = list(per_case.values())
    rows = []
    for organ in organ_names:
        found = [case[organ] for case in cases]

        def share(part: str, whole: str, found: Sequence[Detection] = found) -> Interval:
            return bootstrap_ratio([getattr(d, part) for d in found], [getattr(d, whole) for d in found], rules)

        rows.append(
            OrganDetection(
                organ=organ,
                counts=total(found),
                sensitivity=share("hit", "errors"),
                precision=share("right", "regions"),
                voxel_sensitivity=share("shared_voxels", "error_voxels"),
                voxel_precision=share("shared_voxels", "attention_voxels"),
                missed_share=bootstrap_mean([d.missed_share for d in found], rules),
            )
        )
    return AttentionReport(
        round=round_index,
        split=split,
        mode=mode,
        cases=len(cases),
        rules=rules,
        organs=tuple(rows),
        sensitivity=_mean_share(cases, organ_names, "hit", "errors", rules),
        precision=_mean_share(cases, organ_names, "right", "regions", rules),
        per_case=per_case,
    )


def table_1(report: AttentionReport) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Columns and rows for people: ours with intervals, the paper's beside them."""
    paper = paper_figures().attention
    columns = (
        "organ",
        "errors",
        "regions",
        "sensitivity",
        "paper",
        "precision",
        "paper",
        "voxel sens.",
        "voxel prec.",
        "missed volume",
    )
    rows: list[tuple[object, ...]] = [
        (
            row.organ,
            row.counts.errors,
            row.counts.regions,
            row.sensitivity.text,
            paper.sensitivity.get(row.organ),
            row.precision.text,
            paper.precision.get(row.organ),
            row.voxel_sensitivity.value,
            row.voxel_precision.value,
            row.missed_share.text,
        )
        for row in report.organs
    ]
    errors, regions = (sum(getattr(row.counts, name) for row in report.organs) for name in ("errors", "regions"))
    means = [report.sensitivity.text, paper.mean_sensitivity, report.precision.text, paper.mean_precision]
    return columns, [*rows, ("mean", errors, regions, *means, None, None, None)]


def _mean_share(cases: Sequence[dict[str, Detection]], organs: Sequence[str], part: str, whole: str, rules: Rules) -> Interval:
    """Mean over organs of the pooled shares; cases are drawn, each with all its organs."""
    parts_NK, wholes_NK = (np.array([[getattr(case[o], name) for o in organs] for case in cases]) for name in (part, whole))

    def mean(drawn: np.ndarray) -> float | None:
        pairs = zip(parts_NK[drawn].sum(0).tolist(), wholes_NK[drawn].sum(0).tolist(), strict=True)
        shares = [share for above, below in pairs if (share := ratio(above, below)) is not None]
        return float(np.mean(shares)) if shares else None

    return bootstrap(len(cases), mean, rules)


def _detections(case: Case, *, root: str, seen: str, round_index: int, organs: Organs, rules: Rules) -> dict[str, Detection]:
    """Of every organ of one case. Labels are the same in both workspaces; attention is that of `seen`."""
    truth = read_labels(Workspace(root).truth(case.case_id))
    looked_at = Workspace(seen)
    pseudo = read_labels(looked_at.pseudo_label(round_index, case.case_id))
    return {
        name: detect(
            organs.mask(pseudo, name) != organs.mask(truth, name),
            read_labels(looked_at.attention(round_index, case.case_id, name)) > 0,
            case.spacing,
            rules,
        )
        for name in organs.names
    }


def _look_again(campaign: Campaign, round_index: int, cases: Sequence[Case], mode: Mode, alpha: float | None) -> Campaign:
    """The campaign with another attention, in a workspace of its own where this round's networks have predicted the cases.

    Calibrated attention first learns there from what was revised before this round.
    """
    here, attention = campaign.open_workspace(), ATTENTION[mode]
    if isinstance(attention, CalibratedAttention) and alpha is not None:
        attention = attention.model_copy(update={"alpha": alpha})
    other = campaign.model_copy(update={"attention": attention, "workspace": str(here.other_attention(mode))})
    there = other.open_workspace()
    write_lines(there.manifest, here.cases())
    with locked(there, "jobs.evaluate"):
        if isinstance(attention, CalibratedAttention):
            revised = [r for r in range(round_index) if here.merged(r)]
            for earlier in revised:
                merged = here.merged(earlier)
                _copy_networks(here, there, campaign, earlier)
                predict_cases(other, earlier, [case for case in here.cases() if case.case_id in merged])
            if revised:
                learn_attention_step(campaign, revised[-1], mode=attention, looked_at=there)
        _copy_networks(here, there, campaign, round_index)
        predict_cases(other, round_index, cases)
    return other


def _copy_networks(here: Workspace, there: Workspace, campaign: Campaign, round_index: int) -> None:
    for name in campaign.architecture_names:
        write_atomically(there.checkpoint(round_index, name), here.checkpoint(round_index, name).read_bytes())


def _metrics(report: AttentionReport) -> dict[str, float | None]:
    group = f"attention_{report.mode}"
    return {
        f"{group}/sensitivity": report.sensitivity.value,
        f"{group}/precision": report.precision.value,
        **{f"{group}/missed_share/{row.organ}": row.missed_share.value for row in report.organs},
        **{f"{group}/sensitivity/{row.organ}": row.sensitivity.value for row in report.organs},
        **{f"{group}/precision/{row.organ}": row.precision.value for row in report.organs},
    }
