"""Sliding-window prediction of an ensemble on one volume at the networks' spacing.

Axis letters: M architectures, K organs, X Y Z.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from atlas_ray.schema import IntTriple, Schema
from atlas_ray.segmentation.precision import Precision, uses_bfloat16

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Inference(Schema):
    """How windows slide over a volume. Defaults are the paper's (96^3, overlap 0.75, Gaussian weights).

    Args:
        window: voxels per axis at the networks' spacing.
        overlap: share of a window that the next one covers again.
        batch: windows per forward pass. A network whose norm uses batch statistics needs 1 (paper-algorithm a.11).
        precision: "bfloat16" runs the convolutions in half the bits; the averaging stays in float32.
    """

    window: IntTriple = (96, 96, 96)
    overlap: float = Field(default=0.75, ge=0, lt=1)
    batch: PositiveInt = 1
    precision: Precision = "auto"


def normalize(hu: npt.NDArray[np.generic], window_hu: tuple[float, float]) -> npt.NDArray[np.float32]:
    """HU -> 0..1, clipped to the window (paper: -175..250)."""
    low, high = window_hu
    clipped = np.clip(hu, low, high).astype(np.float32)
    return np.asarray((clipped - low) / (high - low), np.float32)


def predict_probabilities(
    networks: "Sequence[nn.Module]", image_XYZ: npt.NDArray[np.float32], settings: Inference, device: "torch.device | str"
) -> "Tensor":
    """Sigmoid probabilities of every network.

    Args:
        networks: in eval mode, on `device`, all with K output channels.
        image_XYZ: normalized CT in RAS at the networks' spacing.

    Returns:
        probabilities_MKXYZ, float16 on `device`. The full-size accumulator of one network in float32 is the largest thing held.
    """
    import torch

    image = torch.from_numpy(np.ascontiguousarray(image_XYZ))[None, None].to(device)
    result = None
    for index, network in enumerate(networks):
        probabilities_KXYZ = _slide(network, image, settings)
        if result is None:
            result = torch.empty((len(networks), *probabilities_KXYZ.shape), dtype=torch.float16, device=device)
        result[index] = probabilities_KXYZ
    assert result is not None  # callers always have a network
    return result


def _slide(network: "nn.Module", image: "Tensor", settings: Inference) -> "Tensor":
    import torch
    from monai.inferers.utils import sliding_window_inference

    bfloat16 = uses_bfloat16(settings.precision, image.device)

    def forward(windows: "Tensor") -> "Tensor":
        windows = windows.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            logits: Tensor = network(windows)
        return logits.float()

    with torch.inference_mode():
        logits = sliding_window_inference(
            image, settings.window, settings.batch, forward, overlap=settings.overlap, mode="gaussian"
        )
        assert isinstance(logits, torch.Tensor)  # one input, one output
        return logits[0].sigmoid_()
