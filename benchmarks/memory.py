"""Peak resident memory of predicting one large CT: the actor with the networks, and the task that finishes labels and attention.

python benchmarks/memory.py [--cases NAME ...] [--stages actor finish] [--real N]
python benchmarks/memory.py --job

With --job the real `jobs.predict` runs on one CT of 512 x 512 x 1,394 voxels, and the memory of all its processes together is
sampled, Ray's own and the object store's included: proportional set sizes, so that what several share counts once. The networks
are of the same three kinds, but small, and the CT is one slab of bright balls again and again, so that it takes minutes; the
nnU-Net finds the balls, and the others, which find nothing, disagree with it in all of them.

Otherwise each row is a fresh process. configs/abdomen8.yaml at overlap 0.5: three networks of the paper's sizes, nine organs, 96^3
windows. Every network really runs on its first N windows, so that what it needs counts; the other windows get one prepared answer
with an organ of each kind in it, so that a row takes minutes. The baseline (interpreter, libraries, weights) is subtracted; image,
sums, result and files are not.
"""

import argparse
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measure import machine, show_rows
from stream import descendants

from atlas_ray.cluster.finishing import finish
from atlas_ray.cluster.prediction import Ensemble
from atlas_ray.cluster.timing import Stopwatch
from atlas_ray.config import Campaign, load_config
from atlas_ray.data.ingest import sha256_of
from atlas_ray.records import Case
from atlas_ray.resampling import shape_at_spacing
from atlas_ray.segmentation.architectures import Architecture, NNUNet, SwinUNETR, UNet
from atlas_ray.segmentation.checkpoints import CheckpointHeader, Provenance, save_checkpoint
from atlas_ray.segmentation.inference import Inference
from atlas_ray.segmentation.packed_probabilities import PackedProbabilities, pack
from atlas_ray.volume import Volume, write_volume
from atlas_ray.workspace import write_lines

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT_GB = 6.0  # 10^9 bytes, of all processes together
NETWORK_SPACING = (1.5, 1.5, 1.5)
WINDOW = (96, 96, 96)
CASES = {  # name -> the CT's own shape and spacing
    "512x512x800 at 0.8x0.8x1 mm": ((512, 512, 800), (0.8, 0.8, 1.0)),
    "512x512x1394 at 0.8x0.8x1 mm": ((512, 512, 1394), (0.8, 0.8, 1.0)),
    "512x512x800 at 1.5 mm": ((512, 512, 800), NETWORK_SPACING),
}
SMALL: tuple[Architecture, ...] = (
    SwinUNETR(feature_size=12, depths=(1, 1, 1, 1)),
    NNUNet(features=(2, 4), convs_per_stage=1),
    UNet(features=(4, 8), residual_units=1),
)
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


# --- the whole job ---------------------------------------------------------------------------------------------------


def run_job(slices: int) -> int:
    """Predict one CT with jobs.predict and print the peaks. 1 where they are above the limit, or nothing came of it."""
    with tempfile.TemporaryDirectory(prefix="memory") as folder:
        config = _job(Path(folder), (512, 512, slices), (0.8, 0.8, 1.0))
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        log, began = Path(folder) / "log", time.monotonic()
        with log.open("w") as out:
            command = [sys.executable, "-m", "jobs.predict", str(config)]
            job = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
        peaks, most, total = Counter[str](), Counter[str](), 0.0
        while job.poll() is None:
            now = _by_kind([job.pid, *descendants(job.pid)])
            peaks |= now
            if now.total() > total:
                most, total = now, now.total()
            time.sleep(0.3)
        made = load_config(config).open_workspace().predicted(0)
        print(machine())
        rows = [(kind, f"{peaks[kind] / 1e9:.2f}", f"{most[kind] / 1e9:.2f}") for kind in sorted(peaks, key=lambda k: -peaks[k])]
        show_rows(
            f"Memory of jobs.predict on 512x512x{slices} at 0.8x0.8x1 mm, {time.monotonic() - began:.0f} s",
            ("processes", "own peak, GB", "at the peak of all, GB"),
            [*rows, ("all together", "", f"{total / 1e9:.2f}")],
            note=f"GB of 10^9 bytes; limit {LIMIT_GB} GB.",
        )
        print("\n" + log.read_text()[-2500:])
        return 0 if made and total <= LIMIT_GB * 1e9 else 1


def _by_kind(pids: list[int]) -> Counter[str]:
    """Proportional set sizes in bytes; what several processes share is split among them."""
    sizes = Counter[str]()
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            name = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            sizes[_kind(name)] += 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return sizes


