"""The transformer of Swin UNETR computes what MONAI's does, and its legacy merging what MONAI 0.9 did."""

import pytest
import torch
from monai.networks.nets.swin_unetr import PatchMergingV2
from monai.networks.nets.swin_unetr import SwinUNETR as MonaiNetwork
from torch import nn

from atlas_ray.segmentation.architectures import SwinUNETR

DEPTHS, HEADS = (2, 2, 1, 1), (1, 2, 4, 8)
TINY = SwinUNETR(feature_size=12, depths=DEPTHS, num_heads=HEADS)


class LegacyMerging(PatchMergingV2):
    """MONAI 0.9, written out: the sixth and seventh slice repeat the third and fourth."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [
            x[:, 0::2, 0::2, 0::2],
            x[:, 1::2, 0::2, 0::2],
            x[:, 0::2, 1::2, 0::2],
            x[:, 0::2, 0::2, 1::2],
            x[:, 1::2, 0::2, 1::2],
            x[:, 0::2, 1::2, 0::2],
            x[:, 0::2, 0::2, 1::2],
            x[:, 1::2, 1::2, 1::2],
        ]
        return self.reduction(self.norm(torch.cat(parts, -1)))


def monai(downsample: "str | type[nn.Module]" = "merging") -> nn.Module:
    """MONAI's own network with biases of attention that matter."""
    torch.manual_seed(0)
    network = MonaiNetwork(1, 2, feature_size=12, depths=DEPTHS, num_heads=HEADS, downsample=downsample).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return network


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 32, 64, 32),  # one window per axis but one
        (1, 1, 64, 96, 32),  # grids of 32 48 16: padded to 35 49 21, shifted
        (2, 1, 64, 32, 32),  # a batch
    ],
)
def test_equals_monai(shape: tuple[int, ...]) -> None:
    theirs, ours = monai(), TINY.build(2).eval()
    ours.load_state_dict(theirs.state_dict())
    windows = torch.rand(shape)
    with torch.no_grad():
        assert relative_difference(ours(windows), theirs(windows)) < 1e-4


def test_keys_and_shapes_are_monais() -> None:
    ours, theirs = TINY.build(2).state_dict(), monai().state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_legacy_merging_is_that_of_monai_0_9() -> None:
    theirs = monai(LegacyMerging)
    windows = torch.rand(1, 1, 64, 32, 32)
    differences = {}
    for merging in ("legacy", "monai"):
        ours = SwinUNETR(feature_size=12, depths=DEPTHS, num_heads=HEADS, patch_merging=merging).build(2).eval()
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            differences[merging] = relative_difference(ours(windows), theirs(windows))
    assert differences["legacy"] < 1e-4
    assert differences["monai"] > 1e-2  # the wrong order loads as well, and is wrong


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_gradients_equal_monais(use_checkpoint: bool) -> None:
    theirs = monai()
    ours = SwinUNETR(feature_size=12, depths=DEPTHS, num_heads=HEADS, use_checkpoint=use_checkpoint).build(2).eval()
    ours.load_state_dict(theirs.state_dict())
    windows = torch.rand(1, 1, 64, 32, 32)
    for network in (theirs, ours):
        network(windows).square().mean().backward()
    expected = dict(theirs.swinViT.named_parameters())
    assert len(expected) > 80
    scale = max(float(parameter.grad.abs().max()) for parameter in expected.values())
    for name, parameter in ours.swinViT.named_parameters():
        assert float((parameter.grad - expected[name].grad).abs().max()) < 1e-4 * scale, name
