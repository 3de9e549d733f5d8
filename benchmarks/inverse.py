"""Probabilities of nine organs from 1.5 mm to labels on the CT's grid: slabs and boxes against the whole volume at once.

python benchmarks/inverse.py [--size X Y Z] [--rounds N]
"""

# ruff: noqa: E402 (threads are set before numpy is imported)
import argparse

from measure import interleaved, one_thread, show, show_rows

one_thread()

import numpy as np
import torch
import torch.nn.functional as F
from patients import NATIVE_SPACING, ORGANS, probabilities
from scipy.ndimage import zoom

from atlas_ray.resampling import nearest_indices, shape_at_spacing
from atlas_ray.segmentation.pseudo_labels import PseudoLabels, Slab, native_slabs, support

NETWORK_SPACING = (1.5, 1.5, 1.5)
OURS = "support and native_slabs"
Size = tuple[int, int, int]


def by_slabs(p_MKXYZ: np.ndarray, size: Size) -> list[Slab]:
    return list(native_slabs(p_MKXYZ, support(p_MKXYZ, PseudoLabels()), size, halo=0))


def at_once(p_MKXYZ: np.ndarray, size: Size) -> np.ndarray:
    given = torch.from_numpy(np.ascontiguousarray(p_MKXYZ)).float()
    fine = F.interpolate(given, size=size, mode="trilinear")
    return np.asarray(fine.add_(0.5).to(torch.uint8)[0].numpy())


def by_scipy(p_MKXYZ: np.ndarray, size: Size) -> list[np.ndarray]:
    factors = [m / n for n, m in zip(p_MKXYZ.shape[2:], size, strict=True)]
    organs = (np.ascontiguousarray(organ, np.float32) for organ in p_MKXYZ[0])
    return [np.rint(zoom(organ, factors, order=1, mode="nearest", grid_mode=True)).astype(np.uint8) for organ in organs]


def labeled(bytes_KXYZ: np.ndarray) -> np.ndarray:
    """The most probable organ above one half, by number."""
    best, label = np.full(bytes_KXYZ.shape[1:], 127, np.uint8), np.zeros(bytes_KXYZ.shape[1:], np.uint8)
    for k, organ in enumerate(bytes_KXYZ):
        label[organ > best] = k + 1
        np.maximum(best, organ, out=best)
    return label


def by_nearest(p_MKXYZ: np.ndarray, size: Size) -> np.ndarray:
    label = np.ascontiguousarray(labeled(p_MKXYZ[0]))
    for axis, n_out in enumerate(size):
        label = label.take(nearest_indices(label.shape[axis], n_out), axis=axis)
    return label


def dices(a: np.ndarray, b: np.ndarray) -> list[float]:
    masks = [(a == k, b == k) for k in range(1, ORGANS + 1)]
    return [2 * float((x & y).sum()) / float(x.sum() + y.sum()) for x, y in masks if y.any()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 200))
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    size: Size = tuple(args.size)
    p = probabilities(shape_at_spacing(size, NATIVE_SPACING, NETWORK_SPACING))
    naive = at_once(p, size)
    ours = np.concatenate([slab.bytes_MKXYZ[0] for slab in by_slabs(p, size)], axis=-1)
    differing = int((ours != naive).sum())
    if differing > 1e-4 * naive.size or max(np.abs(a.astype(np.int16) - b).max() for a, b in zip(ours, naive, strict=True)) > 1:
        raise SystemExit(f"{differing} of {naive.size} bytes are not those of the naive way")
    times = interleaved(
        {
            OURS: lambda: by_slabs(p, size),
            "torch F.interpolate, all organs at once, float32": lambda: at_once(p, size),
            "nearest on labels, from the bytes": lambda: by_nearest(p, size),
        },
        rounds=args.rounds,
        warm_up=False,
    )
    note = (
        f"uint8 {p.shape} to {size}, bytes of nine organs. {differing} of {naive.size} differ by one, where torch adds in another "
        "order; that boxes and slabs change no byte is a test. Ours also makes the words of where predictions count."
    )
    show("To the image's grid", times, ours=OURS, note=note)
    slow = {OURS: lambda: by_slabs(p, size), "scipy zoom, order 1, per organ": lambda: by_scipy(p, size)}
    show("Against scipy", interleaved(slow, rounds=1, warm_up=False), ours=OURS)
    truth = labeled(naive)
    rows = [
        (name, f"{np.mean(found):.4f}", f"{min(found):.4f}")
        for name, found in (("nearest on labels", dices(by_nearest(p, size), truth)), ("ours", dices(labeled(ours), truth)))
    ]
    show_rows("What it costs", ("variant", "mean Dice with float32 linear", "smallest"), rows)


if __name__ == "__main__":
    main()