def _kind(command: str) -> str:
    for part, kind in (
        ("ray::MapWorker", "actor"),
        ("ray::IDLE", "idle workers"),
        ("ray::", "tasks"),
        ("raylet/raylet", "raylet and object store"),
        ("gcs_server", "Ray's other daemons"),
        ("jobs.predict", "driver"),
    ):
        if part in command:
            return kind
    return "Ray's other daemons"


def _job(root: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Path:
    """Configuration, image, manifest and networks."""
    config = root / "campaign.yaml"
    content: dict[str, Any] = {
        "name": "memory",
        "workspace": str(root / "workspace"),
        "organs": "abdomenatlas_1_0",
        "datasets": [{"source": "phantom", "name": "unused", "count": 1, "split": "pool"}],
        "preprocessing": {"spacing": list(NETWORK_SPACING)},
        "architectures": [a.model_dump(mode="json") for a in SMALL],
        "patches": {"patch": list(WINDOW)},
        "inference": {"window": list(WINDOW), "overlap": 0.25, "overlaps": {"swin_unetr": 0.05}, "memory_gb": 0.5},
        "pseudo_labels": {"threshold": 0.3},  # one network of three decides
    }
    config.write_text(yaml.safe_dump(content))
    campaign = load_config(config)
    image = root / "ct.nii.gz"
    slab_XYZ = _balls(shape[:2], 100)
    voxels = np.concatenate([slab_XYZ] * -(-shape[2] // 100), axis=2)[..., : shape[2]]
    write_volume(image, Volume(voxels, np.diag([*spacing, 1.0])))
    case = {"case_id": "large", "image": str(image), "sha256": sha256_of(image), "shape": shape, "spacing": spacing}
    fields = {"orientation": "RAS", "source": "here", "license": "CC0-1.0", "split": "pool"}
    write_lines(campaign.open_workspace().manifest, [Case.model_validate({**case, **fields})])
    for architecture in SMALL:
        _save(campaign, architecture)
    return config


def _balls(shape: tuple[int, int], slices: int) -> Any:
    """HU, int16: balls of 21 mm radius that grow brighter toward their centers, one in every 103 x 103 x 100 mm, in noise.

    They are 3.7 % of the volume, 8 l, and attended whole: more than the organs of a person, and far more than their attention.
    """
    random = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (*shape, slices)), indexing="ij", sparse=True)
    square = ((x % 128 - 64) * 0.8) ** 2 + ((y % 128 - 64) * 0.8) ** 2 + (z - slices / 2) ** 2
    bright = np.clip(1 - np.sqrt(square) / 21, 0, 1) * 400
    return (bright - 100 + random.normal(0, 3, bright.shape)).astype(np.int16)


def _save(campaign: Campaign, architecture: Architecture) -> None:
    """A checkpoint: the nnU-Net finds what is bright in its window, an organ more at every step; the others find nothing."""
    organs = campaign.load_organs()
    torch.manual_seed(0)
    network = architecture.build(len(organs))
    weights = dict(network.named_parameters())
    with torch.no_grad():
        if isinstance(architecture, NNUNet):
            for name, parameter in weights.items():
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            weights["encoder.stages.0.0.convs.0.conv.weight"][0, 0, 1, 1, 1] = 1
            weights["decoder.stages.0.convs.0.conv.weight"][0, 2, 1, 1, 1] = 1  # the skip connection; 0 and 1 come from below
            weights["decoder.seg_layers.0.weight"][:, 0] = 4
            weights["decoder.seg_layers.0.bias"].copy_(torch.arange(len(organs)) * -1.5 - 6)
        else:
            head = "out.conv.conv" if isinstance(architecture, SwinUNETR) else "head"
            weights[f"{head}.weight"].zero_()
            weights[f"{head}.bias"].fill_(-8)
    origin = Provenance(round=0, cases=1, data_key="none", steps=1, seed=0, created="2026-01-01T00:00:00+00:00")
    header = CheckpointHeader(
        architecture=architecture, organs=organs.names, spacing=NETWORK_SPACING, window_hu=(-175, 250), provenance=origin
    )
    save_checkpoint(campaign.open_workspace().checkpoint(0, architecture.architecture), header, network.state_dict())


# --- command line ----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--stages", nargs="*", default=["actor", "finish"], choices=["actor", "finish"])
    parser.add_argument("--real", type=int, default=1)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--job", action="store_true", help="the whole job, all its processes")
    parser.add_argument("--slices", type=int, default=1394, help="of the job's CT")
    args = parser.parse_args()
    if args.job:
        sys.exit(run_job(args.slices))
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
