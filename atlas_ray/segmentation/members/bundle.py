"""A MONAI bundle as a member: a folder with configs/, models/model.pt and metadata.json.

A bundle's configuration is a program: "$..." is evaluated, and "_target_" calls what it names. Here only the network is built, by
MONAI's own ConfigParser from a copy in which every "_target_" is a network of monai.networks and nothing is evaluated. How a CT is
prepared and how windows slide is read from the same file as plain values, or said in the campaign's YAML.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from atlas_ray.exceptions import CheckpointError, ConfigError
from atlas_ray.organs import Organs
from atlas_ray.schema import IntTriple, Triple
from atlas_ray.segmentation.members.given import GivenMember
from atlas_ray.segmentation.members.labels import outputs_of, require_outputs
from atlas_ray.segmentation.members.loaded import Activation, LoadedMember, Sliding, running
from atlas_ray.segmentation.members.scan import CTAsIs, CTStandard, CTWindow, Intensity, place_scan
from atlas_ray.segmentation.members.weights import fit, identity, read_pickle, require_file, section, without
from atlas_ray.segmentation.precision import Precision
from atlas_ray.strict_yaml import read_yaml

if TYPE_CHECKING:
    import torch
    from torch import nn

CONFIGS = ("inference.json", "inference.yaml", "inference.yml", "train.json", "train.yaml", "train.yml")
ALLOWED = "monai.networks."  # where a network may come from
HARMLESS = {  # transforms that change neither a CT's grid nor its values, or only what is outside the patient
    *("LoadImage", "EnsureChannelFirst", "AddChannel", "EnsureType", "ToTensor", "CastToType", "CropForeground", "SelectItems"),
}


class MonaiBundle(GivenMember):
    """A bundle's folder. What its configuration says need not be said again; what is said here counts.

    Args:
        weights: file in the folder.
        network: key of the network in the configuration.
        activation: what makes its outputs probabilities.
        spacing, orientation, intensity: what the CT is brought to.
        window, overlap, weighting: of the sliding windows.
        batch: windows per forward pass.
    """

    member: Literal["monai_bundle"]
    weights: str = "models/model.pt"
    network: str = "network_def"
    activation: Activation | None = None
    spacing: Triple | None = None
    orientation: str | None = Field(default=None, pattern=r"^[LRAPIS]{3}$")
    intensity: Intensity | None = None
    window: IntTriple | None = None
    overlap: float | None = Field(default=None, ge=0, lt=1)
    weighting: Literal["gaussian", "constant"] | None = None
    batch: PositiveInt = 1

    def identity(self, data_root: str | None) -> str:
        """sha256 of weights, configuration, metadata and settings. Raises CheckpointError where a file is missing."""
        folder = self.located(data_root)
        metadata = folder / "configs" / "metadata.json"
        return self.require(identity((folder / self.weights, _config_path(folder), *([metadata] * metadata.is_file())), self))

    def needs_original(self, spacing: Triple) -> bool:
        """Whether it wants the CT at its own spacing rather than at the campaign's; without a look into the bundle, to be sure."""
        return self.spacing != spacing

    def load(self, organs: Organs, *, data_root: str | None, device: "torch.device | str", precision: Precision) -> LoadedMember:
        """Raises CheckpointError: missing files, a network that is not MONAI's, an unknown preparation, other weights."""
        folder = self.located(data_root)
        path = _config_path(folder)
        config, labels = _Values(_read(path), path), _labels(folder, path)
        outputs_K = outputs_of(labels, self.organs, organs, where=self.title)
        network = _network(config, self.network)
        weights = folder / self.weights
        content = read_pickle(weights)
        key = next(
            (key for key in ("model", "state_dict", "net", "network") if isinstance(content, Mapping) and key in content), "model"
        )
        fit(network, without(section(content, key, weights), "module."), weights)
        require_outputs(outputs_K, _channels_out(network, len(labels)), where=self.title)
        prepared, inferer = _prepared(config, self), config.found("inferer") or {}
        window = self.window or inferer.get("roi_size")
        if window is None:
            raise CheckpointError(f"{path} has no inferer with a roi_size; say `window:` for {self.title}")
        x, y, z = (int(edge) for edge in (window if isinstance(window, list | tuple) else (window,) * 3))
        overlap = self.overlap if self.overlap is not None else inferer.get("overlap", 0.25)
        mode: Any = self.weighting or inferer.get("mode", "constant")
        if mode not in ("gaussian", "constant"):
            raise CheckpointError(f"{path} weighs windows with {mode!r}; gaussian and constant are covered")
        return LoadedMember(
            name=self.name,
            forward=running(network, device=device, precision=precision),
            outputs_K=outputs_K,
            activation=self.activation or _activation(config, labels),
            sliding=Sliding((x, y, z), float(overlap), self.batch, "monai", mode),
            place=prepared,
        )


