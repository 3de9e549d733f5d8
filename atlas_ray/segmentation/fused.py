"""Convolutional blocks for float32 inference on CPUs: every pass over memory that a block can do without is left out.

`fuse` gives a twin of a network with the same weights. Its convolutions are matrix products (`winograd`, or columns for strides and
small grids), its normalizations cost no pass of their own: the moments come with the convolution, scale and shift go with whoever
reads next. Concatenations are never written. The twin has no gradients and reads the weights once: fuse again after training.

Modules take and return [B, C, X, Y, Z] in channels-last memory; inside they work on [B, X, Y, Z, C].
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from atlas_ray.loops import compiled
from atlas_ray.schema import IntTriple
from atlas_ray.segmentation import winograd
from atlas_ray.segmentation.memory import empty
from atlas_ray.segmentation.winograd import Floats, Source, share

COLUMN_BYTES = 4 << 20  # of columns written for one matrix product
SMALLEST_GRID = 12  # voxels per axis from which Winograd's weights, eight times as large, are worth reading

_compiled: Callable[..., Any] = partial(compiled, fastmath=winograd.FASTMATH)


@dataclass(frozen=True)
class Features:
    """A feature map that may still have to be normalized and activated: leaky ReLU(values * scale + shift).

    Args:
        values: [B, X, Y, Z, C], contiguous.
        scale, shift: [B, C].
        slope: of the leaky ReLU; 1 for none.
        is_finished: nothing is left to do.
    """

    values: Tensor
    scale: Tensor
    shift: Tensor
    slope: float = 1.0
    is_finished: bool = False

    @classmethod
    def of(cls, tensor: Tensor) -> "Features":
        """From [B, C, X, Y, Z]; copies only what is not channels-last float32."""
        batch, channels = tensor.shape[:2]
        values = tensor.permute(0, 2, 3, 4, 1).float().contiguous()
        return cls(values, torch.ones(batch, channels), torch.zeros(batch, channels), is_finished=True)

    @property
    def grid(self) -> IntTriple:
        _, x, y, z, _ = self.values.shape
        return x, y, z

    def source(self, index: int) -> Source:
        """One volume of the batch, as the kernels read it."""
        channels = self.values.shape[-1]
        return Source(
            self.values[index].view(-1, channels).numpy(), self.scale[index].numpy(), self.shift[index].numpy(), self.slope
        )

    def finish(self, added: "Features | None" = None, slope: float = 1.0) -> "Features":
        """Normalize and activate in place; then, if given, add normalized `added` and activate with `slope`."""
        for index in range(len(self.values)):
            own = self.source(index)
            if added is not None:
                work = partial(_finish_sum, *_flat(own), *_flat(added.source(index)), np.float32(slope))
            elif not self.is_finished:
                work = partial(_finish, *_flat(own))
            else:
                continue
            share(work, len(own.voxels_NC), torch.get_num_threads())
        return replace(self, slope=1.0, is_finished=True)

    def tensor(self) -> Tensor:
        """[B, C, X, Y, Z], channels-last."""
        return self.finish().values.permute(0, 4, 1, 2, 3)


class Convolution:
    """A convolution, the instance norm after it, and the leaky ReLU after that.

    Args:
        conv: a Conv3d, or a ConvTranspose3d; same padding, no groups or dilation.
        norm: with batch statistics, as nnU-Net and MONAI use it.
        slope: of the leaky ReLU; 1 for none.
    """

    def __init__(self, conv: nn.Module, norm: nn.Module | None = None, slope: float = 1.0) -> None:
        if not isinstance(conv, nn.Conv3d | nn.ConvTranspose3d) or not (norm is None or type(norm) is nn.InstanceNorm3d):
            raise NotImplementedError(f"{conv} with {norm}: only 3D convolutions with instance norm can be fused")
        if conv.groups != 1 or set(conv.dilation) != {1} or (norm is not None and norm.track_running_stats):
            raise NotImplementedError(f"{conv} with {norm}: groups, dilation and running statistics cannot be fused")
        self.conv, self.norm, self.slope = conv, norm, slope
        self.weight = conv.weight.detach().float()
        self.bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().float()
        self._frequencies: Tensor | None = None
        self._matrices: list[Tensor] | None = None

    def __call__(self, sources: Sequence[Features]) -> Features:
        """Of several sources the channels count as concatenated."""
        batch, channels_out = len(sources[0].values), self.conv.out_channels
        if isinstance(self.conv, nn.ConvTranspose3d):
            values, moments = self._transposed(sources)
        elif self._suits_winograd(sources[0].grid):
            values, moments = self._winograd(sources)
        else:
            values, moments = self._columns(sources)
        if self.norm is None:
            return Features(values, torch.ones(batch, channels_out), torch.zeros(batch, channels_out), self.slope, self.slope == 1)
        if moments is None:
            moments = np.stack([_moments(volume.view(-1, channels_out).numpy()) for volume in values])
        return self._normalized(values, torch.from_numpy(moments))

    def _normalized(self, values: Tensor, moments: Tensor) -> Features:
        """Instance norm as the scale and shift of each channel; the variance is the biased one."""
        assert isinstance(self.norm, nn.InstanceNorm3d)
        mean, square = (moments / values[0, ..., 0].numel()).unbind(1)
        scale = (square - mean * mean).clamp_(min=0).add_(self.norm.eps).rsqrt_()
        if self.norm.affine:
            scale = scale * self.norm.weight.detach()
        shift = -mean * scale
        if self.norm.affine:
            shift = shift + self.norm.bias.detach()
        return Features(values, scale.float(), shift.float(), self.slope)

    def _suits_winograd(self, grid: IntTriple) -> bool:
        conv = self.conv
        return (
            conv.kernel_size == (3, 3, 3)
            and conv.stride == (1, 1, 1)
            and conv.padding == (1, 1, 1)
            and conv.in_channels >= 8
            and min(grid) >= SMALLEST_GRID
        )

    def _winograd(self, sources: Sequence[Features]) -> tuple[Tensor, npt.NDArray[np.float64]]:
        if self._frequencies is None:
            self._frequencies = torch.from_numpy(winograd.transform_weight(self.weight.numpy()))
        grid, channels = sources[0].grid, self.conv.out_channels
        values = empty(len(sources[0].values), *grid, channels)
        moments = [
            winograd.convolve(
                [source.source(index) for source in sources],
                grid,
                self._frequencies,
                self.bias.numpy(),
                volume.view(-1, channels).numpy(),
                threads=torch.get_num_threads(),
            )
            for index, volume in enumerate(values)
        ]
        return values, np.stack(moments)

    def _columns(self, sources: Sequence[Features]) -> tuple[Tensor, None]:
        """For every output voxel the k^3 C inputs in a row, times the weight. A few planes at a time, for the cache."""
        k, stride, pad = self.conv.kernel_size[0], self.conv.stride[0], int(self.conv.padding[0])
        inputs = [source.finish().values for source in sources]
        if self._matrices is None:
            parts = torch.split(self.weight.permute(2, 3, 4, 1, 0), [part.shape[-1] for part in inputs], dim=3)
            self._matrices = [part.reshape(-1, self.conv.out_channels) for part in parts]
        X, Y, Z = ((edge + 2 * pad - k) // stride + 1 for edge in sources[0].grid)
        values = empty(len(inputs[0]), X, Y, Z, self.conv.out_channels)
        for position, (part, matrix) in enumerate(zip(inputs, self._matrices, strict=True)):
            padded = _padded(part, pad)
            b, x, y, z, _ = padded.stride()
            shape = (len(part), X, Y, Z, k, k, k * part.shape[-1])
            windows = padded.as_strided(shape, (b, stride * x, stride * y, stride * z, x, y, 1))
            planes = max(1, COLUMN_BYTES // (4 * Y * Z * len(matrix)))
            for volume, out in zip(windows, values, strict=True):
                for rows, target in zip(torch.split(volume, planes), torch.split(out, planes), strict=True):
                    flat = target.view(-1, self.conv.out_channels)
                    torch.addmm(self.bias if position == 0 else flat, rows.reshape(-1, len(matrix)), matrix, out=flat)
        return values, None

    def _transposed(self, sources: Sequence[Features]) -> tuple[Tensor, None]:
        """Where kernel and stride agree no outputs overlap: one product per input voxel, then the k^3 results take their places."""
        (source,) = sources
        inputs = source.finish().values
        k = self.conv.stride[0]
        if self.conv.kernel_size != self.conv.stride:
            output = self.conv(inputs.permute(0, 4, 1, 2, 3))
            return output.permute(0, 2, 3, 4, 1).contiguous(), None
        batch, X, Y, Z, channels = inputs.shape
        if self._matrices is None:
            self._matrices = [self.weight.permute(0, 2, 3, 4, 1).reshape(channels, -1)]
        bias = self.bias.repeat(k**3)
        values = empty(batch, k * X, k * Y, k * Z, self.conv.out_channels)
        for volume, out in zip(inputs, values.view(batch, X, k, Y, k, Z, -1), strict=True):
            for plane, target in zip(volume, out, strict=True):
                product = torch.addmm(bias, plane.view(-1, channels), self._matrices[0])
                target.copy_(product.view(Y, Z, k, k, -1).permute(2, 0, 3, 1, 4))
        return values, None


class Chain(nn.Module):
    """Convolutions one after the other; between them nothing is written but their raw outputs."""

    def __init__(self, convolutions: Sequence[Convolution]) -> None:
        super().__init__()
        self.convolutions = convolutions

    def run(self, sources: Sequence[Features]) -> Features:
        for convolution in self.convolutions:
            sources = [convolution(sources)]
        return sources[0]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Of several inputs [B, C, X, Y, Z] the channels count as concatenated."""
        return self.run([Features.of(tensor) for tensor in inputs]).tensor()


