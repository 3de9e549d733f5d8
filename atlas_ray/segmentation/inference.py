"""Sliding-window prediction of an ensemble on one volume at the networks' spacing.

Axis letters: M architectures, K organs, X Y Z.
"""

import logging
import mmap
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, PositiveInt

from atlas_ray.schema import IntTriple, Schema, Triple
from atlas_ray.segmentation.acceleration import accelerate
from atlas_ray.segmentation.coarse import Coarse, Region, cut_off, find_region
from atlas_ray.segmentation.precision import Precision
from atlas_ray.segmentation.windows import Windows, slide

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

log = logging.getLogger(__name__)
Overlap = Annotated[float, Field(ge=0, lt=1)]


class Inference(Schema):
    """How windows slide over a volume. Defaults are the paper's (96^3, overlap 0.75, Gaussian weights).

    An overlap of 0.5 needs about a quarter of the windows. On four semi-synthetic holdout cases it cost the ensemble of three small
    networks 0.015 of Dice (0.009 to 0.020; windows of 64x32x32 at 4 mm), so it is not the default. Published losses of well trained
    networks are near 0.001; measure yours with benchmarks/accuracy.py before trading.

    Args:
        window: voxels per axis at the networks' spacing.
        overlap: share of a window that the next one covers again, at least.
        overlaps: architecture -> an overlap of its own.
        batch: windows per forward pass. A network whose norm uses batch statistics needs 1 (paper-algorithm a.11).
        precision: of the networks ("auto": bfloat16 where the machine has units for it); sums are float32.
        compile: by torch.compile, where that is faster than what `accelerate` has of its own; the first window then takes minutes.
        coarse: a quick look first, then only the organs' box; None predicts the whole volume.
        memory_gb: a larger result lies in a file that is mapped into memory.
    """

    window: IntTriple = (96, 96, 96)
    overlap: Overlap = 0.75
    overlaps: dict[str, Overlap] = Field(default_factory=dict)
    batch: PositiveInt = 1
    precision: Precision = "auto"
    compile: bool = False
    coarse: Coarse | None = None
    memory_gb: NonNegativeFloat = 2.0

    def overlap_of(self, architecture: str) -> float:
        """The overlap one architecture is run with."""
        return self.overlaps.get(architecture, self.overlap)

    def prepare(
        self, network: "nn.Module", *, device: "torch.device | str", cache_dir: Path | None = None
    ) -> "Callable[[Tensor], Tensor]":
        """A network as a member of an ensemble, with its weights as they are now; see `accelerate`."""
        return accelerate(
            network,
            device=device,
            precision=self.precision,
            window=self.window,
            batch=self.batch,
            compile=self.compile,
            cache_dir=cache_dir,
        )

    @property
    def architectures(self) -> tuple[str, ...]:
        """Every architecture that is named here."""
        return (*self.overlaps, *((self.coarse.architecture,) if self.coarse else ()))


@dataclass(frozen=True, slots=True)
class EnsemblePrediction:
    """What the members say of one volume.

    Args:
        bytes_MKXYZ: round(255 * probability). In memory Z is the slowest axis of the three and X the fastest, so that a slice along
            Z lies together: that is how they are made and read, and how a mapped file wants them.
        region: what was predicted; outside of it every probability is 0.
    """

    bytes_MKXYZ: npt.NDArray[np.uint8]
    region: Region


def normalize(hu: npt.NDArray[np.generic], window_hu: tuple[float, float]) -> npt.NDArray[np.float32]:
    """HU -> 0..1, clipped to the window (paper: -175..250)."""
    low, high = window_hu
    clipped = np.clip(hu, low, high).astype(np.float32)
    return np.asarray((clipped - low) / (high - low), np.float32)


