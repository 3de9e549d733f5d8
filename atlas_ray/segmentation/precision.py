"""In how many bits a network computes: bfloat16 where the machine has units for it, float32 where it would have to be emulated."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16"]


def uses_bfloat16(precision: Precision, device: "torch.device | str") -> bool:
    """Whether a forward pass runs under bfloat16 autocast.

    "auto" says yes on CUDA devices that compute in bfloat16 and on CPUs with AMX or AVX-512 bf16. Elsewhere a bfloat16
    convolution is emulated: on an AVX2 processor one took 120 times as long as in float32 (24 channels, 32^3 voxels, torch 2.13).
    """
    import torch

    if precision != "auto":
        return precision == "bfloat16"
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