class Residual(nn.Module):
    """A chain plus its input, or plus the input through a shortcut; then leaky ReLU with `slope`."""

    def __init__(self, chain: Chain, shortcut: Convolution | None, slope: float = 1.0) -> None:
        super().__init__()
        self.chain, self.shortcut, self.slope = chain, shortcut, slope

    def forward(self, *inputs: Tensor) -> Tensor:
        sources = [Features.of(tensor) for tensor in inputs]
        added = sources[0] if self.shortcut is None else self.shortcut(sources)
        return self.chain.run(sources).finish(added, self.slope).tensor()


class Up(nn.Module):
    """MONAI's UnetrUpBlock: upsample, join with the skip connection, residual block."""

    def __init__(self, up: Chain, block: nn.Module) -> None:
        super().__init__()
        self.up, self.block = up, block

    def forward(self, inputs: Tensor, skip: Tensor) -> Tensor:
        output: Tensor = self.block(self.up(inputs), skip)
        return output


class Decoder(nn.Module):
    """The decoder of nnU-Net without deep supervision."""

    def __init__(self, ups: Sequence[Chain], stages: Sequence[nn.Module], head: Chain) -> None:
        super().__init__()
        self.ups, self.stages, self.head = nn.ModuleList(ups), nn.ModuleList(stages), head

    def forward(self, skips: Sequence[Tensor]) -> Tensor:
        features = skips[-1]
        for up, stage, skip in zip(self.ups, self.stages, reversed(skips[:-1]), strict=True):
            features = stage(up(features), skip)
        output: Tensor = self.head(features)
        return output


