"""Attention of all organs at once, from bytes and packed in words: the rules in whole numbers, and their plain PyTorch form.

A word is an int32 per voxel and criterion; bit k is set where the criterion fired for organ k. Everything is decided on levels:
0..255, the probability rounded to a byte (exactly between two bytes down, so p = 0.5 is not above one half), or 256 for NaN.
Sums of levels are whole numbers, so a threshold is met or not met alike on every device, whatever the order of addition.

A mode's own `look` says the same of these bytes, except where a deviation or mean lies exactly at its threshold: here it never
fires, there float64 rounds it to either side. With 3 architectures and the paper's thresholds no bytes lie there, with 2 or 4 some
do. Heat is float32 here.

The plain form is the specification of `attention.triton_kernels`, which a test holds to it voxel by voxel; `attend` picks between
them, and `look` stands in for a mode's own.

Axes: M architectures, K organs (channels, at most 32), X Y Z the grid, C the three criteria, P attended pairs of organ and voxel.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from atlas_ray.attention.criteria import (
    Bytes,
    Disagreement,
    FaithfulAttention,
    Overlap,
    PhysicalAttention,
    PredictiveEntropy,
    Words,
)
from atlas_ray.attention.rules import byte_above
from atlas_ray.attention.sparse import GridAttention, OrganAttention
from atlas_ray.exceptions import AtlasError, ConfigError, LabelError
from atlas_ray.organs import Organs
from atlas_ray.schema import IntTriple, Triple

NAN_LEVEL = 256
MAX_ORGANS = 32  # bits of a word
MAX_ARCHITECTURES = 32
FINE = 2**26  # steps per nat where no file format sets them; sums over 32 architectures fit an int32


# --- rules ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ByteRules:
    """A mode's rules for one ensemble and grid, in whole numbers: evidence fires where it is greater than its limit.

    With q the levels of M architectures, s those that count (others 0), and the tables below:

        faithful    first  = M sum(s^2) - (sum s)^2 = (255 M std)^2       second = sum parts[q]
        physical    first  = means[sum q]                                 second = max(first - sum parts[q], 0)
        both        claims = sum s > claim_limit; contested = claims, and so does a partner

    A NaN counts as fully uncertain and claims nothing; physical disagreement is 0 there.

    Args:
        faithful: which of the two lines.
        bounds: `level_bounds`.
        parts: int32 [257], entropy of one architecture by level. means: int32 [255 M + 2], of the mean by the
            sum of levels; the last entries are those of NaN.
        first_limit, second_limit, claim_limit, label_limit: whole numbers.
        first_share, second_share: factors from evidence (the root of it for faithful `first`) to heat.
        partners, label_ids: by channel; partners as words. watched: word of the organs whose attention is wanted.
        steps: opening, voxels to each side per axis.
    """

    faithful: bool
    architectures: int
    bounds: Tensor
    parts: Tensor
    means: Tensor
    first_limit: int
    second_limit: int
    claim_limit: int
    label_limit: int
    first_share: float
    second_share: float
    partners: Tensor
    label_ids: Tensor
    watched: int
    steps: IntTriple

    @property
    def organs(self) -> int:
        return len(self.label_ids)


def byte_rules(
    mode: FaithfulAttention | PhysicalAttention,
    *,
    organs: Organs,
    architectures: int,
    spacing: Triple,
    label_threshold: float = 0.5,
    skip: frozenset[str] = frozenset(),
    device: torch.device | str = "cpu",
) -> ByteRules:
    """The rules of a mode; arguments as `FaithfulAttention.look`.

    Raises:
        ConfigError: more organs than a word has bits, too many architectures, or criteria other than these three in this order.
        LabelError: `skip` names no organ of the set.
    """
    if len(organs) > MAX_ORGANS:
        raise ConfigError(f"organ set {organs.name!r} has {len(organs)} organs; packed attention holds up to {MAX_ORGANS}")
    if not 0 < architectures <= MAX_ARCHITECTURES:
        raise ConfigError(f"{architectures} architectures; packed attention adds up 1 to {MAX_ARCHITECTURES}")
    M = architectures
    ids = torch.tensor(organs.label_ids, dtype=torch.uint8, device=device)
    partners = torch.tensor([_word(channels) for channels in organs.overlap_partners], dtype=torch.int32, device=device)
    skipped = {organs.channel(name) for name in skip}
    watched = _word(tuple(k for k in range(len(organs)) if k not in skipped))
    x, y, z = (n // 2 for n in mode.halo(spacing))
    label_limit = math.floor(_exact(label_threshold) * 255 * M)
    level = torch.arange(256, dtype=torch.float64) / 255
    if isinstance(mode, FaithfulAttention):
        levels = mode.uncertainty.levels
        entropy = torch.special.entr(level) * (levels or FINE)
        nan_entropy = mode.uncertainty.MAXIMUM * (levels or FINE)
        parts = torch.cat([entropy, torch.tensor([nan_entropy], dtype=torch.float64)])
        parts = parts.floor() if levels else parts.round()
        scale = M * (levels or FINE)
        return ByteRules(
            faithful=True,
            architectures=M,
            bounds=level_bounds().to(device),
            parts=parts.to(torch.int32).to(device),
            means=torch.zeros(255 * M + 2, dtype=torch.int32, device=device),
            first_limit=math.floor((_exact(mode.inconsistency.threshold) * 255 * M) ** 2),
            second_limit=math.floor(_exact(mode.uncertainty.threshold) * scale),
            claim_limit=math.floor(_exact(mode.overlap.threshold) * 255 * M),
            label_limit=label_limit,
            first_share=1 / (255 * M),
            second_share=1 / scale,
            partners=partners,
            label_ids=ids,
            watched=watched,
            steps=(x, y, z),
        )
    entropy_criterion, disagreement, overlap = _three(mode)
    mean = torch.cat([torch.arange(255 * M + 1, dtype=torch.float64) / (255 * M), torch.tensor([0.5], dtype=torch.float64)])
    parts = torch.cat([_binary_entropy(level) * FINE, torch.zeros(1, dtype=torch.float64)])
    return ByteRules(
        faithful=False,
        architectures=M,
        bounds=level_bounds().to(device),
        parts=parts.round().to(torch.int32).to(device),
        means=(_binary_entropy(mean) * M * FINE).round().to(torch.int32).to(device),
        first_limit=math.floor(_exact(entropy_criterion.threshold) * M * FINE),
        second_limit=math.floor(_exact(disagreement.threshold) * M * FINE),
        claim_limit=math.floor(_exact(overlap.threshold) * 255 * M),
        label_limit=label_limit,
        first_share=1 / (M * FINE * entropy_criterion.MAXIMUM),
        second_share=1 / (M * FINE * disagreement.MAXIMUM),
        partners=partners,
        label_ids=ids,
        watched=watched,
        steps=(x, y, z),
    )


def _three(mode: PhysicalAttention) -> tuple[PredictiveEntropy, Disagreement, Overlap]:
    match mode.criteria:
        case (PredictiveEntropy() as first, Disagreement() as second, Overlap() as third):
            return first, second, third
    raise ConfigError(
        f"packed attention has predictive_entropy, disagreement and overlap, in this order; got {', '.join(mode.criterion_names)}"
    )


def _exact(threshold: float) -> Fraction:
    """The decimal number that was written, not its nearest float: 0.1 is one tenth."""
    return Fraction(str(threshold))


def _word(channels: tuple[int, ...]) -> int:
    """Bits as a signed 32-bit number."""
    bits = sum(1 << k for k in channels)
    return bits - 2**32 if bits >= 2**31 else bits


def _binary_entropy(p: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(p) + torch.special.entr(1 - p)
    return entropy


def level_bounds() -> Tensor:
    """float32 [257]: a logit's level is the number of entries 1..255 that lie below it. Entries 0 and 256 are infinite."""
    j = torch.arange(257, dtype=torch.float64)
    bounds = torch.log((j - 0.5) / (255.5 - j))
    bounds[0], bounds[256] = -torch.inf, torch.inf
    return bounds.float()


