"""What speed costs in Dice: bfloat16, fewer windows and the coarse pass against float32 windows at an overlap of 0.75.

python benchmarks/accuracy.py [--workspace FOLDER] [--round N] [--cases ID ...]

Needs trained networks and holdout cases with a reference label. `python -m jobs.run_round semisynthetic` makes both from 20 BTCV
label maps; its CT are textured label maps, so the differences say something about the method and nothing about real CT. Dice is
measured at the networks' spacing, without post-processing.
"""

import argparse
import copy
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measure import show_rows
from monai.inferers.utils import sliding_window_inference
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from atlas_ray.config import Campaign
from atlas_ray.data.preprocess import label_to_network_grid, to_network_grid
from atlas_ray.organs import Organs
from atlas_ray.resampling import resample_image, resample_labels
from atlas_ray.segmentation.checkpoints import load_network
from atlas_ray.segmentation.coarse import Coarse, Region, find_region
from atlas_ray.segmentation.inference import EnsemblePrediction, Inference, normalize, predict_ensemble
from atlas_ray.segmentation.metrics import mean_organ_dice, mean_over_organs, organ_dice
from atlas_ray.volume import Volume, read_volume
from atlas_ray.workspace import Workspace

HERE = Path(__file__).resolve().parent
OVERLAPS = (0.75, 0.5, 0.25, 0.0)
REFERENCE = "MONAI, float32, overlap 0.75"
Forward = Callable[[torch.Tensor], torch.Tensor]
Networks = Mapping[str, Forward]


class RoundToBfloat16(TorchDispatchMode):
    """Round what every operation returns to bfloat16, as if the whole network computed in it with float32 sums. Harsher than
    autocast, which keeps some operations in float32, and much faster than a processor's emulation."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map(_rounded, operation(*args, **(kwargs or {})))


def _rounded(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
        value.copy_(value.bfloat16())  # in place: what is returned may be what was given
    return value


class Remembered:
    """A network that answers a window it has seen before from memory: the grids of the variants share most of their windows."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.answers: dict[bytes, torch.Tensor] = {}

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        key = hashlib.sha256(windows.contiguous().numpy().tobytes()).digest()
        if key not in self.answers:
            self.answers[key] = self.network(windows)
        return self.answers[key].clone()


def in_bfloat16(network: torch.nn.Module) -> Forward:
    network = copy.deepcopy(network)  # weights are rounded too
    for parameter in network.parameters():
        parameter.data = parameter.data.bfloat16().float()

    def forward(windows: torch.Tensor) -> torch.Tensor:
        with RoundToBfloat16():
            return network(windows.clone())

    return forward


def monai_reference(networks: Networks, campaign: Campaign, image: np.ndarray) -> np.ndarray:
    """The plain way, quantized like ours. [M, K, X, Y, Z] uint8."""
    given = torch.from_numpy(normalize(image, campaign.preprocessing.window_hu))[None, None]
    slide = partial(sliding_window_inference, overlap=0.75, mode="gaussian")
    with torch.inference_mode():
        logits = [slide(given, campaign.inference.window, 1, network)[0] for network in networks.values()]
    return np.stack([torch.sigmoid(one).mul(255).round().to(torch.uint8).numpy() for one in logits])


def ours(members: Networks, campaign: Campaign, image: np.ndarray, **changes: Any) -> EnsemblePrediction:
    return predict_ensemble(
        members,
        image,
        Inference(window=campaign.inference.window, precision="float32", **changes),
        window_hu=campaign.preprocessing.window_hu,
        spacing=campaign.preprocessing.spacing,
        device="cpu",
    )


def labels_of(bytes_MKXYZ: np.ndarray, organs: Organs) -> np.ndarray:
    """The most probable organ of the mean over members, where that is above one half."""
    mean = bytes_MKXYZ.mean(axis=0, dtype=np.float32) / 255
    ids = np.array(organs.label_ids, np.uint8)
    return np.where(mean.max(axis=0) > 0.5, ids[mean.argmax(axis=0)], 0).astype(np.uint8)


class Scores:
    """Dice of every variant, per organ, over the cases."""

    def __init__(self, organs: Organs) -> None:
        self.organs = organs
        self.cases: dict[str, list[dict[str, float | None]]] = {}

    def add(self, variant: str, bytes_MKXYZ: np.ndarray, truth: np.ndarray) -> None:
        scores = organ_dice(labels_of(bytes_MKXYZ, self.organs), truth, self.organs)
        self.cases.setdefault(variant, []).append(scores)

    def of(self, variant: str) -> tuple[list[float], float]:
        rows = mean_organ_dice(self.cases[variant], self.organs)
        return [row.dice or 0.0 for row in rows], mean_over_organs(rows) or 0.0

    def rows(self, variants: list[str], reference: str) -> list[tuple[Any, ...]]:
        """Dice of the reference, then differences to it; the last column is the largest difference of an organ."""
        base, base_mean = self.of(reference)
        result: list[tuple[Any, ...]] = [(reference, f"{base_mean:.4f}", *(f"{d:.4f}" for d in base), "")]
        for variant in variants:
            dice, mean = self.of(variant)
            gaps = [mine - theirs for mine, theirs in zip(dice, base, strict=True)]
            worst = max(gaps, key=abs)
            result.append((variant, f"{mean - base_mean:+.4f}", *(f"{gap:+.4f}" for gap in gaps), f"{worst:+.4f}"))
        return result


def box_quality(region: Region, truth: np.ndarray) -> tuple[float, float]:
    """Share of the organs' voxels inside the box, and share of the volume that the box is."""
    inside = truth[region.box]
    return float((inside > 0).sum() / (truth > 0).sum()), inside.size / truth.size


