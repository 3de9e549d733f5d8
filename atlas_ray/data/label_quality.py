"""How much a prediction believes a given label: cleanlab's idea for label maps, per organ, in three dimensions.

    score = softmin over the voxels in and near the organ of p(what the label says there)

where "near" is a box around what is labeled or predicted, so that a missing half counts as much as a superfluous one, and
softmin(p) = sum(p exp((1 - p) / T)) / sum(exp((1 - p) / T)) with temperature T: the mean of p that looks at the worst voxels. A low
score says that networks and label disagree surely; who is right, a person must see. It means something only where the networks have
not learned from this very label. (cleanlab: Lad & Mueller, arXiv:2307.05080.)

Not covered: errors that label and networks share, and organs of which nothing is labeled or predicted.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat, PositiveFloat

from atlas_ray.records import LabelSource
from atlas_ray.schema import Schema, Triple

Mask = npt.NDArray[np.bool_]


class LabelQuality(Schema):
    """How labels are scored.

    Args:
        temperature: of the softmin; towards 0 the worst voxel decides, large values give the mean. 0.1 is cleanlab's.
        neighborhood_mm: how far beyond what is labeled or predicted one looks.
    """

    temperature: PositiveFloat = 0.1
    neighborhood_mm: NonNegativeFloat = 5.0


class OrganLabelScore(Schema):
    """The label of one organ of one case against a prediction.

    Args:
        source: who says what the organ is.
        in_sample: whether the networks that judge have learned from this organ in this case; then they may only repeat it.
        score: 0 (surely wrong somewhere) to 1.
        mean_probability: the same as a plain mean.
        dice: of the label and the prediction's mask.
        missing_ml: predicted and not labeled.
        surplus_ml: labeled and not predicted.
    """

    case_id: str
    organ: str
    source: LabelSource
    in_sample: bool
    score: float
    mean_probability: float
    dice: float
    label_ml: float
    predicted_ml: float
    missing_ml: float
    surplus_ml: float


def agreement(
    label_XYZ: Mask, sums_XYZ: npt.NDArray[np.integer], *, most: int, spacing: Triple, settings: LabelQuality
) -> tuple[float, float] | None:
    """(softmin, mean) of the probability given to what the label says, in and near the organ; None where there is no organ.

    Args:
        label_XYZ: of one organ.
        sums_XYZ: its probability as an integer, such as the sum of several networks' bytes.
        most: the integer that stands for probability 1.
        spacing: mm.
    """
    organ_XYZ = label_XYZ | (2 * sums_XYZ > most)
    near = _near(organ_XYZ, [math.ceil(settings.neighborhood_mm / edge) for edge in spacing])
    if near is None:
        return None
    box, near_XYZ = near
    inside = sums_XYZ[box].astype(np.int64)
    given = np.where(label_XYZ[box], inside, most - inside)[near_XYZ]
    counts = np.bincount(given)  # few distinct values: exact, and quick
    values = np.flatnonzero(counts)
    counts, p = counts[values], values / most
    weights = counts * np.exp((p[0] - p) / settings.temperature)  # against the worst voxel, so that nothing overflows
    return float((weights * p).sum() / weights.sum()), float((counts * p).sum() / counts.sum())


def _near(mask_XYZ: Mask, reach: Sequence[int]) -> tuple[tuple[slice, ...], Mask] | None:
    """The box around a mask and, inside it, what lies within `reach` voxels of it along every axis; None for an empty mask."""
    from scipy.ndimage import maximum_filter1d

    box = []
    for axis, far in enumerate(reach):
        hit = np.flatnonzero(mask_XYZ.any(axis=tuple(i for i in range(3) if i != axis)))
        if not len(hit):
            return None
        box.append(slice(max(0, int(hit[0]) - far), int(hit[-1]) + far + 1))
    near = mask_XYZ[tuple(box)].view(np.uint8)
    for axis, far in enumerate(reach):
        near = maximum_filter1d(near, 2 * far + 1, axis=axis, mode="constant")
    return tuple(box), near.astype(np.bool_)


def score_organ(
    case_id: str,
    organ: str,
    label_XYZ: Mask,
    sums_XYZ: npt.NDArray[np.integer],
    *,
    most: int,
    spacing: Triple,
    source: LabelSource,
    in_sample: bool,
    settings: LabelQuality,
) -> OrganLabelScore | None:
    """One organ of one case; arguments as `agreement` has them. None where nothing is labeled or predicted."""
    found = agreement(label_XYZ, sums_XYZ, most=most, spacing=spacing, settings=settings)
    if found is None:
        return None
    predicted_XYZ = 2 * sums_XYZ > most
    labeled, predicted = int(label_XYZ.sum()), int(predicted_XYZ.sum())
    both = int((label_XYZ & predicted_XYZ).sum())
    ml = math.prod(spacing) / 1000
    return OrganLabelScore(
        case_id=case_id,
        organ=organ,
        source=source,
        in_sample=in_sample,
        score=found[0],
        mean_probability=found[1],
        dice=2 * both / (labeled + predicted),
        label_ml=labeled * ml,
        predicted_ml=predicted * ml,
        missing_ml=(predicted - both) * ml,
        surplus_ml=(labeled - both) * ml,
    )
