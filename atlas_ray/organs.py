"""Organs: the only place that converts between organ name, label id and network channel.

Three numberings exist and must not be mixed:
    name      "liver": what checkpoints, records and every file of ours speak
    label id  the integer in a label map; differs from release to release (configs/organs/*.yaml)
    channel   the index of the organ in a network's output: its position in the Organs list
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from atlas_ray.exceptions import ConfigError, LabelError
from atlas_ray.schema import Schema
from atlas_ray.strict_yaml import find_yaml, read_yaml

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LabelMap = npt.NDArray[np.uint8]  # [X, Y, Z], values are label ids, 0 is background


class Concept(Schema):
    """A SNOMED CT concept, such as 64033007 "Kidney"."""

    value: str = Field(pattern=r"^[0-9]+$")
    meaning: str = Field(min_length=1, max_length=64)


class Code(Concept):
    """What DICOM calls an organ: a SNOMED CT concept, with the side as its modifier.

    Args:
        value, meaning: of the segmented property type, such as 64033007 "Kidney".
        category: of the property (DICOM CID 7150); a tumor is no anatomical structure.
        side: the modifier of a paired organ.
        region: the organ that it is in, where its own code does not say.
    """

    category: Literal["anatomical_structure", "morphologically_altered_structure"] = "anatomical_structure"
    side: Literal["left", "right"] | None = None
    region: Concept | None = None


class Organ(Schema):
    """One entry of an organ set.

    Args:
        name: the organ's name everywhere in the project.
        label_id: its integer in label maps of this set, 1..255.
        color: "#rrggbb" in the app and in plots.
        overlap_partner: whether sharing a voxel with it is an error of the other organ (the authors'
            ORGAN_NAME_OVERLAP lists no vessel and no tumor: paper-algorithm a.4).
        may_touch: organs whose masks may share voxels with this one.
        cut_where_touching: one of a pair whose masks may grow together in a thin place, as both lungs do; they are cut there
            (components.cut_in_two) where rules tell the pair apart.
        code: what DICOM calls it; only an export as DICOM SEG asks for it.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    label_id: int = Field(ge=1, le=255)
    color: str = Field(pattern=r"^#[0-9a-fA-F]{6}$")
    overlap_partner: bool = True
    may_touch: tuple[str, ...] = ()
    cut_where_touching: bool = False
    code: Code | None = None


