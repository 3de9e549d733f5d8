"""Mask tools that need more than the browser: each turns one organ's mask into a proposal, which the annotator takes as a step.

Masks and images are [X, Y, Z] in file order of the image's own grid; sizes are mm and mm3, whatever the spacing. A tool may change
voxels inside its box only, though it looks beyond it, and it gives no voxel to the organ that another organ protects.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from atlas_ray.exceptions import AtlasError
from atlas_ray.schema import Schema, Triple

Mask = npt.NDArray[np.bool_]
Span = tuple[NonNegativeInt, NonNegativeInt]  # start and stop voxel, stop excluded
Box = tuple[Span, Span, Span]
Slices = tuple[slice, slice, slice]
Reach = Annotated[float, Field(gt=0, le=50)]  # mm
MAX_WALKED_VOXELS = 300_000  # the random walker solves one linear system over its box; this takes some seconds
NOISE_MM = 1.0  # the walker would take noise for steps in HU; a Gaussian of this size is laid over the box first
NEIGHBORS = 26


class ToolError(AtlasError):
    """A tool cannot do what it is asked to; says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What a tool looks at.

    Args:
        mask: of the organ.
        spacing: mm, array-axis order.
        image: reads the CT [X, Y, Z] in HU; called only by tools that need it.
    """

    mask: Mask
    spacing: Triple
    image: Callable[[], npt.NDArray[np.int16]]


class Proposal(Schema):
    """What every tool is told.

    Args:
        rev: the revision the annotator sees.
        box: where the mask may change; None is everywhere.
        protect: keep other organs' voxels, but for those the organ may touch.
    """

    rev: NonNegativeInt
    box: Box | None = None
    protect: bool = True

    def slices(self, shape: tuple[int, ...]) -> Slices:
        """The box as an index. Raises ToolError where it does not lie in the volume."""
        spans = self.box or tuple((0, n) for n in shape)
        if any(not start < stop <= n for (start, stop), n in zip(spans, shape, strict=True)):
            raise ToolError(f"box {list(map(list, spans))} does not lie in a volume of {' x '.join(map(str, shape))} voxels")
        x, y, z = (slice(start, stop) for start, stop in spans)
        return x, y, z


class Interpolate(Proposal):
    """Fill empty slices between painted ones: the signed distances to the two outlines are mixed by the slice's place.

    Herman, Zheng, Bucholtz: Shape-based interpolation, IEEE CG&A 12 (1992). Not covered: outlines that do not overlap in projection
    are joined by nothing.

    Args:
        axis: the file axis across the slices.
        start, stop: first and last slice looked at ("from", "to"); None is the mask's own.
    """

    tool: Literal["interpolate"]
    axis: Literal[0, 1, 2]
    start: NonNegativeInt | None = Field(default=None, alias="from")
    stop: NonNegativeInt | None = Field(default=None, alias="to")

    def apply(self, subject: Subject) -> Mask:
        result = subject.mask.copy(order="K")
        slices = np.moveaxis(result, self.axis, 0)
        stop = None if self.stop is None else self.stop + 1
        painted = (self.start or 0) + np.flatnonzero(slices[self.start : stop].any(axis=(1, 2)))
        in_plane = tuple(step for axis, step in enumerate(subject.spacing) if axis != self.axis)
        for low, high in itertools.pairwise(painted):
            if high - low > 1:
                window = _window(slices[low] | slices[high], margin=(1, 1))
                below, above = (_signed_distance(slices[n][window], in_plane) for n in (low, high))
                for n in range(low + 1, high):
                    weight = (n - low) / (high - low)
                    slices[n][window] = (1 - weight) * below + weight * above > 0
        return result


class Grow(Proposal):
    """Add every voxel whose center lies within `mm` of one of the mask."""

    tool: Literal["grow"]
    mm: Reach

    def apply(self, subject: Subject) -> Mask:
        box = self.slices(subject.mask.shape)
        return _on_window(subject, self.mm, lambda mask: _distance(~mask, subject.spacing) <= self.mm + 1e-6, box)


class Shrink(Proposal):
    """Take every voxel whose center lies within `mm` of one outside the mask; beyond the volume there is nothing to be close to."""

    tool: Literal["shrink"]
    mm: Reach

    def apply(self, subject: Subject) -> Mask:
        box = self.slices(subject.mask.shape)
        spare = max(self.mm, *subject.spacing)  # so that the window shows what surrounds the mask
        return _on_window(subject, spare, lambda mask: mask & (_distance(mask, subject.spacing) > self.mm + 1e-6), box)


class Smooth(Proposal):
    """Where a Gaussian of standard deviation `mm` over the mask is above one half."""

    tool: Literal["smooth"]
    mm: Annotated[float, Field(gt=0, le=10)]

    def apply(self, subject: Subject) -> Mask:
        from scipy.ndimage import gaussian_filter

        sigma = [self.mm / step for step in subject.spacing]
        box = self.slices(subject.mask.shape)
        reach = 4 * self.mm  # where the Gaussian is cut off
        return _on_window(subject, reach, lambda mask: gaussian_filter(mask.astype(np.float32), sigma, mode="nearest") > 0.5, box)


class FillHoles(Proposal):
    """Add what the mask encloses on all sides."""

    tool: Literal["fill_holes"]

    def apply(self, subject: Subject) -> Mask:
        from scipy.ndimage import binary_fill_holes

        return _on_window(subject, 0.0, binary_fill_holes)


class KeepLargest(Proposal):
    """Only the largest connected part (26 neighbors)."""

    tool: Literal["keep_largest"]

    def apply(self, subject: Subject) -> Mask:
        return _on_window(subject, 0.0, lambda mask: _parts(mask, keep=lambda sizes: np.arange(sizes.size) == sizes.argmax()))


class RemoveSmall(Proposal):
    """Without the connected parts (26 neighbors) smaller than `mm3`."""

    tool: Literal["remove_small"]
    mm3: PositiveFloat

    def apply(self, subject: Subject) -> Mask:
        least = self.mm3 / float(np.prod(subject.spacing))
        return _on_window(subject, 0.0, lambda mask: _parts(mask, keep=lambda sizes: sizes >= least - 1e-6))


class RandomWalker(Proposal):
    """In the box, the voxels from which a random walker that avoids steps in HU reaches a foreground scribble first.

    Grady: Random Walks for Image Segmentation, IEEE PAMI 28 (2006); scikit-image's implementation. What the mask held in the box
    is replaced.

    Args:
        foreground, background: scribbled voxels, flat file-order indices in the volume.
        box: needed, and at most MAX_WALKED_VOXELS large.
        beta: the higher, the less the walker likes a step in HU; the box's HU are first scaled to [0, 1].
    """

    tool: Literal["random_walker"]
    box: Box
    foreground: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, max_length=200_000)]
    background: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, max_length=200_000)]
    beta: Annotated[float, Field(gt=0, le=100_000)] = 1000.0

    @model_validator(mode="after")
    def _bounded(self) -> "RandomWalker":
        size = int(np.prod([stop - start for start, stop in self.box]))
        if size > MAX_WALKED_VOXELS:
            raise ValueError(f"a box of {size} voxels; random_walker takes at most {MAX_WALKED_VOXELS}")
        return self

    def apply(self, subject: Subject) -> Mask:
        from scipy.ndimage import gaussian_filter
        from skimage.segmentation import random_walker

        window = self.slices(subject.mask.shape)
        markers = np.zeros(subject.mask[window].shape, np.int8)
        for value, scribble in ((2, self.background), (1, self.foreground)):
            markers[self._inside(scribble, subject.mask.shape)] = value
        if not {1, 2} <= set(np.unique(markers).tolist()):
            raise ToolError("random_walker needs foreground and background scribbles inside its box, on different voxels")
        hu = gaussian_filter(subject.image()[window].astype(np.float32), [NOISE_MM / step for step in subject.spacing])
        dark, bright = np.percentile(hu, (1, 99))
        if dark == bright:
            raise ToolError("random_walker needs some contrast; nearly every voxel of the box has the same HU")
        contrast = np.clip((hu - dark) / (bright - dark), 0, 1)
        relative = np.array(subject.spacing) / min(subject.spacing)
        result = subject.mask.copy(order="K")
        # prob_tol: the solver's rounding may leave [0, 1] a little; only which probability is larger counts.
        walked = random_walker(contrast, markers, beta=self.beta, mode="cg_j", tol=1e-3, prob_tol=0.1, spacing=relative)
        result[window] = walked == 1
        return result

    def _inside(self, scribble: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
        """Index into the box of the scribble's voxels that lie in it."""
        flat = np.array(scribble)
        if flat.max() >= np.prod(shape):
            raise ToolError(f"voxel {flat.max()} is beyond a volume of {' x '.join(map(str, shape))} voxels")
        start, stop = np.array(self.box).T
        position = np.stack(np.unravel_index(flat, shape, order="F"), axis=1)
        kept = position[((position >= start) & (position < stop)).all(axis=1)] - start
        return tuple(kept.T)


