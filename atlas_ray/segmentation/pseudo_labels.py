"""From the ensemble's probabilities at the networks' spacing to label maps on the image's own grid.

The order is the authors' (paper-algorithm a.2, a.3, a.5): threshold and clean each architecture's mask at the networks' spacing,
note where its soft prediction counts (the mask dilated by one voxel), bring everything to the CT's grid, average there.

Probabilities are bytes, round(255 p), and travel by linear interpolation in float32, rounded to bytes again; the authors use
nearest, which costs about two points of Dice at the organs' borders. Where a prediction counts travels by nearest, a bit per organ.
This runs on the CPU, wherever the networks ran. The authors' lung split and vessel rules concern organs outside the nine; they are
rules of `anatomy`, for whoever lists them.

Axis letters: M architectures, K organs, X Y Z.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from atlas_ray.components import connected_components
from atlas_ray.exceptions import LabelError
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.resampling import linear_taps, nearest_indices
from atlas_ray.schema import IntTriple, Schema
from atlas_ray.segmentation.anatomy import AnatomyRule

if TYPE_CHECKING:
    from torch import Tensor

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]  # bit k stands for organ k
MOST_ORGANS = 32


class PseudoLabels(Schema):
    """How predictions become labels.

    Args:
        threshold: an organ is present where the mean probability is above it.
        largest_component: keep only the largest 26-connected component of every organ.
        anatomy: corrections of the finished label map, in this order.
    """

    threshold: float = 0.5
    largest_component: bool = True
    anatomy: tuple[AnatomyRule, ...] = ()


class Probabilities(Protocol):
    """round(255 p) at the networks' spacing: an array [M, K, X, Y, Z], a memory map, or what reads like one an organ at a time."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, where: Any, /) -> Bytes: ...


def support(bytes_MKXYZ: Probabilities, settings: PseudoLabels) -> Words:
    """Where each architecture's soft prediction counts: its cleaned hard mask, dilated once by the full 3x3x3 cube (a.3).

    Args:
        bytes_MKXYZ: probabilities, not copied where X is the fastest axis.

    Returns:
        support_MXYZ: bit k is set where organ k counts. X is the fastest axis.

    Raises:
        LabelError: more than 32 organs.
    """
    from atlas_ray.loops import box_above, count_parts, mark_dilated

    M, K, *shape = bytes_MKXYZ.shape
    if K > MOST_ORGANS:
        raise LabelError(f"{K} organs do not fit the bits of a word; {MOST_ORGANS} are allowed")
    limit = int(255 * settings.threshold)
    words_MZYX = np.zeros((M, *shape[::-1]), np.uint32)
    for m, k in np.ndindex(M, K):
        organ_ZYX = np.ascontiguousarray(bytes_MKXYZ[m, k].T)
        box = box_above(organ_ZYX, limit)
        parts_ZYX, part = np.asarray(organ_ZYX[_inside(box)] > limit, np.uint8), 1
        if settings.largest_component:
            parts_ZYX, count = connected_components(parts_ZYX)
            sizes, _ = count_parts(parts_ZYX.reshape(-1), parts_ZYX.reshape(-1), count)
            part = 1 + int(sizes[1:].argmax()) if count else 1
        mark_dilated(parts_ZYX, part, box[0], k, words_MZYX[m])
    return words_MZYX.swapaxes(1, 3)


def _inside(box: npt.NDArray[np.int64]) -> tuple[slice, ...]:
    return tuple(slice(int(low), int(high)) for low, high in box.T)


# --- to the image's grid ---------------------------------------------------------------------------------------------

Sliced = TypeVar("Sliced", Bytes, Words, "Tensor")


@dataclass(frozen=True, slots=True)
class Slab:
    """Probabilities on a stretch of the image's grid, with context on both sides along the last axis.

    Args:
        start, stop: first and one-past-last slice it stands for.
        context: slices of context before `start` that are included (fewer at the border).
        bytes_MKXYZ: probabilities as round(255 p), context included; C order.
        support_MXYZ: bit k is set where organ k counts, the same slices.
    """

    start: int
    stop: int
    context: int
    bytes_MKXYZ: Bytes
    support_MXYZ: Words

    def inner(self, array: Sliced) -> Sliced:
        """The slices the slab stands for, of an array over the slab."""
        return array[..., self.context : self.context + self.stop - self.start]


