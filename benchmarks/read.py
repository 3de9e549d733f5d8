"""read_volume against nibabel and SimpleITK on a compressed CT and a label map of real size.

python benchmarks/read.py [--size X Y Z] [--rounds N]
"""

# ruff: noqa: E402 (threads are set before numpy is imported)
import argparse
import tempfile
from pathlib import Path

from measure import interleaved, one_thread, show

one_thread()

import nibabel
import numpy as np
import SimpleITK
from patients import NATIVE_SPACING, ct, labels

from atlas_ray.volume import read_volume


def compare(name: str, voxels: np.ndarray, folder: Path, rounds: int) -> None:
    path = folder / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*NATIVE_SPACING, 1])), path)
    readers = {
        "read_volume": lambda: read_volume(path).voxels,
        "nibabel, np.asarray(dataobj)": lambda: np.asarray(nibabel.load(path).dataobj),
        "nibabel, get_fdata (float64)": lambda: nibabel.load(path).get_fdata(),
        "SimpleITK, 1 thread": lambda: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).T,
    }
    for reader, call in readers.items():
        if not np.array_equal(call(), voxels):
            raise SystemExit(f"{reader} does not read what was written")
    size = f"{voxels.nbytes / 1e6:.0f} MB in {path.stat().st_size / 1e6:.1f} MB"
    note = f"{voxels.shape} {voxels.dtype}, {size}; page cache warm. All read the same voxels."
    show(f"Read {name}", interleaved(readers, rounds=rounds), ours="read_volume", note=note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 200))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        compare("CT", ct(args.size), Path(folder), args.rounds)
        compare("label map", labels(args.size), Path(folder), args.rounds)


if __name__ == "__main__":
    main()
