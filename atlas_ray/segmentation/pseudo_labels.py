"""From the ensemble's probabilities at the networks' spacing to label maps on the image's own grid.

The order is the authors' (paper-algorithm a.2, a.3, a.5): threshold and clean each architecture's mask at the networks' spacing,
note where its soft prediction counts (the mask dilated by one voxel), bring everything to the CT's grid, average there.

Probabilities travel by linear interpolation, organ by organ; the authors use nearest, which costs about two points of Dice at the
organs' borders. Not covered: their lung split and vessel rules, which concern organs outside the nine.

Axis letters: M architectures, K organs, X Y Z.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atlas_ray.organs import LabelMap, Organs
from atlas_ray.schema import IntTriple, Schema
from atlas_ray.volume import linear_weights, nearest_indices


class PseudoLabels(Schema):
    """How predictions become labels.

    Args:
        threshold: an organ is present where the mean probability is above it.
        largest_component: keep only the largest 26-connected component of every organ.
    """

    threshold: float = 0.5
    largest_component: bool = True


def keep_largest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The largest 26-connected component of a mask [X, Y, Z]; of equal ones the first met; an empty mask stays empty."""
    import cc3d

    labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    if count < 2:
        return mask
    sizes = cc3d.statistics(labels)["voxel_counts"]
    return np.asarray(labels == 1 + int(np.argmax(sizes[1:])), bool)


def support(probabilities_MKXYZ: Tensor, settings: PseudoLabels) -> Tensor:
    """Where each architecture's soft prediction counts: its cleaned hard mask, dilated once by the full 3x3x3 cube (a.3).

    Returns:
        bool [M, K, X, Y, Z].
    """
    hard_MKXYZ = probabilities_MKXYZ > settings.threshold
    if settings.largest_component:
        for m, k in np.ndindex(*hard_MKXYZ.shape[:2]):
            hard_MKXYZ[m, k] = torch.from_numpy(keep_largest(hard_MKXYZ[m, k].cpu().numpy())).to(hard_MKXYZ.device)
    return _dilate_once(hard_MKXYZ)


def _dilate_once(masks: Tensor) -> Tensor:
    """3x3x3 dilation as three one-dimensional ones: shifts of a bool tensor, no pooling."""
    for axis in (-3, -2, -1):
        grown = masks.clone()
        n = masks.shape[axis]
        grown.narrow(axis, 1, n - 1).logical_or_(masks.narrow(axis, 0, n - 1))
        grown.narrow(axis, 0, n - 1).logical_or_(masks.narrow(axis, 1, n - 1))
        masks = grown
    return masks


@dataclass(frozen=True, slots=True)
class Slab:
    """Probabilities on a stretch of the image's grid, with context on both sides along the last axis.

    Args:
        start, stop: first and one-past-last slice it stands for.
        context: slices of context before `start` that are included (fewer at the border).
        probabilities_MKXYZ: float32, context included.
        support_MKXYZ: bool, the same shape.
    """

    start: int
    stop: int
    context: int
    probabilities_MKXYZ: Tensor
    support_MKXYZ: Tensor

    def inner(self, array: Tensor) -> Tensor:
        """The slices the slab stands for, of an array over the slab."""
        return array[..., self.context : self.context + self.stop - self.start]


def native_slabs(
    probabilities_MKXYZ: Tensor, support_MKXYZ: Tensor, shape: IntTriple, *, halo: int, memory_mb: float = 300
) -> Iterator[Slab]:
    """Probabilities on the image's own grid (in RAS), a few slices at a time, so that memory does not grow with the volume.

    Args:
        probabilities_MKXYZ: at the networks' spacing, covering the same extent.
        support_MKXYZ: where they count, same shape.
        shape: of the image in RAS.
        halo: slices of context on both sides of each slab.
        memory_mb: about how much one slab's float32 probabilities may take.
    """
    M, K, nx, ny, nz = probabilities_MKXYZ.shape
    device = probabilities_MKXYZ.device
    weights = [torch.from_numpy(linear_weights(n, out)).to(device) for n, out in zip((nx, ny, nz), shape, strict=True)]
    nearest = [torch.from_numpy(nearest_indices(n, out)).to(device) for n, out in zip((nx, ny, nz), shape, strict=True)]
    slice_mb = 4 * M * K * shape[0] * shape[1] / 2**20
    step = max(1, 2 * halo, int(memory_mb / slice_mb) - 2 * halo)  # at most twice the work is context
    for start in range(0, shape[2], step):
        stop = min(start + step, shape[2])
        low, high = max(0, start - halo), min(shape[2], stop + halo)
        yield Slab(
            start=start,
            stop=stop,
            context=start - low,
            probabilities_MKXYZ=_resample_slices(probabilities_MKXYZ, weights, slice(low, high)),
            support_MKXYZ=support_MKXYZ[..., nearest[2][low:high]][..., nearest[1], :][..., nearest[0], :, :],
        )


def _resample_slices(probabilities_MKXYZ: Tensor, weights: list[Tensor], slices: slice) -> Tensor:
    """Linear resampling by three matrix products, the last axis only for `slices`; organ by organ to keep temporaries small."""
    w_x, w_y, w_z = weights[0], weights[1], weights[2][slices]
    touched = torch.nonzero(w_z.abs().sum(0))[:, 0]
    first, last = int(touched[0]), int(touched[-1]) + 1
    M, K = probabilities_MKXYZ.shape[:2]
    result = torch.empty((M, K, len(w_x), len(w_y), len(w_z)), dtype=torch.float32, device=probabilities_MKXYZ.device)
    for m, k in np.ndindex(M, K):
        coarse = probabilities_MKXYZ[m, k, :, :, first:last].float()
        if not bool((coarse > 0).any()):
            result[m, k] = 0
            continue
        in_z = coarse @ w_z[:, first:last].T
        result[m, k] = torch.einsum("ax,xyz,by->abz", w_x, in_z, w_y)
    return result


def label_map(probabilities_KXYZ: Tensor, organs: Organs, threshold: float) -> LabelMap:
    """One label per voxel: of the organs above the threshold the most probable, 0 where there is none.

    Args:
        probabilities_KXYZ: [K, X, Y, Z].

    Returns:
        uint8 [X, Y, Z], label ids of `organs`.
    """
    best_XYZ, channel_XYZ = probabilities_KXYZ.max(dim=0)
    ids = torch.tensor(organs.label_ids, dtype=torch.uint8, device=probabilities_KXYZ.device)
    return np.asarray(torch.where(best_XYZ > threshold, ids[channel_XYZ], ids.new_zeros(())).cpu().numpy(), np.uint8)


def clean_label_map(labels: LabelMap, organs: Organs) -> LabelMap:
    """Only the largest component of every organ; the rest becomes background. Returns a new array."""
    cleaned = labels.copy()
    for name in organs.names:
        mask = organs.mask(labels, name)
        if mask.any():
            cleaned[mask & ~keep_largest(mask)] = 0
    return cleaned
