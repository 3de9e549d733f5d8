"""Checkpoints in the formats of SuPreM and the CLIP-Driven Universal Model load with every key matched and give the same outputs.

State dicts are made here as the authors' code makes them: names with a parallel training's prefixes, under "net", beside others.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from monai.networks.nets import SegResNet, SwinUNETR
from torch import Tensor, nn
from torch.nn import functional

from atlas_ray.exceptions import CheckpointError
from atlas_ray.organs import load_organs
from atlas_ray.segmentation.architectures import SwinUNETR as OurSwinUNETR
from atlas_ray.segmentation.members.loaded import LoadedMember
from atlas_ray.segmentation.members.suprem import ClipUniversal, SuPreM
from atlas_ray.volume import Volume

ORGANS = load_organs("abdomenatlas_1_0")  # nine organs
SEGRESNET = {"init_filters": 16, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1), "in_channels": 1}


def save(path: Path, state: dict[str, Tensor], prefix: str) -> Path:
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}]}
    net = {prefix + key: tensor for key, tensor in state.items()}
    torch.save({"net": net, "optimizer": optimizer, "scheduler": {"last_epoch": 3}, "epoch": 3}, path)
    return path


def load(kind: type[SuPreM | ClipUniversal], path: Path, network: str, **settings: Any) -> LoadedMember:
    name = "suprem" if kind is SuPreM else "clip_universal"
    given = {"member": name, "name": "theirs", "path": str(path), "network": network, "window": (32, 32, 32), **settings}
    return kind.model_validate(given).load(ORGANS, data_root=None, device="cpu", precision="float32")


class Layer(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(channels_in, channels_out, 3, padding=1), nn.BatchNorm3d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn1
        return functional.relu(
            functional.batch_norm(self.conv1(x), bn.running_mean.clone(), bn.running_var.clone(), bn.weight, bn.bias, True)
        )


class GenesisUNet(nn.Module):
    """Models Genesis' U-Net of a small width, as an oracle: names and order of layers as published, in one flat list."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        w = width
        widths = {"down_tr64": (1, w // 2, w), "down_tr128": (w, w, 2 * w), "down_tr256": (2 * w, 2 * w, 4 * w)}
        widths |= {"down_tr512": (4 * w, 4 * w, 8 * w), "up_tr256": (12 * w, 4 * w, 4 * w), "up_tr128": (6 * w, 2 * w, 2 * w)}
        widths |= {"up_tr64": (3 * w, w, w)}
        for name, (first, between, last) in widths.items():
            block = nn.Module()
            block.ops = nn.Sequential(Layer(first, between), Layer(between, last))
            if name.startswith("up"):
                block.up_conv = nn.ConvTranspose3d(first - last, first - last, 2, stride=2)
            setattr(self, name, block)
        self.out_tr = nn.Module()
        self.out_tr.final_conv = nn.Conv3d(w, outputs, 1)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.down_tr64.ops(x)
        b = self.down_tr128.ops(functional.max_pool3d(a, 2))
        c = self.down_tr256.ops(functional.max_pool3d(b, 2))
        deepest = self.down_tr512.ops(functional.max_pool3d(c, 2))
        up = self.up_tr256.ops(torch.cat((self.up_tr256.up_conv(deepest), c), 1))
        up = self.up_tr128.ops(torch.cat((self.up_tr128.up_conv(up), b), 1))
        return deepest, self.up_tr64.ops(torch.cat((self.up_tr64.up_conv(up), a), 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out_tr.final_conv(self.features(x)[1])


class Universal(nn.Module):
    """The text-driven head as its authors run it, by grouped convolutions; an oracle."""

    def __init__(self, backbone: nn.Module, classes: int, deepest: int, last: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.precls_conv = nn.Sequential(nn.GroupNorm(16, last), nn.ReLU(), nn.Conv3d(last, 8, 1))
        self.GAP = nn.Sequential(nn.GroupNorm(16, deepest), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Conv3d(deepest, 256, 1))
        self.controller = nn.Conv3d(512, 153, 1)
        self.register_buffer("organ_embedding", torch.randn(classes, 512))
        self.text_to_vision = nn.Linear(512, 256)

    def head(self, deepest: Tensor, last: Tensor) -> Tensor:
        """One image at a time."""
        classes = len(self.organ_embedding)
        texts = functional.relu(self.text_to_vision(self.organ_embedding))[:, :, None, None, None]
        made = self.controller(torch.cat((self.GAP(deepest).repeat(classes, 1, 1, 1, 1), texts), 1)).flatten(1)
        w1, w2, w3, b1, b2, b3 = torch.split(made, [64, 64, 8, 8, 8, 1], dim=1)
        x = self.precls_conv(last).repeat(1, classes, 1, 1, 1)
        x = functional.relu(functional.conv3d(x, w1.reshape(-1, 8, 1, 1, 1), b1.flatten(), groups=classes))
        x = functional.relu(functional.conv3d(x, w2.reshape(-1, 8, 1, 1, 1), b2.flatten(), groups=classes))
        return functional.conv3d(x, w3.reshape(-1, 8, 1, 1, 1), b3.flatten(), groups=classes)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- SuPreM ----------------------------------------------------------------------------------------------------------


def test_segresnet_says_what_monais_does_window_by_window(tmp_path: Path) -> None:
    """AbdomenAtlas 1.1 numbers its 25 outputs alphabetically; of these the campaign has nine."""
    theirs = SegResNet(**SEGRESNET, out_channels=25).eval()
    ours = load(SuPreM, save(tmp_path / "a.pth", theirs.state_dict(), "module."), "segresnet", overlap=0.5)
    numbers = load_organs("abdomenatlas_1_1")
    assert ours.outputs_K == tuple((numbers.label_id(name) - 1,) for name in ORGANS.names)
    hu = np.random.default_rng(0).integers(-300, 400, (36, 32, 30), dtype=np.int16)
    placed = ours.place(Volume(hu, np.diag([1.5, 1.5, 1.5, 1])))
    probabilities = torch.cat([made for _, made in ours.probabilities(placed, "cpu")], dim=-1)
    scaled = torch.from_numpy((hu.clip(-175, 250) + 175) / np.float32(425))[None, None]
    with torch.inference_mode():
        logits = sliding_window_inference(scaled, (32, 32, 32), 1, theirs, overlap=0.5, mode="gaussian")[0]
    expected = logits.sigmoid()[[some[0] for some in ours.outputs_K]]
    assert expected.std() > 0.01
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)


def test_swin_unetr_merges_tokens_as_it_was_trained(tmp_path: Path) -> None:
    """The keys fit either order; only the old one gives what the weights were trained to give (tests/segmentation/test_swin.py)."""
    state = SwinUNETR(in_channels=1, out_channels=25, feature_size=12).state_dict()
    ours = load(SuPreM, save(tmp_path / "a.pth", state, "module.backbone."), "swin_unetr")
    legacy = OurSwinUNETR(feature_size=12, patch_merging="legacy").build(25).eval()
    legacy.load_state_dict(state)
    windows = torch.rand(1, 1, 64, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours.forward(windows), legacy(windows))


def test_the_unet_takes_statistics_of_the_batch(tmp_path: Path) -> None:
    theirs = GenesisUNet(25, 8)
    ours = load(SuPreM, save(tmp_path / "a.pth", theirs.state_dict(), "module.backbone."), "unet")
    windows = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(ours.forward(windows), theirs.eval()(windows), atol=1e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match="batch 2; the norm of this U-Net sees the whole batch, 1 is allowed"):
        load(SuPreM, tmp_path / "a.pth", "unet", batch=2)


# --- CLIP-Driven Universal Model -------------------------------------------------------------------------------------


def test_universal_unet_gives_the_authors_outputs(tmp_path: Path) -> None:
    """Its backbone brings a head that is never run."""
    backbone = GenesisUNet(1, 16)
    theirs = Universal(backbone, 32, deepest=128, last=16)
    ours = load(ClipUniversal, save(tmp_path / "u.pth", theirs.state_dict(), "module."), "unet")
    universal = load_organs("universal_32")
    assert ours.outputs_K == tuple((universal.label_id(name) - 1,) for name in ORGANS.names)
    windows = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(ours.forward(windows), theirs.head(*backbone.features(windows)), atol=1e-4, rtol=1e-4)


def test_universal_swin_unetr_gives_the_authors_outputs(tmp_path: Path) -> None:
    """MONAI's own Swin UNETR as the backbone, its merging in the order of MONAI 0.9, and its features taken as they pass."""
    backbone = OurSwinUNETR(feature_size=48, depths=(2, 2, 2, 2), patch_merging="legacy").build(1).eval()
    theirs = Universal(backbone, 25, deepest=768, last=48).eval()
    state = {
        f"backbone.{key}": tensor for key, tensor in SwinUNETR(in_channels=1, out_channels=1, feature_size=48).state_dict().items()
    }
    state |= {key: tensor for key, tensor in theirs.state_dict().items() if not key.startswith("backbone.")}
    theirs.load_state_dict(state)
    ours = load(ClipUniversal, save(tmp_path / "u.pth", state, "module."), "swin_unetr", labels="abdomenatlas_1_1")
    passed: dict[str, Tensor] = {}
    backbone.encoder10.register_forward_hook(lambda module, given, made: passed.update(deepest=made))
    backbone.decoder1.register_forward_hook(lambda module, given, made: passed.update(last=made))
    windows = torch.rand(1, 1, 64, 32, 32)
    with torch.inference_mode():
        backbone(windows)
        torch.testing.assert_close(ours.forward(windows), theirs.head(passed["deepest"], passed["last"]), atol=1e-4, rtol=1e-4)


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_other_weights_are_named_with_file_and_keys(tmp_path: Path) -> None:
    state = SegResNet(**SEGRESNET, out_channels=25).state_dict()
    state["extra.weight"] = state.pop("convInit.conv.weight")
    path = save(tmp_path / "a.pth", state, "module.")
    said = r"a.pth does not fit its network \(\d+ of \d+ .*\): 1 missing: convInit.conv.weight; 1 unexpected: extra.weight"
    with pytest.raises(CheckpointError, match=said):
        load(SuPreM, path, "segresnet")


def test_the_other_kind_of_head_says_which_member_reads_it(tmp_path: Path) -> None:
    path = save(tmp_path / "u.pth", Universal(GenesisUNet(1, 16), 32, deepest=128, last=16).state_dict(), "module.")
    with pytest.raises(CheckpointError, match=r"has a text-driven head .*`member: clip_universal` reads it"):
        load(SuPreM, path, "unet")
    path = save(tmp_path / "s.pth", GenesisUNet(25, 8).state_dict(), "module.backbone.")
    with pytest.raises(CheckpointError, match=r"has no text-driven head .*`member: suprem` reads"):
        load(ClipUniversal, path, "unet")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not a pickle", "is damaged, or holds more than tensors and plain values"),
        ({"net": {"a": 3}}, "has no tensors under 'net'; it holds net"),
        ([1, 2], "has no tensors under 'net'; it holds list"),
    ],
)
def test_files_that_are_no_checkpoint_are_named(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "a.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"a.pth {said}"):
        load(SuPreM, path, "segresnet")
    with pytest.raises(CheckpointError, match=r"gone.pth is missing"):
        load(SuPreM, tmp_path / "gone.pth", "segresnet")


def test_fewer_outputs_than_the_label_map_says_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", SegResNet(**SEGRESNET, out_channels=4).state_dict(), "module.")
    with pytest.raises(CheckpointError, match=r"has 4 outputs; `organs` or its labels speak of output \d+"):
        load(SuPreM, path, "segresnet")
