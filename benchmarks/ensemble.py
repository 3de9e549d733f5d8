"""A whole volume through sliding windows: ours, MONAI's and, where nnunetv2 is installed, nnU-Net's, on one core.

python benchmarks/ensemble.py [--size X Y Z] [--architectures NAME ...] [--rounds N]

Networks are the paper's sizes with random weights: time does not depend on them.
"""

import argparse
import contextlib
import importlib.util
import io
import time
import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from measure import interleaved, show, show_rows
from monai.inferers.utils import sliding_window_inference

from atlas_ray.segmentation.architectures import NNUNet, SwinUNETR, UNet
from atlas_ray.segmentation.inference import Inference, normalize, predict_ensemble
from atlas_ray.segmentation.windows import Windows

ORGANS = 9
WINDOW = (96, 96, 96)
WINDOW_HU = (-175.0, 250.0)
ARCHITECTURES = {"swin_unetr": SwinUNETR(), "nnunet": NNUNet(), "unet": UNet()}
Forward = Callable[[torch.Tensor], torch.Tensor]


def monai(forward: Forward, image: np.ndarray, *, overlap: float) -> torch.Tensor:
    """Float32, Gaussian weights, one window at a time."""
    given = torch.from_numpy(normalize(image, WINDOW_HU))[None, None]
    with torch.inference_mode():
        return sliding_window_inference(given, WINDOW, 1, forward, overlap=overlap, mode="gaussian")[0].sigmoid_()


def nnunet(forward: Forward, image: np.ndarray, *, step: float) -> torch.Tensor:
    """nnU-Net's predictor with its own settings (Gaussian, float16 sums, float32 network on CPUs) but without mirroring."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with contextlib.redirect_stdout(io.StringIO()):  # it says that CPUs are no GPUs
        predictor = nnUNetPredictor(
            tile_step_size=step, use_gaussian=True, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
        )
    predictor.network = torch.nn.Identity()
    predictor.network.forward = lambda windows: forward(windows)  # a network set as it is would become a child, and not be called
    predictor.configuration_manager = SimpleNamespace(patch_size=WINDOW)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=ORGANS)
    given = torch.from_numpy(normalize(image, WINDOW_HU))[None]
    return predictor.predict_sliding_window_return_logits(given).float().sigmoid_()


def ours(forward: Forward, image: np.ndarray, *, overlap: float) -> np.ndarray:
    settings = Inference(window=WINDOW, overlap=overlap, memory_gb=8)
    return predict_ensemble(
        {"one": forward}, image, settings, window_hu=WINDOW_HU, spacing=(1.5, 1.5, 1.5), device="cpu"
    ).bytes_MKXYZ


def answering() -> Forward:
    """A network that costs nothing but a fresh answer; peers overwrite it, so it must be fresh."""
    answer = torch.randn(1, ORGANS, *WINDOW)
    return lambda windows: answer.clone()


def show_overhead(size: tuple[int, int, int], rounds: int) -> None:
    image, forward = np.zeros(size, np.int16), answering()
    count = len(Windows.over(size, WINDOW, 0.5))
    variants: dict[str, Callable[[], Any]] = {"ours": partial(ours, forward, image, overlap=0.5)}
    variants["MONAI"] = partial(monai, forward, image, overlap=0.5)
    if has_nnunet():
        variants["nnU-Net 2"] = partial(nnunet, forward, image, step=0.5)
    variants["the answers alone"] = lambda: [forward(None) for _ in range(count)]
    show(
        f"Everything but the network: {'x'.join(map(str, size))}, overlap 0.5",
        interleaved(variants, rounds=rounds, clock=time.process_time),
        ours="ours",
        note=f"{count} windows of 96^3, {ORGANS} channels. CPU seconds. Ours ends with bytes, the others with probabilities.",
    )


def show_end_to_end(name: str, size: tuple[int, int, int], rounds: int) -> None:
    image = np.random.default_rng(0).integers(-200, 300, size).astype(np.int16)
    torch.manual_seed(0)
    network = ARCHITECTURES[name].build(ORGANS).eval()
    member = Inference(window=WINDOW).prepare(network, device="cpu")
    variants: dict[str, Callable[[], Any]] = {
        "ours, overlap 0.75": partial(ours, member, image, overlap=0.75),
        "MONAI float32, overlap 0.75": partial(monai, network, image, overlap=0.75),
        "ours, overlap 0.5": partial(ours, member, image, overlap=0.5),
        "MONAI float32, overlap 0.5": partial(monai, network, image, overlap=0.5),
    }
    if has_nnunet():
        variants["nnU-Net 2 float32, step 0.5"] = partial(nnunet, network, image, step=0.5)
    show(
        f"End to end: {name}, {'x'.join(map(str, size))}",
        interleaved(variants, rounds=rounds, warm_up=False, clock=time.process_time),
        ours="ours, overlap 0.75",
        note="The paper's network, 96^3 windows one at a time, Gaussian weights. CPU seconds. Ours with precision auto.",
    )


def show_windows() -> None:
    sizes = [(160, 160, 128), (256, 256, 200), (280, 280, 400), (273, 273, 929)]
    overlaps = (0.75, 0.5, 0.25, 0.0)
    rows = [("x".join(map(str, size)), *(len(Windows.over(size, WINDOW, overlap)) for overlap in overlaps)) for size in sizes]
    show_rows("Windows of 96^3 by overlap", ("volume", *map(str, overlaps)), rows)


def has_nnunet() -> bool:
    return importlib.util.find_spec("nnunetv2") is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(160, 160, 128))
    parser.add_argument("--architectures", nargs="*", default=["unet"], choices=list(ARCHITECTURES))
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peers' own
    if not has_nnunet():
        print("nnunetv2 is not installed, so nnU-Net's predictor is left out.")
    show_windows()
    show_overhead((256, 256, 200), rounds=3)
    for name in args.architectures:
        show_end_to_end(name, tuple(args.size), args.rounds)


if __name__ == "__main__":
    main()
