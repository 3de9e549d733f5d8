# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

"""The attention kernel for CPUs: one pass over the bytes, then everything on bits.

64 voxels of a z row are one tile, and one uint64 where only yes or no matters:

    survey   reads every byte once. What is zero in all architectures costs its reading and nothing else. Elsewhere a few vector
             operations on bytes (range, sum, band) settle nearly every voxel: for sure, or surely not. The few between are
             computed as numpy would, in float64, so that the result is numpy's to the last bit.
    open     erodes and dilates in the box of what fired, by shifts and ANDs of words: 64 voxels an operation.
    emit     walks the bits that are left and computes heat there, and only there.

Compiled by numba on first use, kept on disk where there is a place for it. Threads are Python's own, over planes of x and then
over organs: the compiled code holds no lock, and calls from several threads do not disturb each other.

Axes: M architectures, K organs, X Y Z voxels, W words of 64 voxels along Z, C criteria.
"""

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic as numba_intrinsic

from atlas_ray.attention.rules import BYTE, Kind, Limits, Rule, byte_above, byte_entropies, limits, mean_entropies
from atlas_ray.attention.sparse import GridAttention, OrganAttention
from atlas_ray.loops import compiled
from atlas_ray.organs import Organs
from atlas_ray.schema import IntTriple

TILE = 64  # voxels of a word
CHUNK = 1024  # voxels whose heat is computed together
PLANES = 4  # planes of x that a thread takes at a time
KEPT_BYTES = 2**28  # words that a thread keeps between calls
ZERO_TEST = 4096  # bytes per architecture that are tested for "all zero" together

# What a criterion is to the kernel.
INCONSISTENCY, UNCERTAINTY, OVERLAP, PREDICTIVE_ENTROPY, DISAGREEMENT = (int(kind) for kind in Kind)

# Positions in what `_survey` returns.
CLAIMED, CLAIM_UNSURE, LABELED, LABEL_UNSURE, SPREAD, SPREAD_UNSURE, CONTRARY, CONTRARY_UNSURE, SCORED, SCORE_UNSURE, UNDECIDED = (
    range(11)
)


NOTHING, ONE, EVERY = np.uint64(0), np.uint64(1), np.uint64(2**64 - 1)
PROBABILITIES, ENTROPIES, SCORES = range(3)  # rows of `Plan.tables`


class Grid(NamedTuple):
    """What is looked at.

    Args:
        values: bytes [M, K, X, Y, Z], flat.
        support: bit k of [M, X, Y, Z], flat, says whether organ k counts there; empty where everything counts.
        M, K, X, Y, Z: lengths.
        start, stop: the slices along Z that results are wanted for; the others are context.
    """

    values: npt.NDArray[np.uint8]
    support: npt.NDArray[np.uint32]
    M: int
    K: int
    X: int
    Y: int
    Z: int
    start: int
    stop: int


class Plan(NamedTuple):
    """A mode's criteria and an organ set, for one ensemble.

    Args:
        kinds_C, thresholds_C, maxima_C: of the criteria.
        summed: heat is the sum of what fired, else the largest share of a maximum.
        masked_spread: inconsistency looks only at what counts.
        limits: bounds that settle most voxels.
        tables: [3, 256] by byte: probability, binary entropy, the uncertainty criterion's table.
        mean_entropies: [255 M + 1] by the sum of bytes.
        label_threshold, own_above: mean probability, and byte, that a label exceeds.
        skipped_K: organs that are not looked at.
        label_ids_K, channel_of: from channel to label id and back.
        partners_KK: whether k must not share a voxel with the other.
    """

    kinds_C: npt.NDArray[np.int64]
    thresholds_C: npt.NDArray[np.float64]
    maxima_C: npt.NDArray[np.float64]
    summed: bool
    masked_spread: bool
    limits: Limits
    tables: npt.NDArray[np.float64]
    mean_entropies: npt.NDArray[np.float64]
    label_threshold: float
    own_above: int
    skipped_K: npt.NDArray[np.bool_]
    label_ids_K: npt.NDArray[np.uint8]
    channel_of: npt.NDArray[np.int64]
    partners_KK: npt.NDArray[np.bool_]


intrinsic: Any = numba_intrinsic  # what it makes is called without the typing context, which its annotation does not say


# --- vector operations that Python has no words for ----------------------------------------------------------------------------

_I1, _I8, _I16, _I64 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(64)
_BYTES, _SHORTS, _FLAGS = ir.VectorType(_I8, TILE), ir.VectorType(_I16, TILE), ir.VectorType(_I1, TILE)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, *, element: ir.Type) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), element.as_pointer())


def _splat(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    if value.type != vector.element:
        value = builder.trunc(value, vector.element)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), TILE), [0] * TILE))


def _word(builder: Any, flags: Any) -> Any:
    """Flags as one word. Without the empty instruction, through which the compiler cannot look, it would carry the 64 flags from
    block to block one by one."""
    return builder.asm(ir.FunctionType(_I64, [_I64]), "", "=r,0", [builder.bitcast(flags, _I64)], False)