# --- result ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class PackedAttention:
    """What `attend` says of one grid. Pairs are sorted by organ, then voxel in C order.

    Args:
        label_XYZ: uint8 label ids; the organ of the highest mean probability above the threshold, the first of equal ones.
        words_CXYZ: int32, criteria in the mode's order, after opening.
        predicted_K: int64, voxels of each organ in the label map.
        sizes_K: int64, attended voxels.
        boxes_K32: int64 [K, 3, 2], first and one past the last attended voxel per axis; zeros where there is none.
        voxels_P: int64, place in the flattened grid. bits_P: uint8, bit i where criterion i fired. heat_P: float32.
    """

    label_XYZ: Tensor
    words_CXYZ: Tensor
    predicted_K: Tensor
    sizes_K: Tensor
    boxes_K32: Tensor
    voxels_P: Tensor
    bits_P: Tensor
    heat_P: Tensor


def attend(values_MKXYZ: Tensor, rules: ByteRules, *, support_MXYZ: Tensor | None = None) -> PackedAttention:
    """Label map and attention of every organ; on CUDA by the Triton kernels, elsewhere by the plain form.

    Args:
        values_MKXYZ: logits (float16, bfloat16, float32) or probabilities as rounded bytes (uint8). Copied unless contiguous;
            where X is the fastest axis, give the axes, and the rules' spacing, in reverse.
        rules: on the same device.
        support_MXYZ: int32 words, bit k where organ k's prediction of that architecture counts; None for everywhere.

    Raises:
        LabelError: shapes or types do not fit.
        AtlasError: the values are on CUDA, and triton is not installed.
    """
    if not values_MKXYZ.is_cuda:
        return attend_plainly(values_MKXYZ, rules, support_MXYZ=support_MXYZ)
    try:
        from atlas_ray.attention import triton_kernels
    except ModuleNotFoundError as error:
        raise AtlasError("attention on a GPU needs triton, which is not installed; `pip install triton` (Linux only)") from error
    return triton_kernels.attend(values_MKXYZ, rules, support_MXYZ=support_MXYZ)


