"""Resampling: the same extent on another number of voxels, half-voxel-centered, linear with antialiasing or nearest.

`linear_weights` and `nearest_indices` are the definition; the compiled loops use the same weights without their zeros.
"""

import numpy as np
import numpy.typing as npt

from atlas_ray.schema import IntTriple, Triple
from atlas_ray.volume import Affine, Array, Volume

Taps = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]  # first input voxel [n_out], weights from there on [n_out, T]


def linear_weights(n_in: int, n_out: int, extent: tuple[float, float] | None = None) -> npt.NDArray[np.float32]:
    """Matrix [n_out, n_in] that resamples one axis over the same extent: half-voxel-centered linear interpolation,
    with the triangle widened to the output's voxel when downsampling (antialiasing); borders repeat.

    Args:
        extent: where the input starts and ends, in voxels of the output; None for the whole of it. An output voxel whose center
            lies outside gets zeros.
    """
    start, stop = extent or (0, n_out)
    scale = n_in / (stop - start)
    centers = (np.arange(n_out) + 0.5 - start) * scale - 0.5
    width = max(1.0, scale)
    weights: Array = np.maximum(0, 1 - np.abs(np.arange(n_in)[None, :] - centers[:, None]) / width)
    weights[(centers < -0.5) | (centers > n_in - 0.5)] = 0
    return np.asarray(weights / np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny), np.float32)


def linear_taps(n_in: int, n_out: int, extent: tuple[float, float] | None = None) -> Taps:
    """The rows of `linear_weights` without their zeros, all of the same length."""
    weights = linear_weights(n_in, n_out, extent)
    used = weights > 0
    if extent is not None:  # rows without weights point at the nearest end, so that the first voxels never fall
        inside = np.flatnonzero(used.any(axis=1))
        used[: inside[0] if len(inside) else n_out, 0] = True
        used[inside[-1] + 1 if len(inside) else n_out :, -1] = True
    first = used.argmax(axis=1)
    count = int((n_in - used[:, ::-1].argmax(axis=1) - first).max())
    first = np.minimum(first, n_in - count)
    return first.astype(np.int64), np.take_along_axis(weights, first[:, None] + np.arange(count), axis=1)


def nearest_indices(n_in: int, n_out: int) -> npt.NDArray[np.intp]:
    """Index of the input voxel under the center of every output voxel, over the same extent."""
    return np.minimum(((np.arange(n_out) + 0.5) * n_in / n_out).astype(np.intp), n_in - 1)


def shape_at_spacing(shape: IntTriple, spacing: Triple, target: Triple) -> IntTriple:
    """Number of voxels that cover the same extent at about `target` mm; at least one per axis."""
    x, y, z = (max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, target, strict=True))
    return x, y, z


def resample_image(image: Volume, shape: IntTriple, *, limits: tuple[int, int] | None = None) -> Volume:
    """An image, linearly.

    Args:
        image: int16, or another type, which becomes float32.
        shape: voxels per axis of the result.
        limits: what is below or above is brought to them before it is mixed.

    Returns:
        int16 HU, rounded, for int16; else float32. [X, Y, Z], C order.
    """
    from atlas_ray.loops import resample_volume

    voxels = image.voxels if image.voxels.dtype == np.int16 else image.voxels.astype(np.float32, copy=False)
    result = np.empty(shape, voxels.dtype)
    is_whole = voxels.dtype == np.int16
    ends = np.iinfo(np.int16) if is_whole else np.finfo(np.float32)
    low, high = (voxels.dtype.type(end) for end in (limits or (ends.min, ends.max)))
    # In the order of memory, so that an image that was turned to RAS needs no copy: these weights are the same from both ends.
    order = np.argsort(np.abs(voxels.strides), kind="stable")
    flips = tuple(slice(None, None, -1) if voxels.strides[axis] < 0 else slice(None) for axis in order)
    source_ZYX = np.ascontiguousarray(voxels.transpose(order)[flips].T)
    target_XYZ = result.transpose(order)[flips]
    taps = [linear_taps(n_in, n_out) for n_in, n_out in zip(source_ZYX.shape[::-1], target_XYZ.shape, strict=True)]
    first, weights = tuple(tap[0] for tap in taps), tuple(np.ascontiguousarray(tap[1].T) for tap in taps)
    resample_volume(source_ZYX, target_XYZ, first, weights, low, high, is_whole)
    return Volume(result, _affine_at_shape(image.affine, image.shape, shape))


def resample_labels(labels: Volume, shape: IntTriple) -> Volume:
    """A label map: every voxel takes the label under its center; same type."""
    voxels: Array = labels.voxels
    for axis, n_out in enumerate(shape):
        if voxels.shape[axis] != n_out:
            voxels = voxels.take(nearest_indices(voxels.shape[axis], n_out), axis=axis)
    return Volume(np.ascontiguousarray(voxels), _affine_at_shape(labels.affine, labels.shape, shape))


def _affine_at_shape(affine: Affine, old: IntTriple, new: IntTriple) -> Affine:
    scale = np.array(old) / np.array(new)
    moved = affine.copy()
    moved[:3, :3] = affine[:3, :3] * scale
    moved[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((scale - 1) / 2)
    return moved
