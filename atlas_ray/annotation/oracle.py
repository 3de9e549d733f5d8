"""Who annotates: a person in the app, or an oracle that replays known ground truth where the attention points.

The oracle is how a campaign is simulated (does the attention find the errors? does the order pay?). It draws without a
mistake: what is not covered is an annotator's noise, fatigue and disagreement, so a simulated campaign is an upper bound.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat
from scipy import ndimage

from atlas_ray.exceptions import GeometryError
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.schema import Schema, Triple

Mask = npt.NDArray[np.bool_]  # [X, Y, Z]


class HumanAnnotator(Schema):
    """People, in the app: a round waits until they have submitted their cases."""

    annotator: Literal["human"] = "human"


class OracleAnnotator(Schema):
    """Ground truth, copied into the draft.

    Args:
        user: the name it leases and saves under.
        scope: how far it looks. "component": an organ becomes the truth's inside its own attention; "organ": the whole of
            every organ that has attention; "case": every organ there is truth for, attention or not.
        dilation_mm: how far beyond the attention's edge it sees and draws, since attention marks the doubtful voxels and
            an error's clear core may lie just beside them; only for scope "component".
        minutes_per_case, minutes_per_organ, minutes_per_component: its time. The default is the paper's only figure,
            15 minutes per revised case (paper.md, section 4).
    """

    annotator: Literal["oracle"] = "oracle"
    user: str = "oracle"
    scope: Literal["component", "organ", "case"] = "component"
    dilation_mm: NonNegativeFloat = 3.0
    minutes_per_case: NonNegativeFloat = 15.0
    minutes_per_organ: NonNegativeFloat = 0.0
    minutes_per_component: NonNegativeFloat = 0.0

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
        before_and_after = ((name, organs.mask(draft, name), organs.mask(revised, name)) for name in organs.names)
        return {name: after for name, before, after in before_and_after if not np.array_equal(before, after)}

    def minutes(self, organs: int, components: int) -> float:
        """Time for one case with so many organs and components to look at."""
        return self.minutes_per_case + self.minutes_per_organ * organs + self.minutes_per_component * components

    def _reach(self, attention: Mapping[str, Mask], organs: Organs, spacing: Triple) -> dict[str, Mask]:
        """Organ -> where it may be redrawn: [X, Y, Z], or [1, 1, 1] for everywhere."""
        everywhere = np.ones((1, 1, 1), bool)
        if self.scope == "case":
            return dict.fromkeys(organs.names, everywhere)
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
