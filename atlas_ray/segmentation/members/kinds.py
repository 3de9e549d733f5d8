"""Every kind of network that somebody else trained and that can be a member of the ensemble."""

from typing import Annotated

from pydantic import Field

from atlas_ray.segmentation.members.bundle import MonaiBundle
from atlas_ray.segmentation.members.nnunet import NNUNetFolder
from atlas_ray.segmentation.members.program import Program
from atlas_ray.segmentation.members.suprem import ClipUniversal, SuPreM

Member = Annotated[NNUNetFolder | SuPreM | ClipUniversal | MonaiBundle | Program, Field(discriminator="member")]
