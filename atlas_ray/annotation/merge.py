"""The label a round starts from, and the one it ends with: who says what an organ is, and who has the last word.

    pseudo-label  <  confirmed pseudo-label  <  original ground truth  <  revision        (the later one overrides)

Draft: what the annotator sees first. The networks' pseudo-label, over it the original ground truth of the organs this case
is labeled for, over it what people revised or confirmed in earlier rounds. It does not change during the round.

Annotation: the draft with the round's edits painted in. Each organ's edits are a layer of their own; where two organs claim
one voxel, the one whose claim was saved last has it, and any edit is later than the draft. An organ that gives a voxel up
uncovers the claim beneath, if there is one, else background. So an edit that only paints takes voxels from a neighbor
even where the neighbor's own mask was not saved.

Not covered: two organs in one voxel. The annotation is one label map; organs that may overlap do so only while edited.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field

from atlas_ray.annotation.revisions import Edit, check_runs, expand_runs
from atlas_ray.exceptions import GeometryError, LabelError
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.records import LabelSource
from atlas_ray.schema import Schema

_HUMAN: tuple[LabelSource, ...] = ("revised", "confirmed")


class OrganProvenance(Schema):
    """Where one organ of one annotation comes from.

    Args:
        source: "original": the dataset's ground truth; "revised": a person changed it; "confirmed": a person submitted the
            pseudo-label as it was; "pseudo": only the networks have said so.
        round: the round it was revised, confirmed or predicted in; None for the original.
        users: who revised or submitted it, over all rounds, in order of first appearance.
        revisions: (round, revision id) of every edit in it.
        checkpoints: architecture -> sha256 of the weights that drew the draft it started from; {} for the original.
        voxels: of the organ in the annotation.
        overridden_voxels: voxels of its own mask that a neighbor's later edit took in this round.
    """

    organ: str
    source: LabelSource
    round: int | None = None
    users: tuple[str, ...] = ()
    revisions: tuple[tuple[int, int], ...] = ()
    checkpoints: dict[str, str] = Field(default_factory=dict)
    voxels: int = 0
    overridden_voxels: int = 0


class Provenance(Schema):
    """Where every organ of one annotation comes from; one entry per organ of the set, in its order."""

    case_id: str
    round: int
    organs: tuple[OrganProvenance, ...]

    def __getitem__(self, organ: str) -> OrganProvenance:
        """Raises LabelError for an organ the annotation does not know."""
        for entry in self.organs:
            if entry.organ == organ:
                return entry
        raise LabelError(f"no provenance of organ {organ!r}", case_id=self.case_id)

    @property
    def human_organs(self) -> tuple[str, ...]:
        """Organs a person revised or confirmed: they stay over later pseudo-labels."""
        return tuple(entry.organ for entry in self.organs if entry.source in _HUMAN)


Annotated = tuple[LabelMap, Provenance]  # an annotation of an earlier round


def draft_label(
    pseudo: LabelMap,
    original: LabelMap | None,
    labeled_organs: Collection[str],
    organs: Organs,
    *,
    previous: Annotated | None = None,
) -> LabelMap:
    """The label map [X, Y, Z] an annotator starts from.

    A voxel the pseudo-label gives to an organ of a higher layer, and that layer does not, becomes background: the higher
    layer knows that organ completely. Organs it does not know stay as they are where it says nothing else.

    Args:
        pseudo: the round's pseudo-label; label ids of `organs`, as in all three.
        original: ground truth; read only for `labeled_organs`.
        previous: annotation and provenance of the last round in which a person worked on the case.

    Raises:
        LabelError: labeled organs without an original.
        GeometryError: label maps of different shapes.
    """
    if labeled_organs and original is None:
        raise LabelError(f"labeled organs {', '.join(labeled_organs)} but no original label")
    draft = np.array(pseudo, dtype=np.uint8, order="F")
    if original is not None and labeled_organs:
        _overlay(draft, original, [organs.label_id(name) for name in labeled_organs])
    if previous is not None:
        label, provenance = previous
        _overlay(draft, label, [organs.label_id(name) for name in provenance.human_organs if name in organs.names])
    return draft


def _overlay(draft: LabelMap, layer: LabelMap, label_ids: Iterable[int]) -> None:
    """Replace some organs of a label map by those of another, in place."""
    if draft.shape != layer.shape:
        raise GeometryError(f"label maps of shape {draft.shape} and {layer.shape} cannot be merged; they share one grid")
    known = np.zeros(256, bool)
    known[list(label_ids)] = True
    np.copyto(draft, 0, where=known[draft])
    np.copyto(draft, layer, where=known[layer])


def paint_edits(draft: LabelMap, edits: Iterable[Edit], organs: Organs) -> LabelMap:
    """The draft [X, Y, Z] with the edits painted in, by the rule at the top. Raises RevisionError, LabelError."""
    return _paint(draft, list(edits), organs).labels


def merge_case(
    pseudo: LabelMap,
    organs: Organs,
    *,
    case_id: str,
    round_index: int,
    original: LabelMap | None = None,
    labeled_organs: Collection[str] = (),
    previous: Annotated | None = None,
    edits: Iterable[Edit] = (),
    reviewed: Mapping[str, str] | None = None,
    checkpoints: Mapping[str, str] | None = None,
) -> Annotated:
    """The annotation of a case after a round, and where each organ of it comes from.

    Args:
        pseudo, original, labeled_organs, previous: see draft_label.
        edits: of this round (Revisions.edits); leave them out where the case was not submitted.
        reviewed: organ -> user who submitted the case with it; unedited, its pseudo-label is confirmed.
        checkpoints: architecture -> sha256 of the weights that made `pseudo`.

    Returns:
        label map [X, Y, Z] uint8 on the grid of `pseudo`, and its provenance. A voxel that no layer and no edit touches is
        the pseudo-label's.
    """
    edits = list(edits)
    draft = draft_label(pseudo, original, labeled_organs, organs, previous=previous)
    painted = _paint(draft, edits, organs)
    counts = np.bincount(painted.labels.ravel(order="K"), minlength=256)
    entries = []
    for organ in organs:
        entry = _starting_point(organ.name, round_index, labeled_organs, previous, dict(checkpoints or {}))
        own = [edit for edit in edits if edit.revision.organ == organ.name]
        reviewer = (reviewed or {}).get(organ.name)
        entry = _after_round(entry, own, reviewer, round_index, changed=organ.name in painted.changed)
        update = {"voxels": int(counts[organ.label_id]), "overridden_voxels": painted.overridden.get(organ.name, 0)}
        entries.append(entry.model_copy(update=update))
    return painted.labels, Provenance(case_id=case_id, round=round_index, organs=tuple(entries))


def _starting_point(
    organ: str, round_index: int, labeled: Collection[str], previous: Annotated | None, checkpoints: dict[str, str]
) -> OrganProvenance:
    """Provenance of an organ in the draft; the same layers as draft_label."""
    if previous is not None and organ in previous[1].human_organs:
        return previous[1][organ]
    if organ in labeled:
        return OrganProvenance(organ=organ, source="original")
    return OrganProvenance(organ=organ, source="pseudo", round=round_index, checkpoints=checkpoints)


def _after_round(
    entry: OrganProvenance, edits: list[Edit], reviewer: str | None, round_index: int, *, changed: bool
) -> OrganProvenance:
    """What a round's edits and review make of an organ's provenance; edits that cancel out are a review."""
    seen = [edit.revision.user for edit in edits] + ([reviewer] if reviewer else [])
    if not seen:
        return entry
    update: dict[str, object] = {
        "users": tuple(dict.fromkeys((*entry.users, *seen))),
        "revisions": entry.revisions + tuple((round_index, edit.revision.revision_id) for edit in edits),
    }
    if changed:
        update |= {"source": "revised", "round": round_index}
    elif entry.source == "pseudo":
        update |= {"source": "confirmed", "round": round_index}
    return entry.model_copy(update=update)


@dataclass(frozen=True, slots=True, eq=False)
class _Painted:
    labels: LabelMap
    changed: frozenset[str]  # organs whose own mask is not the draft's
    overridden: dict[str, int]  # organ -> voxels of its own mask that another organ's later claim hides


def _paint(draft: LabelMap, edits: list[Edit], organs: Organs) -> _Painted:
    labels = np.array(draft, dtype=np.uint8, order="F")
    flat = labels.reshape(-1, order="F")
    touched = _touched(edits, labels.size)
    base = flat[touched]
    edited = tuple(dict.fromkeys(edit.revision.organ for edit in edits))
    # A claim is 0 for the draft's, i + 1 for the i-th edit's, -1 for none; the highest claim owns the voxel.
    owner = np.where(np.isin(base, [organs.label_id(name) for name in edited]), 0, base).astype(np.uint8)
    highest = np.where(owner > 0, 0, -1).astype(np.int32)
    claims = {name: _claims(base, organs.label_id(name), name, edits, touched) for name in edited}
    for name, claim in claims.items():
        wins = claim > highest
        owner[wins] = organs.label_id(name)
        highest[wins] = claim[wins]
    flat[touched] = owner
    changed = {name for name, claim in claims.items() if ((claim >= 0) != (base == organs.label_id(name))).any()}
    overridden = {}
    for organ in organs:
        own = claims[organ.name] >= 0 if organ.name in claims else base == organ.label_id
        overridden[organ.name] = int(np.count_nonzero(own & (owner != organ.label_id)))
    return _Painted(labels, frozenset(changed), overridden)


def _touched(edits: list[Edit], size: int) -> npt.NDArray[np.intp]:
    """Flat file-order indices any edit writes, ascending."""
    touched = np.zeros(size, bool)
    for edit in edits:
        index, _ = expand_runs(check_runs(edit.runs, size))
        touched[index] = True
    return np.flatnonzero(touched)


def _claims(base: LabelMap, label_id: int, organ: str, edits: list[Edit], touched: npt.NDArray[np.intp]) -> npt.NDArray[np.int32]:
    """One organ's claim on each touched voxel."""
    claim = np.where(base == label_id, 0, -1).astype(np.int32)
    for order, edit in enumerate(edits, 1):
        if edit.revision.organ == organ:
            index, value = expand_runs(edit.runs)
            claim[np.searchsorted(touched, index)] = np.where(value, order, -1)
    return claim