def predict_ensemble(
    members: "Mapping[str, Callable[[Tensor], Tensor]]",
    image_XYZ: npt.NDArray[np.int16],
    settings: Inference,
    *,
    window_hu: tuple[float, float],
    spacing: Triple,
    device: "torch.device | str",
    sums_on_cpu: bool = False,
    scratch_dir: Path | None = None,
) -> EnsemblePrediction:
    """Sigmoid probabilities of every member, as bytes.

    Members take turns, each over the whole volume: one band of sums is held instead of one per member, and cutting a window anew
    costs a thousandth of what a network does with it.

    Args:
        members: architecture -> windows [B, 1, *window] on `device` to logits [B, K, *window].
        image_XYZ: CT in RAS at the networks' spacing, HU.
        window_hu: HU that become 0 and 1.
        spacing: mm per voxel.
        device: of the networks.
        sums_on_cpu: sum the windows in the machine's memory, for a volume too large for the device's.
        scratch_dir: where a result above `memory_gb` gets its file, which vanishes with the array. None is the system's temporary
            folder; one that is itself in memory saves nothing.
    """
    import torch

    sums_on = "cpu" if sums_on_cpu else device
    run = partial(_predict, image_XYZ, window_hu=window_hu, device=device, sums_on=sums_on, scratch_dir=scratch_dir)
    whole = Region.whole(image_XYZ.shape)
    with torch.inference_mode():
        if (coarse := settings.coarse) is None:
            return EnsemblePrediction(run(members, settings, whole), whole)
        look = settings.model_copy(update={"overlap": coarse.overlap, "overlaps": {}})
        seen = run({coarse.architecture: members[coarse.architecture]}, look, whole)[0]
        region = find_region(seen, coarse, spacing=spacing, least=settings.window)
        del seen  # before the next one is made
        result = run(members, settings, region)
        if not region.why_whole and (why := cut_off(result, region.box, coarse)):
            del result
            region = Region.whole(image_XYZ.shape, why)
            result = run(members, settings, region)
    log.info(
        "coarse pass: %s",
        f"the whole volume, {region.why_whole}" if region.why_whole else f"box {_edges(region)} of {image_XYZ.shape}",
    )
    return EnsemblePrediction(result, region)


def _predict(
    image_XYZ: npt.NDArray[np.int16],
    members: "Mapping[str, Callable[[Tensor], Tensor]]",
    settings: Inference,
    region: Region,
    *,
    window_hu: tuple[float, float],
    device: "torch.device | str",
    sums_on: "torch.device | str",
    scratch_dir: Path | None,
) -> npt.NDArray[np.uint8]:
    """bytes_MKXYZ over the whole volume, predicted inside the region."""
    import torch

    from atlas_ray.segmentation.memory import give_back

    x, y, z = region.box
    image = image_XYZ[region.box]
    result: ByteStore | None = None
    for m, (name, forward) in enumerate(members.items()):
        windows = Windows.over(image.shape, settings.window, settings.overlap_of(name))
        prepare = partial(normalize, window_hu=window_hu)
        sums = slide(forward, image, windows, prepare=prepare, batch=settings.batch, device=device, sums_on=sums_on)
        for slices, logits_KXYZ in sums:
            if result is None:
                result = ByteStore((len(members), len(logits_KXYZ), *image_XYZ.shape), settings.memory_gb, scratch_dir)
            done = slice(z.start + slices.start, z.start + slices.stop)
            made = logits_KXYZ.sigmoid_().mul_(255).add_(0.5).to(torch.uint8)  # truncates: rounds
            torch.from_numpy(result.array[m, :, x, y, done]).copy_(made)
            result.release()
        give_back()  # or every member's feature maps would stay, gigabytes together
    assert result is not None  # there is always a member
    return result.array


class ByteStore:
    """Zeros of any shape that ends with X, Y, Z, of these Z slowest, in memory or in a nameless file mapped into it.

    Args:
        shape: such as [M, K, X, Y, Z].
        memory_gb: what is larger gets a file.
        scratch_dir: where that lies; None is the system's temporary folder.
    """

    def __init__(self, shape: tuple[int, ...], memory_gb: float, scratch_dir: Path | None) -> None:
        *channels, nx, ny, nz = shape
        size = int(np.prod(shape))
        self._pages: mmap.mmap | None = None
        if size <= memory_gb * 2**30:
            flat = np.zeros(size, np.uint8)
        else:
            with tempfile.TemporaryFile(dir=scratch_dir) as file:  # the mapping outlives the name and the handle
                file.truncate(size)
                self._pages = mmap.mmap(file.fileno(), size)
            flat = np.frombuffer(self._pages, np.uint8)
        self.array = flat.reshape(*channels, nz, ny, nx).swapaxes(-1, -3)

    def release(self) -> None:
        """Let go of the pages written so far: the file has them, this process need not hold them."""
        if self._pages is not None:
            self._pages.madvise(mmap.MADV_DONTNEED)


def _edges(region: Region) -> str:
    return " x ".join(f"{extent.start}:{extent.stop}" for extent in region.box)
