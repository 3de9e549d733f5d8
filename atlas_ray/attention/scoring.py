"""From an attention map to what is listed and ranked: components, sizes and scores of one case.

Works on whole volumes in the image's own grid, one organ at a time, in numpy. Every measure of a component is a reduction over
the attention's voxels (bincount, reduceat), so a thousand components cost as much as one.
Axes: X Y Z of the image; N attention voxels in C order; C components.
"""

from collections.abc import Sequence
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from atlas_ray.records import AttentionComponent, CaseScores, OrganScores
from atlas_ray.schema import IntTriple, Triple

Bits = npt.NDArray[np.uint8]  # [X, Y, Z], bit i = criterion i fired
Heat = npt.NDArray[np.float32]  # [X, Y, Z], 0 outside the attention
Labels = npt.NDArray[Any]  # [X, Y, Z] unsigned integers, 0 is background, 1..C


# --- components -----------------------------------------------------------------------------------------------------


def find_components(
    bits_XYZ: Bits,
    heat_XYZ: Heat,
    *,
    organ: str,
    criterion_names: Sequence[str],
    spacing: Triple,
    min_volume_mm3: float = 0.0,
) -> list[AttentionComponent]:
    """Connected regions (26 neighbors, as the authors' find_components) of one organ's attention, not yet ranked (index 0).

    A component's reason is the criterion that fired on most of its voxels, the first listed where two tie; its peak is the
    first voxel of the highest heat in C order.

    Args:
        bits_XYZ, heat_XYZ: one organ's `AttentionMaps`, on the image's grid.
        organ: its name.
        criterion_names: in bit order.
        spacing: mm.
        min_volume_mm3: smaller components are left out.
    """
    corner, inner = _box_of(bits_XYZ)
    if inner is None:
        return []
    bits, heat = bits_XYZ[inner], heat_XYZ[inner]
    labels, boxes = _labeled(bits)
    places = np.flatnonzero(labels)  # [N]
    label_N, bits_N = labels.ravel()[places].astype(np.intp), bits.ravel()[places]
    heat_N = np.nan_to_num(heat.ravel()[places].astype(np.float64))
    voxels_C = np.bincount(label_N)  # entry 0 is the background's
    heat_sum_C = np.bincount(label_N, weights=heat_N)
    fired_C = np.stack([np.bincount(label_N, weights=bits_N >> i & 1) for i in range(len(criterion_names))], axis=1)
    peaks_C = np.stack(np.unravel_index(places[_first_peaks(label_N, heat_N)], bits.shape), axis=1) + corner
    voxel_mm3 = float(np.prod(spacing))
    return [
        AttentionComponent(
            organ=organ,
            index=0,
            box=_shifted(boxes[c], corner),
            peak=_triple(peaks_C[c - 1]),
            voxels=int(voxels_C[c]),
            volume_mm3=float(voxels_C[c] * voxel_mm3),
            reason=criterion_names[int(fired_C[c].argmax())],
            criteria=tuple(name for name, count in zip(criterion_names, fired_C[c], strict=True) if count),
            score=float(heat_sum_C[c] * voxel_mm3),
            mean_heat=float(heat_sum_C[c] / voxels_C[c]),
        )
        for c in range(1, len(voxels_C))
        if voxels_C[c] * voxel_mm3 >= min_volume_mm3
    ]


def without_small(bits_XYZ: Bits, heat_XYZ: Heat, *, spacing: Triple, min_volume_mm3: float) -> tuple[Bits, Heat]:
    """The maps with components below a volume erased, so that stored maps and sizes agree with the listed components.

    Returns the arrays themselves where no voxel can be too small, else copies.
    """
    voxel_mm3 = float(np.prod(spacing))
    _, inner = _box_of(bits_XYZ)
    if inner is None or min_volume_mm3 <= voxel_mm3:
        return bits_XYZ, heat_XYZ
    labels, _ = _labeled(bits_XYZ[inner])
    keep_C = np.bincount(labels.ravel()) * voxel_mm3 >= min_volume_mm3
    kept_XYZ = keep_C[labels]
    bits, heat = bits_XYZ.copy(), heat_XYZ.copy()
    bits[inner] *= kept_XYZ
    heat[inner] *= kept_XYZ
    return bits, heat


def rank_components(components: Sequence[AttentionComponent]) -> list[AttentionComponent]:
    """All of a case's components, highest score first, numbered from 1; equal scores by organ, then box."""
    ordered = sorted(components, key=lambda c: (-c.score, c.organ, c.box))
    return [component.model_copy(update={"index": i}) for i, component in enumerate(ordered, 1)]


