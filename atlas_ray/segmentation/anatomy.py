"""What anatomy forbids, corrected in a finished label map: a list of rules in the configuration, none by default.

The rules repeat until nothing changes, so that applying them again changes nothing; where two of them undo each other, the same one
of the label maps they alternate between is kept. Every rule says how many voxels of which organ it took and gave.

The authors' post-processing (paper-algorithm a.5) is, in these terms: the largest component of most organs, the lungs by side and
cut where they touch, the portal vein not below the pancreas. Not covered: their search for slices in which the lungs' area jumps.

Arrays are [X, Y, Z] in RAS: a smaller first index is the patient's left, a smaller last one lower.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from atlas_ray.components import body_midline, box_of, connected_components, split_sides
from atlas_ray.exceptions import ConfigError
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.schema import Schema, Triple
from atlas_ray.volume import Volume, reorient

logger = logging.getLogger(__name__)

ROUNDING = 1e-6  # relative, of a voxel's volume as an affine gives it
MOST_PASSES = 100  # every pass before the last takes components apart or away; real label maps need two or three


@dataclass(slots=True)
class Body:
    """What rules may ask of the patient beside the labels.

    Args:
        spacing: mm, in RAS.
        read: the CT, None where there is none.
    """

    spacing: Triple
    voxel_mm3: float
    read: Callable[[], Volume] | None = None
    _image_XYZ: npt.NDArray[Any] | None = None

    def midline(self, mask_XYZ: npt.NDArray[np.bool_]) -> float | None:
        """Of the body in the slices of a mask, as the first index; None where no image says."""
        if self.read is None or not mask_XYZ.any():
            return None
        if self._image_XYZ is None:
            self._image_XYZ = reorient(self.read()).voxels
        return body_midline(self._image_XYZ, mask_XYZ)


class LargestComponent(Schema):
    """Only the largest 26-connected components of an organ; the rest becomes background.

    Args:
        organs: which.
        keep: how many of each, of equal ones the first met.
        smallest_mm3: what is smaller goes too.
    """

    rule: Literal["largest_component"] = "largest_component"
    organs: tuple[str, ...] = Field(min_length=1)
    keep: PositiveInt = 1
    smallest_mm3: NonNegativeFloat = 0.0

    @property
    def named(self) -> tuple[str, ...]:
        return self.organs

    def apply(self, labels_XYZ: LabelMap, organs: Organs, body: Body) -> str:
        for name in self.organs:
            box = box_of(labels_XYZ == organs.label_id(name))
            inside = labels_XYZ[box]
            parts, count = connected_components(np.ascontiguousarray(inside == organs.label_id(name)).view(np.uint8))
            sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
            kept = np.argsort(-sizes, kind="stable")[: self.keep]
            goes = np.ones(count + 1, np.bool_)
            goes[[0, *(int(i) + 1 for i in kept if sizes[i] * body.voxel_mm3 >= self.smallest_mm3 * (1 - ROUNDING))]] = False
            inside[goes[parts]] = 0
        return ""


class Sides(Schema):
    """Two organs of a pair by the side of the body's midline that their components lie on; one of them may be missing. Organs that
    are `cut_where_touching` in the organ set are cut where they grew together. Left as they are where that is not certain, and
    where only one is seen and no image tells the midline.

    Args:
        left, right: the patient's.
    """

    rule: Literal["sides"] = "sides"
    left: str
    right: str

    @property
    def named(self) -> tuple[str, ...]:
        return self.left, self.right

    def apply(self, labels_XYZ: LabelMap, organs: Organs, body: Body) -> str:
        left, right = organs.label_id(self.left), organs.label_id(self.right)
        mask = (labels_XYZ == left) | (labels_XYZ == right)
        cut = organs[self.left].cut_where_touching or organs[self.right].cut_where_touching
        sides = split_sides(mask, body.midline(mask), may_be_one=True, cut_spacing=body.spacing if cut else None)
        labels_XYZ[sides.left_XYZ] = left
        labels_XYZ[sides.right_XYZ] = right
        return sides.refused


class NotBelow(Schema):
    """An organ ends where another does: what lies below the other's lowest slice becomes background. Nothing without the other.

    Args:
        organ: which is cut.
        of: the other.
    """

    rule: Literal["not_below"] = "not_below"
    organ: str
    of: str

    @model_validator(mode="after")
    def _are_two(self) -> "NotBelow":
        if self.organ == self.of:
            raise ValueError(f"{self.organ!r} cannot end below itself")
        return self

    @property
    def named(self) -> tuple[str, ...]:
        return self.organ, self.of

    def apply(self, labels_XYZ: LabelMap, organs: Organs, body: Body) -> str:
        slices = np.flatnonzero((labels_XYZ == organs.label_id(self.of)).any(axis=(0, 1)))
        if not len(slices):
            return f"no {self.of}"
        below = labels_XYZ[:, :, : slices[0]]
        below[below == organs.label_id(self.organ)] = 0
        return ""


class Adjacency(Schema):
    """A stray piece of one organ inside another becomes the other: a component, not its organ's largest, whose neighbors are mostly
    one other organ that it may not touch (`may_touch` of the organ set).

    Args:
        organs: whose pieces; all where none is named.
        share: of the voxels around the piece, how many must be the other organ's.
    """

    rule: Literal["adjacency"] = "adjacency"
    organs: tuple[str, ...] = ()
    share: float = Field(default=0.5, ge=0.5, lt=1)

    @property
    def named(self) -> tuple[str, ...]:
        return self.organs

    def apply(self, labels_XYZ: LabelMap, organs: Organs, body: Body) -> str:
        """Ends: a piece given away joins a component of the other organ, so that there is one component less each time."""
        strangers = _strangers(organs)
        looked_at = [organs.label_id(name) for name in self.organs or organs.names]
        moved = True
        while moved:
            moved = False
            for piece, box, label_id in _stray_pieces(labels_XYZ, looked_at):
                inside = labels_XYZ[box]
                around = inside[_dilated(piece) & ~piece]
                counts = np.bincount(around, minlength=256) * strangers[label_id]
                if counts.max(initial=0) > self.share * len(around):
                    inside[piece] = counts.argmax()
                    moved = True
        return ""


AnatomyRule = Annotated[LargestComponent | Sides | NotBelow | Adjacency, Field(discriminator="rule")]


class AnatomyChange(Schema):
    """What one rule did to one organ.

    Args:
        number: of the rule in the configuration's list, from 0.
        taken, given: voxels that were the organ's before and not after, and the other way round.
    """

    number: int
    rule: str
    organ: str
    taken: int
    given: int


class AnatomyRecord(Schema):
    """What the rules did to one label map.

    Args:
        passes: over all rules; the last one changed nothing.
        notes: rules that could not decide, and why.
    """

    passes: int
    changes: tuple[AnatomyChange, ...]
    notes: tuple[str, ...] = ()


def require_organs(rules: Sequence[AnatomyRule], organs: Organs) -> None:
    """Raise ConfigError for a rule that names an organ the campaign does not have."""
    for number, rule in enumerate(rules):
        if unknown := sorted(set(rule.named) - set(organs.names)):
            raise ConfigError(
                f"pseudo_labels.anatomy.{number}: {rule.rule} names {unknown}; the campaign has {', '.join(organs.names)}"
            )


@dataclass(slots=True)
class _Tally:
    taken: Counter[tuple[int, int]] = field(default_factory=Counter)  # (rule, label id) -> voxels
    given: Counter[tuple[int, int]] = field(default_factory=Counter)
    notes: dict[str, None] = field(default_factory=dict)


def apply_anatomy(
    rules: Sequence[AnatomyRule], volume: Volume, organs: Organs, *, image: Callable[[], Volume] | None = None
) -> AnatomyRecord:
    """Correct a label map in place, whatever its orientation.

    Args:
        volume: label ids of `organs`.
        image: reads the CT on the same grid; called at most once, and only by rules that ask where the body's midline is.

    Raises:
        LabelError: a rule names an organ that `organs` lacks.
    """
    in_ras = reorient(volume)
    labels_XYZ, body = in_ras.voxels, Body(in_ras.spacing, volume.voxel_volume_mm3, image)
    tally, seen = _Tally(), [_digest(labels_XYZ)]
    while len(seen) <= MOST_PASSES:
        _one_pass(rules, labels_XYZ, organs, body, tally)
        if (now := _digest(labels_XYZ)) in seen:
            kept = min(seen[seen.index(now) :])  # of those they alternate between; one, where nothing changed
            while _digest(labels_XYZ) != kept:
                _one_pass(rules, labels_XYZ, organs, body, tally)
            break
        seen.append(now)
    else:
        logger.warning("anatomy: still changing after %d passes; left as it is", MOST_PASSES)
    return _record(rules, organs, tally, passes=len(seen))


def _one_pass(rules: Sequence[AnatomyRule], labels_XYZ: LabelMap, organs: Organs, body: Body, tally: _Tally) -> None:
    for number, rule in enumerate(rules):
        before = labels_XYZ.copy()
        if note := rule.apply(labels_XYZ, organs, body):
            tally.notes[f"{number} {rule.rule} {', '.join(rule.named)}: {note}"] = None
        changed = before != labels_XYZ
        for counter, values in ((tally.taken, before[changed]), (tally.given, labels_XYZ[changed])):
            found = np.bincount(values, minlength=256)
            counter.update({(number, int(i)): int(found[i]) for i in np.flatnonzero(found)})


def _record(rules: Sequence[AnatomyRule], organs: Organs, tally: _Tally, *, passes: int) -> AnatomyRecord:
    changes = []
    for number, rule in enumerate(rules):
        for organ in organs:
            key = (number, organ.label_id)
            taken, given = tally.taken[key], tally.given[key]
            if taken or given:
                changes.append(AnatomyChange(number=number, rule=rule.rule, organ=organ.name, taken=taken, given=given))
                logger.info("anatomy %d %s: %s lost %d voxels, got %d", number, rule.rule, organ.name, taken, given)
    for note in tally.notes:
        logger.info("anatomy %s", note)
    return AnatomyRecord(passes=passes, changes=tuple(changes), notes=tuple(tally.notes))


def _digest(labels_XYZ: LabelMap) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for z in range(labels_XYZ.shape[2]):
        digest.update(np.ascontiguousarray(labels_XYZ[:, :, z]).data)
    return digest.digest()


def _strangers(organs: Organs) -> npt.NDArray[np.bool_]:
    """[256, 256]: which label ids may not touch which."""
    allowed = {(a.name, b) for a in organs for b in a.may_touch}
    table = np.zeros((256, 256), np.bool_)
    for a in organs:
        for b in organs:
            table[a.label_id, b.label_id] = a != b and (a.name, b.name) not in allowed and (b.name, a.name) not in allowed
    return table


def _stray_pieces(labels_XYZ: LabelMap, label_ids: Sequence[int]) -> Iterator[tuple[npt.NDArray[np.bool_], tuple[slice, ...], int]]:
    """Every component but its organ's largest, in a box with one voxel around, and whose it is."""
    import scipy.ndimage

    for label_id in label_ids:
        parts, count = connected_components(np.ascontiguousarray(labels_XYZ == label_id).view(np.uint8))
        sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        boxes: list[Any] = scipy.ndimage.find_objects(parts, max_label=count)
        for number in np.argsort(-sizes, kind="stable")[1:].tolist():
            box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in boxes[number])
            yield parts[box] == number + 1, box, label_id


def _dilated(piece_XYZ: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    import scipy.ndimage

    return np.asarray(scipy.ndimage.binary_dilation(piece_XYZ, np.ones((3, 3, 3), np.bool_)))
