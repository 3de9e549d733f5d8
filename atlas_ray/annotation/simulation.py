"""The oracle at work: it goes through the queue exactly as the app does for a person.

    next -> load -> save revisions -> judge components -> submit

It can be killed anywhere: run again, it gets its own unfinished case first and saves only what is not yet saved.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from atlas_ray.annotation.oracle import Mask, OracleAnnotator
from atlas_ray.annotation.queue import Queue, WorkItem
from atlas_ray.annotation.revisions import Revisions, Step, Verdict, diff_runs
from atlas_ray.exceptions import CaseError
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.records import AttentionComponent
from atlas_ray.schema import Triple


@dataclass(frozen=True, slots=True, eq=False)
class OracleInput:
    """What the oracle looks at for one case; all arrays [X, Y, Z] on the image's grid.

    Args:
        draft: merge.draft_label, the same the app would show.
        truth: label map, read only for `organs_with_truth`.
        attention: organ -> where an error of it is likely.
        components: of the attention.
        spacing: mm, array-axis order.
    """

    draft: LabelMap
    truth: LabelMap
    organs_with_truth: tuple[str, ...]
    attention: Mapping[str, Mask]
    components: tuple[AttentionComponent, ...]
    spacing: Triple


def annotate_round(
    oracle: OracleAnnotator,
    queue: Queue,
    revisions: Revisions,
    organs: Organs,
    *,
    round_index: int,
    load: Callable[[WorkItem], OracleInput],
    limit: int | None = None,
    progress: Callable[[WorkItem], None] | None = None,
) -> list[WorkItem]:
    """Work off a round's queue, highest rank first.

    Args:
        load: reads one case; a CaseError flags the item with its message, and the next one is taken.
        limit: how many cases to submit at most; None is all.
        progress: called with each submitted item.

    Returns:
        the items submitted by this call.
    """
    submitted: list[WorkItem] = []
    while limit is None or len(submitted) < limit:
        item = queue.next(oracle.user, round_index=round_index)
        if item is None:
            break
        try:
            case = load(item)
        except CaseError as error:
            queue.flag(item.item_id, oracle.user, note=str(error))
            continue
        submitted.append(annotate_case(oracle, queue, revisions, organs, item, case))
        if progress is not None:
            progress(submitted[-1])
    return submitted


def annotate_case(
    oracle: OracleAnnotator, queue: Queue, revisions: Revisions, organs: Organs, item: WorkItem, case: OracleInput
) -> WorkItem:
    """Revise one leased case and submit it. Only organs the item lists are looked at; their neighbors may change with them."""
    attention = {name: case.attention[name] for name in item.organs if name in case.attention}
    masks = oracle.revise(case.draft, case.truth, attention, organs, case.spacing, organs_with_truth=case.organs_with_truth)
    for organ in sorted(masks, key=lambda name: (name not in item.organs, organs.channel(name))):
        _save(oracle, revisions, organs, item, case.draft, organ, masks[organ])
    seen = [c for c in case.components if c.organ in attention and c.organ in case.organs_with_truth]
    for component in seen:
        before = organs.mask(case.draft, component.organ)
        verdict = component_verdict(component, attention[component.organ], before, masks.get(component.organ, before))
        where = (item.round, item.case_id, component.organ, component.index)
        revisions.judge(*where, verdict, user=oracle.user, reading=item.reading)
    minutes = oracle.minutes(len(attention), len(seen))
    return queue.submit(item.item_id, oracle.user, verdict="fixed" if masks else "accepted", seconds=60 * minutes)


def _save(
    oracle: OracleAnnotator, revisions: Revisions, organs: Organs, item: WorkItem, draft: LabelMap, organ: str, new: Mask
) -> None:
    """Save what an organ still lacks of its new mask; nothing after a restart that had saved it."""
    key, reading = (item.round, item.case_id, organ), item.reading
    parent_id = revisions.current(*key, reading=reading)
    runs = diff_runs(revisions.mask(organs.mask(draft, organ), *key, at=parent_id, reading=reading), new)
    if len(runs):
        step = Step(name=oracle.user, runs=runs, seconds=60 * oracle.minutes_per_organ)
        revisions.append(*key, [step], user=oracle.user, parent_id=parent_id, size=new.size, reading=reading)


def component_verdict(component: AttentionComponent, attention: Mask, before: Mask, after: Mask) -> Verdict:
    """Whether an attention component held an error: "fixed" where a marked voxel in its box changed, else "not_an_error".

    Not covered: two components of one organ whose boxes overlap share the verdict of the voxels in common.
    """
    box = tuple(slice(start, stop) for start, stop in component.box)
    changed = np.not_equal(before[box], after[box]) & attention[box]
    return "fixed" if changed.any() else "not_an_error"
