"""Volumes to measure with: shapes of nine ellipsoids, not anatomy, with the noise and the emptiness of a real case."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

ORGANS = 9
NATIVE_SPACING = (0.7, 0.7, 1.5)
SEED = 0


def distances(shape: Sequence[int], *, shift: float = 0.0) -> Iterator[np.ndarray]:
    """Organ by organ, float32 [X, Y, Z]: 0 in its middle, 1 on its surface. The same patient at any resolution."""
    rng = np.random.default_rng(SEED)
    axes = np.meshgrid(*((np.arange(n, dtype=np.float32) + 0.5) / n for n in shape), indexing="ij", sparse=True)
    for _ in range(ORGANS):
        center, radius = rng.uniform(0.3, 0.7, 3) + shift, rng.uniform(0.05, 0.16, 3)
        squares = (((a - c) / r) ** 2 for a, c, r in zip(axes, center.astype(np.float32), radius.astype(np.float32), strict=True))
        yield np.sqrt(sum(squares))


def labels(shape: Sequence[int]) -> np.ndarray:
    """uint8 [X, Y, Z], x fastest as files have it."""
    result = np.zeros(shape, np.uint8, order="F")
    for k, distance in enumerate(distances(shape)):
        result[distance < 1] = k + 1
    return result


def ct(shape: Sequence[int]) -> np.ndarray:
    """int16 HU, x fastest: air, a body, organs of 20 HU more each, and noise of 15 HU as smooth as a soft kernel leaves it."""
    rng = np.random.default_rng(SEED)
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:2]), indexing="ij")
    body = (x / 0.85) ** 2 + (y / 0.6) ** 2 < 1
    voxels = np.where(body[..., None], 20 + 20 * labels(shape).astype(np.float32), np.float32(-1000))
    noise = gaussian_filter(rng.standard_normal(shape, np.float32), 0.7)
    return np.asfortranarray(np.rint(voxels + noise * (15 / noise.std())).astype(np.int16))


def probabilities(shape: Sequence[int], members: int = 1) -> np.ndarray:
    """uint8 [M, K, X, Y, Z], x fastest: round(255 p) with p falling off around every organ, each member a little elsewhere."""
    result = np.empty((members, ORGANS, *shape[::-1]), np.uint8).swapaxes(-1, -3)
    for m in range(members):
        for k, distance in enumerate(distances(shape, shift=0.004 * m)):
            result[m, k] = np.rint(255 / (1 + np.exp(np.minimum(20 * (distance - 1), 80))))
    return result