def _channels_out(network: "nn.Module", labels: int) -> int:
    """Of its last convolution; as many as there are labels where it has none."""
    from torch import nn

    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]
    return convolutions[-1].out_channels if convolutions else labels


# --- the configuration, as plain values -----------------------------------------------------------------------------


def _config_path(folder: Path) -> Path:
    for name in CONFIGS:
        if (path := folder / "configs" / name).is_file():
            return path
    raise CheckpointError(f"{folder / 'configs'} has no configuration; one of {', '.join(CONFIGS)} is needed")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text()) if path.suffix == ".json" else read_yaml(path)
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold keys and values")
    return content


class _Values:
    """A configuration read without evaluating it: "@key" is looked up, "$..." and "%..." are refused where they are met."""

    def __init__(self, content: dict[str, Any], path: Path) -> None:
        self.content, self.path = content, path

    def found(self, key: str) -> Any:
        """A section with its references filled in; None where there is none."""
        return self._plain(self.content[key], key, ()) if key in self.content else None

    def _plain(self, value: Any, where: str, seen: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {key: self._plain(inner, f"{where}.{key}", seen) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._plain(inner, f"{where}.{i}", seen) for i, inner in enumerate(value)]
        if not isinstance(value, str) or value[:1] not in ("@", "$", "%"):
            return value
        if value[0] != "@":
            return Unread(f"{self.path}: {where} is {value!r}, which would have to be run; plain values are read")
        key = value[1:]
        target: Any = self.content
        for part in key.replace("#", "::").split("::"):
            inner = target.get(part) if isinstance(target, dict) else None
            target = target[int(part)] if isinstance(target, list) and part.isdigit() and int(part) < len(target) else inner
        if target is None or key in seen:
            return Unread(f"{self.path}: {where} refers to {value!r}, which is not there or refers to itself")
        return self._plain(target, where, (*seen, key))


class Unread:
    """Stands where a value would have to be evaluated; whoever needs it must refuse.

    Args:
        reason: the message.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _refuse_unread(value: Any) -> Any:
    """The value, if all of it is plain. Raises CheckpointError."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_unread(inner)
    if isinstance(value, Unread):
        raise CheckpointError(value.reason)
    return value


def _network(config: _Values, key: str) -> "nn.Module":
    """The network, and nothing else of the configuration. Raises CheckpointError."""
    described = _refuse_unread(config.found(key))
    if not isinstance(described, dict) or "_target_" not in described:
        raise CheckpointError(f"{config.path} has no network under {key!r}; it has {', '.join(map(str, config.content))}")
    from monai.bundle import ConfigParser

    try:
        network: nn.Module = ConfigParser({"network": _allowed(described, config.path)}).get_parsed_content("network")
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{config.path}: network {described['_target_']!r} cannot be built: {error}") from error
    return network


def _allowed(value: Any, path: Path) -> Any:
    """The same description with the full name of every network. Raises CheckpointError for anything else that would be called."""
    if isinstance(value, list):
        return [_allowed(inner, path) for inner in value]
    if not isinstance(value, dict):
        return value
    if odd := {key for key in value if str(key).startswith("_")} - {"_target_", "_desc_"}:
        raise CheckpointError(f"{path}: the network's description has {', '.join(sorted(odd))}; _target_ and _desc_ are allowed")
    result = {key: _allowed(inner, path) for key, inner in value.items() if key != "_desc_"}
    if "_target_" in value:
        result["_target_"] = _full_name(str(value["_target_"]), path)
    return result


def _full_name(target: str, path: Path) -> str:
    """ "UNet" or "monai.networks.nets.UNet" -> where the class is defined, which must be in monai.networks."""
    from monai.networks import nets
    from torch import nn

    kind = getattr(nets, target.rpartition(".")[2], None)
    short = "." not in target or target.startswith(ALLOWED)
    if not short or not (isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.startswith(ALLOWED)):
        raise CheckpointError(f"{path} asks for {target!r}; networks of monai.networks.nets are allowed")
    return f"{kind.__module__}.{kind.__qualname__}"


# --- labels and preparation -----------------------------------------------------------------------------------------


def _labels(folder: Path, config: Path) -> dict[str, int]:
    """Label names and their outputs: the metadata's channel_def."""
    path = folder / "configs" / "metadata.json"
    require_file(path)
    try:
        outputs = json.loads(path.read_text())["network_data_format"]["outputs"]
        defined = next(iter(outputs.values()))["channel_def"] if "pred" not in outputs else outputs["pred"]["channel_def"]
        return {str(name): int(channel) for channel, name in defined.items()}
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise CheckpointError(f"{path} has no network_data_format.outputs.pred.channel_def that names the outputs") from error


def _transforms(config: _Values, key: str) -> list[dict[str, Any]]:
    section = config.found(key)
    listed = section.get("transforms", []) if isinstance(section, dict) else []
    return [t for t in listed if isinstance(t, dict) and "_target_" in t and t.get("_disabled_") not in (True, "true")]


def _kind(transform: Mapping[str, Any]) -> str:
    """ "monai.transforms.Spacingd" -> "Spacing"."""
    return str(transform["_target_"]).rpartition(".")[2].removesuffix("Dict").removesuffix("d")


def _activation(config: _Values, labels: Mapping[str, int]) -> Activation:
    """As the postprocessing says; else a softmax where there is a background, and sigmoids where there is none."""
    for transform in _transforms(config, "postprocessing"):
        if _kind(transform) == "Activations":
            return "softmax" if transform.get("softmax") else "sigmoid" if transform.get("sigmoid") else "none"
    return "softmax" if "background" in labels else "sigmoid"


def _prepared(config: _Values, given: MonaiBundle) -> Any:
    """How a CT is placed. Raises CheckpointError for a transform that is neither understood nor replaced by what is given."""
    spacing, orientation, intensity = given.spacing, given.orientation, given.intensity
    for transform in _transforms(config, "preprocessing"):
        match kind := _kind(transform):
            case "Spacing":
                spacing = spacing or _triple(_refuse_unread(transform.get("pixdim")))
            case "Orientation":
                orientation = orientation or str(_refuse_unread(transform.get("axcodes", "RAS")))
            case "ScaleIntensityRange" if given.intensity is None:
                intensity = _scaled(_refuse_unread(transform))
            case "NormalizeIntensity" if given.intensity is None and "subtrahend" in transform:
                subtrahend, divisor = (_refuse_unread(transform[key]) for key in ("subtrahend", "divisor"))
                intensity = CTStandard(mean=subtrahend, std=divisor)
            case "ScaleIntensityRange" | "NormalizeIntensity" if given.intensity is not None:
                continue
            case _ if kind not in HARMLESS:
                raise CheckpointError(
                    f"{config.path} prepares images with {transform['_target_']!r}, which is not covered; Spacing, Orientation, "
                    "ScaleIntensityRange and NormalizeIntensity with fixed numbers are; or say `intensity:` here"
                )
    return partial(place_scan, orientation=orientation or "RAS", spacing=spacing, intensity=intensity or CTAsIs())


def _triple(pixdim: Any) -> Triple:
    x, y, z = (float(edge) for edge in (pixdim if isinstance(pixdim, list) else (pixdim,) * 3))
    return x, y, z


def _scaled(transform: Mapping[str, Any]) -> CTWindow:
    low, high = float(transform["a_min"]), float(transform["a_max"])
    to = (float(transform.get("b_min", 0.0)), float(transform.get("b_max", 1.0)))
    return CTWindow(hu=(low, high), to=to, clip=bool(transform.get("clip", False)))