@intrinsic
def _load_word(typing_context: Any, array: Any, index: Any) -> Any:
    """Eight bytes from anywhere in a byte array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], *arguments, element=_I64), align=1)

    return types.uint64(array, types.int64), generate


@intrinsic
def _trailing_zeros(typing_context: Any, word: Any) -> Any:
    """Position of the lowest bit that is set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(_I1, 1))

    return types.int64(types.uint64), generate


@intrinsic
def _count(typing_context: Any, word: Any) -> Any:
    """How many bits are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@intrinsic
def _bytes_above(typing_context: Any, array: Any, index: Any, limit: Any) -> Any:
    """Which of 64 bytes exceed the limit."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, limit = arguments
        loaded = builder.load(_pointer(context, builder, signature.args[0], array, index, element=_BYTES), align=1)
        return _word(builder, builder.icmp_unsigned(">", loaded, _splat(builder, limit, _BYTES)))

    return types.uint64(array, types.int64, types.uint16), generate


@intrinsic
def _paint(typing_context: Any, array: Any, index: Any, word: Any, value: Any) -> Any:
    """Write the value into those of 64 bytes whose bit is set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, word, value = arguments
        pointer = _pointer(context, builder, signature.args[0], array, index, element=_BYTES)
        painted = builder.select(builder.bitcast(word, _FLAGS), _splat(builder, value, _BYTES), builder.load(pointer, align=1))
        builder.store(painted, pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64, types.uint8), generate


@intrinsic
def _survey(typing_context: Any, array: Any, index: Any, stride: Any, count: Any, limits: Any) -> Any:
    """What 64 voxels of one organ say in `count` architectures, `stride` bytes apart: one word per question.

    Vectors of 64 bytes are portable; the compiler splits them into what the processor has.
    """
    result = types.UniTuple(types.uint64, 11)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, stride, count, limits = arguments
        bound = Limits(*cgutils.unpack_tuple(builder, limits))
        start = {"high": 0, "low": 255, "some": 255, "one": 255, "all": 0}
        kept = {name: cgutils.alloca_once(builder, _BYTES) for name in start}
        total = cgutils.alloca_once(builder, _SHORTS)

        def keep(relation: str, name: str, values: Any) -> None:
            so_far = builder.load(kept[name])
            builder.store(builder.select(builder.icmp_unsigned(relation, values, so_far), values, so_far), kept[name])

        def past(values: Any, first: Any, vector: ir.VectorType) -> Any:
            return builder.sub(values, _splat(builder, first, vector))

        def below(values: Any, count: Any, vector: ir.VectorType) -> Any:
            return _word(builder, builder.icmp_unsigned("<", values, _splat(builder, count, vector)))

        for name, value in start.items():
            builder.store(ir.Constant(_BYTES, [value] * TILE), kept[name])
        builder.store(ir.Constant(_SHORTS, [0] * TILE), total)
        with cgutils.for_range(builder, count) as loop:
            place = builder.add(index, builder.mul(loop.index, stride))
            seen = builder.load(_pointer(context, builder, signature.args[0], array, place, element=_BYTES), align=1)
            keep(">", "high", seen)
            keep("<", "low", seen)
            keep("<", "some", past(seen, bound.some_from, _BYTES))
            keep("<", "one", past(seen, bound.one_from, _BYTES))
            keep(">", "all", past(seen, bound.all_from, _BYTES))
            builder.store(builder.add(builder.load(total), builder.zext(seen, _SHORTS)), total)
        sums = builder.load(total)
        spread = builder.sub(builder.load(kept["high"]), builder.load(kept["low"]))

        def sum_is(relation: str, limit: Any) -> Any:
            return _word(builder, builder.icmp_unsigned(relation, sums, _splat(builder, limit, _SHORTS)))

        def spread_above(limit: Any) -> Any:
            return _word(builder, builder.icmp_unsigned(">", spread, _splat(builder, limit, _BYTES)))

        spread_sure, contrary_sure = spread_above(bound.spread_sure_above), spread_above(bound.contrary_sure_above)
        some, one, every = (
            below(builder.load(kept[name]), getattr(bound, f"{name}_count"), _BYTES) for name in ("some", "one", "all")
        )
        scored = builder.or_(one, every)
        words = [
            sum_is(">", bound.claim_above),
            sum_is("==", bound.claim_tie),
            sum_is(">", bound.label_above),
            sum_is("==", bound.label_tie),
            spread_sure,
            builder.and_(spread_above(bound.spread_maybe_above), builder.not_(spread_sure)),
            contrary_sure,
            builder.and_(spread_above(bound.contrary_maybe_above), builder.not_(contrary_sure)),
            scored,
            builder.and_(some, builder.not_(scored)),
            below(past(sums, bound.mean_from, _SHORTS), bound.mean_count, _SHORTS),
        ]
        return context.make_tuple(builder, signature.return_type, words)

    return result(array, types.int64, types.int64, types.int64, limits), generate


# --- the voxels between the bounds, as numpy computes them ---------------------------------------------------------------------


@compiled
def _byte(m, k, place, grid, counted):
    """An architecture's byte for organ k; 0 where `counted` and it does not count. place: the voxel's flat position."""
    N = grid.X * grid.Y * grid.Z
    if counted and len(grid.support) and not grid.support[m * N + place] >> np.uint32(k) & np.uint32(1):
        return 0
    return int(grid.values[(m * grid.K + k) * N + place])


@compiled
def _settled_means(unsure, k, place, grid, counted, table, threshold):
    """Voxels of a tile where numpy.mean of table[bytes] over architectures exceeds the threshold."""
    fired = NOTHING
    while unsure != NOTHING:
        z = _trailing_zeros(unsure)
        unsure &= unsure - ONE
        total = 0.0
        for m in range(grid.M):
            total += table[_byte(m, k, place + z, grid, counted)]
        fired |= np.uint64(total / grid.M > threshold) << np.uint64(z)
    return fired


@compiled
def _settled_deviations(unsure, k, place, grid, counted, threshold):
    """The same of numpy.std of bytes / 255."""
    fired = NOTHING
    while unsure != NOTHING:
        z = _trailing_zeros(unsure)
        unsure &= unsure - ONE
        mean = variance = 0.0
        for m in range(grid.M):
            mean += _byte(m, k, place + z, grid, counted) / 255.0
        mean /= grid.M
        for m in range(grid.M):
            off = _byte(m, k, place + z, grid, counted) / 255.0 - mean
            variance += off * off
        fired |= np.uint64(np.sqrt(variance / grid.M) > threshold) << np.uint64(z)
    return fired


@compiled
def _settled_disagreements(unsure, k, place, grid, plan, threshold):
    """The same of the entropy of the mean less the mean of the entropies."""
    fired = NOTHING
    while unsure != NOTHING:
        z = _trailing_zeros(unsure)
        unsure &= unsure - ONE
        total, parts = 0, 0.0
        for m in range(grid.M):
            value = _byte(m, k, place + z, grid, False)
            total += value
            parts += plan.tables[ENTROPIES, value]
        fired |= np.uint64(plan.mean_entropies[total] - parts / grid.M > threshold) << np.uint64(z)
    return fired


# --- survey ----------------------------------------------------------------------------------------------------------------


@compiled
def _all_zero(values, start, length):
    words = length // 8
    seen = NOTHING
    for i in range(words):
        seen |= _load_word(values, start + 8 * i)
    for i in range(8 * words, length):
        seen |= np.uint64(values[start + i])
    return seen == NOTHING


@compiled
def _inner_words(grid, count):
    """Per word of a z row the voxels that results are wanted for."""
    words = np.zeros(count, np.uint64)
    for z in range(grid.start, grid.stop):
        words[z // TILE] |= ONE << np.uint64(z % TILE)
    return words


@compiled
def survey_planes(first, last, grid, plan, fired_CKXYW, edges_CKX2, label_XYZ, own_MXYZ, voxels_K):
    """Look at every byte of the planes first..last of x.

    Writes:
        fired_CKXYW: a bit a voxel where a criterion fires, before opening; of OVERLAP where the organ claims the voxel.
        edges_CKX2: per plane the first and one-past-last y with a bit; 0, 0 where there is none.
        label_XYZ, own_MXYZ: label ids of the ensemble and of each architecture in the inner slices; own_MXYZ may have length 0.
        voxels_K: added to, voxels of each label in label_XYZ.
    """
    values, M, K, Y, Z = grid.values, grid.M, grid.K, grid.Y, grid.Z
    N, W = grid.X * Y * Z, fired_CKXYW.shape[4]
    rows, labelers = max(1, ZERO_TEST // Z), 1 + len(own_MXYZ)
    inner_W = _inner_words(grid, W)
    plane_LYZ = np.zeros((labelers, Y * W * TILE), np.uint8)  # rows of whole tiles, so that a tile can be painted at once
    taken_LYW = np.zeros((labelers, Y, W), np.uint64)
    counted = np.zeros(M * TILE, np.uint8)
    for x in range(first, last):
        plane_LYZ[:] = 0
        taken_LYW[:] = 0
        for k in range(K):
            for y_0 in range(0, Y, rows):
                y_1 = min(y_0 + rows, Y)
                zero = True
                for m in range(M):
                    zero = zero and _all_zero(values, (m * K + k) * N + (x * Y + y_0) * Z, (y_1 - y_0) * Z)
                if zero:
                    continue
                for y in range(y_0, y_1):
                    for w in range(W):
                        zero = True
                        for m in range(M):
                            start = (m * K + k) * N + (x * Y + y) * Z + w * TILE
                            zero = zero and _all_zero(values, start, min(TILE, Z - w * TILE))
                        if not zero:
                            _survey_tile(
                                x, y, w, k, grid, plan, inner_W[w], fired_CKXYW, edges_CKX2, plane_LYZ, taken_LYW, voxels_K, counted
                            )
        for y in range(Y):
            row = slice(y * W * TILE + grid.start, y * W * TILE + grid.stop)
            label_XYZ[x, y] = plane_LYZ[0, row]
            for m in range(len(own_MXYZ)):
                own_MXYZ[m, x, y] = plane_LYZ[1 + m, row]


@compiled
def _survey_tile(x, y, w, k, grid, plan, inner, fired_CKXYW, edges_CKX2, plane_LYZ, taken_LYW, voxels_K, counted):
    """One organ in 64 voxels."""
    values, M, N = grid.values, grid.M, grid.X * grid.Y * grid.Z
    stride = grid.K * N
    place = (x * grid.Y + y) * grid.Z + w * TILE
    length = min(TILE, grid.Z - w * TILE)
    valid = EVERY >> np.uint64(TILE - length)
    # A tile at the very end is read from a little before, so that nothing beyond the end is; its words are shifted back.
    before = max(0, k * N + place + (M - 1) * stride + TILE - len(values))
    back = np.uint64(before)
    seen = _survey(values, k * N + place - before, stride, M, plan.limits)
    kept, kept_back, masked = seen, back, len(grid.support) > 0
    if masked:
        for m in range(M):
            for z in range(length):
                keep = grid.support[m * N + place + z] >> np.uint32(k) & np.uint32(1)
                counted[m * TILE + z] = values[(m * grid.K + k) * N + place + z] * np.uint8(keep)
        kept, kept_back = _survey(counted, 0, TILE, M, plan.limits), NOTHING

    for c in range(len(plan.kinds_C)):
        kind, threshold = plan.kinds_C[c], plan.thresholds_C[c]
        if plan.skipped_K[k] and kind != OVERLAP:
            continue
        if kind == OVERLAP:
            word, unsure = kept[CLAIMED] >> kept_back & valid, kept[CLAIM_UNSURE] >> kept_back & valid
            if unsure != NOTHING:
                word |= _settled_means(unsure, k, place, grid, True, plan.tables[PROBABILITIES], threshold)
        elif kind == INCONSISTENCY:
            if plan.masked_spread:
                word, unsure = kept[SPREAD] >> kept_back & valid, kept[SPREAD_UNSURE] >> kept_back & valid
            else:
                word, unsure = seen[SPREAD] >> back & valid, seen[SPREAD_UNSURE] >> back & valid
            if unsure != NOTHING:
                word |= _settled_deviations(unsure, k, place, grid, plan.masked_spread, threshold)
        elif kind == UNCERTAINTY:
            word, unsure = seen[SCORED] >> back & valid, seen[SCORE_UNSURE] >> back & valid
            if unsure != NOTHING:
                word |= _settled_means(unsure, k, place, grid, False, plan.tables[SCORES], threshold)
        elif kind == DISAGREEMENT:
            word, unsure = seen[CONTRARY] >> back & valid, seen[CONTRARY_UNSURE] >> back & valid
            if unsure != NOTHING:
                word |= _settled_disagreements(unsure, k, place, grid, plan, threshold)
        else:
            word = seen[UNDECIDED] >> back & valid
        if word != NOTHING:
            fired_CKXYW[c, k, x, y, w] = word
            if edges_CKX2[c, k, x, 1] == 0:
                edges_CKX2[c, k, x, 0] = y
            edges_CKX2[c, k, x, 1] = y + 1

    word, unsure = kept[LABELED] >> kept_back & valid, kept[LABEL_UNSURE] >> kept_back & valid
    if unsure != NOTHING:
        word |= _settled_means(unsure, k, place, grid, True, plan.tables[PROBABILITIES], plan.label_threshold)
    if word != NOTHING:
        word = _labeled(word, k, place, y, w, 0, M, grid, plan, inner, plane_LYZ[0], taken_LYW[0], voxels_K)
        voxels_K[k] += _count(word & inner)
    for m in range(len(plane_LYZ) - 1):
        if masked:
            word = _bytes_above(counted, m * TILE, plan.own_above) & valid
        else:
            word = _bytes_above(values, m * stride + k * N + place - before, plan.own_above) >> back & valid
        if word != NOTHING:
            _labeled(word, k, place, y, w, m, m + 1, grid, plan, NOTHING, plane_LYZ[1 + m], taken_LYW[1 + m], voxels_K)


@compiled
def _labeled(word, k, place, y, w, first, last, grid, plan, inner, plane_YZ, taken_YW, voxels_K):
    """Paint organ k where it exceeds the threshold in the architectures first..last and no other organ is as probable.

    Returns the voxels that were painted; those in `inner` that it took from another organ are subtracted from that one's.
    """
    tile = (y * taken_YW.shape[1] + w) * TILE
    contested = word & taken_YW[y, w]
    while contested != NOTHING:
        z = _trailing_zeros(contested)
        contested &= contested - ONE
        other = plan.channel_of[plane_YZ[tile + z]]
        mine = theirs = 0
        for m in range(first, last):
            mine += _byte(m, k, place + z, grid, True)
            theirs += _byte(m, other, place + z, grid, True)
        if mine <= theirs:
            word &= ~(ONE << np.uint64(z))
        else:
            voxels_K[other] -= int(inner >> np.uint64(z) & ONE)
    taken_YW[y, w] |= word
    _paint(plane_YZ, tile, word, plan.label_ids_K[k])
    return word


# --- opening ---------------------------------------------------------------------------------------------------------------


@compiled
def open_bits(bits_XYW, box, steps, spare):
    """Opening by a box of 2 * steps + 1 voxels, in place. Outside the array counts as not set.

    Args:
        box: x_0, x_1, y_0, y_1; nothing is set outside.
        spare: twice as many words as the box has, to work in.
    """
    x_0, x_1, y_0, y_1 = box
    nx, ny, W = x_1 - x_0, y_1 - y_0, bits_XYW.shape[2]
    a, b = spare[: nx * ny * W], spare[nx * ny * W : 2 * nx * ny * W]
    for x in range(nx):
        for y in range(ny):
            for w in range(W):
                a[(x * ny + y) * W + w] = bits_XYW[x_0 + x, y_0 + y, w]
                bits_XYW[x_0 + x, y_0 + y, w] = NOTHING
    for _ in range(steps[2]):
        _erode_rows(a, W)
    a, b = _eroded(a, b, nx, ny * W, W, steps[1])
    a, b = _eroded(a, b, 1, nx * ny * W, ny * W, steps[0])
    if not a.any():
        return
    a, b = _dilated(a, b, 1, nx * ny * W, ny * W, steps[0])
    a, b = _dilated(a, b, nx, ny * W, W, steps[1])
    for _ in range(steps[2]):
        _dilate_rows(a, W)
    for x in range(nx):
        for y in range(ny):
            for w in range(W):
                bits_XYW[x_0 + x, y_0 + y, w] = a[(x * ny + y) * W + w]


@compiled
def _erode_rows(words, W):
    """A bit stays where both neighbors in its row of W words are set."""
    top, one = np.uint64(TILE - 1), ONE
    for start in range(0, len(words), W):
        before = NOTHING
        for w in range(start, start + W):
            word = words[w]
            after = words[w + 1] if w + 1 < start + W else NOTHING
            words[w] = word & (word << one | before >> top) & (word >> one | after << top)
            before = word


@compiled
def _dilate_rows(words, W):
    top, one = np.uint64(TILE - 1), ONE
    for start in range(0, len(words), W):
        before = NOTHING
        for w in range(start, start + W):
            word = words[w]
            after = words[w + 1] if w + 1 < start + W else NOTHING
            words[w] = word | word << one | before >> top | word >> one | after << top
            before = word


@compiled
def _eroded(a, b, parts, length, step, count):
    """AND of each word with its neighbors up to `count` steps away, in each of `parts` stretches of `length` words.

    Returns the result and a spare array of the same length.
    """
    if count == 0:
        return a, b
    b[:] = NOTHING
    margin = count * step
    for start in range(0, parts * length, length):
        low, high = start + margin, start + length - margin
        if low >= high:
            continue
        b[low:high] = a[low:high]
        for shift in range(step, margin + 1, step):
            for i in range(low, high):
                b[i] &= a[i - shift] & a[i + shift]
    return b, a


@compiled
def _dilated(a, b, parts, length, step, count):
    """OR of each word with its neighbors up to `count` steps away; as `_eroded`."""
    if count == 0:
        return a, b
    b[:] = a
    for start in range(0, parts * length, length):
        for shift in range(step, min(count * step, length - 1) + 1, step):
            for i in range(start, start + length - shift):
                b[i] |= a[i + shift]
                b[i + shift] |= a[i]
    return b, a


# --- emit ------------------------------------------------------------------------------------------------------------------


@compiled
def contested_bits(k, box, claims_KXYW, partners, contested_XYW):
    """Set the words of a box where organ k and at least one partner claim the voxel."""
    x_0, x_1, y_0, y_1 = box
    for x in range(x_0, x_1):
        for y in range(y_0, y_1):
            for w in range(claims_KXYW.shape[3]):
                mine, others = claims_KXYW[k, x, y, w], NOTHING
                if mine != NOTHING:
                    for other in range(len(partners)):
                        if partners[other]:
                            others |= claims_KXYW[other, x, y, w]
                contested_XYW[x - x_0, y - y_0, w] = mine & others


@compiled
def emit(k, box, grid, plan, fired_CKXYW, contested_XYW):
    """Voxels with attention in the inner slices: place in the grid of inner slices (C order), bits and heat, and the box around.

    Args:
        box: x_0, x_1, y_0, y_1; nothing is set outside.
        fired_CKXYW: after opening. contested_XYW: the box's words of OVERLAP.
    """
    x_0, x_1, y_0, y_1 = box
    C, W = len(plan.kinds_C), fired_CKXYW.shape[4]
    inner_W = _inner_words(grid, W)
    count = 0
    for x in range(x_0, x_1):
        for y in range(y_0, y_1):
            for w in range(W):
                word = NOTHING
                for c in range(C):
                    if plan.kinds_C[c] == OVERLAP:
                        word |= contested_XYW[x - x_0, y - y_0, w]
                    else:
                        word |= fired_CKXYW[c, k, x, y, w]
                count += _count(word & inner_W[w])
    places_N, bits_N, heat_N = np.empty(count, np.int64), np.empty(count, np.uint8), np.empty(count)
    raw, counted = np.zeros((grid.M, CHUNK), np.uint8), np.zeros((grid.M, CHUNK), np.uint8)
    here, places_Z = np.zeros(C, np.uint64), np.zeros(TILE, np.int64)
    masked = len(grid.support) > 0
    around = np.array([grid.X, 0, grid.Y, 0, grid.Z, 0])
    N = grid.X * grid.Y * grid.Z
    n = done = 0
    for x in range(x_0, x_1):
        for y in range(y_0, y_1):
            for w in range(W):
                word = NOTHING
                for c in range(C):
                    overlap = plan.kinds_C[c] == OVERLAP
                    here[c] = contested_XYW[x - x_0, y - y_0, w] if overlap else fired_CKXYW[c, k, x, y, w]
                    word |= here[c]
                word &= inner_W[w]
                if word == NOTHING:
                    continue
                row = x * grid.Y + y
                around[0], around[1] = min(around[0], x), max(around[1], x + 1)
                around[2], around[3] = min(around[2], y), max(around[3], y + 1)
                around[4] = min(around[4], w * TILE + _trailing_zeros(word))
                found = 0
                while word != NOTHING:
                    places_Z[found] = _trailing_zeros(word)
                    word &= word - ONE
                    found += 1
                around[5] = max(around[5], w * TILE + places_Z[found - 1] + 1)
                if n + found > CHUNK:
                    _heat(n, raw, counted if masked else raw, bits_N[done:], plan, heat_N[done:])
                    done += n
                    n = 0
                start = row * (grid.stop - grid.start) + w * TILE - grid.start
                for i in range(found):
                    z = np.uint64(places_Z[i])
                    fired = NOTHING
                    for c in range(C):
                        fired |= (here[c] >> z & ONE) << np.uint64(c)
                    bits_N[done + n + i] = fired
                    places_N[done + n + i] = start + places_Z[i]
                for m in range(grid.M):
                    start = (m * grid.K + k) * N + row * grid.Z + w * TILE
                    for i in range(found):
                        raw[m, n + i] = grid.values[start + places_Z[i]]
                    if masked:
                        start = m * N + row * grid.Z + w * TILE
                        for i in range(found):
                            keep = grid.support[start + places_Z[i]] >> np.uint32(k) & np.uint32(1)
                            counted[m, n + i] = raw[m, n + i] * np.uint8(keep)
                n += found
    if n:
        _heat(n, raw, counted if masked else raw, bits_N[done:], plan, heat_N[done:])
    around[4] -= grid.start
    around[5] -= grid.start
    return places_N, bits_N, heat_N, around


@compiled
def _heat(count, raw, counted, bits_N, plan, heat_N):
    """Heat of `count` voxels whose bytes stand in [M, count]."""
    M = len(raw)
    a, b = np.empty(CHUNK), np.empty(CHUNK)
    heat_N[:count] = 0
    for c in range(len(plan.kinds_C)):
        bit, kind = np.uint8(1 << c), plan.kinds_C[c]
        needed = np.uint8(0)
        for n in range(count):
            needed |= bits_N[n] & bit
        if needed == 0:
            continue
        if kind == INCONSISTENCY:
            _deviations(count, counted if plan.masked_spread else raw, a, b)
        elif kind == UNCERTAINTY:
            _means(count, raw, plan.tables[SCORES], a)
        elif kind == OVERLAP:
            a[:count] = 1.0
        else:
            b[:count] = 0
            for m in range(M):
                for n in range(count):
                    b[n] += raw[m, n]
            for n in range(count):
                a[n] = plan.mean_entropies[int(b[n])]
            if kind == DISAGREEMENT:
                _means(count, raw, plan.tables[ENTROPIES], b)
                for n in range(count):
                    a[n] = max(a[n] - b[n], 0.0)
        maximum = plan.maxima_C[c]
        for n in range(count):
            if plan.summed:
                heat_N[n] += a[n] if bits_N[n] & bit else 0.0
            else:
                heat_N[n] = max(heat_N[n], a[n] / maximum if bits_N[n] & bit else 0.0)


@compiled
def _means(count, source, table, mean):
    mean[:count] = 0.0
    for m in range(len(source)):
        for n in range(count):
            mean[n] += table[source[m, n]]
    for n in range(count):
        mean[n] /= len(source)


@compiled
def _deviations(count, source, deviation, mean):
    """numpy.std over the first axis of bytes / 255."""
    mean[:count] = 0.0
    for m in range(len(source)):
        for n in range(count):
            mean[n] += source[m, n] / 255.0
    for n in range(count):
        mean[n] /= len(source)
    deviation[:count] = 0.0
    for m in range(len(source)):
        for n in range(count):
            off = source[m, n] / 255.0 - mean[n]
            deviation[n] += off * off
    for n in range(count):
        deviation[n] = np.sqrt(deviation[n] / len(source))


# --- components ------------------------------------------------------------------------------------------------------------


@compiled
def places_in(box, shape, places_N):
    """Flat positions in a box of voxels that are given by their flat positions in the volume."""
    (x_0, _), (y_0, y_1), (z_0, z_1) = box
    result_N = np.empty(len(places_N), np.int64)
    row, start = 0, -1  # of the row the last voxel was in
    for n in range(len(places_N)):
        place = places_N[n]
        if start < 0 or not 0 <= place - start < shape[2]:
            start = place // shape[2] * shape[2]
            x, y = start // shape[2] // shape[1], start // shape[2] % shape[1]
            row = ((x - x_0) * (y_1 - y_0) + y - y_0) * (z_1 - z_0)
        result_N[n] = row + place - start - z_0
    return result_N


@compiled
def measured(label_N, count, shape, places_N, bits_N, heat_N):
    """Of each component 1..count: voxels, spans (first and one past last of x, y, z), place of the first voxel of the highest heat
    in C order, sum of heat, and voxels per criterion."""
    voxels_C, spans_C6, peaks_C = np.zeros(count, np.int64), np.zeros((count, 6), np.int64), np.zeros(count, np.int64)
    sums_C, highest_C, fired_CB = np.zeros(count), np.full(count, -1.0), np.zeros((count, 8), np.int64)
    for c in range(count):
        spans_C6[c, 0], spans_C6[c, 2], spans_C6[c, 4] = shape
    x = y = 0
    start = -1
    for n in range(len(places_N)):
        place, c = places_N[n], int(label_N[n]) - 1
        if start < 0 or not 0 <= place - start < shape[2]:
            start = place // shape[2] * shape[2]
            x, y = start // shape[2] // shape[1], start // shape[2] % shape[1]
        z = place - start
        span, heat = spans_C6[c], heat_N[n]
        span[0], span[1] = min(span[0], x), max(span[1], x + 1)
        span[2], span[3] = min(span[2], y), max(span[3], y + 1)
        span[4], span[5] = min(span[4], z), max(span[5], z + 1)
        voxels_C[c] += 1
        sums_C[c] += heat
        if heat > highest_C[c] or (heat == highest_C[c] and place < peaks_C[c]):
            highest_C[c], peaks_C[c] = heat, place
        for bit in range(8):
            fired_CB[c, bit] += bits_N[n] >> bit & 1
    return voxels_C, spans_C6, peaks_C, sums_C, fired_CB


# --- the whole -------------------------------------------------------------------------------------------------------------


def plan_of(
    rules: Sequence[Rule],
    organs: Organs,
    *,
    architectures: int,
    skip: frozenset[str],
    summed: bool,
    masked_spread: bool,
    label_threshold: float,
) -> Plan:
    """The plan for criteria in bit order; arguments as in `Plan`."""
    K = len(organs)
    scores = next((rule.table for rule in rules if rule.table is not None), np.zeros(BYTE + 1))
    channel_of, partners_KK = np.zeros(BYTE + 1, np.int64), np.zeros((K, K), np.bool_)
    channel_of[list(organs.label_ids)] = np.arange(K)
    for k, partners in enumerate(organs.overlap_partners):
        partners_KK[k, list(partners)] = True
    return Plan(
        kinds_C=np.array([rule.kind for rule in rules], np.int64),
        thresholds_C=np.array([rule.threshold for rule in rules]),
        maxima_C=np.array([rule.maximum for rule in rules]),
        summed=summed,
        masked_spread=masked_spread,
        limits=limits(rules, architectures, label_threshold=label_threshold),
        tables=np.stack([np.arange(BYTE + 1) / BYTE, byte_entropies(), scores]),
        mean_entropies=mean_entropies(architectures),
        label_threshold=label_threshold,
        own_above=byte_above(label_threshold),
        skipped_K=np.array([organ.name in skip for organ in organs]),
        label_ids_K=np.array(organs.label_ids, np.uint8),
        channel_of=channel_of,
        partners_KK=partners_KK,
    )


class _Scratch(threading.local):
    """Words that a thread keeps from call to call: fresh memory can cost more than the work done in it."""

    def __init__(self) -> None:
        self.kept: dict[str, npt.NDArray[np.uint64]] = {}

    def take(self, name: str, count: int) -> npt.NDArray[np.uint64]:
        """As many words at least, as they were given back, or zero."""
        words = self.kept.pop(name, None)
        return words if words is not None and len(words) >= count else np.zeros(count, np.uint64)

    def give_back(self, name: str, words: npt.NDArray[np.uint64]) -> None:
        if words.nbytes <= KEPT_BYTES:
            self.kept[name] = words


_scratch = _Scratch()


def attend(grid: Grid, plan: Plan, *, steps_C: Sequence[IntTriple], own_labels: bool, threads: int) -> GridAttention:
    """Attention and labels of one grid.

    Args:
        steps_C: voxels by which what a criterion fires is opened, per axis.
        own_labels: whether each architecture's own label map is wanted.
        threads: how many may run; planes of x, then organs, are shared among them.
    """
    C, W, length = len(plan.kinds_C), -(-grid.Z // TILE), grid.stop - grid.start
    shape = (C, grid.K, grid.X, grid.Y, W)
    words = _scratch.take("fired", math.prod(shape))
    fired_CKXYW = words[: math.prod(shape)].reshape(shape)
    edges_CKX2 = np.zeros((C, grid.K, grid.X, 2), np.int64)
    label_XYZ = np.empty((grid.X, grid.Y, length), np.uint8)
    own_MXYZ = np.empty((grid.M if own_labels else 0, grid.X, grid.Y, length), np.uint8)

    def survey(first: int) -> npt.NDArray[np.int64]:
        voxels_K = np.zeros(grid.K, np.int64)
        last = min(first + PLANES, grid.X)
        survey_planes(first, last, grid, plan, fired_CKXYW, edges_CKX2, label_XYZ, own_MXYZ, voxels_K)
        return voxels_K

    def organ(k: int) -> OrganAttention:
        return _organ(k, grid, plan, steps_C, fired_CKXYW, edges_CKX2)

    if threads == 1:
        voxels = [survey(first) for first in range(0, grid.X, PLANES)]
        organs = [organ(k) for k in range(grid.K)]
    else:
        with ThreadPoolExecutor(threads) as pool:
            voxels = list(pool.map(survey, range(0, grid.X, PLANES)))
            organs = list(pool.map(organ, range(grid.K)))
    for c, k in np.ndindex(C, grid.K):
        if box := _box(edges_CKX2[c, k]):
            x_0, x_1, y_0, y_1 = box
            fired_CKXYW[c, k, x_0:x_1, y_0:y_1] = 0
    _scratch.give_back("fired", words)
    return GridAttention(tuple(organs), label_XYZ, own_MXYZ, np.sum(voxels, axis=0))


def _organ(
    k: int,
    grid: Grid,
    plan: Plan,
    steps_C: Sequence[IntTriple],
    fired_CKXYW: npt.NDArray[np.uint64],
    edges_CKX2: npt.NDArray[np.int64],
) -> OrganAttention:
    """Open what fired for one organ and list what is left."""
    shape = (grid.X, grid.Y, grid.stop - grid.start)
    boxes = [_box(edges_KX2[k]) for edges_KX2 in edges_CKX2]
    found = [box for box in boxes if box is not None]
    if plan.skipped_K[k] or not found:
        return OrganAttention(shape, np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0), None)
    x_0, x_1, y_0, y_1 = around = tuple(f(box[i] for box in found) for i, f in enumerate((min, max, min, max)))
    inside = (x_1 - x_0, y_1 - y_0, fired_CKXYW.shape[4])
    spare = _scratch.take("spare", 2 * math.prod(inside))
    for c, box in enumerate(boxes):
        if box is not None and any(steps_C[c]):
            open_bits(fired_CKXYW[c, k], box, steps_C[c], spare)
    contested_XYW = spare[: math.prod(inside)].reshape(inside)
    for c in np.flatnonzero(plan.kinds_C == OVERLAP).tolist():
        contested_bits(k, around, fired_CKXYW[c], plan.partners_KK[k], contested_XYW)
    places_N, bits_N, heat_N, spans = emit(k, around, grid, plan, fired_CKXYW, contested_XYW)
    _scratch.give_back("spare", spare)
    x, y, z = ((int(spans[i]), int(spans[i + 1])) for i in (0, 2, 4))
    return OrganAttention(shape, places_N, bits_N, heat_N, (x, y, z) if len(places_N) else None)


def _box(edges_X2: npt.NDArray[np.int64]) -> tuple[int, int, int, int] | None:
    """x_0, x_1, y_0, y_1 around the planes with a bit."""
    planes = np.flatnonzero(edges_X2[:, 1])
    if not len(planes):
        return None
    return int(planes[0]), int(planes[-1]) + 1, int(edges_X2[planes, 0].min()), int(edges_X2[planes, 1].max())