Tool = Annotated[
    Interpolate | Grow | Shrink | Smooth | FillHoles | KeepLargest | RemoveSmall | RandomWalker, Field(discriminator="tool")
]


def propose(tool: Proposal, subject: Subject, protected: Mask) -> Mask:
    """The organ's mask as the tool would have it.

    Args:
        protected: voxels of organs it may not share; it keeps those of them it has.

    Raises:
        ToolError: the tool cannot do it.
    """
    window = tool.slices(subject.mask.shape)
    after: Mask = tool.apply(subject)  # type: ignore[attr-defined]
    result = subject.mask.copy(order="K")
    result[window] = after[window]
    if tool.protect:
        result &= subject.mask | ~protected
    return result


# --- small things -----------------------------------------------------------------------------------------------------


def _window(mask: Mask, margin: tuple[int, ...] | None = None) -> tuple[slice, ...]:
    """The mask's bounding box with a margin in voxels, cut at the array's ends; empty for an empty mask."""
    spans = []
    for axis, n in enumerate(mask.shape):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        spare = margin[axis] if margin else 0
        spans.append(slice(max(0, filled[0] - spare), min(n, filled[-1] + spare + 1)) if filled.size else slice(0, 0))
    return tuple(spans)


def _on_window(subject: Subject, margin_mm: float, change: Callable[[Mask], Mask], box: Slices | None = None) -> Mask:
    """Apply a change to the mask's surroundings only: most of a CT is far away from any one organ.

    Args:
        margin_mm: how far a voxel's new value may depend on its surroundings, where there is a box.
        box: outside of it nothing is asked for.
    """
    margin = tuple(int(np.ceil(margin_mm / step)) for step in subject.spacing)
    window = _window(subject.mask, margin)
    if box is not None:
        near = (slice(max(0, b.start - m), b.stop + m) for b, m in zip(box, margin, strict=True))
        window = tuple(slice(max(w.start, n.start), min(w.stop, n.stop)) for w, n in zip(window, near, strict=True))
    result = subject.mask.copy(order="K")
    if result[window].size:
        result[window] = change(subject.mask[window])
    return result


def _distance(mask: Mask, spacing: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """mm from each voxel of the mask to the nearest one outside it; infinite where there is none."""
    from scipy.ndimage import distance_transform_edt

    if mask.all():
        return np.full(mask.shape, np.inf)
    distance: npt.NDArray[np.float64] = distance_transform_edt(mask, sampling=spacing)
    return distance


def _signed_distance(mask: Mask, spacing: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """mm to the nearest voxel on the other side of the outline; positive inside."""
    return _distance(mask, spacing) - _distance(~mask, spacing)


def _parts(mask: Mask, *, keep: Callable[[npt.NDArray[np.intp]], Mask]) -> Mask:
    """The connected parts that `keep` chooses by their voxel counts."""
    import cc3d

    labels = cc3d.connected_components(mask, connectivity=NEIGHBORS)
    sizes = np.bincount(labels.ravel(order="K"))
    sizes[0] = 0
    kept = keep(sizes)
    kept[0] = False
    parts: Mask = kept[labels]
    return parts
