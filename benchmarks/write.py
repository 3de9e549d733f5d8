"""write_volume against nibabel and SimpleITK on a CT and a label map of real size.

python benchmarks/write.py [--size X Y Z] [--rounds N]
"""

# ruff: noqa: E402 (threads are set before numpy is imported)
import argparse
import tempfile
from pathlib import Path

from measure import interleaved, one_thread, show, show_rows

one_thread()

import nibabel
import numpy as np
import SimpleITK
from patients import NATIVE_SPACING, ct, labels

from atlas_ray.volume import Volume, write_volume


def compare(name: str, voxels: np.ndarray, folder: Path, rounds: int) -> None:
    affine = np.diag([*NATIVE_SPACING, 1])
    image, volume = nibabel.Nifti1Image(voxels, affine), Volume(voxels, affine)
    itk = SimpleITK.GetImageFromArray(voxels.T)
    ours, theirs, third = (folder / f"{n}.nii.gz" for n in ("ours", "nibabel", "itk"))
    writers = {
        "write_volume (fsync included)": lambda: write_volume(ours, volume),
        "nibabel.save, its default level": lambda: nibabel.save(image, theirs),
        "SimpleITK, its default level, 1 thread": lambda: SimpleITK.WriteImage(itk, str(third), useCompression=True),
    }
    times = interleaved(writers, rounds=rounds)
    for path in (ours, theirs, third):
        if not np.array_equal(np.asarray(nibabel.load(path).dataobj), voxels):
            raise SystemExit(f"{path.name} does not hold what was written")
    note = f"{voxels.shape} {voxels.dtype}, {voxels.nbytes / 1e6:.0f} MB, x fastest. nibabel reads the same voxels from all files."
    show(f"Write {name}", times, ours="write_volume (fsync included)", note=note)
    sizes = [(path.stem.split(".")[0], f"{path.stat().st_size / 1e6:.2f} MB") for path in (ours, theirs, third)]
    show_rows(f"Files of {name}", ("file", "size"), sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 200))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        compare("CT", ct(args.size), Path(folder), args.rounds)
        compare("label map", labels(args.size), Path(folder), args.rounds)


if __name__ == "__main__":
    main()
