"""From a case's label files to one label map in the campaign's numbering, and where every organ of it came from.

A case may have several files; each says which organs it labels completely. A pair of organs with one id is told apart by side. What
cannot be read for certain is not labeled in that case, with the reason; nothing is guessed.

    original  <  revised          a later file before an earlier one; the whole organ is the last one's

Not covered: two organs in one voxel. Where masks overlap, the smaller organ has the voxel.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from atlas_ray.components import body_midline, box_of, split_sides
from atlas_ray.exceptions import GeometryError, LabelError
from atlas_ray.organs import LabelMap, Organ, Organs
from atlas_ray.records import OrganOrigin
from atlas_ray.schema import Schema
from atlas_ray.storage import place
from atlas_ray.volume import Array, Volume, onto_grid_of, read_slices, read_volume, reorient

Pair = tuple[str, str]  # the patient's left organ, the right one


class LabelFile(Schema):
    """What every label file of a case says of itself.

    Args:
        organs: of the campaign, that it labels completely.
        pairs: name of a pair in it -> left and right organ.
        absent: what it means that an organ has no voxel: "labeled" that the case has none, "unknown" nothing.
        source: "revised" goes before "original".
        dataset, name: whose it is and what it is called there, for the record.
    """

    organs: tuple[str, ...] = ()
    pairs: dict[str, Pair] = Field(default_factory=dict)
    absent: Literal["labeled", "unknown"] = "labeled"
    source: Literal["original", "revised"] = "original"
    dataset: str = ""
    name: str = ""


class LabelMapFile(LabelFile):
    """One file with label ids.

    Args:
        ids: which organ or pair each id is, "" for what is none of ours.
        unknown_ids: ids of parts of an organ nobody says which; an organ that touches one is not labeled in that case.
    """

    layout: Literal["map"] = "map"
    path: str
    ids: dict[int, str]
    unknown_ids: tuple[int, ...] = ()

    def files(self) -> list[Path]:
        return [place(self.path)]


class LabelSlices(LabelFile):
    """One PNG a slice of the image's DICOM series, in the order of their names; values are label ids.

    Args:
        folder, pattern: which files.
        ids: as in LabelMapFile.
    """

    layout: Literal["slices"] = "slices"
    folder: str
    pattern: str
    ids: dict[int, str]

    def files(self) -> list[Path]:
        return [p for p in sorted(place(self.folder).glob(self.pattern)) if not p.name.startswith(".")]


class OrganMasks(LabelFile):
    """One binary file per organ, or several that make up one.

    Args:
        paths: organ or pair -> where its parts would lie. One that is not there means: not labeled in this case.
    """

    layout: Literal["masks"] = "masks"
    paths: dict[str, tuple[str, ...]]

    def files(self) -> list[Path]:
        return [place(p) for parts in self.paths.values() for p in parts]


AnyLabelFile = Annotated[LabelMapFile | LabelSlices | OrganMasks, Field(discriminator="layout")]


@dataclass(slots=True, eq=False)
class Labels:
    """What is known of a case.

    Args:
        voxels: [X, Y, Z] on the image's grid, label ids of the campaign.
        origins: of every organ that is labeled completely.
        not_labeled: organ -> why it is not in this case, though its dataset labels it.
        overlapping: voxels claimed by more than one mask.
    """

    voxels: LabelMap
    origins: dict[str, OrganOrigin] = field(default_factory=dict)
    not_labeled: dict[str, str] = field(default_factory=dict)
    overlapping: int = 0


def read_label(path: str, organs: Organs, *, to: Organs, ids: dict[int, str] | None = None) -> Volume:
    """A label map on its own grid, in the numbering of `to`. Raises LabelError naming the file; else as read_volume and convert."""
    given = read_volume(path)
    return given.with_voxels(_converted(path, given.voxels, organs, to, ids))


def _converted(path: str, voxels: Array, organs: Organs, to: Organs, ids: dict[int, str] | None) -> LabelMap:
    try:
        return organs.convert(voxels, to=to, ids=ids)
    except LabelError as error:
        raise LabelError(f"{path}: {error}") from error


def join_label_files(
    files: Sequence[LabelMapFile | LabelSlices | OrganMasks],
    image: Volume,
    organs: Organs,
    *,
    tolerance_mm: float,
    dicom: str | None = None,
    series_uid: str | None = None,
) -> Labels:
    """The files of one case on its image's grid, joined.

    Args:
        tolerance_mm: how far a label's corners may lie from its image's.
        dicom, series_uid: the image's folder, for labels that are slices of it.

    Raises:
        CaseError: a file cannot be read or does not fit, or there is none at all.
    """
    joined = Labels(np.zeros(image.shape, np.uint8))
    missing: list[tuple[LabelFile, str]] = []
    for file in sorted(files, key=lambda file: file.source == "revised"):
        if isinstance(file, LabelSlices):
            paths = file.files()
            if not paths:
                missing.append((file, f"no label at {file.folder}/{file.pattern}"))
                continue
            part = _read_slices(file, paths, image, organs, dicom, series_uid)
        elif isinstance(file, LabelMapFile):
            if not place(file.path).is_file():
                missing.append((file, f"no label at {file.path}"))
                continue
            part = _read_map(file, image, organs, tolerance_mm)
        else:
            part, reason = _read_masks(file, image, organs, tolerance_mm)
            if reason:
                missing.append((file, reason))
                continue
        _lay_over(joined, part, organs)
    if missing and len(missing) == len(files):
        raise LabelError("; ".join(reason for _, reason in missing))
    for organ, name in ((organ, file.name) for file, _ in missing for organ in file.organs):
        if organ not in joined.origins:
            joined.not_labeled.setdefault(organ, f"no {name}")
    return joined


def _lay_over(joined: Labels, part: Labels, organs: Organs) -> None:
    """The organs a later file labels completely are that file's alone; what else it has is left out."""
    if not joined.origins and not joined.voxels.any():
        joined.voxels = part.voxels
    else:
        ids = [organs.label_id(name) for name in part.origins]
        joined.voxels[np.isin(joined.voxels, ids)] = 0
        theirs = np.isin(part.voxels, ids)
        np.copyto(joined.voxels, part.voxels, where=theirs)
    joined.origins |= part.origins
    joined.not_labeled = {n: r for n, r in (joined.not_labeled | part.not_labeled).items() if n not in joined.origins}
    joined.overlapping += part.overlapping


