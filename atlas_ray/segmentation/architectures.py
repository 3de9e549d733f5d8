"""The three architectures of the paper behind one union: Swin UNETR, nnU-Net, U-Net.

Every network takes [B, 1, X, Y, Z] normalized CT and returns logits [B, K, X, Y, Z], one channel per organ; a sigmoid per channel
makes probabilities, so organs may overlap (which the overlap criterion needs).
"""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from atlas_ray.schema import IntTriple, Schema

if TYPE_CHECKING:
    from torch import nn

Ints = tuple[PositiveInt, ...]


class SwinUNETR(Schema):
    """Swin UNETR: MONAI's weights and decoder, our encoder (see `swin`).

    Defaults are the paper's (feature size 48); `depths` of 1 and a feature size of 12 run on a laptop.

    Args:
        feature_size: a multiple of 12.
        depths, num_heads: transformer blocks and attention heads of the four stages.
        use_checkpoint: recompute activations in the backward pass, for memory.
        patch_merging: "legacy" for weights trained with MONAI 0.9, as SuPreM's. Names and shapes are the same, but eight tokens
            become one in another order, and the wrong order gives wrong masks without any error.
    """

    architecture: Literal["swin_unetr"] = "swin_unetr"
    feature_size: PositiveInt = 48
    depths: Ints = (2, 2, 2, 2)
    num_heads: Ints = (3, 6, 12, 24)
    use_checkpoint: bool = False
    patch_merging: Literal["monai", "legacy"] = "monai"

    head_prefixes: ClassVar[tuple[str, ...]] = ("out.conv.conv.",)

    @property
    def divisor(self) -> int:
        """Window edges must be multiples of this: patch embedding and four mergings halve five times."""
        return 32

    def build(self, channels_out: int) -> "nn.Module":
        from monai.networks.nets import SwinUNETR as Network

        from atlas_ray.segmentation.swin import SwinEncoder

        network: nn.Module = Network(
            in_channels=1, out_channels=channels_out, feature_size=self.feature_size, depths=self.depths, num_heads=self.num_heads
        )
        network.swinViT = SwinEncoder(network.swinViT, self.patch_merging, use_checkpoint=self.use_checkpoint)
        return network


class NNUNet(Schema):
    """The network of nnU-Net (plain convolutional U-Net with instance norm and leaky ReLU), from its authors' own package.

    Args:
        features: channels per stage; the first stage keeps full resolution, every further one halves it.
        convs_per_stage: convolutions per encoder and decoder stage.
        deep_supervision: while it trains, every decoder stage has an output of its own in the loss (`losses.supervised_loss`).
    """

    architecture: Literal["nnunet"] = "nnunet"
    features: Ints = (32, 64, 128, 256, 320)
    convs_per_stage: PositiveInt = 2
    deep_supervision: bool = False

    head_prefixes: ClassVar[tuple[str, ...]] = ("decoder.seg_layers.",)

    @property
    def divisor(self) -> int:
        return int(2 ** (len(self.features) - 1))

    def build(self, channels_out: int) -> "nn.Module":
        from dynamic_network_architectures.architectures.unet import PlainConvUNet
        from torch import nn

        from atlas_ray.segmentation.supervision import DeeplySupervised

        stages = len(self.features)
        kind = DeeplySupervised if self.deep_supervision else PlainConvUNet
        network: nn.Module = kind(
            input_channels=1,
            n_stages=stages,
            features_per_stage=self.features,
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            strides=(1, *(2,) * (stages - 1)),
            n_conv_per_stage=self.convs_per_stage,
            num_classes=channels_out,
            n_conv_per_stage_decoder=self.convs_per_stage,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=False,
        )
        if self.deep_supervision:
            return network
        # Without deep supervision the lower outputs are never computed; DDP waits for ever for a gradient they do not get.
        for name, parameter in network.named_parameters():
            if name.startswith(self.head_prefixes) and not name.startswith(f"{self.head_prefixes[0]}{stages - 2}."):
                parameter.requires_grad_(False)
        return network


class UNet(Schema):
    """MONAI's residual U-Net with a 1x1x1 output head.

    Args:
        features: channels per stage; every stage after the first halves the resolution.
        residual_units: convolutions per stage.
    """

    architecture: Literal["unet"] = "unet"
    features: Ints = (32, 64, 128, 256, 512)
    residual_units: PositiveInt = 2

    head_prefixes: ClassVar[tuple[str, ...]] = ("head.",)

    @property
    def divisor(self) -> int:
        return int(2 ** (len(self.features) - 1))

    def build(self, channels_out: int) -> "nn.Module":
        from collections import OrderedDict

        from monai.networks.nets import UNet as Network
        from torch import nn

        body = Network(
            spatial_dims=3,
            in_channels=1,
            out_channels=self.features[0],
            channels=self.features,
            strides=(2,) * (len(self.features) - 1),
            num_res_units=self.residual_units,
        )
        return nn.Sequential(OrderedDict(body=body, head=nn.Conv3d(self.features[0], channels_out, 1)))


Architecture = Annotated[SwinUNETR | NNUNet | UNet, Field(discriminator="architecture")]


def start_from_prior(network: "nn.Module", architecture: Architecture, *, prior: float = 0.02) -> None:
    """Set the output biases so that an untrained network calls `prior` of the voxels an organ, not half of them.

    Lin et al. 2017 (focal loss, section 4.1): with rare foreground the first steps are otherwise spent on learning "no". On the
    demo's patients Dice after 200 steps rose from 0.13 to 0.31.
    """
    from torch import nn

    for name, parameter in network.named_parameters():
        if name.startswith(architecture.head_prefixes) and name.endswith("bias"):
            nn.init.constant_(parameter, -math.log((1 - prior) / prior))


def valid_patch(architecture: Architecture, patch: IntTriple) -> bool:
    """Whether a window survives the architecture's downsampling: every edge divides, and more than one voxel is left at the bottom
    (instance norm has no variance over one)."""
    return all(edge % architecture.divisor == 0 for edge in patch) and any(edge > architecture.divisor for edge in patch)