def fuse(network: nn.Module) -> nn.Module:
    """A twin of a network in eval mode, for float32 inference on CPUs. What it does not know runs as it is.

    Raises:
        NotImplementedError: a block is known, but not with these convolutions, norms or activations.
    """
    from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
    from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
    from monai.networks.blocks.convolutions import Convolution as Unit
    from monai.networks.blocks.convolutions import ResidualUnit
    from monai.networks.blocks.dynunet_block import UnetResBlock
    from monai.networks.blocks.unetr_block import UnetrUpBlock

    from atlas_ray.segmentation.swin import SwinEncoder

    if isinstance(network, SwinEncoder):
        return network
    if isinstance(network, nn.Conv3d):
        return Chain([Convolution(network)])
    if isinstance(network, Unit):
        return Chain([_unit(network)])
    if isinstance(network, StackedConvBlocks):
        return Chain([_layer(block.all_modules) for block in network.convs])
    if isinstance(network, ResidualUnit):
        shortcut = None if isinstance(network.residual, nn.Identity) else Convolution(network.residual)
        return Residual(Chain([_unit(unit) for unit in network.conv]), shortcut)
    if isinstance(network, UnetResBlock):
        slope = _slope(network.lrelu)
        chain = Chain([Convolution(network.conv1.conv, network.norm1, slope), Convolution(network.conv2.conv, network.norm2)])
        return Residual(chain, Convolution(network.conv3.conv, network.norm3) if network.downsample else None, slope)
    if isinstance(network, UnetrUpBlock):
        return Up(Chain([Convolution(network.transp_conv.conv)]), fuse(network.conv_block))
    if isinstance(network, UNetDecoder) and not network.deep_supervision:
        ups = [Chain([Convolution(up)]) for up in network.transpconvs]
        return Decoder(ups, [fuse(stage) for stage in network.stages], Chain([Convolution(network.seg_layers[-1])]))
    twin = copy.copy(network)  # parameters and buffers stay shared
    twin._modules = {name: None if child is None else fuse(child) for name, child in network._modules.items()}
    return twin


