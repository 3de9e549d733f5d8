"""Ensembles of which some members do not know every organ.

An organ is judged by those who know it: its mean, its label and every criterion are over these alone, and one member by itself is
never in disagreement. A mode counts on as many voices for every organ, so voices are repeated until all have the same number.
Repeating each voice equally often changes neither mean nor deviation nor entropy.

Axes: M members, S voices, K organs, X Y Z.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from atlas_ray.attention.rules import MAX_ARCHITECTURES, byte_above
from atlas_ray.attention.sparse import GridAttention
from atlas_ray.exceptions import ConfigError
from atlas_ray.organs import Organs

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Known = npt.NDArray[np.bool_]


def known_by(members: Sequence[str], absent: Mapping[str, Sequence[str]], organs: Organs) -> Known:
    """[M, K]: which member knows which organ; `absent` lists those that it does not."""
    return np.array([[name not in absent.get(member, ()) for name in organs.names] for member in members])


def voices(known_MK: Known) -> npt.NDArray[np.int64]:
    """[S, K]: the member that speaks for an organ in each place, every one who knows it equally often, in their order.

    An organ that nobody knows is spoken for by the first, whose bytes are 0.

    Raises:
        ConfigError: too many are needed.
    """
    counts = sorted({int(n) for n in known_MK.sum(axis=0) if n})
    places = math.lcm(*counts) if counts else 1
    if places > MAX_ARCHITECTURES:
        raise ConfigError(
            f"organs are known by {', '.join(map(str, counts))} of {len(known_MK)} networks, which takes {places} voices; "
            f"{MAX_ARCHITECTURES} are allowed. Leave the organ out of one more member, or the member out"
        )
    speaking = [np.flatnonzero(known_M) if known_M.any() else np.zeros(1, int) for known_M in known_MK.T]
    return np.stack([np.repeat(members, places // len(members)) for members in speaking], axis=1)


def look_among(
    look: Callable[..., GridAttention],
    known_MK: Known,
    bytes_MKXYZ: Bytes,
    *,
    organs: Organs,
    support_MXYZ: Words,
    label_threshold: float,
    inner: slice,
    **rest: Any,
) -> GridAttention:
    """What a mode says where every organ is judged by those who know it; arguments as the mode's `look`."""
    voices_SK = voices(known_MK)
    spoken_SKXYZ = np.stack([bytes_MKXYZ[members, np.arange(len(organs))] for members in voices_SK])
    words_SXYZ = np.zeros((len(voices_SK), *support_MXYZ.shape[1:]), np.uint32)
    for words_XYZ, members in zip(words_SXYZ, voices_SK, strict=True):
        for k, m in enumerate(members):
            words_XYZ |= support_MXYZ[m] & np.uint32(1 << k)
    found = look(spoken_SKXYZ, organs=organs, support_MXYZ=words_SXYZ, label_threshold=label_threshold, inner=inner, **rest)
    own_MXYZ = np.stack(
        [own_label(*pair, organs, label_threshold) for pair in zip(bytes_MKXYZ[..., inner], support_MXYZ[..., inner], strict=True)]
    )
    return replace(found, own_labels_MXYZ=own_MXYZ)


def own_label(bytes_KXYZ: Bytes, support_XYZ: Words, organs: Organs, threshold: float) -> Bytes:
    """Label ids by one member alone: of the bytes that count and exceed the threshold the largest, the first of equal ones."""
    best_XYZ = np.full(support_XYZ.shape, byte_above(threshold), np.uint8)
    label_XYZ = np.zeros_like(best_XYZ)
    for k, label_id in enumerate(organs.label_ids):
        counted_XYZ = np.where(support_XYZ >> np.uint32(k) & np.uint32(1), bytes_KXYZ[k], 0)
        better = counted_XYZ > best_XYZ
        best_XYZ[better], label_XYZ[better] = counted_XYZ[better], label_id
    return label_XYZ