def require_fit(values_MKXYZ: Tensor, rules: ByteRules, support_MXYZ: Tensor | None) -> None:
    """Raise LabelError where shapes or types do not fit the rules."""
    shape, types = tuple(values_MKXYZ.shape), (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
    if len(shape) != 5 or shape[:2] != (rules.architectures, rules.organs) or 0 in shape:
        raise LabelError(f"values of shape {shape}; the rules are for [{rules.architectures}, {rules.organs}, X, Y, Z]")
    if values_MKXYZ.dtype not in types:
        raise LabelError(f"values of type {values_MKXYZ.dtype}; logits of float16, bfloat16, float32 or bytes are read")
    if support_MXYZ is not None and (support_MXYZ.shape != (shape[0], *shape[2:]) or support_MXYZ.dtype != torch.int32):
        raise LabelError(f"support of {support_MXYZ.dtype} {tuple(support_MXYZ.shape)}; int32 {(shape[0], *shape[2:])} is needed")


def look(
    mode: FaithfulAttention | PhysicalAttention,
    bytes_MKXYZ: Bytes,
    *,
    organs: Organs,
    spacing: Triple,
    device: torch.device | str,
    support_MXYZ: Words | None = None,
    skip: frozenset[str] = frozenset(),
    label_threshold: float = 0.5,
    inner: slice = slice(None),
) -> GridAttention:
    """What the mode's own `look` says, each architecture's labels included, by way of `attend` on a device.

    Raises:
        ConfigError, LabelError, AtlasError: as `byte_rules` and `attend`.
    """
    rules = byte_rules(
        mode,
        organs=organs,
        architectures=len(bytes_MKXYZ),
        spacing=spacing,
        label_threshold=label_threshold,
        skip=skip,
        device=device,
    )
    values = torch.from_numpy(bytes_MKXYZ).to(device)
    words = None if support_MXYZ is None else torch.from_numpy(support_MXYZ.view(np.int32)).to(device)
    found = attend(values, rules, support_MXYZ=words)
    label_XYZ = found.label_XYZ[..., inner].cpu().numpy()
    own_MXYZ = _own_labels(values, words, rules, byte_above(label_threshold))[..., inner]
    X, Y, Z = found.label_XYZ.shape
    start, stop, _ = inner.indices(Z)
    ends = found.sizes_K.cumsum(0)[:-1].tolist()
    pairs = (np.split(values_P.cpu().numpy(), ends) for values_P in (found.voxels_P, found.bits_P, found.heat_P.double()))
    return GridAttention(
        organs=tuple(OrganAttention.at((X, Y, Z), *pair).sliced(start, stop) for pair in zip(*pairs, strict=True)),
        label_XYZ=label_XYZ,
        own_labels_MXYZ=own_MXYZ.cpu().numpy(),
        predicted_voxels_K=np.bincount(label_XYZ.ravel(), minlength=256)[list(organs.label_ids)],
    )


def _own_labels(bytes_MKXYZ: Tensor, support_MXYZ: Tensor | None, rules: ByteRules, above: int) -> Tensor:
    """Label ids, uint8 [M, X, Y, Z], of each architecture by itself: of the bytes that count and exceed a bound the largest."""
    best_MXYZ = torch.full_like(bytes_MKXYZ[:, 0], above)
    label_MXYZ = torch.zeros_like(best_MXYZ)
    for k, label_id in enumerate(rules.label_ids):
        counted = bytes_MKXYZ[:, k] if support_MXYZ is None else bytes_MKXYZ[:, k] * (support_MXYZ >> k & 1).to(torch.uint8)
        better = counted > best_MXYZ
        best_MXYZ, label_MXYZ = torch.where(better, counted, best_MXYZ), torch.where(better, label_id, label_MXYZ)
    return label_MXYZ


# --- the plain form -------------------------------------------------------------------------------------------------


@torch.no_grad()
def attend_plainly(values_MKXYZ: Tensor, rules: ByteRules, *, support_MXYZ: Tensor | None = None) -> PackedAttention:
    """`attend` in plain PyTorch, organ by organ, on any device."""
    require_fit(values_MKXYZ, rules, support_MXYZ)
    K, shape = rules.organs, values_MKXYZ.shape[2:]
    words_CXYZ = torch.zeros((3, *shape), dtype=torch.int32, device=values_MKXYZ.device)
    claims_XYZ = torch.zeros_like(words_CXYZ[0])
    best_XYZ, channel_XYZ = torch.full_like(claims_XYZ, rules.label_limit), torch.full_like(claims_XYZ, K)
    for k in range(K):
        counts = None if support_MXYZ is None else (support_MXYZ >> k & 1).bool()
        first, second, total = evidence(levels(values_MKXYZ[:, k]), counts, rules)
        words_CXYZ[0] |= _bit(first > rules.first_limit, k)
        words_CXYZ[1] |= _bit(second > rules.second_limit, k)
        claims_XYZ |= _bit(total > rules.claim_limit, k)
        better = total > best_XYZ
        best_XYZ, channel_XYZ = torch.where(better, total, best_XYZ), torch.where(better, k, channel_XYZ)
    for k, partners in enumerate(rules.partners):
        words_CXYZ[2] |= _bit((claims_XYZ >> k & 1).bool() & (claims_XYZ & partners != 0), k)
    words_CXYZ &= rules.watched
    for k in range(K):
        for word_XYZ in words_CXYZ[:2]:
            fired = (word_XYZ >> k & 1).bool()
            word_XYZ ^= _bit(fired & ~opened(fired, rules.steps), k)
    ids = torch.cat([rules.label_ids, rules.label_ids.new_zeros(1)])
    predicted_K = torch.bincount(channel_XYZ.flatten(), minlength=K + 1)[:K]
    return _gathered(values_MKXYZ, support_MXYZ, rules, ids[channel_XYZ.long()], words_CXYZ, predicted_K)


def levels(values: Tensor) -> Tensor:
    """Levels, int32, of logits or bytes of any shape."""
    if values.dtype == torch.uint8:
        return values.to(torch.int32)
    bounds = level_bounds()[1:256].to(values.device)
    below = torch.bucketize(values.float().contiguous(), bounds, out_int32=True)
    return torch.where(values.isnan(), NAN_LEVEL, below)


def evidence(levels_M: Tensor, counts_M: Tensor | None, rules: ByteRules) -> tuple[Tensor, Tensor, Tensor]:
    """First and second evidence and sum of the levels that count, int32, of [M, ...] levels of one organ (`ByteRules`)."""
    undecided = (levels_M == NAN_LEVEL).any(dim=0)
    known_M = torch.where(levels_M == NAN_LEVEL, 0, levels_M)
    counted_M = known_M if counts_M is None else known_M * counts_M
    total = counted_M.sum(dim=0, dtype=torch.int32)
    parts = rules.parts[levels_M].sum(dim=0, dtype=torch.int32)
    if rules.faithful:
        squares = counted_M.square().sum(dim=0, dtype=torch.int32)
        return rules.architectures * squares - total.square(), parts, total
    first = rules.means[torch.where(undecided, len(rules.means) - 1, known_M.sum(dim=0))]
    return first, torch.where(undecided, 0, (first - parts).clamp_min(0)), total


def heat(first: Tensor, second: Tensor, bits: Tensor, rules: ByteRules) -> Tensor:
    """Heat, float32, of voxels with these bits: the sum of faithful evidence, the strongest of physical."""
    root = first.double().sqrt() if rules.faithful else first  # in float32, torch's square root on CPU is not the nearest float
    first, second = root.float() * rules.first_share, second.float() * rules.second_share
    first, second, third = ((bits >> i & 1) * share for i, share in enumerate((first, second, torch.ones_like(first))))
    return first + second + third if rules.faithful else torch.maximum(torch.maximum(first, second), third)


def _bit(mask: Tensor, k: int) -> Tensor:
    return mask.to(torch.int32) << k


def _gathered(
    values_MKXYZ: Tensor,
    support_MXYZ: Tensor | None,
    rules: ByteRules,
    label_XYZ: Tensor,
    words_CXYZ: Tensor,
    predicted_K: Tensor,
) -> PackedAttention:
    """Sizes, boxes and the attended pairs with their heat."""
    attended_XYZ = words_CXYZ[0] | words_CXYZ[1] | words_CXYZ[2]
    voxels, bits, heats, boxes = [], [], [], []
    for k in range(rules.organs):
        mask = (attended_XYZ >> k & 1).bool()
        (place,) = torch.nonzero(mask.flatten(), as_tuple=True)
        fired = sum((words_CXYZ[i].flatten()[place] >> k & 1) << i for i in range(3))
        counts = None if support_MXYZ is None else (support_MXYZ.flatten(1)[:, place] >> k & 1).bool()
        first, second, _ = evidence(levels(values_MKXYZ[:, k].flatten(1)[:, place]), counts, rules)
        voxels.append(place)
        bits.append(torch.as_tensor(fired).to(torch.uint8))
        heats.append(heat(first, second, bits[-1], rules))
        boxes.append([[part.start, part.stop] for part in _bounding_box(mask) or (slice(0, 0),) * 3])
    return PackedAttention(
        label_XYZ=label_XYZ,
        words_CXYZ=words_CXYZ,
        predicted_K=predicted_K,
        sizes_K=torch.tensor([len(place) for place in voxels], device=place.device),
        boxes_K32=torch.tensor(boxes, device=place.device),
        voxels_P=torch.cat(voxels),
        bits_P=torch.cat(bits),
        heat_P=torch.cat(heats),
    )


# Erosion and dilation by a box separate into one pass of shifts per axis.


def opened(mask_XYZ: Tensor, steps: IntTriple) -> Tensor:
    """Opening with a box of 2 * steps + 1 voxels per axis; outside the array counts as not set.

    Equal to scipy.ndimage.binary_erosion then binary_dilation (border_value 0), each of `n` iterations with the full
    3x3x3 structure, where steps is (n, n, n): a box grown n times from 3x3x3 is the box of 2n + 1.

    Args:
        mask_XYZ: bool.
        steps: voxels to each side, per axis; 0 leaves that axis alone.
    """
    for axis, count in enumerate(steps):
        for _ in range(count):
            mask_XYZ = _eroded_once(mask_XYZ, axis)
    for axis, count in enumerate(steps):
        for _ in range(count):
            mask_XYZ = _dilated_once(mask_XYZ, axis)
    return mask_XYZ


def _eroded_once(mask_XYZ: Tensor, axis: int) -> Tensor:
    """A voxel stays where it and both neighbors along the axis are set; the border has a neighbor outside and goes."""
    result = torch.zeros_like(mask_XYZ)
    inner = mask_XYZ.shape[axis] - 2
    if inner > 0:
        left, middle, right = (mask_XYZ.narrow(axis, start, inner) for start in (0, 1, 2))
        result.narrow(axis, 1, inner).copy_(left & middle & right)
    return result


def _dilated_once(mask_XYZ: Tensor, axis: int) -> Tensor:
    result = mask_XYZ.clone()
    rest = mask_XYZ.shape[axis] - 1
    if rest > 0:
        result.narrow(axis, 1, rest).logical_or_(mask_XYZ.narrow(axis, 0, rest))
        result.narrow(axis, 0, rest).logical_or_(mask_XYZ.narrow(axis, 1, rest))
    return result


def _bounding_box(mask_XYZ: Tensor) -> tuple[slice, slice, slice] | None:
    """The smallest box that holds every set voxel; None where there is none."""
    slices = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        (places,) = torch.nonzero(mask_XYZ.any(dim=others), as_tuple=True)
        if len(places) == 0:
            return None
        slices.append(slice(int(places[0]), int(places[-1]) + 1))
    return slices[0], slices[1], slices[2]
