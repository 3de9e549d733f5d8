"""read_volume and write_volume against nibabel's own, on a CT and a label map of real size.

Same files, one core; what is read back must be equal. Prints sizes, machine, seconds and the ratios.

python benchmarks/read_write.py [--size X Y Z] [--repeat N]
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from atlas_ray.volume import Volume, read_volume, write_volume

AFFINE = np.diag([0.8, 0.8, 1.0, 1.0])


def ct(shape: tuple[int, ...]) -> np.ndarray:
    """Air around a noisy body, int16 in file order: it compresses about as a CT does."""
    rng = np.random.default_rng(0)
    voxels = np.full(shape, -1000, np.int16, order="F")
    body = tuple(slice(n // 6, n - n // 6) for n in shape[:2])
    for z in range(shape[2]):
        plane = voxels[(*body, z)]
        plane[:] = rng.normal(40, 14, plane.shape)
    return voxels


def label(shape: tuple[int, ...]) -> np.ndarray:
    """Nine boxes, uint8."""
    voxels = np.zeros(shape, np.uint8, order="F")
    for k in range(9):
        voxels[tuple(slice(n * (k + 2) // 14, n * (k + 4) // 14) for n in shape)] = k + 1
    return voxels


def best_of(repeat: int, call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the fastest run, and its result."""
    seconds, result = [], None
    for _ in range(repeat):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def compare(name: str, voxels: np.ndarray, folder: Path, repeat: int) -> None:
    ours, theirs = folder / "ours.nii.gz", folder / "theirs.nii.gz"
    volume, image = Volume(voxels, AFFINE), nibabel.Nifti1Image(voxels, AFFINE)
    write_s, _ = best_of(repeat, lambda: write_volume(ours, volume))
    their_write_s, _ = best_of(repeat, lambda: nibabel.save(image, theirs))
    read_s, back = best_of(repeat, lambda: read_volume(theirs))
    their_read_s, _ = best_of(repeat, lambda: np.asanyarray(nibabel.load(theirs).dataobj))
    if not np.array_equal(back.voxels, voxels) or not np.array_equal(read_volume(ours).voxels, voxels):
        raise SystemExit(f"{name}: what was read is not what was written")
    sizes = f"{ours.stat().st_size / 1e6:.1f} and {theirs.stat().st_size / 1e6:.1f} MB"
    print(f"{name} write: ours {write_s:.2f} s  nibabel {their_write_s:.2f} s  ratio {their_write_s / write_s:.1f}  ({sizes})")
    print(f"{name} read:  ours {read_s:.2f} s  nibabel {their_read_s:.2f} s  ratio {their_read_s / read_s:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 160))
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"{args.size} voxels, one core of {platform.processor() or platform.machine()}, nibabel {nibabel.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for name, voxels in (("CT int16", ct(tuple(args.size))), ("label uint8", label(tuple(args.size)))):
            compare(name, voxels, Path(folder), args.repeat)


if __name__ == "__main__":
    main()