def _box_of(bits_XYZ: Bits) -> tuple[IntTriple, tuple[slice, slice, slice] | None]:
    """First voxel and slices of the box around the attention: labeling 2 % of a volume instead of all of it."""
    planes_YZ = np.asarray(bits_XYZ.any(axis=0))
    lines = [np.flatnonzero(line) for line in (bits_XYZ.any(axis=(1, 2)), planes_YZ.any(axis=1), planes_YZ.any(axis=0))]
    if not len(lines[0]):
        return (0, 0, 0), None
    x, y, z = (slice(int(line[0]), int(line[-1]) + 1) for line in lines)
    return (x.start, y.start, z.start), (x, y, z)


def _labeled(bits_XYZ: Bits) -> tuple[Labels, list[tuple[slice, slice, slice]]]:
    """Component labels, and each label's box (entry 0 is the background's)."""
    mask = np.ascontiguousarray(bits_XYZ > 0)
    if sorted(mask.shape)[1] == 1:
        mask = np.pad(mask, (0, 1))  # cc3d 4.1.1 raises "maximum length exception" on lines such as 1 0 1
    labels: Labels = cc3d.connected_components(mask, connectivity=26)
    x, y, z = bits_XYZ.shape
    return labels[:x, :y, :z], list(cc3d.statistics(labels)["bounding_boxes"])


def _first_peaks(label_N: npt.NDArray[np.intp], heat_N: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """For labels 1..C the position in N of the first voxel that has the label's highest heat."""
    order = np.argsort(label_N, kind="stable")
    starts = np.searchsorted(label_N[order], np.arange(1, label_N.max() + 1))
    highest_C = np.maximum.reduceat(heat_N[order], starts)
    at_peak = np.flatnonzero(heat_N == highest_C[label_N - 1])
    _, first = np.unique(label_N[at_peak], return_index=True)
    return at_peak[first]


def _shifted(box: tuple[slice, slice, slice], corner: IntTriple) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    x, y, z = ((int(s.start) + c, int(s.stop) + c) for s, c in zip(box, corner, strict=True))
    return x, y, z


def _triple(values: npt.NDArray[np.intp]) -> IntTriple:
    x, y, z = (int(v) for v in values)
    return x, y, z


# --- sizes and scores -----------------------------------------------------------------------------------------------


def quantized_heat(heat_XYZ: Heat) -> npt.NDArray[np.uint8]:
    """The authors' encoding of one organ's heat: floor(255 * heat / its maximum); all zero where there is no heat.

    Normalized per organ, so bytes of two organs do not compare (paper-algorithm a.4); components keep the raw heat.
    From float32 where the authors hold float64: at ratios that are a whole number of levels one may round down, the other not.
    """
    result = np.zeros(heat_XYZ.shape, np.uint8)
    warm_XYZ = heat_XYZ > 0  # a few percent of a volume: the division in float64 need not see the rest
    heat_N = heat_XYZ[warm_XYZ].astype(np.float64)
    result[warm_XYZ] = heat_N / heat_N.max(initial=0.0) * 255
    return result


def organ_scores(
    bits_XYZ: Bits,
    heat_XYZ: Heat,
    *,
    organ: str,
    spacing: Triple,
    predicted_voxels: int,
    components: int,
    entropy: float = 0.0,
) -> OrganScores:
    """One organ's sizes.

    Args:
        bits_XYZ, heat_XYZ: its attention, after `without_small`.
        predicted_voxels: of its pseudo-label.
        components: how many of its components are listed.
        entropy: mean predictive entropy in nats over its predicted voxels and its attention.
    """
    voxel_mm3 = float(np.prod(spacing))
    voxels = int(np.count_nonzero(bits_XYZ))
    return OrganScores(
        organ=organ,
        attention_voxels=voxels,
        attention_mm3=voxels * voxel_mm3,
        heat_sum=float(quantized_heat(heat_XYZ).sum(dtype=np.int64)),
        predicted_ml=predicted_voxels * voxel_mm3 / 1000,
        components=components,
        entropy=entropy,
    )


def case_scores(
    case_id: str,
    organs: Sequence[OrganScores],
    *,
    round_index: int,
    checkpoints: dict[str, str],
    attention_mode: str,
    seconds: float,
    peak_memory_mb: float = 0.0,
) -> CaseScores:
    """A case's scores; its attention size is the sum over organs, a voxel counting once for each (paper-algorithm a.4)."""
    return CaseScores(
        case_id=case_id,
        round=round_index,
        checkpoints=checkpoints,
        attention_mode=attention_mode,
        attention_voxels=sum(organ.attention_voxels for organ in organs),
        attention_mm3=sum(organ.attention_mm3 for organ in organs),
        organs=tuple(organs),
        seconds=seconds,
        peak_memory_mb=peak_memory_mb,
    )
