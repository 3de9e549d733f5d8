"""Overlapping windows over a volume: where they lie, what they weigh, and their weighted sum, streamed along the last axis.

Axis letters: K organs, X Y Z.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from atlas_ray.schema import IntTriple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Floats = npt.NDArray[np.float32]
Spread = Literal["even", "nnunet", "monai"]
Weighting = Literal["gaussian", "nnunet", "constant"]


def window_starts(size: int, window: int, overlap: float, spread: Spread = "even") -> list[int]:
    """First voxel of every window along one axis of `size` voxels. An axis shorter than the window has one.

    Args:
        spread: "even": as few windows as cover the axis with at least `overlap` of a window between neighbors, spread evenly: the
            first and the last are flush with the border, and what is left over widens every overlap instead of doubling the last
            one. "nnunet": the same with a step that need not be whole, as nnU-Net has it. "monai": whole steps from 0 on, the last
            window moved back until it is flush, as MONAI's SlidingWindowInferer has it.
    """
    if size <= window:
        return [0]
    step = window * (1 - overlap) if spread == "nnunet" else max(1, int(window * (1 - overlap)))
    gaps = math.ceil((size - window) / step)
    if spread == "monai":
        return [min(i * int(step), size - window) for i in range(gaps + 1)]
    return [round(i * (size - window) / gaps) for i in range(gaps + 1)]


def window_weights(window: IntTriple, weighting: Weighting = "gaussian") -> Floats:
    """What each voxel of a window weighs in the mean, [x, y, z]: the product of three Gaussians with a sigma of an eighth of the
    window, at least 1e-3. It is MONAI's `mode="gaussian"`.

    "nnunet" is nnU-Net's: a filtered point, centered on a voxel and cut off at four sigma, times ten in half precision, whose zeros
    become its smallest value. "constant" weighs all alike.

    Without the floor the weights would stay separable, and no sum of weights would be needed; but along the volume's edges it
    decides how much windows are averaged, and a weakly trained Swin UNETR lost 0.003 of Dice without it.
    """
    if weighting == "constant":
        return np.ones(window, np.float32)
    if weighting == "nnunet":
        return _nnunet_weights(window)
    axes = []
    for edge in window:
        offset = np.arange(edge) - (edge - 1) / 2
        axes.append(np.exp(-(offset**2) / (2 * (edge / 8) ** 2)))
    x, y, z = axes
    return np.asarray(np.maximum(x[:, None, None] * y[:, None] * z, 1e-3), np.float32)


def _nnunet_weights(window: IntTriple) -> Floats:
    from scipy.ndimage import gaussian_filter

    point = np.zeros(window)
    point[tuple(edge // 2 for edge in window)] = 1
    spread = gaussian_filter(point, [edge / 8 for edge in window], mode="constant")
    weights = (spread / (spread.max() / 10)).astype(np.float16).astype(np.float32)
    return np.asarray(np.where(weights == 0, weights[weights > 0].min(), weights), np.float32)


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows over one volume.

    Args:
        shape: of the volume.
        window: voxels per axis. An axis that is shorter is padded on both sides.
        starts: first voxel of the windows along every axis of the padded volume.
    """

    shape: IntTriple
    window: IntTriple
    starts: tuple[list[int], list[int], list[int]]

    @classmethod
    def over(cls, shape: IntTriple, window: IntTriple, overlap: float, spread: Spread = "even") -> "Windows":
        """Windows of which neighbors share at least `overlap` along every axis."""
        x, y, z = (window_starts(size, edge, overlap, spread) for size, edge in zip(shape, window, strict=True))
        return cls(shape, window, (x, y, z))

    def __len__(self) -> int:
        return math.prod(len(starts) for starts in self.starts)

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Voxels added before and after every axis."""
        missing = [max(0, edge - size) for size, edge in zip(self.shape, self.window, strict=True)]
        return tuple((n // 2, n - n // 2) for n in missing)


def slide(
    forward: "Callable[[Tensor], Tensor]",
    image_XYZ: npt.NDArray[Any],
    windows: Windows,
    *,
    prepare: Callable[[npt.NDArray[Any]], Floats],
    batch: int,
    device: "torch.device | str",
    sums_on: "torch.device | str | None" = None,
    weighting: Weighting = "gaussian",
) -> "Iterator[tuple[slice, Tensor]]":
    """The weighted mean of the windows' logits, a few slices at a time.

    Only a band as deep as a window is kept, in float32 on `sums_on`: 4 (K + 1) X Y depth bytes, whatever the volume's length.

    Args:
        forward: windows [B, 1, *window] -> logits [B, K, *window]; B is at most `batch`.
        image_XYZ: the volume the windows lie over.
        prepare: from the image's values to the network's; called once per row of windows. What is padded is 0 after it.
        batch: windows per call; they come from one row, so its last call may have fewer.
        device: where windows are cut.
        sums_on: where they are summed; None is `device`.
        weighting: see `window_weights`.

    Yields:
        slice along Z, logits [K, X, Y, slices]. Slices follow one another without gap; the logits are the band's own memory, the
        caller may overwrite them, and the next step does.
    """
    import torch

    (nx, ny, nz), (wx, wy, wz), (xs, ys, zs) = windows.shape, windows.window, windows.starts
    sums_on = device if sums_on is None else sums_on
    weight = torch.from_numpy(window_weights(windows.window, weighting)).to(sums_on)
    total = torch.zeros((max(nx, wx), max(ny, wy), wz), device=sums_on)  # of the weights
    (px, _), (py, _), (pz, _) = windows.padding
    corners = list(product(xs, ys))
    band = None
    for row, z in enumerate(zs):
        slab = np.pad(prepare(image_XYZ[..., z : z + wz]), windows.padding)
        slab_XYZ = torch.from_numpy(slab).to(device)
        for first in range(0, len(corners), batch):
            some = corners[first : first + batch]
            logits = forward(torch.stack([slab_XYZ[x : x + wx, y : y + wy] for x, y in some])[:, None])
            if band is None:
                band = torch.zeros((logits.shape[1], *total.shape), device=sums_on)
            for (x, y), logits_KXYZ in zip(some, logits.to(sums_on), strict=True):
                band[:, x : x + wx, y : y + wy].addcmul_(logits_KXYZ.float(), weight)
                total[x : x + wx, y : y + wy] += weight
        assert band is not None  # a row has at least one window
        done = zs[row + 1] - z if row + 1 < len(zs) else wz
        band[..., :done] /= total[..., :done]
        yield slice(z, min(z + done, nz)), band[:, px : px + nx, py : py + ny, pz : pz + min(done, nz)]
        _advance(band, done)
        _advance(total, done)


def _advance(band: "Tensor", done: int) -> None:
    """Move a band on by `done` slices, in steps that do not overlap, so that no second band is needed."""
    keep = band.shape[-1] - done
    for first in range(0, keep, done):
        n = min(done, keep - first)
        band[..., first : first + n].copy_(band[..., first + done : first + done + n])
    band[..., keep:].zero_()
