"""Attention on a GPU: how near the Triton kernels come to the card's copy bandwidth, and how they compare with plain PyTorch.

The yardstick is torch's own copy of the values, read and written. "share" is a kernel's bytes a second over the copy's; bytes are
the fewest it must move: every input once, every output once. Goal for the evidence kernel: 70 %. Needs a CUDA device.

python benchmarks/attention_gpu.py [--repeat N]
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import show_rows

from atlas_ray.attention import packed
from atlas_ray.attention.criteria import FaithfulAttention, PhysicalAttention
from atlas_ray.organs import load_organs

ARCHITECTURES = 3
SIZES = ((256, 256, 256), (512, 512, 400))
SPACING = (0.8, 0.8, 1.0)  # the physical opening is 1 voxel to each side
DTYPES = (torch.uint8, torch.float16)


def ellipsoids(architectures: int, organs: int, shape: tuple[int, ...], device: str) -> torch.Tensor:
    """One ellipsoid per organ, its wall a little elsewhere for every architecture; logits [M, K, X, Y, Z], float16."""
    generator = torch.Generator().manual_seed(0)
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    result = torch.empty((architectures, organs, *shape), dtype=torch.float16, device=device)
    for k in range(organs):
        center = (0.3 + 0.4 * torch.rand(3, generator=generator)) * torch.tensor(shape)
        radius = (0.08 + 0.12 * torch.rand(3, generator=generator)) * min(shape)
        for m in range(architectures):
            moved = center + 2 * torch.randn(3, generator=generator)
            x, y, z = (((axis - c) / r) ** 2 for axis, c, r in zip(axes, moved.tolist(), radius.tolist(), strict=True))
            result[m, k] = (6 * (1 - (x[:, None, None] + y[:, None] + z))).clamp(-20, 20)
    return result


def noise(architectures: int, organs: int, shape: tuple[int, ...], device: str) -> torch.Tensor:
    """Logits that leave no block to skip, the worst there is; [M, K, X, Y, Z], float16."""
    return torch.randn((architectures, organs, *shape), dtype=torch.float16, device=device)


def as_dtype(logits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype != torch.uint8:
        return logits.to(dtype)
    values = torch.empty(logits.shape, dtype=torch.uint8, device=logits.device)
    for m, k in torch.cartesian_prod(torch.arange(logits.shape[0]), torch.arange(logits.shape[1])).tolist():
        values[m, k] = packed.levels(logits[m, k]).to(torch.uint8)
    return values


def milliseconds(call: Callable[[], Any], repeat: int) -> float:
    """Median time on the device, by events; the first call, which compiles and tunes, is not measured.

    The device sleeps before every call, so that what the host does to launch is over when the time begins.
    """
    call()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeat):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(2_000_000)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def same(ours: packed.PackedAttention, plain: packed.PackedAttention) -> bool:
    return all(torch.equal(getattr(ours, field), getattr(plain, field)) for field in plain.__dataclass_fields__)


def measured(shape: tuple[int, int, int], dtype: torch.dtype, device: str, repeat: int) -> list[tuple[Any, ...]]:
    """Rows of the table for one size and type."""
    from atlas_ray.attention import triton_kernels

    organs = load_organs("abdomenatlas_1_0")
    M, K = ARCHITECTURES, len(organs)
    logits = ellipsoids(M, K, shape, device)
    values = as_dtype(logits, dtype)
    dense = as_dtype(noise(M, K, shape, device), dtype)
    del logits
    V = values[0, 0].numel()
    moved = values.nbytes + 13 * V + 4 * V // triton_kernels.TILE
    about = f"{M} x {K} x {' x '.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
    copy_ms = milliseconds(partial(torch.empty_like(values).copy_, values), repeat)
    copy_rate = 2 * values.nbytes / copy_ms
    rows: list[tuple[Any, ...]] = [(about, "copy", f"{copy_ms:.3f}", f"{copy_rate / 1e9:.2f}", "100 %", "")]

    def add(what: str, ms: float, size: int, note: str = "") -> None:
        rows.append((about, what, f"{ms:.3f}", f"{size / ms / 1e9:.2f}", f"{size / ms / copy_rate:.0%}", note))

    for mode in (FaithfulAttention(), PhysicalAttention()):
        rules = packed.byte_rules(mode, organs=organs, architectures=M, spacing=SPACING, device=device)
        evidence = milliseconds(partial(triton_kernels.find_evidence, values, rules, None), repeat)
        launch = triton_kernels._evidence.best_config
        add(f"{mode.mode}: evidence", evidence, moved, f"{launch.kwargs}, {launch.num_warps} warps")
        worst = milliseconds(partial(triton_kernels.find_evidence, dense, rules, None), repeat)
        add(f"{mode.mode}: evidence of noise, nothing skipped", worst, moved)
        _, words, flags, _ = triton_kernels.find_evidence(values, rules, None)
        opening = milliseconds(partial(triton_kernels.open_words, words[:2], flags, rules), repeat)
        add(f"{mode.mode}: opening {rules.steps}", opening, 24 * V, f"{flags.ne(0).float().mean():.1%} of tiles")
        whole = milliseconds(partial(triton_kernels.attend, values, rules), repeat)
        plain = milliseconds(partial(packed.attend_plainly, values, rules), 3)
        ours = triton_kernels.attend(values, rules)
        if not same(ours, packed.attend_plainly(values, rules)):
            raise SystemExit(f"{about}, {mode.mode}: kernels and plain form differ")
        attended = f"{len(ours.voxels_P) / (K * V):.2%} attended"
        add(
            f"{mode.mode}: all of it, with sizes and heat",
            whole,
            moved,
            f"{attended}; plain PyTorch {plain / whole:.1f} times as long",
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=30)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("attention on a GPU: not measured, this needs a CUDA device and there is none.")
        return
    rows = [row for shape in SIZES for dtype in DTYPES for row in measured(shape, dtype, "cuda", args.repeat)]
    show_rows(
        "Attention on a GPU",
        ("values", "what", "ms", "TB/s", "share of copy", "settings"),
        rows,
        note=(__doc__ or "").split("\n\n")[1],
    )


if __name__ == "__main__":
    main()
