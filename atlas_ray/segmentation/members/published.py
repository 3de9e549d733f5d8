"""Networks that are published as weights and code, under their tensors' names: the U-Net of Models Genesis, and the text-driven
head of the CLIP-Driven Universal Model.

Zhou et al. 2019 (arXiv 1908.06912), Liu et al. 2023 (arXiv 2301.00785), Li et al. 2024 (SuPreM).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

EMBEDDING, TEXT, HIDDEN = 256, 512, 8  # of an organ and of the image; of an organ's text; channels of the dynamic head
WIDTH = 64  # of the first stage of the U-Net


class BatchStatisticsNorm(nn.BatchNorm3d):
    """Batch norm that takes the statistics of the batch it is given, in evaluation too, as its authors trained and published it."""

    def forward(self, features: Tensor) -> Tensor:
        return functional.batch_norm(features, None, None, self.weight, self.bias, training=True, eps=self.eps)


class _Convolution(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels_out, 3, padding=1)
        self.bn1 = BatchStatisticsNorm(channels_out)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.bn1(self.conv1(features)))


class _Down(nn.Module):
    def __init__(self, channels_in: int, channels_between: int, channels_out: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(_Convolution(channels_in, channels_between), _Convolution(channels_between, channels_out))

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.ops(features)
        return result


class _Up(nn.Module):
    def __init__(self, channels_in: int, channels_skipped: int, channels_out: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(channels_in, channels_in, 2, stride=2)
        self.ops = nn.Sequential(
            _Convolution(channels_in + channels_skipped, channels_out), _Convolution(channels_out, channels_out)
        )

    def forward(self, features: Tensor, skipped: Tensor) -> Tensor:
        result: Tensor = self.ops(torch.cat([self.up_conv(features), skipped], dim=1))
        return result


class _Head(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.final_conv = nn.Conv3d(channels_in, channels_out, 1)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.final_conv(features)
        return result


class GenesisUNet(nn.Module):
    """The U-Net of Models Genesis: 64 to 512 channels, batch statistics always.

    A window's result depends on what else is in its batch, so it is run one window at a time.

    Args:
        channels_out: of its own head.
        width: channels of the first stage.
    """

    def __init__(self, channels_out: int, width: int = WIDTH) -> None:
        super().__init__()
        w = width
        self.down_tr64, self.down_tr128 = _Down(1, w // 2, w), _Down(w, w, 2 * w)
        self.down_tr256, self.down_tr512 = _Down(2 * w, 2 * w, 4 * w), _Down(4 * w, 4 * w, 8 * w)
        self.up_tr256, self.up_tr128, self.up_tr64 = _Up(8 * w, 4 * w, 4 * w), _Up(4 * w, 2 * w, 2 * w), _Up(2 * w, w, w)
        self.out_tr = _Head(w, channels_out)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The deepest and the last feature map."""
        skipped = [self.down_tr64(image)]
        for down in (self.down_tr128, self.down_tr256, self.down_tr512):
            skipped.append(down(functional.max_pool3d(skipped[-1], 2)))
        deepest = features = skipped.pop()
        for up in (self.up_tr256, self.up_tr128, self.up_tr64):
            features = up(features, skipped.pop())
        return deepest, features

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.out_tr(self.features(image)[1])
        return result


def swin_features(network: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """The deepest and the last feature map of MONAI's Swin UNETR."""
    hidden = network.swinViT(image, network.normalize)
    deepest: Tensor = network.encoder10(hidden[4])
    features = network.decoder5(deepest, hidden[3])
    features = network.decoder4(features, network.encoder4(hidden[2]))
    features = network.decoder3(features, network.encoder3(hidden[1]))
    features = network.decoder2(features, network.encoder2(hidden[0]))
    return deepest, network.decoder1(features, network.encoder1(image))


class UniversalNetwork(nn.Module):
    """A backbone whose last three 1x1x1 convolutions are made for every class from the class' text and the image as a whole.

    Args:
        backbone: a `GenesisUNet`, or MONAI's Swin UNETR.
        classes: organs and tumors.
        deepest, last: channels of the backbone's two feature maps.
    """

    def __init__(self, backbone: nn.Module, classes: int, *, deepest: int, last: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.precls_conv = nn.Sequential(nn.GroupNorm(16, last), nn.ReLU(), nn.Conv3d(last, HIDDEN, 1))
        pooled = nn.AdaptiveAvgPool3d(1)
        self.GAP = nn.Sequential(nn.GroupNorm(16, deepest), nn.ReLU(), pooled, nn.Conv3d(deepest, EMBEDDING, 1))
        parameters = 2 * HIDDEN * (HIDDEN + 1) + HIDDEN + 1
        self.controller = nn.Conv3d(2 * EMBEDDING, parameters, 1)
        self.organ_embedding: Tensor
        self.register_buffer("organ_embedding", torch.zeros(classes, TEXT))
        self.text_to_vision = nn.Linear(TEXT, EMBEDDING)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 1, X, Y, Z] -> logits [B, classes, X, Y, Z]."""
        backbone = self.backbone
        deepest, last = backbone.features(image) if isinstance(backbone, GenesisUNet) else swin_features(backbone, image)
        texts = functional.relu(self.text_to_vision(self.organ_embedding))  # [classes, EMBEDDING]
        images, features = self.GAP(deepest).flatten(1), self.precls_conv(last)
        return torch.stack([self._head(features[b], images[b], texts) for b in range(len(image))])

    def _head(self, features: Tensor, image: Tensor, texts: Tensor) -> Tensor:
        """One image's three layers, for every class; features [HIDDEN, X, Y, Z] -> [classes, X, Y, Z]."""
        condition = torch.cat([image.expand(len(texts), -1), texts], dim=1)
        made = self.controller(condition[..., None, None, None]).flatten(1)
        square = HIDDEN * HIDDEN
        first, second, third, *biases = made.split([square, square, HIDDEN, HIDDEN, HIDDEN, 1], dim=1)
        voxels = features.flatten(1)  # [HIDDEN, voxels]
        results = []
        for k in range(len(texts)):  # a class at a time: all together would hold eight channels each
            hidden = functional.relu(torch.addmm(biases[0][k][:, None], first[k].view(HIDDEN, HIDDEN), voxels))
            hidden = functional.relu(torch.addmm(biases[1][k][:, None], second[k].view(HIDDEN, HIDDEN), hidden))
            results.append(torch.addmm(biases[2][k][:, None], third[k].view(1, HIDDEN), hidden))
        return torch.cat(results).view(len(texts), *features.shape[1:])
