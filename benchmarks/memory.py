"""Peak resident memory of predicting one large CT: the actor with the networks, and the task that finishes labels and attention.

python benchmarks/memory.py [--cases NAME ...] [--stages actor finish] [--real N]

Each row is a fresh process. configs/abdomen8.yaml at overlap 0.5: three networks of the paper's sizes, nine organs, 96^3 windows.
Every network really runs on its first N windows, so that what it needs counts; the other windows get one prepared answer with an
organ of each kind in it, so that a row takes minutes. The baseline (interpreter, libraries, weights) is subtracted; image, sums,
result and files are not.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import show_rows

from atlas_ray.cluster.finishing import finish
from atlas_ray.cluster.prediction import Ensemble
from atlas_ray.cluster.timing import Stopwatch
from atlas_ray.config import Campaign, load_config
from atlas_ray.records import Case
from atlas_ray.resampling import shape_at_spacing
from atlas_ray.segmentation.architectures import Architecture, NNUNet, SwinUNETR, UNet
from atlas_ray.segmentation.inference import Inference
from atlas_ray.segmentation.packed import PackedProbabilities, pack
from atlas_ray.volume import Volume

NETWORK_SPACING = (1.5, 1.5, 1.5)
WINDOW = (96, 96, 96)
CASES = {  # name -> the CT's own shape and spacing
    "512x512x800 at 0.8x0.8x1 mm": ((512, 512, 800), (0.8, 0.8, 1.0)),
    "512x512x1394 at 0.8x0.8x1 mm": ((512, 512, 1394), (0.8, 0.8, 1.0)),
    "512x512x800 at 1.5 mm": ((512, 512, 800), NETWORK_SPACING),
}
ARCHITECTURES: tuple[Architecture, ...] = (SwinUNETR(), NNUNet(), UNet())


class FirstWindows:
    """A network that runs on its first windows only; then its answer is a ball per organ, a little elsewhere for every member."""

    def __init__(self, architecture: Architecture, organs: int, *, real: int, shift: int) -> None:
        network = architecture.build(organs).eval()
        self.forward = Inference(window=WINDOW).prepare(network, device="cpu")
        self.left = real
        axes = np.meshgrid(*(np.arange(n) for n in WINDOW), indexing="ij", sparse=True)
        answer = np.empty((1, organs, *WINDOW), np.float32)
        for k in range(organs):
            center = (18 + 30 * (k % 3), 18 + 30 * (k // 3), 46 + shift)
            radius = np.sqrt(sum((a - c) ** 2 for a, c in zip(axes, center, strict=True)))
            answer[0, k] = np.clip(12 - radius, -8, 8)
        self.answer = torch.from_numpy(answer)

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        if self.left:
            self.left -= 1
            self.forward(windows)
        return self.answer


def run_one(name: str, stage: str, real: int) -> dict[str, Any]:
    """One row, in this process."""
    torch.set_num_threads(1)
    native_shape, native_spacing = CASES[name]
    campaign = load_config("abdomen8", ["inference.overlap=0.5", "cluster.use_gpu=false"])
    organs = campaign.load_organs()
    members = {a.architecture: FirstWindows(a, len(organs), real=real, shift=i) for i, a in enumerate(ARCHITECTURES)}
    shape = shape_at_spacing(native_shape, native_spacing, NETWORK_SPACING)
    actor = Ensemble.__new__(Ensemble)  # as in a job, without Ray and checkpoints
    actor.campaign, actor.device, actor.members = campaign, torch.device("cpu"), members
    baseline = _memory("VmRSS")
    _forget_peak()
    began = time.monotonic()
    image = np.random.default_rng(0).integers(-200, 300, shape, dtype=np.int16)
    packed = [pack(one) for one in actor.predict(image)]
    if stage == "finish":
        del image
        baseline = _memory("VmRSS") - sum(map(len, packed)) / 2**30
        _forget_peak()
        began = time.monotonic()
        _finish(campaign, packed, native_shape, native_spacing)
    seconds = time.monotonic() - began
    return {"shape": shape, "baseline": baseline, "peak": _memory("VmHWM") - baseline, "seconds": seconds}


def _finish(campaign: Campaign, packed: list[bytes], shape: Any, spacing: Any) -> None:
    case = Case(
        case_id="memory",
        image="none",
        sha256="",
        shape=shape,
        spacing=spacing,
        orientation="RAS",
        source="none",
        license="none",
        split="pool",
        labeled_organs=(),
    )
    grid = Volume(np.broadcast_to(np.uint8(0), shape), np.diag([*spacing, 1.0]))
    checkpoints = dict.fromkeys(campaign.architecture_names, "")
    with tempfile.TemporaryDirectory() as folder:
        finish(
            Path(folder),
            campaign,
            case,
            grid,
            PackedProbabilities(packed),
            round_index=0,
            checkpoints=checkpoints,
            key="",
            watch=Stopwatch(),
        )


def _forget_peak() -> None:
    """The peak counts from here."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory(field: str) -> float:
    """GB (2^30) of /proc/self/status after giving free memory back."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--stages", nargs="*", default=["actor", "finish"], choices=["actor", "finish"])
    parser.add_argument("--real", type=int, default=1)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_this_process:
        print(json.dumps(run_one(args.cases[0], args.stages[0], args.real)))
        return
    rows = []
    for stage in args.stages:
        for name in args.cases:
            command = [sys.executable, __file__, "--in-this-process", "--cases", name, "--stages", stage, "--real", str(args.real)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                rows.append((stage, name, "", "", f"ended with {done.returncode}", ""))
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            grid = "x".join(map(str, row["shape"]))
            rows.append((stage, name, grid, f"{row['baseline']:.2f}", f"{row['peak']:.2f}", f"{row['seconds']:.0f}"))
    show_rows(
        "Peak resident memory of one prediction",
        ("stage", "CT", "grid at 1.5 mm", "baseline GB", "peak above it GB", "seconds"),
        rows,
        note=f"VmHWM in GB of 2^30 bytes, three members, nine organs; {args.real} real window(s) per network.",
    )


if __name__ == "__main__":
    main()
