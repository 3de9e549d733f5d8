"""How long, how much disk: the table of docs/operations.md, from rates in docs/benchmarks.md.

python benchmarks/sizing.py

Measured: work a window, processor seconds a slice, bytes a voxel. Not measured: any GPU. What a GPU does is an assumption below.
"""

import math

GFLOP_PER_WINDOW = {"unet": 100, "nnunet": 399, "swin_unetr": 637}  # 96^3, docs/benchmarks.md, "Rates and differences"
CPU_S_PER_SLICE = (0.9 + 5.3 + 0.1 + 11.4 + 12.2 + 10.9 + 0.5 + 4.1 + 0.9) / (
    99 + 35
)  # 512 x 512, all but the networks; "end_to_end"
IMAGE_BYTES_PER_VOXEL = 53.5e6 / (512 * 512 * 200)  # .nii.gz; "read"
CACHE_BYTES_PER_VOXEL = 11.9e6 / (239 * 239 * 200)  # at 1.5 mm; "cache"
RESULTS_MB_PER_CASE = 15.0  # assumed: label maps of ensemble and three networks, heat, attention of nine organs
PEAK_TFLOPS = {"L4": 121, "A100": 312, "H100": 989}  # the makers' figures for dense bfloat16
SHARE_OF_PEAK = 0.2  # assumed
SLICES, EDGE_MM, HEIGHT_MM, SPACING_MM, WINDOW = 300, 410, 600, 1.5, 96  # a CT of the abdomen and chest, 512 x 512 x 300
CASES = (1_000, 8_448, 100_000)
OVERLAPS = (0.5, 0.75)


def windows(overlap: float) -> int:
    """Of one such CT at the networks' spacing."""
    step = round(WINDOW * (1 - overlap))
    edges = [round(mm / SPACING_MM) for mm in (EDGE_MM, EDGE_MM, HEIGHT_MM)]
    return math.prod(math.ceil(max(0, edge - WINDOW) / step) + 1 for edge in edges)


def gpu_seconds(overlap: float, card: str) -> float:
    """Of the three networks on one case, at the assumed share of the card's peak."""
    return windows(overlap) * sum(GFLOP_PER_WINDOW.values()) / (PEAK_TFLOPS[card] * SHARE_OF_PEAK * 1000)


def table() -> str:
    """Markdown."""
    cpu_s = SLICES * CPU_S_PER_SLICE
    voxels, cached = 512 * 512 * SLICES, EDGE_MM * EDGE_MM * HEIGHT_MM / SPACING_MM**3
    rows = [
        "| card | overlap | GPU s a case | cores that keep it fed | " + " | ".join(f"{n:,} cases on 8, h" for n in CASES) + " |"
    ]
    rows.append("|---" * (4 + len(CASES)) + "|")
    for card in PEAK_TFLOPS:
        for overlap in OVERLAPS:
            seconds = gpu_seconds(overlap, card)
            hours = " | ".join(f"{n * seconds / 8 / 3600:.1f}" for n in CASES)
            rows.append(f"| {card} | {overlap} | {seconds:.1f} | {math.ceil(cpu_s / seconds)} | {hours} |")
    rows += ["", "| cases | images, TB | training cache, TB | results a round, TB |", "|---|---|---|---|"]
    for n in CASES:
        image, cache = n * voxels * IMAGE_BYTES_PER_VOXEL / 1e12, n * cached * CACHE_BYTES_PER_VOXEL / 1e12
        rows.append(f"| {n:,} | {image:.2f} | {cache:.2f} | {n * RESULTS_MB_PER_CASE / 1e6:.2f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
