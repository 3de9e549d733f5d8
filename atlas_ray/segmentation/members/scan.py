"""What MONAI-like members do to a CT: turn it, bring it to their spacing, scale its intensities.

Linear over the same extent, half-voxel-centered, with antialiasing (`resampling`); MONAI's Spacing keeps the first voxel's center
instead, which moves a volume by less than half a voxel.
"""

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat

from atlas_ray.resampling import resample_image, shape_at_spacing
from atlas_ray.schema import Schema, Triple
from atlas_ray.segmentation.members.grid import Floats, Placed
from atlas_ray.volume import Volume, axes_from_ras, reorient


class CTWindow(Schema):
    """HU to a range.

    Args:
        hu: become the two ends of `to`.
        to: what the network takes.
        clip: whether what is outside is brought to them.
    """

    intensity: Literal["window"] = "window"
    hu: tuple[float, float] = (-175.0, 250.0)
    to: tuple[float, float] = (0.0, 1.0)
    clip: bool = True

    def __call__(self, values: npt.NDArray[Any]) -> Floats:
        (low, high), (start, stop) = self.hu, self.to
        scaled = (values.astype(np.float32) - low) / (high - low) * (stop - start) + start
        return np.asarray(np.clip(scaled, start, stop) if self.clip else scaled, np.float32)


class CTStandard(Schema):
    """HU less a mean, by a deviation."""

    intensity: Literal["standard"] = "standard"
    mean: float
    std: PositiveFloat

    def __call__(self, values: npt.NDArray[Any]) -> Floats:
        return np.asarray((values.astype(np.float32) - self.mean) / self.std, np.float32)


class CTAsIs(Schema):
    """HU as they are."""

    intensity: Literal["hu"] = "hu"

    def __call__(self, values: npt.NDArray[Any]) -> Floats:
        return values.astype(np.float32)


Intensity = Annotated[CTWindow | CTStandard | CTAsIs, Field(discriminator="intensity")]


def place_scan(image: Volume, *, orientation: str, spacing: Triple | None, intensity: CTWindow | CTStandard | CTAsIs) -> Placed:
    """A CT on a member's grid.

    Args:
        image: int16 HU.
        spacing: mm, in the member's axes; None keeps the image's.
    """
    turned = reorient(image, orientation)
    axes, flipped = axes_from_ras(turned)
    shape = turned.shape if spacing is None else shape_at_spacing(turned.shape, turned.spacing, spacing)
    values = turned.voxels if shape == turned.shape else resample_image(turned, shape).voxels
    x, y, z = image.shape
    return Placed(values, intensity, axes, flipped, image.shape, (slice(0, x), slice(0, y), slice(0, z)))
