"""Instance norm that leaves channels-last tensors channels-last: torch's copies them to channels-first and back."""

import torch
from torch import Tensor, nn


class InstanceNorm(nn.Module):
    """nn.InstanceNorm3d without running statistics, over the last axis of a [B, voxels, C] view. Takes over its parameters.

    Statistics are float32 whatever the input is. torch.compile makes one pass of the pointwise rest and the activation after it.
    """

    def __init__(self, norm: nn.InstanceNorm3d) -> None:
        super().__init__()
        if norm.track_running_stats:
            raise NotImplementedError(f"{norm}: running statistics are not covered")
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.permute(0, 2, 3, 4, 1)
        variance, mean = torch.var_mean(rows.float(), dim=(1, 2, 3), correction=0, keepdim=True)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        return (rows * scale + shift).to(inputs.dtype).permute(0, 4, 1, 2, 3)
