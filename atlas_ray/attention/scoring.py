"""From an attention map to what is listed and ranked: components, sizes and scores of one case.

Works organ by organ on the voxels with attention alone, and within the box around them; one labeling gives the filter by size, the
components and their measures, so a thousand components cost as much as one.
Axes: X Y Z of the image; N attention voxels; C components.
"""

from collections.abc import Sequence

import cc3d
import numpy as np
import numpy.typing as npt

from atlas_ray.attention.sparse import OrganAttention, Span
from atlas_ray.records import AttentionComponent, CaseScores, OrganScores
from atlas_ray.schema import IntTriple, Triple

# --- components -----------------------------------------------------------------------------------------------------


def find_components(
    attention: OrganAttention,
    *,
    organ: str,
    criterion_names: Sequence[str],
    spacing: Triple,
    min_volume_mm3: float = 0.0,
) -> tuple[OrganAttention, list[AttentionComponent]]:
    """Connected regions (26 neighbors, as the authors' find_components) of one organ's attention, not yet ranked (index 0).

    A component's reason is the criterion that fired on most of its voxels, the first listed where two tie; its peak is the
    first voxel of the highest heat in C order.

    Args:
        attention: on the image's grid.
        organ: its name.
        criterion_names: in bit order.
        spacing: mm.
        min_volume_mm3: smaller components are left out.

    Returns:
        The attention without the small components, so that stored maps and sizes agree with the list, and the list.
    """
    if attention.box is None:
        return attention, []
    from atlas_ray.attention import kernels  # numba takes a second to import

    label_N, count = labeled(attention)
    voxels_C, spans_C6, peaks_C, heat_sums_C, fired_CB = kernels.measured(
        label_N, count, attention.shape, attention.places_N, attention.bits_N, attention.heat_N
    )
    voxel_mm3 = float(np.prod(spacing))
    keep_C = voxels_C * voxel_mm3 >= min_volume_mm3
    components = [
        AttentionComponent(
            organ=organ,
            index=0,
            box=_spans(spans_C6[c]),
            peak=_triple(peaks_C[c], attention.shape),
            voxels=int(voxels_C[c]),
            volume_mm3=float(voxels_C[c] * voxel_mm3),
            reason=criterion_names[int(fired_CB[c, : len(criterion_names)].argmax())],
            criteria=tuple(name for name, fired in zip(criterion_names, fired_CB[c], strict=False) if fired),
            score=float(heat_sums_C[c] * voxel_mm3),
            mean_heat=float(heat_sums_C[c] / voxels_C[c]),
        )
        for c in np.flatnonzero(keep_C)
    ]
    return (attention if keep_C.all() else attention.where(keep_C[label_N - 1])), components


def rank_components(components: Sequence[AttentionComponent]) -> list[AttentionComponent]:
    """All of a case's components, highest score first, numbered from 1; equal scores by organ, then box."""
    ordered = sorted(components, key=lambda c: (-c.score, c.organ, c.box))
    return [component.model_copy(update={"index": i}) for i, component in enumerate(ordered, 1)]


def labeled(attention: OrganAttention) -> tuple[npt.NDArray[np.integer], int]:
    """Component (26 neighbors) of each of its voxels, 1..C, and C."""
    from atlas_ray.attention import kernels  # numba takes a second to import

    if attention.box is None:
        return np.empty(0, np.int64), 0
    return _labeled(attention.box, kernels.places_in(attention.box, attention.shape, attention.places_N))


def _labeled(box: tuple[Span, Span, Span], at_N: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.integer], int]:
    """Component of each voxel, 1..C, and C. at_N: flat positions in the box."""
    shape = tuple(high - low for low, high in box)
    mask = np.zeros(shape, np.bool_)
    mask.reshape(-1)[at_N] = True
    if sorted(shape)[1] == 1:
        mask = np.pad(mask, (0, 1))  # cc3d 4.1.1 raises "maximum length exception" on lines such as 1 0 1
    labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    x, y, z = shape
    return np.ascontiguousarray(labels[:x, :y, :z]).reshape(-1)[at_N], int(count)


def _spans(spans_6: npt.NDArray[np.int64]) -> tuple[Span, Span, Span]:
    x, y, z = ((int(low), int(high)) for low, high in spans_6.reshape(3, 2))
    return x, y, z


def _triple(place: int, shape: IntTriple) -> IntTriple:
    x, y, z = (int(i) for i in np.unravel_index(place, shape))
    return x, y, z


# --- sizes and scores -----------------------------------------------------------------------------------------------


def quantized_heat(heat_N: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """The authors' encoding of one organ's heat: floor(255 * heat / its maximum); all zero where there is no heat.

    Normalized per organ, so bytes of two organs do not compare (paper-algorithm a.4); components keep the raw heat. Equal to the
    authors' bytes where the heat is float64, as theirs is.
    """
    highest = heat_N.max(initial=0.0)
    if highest == 0:
        return np.zeros(heat_N.shape, np.uint8)
    levels: npt.NDArray[np.uint8] = (heat_N.astype(np.float64, copy=False) / highest * 255).astype(np.uint8)
    return levels


def raise_heat(strongest_XYZ: npt.NDArray[np.uint8], organ: OrganAttention) -> None:
    """Raise every voxel, in place, to the quantized heat that an organ has there; after all organs it is the highest of any."""
    where = np.unravel_index(organ.places_N, organ.shape)
    strongest_XYZ[where] = np.maximum(strongest_XYZ[where], quantized_heat(organ.heat_N))


def organ_scores(
    attention: OrganAttention,
    *,
    organ: str,
    spacing: Triple,
    predicted_voxels: int,
    components: int,
    entropy: float = 0.0,
    mutual_information: float = 0.0,
    error: str = "",
) -> OrganScores:
    """One organ's sizes.

    Args:
        attention: as `find_components` returned it.
        predicted_voxels: of its pseudo-label.
        components: how many of its components are listed.
        entropy, mutual_information: means in nats over its predicted voxels and its attention.
        error: type of the error its largest component points at.
    """
    voxel_mm3 = float(np.prod(spacing))
    return OrganScores(
        organ=organ,
        attention_voxels=attention.voxels,
        attention_mm3=attention.voxels * voxel_mm3,
        heat_sum=float(quantized_heat(attention.heat_N).sum(dtype=np.int64)),
        predicted_ml=predicted_voxels * voxel_mm3 / 1000,
        components=components,
        entropy=entropy,
        mutual_information=mutual_information,
        error=error,
    )


def case_scores(
    case_id: str,
    organs: Sequence[OrganScores],
    *,
    round_index: int,
    checkpoints: dict[str, str],
    absent: dict[str, tuple[str, ...]] | None = None,
    attention_mode: str,
    criteria: Sequence[str],
    seconds: float,
    peak_memory_mb: float = 0.0,
    key: str = "",
    bytes_on_disk: int = 0,
) -> CaseScores:
    """A case's scores; its attention size is the sum over organs, a voxel counting once for each (paper-algorithm a.4)."""
    return CaseScores(
        case_id=case_id,
        round=round_index,
        checkpoints=checkpoints,
        absent=absent or {},
        attention_mode=attention_mode,
        attention_voxels=sum(organ.attention_voxels for organ in organs),
        attention_mm3=sum(organ.attention_mm3 for organ in organs),
        criteria=tuple(criteria),
        organs=tuple(organs),
        seconds=seconds,
        peak_memory_mb=peak_memory_mb,
        key=key,
        bytes=bytes_on_disk,
    )
