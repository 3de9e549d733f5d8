"""The training cache: patches of 96^3 from Blosc2 blocks against plain arrays and against the compressed NIfTI file.

python benchmarks/cache.py [--size X Y Z] [--rounds N]
"""

# ruff: noqa: E402 (threads are set before numpy is imported)
import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import interleaved, one_thread, show, show_rows

one_thread()

import blosc2
import nibabel
import numpy as np
from patients import ct

from atlas_ray.data.preprocess import write_blocks

PATCH = 96
OURS = "cache (LZ4, bits shuffled)"


def packed(codec: "blosc2.Codec", shuffle: "blosc2.Filter") -> Callable[[Path, np.ndarray], object]:
    packing = {"codec": codec, "clevel": 1, "filters": [shuffle], "nthreads": 1}
    return lambda path, voxels: blosc2.asarray(voxels, urlpath=str(path), cparams=packing, chunks=(PATCH,) * 3)


def opened(path: Path) -> Any:
    return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(239, 239, 200))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    voxels = np.ascontiguousarray(ct(args.size))
    rng = np.random.default_rng(0)
    corners = [[int(rng.integers(max(1, n - PATCH))) for n in voxels.shape] for _ in range(8)]
    patches = [tuple(slice(start, start + PATCH) for start in corner) for corner in corners]
    kinds: dict[str, tuple[str, Callable[..., object], Callable[[Path], Any]]] = {
        OURS: ("ours.b2nd", write_blocks, opened),
        "b2nd, zstd 1, bits shuffled": ("zstd.b2nd", packed(blosc2.Codec.ZSTD, blosc2.Filter.BITSHUFFLE), opened),
        "b2nd, LZ4, bytes shuffled": ("lz4.b2nd", packed(blosc2.Codec.LZ4, blosc2.Filter.SHUFFLE), opened),
        "npy, memory map": ("plain.npy", np.save, lambda path: np.load(path, mmap_mode="r")),
        "nibabel .nii.gz, whole file": (
            "volume.nii.gz",
            lambda path, v: nibabel.save(nibabel.Nifti1Image(v, np.eye(4)), path),
            lambda path: np.asarray(nibabel.load(path).dataobj),
        ),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        readers, sizes = {}, []
        for kind, (file, write, open_) in kinds.items():
            path = folder / file
            write(path, voxels)
            if not all(np.array_equal(open_(path)[patch], voxels[patch]) for patch in patches[:2]):
                raise SystemExit(f"{kind}: a patch is not what was written")
            sizes.append((kind, f"{path.stat().st_size / 1e6:.1f} MB"))
            used = patches[:1] if path.suffix == ".gz" else patches
            readers[kind] = lambda path=path, open_=open_, used=used: [open_(path)[patch].astype(np.float32) for patch in used]
        note = (
            f"{tuple(args.size)} int16, {voxels.nbytes / 1e6:.0f} MB; eight patches of {PATCH}^3 as float32, each after opening "
            "the file (one patch of the .nii.gz); page cache warm, one thread. Every patch is bit for bit what was written."
        )
        show("Patches of the training cache", interleaved(readers, rounds=args.rounds), ours=OURS, note=note)
        show_rows("Size on disk", ("kind", "size"), sizes)


if __name__ == "__main__":
    main()
