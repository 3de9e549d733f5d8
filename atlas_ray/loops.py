"""Compiled loops over voxels, of `resampling` and of the way back to the image's grid; what they compute is defined there.

Taps: an axis is resampled by, for every output voxel, the first input voxel that counts and T weights from there on. Products are
added tap by tap in float32, without reordering, so that neither a box nor a slab changes a bit.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

BLOCK = 16  # slices


def compiled(function: Callable[..., Any], *, fastmath: bool | set[str] = False) -> Callable[..., Any]:
    """Compiled on first use; kept beside the source or in the user's cache, or only in memory where neither can be written.

    Args:
        fastmath: which liberties the compiler may take with floating point (numba's names); none where bits count.
    """
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath)(function)
    except RuntimeError:
        return numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)


@compiled
def resample_volume(source_ZYX: Any, result_XYZ: Any, first: Any, weights: Any, low: Any, high: Any, rounded: bool) -> None:
    """Linear resampling of a whole volume, y first, then x, then z; only a few slices are ever held in float32.

    Args:
        source_ZYX: contiguous; clipped to low..high, which are of its type, as it is read.
        result_XYZ: written to; of any strides.
        first, weights: taps of x, y and z: int64 [n_out] and float32 [T, n_out].
        rounded: whether to round to whole numbers, halves to even.
    """
    first_x, first_y, first_z = first
    weights_x, weights_y, weights_z = weights
    X, Y, Z = result_XYZ.shape
    row = np.empty(source_ZYX.shape[2], np.float32)
    mixed = np.empty(X, np.float32)
    planes = np.empty((len(weights_z), Y, X), np.float32)  # input slices on the output's x and y, as a ring
    block = np.empty((BLOCK, Y, X), np.float32)  # output slices, so that the result is written in runs along z
    done = 0
    for start in range(0, Z, BLOCK):
        stop = min(start + BLOCK, Z)
        for z in range(start, stop):
            done = max(done, first_z[z])
            while done < first_z[z] + len(weights_z):
                plane = planes[done % len(weights_z)]
                for y in range(Y):
                    _mix_lines(source_ZYX[done], first_y[y], weights_y[:, y], row, low, high)
                    line = plane[y]
                    for x in range(X):
                        line[x] = weights_x[0, x] * row[first_x[x]]
                    for t in range(1, len(weights_x)):
                        weights_t = weights_x[t]
                        for x in range(X):
                            line[x] += weights_t[x] * row[first_x[x] + t]
                done += 1
            for y in range(Y):
                mixed[:] = 0
                for t in range(len(weights_z)):
                    line, weight = planes[(first_z[z] + t) % len(weights_z), y], weights_z[t, z]
                    for x in range(X):
                        mixed[x] += weight * line[x]
                target = block[z - start, y]
                for x in range(X):
                    target[x] = np.rint(mixed[x]) if rounded else mixed[x]
        for y in range(Y):
            for x in range(X):
                for z in range(start, stop):
                    result_XYZ[x, y, z] = block[z - start, y, x]


@compiled
def _mix_lines(plane_YX: Any, first: int, weights: Any, row: Any, low: Any, high: Any) -> None:
    """row[x] = sum over t of weights[t] * plane[first + t, x]."""
    row[:] = 0
    for t in range(len(weights)):
        line, weight = plane_YX[first + t], weights[t]
        for x in range(row.size):
            row[x] += weight * np.float32(min(max(line[x], low), high))


@compiled
def box_above(bytes_ZYX: Any, limit: int) -> Any:
    """First and one past the last index per axis, int64 [2, 3], of the voxels above a limit; zeros where there is none."""
    Z, Y, X = bytes_ZYX.shape
    box = np.zeros((2, 3), np.int64)
    box[0] = bytes_ZYX.shape
    for z in range(Z):
        for y in range(Y):
            line = bytes_ZYX[z, y]
            highest = np.uint8(0)
            for x in range(X):
                highest = max(highest, line[x])
            if highest <= limit:
                continue
            first, last = 0, X - 1
            while line[first] <= limit:
                first += 1
            while line[last] <= limit:
                last -= 1
            for axis, low, high in ((0, z, z), (1, y, y), (2, first, last)):
                box[0, axis] = min(box[0, axis], low)
                box[1, axis] = max(box[1, axis], high + 1)
    if box[1, 0] == 0:
        box[:] = 0
    return box


@compiled
def interpolate_bytes(bytes_ZYX: Any, box: Any, first: Any, weights: Any, start: int, result_XYZ: Any) -> None:
    """Linear interpolation of one organ's bytes onto a slab of the image's grid, z first, then y, then x; rounded, halves up.

    Args:
        bytes_ZYX: uint8, on the networks' grid.
        box: int64 [2, 3] in that order of axes, outside of which there are only zeros.
        first, weights: taps of x, y and z: int64 [n_out] and float32 [n_out, T].
        start: the slab's first slice.
        result_XYZ: the slab, contiguous, zeros; lines that only zeros reach are left as they are.
    """
    first_x, first_y, first_z = first
    weights_x, weights_y, weights_z = weights
    taps_x, taps_z = weights_x.shape[1], weights_z.shape[1]
    X, Y, Z = result_XYZ.shape
    low_z, high_z = max(box[0, 0], first_z[start]), min(box[1, 0], first_z[start + Z - 1] + taps_z)
    if low_z >= high_z:
        return
    low_y, low_x, high_x = box[0, 1], box[0, 2], box[1, 2]
    part_XYZ = _turned_part(bytes_ZYX, box, low_z, high_z)
    lines = np.empty((part_XYZ.shape[1], Z), np.float32)  # of one x, at the result's z
    has_line = np.zeros(len(lines), np.bool_)
    planes = np.empty((taps_x, Y, Z), np.float32)  # of some x, at the result's y and z, as a ring
    has_row = np.zeros((taps_x, Y), np.bool_)
    mixed = np.empty(Z, np.float32)
    done = low_x
    for x in range(X):
        if first_x[x] + taps_x <= low_x or first_x[x] >= high_x:
            continue
        done = max(done, first_x[x])
        while done < min(first_x[x] + taps_x, high_x):
            _mix_z(part_XYZ[done - low_x], low_z, first_z, weights_z, start, lines, has_line)
            _mix_y(lines, has_line, low_y, first_y, weights_y, planes[done % taps_x], has_row[done % taps_x])
            done += 1
        for y in range(Y):
            used = False
            for t in range(max(0, low_x - first_x[x]), min(taps_x, high_x - first_x[x])):
                if not has_row[(first_x[x] + t) % taps_x, y]:
                    continue
                line, weight = planes[(first_x[x] + t) % taps_x, y], weights_x[x, t]
                if used:
                    for z in range(Z):
                        mixed[z] += weight * line[z]
                else:
                    for z in range(Z):
                        mixed[z] = weight * line[z]
                used = True
            if used:
                target = result_XYZ[x, y]
                for z in range(Z):
                    target[z] = np.uint8(mixed[z] + np.float32(0.5))


@compiled
def nearest_words(words_ZYX: Any, nearest: Any, result_XYZ: Any) -> None:
    """The word of the nearest voxel for every voxel of a slab of the image's grid.

    Args:
        words_ZYX: uint32, the slices that the slab is made of.
        nearest: for x, y and z of the slab the index in words_ZYX, int64.
        result_XYZ: the slab, contiguous, zeros; lines that only zeros reach are left as they are.
    """
    nearest_x, nearest_y, nearest_z = nearest
    slices, rows, columns = words_ZYX.shape
    part_XYZ = np.zeros((columns, rows, slices), np.uint32)
    has_any = np.zeros((columns, rows), np.bool_)
    for z in range(slices):
        for y in range(rows):
            line = words_ZYX[z, y]
            for x in range(columns):
                if line[x]:
                    part_XYZ[x, y, z] = line[x]
                    has_any[x, y] = True
    X, Y, Z = result_XYZ.shape
    for x in range(X):
        for y in range(Y):
            if has_any[nearest_x[x], nearest_y[y]]:
                source, target = part_XYZ[nearest_x[x], nearest_y[y]], result_XYZ[x, y]
                for z in range(Z):
                    target[z] = source[nearest_z[z]]


@compiled
def _turned_part(bytes_ZYX: Any, box: Any, low_z: int, high_z: int) -> Any:
    """The box's slices low_z..high_z, uint8 [X, Y, Z] with z fastest; only what is not zero is moved."""
    low_y, high_y, low_x, high_x = box[0, 1], box[1, 1], box[0, 2], box[1, 2]
    part = np.zeros((high_x - low_x, high_y - low_y, high_z - low_z), np.uint8)
    for y in range(high_y - low_y):
        for z in range(high_z - low_z):
            line = bytes_ZYX[low_z + z, low_y + y]
            for x in range(high_x - low_x):
                if line[low_x + x]:
                    part[x, y, z] = line[low_x + x]
    return part


@compiled
def _mix_z(part_YZ: Any, low_z: int, first_z: Any, weights_z: Any, start: int, lines: Any, has_line: Any) -> None:
    """One x of the networks' grid at the slab's slices; only lines that hold something."""
    count, Z = lines.shape
    for j in range(count):
        source = part_YZ[j]
        highest = np.uint8(0)
        for z in range(source.size):
            highest = max(highest, source[z])
        has_line[j] = highest > 0
        if has_line[j]:
            line = lines[j]
            for z in range(Z):
                total = np.float32(0)
                for t in range(weights_z.shape[1]):
                    i = first_z[start + z] + t - low_z
                    if 0 <= i < source.size:
                        total += weights_z[start + z, t] * np.float32(source[i])
                line[z] = total


@compiled
def _mix_y(lines: Any, has_line: Any, low_y: int, first_y: Any, weights_y: Any, plane_YZ: Any, has_row: Any) -> None:
    Y, Z = plane_YZ.shape
    for y in range(Y):
        used = False
        row = plane_YZ[y]
        for t in range(weights_y.shape[1]):
            j = first_y[y] + t - low_y
            if j < 0 or j >= len(lines) or not has_line[j]:
                continue
            line, weight = lines[j], weights_y[y, t]
            if used:
                for z in range(Z):
                    row[z] += weight * line[z]
            else:
                for z in range(Z):
                    row[z] = weight * line[z]
            used = True
        has_row[y] = used


@compiled
def mark_dilated(parts_ZYX: Any, part: int, corner: Any, bit: int, words_ZYX: Any) -> None:
    """Set a bit in the 3x3x3 cube around every voxel of a component, run by run along x.

    Args:
        parts_ZYX: component numbers in a box.
        part: which component.
        corner: int64 [3], the box's first voxel.
        words_ZYX: uint32, of the whole grid; written to.
    """
    Z, Y, X = words_ZYX.shape
    flag = np.uint32(1) << np.uint32(bit)
    for z in range(parts_ZYX.shape[0]):
        for y in range(parts_ZYX.shape[1]):
            line = parts_ZYX[z, y]
            x = 0
            while x < line.size:
                if line[x] != part:
                    x += 1
                    continue
                begin = x
                while x < line.size and line[x] == part:
                    x += 1
                for i in range(max(0, corner[0] + z - 1), min(Z, corner[0] + z + 2)):
                    for j in range(max(0, corner[1] + y - 1), min(Y, corner[1] + y + 2)):
                        words_ZYX[i, j, max(0, corner[2] + begin - 1) : min(X, corner[2] + x + 1)] |= flag


@compiled
def count_parts(parts: Any, values: Any, count: int) -> Any:
    """Voxels of every component, and the value each stands on: int64 [count + 1] each. Flat arrays of the same voxels."""
    sizes, of = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    for i in range(parts.size):
        sizes[parts[i]] += 1
        of[parts[i]] = values[i]
    return sizes, of


@compiled
def erase_parts(values: Any, parts: Any, keep: Any) -> None:
    """Set to 0 what stands on a component that is not kept; flat arrays."""
    for i in range(parts.size):
        if not keep[parts[i]]:
            values[i] = 0
