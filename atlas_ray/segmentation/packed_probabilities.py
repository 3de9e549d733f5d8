"""Probabilities on their way between processes: compressed, and read a piece at a time.

Nine organs fill a few percent of a CT and are 0 elsewhere, so lz4 alone makes their bytes about 60 times smaller, faster than a
network of machines would carry them. One architecture is one piece of bytes.

Axes: M architectures, K organs, X Y Z. Z is the slowest axis in memory, as the ensemble makes them.
"""

from collections.abc import Sequence
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

from atlas_ray.schema import IntTriple

SLICES = 16  # that are unpacked together; a slab of the image reads few more than it needs


def pack(bytes_KXYZ: npt.NDArray[np.uint8]) -> bytes:
    """One architecture's probabilities, 0..255, compressed."""
    bytes_KZYX = np.ascontiguousarray(bytes_KXYZ.swapaxes(1, 3))
    _, z, y, x = bytes_KZYX.shape
    chunks = (1, min(z, SLICES), y, x)
    plain = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.NOFILTER], "nthreads": 1}
    packed: bytes = blosc2.asarray(bytes_KZYX, chunks=chunks, cparams=plain).to_cframe()
    return packed


class PackedProbabilities:
    """What `pack` made of every architecture, indexed like an array [M, K, X, Y, Z] by two numbers, with or without three slices.

    Args:
        packed_M: one `pack` per architecture, all of one shape.
    """

    def __init__(self, packed_M: Sequence[bytes]) -> None:
        self._arrays = [blosc2.ndarray_from_cframe(packed) for packed in packed_M]

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        k, z, y, x = self._arrays[0].shape
        return len(self._arrays), k, x, y, z

    @property
    def grid(self) -> IntTriple:
        """Voxels along X, Y, Z."""
        _, _, x, y, z = self.shape
        return x, y, z

    def __getitem__(self, where: Any, /) -> npt.NDArray[np.uint8]:
        m, k, *box = where
        x, y, z = box or (slice(None),) * 3
        piece: npt.NDArray[Any] = self._arrays[m][k, z, y, x]
        return piece.T
