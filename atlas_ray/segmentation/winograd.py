"""3x3x3 convolutions with an eighth of the multiplications: Winograd's F(4x4x4, 3x3x3) for float32 on CPUs.

A tile of 6x6x6 inputs gives 4x4x4 outputs by 216 products instead of 1,728: along every axis y = A'[(G w) * (B' x)] (Lavin and
Gray 2016, arXiv 1509.09308). The products of all tiles are one batched matrix multiplication, where a CPU is at its best. The
interpolation points 0, +-1/sqrt(2), +-sqrt(2), infinity keep the relative error near 1e-6, a few times a direct convolution's; the
usual points 0, +-1, +-2 lose a digit more. bfloat16 has no digits to lose, so this is float32 only.

What is next to the convolution and bound by memory is folded in: reading a tile normalizes and activates the previous layer's raw
output, and writing one sums up the moments that the next instance norm needs.

Arrays are channels-last, float32: voxels_NC has one row per voxel in C order of X Y Z. The kernels release the interpreter, so
threads share the tiles of a block.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atlas_ray.loops import compiled
from atlas_ray.schema import IntTriple
from atlas_ray.segmentation.memory import empty

Floats = npt.NDArray[np.float32]

EDGE = 4  # outputs of a tile per axis
READ = EDGE + 2  # inputs of a tile per axis
FREQUENCIES = READ**3
BLOCK_BYTES = 8 << 20  # transformed tiles in flight: small enough for the last cache, large enough for fast products
MIN_BLOCK = 96  # tiles; below, the products are too thin

# Squares, and odd powers of the points; float32, lest the kernels compute in double.
_NEAR, _FAR = np.float32(2**-0.5), np.float32(2**0.5)
_NEAR2, _FAR2, _SUM2 = np.float32(0.5), np.float32(2), np.float32(2.5)
_NEAR3, _FAR3 = np.float32(2**-1.5), np.float32(2**1.5)

FASTMATH = {"contract", "nsz", "reassoc"}
_compiled: Callable[..., Any] = partial(compiled, fastmath=FASTMATH)
_inlined: Callable[..., Any] = numba.njit(inline="always", fastmath=FASTMATH, error_model="numpy")


@dataclass(frozen=True)
class Source:
    """What a convolution reads: voxels_NC, of which leaky ReLU(x * scale + shift) with `slope` is still to be taken."""

    voxels_NC: Floats
    scale_C: Floats
    shift_C: Floats
    slope: float


def transform_weight(weight: npt.NDArray[np.floating[Any]]) -> Floats:
    """[O, C, 3, 3, 3] -> the products' right side [216, C, O]. Eight times the size of the weight."""
    points = [0, float(_NEAR), -float(_NEAR), float(_FAR), -float(_FAR)]
    rows = [np.array([1, p, p * p]) / np.prod([p - q for q in points if q != p]) for p in points]
    G = np.array([*rows, [0, 0, 1]])
    product = np.einsum("ai,bj,ck,oqijk->abcqo", G, G, G, weight.astype(np.float64), optimize=True)
    return np.ascontiguousarray(product.reshape(FREQUENCIES, weight.shape[1], weight.shape[0]), dtype=np.float32)


