"""Training patches: balanced sampling from the cache, and augmentation.

Everything drawn depends only on (seed, step, worker), so a training that resumes draws what it would have drawn.
Axis letters: B batch, K organs, X Y Z.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from atlas_ray.organs import LabelMap, Organs
from atlas_ray.schema import Fraction, IntTriple, Schema
from atlas_ray.storage import kept_local

if TYPE_CHECKING:
    import blosc2

AIR_HU = -1024


Patch = tuple[npt.NDArray[np.float32], LabelMap, npt.NDArray[np.uint8]]  # HU, labels, focus: [X, Y, Z] of one place


@dataclass(frozen=True, slots=True)
class CachedCase:
    """One training case.

    Args:
        image: int16 HU [X, Y, Z]; slicing it reads and inflates what the slices touch.
        label: uint8 label ids [X, Y, Z], likewise.
        foreground: int16 [K, N, 3], voxels of every organ, -1 beyond the last.
        trust: float32 [K], how much its label of an organ counts in the loss; 0 where nothing is known of the organ.
        revised: bool [K], the organs whose label a person has changed.
        focus: uint8 [X, Y, Z], 1 where a changed organ had attention; None where nothing had.
        is_annotated: whether a person has annotated any of it in this campaign.
    """

    image: "npt.NDArray[np.int16] | blosc2.NDArray"
    label: "LabelMap | blosc2.NDArray"
    foreground: npt.NDArray[np.int16]
    trust: npt.NDArray[np.float32]
    revised: npt.NDArray[np.bool_]
    focus: "npt.NDArray[np.uint8] | blosc2.NDArray | None" = None
    is_annotated: bool = False

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """[K], the organs with ground truth and at least one voxel."""
        return np.asarray((self.trust > 0) & (self.foreground[:, 0, 0] >= 0), bool)


@dataclass(frozen=True, slots=True)
class Batch:
    """What a training step sees.

    Args:
        hu_B1XYZ: float32.
        targets_BKXYZ: uint8, 0 or 1.
        trust_BK: float32, how much a case's label of an organ counts; 0 is unknown.
        revised_BK: bool, the organs that a person changed.
        focus_BXYZ: uint8, 1 where a changed organ had attention.
    """

    hu_B1XYZ: npt.NDArray[np.float32]
    targets_BKXYZ: npt.NDArray[np.uint8]
    trust_BK: npt.NDArray[np.float32]
    revised_BK: npt.NDArray[np.bool_]
    focus_BXYZ: npt.NDArray[np.uint8]


def open_cached(
    folder: Path,
    trust: npt.NDArray[np.float32],
    *,
    revised: npt.NDArray[np.bool_] | None = None,
    is_annotated: bool = False,
) -> CachedCase:
    """Open a cache entry; no voxel is read before a patch is. `revised` is no organ where it is None."""
    import blosc2

    folder = kept_local(folder)
    names = [name for name in ("image", "label", "focus") if (folder / f"{name}.b2nd").exists() or name != "focus"]
    safely = {"mode": "r", "dparams": {"nthreads": 1}, "deserialize": "safe"}  # arrays only, never a recipe that is run
    image, label, *focus = (blosc2.open(str(folder / f"{name}.b2nd"), **safely) for name in names)
    return CachedCase(
        image,
        label,
        np.load(folder / "foreground.npy", mmap_mode="r"),
        np.asarray(trust, np.float32),
        np.zeros(len(trust), bool) if revised is None else revised,
        focus[0] if focus else None,
        is_annotated,
    )


class Augmentation(Schema):
    """Random changes of a patch.

    Args:
        rotate_deg, scale: largest rotation about each axis and relative change of size.
        affine_probability: share of patches that are moved.
        shift_hu, gain: largest offset in HU and relative change of contrast.
        noise_hu: largest standard deviation of added noise.
        mirror: share of patches whose left and right are exchanged. Organs that come in pairs exchange their labels with it; what
            has no other side in the organ set is unknown in a mirrored patch. Off by default: nobody's liver lies on the left.
    """

    rotate_deg: float = Field(default=10.0, ge=0)
    scale: Fraction = 0.1
    affine_probability: Fraction = 0.5
    shift_hu: float = Field(default=20.0, ge=0)
    gain: Fraction = 0.1
    noise_hu: float = Field(default=10.0, ge=0)
    mirror: Fraction = 0.0


class PatchSampling(Schema):
    """Which patches are drawn.

    Args:
        patch: voxels per axis at the networks' spacing.
        foreground: share of patches centered on a voxel of a known organ (the paper's 2:1).
        balance: how that organ is chosen. "organ": every organ equally often, then a case that has it: what few cases are labeled
            for is seen as often as what all are. "case": every case equally often, then one of its organs.
        replay: share of patches from cases that nobody has annotated in this campaign, so that fine-tuning on few annotated ones
            forgets nothing, and later rounds do not forget what earlier ones were annotated for; None draws every case equally
            often. Without a case of either kind it does nothing.
    """

    patch: IntTriple = (96, 96, 96)
    foreground: Fraction = 0.67
    balance: Literal["organ", "case"] = "organ"
    replay: Fraction | None = None
    augmentation: Augmentation = Augmentation()


class Deck:
    """The cases patches are drawn from, and which organs each has."""

    def __init__(self, cases: Sequence[CachedCase]) -> None:
        self.cases = cases
        self._present_NK = np.stack([case.present for case in cases])
        self._is_annotated = np.array([case.is_annotated for case in cases])

    def draw(self, sampling: PatchSampling, rng: np.random.Generator) -> tuple[CachedCase, int | None]:
        """A case, and the organ to look at; None for any place of the volume."""
        among = self._replayed(sampling.replay, rng)
        wants_organ = rng.random() < sampling.foreground
        if wants_organ and sampling.balance == "organ" and len(organs := np.flatnonzero(self._present_NK[among].any(axis=0))):
            organ = int(rng.choice(organs))
            return self.cases[int(rng.choice(among[self._present_NK[among, organ]]))], organ
        chosen = int(rng.choice(among))
        organs = np.flatnonzero(self._present_NK[chosen])
        return self.cases[chosen], int(rng.choice(organs)) if wants_organ and len(organs) else None

    def _replayed(self, replay: float | None, rng: np.random.Generator) -> npt.NDArray[np.intp]:
        """Numbers of the cases one is chosen from: the annotated ones or the others, where both exist."""
        if replay is None or self._is_annotated.all() or not self._is_annotated.any():
            return np.arange(len(self.cases))
        return np.flatnonzero(self._is_annotated != (rng.random() < replay))


def draw_batch(deck: Deck, organs: Organs, sampling: PatchSampling, *, size: int, seed: int, step: int, worker: int) -> Batch:
    """One batch of patches; the same for the same numbers."""
    rng = np.random.default_rng((seed, step, worker))
    drawn = [_draw(deck, organs, sampling, rng) for _ in range(size)]
    return Batch(*(np.stack(parts) for parts in zip(*drawn, strict=True)))


def _draw(deck: Deck, organs: Organs, sampling: PatchSampling, rng: np.random.Generator) -> tuple[npt.NDArray[Any], ...]:
    """One patch: the parts of a Batch, without B."""
    case, organ = deck.draw(sampling, rng)
    hu, label, focus = _cut(case, _corner(case, organ, sampling, rng), sampling.patch)
    hu, label, focus = augment((hu, label, focus), sampling.augmentation, rng)
    patch = (hu[None], organs.channels(label).astype(np.uint8), case.trust, case.revised, focus)
    mirror = sampling.augmentation.mirror
    return mirrored(patch, organs) if mirror and rng.random() < mirror else patch


def mirrored(patch: tuple[npt.NDArray[Any], ...], organs: Organs) -> tuple[npt.NDArray[Any], ...]:
    """A patch with left and right exchanged, organs included. Patches are RAS, so X is left to right."""
    hu_1XYZ, targets_KXYZ, trust_K, revised_K, focus_XYZ = patch
    other = np.array(organs.mirrored)
    has_other = other >= 0
    return (
        hu_1XYZ[:, ::-1],
        targets_KXYZ[other][:, ::-1],
        np.where(has_other, trust_K[other], np.float32(0)),
        has_other & revised_K[other],
        focus_XYZ[::-1],
    )


def _corner(case: CachedCase, organ: int | None, sampling: PatchSampling, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """First voxel of a patch; may lie outside where the volume is smaller than the patch."""
    shape, patch = np.array(case.image.shape), np.array(sampling.patch)
    if organ is not None:
        voxels = case.foreground[organ]
        count = int(np.searchsorted(voxels[:, 0] < 0, True))
        center = voxels[int(rng.integers(count))].astype(np.intp)
        corner = center - patch // 2 + rng.integers(-patch // 4, patch // 4 + 1)
    else:
        corner = rng.integers(np.minimum(0, shape - patch), np.maximum(1, shape - patch + 1))
    low, high = np.minimum(0, shape - patch), np.maximum(0, shape - patch)
    return np.asarray(np.clip(corner, low, high), np.intp)


def _cut(
    case: CachedCase, corner: npt.NDArray[np.intp], patch: IntTriple
) -> tuple[npt.NDArray[np.float32], LabelMap, npt.NDArray[np.uint8]]:
    """Read one patch: HU, label, focus. What lies outside the volume is air without organs."""
    hu = np.full(patch, AIR_HU, np.float32)
    label, focus = np.zeros(patch, np.uint8), np.zeros(patch, np.uint8)
    inside, target = [], []
    for start, edge, n in zip(corner, patch, case.image.shape, strict=True):
        low, high = max(0, int(start)), min(n, int(start) + edge)
        inside.append(slice(low, high))
        target.append(slice(low - int(start), high - int(start)))
    hu[tuple(target)] = case.image[tuple(inside)]
    label[tuple(target)] = case.label[tuple(inside)]
    if case.focus is not None:
        focus[tuple(target)] = case.focus[tuple(inside)]
    return hu, label, focus


def augment(patch: Patch, settings: Augmentation, rng: np.random.Generator) -> Patch:
    """Rotate, scale, shift and noise one patch; label, focus and image move together."""
    if settings.affine_probability and rng.random() < settings.affine_probability:
        patch = _move(patch, settings, rng)
    hu_XYZ, label_XYZ, focus_XYZ = patch
    gain = 1 + settings.gain * rng.uniform(-1, 1)
    shift = settings.shift_hu * rng.uniform(-1, 1)
    noise = rng.standard_normal(hu_XYZ.shape, np.float32) * np.float32(settings.noise_hu * rng.random())
    return np.asarray(hu_XYZ * np.float32(gain) + np.float32(shift) + noise, np.float32), label_XYZ, focus_XYZ


def _move(patch: Patch, settings: Augmentation, rng: np.random.Generator) -> Patch:
    import torch
    import torch.nn.functional as F
    from scipy.spatial.transform import Rotation

    hu_XYZ, label_XYZ, focus_XYZ = patch
    rotation = Rotation.from_euler("xyz", settings.rotate_deg * rng.uniform(-1, 1, 3), degrees=True).as_matrix()
    matrix = rotation * (1 + settings.scale * rng.uniform(-1, 1, 3))
    edges = np.array(hu_XYZ.shape[::-1])  # grid_sample counts the last axis first, each axis from -1 to 1
    theta = np.zeros((1, 3, 4), np.float32)
    theta[0, :, :3] = matrix * edges[None, :] / edges[:, None]
    grid = F.affine_grid(torch.from_numpy(theta), [1, 1, *hu_XYZ.shape], align_corners=False)

    def sample(array: npt.NDArray[Any], mode: str) -> npt.NDArray[Any]:
        given = torch.from_numpy(array.astype(np.float32))[None, None]
        moved: npt.NDArray[Any] = F.grid_sample(given, grid, mode=mode, padding_mode="border", align_corners=False)[0, 0].numpy()
        return moved

    def pick(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return np.rint(sample(array, "nearest")).astype(np.uint8) if array.any() else array

    return sample(hu_XYZ, "bilinear"), pick(label_XYZ), pick(focus_XYZ)
