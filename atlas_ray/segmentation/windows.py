"""Overlapping windows over a volume: where they lie, what they weigh, and their weighted sum, streamed along the last axis.

Axis letters: K organs, X Y Z.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from atlas_ray.schema import IntTriple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Floats = npt.NDArray[np.float32]


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxel of every window along one axis of `size` voxels.

    As few windows as cover the axis with at least `overlap` of a window between neighbors, spread evenly (nnU-Net's way): the first
    and the last are flush with the border, and what is left over widens every overlap instead of doubling the last one. An axis
    shorter than the window has one.
    """
    if size <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    gaps = math.ceil((size - window) / step)
    return [round(i * (size - window) / gaps) for i in range(gaps + 1)]


def axis_weights(size: int, window: int, starts: list[int]) -> Floats:
    """What each window weighs along one axis, [windows, window]; over every voxel the weights of its windows add up to one.

    A Gaussian with a sigma of an eighth of the window, as nnU-Net and MONAI weigh. Three such vectors multiplied are a window's
    weights; as they add up to one along every axis they do in space, so no volume of summed weights is kept and nothing is divided.
    MONAI clips its product at 1e-3 instead, which tells only where all windows see a voxel with their outermost corners.
    """
    offset = np.arange(window) - (window - 1) / 2
    gaussian = np.exp(-(offset**2) / (2 * (window / 8) ** 2))
    total = np.zeros(max(size, window))
    for start in starts:
        total[start : start + window] += gaussian
    return np.stack([gaussian / total[start : start + window] for start in starts]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows over one volume.

    Args:
        shape: of the volume.
        window: voxels per axis. An axis that is shorter is padded on both sides.
        starts: first voxel of the windows along every axis of the padded volume.
        weights: per axis what they weigh, [windows, window].
    """

    shape: IntTriple
    window: IntTriple
    starts: tuple[list[int], list[int], list[int]]
    weights: tuple[Floats, Floats, Floats]

    @classmethod
    def over(cls, shape: IntTriple, window: IntTriple, overlap: float) -> "Windows":
        """Windows of which neighbors share at least `overlap` along every axis."""
        sizes = list(zip(shape, window, strict=True))
        x, y, z = (window_starts(size, edge, overlap) for size, edge in sizes)
        a, b, c = (axis_weights(size, edge, starts) for (size, edge), starts in zip(sizes, (x, y, z), strict=True))
        return cls(shape, window, (x, y, z), (a, b, c))

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
) -> "Iterator[tuple[slice, Tensor]]":
    """The weighted mean of the windows' logits, a few slices at a time.

    Only a band as deep as a window is kept, in float32 on `device`: 4 K X Y depth bytes, whatever the length of the volume.

    Args:
        forward: windows [B, 1, *window] -> logits [B, K, *window]; B is at most `batch`.
        image_XYZ: the volume the windows lie over.
        prepare: from the image's values to the network's; called once per row of windows. What is padded is 0 after it.
        batch: windows per call; they come from one row, so its last call may have fewer.
        device: where windows are cut and summed.

    Yields:
        slice along Z, logits [K, X, Y, slices]. Slices follow one another without gap; the logits are the band's own memory, the
        caller may overwrite them, and the next step does.
    """
    import torch

    (wx, wy, wz), (xs, ys, zs) = windows.window, windows.starts
    a, b, c = (torch.from_numpy(weights).to(device) for weights in windows.weights)
    (px, _), (py, _), (pz, _) = windows.padding
    nx, ny, nz = windows.shape
    corners = list(product(range(len(xs)), range(len(ys))))
    band = None
    for row, z in enumerate(zs):
        slab = np.pad(prepare(image_XYZ[..., z : z + wz]), windows.padding)
        slab_XYZ = torch.from_numpy(slab).to(device)
        for first in range(0, len(corners), batch):
            some = corners[first : first + batch]
            logits = forward(torch.stack([slab_XYZ[xs[i] : xs[i] + wx, ys[j] : ys[j] + wy] for i, j in some])[:, None])
            if band is None:
                band = _empty_band(logits, (max(nx, wx), max(ny, wy), wz))
            for (i, j), logits_KXYZ in zip(some, logits, strict=True):
                weight = a[i][:, None, None] * b[j][:, None] * c[row]
                band[:, xs[i] : xs[i] + wx, ys[j] : ys[j] + wy].addcmul_(logits_KXYZ.float(), weight)
        assert band is not None  # a row has at least one window
        done = zs[row + 1] - z if row + 1 < len(zs) else wz
        yield slice(z, min(z + done, nz)), band[:, px : px + nx, py : py + ny, pz : pz + min(done, nz)]
        _advance(band, done)


def _empty_band(logits: "Tensor", shape: IntTriple) -> "Tensor":
    """Zeros [K, *shape] in the memory order of the network's answer: adding across orders takes four times as long."""
    import torch

    last = logits.is_contiguous(memory_format=torch.channels_last_3d) and not logits.is_contiguous()
    order = torch.channels_last_3d if last else torch.contiguous_format
    return torch.empty((1, logits.shape[1], *shape), device=logits.device, memory_format=order).zero_()[0]


def _advance(band: "Tensor", done: int) -> None:
    """Move the band on by `done` slices, in steps that do not overlap, so that no second band is needed."""
    keep = band.shape[-1] - done
    for first in range(0, keep, done):
        n = min(done, keep - first)
        band[..., first : first + n].copy_(band[..., first + done : first + done + n])
    band[..., keep:].zero_()
