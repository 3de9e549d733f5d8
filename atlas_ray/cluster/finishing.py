"""From an ensemble's probabilities to one finished prediction folder: labels, attention, components, scores.

Runs in CPU tasks beside the actors, one case at a time, without networks. Everything large is made slab by slab along Z; what stays
is one byte per voxel and label map, and the few voxels that have attention. Work is in RAS; files are on the image's own grid.

Axes: M architectures, K organs, X Y Z of the image in RAS, N voxels with attention.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atlas_ray.attention.absent import Known, known_by, look_among, voices
from atlas_ray.attention.candidates import to_bytes
from atlas_ray.attention.criteria import CalibratedAttention, FaithfulAttention, PhysicalAttention
from atlas_ray.attention.detector import AttentionDetector
from atlas_ray.attention.rules import mean_entropies
from atlas_ray.attention.scoring import case_scores, find_components, organ_scores, raise_heat, rank_components
from atlas_ray.attention.sparse import GridAttention, OrganAttention, joined
from atlas_ray.cluster.calibrated import Predicted, candidates_of
from atlas_ray.cluster.timing import Stopwatch, peak_mb
from atlas_ray.config import Campaign
from atlas_ray.organs import Organs
from atlas_ray.prioritization.error_types import MARGIN_MM, PredictedOrgan, error_type_of
from atlas_ray.records import AttentionComponent, Case, OrganScores
from atlas_ray.schema import IntTriple
from atlas_ray.segmentation.anatomy import apply_anatomy
from atlas_ray.segmentation.packed_probabilities import PackedProbabilities
from atlas_ray.segmentation.pseudo_labels import clean_label_map, native_slabs, support
from atlas_ray.storage import write_atomically
from atlas_ray.volume import Volume, axes_from_ras, read_volume, reorient, write_volume
from atlas_ray.workspace import (
    RESULT,
    anatomy_in,
    architecture_label_in,
    attention_in,
    candidates_in,
    components_in,
    heat_in,
    pseudo_label_in,
    seal,
)

SLAB_MB = 300.0  # of probabilities on the image's grid at a time
POSSIBLE = 0.05  # mean probability above which an organ counts as possible in a voxel


class Canvas:
    """An empty volume on an image's own grid, in file order, and the same memory seen in RAS.

    Args:
        grid: the image's; its voxels are not looked at.
    """

    def __init__(self, grid: Volume) -> None:
        self.voxels = np.zeros(grid.shape, np.uint8, order="F")
        self._grid = grid
        self.ras_XYZ = reorient(Volume(self.voxels, grid.affine)).voxels

    def volume(self) -> Volume:
        """What was painted, with the image's header."""
        return self._grid.with_voxels(self.voxels)


