"""A trained folder of nnU-Net v2 as a member of the ensemble, without nnunetv2.

Everything that decides its predictions stands in the folder: plans.json (network, normalization, spacing, axis order, patch),
dataset.json (labels or regions) and fold_N/checkpoint_final.pth. Windows, weights, resampling and folds are nnU-Net's, so its
probabilities are too, but for half precision: nnU-Net sums logits in float16, here they are float32.

Isensee et al. 2021 (Nature Methods 18). Not covered: mirroring at test time, cascades, 2D configurations, several image channels,
and trainers that change the network outside the plans.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from atlas_ray.exceptions import CheckpointError
from atlas_ray.organs import Organs
from atlas_ray.schema import IntTriple, Triple
from atlas_ray.segmentation.members.given import GivenMember
from atlas_ray.segmentation.members.grid import Floats, Placed, cubic, nonzero_box
from atlas_ray.segmentation.members.labels import outputs_of, require_outputs
from atlas_ray.segmentation.members.loaded import LoadedMember, Sliding, running
from atlas_ray.segmentation.members.weights import fit, identity, read_pickle, require_file, section, without
from atlas_ray.segmentation.precision import Precision
from atlas_ray.volume import Volume, axes_from_ras, reorient

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NETWORKS = {  # network class of the plans -> module and class of dynamic_network_architectures
    "PlainConvUNet": ("dynamic_network_architectures.architectures.unet", "PlainConvUNet"),
    "ResidualEncoderUNet": ("dynamic_network_architectures.architectures.unet", "ResidualEncoderUNet"),
    "ResidualUNet": ("dynamic_network_architectures.architectures.unet", "ResidualUNet"),
}
RESAMPLING = "resample_data_or_seg_to_shape"
SMALLEST_STD = 1e-8


class NNUNetFolder(GivenMember):
    """A folder as nnU-Net v2 leaves it: plans.json, dataset.json, fold_N/.

    Args:
        configuration: of the plans.
        folds: their logits are averaged; numbers, or "all" for the fold of that name.
        checkpoint: file in each fold's folder.
        orientation: in which the training images were stored. nnU-Net's plain readers keep files as they lie, and nothing in the
            folder says how that was; with a wrong one left and right are exchanged. May be left out where the plans have a reader
            that reorients, which is RAS.
        overlap: of windows; nnU-Net's tile_step_size of 0.5.
        batch: windows per forward pass.
    """

    member: Literal["nnunet"]
    configuration: str = "3d_fullres"
    folds: tuple[int | str, ...] = Field(default=(0,), min_length=1)
    checkpoint: str = "checkpoint_final.pth"
    orientation: str | None = Field(default=None, pattern=r"^[LRAPIS]{3}$")
    overlap: float = Field(default=0.5, ge=0, lt=1)
    batch: PositiveInt = 1

    def identity(self, data_root: str | None) -> str:
        """sha256 of weights, plans, labels and settings. Raises CheckpointError where a file is missing."""
        folder = self.located(data_root)
        return self.require(identity((folder / "plans.json", folder / "dataset.json", *self._weights(folder)), self))

    def needs_original(self, spacing: Triple) -> bool:
        """Whether it wants the CT at its own spacing rather than at the campaign's: nnU-Net resamples in its own way."""
        return True

    def _weights(self, folder: Path) -> list[Path]:
        return [folder / f"fold_{fold}" / self.checkpoint for fold in self.folds]

    def load(self, organs: Organs, *, data_root: str | None, device: "torch.device | str", precision: Precision) -> LoadedMember:
        """Raises CheckpointError: files that are missing, contradict each other or ask for what is not covered."""
        folder = self.located(data_root)
        plans, dataset = _read_json(folder / "plans.json"), _read_json(folder / "dataset.json")
        setup = _configuration(plans, self.configuration, folder / "plans.json")
        labels, activation = _labels(dataset, folder / "dataset.json")
        outputs = outputs_of(labels, self.organs, organs, where=self.title)
        require_outputs(outputs, len(labels), where=self.title)
        runs = []
        for path in self._weights(folder):
            network = build(setup, len(labels), folder / "plans.json")
            state = section(read_pickle(path, with_numpy_scalars=True), "network_weights", path)
            fit(network, without(state, "module.", "_orig_mod."), path)
            runs.append(running(network, device=device, precision=precision))
        return LoadedMember(
            name=self.name,
            forward=partial(_mean_of, runs),
            outputs_K=outputs,
            activation=activation,
            sliding=Sliding(tuple(setup["patch_size"]), self.overlap, self.batch, "nnunet", "nnunet"),
            place=partial(_place, plan=_grid_plan(plans, setup, self, folder / "plans.json")),
        )


def _mean_of(runs: "list[Any]", windows: "Tensor") -> "Tensor":
    """Folds agree on logits, as nnU-Net has it."""
    total: Tensor = runs[0](windows)
    for run in runs[1:]:
        total = total + run(windows)
    return total / len(runs)


