"""Forward passes at the speed of the hardware: which number format, which memory layout, which kernels.

| device | precision | what runs |
|---|---|---|
| CPU without bfloat16 units | float32 | `fused`: Winograd convolutions, norms without passes of their own, no torch.compile |
| CPU with AMX or AVX-512 BF16, CUDA | bfloat16 | the network, channels-last throughout, by torch.compile if asked for |
| CUDA | float32 | the same, in float32 |
"""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_ray.schema import IntTriple
from atlas_ray.segmentation.precision import Precision, uses_bfloat16

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def accelerate(
    network: "nn.Module",
    *,
    device: "torch.device | str",
    precision: Precision,
    window: IntTriple,
    batch: int,
    compile: bool,
    cache_dir: Path | None = None,
) -> "Callable[[Tensor], Tensor]":
    """The inference of a network, with its weights as they are now; later changes to the network do not reach it.

    Args:
        network: one of `architectures`, or any other network of 3D convolutions.
        precision: see `uses_bfloat16`. bfloat16 changes logits by about a percent, float32 by about a millionth.
        window, batch: the shape that it will be called with; a smaller batch is allowed.
        compile: use torch.compile, which on CPUs needs a C++ compiler where it runs. Without effect in float32 on a CPU, where the
            kernels here are faster than what it makes.
        cache_dir: keeps what was compiled, for the next process. The process has one such folder: the last one named.

    Returns:
        normalized windows [B, 1, X, Y, Z], float32 or bfloat16, on any device -> logits [B, K, X, Y, Z], float32 on `device`.
    """
    import torch

    device = torch.device(device)
    in_bfloat16 = uses_bfloat16(precision, device)
    if device.type == "cpu" and not in_bfloat16:
        from atlas_ray.segmentation.fused import fuse

        forward: Callable[[Tensor], Tensor] = fuse(network)
    else:
        forward = _channels_last(network, device, in_bfloat16)
        if compile:
            forward = _compiled(forward, window, device, batch, cache_dir)

    @torch.inference_mode()
    def infer(windows: "Tensor") -> "Tensor":
        if tuple(windows.shape[2:]) != tuple(window) or len(windows) > batch:
            raise ValueError(f"windows of shape {tuple(windows.shape)}; prepared for at most {batch} of {tuple(window)} voxels")
        inputs = windows.to(device, torch.float32).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bfloat16):
            logits = forward(inputs)
        return logits.float().contiguous()

    return infer


def _channels_last(network: "nn.Module", device: "torch.device", in_bfloat16: bool) -> "nn.Module":
    """A copy whose weights lie as channels-last convolutions want them and whose instance norms keep that layout."""
    import torch
    from torch import nn

    from atlas_ray.segmentation.instance_norm import InstanceNorm

    twin = copy.deepcopy(network).to(device).eval()
    twin.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.InstanceNorm3d:
                setattr(parent, name, InstanceNorm(child))
            elif in_bfloat16 and isinstance(child, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
                child.to(torch.bfloat16)  # once, not at every call
    return twin


def _compiled(
    network: "nn.Module", window: IntTriple, device: "torch.device", batch: int, cache_dir: Path | None
) -> "Callable[[Tensor], Tensor]":
    """One graph for one shape: a smaller batch is filled up with zeros, not compiled for."""
    import torch
    from torch.nn import functional

    from atlas_ray.segmentation.swin import SwinEncoder

    if cache_dir is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir)  # torch offers no other way
    for module in network.modules():
        if isinstance(module, SwinEncoder):
            module.prepare(window, device)
    compiled = torch.compile(network, dynamic=False)

    def forward(windows: "Tensor") -> "Tensor":
        missing = batch - len(windows)
        filled = functional.pad(windows, (0,) * 9 + (missing,)) if missing else windows
        logits: Tensor = compiled(filled.contiguous(memory_format=torch.channels_last_3d))
        return logits[: len(windows)]

    return forward
