"""Calibrated attention of one case: its candidates from what the networks said, and the detector that judges them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atlas_ray.attention.absent import Known
from atlas_ray.attention.anatomy_rules import organ_shapes
from atlas_ray.attention.candidates import Candidates, Surroundings, find_candidates
from atlas_ray.attention.criteria import CalibratedAttention
from atlas_ray.attention.detector import AttentionDetector, load_detector
from atlas_ray.attention.sparse import OrganAttention
from atlas_ray.config import Campaign
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.schema import Triple
from atlas_ray.segmentation.packed_probabilities import PackedProbabilities
from atlas_ray.workspace import file_sha256


@dataclass(frozen=True, slots=True, eq=False)
class RoundDetector:
    """What the rounds before one have learned.

    Args:
        sha256: of its file; "" where there is none.
    """

    learned: AttentionDetector | None
    sha256: str


def detector_of(campaign: Campaign, round_index: int) -> RoundDetector:
    """The detector a round's predictions are looked at with; none where attention is not calibrated."""
    if not isinstance(campaign.attention, CalibratedAttention):
        return RoundDetector(None, "")
    path = campaign.open_workspace().latest_detector(before=round_index)
    if path is None:
        return RoundDetector(None, "")
    sha256 = file_sha256(path)
    return RoundDetector(load_detector(path, sha256), sha256)


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """What is known of a case once its label is made.

    Args:
        known_MK: which member knows which organ.
        image_XYZ: HU at the networks' spacing, or None.
        label_XYZ: the pseudo-label on the image's own grid in RAS; spacing is its.
    """

    probabilities: PackedProbabilities
    known_MK: Known
    image_XYZ: npt.NDArray[np.int16] | None
    label_XYZ: LabelMap
    spacing: Triple


def candidates_of(
    mode: CalibratedAttention,
    permissive: Mapping[str, OrganAttention],
    case: Predicted,
    organs: Organs,
    *,
    skip: frozenset[str] = frozenset(),
) -> dict[str, Candidates]:
    """Of every organ that is not skipped, in the organs' order.

    Args:
        permissive: organ -> attention of `mode.candidates` in RAS.
        skip: organs whose attention is not wanted.
    """
    shapes = organ_shapes({name: organs.mask(case.label_XYZ, name) for name in organs.names}, case.spacing)
    image = None if case.image_XYZ is None else np.asarray(case.image_XYZ)
    found = {}
    for channel, name in enumerate(organs.names):
        if name in skip:
            continue
        mirror = organs.mirror(name)
        members = np.flatnonzero(case.known_MK[:, channel]).tolist() or [0]  # one that knows nothing of it says 0 everywhere
        bytes_MXYZ = np.stack([case.probabilities[m, channel] for m in members])
        around = Surroundings(
            bytes_MXYZ,
            image,
            organs.mask(case.label_XYZ, name),
            organs.mask(case.label_XYZ, mirror) if mirror else None,
            case.spacing,
        )
        found[name] = find_candidates(
            permissive[name],
            around,
            shapes[name],
            rules=mode.anatomy,
            criteria=mode.candidates.criterion_names,
            min_volume_mm3=mode.candidates.min_component_mm3,
        )
    return found