def look_at_own_spacing(name: str, network: Forward, campaign: Campaign, image: Volume) -> np.ndarray:
    return ours({name: network}, campaign, image.voxels, overlap=0.0).bytes_MKXYZ[0]


def look_at_twice_the_spacing(name: str, network: Forward, campaign: Campaign, image: Volume) -> np.ndarray:
    """The network on a volume of half as many voxels per axis, its answer brought back by nearest neighbor."""
    half = tuple(-(-n // 2) for n in image.shape)
    small = resample_image(image, half)
    seen = ours({name: network}, campaign, small.voxels, overlap=0.0).bytes_MKXYZ[0]
    return np.stack([resample_labels(Volume(k, small.affine), image.shape).voxels for k in seen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=HERE.parent / "workspaces" / "semisynthetic")
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--cases", nargs="*", help="only these, by id")
    args = parser.parse_args()
    torch.set_num_threads(1)
    workspace = Workspace(args.workspace)
    if not workspace.config.exists():
        print(f"No trained networks in {args.workspace.name}; `python -m jobs.run_round semisynthetic` trains some.")
        return
    campaign = Campaign.model_validate(yaml.safe_load(workspace.config.read_text()))
    organs = campaign.load_organs()
    paths = {name: workspace.checkpoint(args.round, name) for name in campaign.architecture_names}
    trained = {name: load_network(path, organs.names)[0].eval() for name, path in paths.items() if path.exists()}
    cases = [c for c in workspace.cases() if c.split == "holdout" and workspace.truth(c.case_id).exists()]
    cases = [c for c in cases if args.cases is None or c.case_id in args.cases]
    if not trained or not cases:
        print(f"No checkpoint of round {args.round}, or no holdout case with a reference label, in {args.workspace.name}.")
        return
    scores, looks = Scores(organs), []
    rounded = {name: in_bfloat16(network) for name, network in trained.items()}
    default = Inference().overlap
    coarse_member = "unet" if "unet" in trained else next(iter(trained))
    coarse = Coarse(architecture=coarse_member)
    outcomes = []
    for case in cases:
        image = to_network_grid(read_volume(case.image), campaign.preprocessing)
        truth = label_to_network_grid(read_volume(workspace.truth(case.case_id)), campaign.preprocessing)
        networks = {name: Remembered(network) for name, network in trained.items()}
        answers = {REFERENCE: monai_reference(networks, campaign, image.voxels)}
        for overlap in OVERLAPS:
            answers[f"float32, overlap {overlap}"] = ours(networks, campaign, image.voxels, overlap=overlap).bytes_MKXYZ
        answers[f"bfloat16, overlap {default}"] = ours(rounded, campaign, image.voxels, overlap=default).bytes_MKXYZ
        found = ours(networks, campaign, image.voxels, overlap=default, coarse=coarse)
        answers[f"float32, overlap {default}, coarse pass"] = found.bytes_MKXYZ
        inside, share = box_quality(found.region, truth)
        outcomes.append((case.case_id, found.region.why_whole or "box", f"{share:.0%}", f"{inside:.2%}"))
        for variant, bytes_MKXYZ in answers.items():
            scores.add(variant, bytes_MKXYZ, truth)
            for m, name in enumerate(networks):
                scores.add(f"{name}: {variant}", bytes_MKXYZ[m : m + 1], truth)
        for how, look in (("own spacing", look_at_own_spacing), ("twice the spacing", look_at_twice_the_spacing)):
            for name, network in networks.items():
                seen = look(name, network, campaign, image)
                region = find_region(seen, Coarse(architecture=name), spacing=campaign.preprocessing.spacing, least=(1, 1, 1))
                dice = mean_over_organs(mean_organ_dice([organ_dice(labels_of(seen[None], organs), truth, organs)], organs))
                looks.append((how, name, region.why_whole == "", *box_quality(region, truth), dice or 0.0))
    spacing = " x ".join(f"{edge:g}" for edge in campaign.preprocessing.spacing)
    note = (
        f"{len(cases)} holdout cases at {spacing} mm, windows of {' x '.join(map(str, campaign.inference.window))}; "
        f"the mean of {', '.join(networks)}. First row Dice, the others differences to it."
    )
    variants = [variant for variant in answers if variant != REFERENCE]
    header = ("variant", "mean", *organs.names, "largest")
    show_rows("What speed costs in Dice: the ensemble", header, scores.rows(variants, REFERENCE), note=note)
    for name in networks:
        rows = scores.rows([f"{name}: {variant}" for variant in variants], f"{name}: {REFERENCE}")
        show_rows(f"What speed costs in Dice: {name}", header, rows)
    show_rows(
        f"The coarse pass ({coarse_member}, margin {coarse.margin_mm:g} mm)",
        ("case", "predicted", "share of the volume", "organ voxels inside"),
        outcomes,
    )
    show_rows(
        "Where a coarse pass looks: the networks' own spacing or twice it, both without overlap",
        ("spacing", "member", "all organs found", "organ voxels in the box (least)", "box of the volume (mean)", "Dice (mean)"),
        [_look_row(looks, how, name) for how in ("own spacing", "twice the spacing") for name in networks],
        note="The box is the whole volume where an organ was not found.",
    )


def _look_row(looks: list[tuple[Any, ...]], how: str, name: str) -> tuple[Any, ...]:
    _, _, found, inside, share, dice = zip(*(look for look in looks if look[:2] == (how, name)), strict=True)
    return how, name, f"{sum(found)} of {len(found)}", f"{min(inside):.2%}", f"{np.mean(share):.0%}", f"{np.mean(dice):.3f}"


if __name__ == "__main__":
    main()