# --- what the folder says -------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    require_file(path)
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold keys and values")
    return content


def _get(content: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in content:
        raise CheckpointError(f"{path} has no {key!r}; it has {', '.join(map(str, content))}")
    return content[key]


def _configuration(plans: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A configuration with what it inherits."""
    known = _get(plans, "configurations", path)
    if name not in known:
        raise CheckpointError(f"{path} has no configuration {name!r}; it has {', '.join(known)}")
    setup = dict(known[name])
    seen = {name}
    while parent := setup.pop("inherits_from", None):
        if parent in seen or parent not in known:
            raise CheckpointError(
                f"{path}: configuration {name!r} inherits from {parent!r}, which is not there or inherits from it"
            )
        seen.add(parent)
        setup = {**known[parent], **setup}
    if setup.get("previous_stage"):
        raise CheckpointError(f"{path}: configuration {name!r} is the second stage of a cascade, which cannot be a member")
    if len(_get(setup, "patch_size", path)) != 3:
        raise CheckpointError(f"{path}: configuration {name!r} has patches of {setup['patch_size']}; 3D ones can be members")
    return setup


def _labels(dataset: dict[str, Any], path: Path) -> "tuple[dict[str, int], Literal['softmax', 'sigmoid']]":
    """Output of every label, and whether they exclude each other: regions of several ids are outputs of their own."""
    channels = dataset.get("channel_names") or dataset.get("modality") or {}
    if len(channels) != 1:
        raise CheckpointError(
            f"{path} has {len(channels)} image channels ({', '.join(map(str, channels.values()))}); one CT is given"
        )
    named = {str(name): value for name, value in _get(dataset, "labels", path).items() if name != "ignore"}
    ids = {name: sorted(map(int, value)) if isinstance(value, list) else [int(value)] for name, value in named.items()}
    if any(len(some) > 1 for some in ids.values()):
        regions = [name for name, some in ids.items() if set(some) != {0}]
        return {name: output for output, name in enumerate(regions)}, "sigmoid"
    order = sorted({some[0] for some in ids.values()})
    return {name: order.index(some[0]) for name, some in ids.items()}, "softmax"


def build(setup: dict[str, Any], outputs: int, path: Path) -> "nn.Module":
    """The network that a configuration describes. Its lower heads are there, as in the weights, and not computed.

    Only networks of dynamic_network_architectures and layers of torch.nn are built, whatever names the file has.

    Raises:
        CheckpointError: another network or layer.
    """
    from importlib import import_module

    described = setup["architecture"] if "architecture" in setup else _older_architecture(setup, path)
    name = str(_get(described, "network_class_name", path)).rpartition(".")[2]
    if name not in NETWORKS:
        raise CheckpointError(f"{path} asks for network {described['network_class_name']!r}; {', '.join(NETWORKS)} can be built")
    arguments = dict(_get(described, "arch_kwargs", path))
    for key in described.get("_kw_requires_import", ()):
        arguments[key] = None if arguments.get(key) is None else _layer(str(arguments[key]), path)
    module, kind = NETWORKS[name]
    try:
        network: nn.Module = getattr(import_module(module), kind)(
            input_channels=1, num_classes=outputs, **{**arguments, "deep_supervision": False}
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise CheckpointError(f"{path}: {name} cannot be built as described: {error}") from error
    return network


def _layer(name: str, path: Path) -> Any:
    """A layer of torch by its full name, such as torch.nn.modules.conv.Conv3d."""
    from torch import nn

    kind = getattr(nn, name.rpartition(".")[2], None)
    if not name.startswith("torch.nn.") or not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise CheckpointError(f"{path} asks for layer {name!r}; layers of torch.nn are allowed")
    return kind


def _older_architecture(setup: dict[str, Any], path: Path) -> dict[str, Any]:
    """Plans before nnU-Net 2.4 list depths and widths instead of a network's arguments."""
    name = str(_get(setup, "UNet_class_name", path))
    convs = _get(setup, "n_conv_per_stage_encoder", path)
    most, base = _get(setup, "unet_max_num_features", path), _get(setup, "UNet_base_num_features", path)
    return {
        "network_class_name": name,
        "arch_kwargs": {
            "n_stages": len(convs),
            "features_per_stage": [min(base * 2**stage, most) for stage in range(len(convs))],
            "conv_op": "torch.nn.Conv3d",
            "kernel_sizes": _get(setup, "conv_kernel_sizes", path),
            "strides": _get(setup, "pool_op_kernel_sizes", path),
            "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage": convs,
            "n_conv_per_stage_decoder": _get(setup, "n_conv_per_stage_decoder", path),
            "conv_bias": True,
            "norm_op": "torch.nn.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }


# --- its grid -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GridPlan:
    """What the plans say of the input.

    Args:
        orientation: of the files it was trained on.
        order: its axes, of those of a file.
        spacing: mm, in its axes.
        scheme, properties, in_mask: normalization, the training set's intensities, and whether only what is not 0 is normalized.
        separate: see `cubic`.
    """

    orientation: str
    order: IntTriple
    spacing: Triple
    scheme: str
    properties: dict[str, float]
    in_mask: bool
    separate: bool | None


def _grid_plan(plans: dict[str, Any], setup: dict[str, Any], given: NNUNetFolder, path: Path) -> GridPlan:
    reader = str(plans.get("image_reader_writer", ""))
    orientation = given.orientation or ("RAS" if reader.endswith("WithReorient") else None)
    if orientation is None:
        raise CheckpointError(
            f"{given.title} was trained with {reader or 'an unknown reader'}, which keeps images as they are stored: "
            "say how that was, such as `orientation: LPS`, or left and right may be exchanged"
        )
    if (resampling := setup.get("resampling_fn_data", RESAMPLING)) != RESAMPLING:
        raise CheckpointError(f"{path} resamples with {resampling!r}; {RESAMPLING} is covered")
    options = {"order": 3, "order_z": 0, **setup.get("resampling_fn_data_kwargs", {})}
    if options["order"] != 3 or options["order_z"] != 0:
        raise CheckpointError(f"{path} resamples with order {options['order']} and {options['order_z']}; 3 and 0 are covered")
    (scheme,) = (str(name) for name in _get(setup, "normalization_schemes", path))
    if scheme not in SCHEMES:
        raise CheckpointError(f"{path} normalizes with {scheme!r}; {', '.join(SCHEMES)} are covered")
    properties = plans.get("foreground_intensity_properties_per_channel", {}).get("0", {})
    if scheme == "CTNormalization":
        properties = {key: float(_get(properties, key, path)) for key in ("mean", "std", "percentile_00_5", "percentile_99_5")}
    i, j, k = (2 - int(axis) for axis in plans.get("transpose_forward", (0, 1, 2)))  # its files are read z, y, x
    a, b, c = map(float, _get(setup, "spacing", path))
    in_mask = bool((setup.get("use_mask_for_norm") or [False])[0])
    return GridPlan(orientation, (i, j, k), (a, b, c), scheme, properties, in_mask, options.get("force_separate_z"))


def _place(image: Volume, plan: GridPlan) -> Placed:
    """A CT as nnU-Net preprocesses it: turned, cropped to what is not 0, normalized, then resampled."""
    turned = reorient(image, plan.orientation)
    axes, flipped = axes_from_ras(turned)
    values_abc = turned.voxels.transpose(plan.order)
    spacing_abc = tuple(turned.spacing[axis] for axis in plan.order)
    box = nonzero_box(values_abc)
    cropped = SCHEMES[plan.scheme](np.array(values_abc[box], np.float32), plan)
    shape = tuple(round(old / new * n) for old, new, n in zip(spacing_abc, plan.spacing, cropped.shape, strict=True))
    a, b, c = plan.order
    whole = image.shape
    spans: list[slice] = [slice(None)] * 3
    for axis_abc, axis in enumerate(plan.order):
        span, ras = box[axis_abc], axes[axis]
        spans[ras] = slice(whole[ras] - span.stop, whole[ras] - span.start) if flipped[axis] else span
    return Placed(
        values=cubic(cropped, shape, spacing_abc, plan.spacing, separate=plan.separate),  # type: ignore[arg-type]
        prepare=np.asarray,
        axes=(axes[a], axes[b], axes[c]),
        flipped=(flipped[a], flipped[b], flipped[c]),
        shape=whole,
        box=(spans[0], spans[1], spans[2]),
    )


def _ct(values: Floats, plan: GridPlan) -> Floats:
    known = plan.properties
    np.clip(values, known["percentile_00_5"], known["percentile_99_5"], out=values)
    values -= known["mean"]
    values /= max(known["std"], SMALLEST_STD)
    return values


def _z_score(values: Floats, plan: GridPlan) -> Floats:
    inside: npt.NDArray[np.bool_] | slice = slice(None)
    if plan.in_mask:
        from scipy.ndimage import binary_fill_holes

        inside = binary_fill_holes(values != 0)
    values[inside] = (values[inside] - values[inside].mean()) / max(values[inside].std(), SMALLEST_STD)
    return values


def _zero_to_one(values: Floats, plan: GridPlan) -> Floats:
    values -= values.min()
    values /= max(values.max(), SMALLEST_STD)
    return values


SCHEMES: dict[str, Callable[[Floats, GridPlan], Floats]] = {
    "CTNormalization": _ct,
    "ZScoreNormalization": _z_score,
    "RescaleTo01Normalization": _zero_to_one,
    "NoNormalization": lambda values, plan: values,
}
