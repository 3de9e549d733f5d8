"""FaithfulAttention against the plain way: numpy float64 and scipy.ndimage over the whole volume, organ by organ.

Same probabilities, same rules, one core; the maps must be equal. Prints sizes, machine, seconds and the ratio.

python benchmarks/attention.py [--size X Y Z] [--architectures M] [--organs K] [--repeat N]
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy import ndimage
from scipy.special import entr

from atlas_ray.attention.criteria import FaithfulAttention
from atlas_ray.organs import Organs, load_organs

FULL = ndimage.generate_binary_structure(3, 3)
SPACING = (1.5, 1.5, 1.5)


def probabilities(architectures: int, organs: int, shape: tuple[int, ...]) -> np.ndarray:
    """One ellipsoid per organ, its wall a little elsewhere for every architecture. [M, K, X, Y, Z] float32."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    result = np.empty((architectures, organs, *shape), np.float32)
    for k in range(organs):
        center, radius = rng.uniform(0.3, 0.7, 3) * shape, rng.uniform(0.08, 0.2, 3) * min(shape)
        for m in range(architectures):
            moved = center + rng.normal(0, 2, 3)
            distance = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, moved, radius, strict=True))
            result[m, k] = 1 / (1 + np.exp(np.minimum(6 * (distance - 1), 80)))
    return result


def plain(p_MKXYZ: np.ndarray, organs: Organs) -> tuple[np.ndarray, np.ndarray]:
    """bits, heat [K, X, Y, Z]: the authors' rules (paper-algorithm a.3, a.4) written down as they are."""
    soft = (p_MKXYZ.astype(np.float64) * 255).astype(np.uint8)
    average = (soft / 255).sum(axis=0) / len(soft) > 0.5
    bits, heats = [], []
    for k, partners in enumerate(organs.overlap_partners):
        entropy = (entr(p_MKXYZ[:, k].astype(np.float64)) * 255).astype(np.uint8)
        deviation, uncertainty = np.std(soft[:, k] / 255, axis=0), (entropy / 255).sum(axis=0) / len(entropy)
        doubted, uncertain = opened(deviation > 0.1), opened(uncertainty > 0.05)
        overlap = np.zeros(deviation.shape, bool)
        for other in partners:
            overlap |= average[k] & average[other]
        bits.append((doubted + 2 * uncertain + 4 * overlap).astype(np.uint8))
        heats.append(deviation * doubted + uncertainty * uncertain + overlap)
    return np.stack(bits), np.stack(heats)


def opened(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_dilation(ndimage.binary_erosion(mask, FULL, iterations=2), FULL, iterations=2)


def best_of(repeat: int, call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the fastest run, and its result."""
    seconds, result = [], None
    for _ in range(repeat):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(160, 128, 128))
    parser.add_argument("--architectures", type=int, default=3)
    parser.add_argument("--organs", type=int, default=9)
    parser.add_argument("--repeat", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    full = load_organs("abdomenatlas_1_0")
    if args.organs > len(full):
        parser.error(f"--organs: at most {len(full)}")
    organs = Organs(name="benchmark", organs=full.organs[: args.organs])
    p = probabilities(args.architectures, len(organs), tuple(args.size))
    tensor = torch.from_numpy(p)
    ours_s, maps = best_of(args.repeat, lambda: FaithfulAttention()(tensor, support_MKXYZ=None, organs=organs, spacing=SPACING))
    plain_s, (bits, heat) = best_of(args.repeat, lambda: plain(p, organs))
    same = np.array_equal(maps.bits_KXYZ.numpy(), bits) and np.abs(maps.heat_KXYZ.numpy() - heat).max() < 1e-6
    share = (bits > 0).mean()
    print(f"attention, faithful: {args.architectures} architectures x {len(organs)} organs x {args.size}, {share:.1%} attended")
    print(f"on one core of {platform.processor() or platform.machine()}, torch {torch.__version__}, numpy {np.__version__}")
    print(f"ours {ours_s:.2f} s   numpy/scipy {plain_s:.2f} s   ratio {plain_s / ours_s:.1f}   same maps: {same}")
    if not same:
        raise SystemExit("the maps differ")


if __name__ == "__main__":
    main()
