"""resample_image against scipy, MONAI, SimpleITK and torch: an int16 CT to the networks' 1.5 mm, int16 again.

python benchmarks/resample.py [--rounds N]
"""

# ruff: noqa: E402 (threads are set before numpy is imported)
import argparse

from measure import interleaved, one_thread, show

one_thread()

import numpy as np
import SimpleITK
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Spacing
from patients import ct
from scipy.ndimage import zoom

from atlas_ray.resampling import linear_weights, resample_image, shape_at_spacing
from atlas_ray.volume import Volume

TARGET = (1.5, 1.5, 1.5)


def defined(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The definition: one dense matrix per axis, float32."""
    mixed = voxels.astype(np.float32)
    for axis, n_out in enumerate(shape):
        mixed = np.moveaxis(np.tensordot(linear_weights(mixed.shape[axis], n_out), mixed, axes=(1, axis)), 0, axis)
    return mixed


def whole(voxels: torch.Tensor) -> np.ndarray:
    result: np.ndarray = voxels.round_().to(torch.int16).numpy()
    return result


def compare(size: tuple[int, int, int], spacing: tuple[float, float, float], rounds: int) -> None:
    voxels = ct(size)
    in_c_order = np.ascontiguousarray(voxels)  # scipy and torch are faster on it
    image = Volume(voxels, np.diag([*spacing, 1.0]))
    shape = shape_at_spacing(size, spacing, TARGET)
    itk = SimpleITK.GetImageFromArray(voxels.T)
    itk.SetSpacing(spacing)
    new_spacing = [s * n / m for s, n, m in zip(spacing, size, shape, strict=True)]
    new_origin = [(new - old) / 2 for new, old in zip(new_spacing, spacing, strict=True)]
    monai_spacing = Spacing(pixdim=TARGET, mode="bilinear", padding_mode="border", dtype=torch.float32)

    def by_torch(*, antialias: bool = False) -> np.ndarray:
        given = torch.from_numpy(in_c_order).float()
        if not antialias:
            return whole(F.interpolate(given[None, None], size=shape, mode="trilinear")[0, 0])
        plane = F.interpolate(given.permute(2, 0, 1)[:, None], size=shape[:2], mode="bilinear", antialias=True)[:, 0]
        last = plane.permute(1, 2, 0).reshape(1, 1, -1, size[2])
        last = F.interpolate(last, size=(last.shape[2], shape[2]), mode="bilinear", antialias=True)
        return whole(last.reshape(shape))

    def by_itk() -> np.ndarray:
        direction, padding = itk.GetDirection(), -1000
        moved = SimpleITK.Resample(
            itk, list(shape), SimpleITK.Transform(), SimpleITK.sitkLinear, new_origin, new_spacing, direction, padding
        )
        return SimpleITK.GetArrayFromImage(moved).T

    zooms = [m / n for n, m in zip(size, shape, strict=True)]
    variants = {
        "resample_image": lambda: resample_image(image, shape).voxels,
        "scipy zoom, order 1, grid_mode": lambda: zoom(in_c_order, zooms, order=1, mode="nearest", grid_mode=True),
        "MONAI Spacing, bilinear": lambda: whole(monai_spacing(MetaTensor(in_c_order[None], affine=image.affine))[0].as_tensor()),
        "SimpleITK Resample, linear, 1 thread": by_itk,
        "torch F.interpolate, trilinear": by_torch,
        "torch F.interpolate, antialias, 2-D then 1-D": lambda: by_torch(antialias=True),
    }
    times = interleaved(variants, rounds=rounds)
    exact = defined(voxels, shape)
    worst = float(np.abs(variants["resample_image"]() - exact).max())
    if worst > 0.51:
        raise SystemExit(f"resample_image is off by {worst} HU from the matrices that define it")
    mean = np.abs(by_torch(antialias=True) - exact).mean()
    note = (
        f"{size} int16 at {spacing} mm to {shape} int16. resample_image differs from the dense matrices by at most {worst:.2f} HU "
        f"(rounding), torch with antialiasing by {mean:.2f} HU on average. scipy, MONAI, SimpleITK and trilinear torch do not "
        "antialias; MONAI puts the voxels elsewhere."
    )
    show(f"Resample {spacing[2]:g} mm slices", times, ours="resample_image", note=note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    compare((512, 512, 200), (0.7, 0.7, 1.5), args.rounds)
    compare((512, 512, 60), (0.7, 0.7, 5.0), args.rounds)


if __name__ == "__main__":
    main()