class Organs(Schema):
    """An ordered organ set; the order is the channel order of the networks trained on it."""

    name: str
    version: str = "1"
    source: str = ""
    organs: tuple[Organ, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> "Organs":
        for what in ("name", "label_id"):
            values = [getattr(organ, what) for organ in self.organs]
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise ValueError(f"{what} {twice} given to more than one organ")
        for organ in self.organs:
            if unknown := sorted(set(organ.may_touch) - {other.name for other in self.organs}):
                raise ValueError(f"{organ.name} may_touch {unknown}, which this set does not have")
        return self

    def __iter__(self) -> Iterator[Organ]:  # type: ignore[override]
        return iter(self.organs)

    def __len__(self) -> int:
        return len(self.organs)

    def __getitem__(self, name: str) -> Organ:
        """The organ of that name. Raises LabelError naming the organs that exist."""
        return self.organs[self.channel(name)]

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(organ.name for organ in self.organs)

    @cached_property
    def label_ids(self) -> tuple[int, ...]:
        """Label ids in channel order."""
        return tuple(organ.label_id for organ in self.organs)

    @cached_property
    def overlap_partners(self) -> tuple[tuple[int, ...], ...]:
        """For each channel, the channels that must not claim a voxel it claims."""
        return tuple(
            tuple(
                c
                for c, other in enumerate(self)
                if other.name != organ.name and other.overlap_partner and other.name not in organ.may_touch
            )
            for organ in self
        )

    @cached_property
    def mirrored(self) -> tuple[int, ...]:
        """For each channel, the channel of the same organ on the other side of the body: its own where the organ has no side, -1
        where the other side is not in this set."""
        others = [_other_side(name) for name in self.names]
        return tuple(self.names.index(other) if other in self.names else -1 for other in others)

    def channel(self, name: str) -> int:
        """Position of an organ in the network's output. Raises LabelError for an unknown name."""
        if name not in self.names:
            raise LabelError(f"organ {name!r} is not in organ set {self.name!r}; it has {', '.join(self.names)}")
        return self.names.index(name)

    def label_id(self, name: str) -> int:
        return self[name].label_id

    def mirror(self, name: str) -> str | None:
        """The same organ on the body's other side, by its code; None where the set has none."""
        code = self[name].code
        if code is None or code.side is None:
            return None
        others = (o.name for o in self if o.code and o.code.side not in (None, code.side) and o.code.value == code.value)
        return next(others, None)

    def mask(self, labels: LabelMap, name: str) -> npt.NDArray[np.bool_]:
        """Voxels of one organ, [X, Y, Z]."""
        return np.equal(labels, self.label_id(name))

    def present(self, labels: LabelMap) -> tuple[str, ...]:
        """Names of the organs with at least one voxel, in channel order."""
        found = _values(labels)
        return tuple(organ.name for organ in self if organ.label_id in found)

    def voxels(self, labels: LabelMap) -> dict[str, int]:
        """Organ -> number of its voxels, in channel order."""
        slices = np.moveaxis(labels, -1, 0)  # one at a time: bincount makes eight bytes of each
        counts = np.sum([np.bincount(slice_XY.ravel(order="K"), minlength=256) for slice_XY in slices], axis=0)
        return {organ.name: int(counts[organ.label_id]) for organ in self}

    def channels(self, labels: LabelMap) -> npt.NDArray[np.bool_]:
        """Label map [X, Y, Z] -> one mask per channel [K, X, Y, Z]."""
        return np.stack([labels == label_id for label_id in self.label_ids])

    def convert(self, labels: npt.NDArray[Any], *, to: "Organs", ids: dict[int, str] | None = None) -> LabelMap:
        """Renumber a label map of this set into another set, by organ name; organs `to` lacks become background.

        Args:
            labels: [X, Y, Z] integers, or floats that hold integers.
            to: the set whose label ids the result holds.
            ids: label id -> organ name of the file, where it is not this set's own numbering; "" drops an id, and
                several ids of one organ are joined.

        Raises:
            LabelError: the map holds an id that has no organ, or fractions.
        """
        known = ids if ids is not None else {organ.label_id: organ.name for organ in self}
        labels = _integers(labels)
        found = _values(labels) - {0}
        if unknown := sorted(found - set(known)):
            shown = ", ".join(map(str, unknown[:10])) + (" and more" if len(unknown) > 10 else "")
            raise LabelError(f"label ids {shown} have no organ; known are {', '.join(map(str, sorted(known)))}")
        low, high = min(found, default=0), max(found, default=0)
        table = np.zeros(max(high, 0) - min(low, 0) + 1, np.uint8)  # a negative id counts from the table's end, as in the array
        for value in found:
            table[value] = to.label_id(known[value]) if known[value] in to.names else 0
        renumbered: LabelMap = table[labels]
        return renumbered


def _other_side(name: str) -> str:
    """The name with its word "left" as "right" and the other way round."""
    swap = {"left": "right", "right": "left"}
    return "_".join(swap.get(word, word) for word in name.split("_"))


def _integers(labels: npt.NDArray[Any]) -> npt.NDArray[np.integer]:
    """Floats become integers where nothing is lost. Raises LabelError naming the first value that would be."""
    if labels.dtype.kind in "iu":
        return labels
    with np.errstate(invalid="ignore"):
        whole = labels.astype(np.int32)
    lost = whole != labels
    if lost.any():
        raise LabelError(f"a label map holds {labels.ravel()[lost.ravel().argmax()]:g}; whole numbers are allowed")
    return whole


def _values(labels: npt.NDArray[np.integer]) -> set[int]:
    """The values that occur. Slab by slab along the last axis, contiguous as files are: sorting half a gigabyte takes a minute."""
    return {int(v) for z in range(labels.shape[-1]) for v in np.unique(labels[..., z])} if labels.ndim else set()


def load_organs(name_or_path: str | Path) -> Organs:
    """Read an organ set: the name of a file in configs/organs, or a path to a YAML file.

    Raises:
        ConfigError: no such file, or a file that is not an organ set.
    """
    path = find_yaml(name_or_path, CONFIGS / "organs", "organ set")
    try:
        return Organs.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path} is not an organ set: {error}") from error
