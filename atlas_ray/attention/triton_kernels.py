"""Attention on a GPU in Triton: `packed.attend_plainly` in one pass over the values, and short passes over what is attended.

The floor is memory: every value is read once (27 bytes a voxel for 3 architectures and 9 organs in uint8), 13 bytes are written.

    _evidence   values -> label map, a word per criterion, a flag per tile of 256 voxels, voxels per organ
    _box        one axis of the opening, all organs of a word at once; six launches, over flagged tiles only
    _measure    attended voxels per organ and tile, bounding boxes
    _gather     the attended pairs with their heat; reads the values of attended voxels only

Opening never adds a voxel, so outside the flagged tiles the words, and every stage between, are 0 and need no look.

What should keep `_evidence` near the floor, by count; no GPU has timed it yet:

- A lane holds 8 or 16 neighboring voxels and reads them in pieces of 16 bytes (8 where 8 voxels are that), straight to shared
  memory, two organs ahead of the one it works on (STAGES). Nothing is read twice.
- Most of a CT is far from any one organ: where every architecture rounds to 0 in a whole block, an organ costs one test, 2 to 3
  instructions a byte and 6 a float16, of the 9 and 17 that an H100 has time for at 3.35 TB/s. Tables and exact rounding, 11 and 41
  more, are for the rest: up to about half, or a quarter, of the blocks before arithmetic sets the pace. A block of one warp needs
  no barrier for the test.
- Four registers a voxel are kept: best (sum and channel in one number, so ties go to the first channel), two criteria, claims. With
  8 voxels a lane that makes 70 to 100 registers in all, 20 to 28 warps on a multiprocessor, 40 to 60 KB of reads in flight; 18 KB
  would cover the latency of memory.

Instructions and registers are those of what Triton 3.7 compiles for compute capability 9.0; `benchmarks/attention_gpu.py` measures.

Importing this module needs triton; `packed.attend` says so in words.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from atlas_ray.attention.packed import ByteRules, PackedAttention, level_bounds, require_fit

TILE = 256  # voxels a flag stands for
FAR = tl.constexpr(2**30)  # beyond any coordinate
FLOOR = float(level_bounds()[1])  # logits up to here have level 0

_LAUNCHES = [
    triton.Config({"BLOCK": block, "STAGES": stages}, num_warps=warps)
    for block, warps in ((256, 1), (512, 1), (512, 2), (1024, 4))
    for stages in (1, 3, 4)
]
if triton.knobs.runtime.interpret:  # nothing to time there
    _LAUNCHES = _LAUNCHES[:1]


# --- levels and evidence --------------------------------------------------------------------------------------------


@triton.jit
def _is_worth_a_look(values, floor):
    """int32 by voxel, not 0 where some architecture's level is above 0."""
    if values[0].dtype == tl.uint8:
        seen = values[0]
        for m in tl.static_range(1, len(values)):
            seen |= values[m]
        return seen.to(tl.int32)
    highest = values[0].to(tl.float32)
    for m in tl.static_range(1, len(values)):
        highest = tl.maximum(highest, values[m].to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
    return 1 - (highest <= floor).to(tl.int32)  # NaN is not below


@triton.jit
def _level(value, bounds_ptr):
    """0..255, or 256 for NaN. A fast sigmoid guesses, the bounds on both sides of the guess decide: exact on every device."""
    if value.dtype == tl.uint8:
        return value.to(tl.int32)
    x = value.to(tl.float32)
    is_nan = x != x
    x = tl.maximum(tl.where(is_nan, 0.0, x), -30.0)
    guess = (255.0 / (1.0 + tl.exp(-x)) + 0.5).to(tl.int32)
    above = (x > tl.load(bounds_ptr + guess + 1)).to(tl.int32)
    below = (x <= tl.load(bounds_ptr + guess)).to(tl.int32)
    return tl.where(is_nan, 256, guess + above - below)


@triton.jit
def _judge(
    values,
    support_ptr,
    support_stride,
    k,
    inside,
    parts_ptr,
    means_ptr,
    bounds_ptr,
    FAITHFUL: tl.constexpr,
    SUPPORTED: tl.constexpr,
):
    """First and second evidence and the sum of levels that count (`packed.evidence`)."""
    total = tl.zeros(inside.shape, tl.int32)
    whole, squares, parts, undecided = total, total, total, total
    for m in tl.static_range(len(values)):
        level = _level(values[m], bounds_ptr)
        parts += tl.load(parts_ptr + level)
        undecided |= level >> 8
        known = tl.where(level == 256, 0, level)
        whole += known
        if SUPPORTED:
            word = tl.load(support_ptr + m * tl.cast(support_stride, tl.int64), mask=inside, other=0)
            known *= (word >> k) & 1
        total += known
        squares += known * known
    if FAITHFUL:
        return len(values) * squares - total * total, parts, total
    first = tl.load(means_ptr + tl.where(undecided != 0, 255 * len(values) + 1, whole))
    return first, tl.where(undecided != 0, 0, tl.maximum(first - parts, 0)), total


@triton.autotune(configs=_LAUNCHES, key=["M", "K", "FAITHFUL", "SUPPORTED"], reset_to_zero=["predicted_ptr"])
@triton.jit(do_not_specialize=["first_limit", "second_limit", "claim_limit", "label_limit", "watched"])
def _evidence(
    values_ptr, support_ptr, label_ptr, words_ptr, flags_ptr, predicted_ptr,
    parts_ptr, means_ptr, bounds_ptr, partners_ptr, ids_ptr,
    V, floor, first_limit, second_limit, claim_limit, label_limit, watched,
    M: tl.constexpr, K: tl.constexpr, FAITHFUL: tl.constexpr, SUPPORTED: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    v = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = v < V
    stride = tl.cast(V, tl.int64)  # 3 x 9 x 512 x 512 x 400 values are more than an int32 counts
    best = tl.zeros((BLOCK,), tl.int32)
    first_word, second_word, claims = best, best, best
    for k in tl.range(K, num_stages=STAGES):
        values = ()
        for m in tl.static_range(M):
            other = 0 if values_ptr.dtype.element_ty == tl.uint8 else float("-inf")
            values = values + (tl.load(values_ptr + (m * K + k) * stride + v, mask=inside, other=other),)  # noqa: RUF005
        if tl.max(_is_worth_a_look(values, floor), 0) != 0:
            first, second, total = _judge(
                values, support_ptr + v, V, k, inside, parts_ptr, means_ptr, bounds_ptr, FAITHFUL, SUPPORTED
            )
            first_word |= (first > first_limit).to(tl.int32) << k
            second_word |= (second > second_limit).to(tl.int32) << k
            claims |= (total > claim_limit).to(tl.int32) << k
            best = tl.maximum(best, total * 256 + (255 - k))

    contested = tl.zeros((BLOCK,), tl.int32)
    if tl.max((claims & (claims - 1) != 0).to(tl.int32), 0) != 0:  # two organs claim one voxel, allowed or not
        for k in range(K):
            meets = (claims & tl.load(partners_ptr + k)) != 0
            contested |= (meets.to(tl.int32) << k) & claims
    first_word &= watched
    second_word &= watched
    contested &= watched
    tl.store(words_ptr + v, first_word, mask=inside)
    tl.store(words_ptr + stride + v, second_word, mask=inside)
    tl.store(words_ptr + 2 * stride + v, contested, mask=inside)
    fired = ((first_word | second_word | contested) != 0).to(tl.int32)
    tiles = tl.program_id(0) * (BLOCK // TILE) + tl.arange(0, BLOCK // TILE)
    tl.store(flags_ptr + tiles, tl.max(tl.reshape(fired, (BLOCK // TILE, TILE)), 1), mask=tiles * TILE < V)

    labeled = (best >> 8) > label_limit
    channel = tl.where(labeled, 255 - (best & 255), 0)
    tl.store(label_ptr + v, tl.load(ids_ptr + channel, mask=labeled, other=0), mask=inside)
    if tl.max(labeled.to(tl.int32), 0) != 0:
        counts = tl.histogram(channel, 32, mask=labeled)
        tl.atomic_add(predicted_ptr + tl.arange(0, 32), counts, mask=counts > 0)


# --- opening --------------------------------------------------------------------------------------------------------


@triton.jit
def _box(source_ptr, result_ptr, flags_ptr, V, tiles, stride, length, STEPS: tl.constexpr, ERODE: tl.constexpr, TILE: tl.constexpr):
    """Erosion or dilation of words by 2 STEPS + 1 voxels along one axis; outside the grid nothing is set."""
    criterion = tl.program_id(1) * tl.cast(V, tl.int64)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        if tl.load(flags_ptr + tile) != 0:
            v = tile * TILE + tl.arange(0, TILE)
            place = v // stride % length
            word = tl.full((TILE,), -1 if ERODE else 0, tl.int32)
            for step in tl.static_range(-STEPS, STEPS + 1):
                there = (v < V) & (place + step >= 0) & (place + step < length)
                near = tl.load(source_ptr + criterion + v + step * stride, mask=there, other=0)
                word = word & near if ERODE else word | near
            tl.store(result_ptr + criterion + v, word, mask=v < V)


# --- sizes, boxes, pairs --------------------------------------------------------------------------------------------


@triton.jit
def _measure(words_ptr, flags_ptr, counts_ptr, boxes_ptr, V, tiles, Y, Z, K: tl.constexpr, TILE: tl.constexpr):
    """Attended voxels by organ and tile; by organ the smallest coordinates and, negated, the largest."""
    stride = tl.cast(V, tl.int64)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        if tl.load(flags_ptr + tile) != 0:
            v = tile * TILE + tl.arange(0, TILE)
            inside = v < V
            attended = tl.load(words_ptr + v, mask=inside, other=0)
            attended |= tl.load(words_ptr + stride + v, mask=inside, other=0)
            attended |= tl.load(words_ptr + 2 * stride + v, mask=inside, other=0)
            for k in range(K):
                mine = (attended >> k) & 1
                count = tl.sum(mine, 0)
                if count != 0:
                    tl.store(counts_ptr + tl.cast(k, tl.int64) * tiles + tile, count)
                    box_ptr = boxes_ptr + k * 6
                    _grow(box_ptr, v // (Y * Z), mine)
                    _grow(box_ptr + 1, v // Z % Y, mine)
                    _grow(box_ptr + 2, v % Z, mine)


@triton.jit
def _grow(box_ptr, place, mine):
    """The load spares most atomics; where it is out of date, an atomic that changes nothing is the cost."""
    low = tl.min(tl.where(mine != 0, place, FAR), 0)
    high = tl.min(tl.where(mine != 0, -place, 1 << 30), 0)
    if low < tl.load(box_ptr):
        tl.atomic_min(box_ptr, low)
    if high < tl.load(box_ptr + 3):
        tl.atomic_min(box_ptr + 3, high)


@triton.jit
def _gather(
    values_ptr, support_ptr, words_ptr, flags_ptr, counts_ptr, ends_ptr, voxels_ptr, bits_ptr, heat_ptr,
    parts_ptr, means_ptr, bounds_ptr, V, tiles, first_share, second_share,
    M: tl.constexpr, K: tl.constexpr, FAITHFUL: tl.constexpr, SUPPORTED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Place, bits and heat (`packed.heat`) of every attended pair, at the place that the running sum of counts gives it."""
    stride = tl.cast(V, tl.int64)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        if tl.load(flags_ptr + tile) != 0:
            v = tile * TILE + tl.arange(0, TILE)
            inside = v < V
            first_word = tl.load(words_ptr + v, mask=inside, other=0)
            second_word = tl.load(words_ptr + stride + v, mask=inside, other=0)
            contested = tl.load(words_ptr + 2 * stride + v, mask=inside, other=0)
            for k in range(K):
                at = tl.cast(k, tl.int64) * tiles + tile
                count = tl.load(counts_ptr + at)
                if count != 0:
                    bits = ((first_word >> k) & 1) | (((second_word >> k) & 1) << 1) | (((contested >> k) & 1) << 2)
                    mine = bits != 0
                    values = ()
                    for m in tl.static_range(M):
                        values = values + (tl.load(values_ptr + (m * K + k) * stride + v, mask=mine, other=0),)  # noqa: RUF005
                    first, second, _ = _judge(
                        values, support_ptr + v, V, k, mine, parts_ptr, means_ptr, bounds_ptr, FAITHFUL, SUPPORTED
                    )
                    first_heat, second_heat = first.to(tl.float32), second.to(tl.float32) * second_share
                    if FAITHFUL:
                        first_heat = tl.sqrt_rn(first_heat)
                    first_heat = tl.where(bits & 1 != 0, first_heat * first_share, 0.0)
                    second_heat = tl.where(bits & 2 != 0, second_heat, 0.0)
                    third_heat = (bits >> 2).to(tl.float32)
                    if FAITHFUL:
                        heat = first_heat + second_heat + third_heat
                    else:
                        heat = tl.maximum(tl.maximum(first_heat, second_heat), third_heat)
                    slot = tl.load(ends_ptr + at) - count + tl.cumsum(mine.to(tl.int32), 0) - 1
                    tl.store(voxels_ptr + slot, v.to(tl.int64), mask=mine)
                    tl.store(bits_ptr + slot, bits.to(tl.uint8), mask=mine)
                    tl.store(heat_ptr + slot, heat, mask=mine)


# --- launches -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def attend(values_MKXYZ: Tensor, rules: ByteRules, *, support_MXYZ: Tensor | None = None) -> PackedAttention:
    """`packed.attend_plainly` by the kernels; the same voxels, bits and heats."""
    require_fit(values_MKXYZ, rules, support_MXYZ)
    values, support = values_MKXYZ.contiguous(), None if support_MXYZ is None else support_MXYZ.contiguous()
    label_XYZ, words_CXYZ, flags_T, predicted_K = find_evidence(values, rules, support)
    open_words(words_CXYZ[:2], flags_T, rules)
    return _pairs(values, rules, support, label_XYZ, words_CXYZ, flags_T, predicted_K)


def find_evidence(values_MKXYZ: Tensor, rules: ByteRules, support_MXYZ: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Label map [X, Y, Z]; words [3, X, Y, Z] before opening; flags of tiles where one is not 0; voxels of organs."""
    device, shape = values_MKXYZ.device, values_MKXYZ.shape[2:]
    V = shape.numel()
    label_XYZ = torch.empty(shape, dtype=torch.uint8, device=device)
    words_CXYZ = torch.empty((3, *shape), dtype=torch.int32, device=device)
    flags_T = torch.empty(triton.cdiv(V, TILE), dtype=torch.int32, device=device)
    predicted = torch.zeros(32, dtype=torch.int32, device=device)
    _evidence[lambda meta: (triton.cdiv(V, meta["BLOCK"]),)](
        values_MKXYZ,
        values_MKXYZ if support_MXYZ is None else support_MXYZ,
        label_XYZ,
        words_CXYZ,
        flags_T,
        predicted,
        rules.parts,
        rules.means,
        rules.bounds,
        rules.partners,
        rules.label_ids,
        V,
        FLOOR,
        rules.first_limit,
        rules.second_limit,
        rules.claim_limit,
        rules.label_limit,
        rules.watched,
        M=rules.architectures,
        K=rules.organs,
        FAITHFUL=rules.faithful,
        SUPPORTED=support_MXYZ is not None,
        TILE=TILE,
    )
    return label_XYZ, words_CXYZ, flags_T, predicted[: rules.organs].long()


def open_words(words_CXYZ: Tensor, flags_T: Tensor, rules: ByteRules) -> None:
    """Open words in place. Each axis is passed twice, so the last pass writes where the first one read."""
    X, Y, Z = words_CXYZ.shape[1:]
    axes = [axis for axis in ((Y * Z, X, rules.steps[0]), (Z, Y, rules.steps[1]), (1, Z, rules.steps[2])) if axis[2]]
    source, result = words_CXYZ, torch.zeros_like(words_CXYZ)
    for erode in (True, False):
        for stride, length, steps in axes:
            grid = (_programs(flags_T), len(words_CXYZ))
            _box[grid](
                source, result, flags_T, X * Y * Z, len(flags_T), stride, length, STEPS=steps, ERODE=erode, TILE=TILE, num_warps=2
            )
            source, result = result, source


def _pairs(
    values_MKXYZ: Tensor,
    rules: ByteRules,
    support_MXYZ: Tensor | None,
    label_XYZ: Tensor,
    words_CXYZ: Tensor,
    flags_T: Tensor,
    predicted_K: Tensor,
) -> PackedAttention:
    device, K, T = values_MKXYZ.device, rules.organs, len(flags_T)
    X, Y, Z = label_XYZ.shape
    counts_KT = torch.zeros((K, T), dtype=torch.int32, device=device)
    corners_K23 = torch.full((K, 2, 3), FAR.value, dtype=torch.int32, device=device)
    grid = (_programs(flags_T),)
    _measure[grid](words_CXYZ, flags_T, counts_KT, corners_K23, X * Y * Z, T, Y, Z, K=K, TILE=TILE, num_warps=2)
    ends_KT = counts_KT.flatten().cumsum(0).view(K, T)
    P = int(ends_KT[-1, -1])  # the one wait for the GPU
    voxels_P = torch.empty(P, dtype=torch.int64, device=device)
    bits_P = torch.empty(P, dtype=torch.uint8, device=device)
    heat_P = torch.empty(P, dtype=torch.float32, device=device)
    _gather[grid](
        values_MKXYZ,
        values_MKXYZ if support_MXYZ is None else support_MXYZ,
        words_CXYZ,
        flags_T,
        counts_KT,
        ends_KT,
        voxels_P,
        bits_P,
        heat_P,
        rules.parts,
        rules.means,
        rules.bounds,
        X * Y * Z,
        T,
        rules.first_share,
        rules.second_share,
        M=rules.architectures,
        K=K,
        FAITHFUL=rules.faithful,
        SUPPORTED=support_MXYZ is not None,
        TILE=TILE,
        num_warps=2,
        enable_fp_fusion=False,  # a fused multiply-add rounds once where the plain form rounds twice
    )
    boxes_K32 = torch.stack([corners_K23[:, 0], 1 - corners_K23[:, 1]], dim=-1).long()
    boxes_K32[corners_K23[:, 0] == FAR.value] = 0
    return PackedAttention(
        label_XYZ=label_XYZ,
        words_CXYZ=words_CXYZ,
        predicted_K=predicted_K,
        sizes_K=counts_KT.sum(dim=1),
        boxes_K32=boxes_K32,
        voxels_P=voxels_P,
        bits_P=bits_P,
        heat_P=heat_P,
    )


def _programs(flags_T: Tensor) -> int:
    """Programs that stay and take tile after tile: an idle tile then costs the load of a flag, not a launch."""
    if not flags_T.is_cuda:
        return min(len(flags_T), 2)
    return min(len(flags_T), 32 * torch.cuda.get_device_properties(flags_T.device).multi_processor_count)
