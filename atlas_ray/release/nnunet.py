"""The raw dataset of nnU-Net v2.

    imagesTr/<case>_0000.nii.gz    link or copy
    labelsTr/<case>.nii.gz         1..K in channel order: nnU-Net wants numbers without a gap
    dataset.json

nnU-Net knows no partial labels: what is not labeled is background to it. So only cases of which every organ is known take part.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from atlas_ray.organs import Organs
from atlas_ray.release.images import place_image
from atlas_ray.release.plan import Planned
from atlas_ray.schema import Schema
from atlas_ray.volume import Volume, without_text, write_volume


class NNUNetRaw(Schema):
    """A folder of images, a folder of labels, and dataset.json.

    Args:
        images: as in AbdomenAtlas, but nnU-Net cannot do without.
    """

    layout: Literal["nnunet"] = "nnunet"
    images: Literal["link", "copy"] = "link"

    def refusal(self, planned: Planned, organs: Organs) -> str:
        """Why a case does not fit this layout; "" for those that do."""
        known = {s.organ for s in planned.organs}
        unknown = [name for name in organs.names if name not in known]
        return f"nothing is known of {', '.join(unknown)}, and nnU-Net has no partial labels" if unknown else ""

    def files(self, planned: Planned) -> list[str]:
        """Paths of a case's files below the release: label and image."""
        return [f"labelsTr/{planned.name}.nii.gz", f"imagesTr/{planned.name}_0000.nii.gz"]

    def write_case(self, out: Path, planned: Planned, label: Volume, organs: Organs, digest: str) -> None:
        """Write a case's files below `out`."""
        del digest
        label_file, image_file = self.files(planned)
        table = np.zeros(256, np.uint8)
        table[list(organs.label_ids)] = np.arange(1, len(organs) + 1)
        write_volume(out / label_file, without_text(label).with_voxels(table[label.voxels]))
        place_image(planned.case, out / image_file, self.images)

    def texts(self, name: str, case_ids: Sequence[str], organs: Organs) -> dict[str, str]:
        """Files of the whole release, name -> content."""
        described = {
            "name": name,
            "description": f"organs of {organs.name} {organs.version}",
            "licence": "see LICENSES.md",
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **{organ: number for number, organ in enumerate(organs.names, 1)}},
            "numTraining": len(case_ids),
            "file_ending": ".nii.gz",
        }
        return {"dataset.json": json.dumps(described, indent=2) + "\n"}
