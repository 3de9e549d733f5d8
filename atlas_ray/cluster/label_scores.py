"""The end of a prediction stream that scores given labels instead of writing predictions: small records, no volumes.

Scores are made at the networks' spacing, where the probabilities are; nothing is brought to the image's grid.
"""

from functools import partial

import numpy as np
import numpy.typing as npt

from atlas_ray.cluster.prediction import Row, packed_probabilities, unwritable
from atlas_ray.config import Campaign
from atlas_ray.data.label_quality import LabelQuality, OrganLabelScore, score_organ
from atlas_ray.data.preprocess import label_to_network_grid
from atlas_ray.exceptions import CaseError
from atlas_ray.patience import patiently
from atlas_ray.records import LabelSource
from atlas_ray.schema import Schema
from atlas_ray.segmentation.packed_probabilities import PackedProbabilities
from atlas_ray.storage import place, write_atomically
from atlas_ray.volume import read_volume


class GivenOrgan(Schema):
    """One organ of a label that is to be scored."""

    organ: str
    label_id: int
    source: LabelSource
    in_sample: bool


class GivenLabel(Schema):
    """A label that is to be scored; travels in a row as JSON.

    Args:
        path: of the label map.
        result: where the scores go.
        key: of everything they depend on.
    """

    case_id: str
    path: str
    organs: tuple[GivenOrgan, ...]
    settings: LabelQuality
    result: str
    key: str


class ScoredLabel(Schema):
    """What is kept of one case; the same key means nothing has to be done again."""

    key: str
    organs: tuple[OrganLabelScore, ...]


def score_case(row: Row, *, campaign_json: str, round_index: int) -> Row:
    """Score one case's label by the campaign's networks and write it. Never raises for a bad case."""
    del round_index
    campaign, given = Campaign.model_validate_json(campaign_json), GivenLabel.model_validate_json(row["label"])
    result = {key: row[key] for key in ("case_id", "error", "ends_stream")}
    checkpoints, probabilities, absent = packed_probabilities(row)
    if row["error"]:
        return result
    patience_s = campaign.cluster.patience_s
    try:
        label = patiently(partial(read_volume, given.path), patience_s)
        labels = label_to_network_grid(label, campaign.preprocessing)
    except CaseError as error:
        return {**result, "error": str(error)}
    if labels.shape != probabilities.grid:
        return {**result, "error": f"{given.path} and its image differ in shape"}
    scores = []
    for organ in given.organs:
        members = [m for m, name in enumerate(checkpoints) if organ.organ not in absent.get(name, ())]
        if not members:
            continue
        found = score_organ(
            given.case_id,
            organ.organ,
            np.equal(labels, organ.label_id),
            _sums(probabilities, members, campaign.load_organs().channel(organ.organ)),
            most=255 * len(members),
            spacing=campaign.preprocessing.spacing,
            source=organ.source,
            in_sample=organ.in_sample,
            settings=given.settings,
        )
        if found:
            scores.append(found)
    record = ScoredLabel(key=given.key, organs=tuple(scores))
    try:
        patiently(partial(write_atomically, place(given.result), record.model_dump_json()), patience_s)
    except OSError as error:
        result |= unwritable(campaign, error)
    return result


def _sums(probabilities: PackedProbabilities, members: list[int], channel: int) -> npt.NDArray[np.uint16]:
    """[X, Y, Z], the members' bytes of one organ added up."""
    sums_XYZ = np.zeros(probabilities.grid, np.uint16, order="F")
    for m in members:
        sums_XYZ += probabilities[m, channel]
    return sums_XYZ