def convolve(
    sources: Sequence[Source], shape: IntTriple, weight: Tensor, bias_O: Floats, out_NO: Floats, *, threads: int
) -> npt.NDArray[np.float64]:
    """Convolve one volume with zero padding of one voxel; the channels of several sources count as concatenated.

    Args:
        weight: [216, C, O] as `transform_weight` gives it.
        out_NO: overwritten with the result.

    Returns:
        [2, O]: sum and sum of squares of the result over all voxels.
    """
    channels, channels_out = weight.shape[1:]
    tiles = int(np.prod([-(-edge // EDGE) for edge in shape]))
    block = max(MIN_BLOCK, BLOCK_BYTES // (4 * FREQUENCIES * (channels + channels_out)))
    block = -(-tiles // -(-tiles // block))  # blocks of one size
    left, right = empty(FREQUENCIES * block * channels), empty(FREQUENCIES * block * channels_out)
    moments = np.zeros((threads, 2, channels_out))
    for first in range(0, tiles, block):
        count = min(block, tiles - first)
        V = left[: FREQUENCIES * count * channels].view(FREQUENCIES, count, channels)
        M = right[: FREQUENCIES * count * channels_out].view(FREQUENCIES, count, channels_out)
        read = partial(_read_sources, sources, shape, first, V.view(-1, channels).numpy())
        write = partial(_write_tiles, M.view(-1, channels_out).numpy(), bias_O, shape, first, out_NO, moments)
        share(read, count, threads)
        torch.bmm(V, weight, out=M)
        share(write, count, threads)
    return np.asarray(moments.sum(axis=0))


def share(work: Callable[[int, int, int], None], count: int, threads: int) -> None:
    """Call work(thread, start, stop) so that every index below `count` is covered once."""
    if threads == 1:
        return work(0, 0, count)
    bounds = np.linspace(0, count, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads), bounds[:-1], bounds[1:]))
    return None


def _read_sources(
    sources: Sequence[Source], shape: IntTriple, first: int, rows: Floats, _thread: int, start: int, stop: int
) -> None:
    column = 0
    for source in sources:
        slope = np.float32(source.slope)
        _read_tiles(source.voxels_NC, source.scale_C, source.shift_C, slope, shape, first, rows, column, start, stop)
        column += source.voxels_NC.shape[1]


@_inlined
def _forward(source: Floats, row: int, step: int, out: Floats, out_row: int, out_step: int, column: int) -> None:
    """B' along one axis: six rows of the source, `step` apart, to six rows of the output, whose channels start at `column`."""
    for c in range(source.shape[1]):
        x0, x1, x2 = source[row, c], source[row + step, c], source[row + 2 * step, c]
        x3, x4, x5 = source[row + 3 * step, c], source[row + 4 * step, c], source[row + 5 * step, c]
        to = column + c
        out[out_row, to] = x0 - _SUM2 * x2 + x4
        even, odd = x4 - _FAR2 * x2, _NEAR * x3 - _FAR * x1
        out[out_row + out_step, to] = even + odd
        out[out_row + 2 * out_step, to] = even - odd
        even, odd = x4 - _NEAR2 * x2, _FAR * x3 - _NEAR * x1
        out[out_row + 3 * out_step, to] = even + odd
        out[out_row + 4 * out_step, to] = even - odd
        out[out_row + 5 * out_step, to] = x1 - _SUM2 * x3 + x5


@_inlined
def _backward(source: Floats, row: int, step: int, out: Floats, out_row: int, out_step: int) -> None:
    """A' along one axis: six rows of the source to four rows of the output."""
    for c in range(source.shape[1]):
        m0, m1, m2 = source[row, c], source[row + step, c], source[row + 2 * step, c]
        m3, m4, m5 = source[row + 3 * step, c], source[row + 4 * step, c], source[row + 5 * step, c]
        near, far = m1 + m2, m3 + m4
        near_odd, far_odd = m1 - m2, m3 - m4
        out[out_row, c] = m0 + near + far
        out[out_row + out_step, c] = _NEAR * near_odd + _FAR * far_odd
        out[out_row + 2 * out_step, c] = _NEAR2 * near + _FAR2 * far
        out[out_row + 3 * out_step, c] = _NEAR3 * near_odd + _FAR3 * far_odd + m5


@_compiled
def _read_tiles(
    voxels: Floats, scale: Floats, shift: Floats, slope: np.float32, shape: IntTriple, first: int, rows: Floats, column: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Tiles first + start .. first + stop, transformed, into rows [216 * tiles of the block, channels of all sources]."""
    X, Y, Z = shape
    channels = voxels.shape[1]
    tiles_y, tiles_z = -(-Y // EDGE), -(-Z // EDGE)
    block = rows.shape[0] // FREQUENCIES
    line = np.empty((READ, channels), np.float32)
    ping, pong = np.empty((FREQUENCIES, channels), np.float32), np.empty((FREQUENCIES, channels), np.float32)
    for tile in range(start, stop):
        index = first + tile
        x0, y0, z0 = index // (tiles_z * tiles_y) * EDGE - 1, index // tiles_z % tiles_y * EDGE - 1, index % tiles_z * EDGE - 1
        for i in range(READ):
            for j in range(READ):
                inside = 0 <= x0 + i < X and 0 <= y0 + j < Y
                for k in range(READ):
                    if inside and 0 <= z0 + k < Z:
                        voxel = ((x0 + i) * Y + y0 + j) * Z + z0 + k
                        for c in range(channels):
                            value = voxels[voxel, c] * scale[c] + shift[c]
                            line[k, c] = value if value > 0 else value * slope
                    else:
                        for c in range(channels):
                            line[k, c] = 0
                _forward(line, 0, 1, ping, (i * READ + j) * READ, 1, 0)
        for i in range(READ):
            for k in range(READ):
                _forward(ping, i * READ * READ + k, READ, pong, i * READ * READ + k, READ, 0)
        for jk in range(READ * READ):
            _forward(pong, jk, READ * READ, rows, jk * block + tile, READ * READ * block, column)


@_compiled
def _write_tiles(
    rows: Floats, bias: Floats, shape: IntTriple, first: int, out: Floats, moments: npt.NDArray[np.float64], thread: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Rows of products back to voxels, bias added; their sums and squares are added to moments[thread]."""
    X, Y, Z = shape
    channels = out.shape[1]
    tiles_y, tiles_z = -(-Y // EDGE), -(-Z // EDGE)
    block = rows.shape[0] // FREQUENCIES
    cube = np.empty((EDGE * READ * READ, channels), np.float32)
    plane = np.empty((EDGE * EDGE * READ, channels), np.float32)
    line = np.empty((EDGE, channels), np.float32)
    total, squares = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for tile in range(start, stop):
        index = first + tile
        x0, y0, z0 = index // (tiles_z * tiles_y) * EDGE, index // tiles_z % tiles_y * EDGE, index % tiles_z * EDGE
        total[:] = 0
        squares[:] = 0
        for jk in range(READ * READ):
            _backward(rows, jk * block + tile, READ * READ * block, cube, jk, READ * READ)
        for i in range(EDGE):
            for k in range(READ):
                _backward(cube, i * READ * READ + k, READ, plane, i * EDGE * READ + k, READ)
        for i in range(min(EDGE, X - x0)):
            for j in range(min(EDGE, Y - y0)):
                _backward(plane, (i * EDGE + j) * READ, 1, line, 0, 1)
                for k in range(min(EDGE, Z - z0)):
                    voxel = ((x0 + i) * Y + y0 + j) * Z + z0 + k
                    for c in range(channels):
                        value = line[k, c] + bias[c]
                        out[voxel, c] = value
                        total[c] += value
                        squares[c] += value * value
        for c in range(channels):
            moments[thread, 0, c] += total[c]
            moments[thread, 1, c] += squares[c]
