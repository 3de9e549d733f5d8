"""Who annotates: a person in the app, or an oracle that replays known ground truth where the attention points.

The oracle is how a campaign is simulated (does the attention find the errors? does the order pay?). By default it draws without a
mistake, so that a simulated campaign is an upper bound; `noise_mm` gives it an unsteady hand, `bias_mm` a habit of its own, and
`miss_rate` a tired eye. What is not covered: fatigue that grows, learning, and mistakes of anatomy.
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, PositiveFloat
from scipy import ndimage

from atlas_ray.exceptions import GeometryError
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.schema import Fraction, Schema, Triple

Mask = npt.NDArray[np.bool_]  # [X, Y, Z]


class HumanAnnotator(Schema):
    """People, in the app: a round waits until they have submitted their cases."""

    annotator: Literal["human"] = "human"


class OracleAnnotator(Schema):
    """Ground truth, copied into the draft.

    Args:
        user: the name it leases and saves under.
        scope: how far it looks. "component": an organ becomes the truth's inside its own attention; "organ": the whole of
            every organ that has attention; "asked": the whole of every organ it is asked about, attention or not; "case": every
            organ there is truth for.
        dilation_mm: how far beyond the attention's edge it sees and draws, since attention marks the doubtful voxels and
            an error's clear core may lie just beside them; only for scope "component".
        tolerance_mm: what it does not bother to draw: an error counts where a box fits into it that is thicker than this along
            every axis. People do not trace every border anew; 0 draws every voxel.
        noise_mm: sd of the error of its borders: a smooth random field with lengths of about `grain_mm` moves the border of
            what it draws, drawn anew for every case and organ. Voxels that it leaves alone stay exact.
        bias_mm: how far outside the true border it draws, negative inside: what makes two annotators differ alike everywhere.
        miss_rate: share of the organs whose error it overlooks.
        seed: draws noise and misses; two annotators of one seed are the same person.
        minutes_per_case, minutes_per_organ, minutes_per_component: its time to look. The default is the paper's only figure,
            15 minutes per revised case (paper.md, section 4).
        minutes_per_revised_organ, minutes_per_revised_ml: its time to draw, for each organ and for each ml that it changes.
    """

    annotator: Literal["oracle"] = "oracle"
    user: str = "oracle"
    scope: Literal["component", "organ", "asked", "case"] = "component"
    dilation_mm: NonNegativeFloat = 3.0
    tolerance_mm: NonNegativeFloat = 0.0
    noise_mm: NonNegativeFloat = 0.0
    grain_mm: PositiveFloat = 10.0
    bias_mm: float = 0.0
    miss_rate: Fraction = 0.0
    seed: int = 0
    minutes_per_case: NonNegativeFloat = 15.0
    minutes_per_organ: NonNegativeFloat = 0.0
    minutes_per_component: NonNegativeFloat = 0.0
    minutes_per_revised_organ: NonNegativeFloat = 0.0
    minutes_per_revised_ml: NonNegativeFloat = 0.0

    def revise(
        self,
        draft: LabelMap,
        truth: LabelMap,
        attention: Mapping[str, Mask],
        organs: Organs,
        spacing: Triple,
        *,
        organs_with_truth: Collection[str] | None = None,
    ) -> dict[str, Mask]:
        """The new mask [X, Y, Z] of every organ that changes; no voxel is in two of them.

        A voxel the truth gives to an organ within its reach is taken from whatever organ the draft gave it to, so that
        organ changes too. A voxel an organ loses becomes background, unless another organ within reach gains it.

        Args:
            draft, truth: label maps [X, Y, Z] in the label ids of `organs`.
            attention: organ -> where an error of it is likely.
            spacing: mm per voxel, array-axis order.
            organs_with_truth: organs the truth knows; None is all. It is never asked about another.

        Raises:
            GeometryError: arrays of different shapes.
        """
        for what, array in (("truth", truth), *attention.items()):
            if array.shape != draft.shape:
                raise GeometryError(f"{what} has shape {array.shape}, the draft {draft.shape}; they share one grid")
        known = organs.names if organs_with_truth is None else organs_with_truth
        reach = {name: region for name, region in self._reach(attention, organs, spacing).items() if name in known}
        revised = draft.copy(order="K")  # volumes from files are Fortran-ordered; mixed orders cost a factor of twenty
        for name, region in reach.items():
            label_id = organs.label_id(name)
            np.copyto(revised, 0, where=region & (draft == label_id) & (truth != label_id))
        for name, region in reach.items():  # after all losses, so that what one organ gives another can take
            label_id = organs.label_id(name)
            np.copyto(revised, label_id, where=region & (truth == label_id))
        self._leave_alone(draft, revised, spacing)
        before_and_after = ((name, organs.mask(draft, name), organs.mask(revised, name)) for name in organs.names)
        return {name: after for name, before, after in before_and_after if not np.array_equal(before, after)}

    def organ_minutes(self, components: int, changed_ml: float) -> float:
        """Time for one organ: to look at so many components, and to draw so much of it."""
        draw = self.minutes_per_revised_organ + self.minutes_per_revised_ml * changed_ml if changed_ml else 0.0
        return self.minutes_per_organ + self.minutes_per_component * components + draw

    def sees(self, truth: LabelMap, organs: Organs, spacing: Triple, *, what: str) -> LabelMap:
        """What it believes the truth to be: the truth, with its borders where this hand draws them.

        Where two organs claim a voxel the one whose border lies farther outside has it, as far as each claims beyond its truth.

        Args:
            what: names the case; the noise of one case and organ is always the same.
        """
        if self.noise_mm == 0 and self.bias_mm == 0:
            return truth
        believed = np.zeros_like(truth)
        deepest = np.zeros(truth.shape, np.float32)  # mm inside the border that is drawn; only what is inside counts
        for organ in organs:
            mask = truth == organ.label_id
            if not mask.any():
                continue
            inside, outside = (ndimage.distance_transform_edt(side, sampling=spacing) for side in (mask, ~mask))
            half = min(spacing) / 2  # a voxel's center is half a voxel from its border
            depth = np.where(mask, inside - half, half - outside)
            depth = np.asarray(depth + self.bias_mm + self._wobble(truth.shape, spacing, f"{what}/{organ.name}"), np.float32)
            np.copyto(believed, organ.label_id, where=depth > deepest)
            np.maximum(deepest, depth, out=deepest)
        return believed

    def misses(self, case_id: str, organ: str) -> bool:
        return bool(self._random(f"{case_id}/{organ}/miss").random() < self.miss_rate)

    def _leave_alone(self, draft: LabelMap, revised: LabelMap, spacing: Triple) -> None:
        """Undo, in place, what is too thin to be seen as an error."""
        changed = revised != draft
        if self.tolerance_mm == 0 or not changed.any():
            return
        smallest = np.ones([int(self.tolerance_mm / mm) + 1 for mm in spacing], bool)
        seen = ndimage.binary_opening(changed, smallest)
        np.copyto(revised, draft, where=changed & ~dilate(seen, self.tolerance_mm, spacing))

    def _wobble(self, shape: tuple[int, ...], spacing: Triple, what: str) -> npt.NDArray[np.float32]:
        """A smooth random field [X, Y, Z] of sd `noise_mm`, in mm."""
        if self.noise_mm == 0:
            return np.zeros(shape, np.float32)
        white = self._random(what).standard_normal(shape).astype(np.float32)
        smooth = ndimage.gaussian_filter(white, [self.grain_mm / 2 / mm for mm in spacing], mode="wrap")
        return np.asarray(smooth * np.float32(self.noise_mm / max(float(smooth.std()), 1e-12)), np.float32)

    def _random(self, what: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.seed}/{what}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8]))

    def _reach(self, attention: Mapping[str, Mask], organs: Organs, spacing: Triple) -> dict[str, Mask]:
        """Organ -> where it may be redrawn: [X, Y, Z], or [1, 1, 1] for everywhere."""
        everywhere = np.ones((1, 1, 1), bool)
        if self.scope == "case":
            return dict.fromkeys(organs.names, everywhere)
        if self.scope == "asked":
            return dict.fromkeys((name for name in organs.names if name in attention), everywhere)
        marked = {name: attention[name] for name in organs.names if name in attention and attention[name].any()}
        if self.scope == "organ":
            return dict.fromkeys(marked, everywhere)
        return {name: dilate(mask, self.dilation_mm, spacing) for name, mask in marked.items()}


Annotator = Annotated[HumanAnnotator | OracleAnnotator, Field(discriminator="annotator")]


def dilate(mask: Mask, radius_mm: float, spacing: Triple) -> Mask:
    """Every voxel whose center is at most `radius_mm` from the center of a mask voxel, [X, Y, Z].

    The distance is measured inside the box around each island, not over the volume: 512 x 512 x 600 distances are 1.3 GB.
    """
    if mask.flags.f_contiguous and not mask.flags.c_contiguous:  # scipy is four times slower along the wrong axis
        return dilate(mask.T, radius_mm, spacing[::-1]).T
    grown = mask.copy()
    if radius_mm == 0:
        return grown
    margin = [int(radius_mm / mm) + 1 for mm in spacing]
    islands, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    for island in ndimage.find_objects(islands):
        box = tuple(slice(max(0, s.start - m), s.stop + m) for s, m in zip(island, margin, strict=True))
        grown[box] |= ndimage.distance_transform_edt(~mask[box], sampling=spacing) <= radius_mm
    return grown