def _unit(unit: Any) -> Convolution:
    """MONAI's Convolution: a convolution and, if it has one, its block of norm, dropout and activation."""
    return _layer([unit.conv, *getattr(unit, "adn", [])])


def _layer(modules: Sequence[nn.Module]) -> Convolution:
    """Convolution, then norm, then activation, of which the last two may be missing."""
    conv, *rest = [module for module in modules if not isinstance(module, nn.Dropout | nn.Dropout3d)]
    norm = rest.pop(0) if rest and isinstance(rest[0], nn.InstanceNorm3d) else None
    if len(rest) > 1:
        raise NotImplementedError(f"{conv}, then {rest}: only an instance norm and one activation can be fused")
    return Convolution(conv, norm, _slope(rest[0]) if rest else 1.0)


def _slope(activation: nn.Module) -> float:
    if isinstance(activation, nn.LeakyReLU):
        return activation.negative_slope
    if isinstance(activation, nn.PReLU) and activation.num_parameters == 1:
        return activation.weight.item()
    if isinstance(activation, nn.ReLU):
        return 0.0
    raise NotImplementedError(f"{activation}: only ReLU, leaky ReLU and PReLU with one parameter can be fused")


def _padded(values: Tensor, pad: int) -> Tensor:
    """[B, X, Y, Z, C] with `pad` zeros on every side of X, Y and Z."""
    if pad == 0:
        return values
    batch, X, Y, Z, channels = values.shape
    padded = empty(batch, X + 2 * pad, Y + 2 * pad, Z + 2 * pad, channels).zero_()
    padded[:, pad:-pad, pad:-pad, pad:-pad].copy_(values)
    return padded


def _flat(source: Source) -> tuple[Floats, Floats, Floats, np.float32]:
    return source.voxels_NC, source.scale_C, source.shift_C, np.float32(source.slope)


@_compiled
def _finish(voxels: Floats, scale: Floats, shift: Floats, slope: np.float32, _thread: int, start: int, stop: int) -> None:
    for voxel in range(start, stop):
        for c in range(voxels.shape[1]):
            value = voxels[voxel, c] * scale[c] + shift[c]
            voxels[voxel, c] = value if value > 0 else value * slope


@_compiled
def _finish_sum(
    voxels: Floats, scale: Floats, shift: Floats, slope: np.float32,
    added: Floats, added_scale: Floats, added_shift: Floats, added_slope: np.float32,
    sum_slope: np.float32, _thread: int, start: int, stop: int,
) -> None:  # fmt: skip
    for voxel in range(start, stop):
        for c in range(voxels.shape[1]):
            value = voxels[voxel, c] * scale[c] + shift[c]
            other = added[voxel, c] * added_scale[c] + added_shift[c]
            value = (value if value > 0 else value * slope) + (other if other > 0 else other * added_slope)
            voxels[voxel, c] = value if value > 0 else value * sum_slope


@_compiled
def _moments(voxels: Floats) -> npt.NDArray[np.float64]:
    """[2, C]: sums and sums of squares, in float64, because a norm over a handful of voxels takes differences of them."""
    count, channels = voxels.shape
    result = np.zeros((2, channels))
    for voxel in range(count):
        for c in range(channels):
            value = np.float64(voxels[voxel, c])
            result[0, c] += value
            result[1, c] += value * value
    return result