def native_slabs(
    bytes_MKXYZ: Probabilities, support_MXYZ: Words, shape: IntTriple, *, halo: int, memory_mb: float = 300
) -> Iterator[Slab]:
    """Probabilities on the image's own grid (in RAS), a few slices at a time, so that memory does not grow with the volume.

    Args:
        bytes_MKXYZ: at the networks' spacing, covering the same extent; as `support` takes them.
        support_MXYZ: where they count, same grid.
        shape: of the image in RAS.
        halo: slices of context on both sides of each slab.
        memory_mb: how much one slab may take, where that leaves room for twice the context.
    """
    from atlas_ray.loops import box_above, interpolate_bytes, nearest_words

    M, K, *grid = bytes_MKXYZ.shape
    taps = [linear_taps(n, out) for n, out in zip(grid, shape, strict=True)]
    first, weights = tuple(tap[0] for tap in taps), tuple(tap[1] for tap in taps)
    nearest = [nearest_indices(n, out) for n, out in zip(grid, shape, strict=True)]
    boxes = {(m, k): box_above(np.ascontiguousarray(bytes_MKXYZ[m, k].T), 0) for m, k in np.ndindex(M, K)}
    slice_mb = M * (K + 4) * shape[0] * shape[1] / 2**20
    step = max(1, 2 * halo, int(memory_mb / slice_mb) - 2 * halo)  # at most twice the work is context
    for start in range(0, shape[2], step):
        stop = min(start + step, shape[2])
        low, high = max(0, start - halo), min(shape[2], stop + halo)
        result_MKXYZ = np.zeros((M, K, shape[0], shape[1], high - low), np.uint8)
        z = slice(int(first[2][low]), min(grid[2], int(first[2][high - 1]) + weights[2].shape[1]))  # what the slab is made of
        for (m, k), box in boxes.items():
            organ_ZYX = np.ascontiguousarray(bytes_MKXYZ[m, k, :, :, z].T)
            part = np.column_stack([np.clip(box[:, 0] - z.start, 0, len(organ_ZYX)), box[:, 1:]])
            interpolate_bytes(organ_ZYX, part, (first[0], first[1], first[2] - z.start), weights, low, result_MKXYZ[m, k])
        words_MXYZ = np.zeros((M, shape[0], shape[1], high - low), np.uint32)
        over = nearest[2][low:high]
        for m in range(M):
            words_ZYX = np.ascontiguousarray(support_MXYZ[m, :, :, over[0] : over[-1] + 1].T)
            nearest_words(words_ZYX, (nearest[0], nearest[1], over - over[0]), words_MXYZ[m])
        yield Slab(start, stop, start - low, result_MKXYZ, words_MXYZ)


# --- labels ----------------------------------------------------------------------------------------------------------


def label_map(probabilities_KXYZ: "Tensor", organs: Organs, threshold: float) -> LabelMap:
    """One label per voxel: of the organs above the threshold the most probable, 0 where there is none.

    Args:
        probabilities_KXYZ: [K, X, Y, Z].

    Returns:
        uint8 [X, Y, Z], label ids of `organs`.
    """
    import torch

    best_XYZ, channel_XYZ = probabilities_KXYZ.max(dim=0)
    ids = torch.tensor(organs.label_ids, dtype=torch.uint8, device=probabilities_KXYZ.device)
    return np.asarray(torch.where(best_XYZ > threshold, ids[channel_XYZ], ids.new_zeros(())).cpu().numpy(), np.uint8)


def clean_label_map(labels: LabelMap, organs: Organs) -> LabelMap:
    """Only the largest 26-connected component of every organ, of equal ones the first met; the rest becomes background.

    Returns a new array, in the same order of memory.
    """
    from atlas_ray.loops import box_above, count_parts, erase_parts

    cleaned = labels.T.copy() if labels.flags.f_contiguous else np.array(labels, order="C")
    inside = _inside(box_above(cleaned, 0))
    values = np.ascontiguousarray(cleaned[inside])
    parts, count = connected_components(values)
    sizes, label_ids = count_parts(parts.reshape(-1), values.reshape(-1), count)
    keep = ~np.isin(label_ids, organs.label_ids)
    for label_id in organs.label_ids:
        if len(own := np.flatnonzero(label_ids == label_id)):
            keep[own[sizes[own].argmax()]] = True
    erase_parts(values.reshape(-1), parts.reshape(-1), keep)
    cleaned[inside] = values
    return cleaned.T if labels.flags.f_contiguous else cleaned
