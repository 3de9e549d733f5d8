"""The layout of AbdomenAtlas.

<case>/ct.nii.gz                       link or copy, unless images are left out
<case>/combined_labels.nii.gz          label ids of the campaign's organ set, on the image's own grid
<case>/segmentations/<organ>.nii.gz    0 and 1, one for every organ something is known of
label_map.yaml                         the organ set and its version; a file of configs/organs/ in form
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from atlas_ray.organs import Organs
from atlas_ray.release.images import Images, place_image
from atlas_ray.release.plan import Planned
from atlas_ray.schema import Schema
from atlas_ray.volume import Volume, without_text, write_volume


class AbdomenAtlas(Schema):
    """A folder per case with a combined label and a mask per organ.

    Args:
        images: of `ct.nii.gz`.
    """

    layout: Literal["abdomenatlas"] = "abdomenatlas"
    images: Images = "link"

    def refusal(self, planned: Planned, organs: Organs) -> str:
        """Why a case does not fit this layout; "" for those that do."""
        del planned, organs
        return ""

    def files(self, planned: Planned) -> list[str]:
        """Paths of a case's files below the release."""
        masks = [_mask(planned, source.organ) for source in planned.organs]
        return [_combined(planned), *masks, *([] if self.images == "none" else [_image(planned)])]

    def write_case(self, out: Path, planned: Planned, label: Volume, organs: Organs, digest: str) -> None:
        """Write a case's files below `out`."""
        del digest
        plain = without_text(label)
        write_volume(out / _combined(planned), plain)
        for source in planned.organs:
            mask = organs.mask(np.asarray(label.voxels, np.uint8), source.organ)
            write_volume(out / _mask(planned, source.organ), plain.with_voxels(mask))
        if self.images != "none":
            place_image(planned.case, out / _image(planned), self.images)

    def texts(self, name: str, case_ids: Sequence[str], organs: Organs) -> dict[str, str]:
        """Files of the whole release, name -> content."""
        del name, case_ids
        return {"label_map.yaml": yaml.safe_dump(json.loads(organs.model_dump_json()), sort_keys=False)}


def _combined(planned: Planned) -> str:
    return f"{planned.name}/combined_labels.nii.gz"


def _mask(planned: Planned, organ: str) -> str:
    return f"{planned.name}/segmentations/{organ}.nii.gz"


def _image(planned: Planned) -> str:
    return f"{planned.name}/ct.nii.gz"