class AttentionParts:
    """One organ's attention, slab by slab, in a nameless file: networks of a first round may be unsure nearly everywhere, and lists
    of all voxels for every organ would not fit into memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by join, or with the object
        self._slabs: list[tuple[int, OrganAttention]] = []  # first slice, and the part without its voxels
        self._voxels: list[int] = []

    def add(self, start: int, part: OrganAttention) -> None:
        for values_N in (part.places_N, part.bits_N, part.heat_N):
            self._file.write(values_N.data)
        nothing = slice(0, 0)
        empty = replace(part, places_N=part.places_N[nothing], bits_N=part.bits_N[nothing], heat_N=part.heat_N[nothing])
        self._slabs.append((start, empty))
        self._voxels.append(part.voxels)

    def join(self, shape: IntTriple) -> OrganAttention:
        """All of it, as one; the file is gone afterwards."""
        self._file.seek(0)
        parts = []
        for (_, part), count in zip(self._slabs, self._voxels, strict=True):
            places_N = np.fromfile(self._file, np.int64, count)
            bits_N = np.fromfile(self._file, np.uint8, count)
            heat_N = np.fromfile(self._file, np.float64, count)
            parts.append(replace(part, places_N=places_N, bits_N=bits_N, heat_N=heat_N))
        self._file.close()
        return joined(parts, [start for start, _ in self._slabs], shape)


@dataclass(frozen=True, slots=True)
class Findings:
    """What is found on the image's own grid, slab by slab.

    Args:
        label: the ensemble's label map.
        own_labels: each architecture's.
        attention_K: of each organ.
        candidates_K: of each organ, what calibrated attention chooses from.
    """

    label: Canvas
    own_labels: dict[str, Canvas]
    attention_K: tuple[AttentionParts, ...]
    candidates_K: tuple[AttentionParts, ...] = ()

    def add(self, start: int, found: GridAttention) -> None:
        z = slice(start, start + found.label_XYZ.shape[2])
        self.label.ras_XYZ[..., z] = found.label_XYZ
        for canvas, own_XYZ in zip(self.own_labels.values(), found.own_labels_MXYZ, strict=True):
            canvas.ras_XYZ[..., z] = own_XYZ
        for parts, part in zip(self.attention_K, found.organs, strict=True):
            parts.add(start, part)

    def add_candidates(self, start: int, found: GridAttention) -> None:
        for parts, part in zip(self.candidates_K, found.organs, strict=True):
            parts.add(start, part)

    def attention(self, channel: int, grid: Volume) -> OrganAttention:
        """One organ's, on the image's own grid; to be asked for once."""
        return self.in_ras(self.attention_K, channel).turned(*axes_from_ras(grid))

    def in_ras(self, parts_K: Sequence[AttentionParts], channel: int) -> OrganAttention:
        return parts_K[channel].join(self.label.ras_XYZ.shape)


def finish(
    folder: Path,
    campaign: Campaign,
    case: Case,
    grid: Volume,
    probabilities: PackedProbabilities,
    *,
    round_index: int,
    checkpoints: dict[str, str],
    key: str,
    absent: dict[str, tuple[str, ...]] | None = None,
    watch: Stopwatch,
    detector: AttentionDetector | None = None,
    image_XYZ: npt.NDArray[np.int16] | None = None,
) -> None:
    """Write every file of one prediction into an empty folder, checksums before scores.json, which is last.

    Args:
        grid: the image's own, without voxels.
        probabilities: at the networks' spacing, one architecture after the other as `checkpoints` names them.
        checkpoints: architecture or member -> sha256 of its weights.
        absent: member -> organs that it does not know.
        key: of the result (identity.py).
        watch: of the case; gets a lap per stage.
        detector, image_XYZ: for calibrated attention: what was learned so far, and the CT at the networks' spacing.
    """
    organs = campaign.load_organs()
    known_MK = known_by(tuple(checkpoints), absent or {}, organs)
    found = look(campaign, case, grid, probabilities, organs, tuple(checkpoints), watch, known_MK=known_MK, detector=detector)
    with watch("clean"):
        if campaign.pseudo_labels.largest_component:
            found.label.voxels = clean_label_map(found.label.voxels, organs)
        if campaign.pseudo_labels.anatomy:
            image = partial(read_volume, case.image, series_uid=case.series_uid)
            corrected = apply_anatomy(campaign.pseudo_labels.anatomy, found.label.volume(), organs, image=image)
            write_atomically(anatomy_in(folder), corrected.model_dump_json(indent=2))
        slices = np.moveaxis(found.label.voxels, 2, 0)
        voxels_of = np.sum([np.bincount(slice_XY.ravel(order="K"), minlength=256) for slice_XY in slices], axis=0)
    with watch("write"):
        for name in list(found.own_labels):  # a byte per voxel each, which the components have need of
            write_volume(architecture_label_in(folder, name), found.own_labels.pop(name).volume())
    components: list[AttentionComponent] = []
    scores: list[OrganScores] = []
    strongest = np.zeros(grid.shape, np.uint8, order="F")
    mode = campaign.attention
    chosen: dict[str, OrganAttention] = {}
    if isinstance(mode, CalibratedAttention):
        with watch("candidates"):
            permissive = {name: found.in_ras(found.candidates_K, channel) for channel, name in enumerate(organs.names)}
            seen = Predicted(probabilities, known_MK, image_XYZ, found.label.ras_XYZ, reorient(grid).spacing)
            candidates = candidates_of(mode, permissive, seen, organs, skip=_labeled(case))
            write_atomically(candidates_in(folder), to_bytes(candidates))
            if detector is not None:
                shown = {name: detector.attention(name, own) for name, own in candidates.items() if detector.of(name)}
                chosen = {name: own.turned(*axes_from_ras(grid)) for name, own in shown.items()}
    for channel, name in enumerate(organs.names):
        with watch("components"):
            plain = found.attention(channel, grid)  # asked for in any case, which closes its file
            attention, listed = find_components(
                chosen.get(name, plain),
                organ=name,
                criterion_names=mode.criterion_names,
                spacing=grid.spacing,
                min_volume_mm3=mode.min_component_mm3,
            )
            listed = with_errors(listed, found.label.volume(), organs)
            components += listed
            raise_heat(strongest, attention)
            entropy, mutual_information = doubts(probabilities, channel, np.flatnonzero(known_MK[:, channel]).tolist())
            scores.append(
                organ_scores(
                    attention,
                    organ=name,
                    spacing=grid.spacing,
                    predicted_voxels=int(voxels_of[organs.label_id(name)]),
                    components=len(listed),
                    entropy=entropy,
                    mutual_information=mutual_information,
                    error=max(listed, key=lambda c: c.score).error if listed else "",
                )
            )
        with watch("write"):
            write_volume(attention_in(folder, name), grid.with_voxels(attention.dense(attention.bits_N)))
    with watch("write"):
        write_volume(heat_in(folder), grid.with_voxels(strongest))
        write_volume(pseudo_label_in(folder), found.label.volume())
        lines = (component.model_dump_json() + "\n" for component in rank_components(components))
        write_atomically(components_in(folder), "".join(lines))
    record = case_scores(
        case.case_id,
        scores,
        round_index=round_index,
        checkpoints=checkpoints,
        absent=absent,
        attention_mode=mode.mode,
        criteria=mode.criterion_names,
        seconds=watch.seconds,
        peak_memory_mb=peak_mb(),
        key=key,
        bytes_on_disk=sum(file.stat().st_size for file in folder.rglob("*.*")),
    )
    seal(folder, RESULT, record.model_dump_json(indent=2))


def look(
    campaign: Campaign,
    case: Case,
    grid: Volume,
    probabilities: PackedProbabilities,
    organs: Organs,
    architectures: tuple[str, ...],
    watch: Stopwatch,
    *,
    known_MK: Known | None = None,
    detector: AttentionDetector | None = None,
) -> Findings:
    """Labels and attention on the image's own grid. Calibrated attention looks twice: for candidates, and with its fallback at the
    organs that have no detector.

    Args:
        known_MK: which member knows which organ; None where all know all.
    """
    ras, memory_mb, mode = reorient(grid), SLAB_MB, campaign.attention
    is_calibrated = isinstance(mode, CalibratedAttention)
    candidates, plain = (mode.candidates, mode.fallback) if isinstance(mode, CalibratedAttention) else (mode, mode)
    attend, attend_candidates = _attention(campaign, plain), _attention(campaign, candidates)
    if known_MK is not None and not known_MK.all():
        attend, attend_candidates = partial(look_among, attend, known_MK), partial(look_among, attend_candidates, known_MK)
        memory_mb *= len(known_MK) / len(voices(known_MK))
    with watch("support"):
        counted = support(probabilities, campaign.pseudo_labels)
    halo = max(m.halo(ras.spacing)[2] for m in (candidates, plain))
    slabs = native_slabs(probabilities, counted, ras.shape, halo=halo, memory_mb=memory_mb)
    found = Findings(
        Canvas(grid),
        {name: Canvas(grid) for name in architectures},
        tuple(AttentionParts() for _ in organs),
        tuple(AttentionParts() for _ in organs) if is_calibrated else (),
    )
    skip = _labeled(case)
    learned = frozenset(name for name in organs.names if detector is not None and detector.of(name))
    while True:
        with watch("inverse"):
            slab = next(slabs, None)
        if slab is None:
            return found
        how: dict[str, Any] = {
            "support_MXYZ": slab.support_MXYZ,
            "organs": organs,
            "spacing": ras.spacing,
            "label_threshold": campaign.pseudo_labels.threshold,
            "inner": slice(slab.context, slab.context + slab.stop - slab.start),
        }
        with watch("attention"):
            found.add(slab.start, attend(slab.bytes_MKXYZ, skip=skip | learned, **how))
            if is_calibrated:
                found.add_candidates(slab.start, attend_candidates(slab.bytes_MKXYZ, skip=skip, **how))


def _labeled(case: Case) -> frozenset[str]:
    """A training case needs no attention where it is labeled; a holdout is watched whole."""
    return frozenset(case.labeled_organs) if case.split == "train" else frozenset()


def _attention(campaign: Campaign, mode: FaithfulAttention | PhysicalAttention) -> Callable[..., GridAttention]:
    """The mode's `look`: on the task's share of a GPU if it has one, else on its core."""
    if not campaign.cluster.gpus_per_task:
        return partial(mode.look, own_labels=True, threads=1)
    import torch

    from atlas_ray.attention import packed

    return partial(packed.look, mode, device="cuda" if torch.cuda.is_available() else "cpu")


def doubts(probabilities: PackedProbabilities, channel: int, members: Sequence[int]) -> tuple[float, float]:
    """Two means over the voxels at the networks' spacing where the organ is at least possible (mean p > 0.05), in nats: the binary
    entropy of the mean probability, and the mutual information of prediction and architecture, which is that entropy minus the mean
    of each architecture's own (BALD). 0 and 0 where the organ is nowhere.

    Args:
        members: which know the organ.
    """
    if not (M := len(members)):
        return 0.0, 0.0
    bytes_MZYX = [probabilities[m, channel].T for m in members]  # in the order of memory
    sums_ZYX = np.zeros(probabilities.grid[::-1], np.uint16)
    for one_ZYX in bytes_MZYX:
        sums_ZYX += one_ZYX
    possible_ZYX = sums_ZYX > POSSIBLE * 255 * M
    voxels_of_sum = np.bincount(sums_ZYX[possible_ZYX], minlength=255 * M + 1)
    voxels_of_byte = sum(np.bincount(one_ZYX[possible_ZYX], minlength=256) for one_ZYX in bytes_MZYX)
    voxels = max(1, voxels_of_sum.sum())
    entropy = float(voxels_of_sum @ mean_entropies(M) / voxels)
    own = float(voxels_of_byte @ mean_entropies(1) / (M * voxels))
    return entropy, max(0.0, entropy - own)


def with_errors(components: Sequence[AttentionComponent], label: Volume, organs: Organs) -> list[AttentionComponent]:
    """One organ's components, each with the type of error it seems to point at, seen in a box around them and the organ."""
    if not components:
        return []
    name = components[0].organ
    mask_XYZ, mirror = label.voxels == organs.label_id(name), organs.mirror(name)
    spans = []
    for axis, edge in enumerate(label.spacing):
        around = (min(c.box[axis][0] for c in components), max(c.box[axis][1] for c in components))
        spans.append(_span(mask_XYZ, axis, around, math.ceil(MARGIN_MM / edge)))
    window = tuple(slice(low, high) for low, high in spans)
    mask_XYZ = np.ascontiguousarray(mask_XYZ[window])
    mirror_XYZ = label.voxels[window] == organs.label_id(mirror) if mirror else None
    organ = PredictedOrgan(mask_XYZ, label.spacing, mirror_XYZ)
    named = []
    for component in components:
        moved = tuple((start - low, stop - low) for (start, stop), (low, _) in zip(component.box, spans, strict=True))
        error = error_type_of(component.model_copy(update={"box": moved}), organ)
        named.append(component.model_copy(update={"error": error}))
    return named


def _span(mask_XYZ: npt.NDArray[np.bool_], axis: int, around: tuple[int, int], reach: int) -> tuple[int, int]:
    """From the first to behind the last plane along an axis that holds the organ or the given range, and a margin."""
    planes = np.flatnonzero(mask_XYZ.any(axis=tuple(a for a in range(3) if a != axis)))
    low, high = (min(around[0], planes[0]), max(around[1], planes[-1] + 1)) if len(planes) else around
    return max(0, int(low) - reach), min(mask_XYZ.shape[axis], int(high) + reach)
