"""Checkpoints of the authors and their relatives: SuPreM, and the CLIP-Driven Universal Model that made AbdomenAtlas.

Both hold the weights under "net", under names that a parallel training put prefixes before. SuPreM's networks have a head of their
own; a universal one has a text-driven head over a backbone (reference/paper-algorithm.md a.11). Two traps are closed here: Swin
UNETR's weights expect the token order of MONAI 0.9, and the U-Net's norm takes batch statistics always, so it runs a window at a
time.
"""

from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from atlas_ray.exceptions import CheckpointError
from atlas_ray.organs import Organs, load_organs
from atlas_ray.schema import IntTriple, Triple
from atlas_ray.segmentation.architectures import SwinUNETR
from atlas_ray.segmentation.members.given import GivenMember
from atlas_ray.segmentation.members.labels import outputs_of, require_outputs
from atlas_ray.segmentation.members.loaded import LoadedMember, Sliding, running
from atlas_ray.segmentation.members.scan import CTWindow, place_scan
from atlas_ray.segmentation.members.weights import State, fit, identity, read_pickle, section, without
from atlas_ray.segmentation.precision import Precision

if TYPE_CHECKING:
    import torch
    from torch import nn

Network = Literal["swin_unetr", "unet", "segresnet"]
HEADS: dict[Network, str] = {
    "swin_unetr": "out.conv.conv.weight",
    "unet": "out_tr.final_conv.weight",
    "segresnet": "conv_final.2.conv.weight",
}
FIRST: dict[Network, str] = {"swin_unetr": "encoder1.layer.conv1.conv.weight", "unet": "down_tr64.ops.1.conv1.weight"}
EMBEDDING = "organ_embedding"
UNUSED = ("backbone.out.", "backbone.out_tr.")  # a universal checkpoint's backbone brings a head that is never run


class PublishedMember(GivenMember):
    """The keys that both have; defaults are the authors' (a.2).

    Args:
        labels: the organ set whose label ids, from 1 on, number the outputs.
        spacing: mm, in RAS.
        window_hu: HU that become 0 and 1.
        window, overlap, batch: of the sliding windows. A U-Net needs a batch of 1.
    """

    network: Network
    spacing: Triple = (1.5, 1.5, 1.5)
    window_hu: tuple[float, float] = (-175.0, 250.0)
    window: IntTriple = (96, 96, 96)
    overlap: float = Field(default=0.75, ge=0, lt=1)
    batch: PositiveInt = 1
    labels: str

    def identity(self, data_root: str | None) -> str:
        """sha256 of weights and settings. Raises CheckpointError where the file is missing."""
        return self.require(identity((self.located(data_root),), self))

    def needs_original(self, spacing: Triple) -> bool:
        """Whether it wants the CT at its own spacing rather than at the campaign's."""
        return self.spacing != spacing

    def _state(self, data_root: str | None) -> State:
        path = self.located(data_root)
        return without(section(read_pickle(path), "net", path), "module.")

    def _loaded(
        self, network: "nn.Module", outputs: int, organs: Organs, *, device: "torch.device | str", precision: Precision
    ) -> LoadedMember:
        if self.network == "unet" and self.batch != 1:
            raise CheckpointError(f"{self.title}: batch {self.batch}; the norm of this U-Net sees the whole batch, 1 is allowed")
        known = {organ.name: organ.label_id - 1 for organ in load_organs(self.labels)}
        outputs_K = outputs_of(known, self.organs, organs, where=self.title)
        require_outputs(outputs_K, outputs, where=self.title)
        return LoadedMember(
            name=self.name,
            forward=running(network, device=device, precision=precision),
            outputs_K=outputs_K,
            activation="sigmoid",
            sliding=Sliding(self.window, self.overlap, self.batch),
            place=partial(place_scan, orientation="RAS", spacing=self.spacing, intensity=CTWindow(hu=self.window_hu)),
        )


class SuPreM(PublishedMember):
    """A network with its own head, as SuPreM publishes it (SegResNet) or as a fine-tuning of its backbones leaves it.

    Args:
        network: which.
    """

    member: Literal["suprem"]
    labels: str = "abdomenatlas_1_1"

    def load(self, organs: Organs, *, data_root: str | None, device: "torch.device | str", precision: Precision) -> LoadedMember:
        """Raises CheckpointError: another network's weights, or organs that they do not have."""
        path, state = self.located(data_root), self._state(data_root)
        if EMBEDDING in state:
            raise CheckpointError(f"{path} has a text-driven head ({EMBEDDING}); `member: clip_universal` reads it")
        state = without(state, "backbone.")
        head, first = HEADS[self.network], FIRST.get(self.network, "")
        outputs = len(state[head]) if head in state else 1
        network = _plain(self.network, outputs, len(state[first]) if first in state else 0)
        fit(network, state, path)
        return self._loaded(network, outputs, organs, device=device, precision=precision)


class ClipUniversal(PublishedMember):
    """A backbone with the text-driven head: the authors' universal networks, and SuPreM's Swin UNETR and U-Net as trained."""

    member: Literal["clip_universal"]
    network: Literal["swin_unetr", "unet"]
    labels: str = "universal_32"

    def load(self, organs: Organs, *, data_root: str | None, device: "torch.device | str", precision: Precision) -> LoadedMember:
        """Raises CheckpointError: another network's weights, or organs that they do not have."""
        path, state = self.located(data_root), self._state(data_root)
        if EMBEDDING not in state:
            raise CheckpointError(f"{path} has no text-driven head ({EMBEDDING}); `member: suprem` reads networks with their own")
        from torch import nn

        from atlas_ray.segmentation.members.published import UniversalNetwork

        state = {key: tensor for key, tensor in state.items() if not key.startswith(UNUSED)}
        first, outputs = f"backbone.{FIRST[self.network]}", len(state[EMBEDDING])
        width = len(state[first]) if first in state else 0
        backbone = _plain(self.network, 1, width)
        setattr(backbone, HEADS[self.network].partition(".")[0], nn.Identity())
        width = width or _usual(self.network)
        deepest = width * (16 if self.network == "swin_unetr" else 8)
        network = UniversalNetwork(backbone, outputs, deepest=deepest, last=width)
        fit(network, state, path)
        return self._loaded(network, outputs, organs, device=device, precision=precision)


def _usual(network: Network) -> int:
    return 48 if network == "swin_unetr" else 64


def _plain(network: Network, outputs: int, width: int) -> "nn.Module":
    """A network with its own head, as published; `width` of the first stage, 0 for the published one."""
    if network == "swin_unetr":
        return SwinUNETR(feature_size=width or _usual(network), patch_merging="legacy").build(outputs)
    if network == "unet":
        from atlas_ray.segmentation.members.published import GenesisUNet

        return GenesisUNet(outputs, width or _usual(network))
    from monai.networks.nets import SegResNet

    segresnet: nn.Module = SegResNet(
        init_filters=16, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1), in_channels=1, out_channels=outputs
    )
    return segresnet