# --- one file --------------------------------------------------------------------------------------------------------


def _read_map(file: LabelMapFile, image: Volume, organs: Organs, tolerance_mm: float) -> Labels:
    wide = _with_pairs(organs, file.pairs)
    given = _onto(image, read_volume(file.path), place(file.path), tolerance_mm)
    labels = _converted(file.path, given.voxels, organs, wide, file.ids)
    spoiled = _touching(given.voxels, file.unknown_ids, labels) if file.unknown_ids else {}
    return _finished(file, labels, image, organs, wide, spoiled=spoiled)


def _read_slices(
    file: LabelSlices, paths: Sequence[Path], image: Volume, organs: Organs, dicom: str | None, series_uid: str | None
) -> Labels:
    if dicom is None or not place(dicom).is_dir():
        raise LabelError(f"{file.folder}/{file.pattern} are slices of a DICOM series; the image is {dicom}")
    wide = _with_pairs(organs, file.pairs)
    voxels = read_slices(paths, dicom, series_uid=series_uid)
    return _finished(file, _converted(str(paths[0]), voxels, organs, wide, file.ids), image, organs, wide)


def _read_masks(file: OrganMasks, image: Volume, organs: Organs, tolerance_mm: float) -> tuple[Labels, str]:
    """(what the masks say, why nothing could be said)."""
    wide = _with_pairs(organs, file.pairs)
    wanted = {name: [place(p) for p in file.paths[name]] for name in wide.names if name in file.paths}
    present = {name: paths for name, paths in wanted.items() if all(path.is_file() for path in paths)}
    lacking = {name: next(p for p in paths if not p.is_file()) for name, paths in wanted.items() if name not in present}
    if not present:
        first = next(iter(lacking.values()), Path())
        return Labels(np.zeros(image.shape, np.uint8)), f"no mask of {', '.join(lacking)}, such as {first}"
    masks = ((name, _union(paths, image, tolerance_mm)) for name, paths in present.items())
    labels, overlapping = join_masks(masks, wide, image.shape)
    part = _finished(file, labels, image, organs, wide)
    for name, path in lacking.items():
        for organ in file.pairs.get(name, (name,)):
            part.origins.pop(organ, None)
            if organ in file.organs:
                part.not_labeled[organ] = f"no mask of {name}, such as {path.name}"
    part.overlapping = overlapping
    return part, ""


def _finished(
    file: LabelFile, labels: LabelMap, image: Volume, organs: Organs, wide: Organs, *, spoiled: dict[int, str] | None = None
) -> Labels:
    """Pairs told apart, and what is labeled and what not by the file's own rules."""
    part = Labels(labels)
    rules: dict[str, str] = {}
    for name, sides in file.pairs.items():
        if name not in wide.names:
            continue
        refused = _split(labels, wide.label_id(name), sides, image, organs)
        for organ in sides:
            if refused:
                part.not_labeled[organ] = f"{name}: {refused}"
            rules[organ] = f"side of {name}"
    found = organs.present(labels) if file.absent == "unknown" else ()
    for organ in file.organs:
        if file.absent == "unknown" and organ not in found and organ not in part.not_labeled:
            part.not_labeled[organ] = "no voxel, and the dataset does not label every organ in every case"
        if reason := (spoiled or {}).get(organs.label_id(organ)):
            part.not_labeled[organ] = reason
        if organ not in part.not_labeled:
            origin = OrganOrigin(dataset=file.dataset, file=file.name, source=file.source, rule=rules.get(organ, ""))
            part.origins[organ] = origin
    part.not_labeled = {organ: reason for organ, reason in part.not_labeled.items() if organ in file.organs}
    return part


