"""The oracle at work: it goes through the queue exactly as the app does for a person.

    next -> load -> save revisions -> judge components -> log times -> submit

It can be killed anywhere: run again, it gets its own unfinished case first and saves only what is not yet saved. With a limit of
minutes it puts the pen down between two organs: what it has not looked at stays unconfirmed.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from atlas_ray.annotation.oracle import Mask, OracleAnnotator
from atlas_ray.annotation.queue import CaseVerdict, Queue, WorkItem
from atlas_ray.annotation.revisions import Revisions, Step, TimeSpent, Verdict, diff_runs
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
    minutes: float | None = None,
    progress: Callable[[WorkItem], None] | None = None,
) -> list[WorkItem]:
    """Work off a round's queue, highest rank first.

    Args:
        load: reads one case; a CaseError flags the item with its message, and the next one is taken.
        limit: how many cases to submit at most; None is all.
        minutes: its time for the whole round, what it spent before included; an organ that was begun in time is finished.
        progress: called with each submitted item.

    Returns:
        the items submitted by this call.
    """
    submitted: list[WorkItem] = []
    spent = sum(item.seconds for item in queue.items(round_index)) / 60
    while (limit is None or len(submitted) < limit) and (minutes is None or spent < minutes):
        item = queue.next(oracle.user, round_index=round_index)
        if item is None:
            break
        try:
            case = load(item)
        except CaseError as error:
            queue.flag(item.item_id, oracle.user, note=str(error))
            continue
        left = None if minutes is None else minutes - spent
        submitted.append(annotate_case(oracle, queue, revisions, organs, item, case, minutes=left))
        spent += submitted[-1].seconds / 60
        if progress is not None:
            progress(submitted[-1])
    return submitted


def annotate_case(
    oracle: OracleAnnotator,
    queue: Queue,
    revisions: Revisions,
    organs: Organs,
    item: WorkItem,
    case: OracleInput,
    *,
    minutes: float | None = None,
) -> WorkItem:
    """Revise one leased case and submit it. Only organs the item lists are looked at; their neighbors may change with them.

    Args:
        minutes: when to put the pen down; None works the item off.
    """
    believed = oracle.sees(case.truth, organs, case.spacing, what=case_key(item))
    asked = _asked_attention(item, case)
    masks = _revise(oracle, organs, item, case, believed, asked)
    spent = _organ_minutes(oracle, organs, item, case, asked, masks)
    looked_at = _in_time(oracle.minutes_per_case, spent, minutes)
    if len(looked_at) < len(asked):
        asked = {name: asked[name] for name in looked_at}
        masks = _revise(oracle, organs, item, case, believed, asked)
    for organ in sorted(masks, key=lambda name: (name not in item.organs, organs.channel(name))):
        _save(oracle, revisions, organs, item, case.draft, organ, masks[organ])
    for component in _components(item, case, asked):
        before = organs.mask(case.draft, component.organ)
        verdict = component_verdict(component, asked[component.organ], before, masks.get(component.organ, before))
        where = (item.round, item.case_id, component.organ, component.index)
        revisions.judge(*where, verdict, user=oracle.user, reading=item.reading)
    times = [TimeSpent(seconds=60 * oracle.minutes_per_case), *(TimeSpent(seconds=60 * spent[n], organ=n) for n in looked_at)]
    if not sum(revisions.seconds(item.round, item.case_id, reading=item.reading).values()):  # not logged before it was killed
        revisions.log_times(item.round, item.case_id, times, user=oracle.user, reading=item.reading)
    seconds = sum(entry.seconds for entry in times)
    verdict_of_case: CaseVerdict = "fixed" if masks else "accepted"
    done = [name for name in item.organs if name in asked or name not in spent]
    return queue.submit(item.item_id, oracle.user, verdict=verdict_of_case, seconds=seconds, organs=done)


def case_key(item: WorkItem) -> str:
    """What the noise of a hand is drawn from: the same case looks the same to it in every round."""
    return f"{item.case_id}/{item.reading}"


def _asked_attention(item: WorkItem, case: OracleInput) -> dict[str, Mask]:
    """Organ -> the attention the item asks about, in its order; with components listed, what lies in their boxes."""
    asked = {name: case.attention[name] for name in item.organs if name in case.attention}
    if not item.components:
        return asked
    boxes: dict[str, Mask] = {name: np.zeros_like(mask) for name, mask in asked.items()}
    for component in case.components:
        if component.organ in boxes and component.index in item.components:
            boxes[component.organ][tuple(slice(start, stop) for start, stop in component.box)] = True
    return {name: mask & boxes[name] for name, mask in asked.items()}


def _components(item: WorkItem, case: OracleInput, asked: Mapping[str, Mask]) -> list[AttentionComponent]:
    """The components it looks at."""
    known = [c for c in case.components if c.organ in asked and c.organ in case.organs_with_truth]
    return [c for c in known if not item.components or c.index in item.components]


def _revise(
    oracle: OracleAnnotator, organs: Organs, item: WorkItem, case: OracleInput, believed: LabelMap, asked: Mapping[str, Mask]
) -> dict[str, Mask]:
    seen = {name: mask for name, mask in asked.items() if not oracle.misses(case_key(item), name)}
    return oracle.revise(case.draft, believed, seen, organs, case.spacing, organs_with_truth=case.organs_with_truth)


def _organ_minutes(
    oracle: OracleAnnotator,
    organs: Organs,
    item: WorkItem,
    case: OracleInput,
    asked: Mapping[str, Mask],
    masks: Mapping[str, Mask],
) -> dict[str, float]:
    """Organ -> what it takes to look at it and to draw its changes, in the order asked."""
    looked = Counter(component.organ for component in _components(item, case, asked))
    ml = float(np.prod(case.spacing)) / 1000
    changed = {n: int(np.count_nonzero(masks[n] != organs.mask(case.draft, n))) * ml if n in masks else 0.0 for n in asked}
    return {name: oracle.organ_minutes(looked[name], changed[name]) for name in asked}


def _in_time(already: float, spent: Mapping[str, float], minutes: float | None) -> list[str]:
    """The organs begun before the time is up."""
    begun = []
    for name, cost in spent.items():
        if minutes is not None and already >= minutes:
            break
        begun.append(name)
        already += cost
    return begun


def _save(
    oracle: OracleAnnotator, revisions: Revisions, organs: Organs, item: WorkItem, draft: LabelMap, organ: str, new: Mask
) -> None:
    """Save what an organ still lacks of its new mask; nothing after a restart that had saved it."""
    key, reading = (item.round, item.case_id, organ), item.reading
    parent_id = revisions.current(*key, reading=reading)
    runs = diff_runs(revisions.mask(organs.mask(draft, organ), *key, at=parent_id, reading=reading), new)
    if len(runs):
        step = Step(name=oracle.user, runs=runs)
        revisions.append(*key, [step], user=oracle.user, parent_id=parent_id, size=new.size, reading=reading)


def component_verdict(component: AttentionComponent, attention: Mask, before: Mask, after: Mask) -> Verdict:
    """Whether an attention component held an error: "fixed" where a marked voxel in its box changed, else "not_an_error".

    Not covered: two components of one organ whose boxes overlap share the verdict of the voxels in common.
    """
    box = tuple(slice(start, stop) for start, stop in component.box)
    changed = np.not_equal(before[box], after[box]) & attention[box]
    return "fixed" if changed.any() else "not_an_error"
