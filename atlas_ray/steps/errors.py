"""What kinds of errors a round's predictions have, and which of them attention points at (paper figure 3b)."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from scipy.ndimage import find_objects

from atlas_ray.cluster.tasks import map_cases
from atlas_ray.components import box_of
from atlas_ray.config import Campaign
from atlas_ray.evaluation.components import Box, Rules, regions_of
from atlas_ray.evaluation.plots import error_summary
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.prioritization.error_types import DEFAULT_ERROR_TYPES, MARGIN_MM, UNKNOWN, ErrorRegion, type_of
from atlas_ray.records import Case, Split
from atlas_ray.schema import Schema, Triple
from atlas_ray.steps.measured import Table, measured_cases, publish
from atlas_ray.volume import read_labels
from atlas_ray.workspace import Workspace


class FoundError(Schema):
    """One region where prediction and reference differ.

    Args:
        box: start and stop voxel per axis, stop excluded.
        has_attention: whether attention of its organ lies in it.
    """

    case_id: str
    organ: str
    error: str
    volume_mm3: float
    box: tuple[tuple[int, int], ...]
    has_attention: bool


class ErrorTypeRow(Schema):
    """All errors of one type."""

    error: str
    errors: int
    cases: int
    volume_ml: float
    has_attention: int


class ErrorReport(Schema):
    """Every error of a round's cases, by type."""

    round: int
    split: str
    cases: int
    types: tuple[ErrorTypeRow, ...]
    errors: tuple[FoundError, ...]


def errors_step(campaign: Campaign, round_index: int, *, split: Split = "holdout") -> ErrorReport:
    """Name every error of the pseudo-labels; the report is written and tracked.

    Raises:
        WorkspaceError: no predicted case of the split has a reference.
    """
    cases, organs = measured_cases(campaign, round_index, split), campaign.load_organs()
    one = partial(_errors_of, root=campaign.workspace, round_index=round_index, organs=organs, rules=campaign.evaluation)
    errors = tuple(chain.from_iterable(map_cases(one, cases)))
    report = ErrorReport(round=round_index, split=split, cases=len(cases), types=tuple(_rows(errors)), errors=errors)
    counts = {row.error: Counter(e.organ for e in errors if e.error == row.error) for row in report.types}
    title = f"Errors by type, {len(cases)} {split} cases, round {round_index}"
    publish(
        campaign,
        round_index,
        f"errors_{split}",
        report,
        metrics={f"errors/{row.error}": float(row.errors) for row in report.types},
        tables={"per_type": Table.of(report.types), "per_error": Table.of(errors)},
        plots={"figure_3b": error_summary(counts, {o.name: o.color for o in organs}, title=title)},
    )
    return report


@dataclass(frozen=True, slots=True)
class Placed:
    """An error, the box that it was cut out of the volume with, and the tight box around it."""

    error: ErrorRegion
    around: Box
    box: Box


def find_errors(predicted: LabelMap, truth: LabelMap, organs: Organs, organ: str, spacing: Triple, rules: Rules) -> list[Placed]:
    """Every error region of one organ that is large enough, with its surroundings.

    Args:
        predicted, truth: [X, Y, Z], ids of `organs`.
    """
    ours, theirs = organs.mask(predicted, organ), organs.mask(truth, organ)
    differs = ours != theirs
    if not differs.any():
        return []
    window = box_of(differs)
    labels, _ = regions_of(differs[window])
    mirror = organs.mirror(organ)
    found = []
    for number, box in enumerate(find_objects(labels), 1):
        if np.count_nonzero(labels[box] == number) * float(np.prod(spacing)) < rules.min_error_mm3:
            continue
        tight = tuple(slice(w.start + b.start, w.start + b.stop) for w, b in zip(window, box, strict=True))
        around = _with_margin(tight, spacing, predicted.shape)
        region = np.zeros([s.stop - s.start for s in around], np.bool_)
        region[tuple(slice(t.start - a.start, t.stop - a.start) for t, a in zip(tight, around, strict=True))] = (
            labels[box] == number
        )
        error = ErrorRegion(
            region_XYZ=region,
            predicted_XYZ=predicted[around],
            truth_XYZ=truth[around],
            label_id=organs.label_id(organ),
            mirror_id=organs.label_id(mirror) if mirror else None,
            spacing=spacing,
            is_predicted=bool(ours.any()),
            is_true=bool(theirs.any()),
            at_end=any(s.start == 0 or s.stop == n for s, n in zip(tight, predicted.shape, strict=True)),
        )
        found.append(Placed(error, around, tight))
    return found


def _with_margin(box: Box, spacing: Triple, shape: Sequence[int]) -> Box:
    """With the margin that error types look at, within the volume."""
    reach = [math.ceil(MARGIN_MM / edge) for edge in spacing]
    return tuple(slice(max(0, s.start - r), min(n, s.stop + r)) for s, r, n in zip(box, reach, shape, strict=True))


def _errors_of(case: Case, *, root: str, round_index: int, organs: Organs, rules: Rules) -> list[FoundError]:
    workspace = Workspace(root)
    truth, predicted = (
        read_labels(path) for path in (workspace.truth(case.case_id), workspace.pseudo_label(round_index, case.case_id))
    )
    rows = []
    for organ in organs.names:
        attention = read_labels(workspace.attention(round_index, case.case_id, organ)) > 0
        for found in find_errors(predicted, truth, organs, organ, case.spacing, rules):
            rows.append(
                FoundError(
                    case_id=case.case_id,
                    organ=organ,
                    error=type_of(found.error),
                    volume_mm3=found.error.voxels * case.voxel_volume_mm3,
                    box=tuple((s.start, s.stop) for s in found.box),
                    has_attention=bool((attention[found.around] & found.error.region_XYZ).any()),
                )
            )
    return rows


def _rows(errors: Sequence[FoundError]) -> list[ErrorTypeRow]:
    """One per type that occurs, in the order in which types are asked."""
    rows = []
    for name in (*(t.error for t in DEFAULT_ERROR_TYPES), UNKNOWN):
        own = [e for e in errors if e.error == name]
        if own:
            rows.append(
                ErrorTypeRow(
                    error=name,
                    errors=len(own),
                    cases=len({e.case_id for e in own}),
                    volume_ml=sum(e.volume_mm3 for e in own) / 1000,
                    has_attention=sum(e.has_attention for e in own),
                )
            )
    return rows