def _split(labels: LabelMap, pair_id: int, sides: Pair, image: Volume, organs: Organs) -> str:
    """Give a pair's voxels to its organs, in place; the reason where that is not certain, and they become background."""
    ras = reorient(image.with_voxels(labels)).voxels  # a view of the same voxels
    mask = ras == pair_id
    in_ras = reorient(image)
    midline = body_midline(in_ras.voxels, mask) if mask.any() else None
    cut = any(organs[organ].cut_where_touching for organ in sides if organ in organs.names)
    told = split_sides(mask, midline, cut_spacing=in_ras.spacing if cut else None)
    ras[mask] = 0
    for organ, side in zip(sides, (told.left_XYZ, told.right_XYZ), strict=True):
        if organ in organs.names:
            ras[side] = organs.label_id(organ)
    return told.refused


def _with_pairs(organs: Organs, pairs: dict[str, Pair]) -> Organs:
    """The campaign's organs, and the pairs of them with ids of their own, so that a file with pairs is read like any other."""
    free = (i for i in range(255, 0, -1) if i not in organs.label_ids)
    wanted = [name for name, sides in pairs.items() if set(sides) & set(organs.names)]
    extra = tuple(Organ(name=name, label_id=next(free), color="#000000") for name in wanted)
    return Organs(name=organs.name, organs=(*organs.organs, *extra)) if extra else organs


def _touching(given: Array, unknown_ids: Iterable[int], labels: LabelMap) -> dict[int, str]:
    """Label id -> reason, of every organ with a voxel next to one of unknown organ."""
    import scipy.ndimage

    reasons: dict[int, str] = {}
    for unknown in unknown_ids:
        mask = given == unknown
        box = box_of(mask, margin=1)
        around = scipy.ndimage.binary_dilation(mask[box], np.ones((3, 3, 3), np.bool_))
        for label_id in np.unique(labels[box][around]):
            reasons.setdefault(int(label_id), f"touches id {unknown}, which may be a part of it")
    return reasons


def _onto(image: Volume, label: Volume, path: Path, tolerance_mm: float) -> Volume:
    try:
        return onto_grid_of(label, image, tolerance_mm=tolerance_mm)
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


# --- masks -----------------------------------------------------------------------------------------------------------


def join_masks(masks: Iterable[tuple[str, Array]], organs: Organs, shape: tuple[int, int, int]) -> tuple[LabelMap, int]:
    """One label map of masks that may overlap: a voxel goes to the smallest organ that claims it.

    A small organ loses more by a few voxels than a large one, and no order of reading decides. Between organs of the same
    size the earlier channel has it. One mask is held at a time.

    Args:
        masks: (organ, bool [X, Y, Z]), in any order.

    Returns:
        The label map, and how many voxels were claimed more than once.
    """
    labels = np.zeros(shape, np.uint8)
    contested = np.zeros(shape, np.bool_)
    rank: dict[int, tuple[int, int]] = {}
    for name, mask in masks:
        label_id = organs.label_id(name)
        rank[label_id] = (int(mask.sum()), organs.channel(name))
        held = mask & (labels > 0)
        contested |= held
        gives_way = np.array([i in rank and rank[i] > rank[label_id] for i in range(256)])
        labels[mask & (~held | gives_way[labels])] = label_id
    return labels, int(contested.sum())


def _union(paths: Sequence[Path], image: Volume, tolerance_mm: float) -> Array:
    union = _read_mask(paths[0], image, tolerance_mm)
    for path in paths[1:]:
        union = union | _read_mask(path, image, tolerance_mm)
    return union


def _read_mask(path: Path, image: Volume, tolerance_mm: float) -> Array:
    """Bool [X, Y, Z]. Some tools write the mask as 0/255 or as 0/id, so one value beside 0 is a mask, whichever it is."""
    voxels = _onto(image, read_volume(path), path, tolerance_mm).voxels
    mask: Array = voxels != 0
    if mask.any():
        value = voxels.max()
        if value <= 0 or voxels.min() < 0 or np.any(voxels[mask] != value):
            raise LabelError(f"{path} holds values from {voxels.min()} to {value}; a mask has 0 and one positive value")
    return mask
