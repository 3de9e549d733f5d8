"""The transformer of Swin UNETR: MONAI's weights, our forward pass.

Padding, cyclic shift and window partition are one gather of tokens, their reversal another. Relative positions and the mask of the
shift are one additive bias of `scaled_dot_product_attention`: of all windows of a shifted grid at most eight differ in their mask,
so windows are ordered by mask and each group shares one bias. Tokens stay [B, X, Y, Z, C] throughout. Gradients flow.

Liu et al. 2021 (arXiv 2103.14030), Hatamizadeh et al. 2022 (arXiv 2201.01266). Not covered: dropout and stochastic depth, which the
paper's network does not use.
"""

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from atlas_ray.schema import IntTriple

if TYPE_CHECKING:
    from monai.networks.nets.swin_unetr import SwinTransformer

# Where in a block of 2x2x2 tokens the eight parts of a merged token come from.
MERGE_ORDER: dict[str, tuple[IntTriple, ...]] = {
    "monai": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    # MONAI 0.9 takes two of the eight twice and two never; weights trained with it, SuPreM's among them, expect that.
    "legacy": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
}
CACHED_ROWS = 4096  # tokens at a time, see _rows_at_once
FORBIDDEN = -100.0  # added to the attention between tokens that only the cyclic shift made neighbors; MONAI's value


@dataclass(frozen=True)
class Windows:
    """How the tokens of one grid are dealt out to windows.

    Args:
        size: tokens of a window.
        gather: [windows * size], the token at each place; places outside the grid point at token 0.
        outside: the places outside the grid.
        scatter: [tokens], the place of each token.
        groups: (number of windows, mask [size, size] or None), in the order of the windows.
    """

    size: int
    gather: Tensor
    outside: Tensor
    scatter: Tensor
    groups: tuple[tuple[int, Tensor | None], ...]

    @classmethod
    def of(cls, grid: IntTriple, window: IntTriple, *, is_shifted: bool, device: torch.device) -> "Windows":
        """An axis no longer than the window is one window and never shifted; the others are padded at their end."""
        size = [min(g, w) for g, w in zip(grid, window, strict=True)]
        shift = [w // 2 if is_shifted and g > w else 0 for g, w in zip(grid, window, strict=True)]
        axes = [_axis(g, w, s) for g, w, s in zip(grid, size, shift, strict=True)]
        X, Y, Z = (places for places, _ in axes)  # [windows, size] each, -1 outside
        tokens = (X[:, None, None, :, None, None] * grid[1] + Y[None, :, None, None, :, None]) * grid[2] + Z[:, None, None, :]
        inside = (X >= 0)[:, None, None, :, None, None] & (Y >= 0)[None, :, None, None, :, None] & (Z >= 0)[:, None, None, :]
        places = torch.where(inside, tokens, -1)  # [nx, ny, nz, wx, wy, wz]
        rows, groups = [], []
        for split in product(*(_split(len(places_), s) for (places_, _), s in zip(axes, shift, strict=True))):
            part = places[split].flatten(3).flatten(0, 2)
            region = [regions[chosen][0] for (_, regions), chosen in zip(axes, split, strict=True)]
            rows.append(part)
            groups.append((len(part), _mask(region, device)))
        gather = torch.cat(rows).flatten()
        outside = (gather < 0).nonzero().flatten()
        scatter = torch.empty(grid[0] * grid[1] * grid[2], dtype=torch.long)
        real = (gather >= 0).nonzero().flatten()
        scatter[gather[real]] = real
        count = int(torch.tensor(size).prod())
        return cls(count, gather.clamp(min=0).to(device), outside.to(device), scatter.to(device), tuple(groups))


def _axis(length: int, window: int, shift: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the tokens of every window, and which of them belong together, both [windows, window]."""
    padded = -(-length // window) * window
    place = torch.arange(padded)
    token = (place + shift) % padded
    region = (place >= padded - window).int() + (place >= padded - shift).int() if shift else torch.zeros(padded, dtype=torch.int)
    return torch.where(token < length, token, -1).view(-1, window), region.view(-1, window)


def _split(windows: int, shift: int) -> tuple[slice, ...]:
    """On a shifted axis only the last window holds two regions."""
    return (slice(0, windows - 1), slice(windows - 1, windows)) if shift else (slice(0, windows),)


def _mask(regions: list[Tensor], device: torch.device) -> Tensor | None:
    x, y, z = regions
    region = ((x[:, None, None] * 3 + y[None, :, None]) * 3 + z).flatten()
    differs = region[:, None] != region[None, :]
    return differs.to(device=device, dtype=torch.float32) * FORBIDDEN if differs.any() else None


class SwinEncoder(nn.Module):
    """Computes what MONAI's SwinTransformer computes, with its submodules and under its tensors' names.

    Args:
        transformer: takes its submodules over.
        merging: the order in which eight tokens become one (see MERGE_ORDER).
        use_checkpoint: recompute activations in the backward pass, for memory.
    """

    def __init__(
        self, transformer: "SwinTransformer", merging: Literal["monai", "legacy"], *, use_checkpoint: bool = False
    ) -> None:
        super().__init__()
        self.patch_embed = transformer.patch_embed
        self.layers1, self.layers2 = transformer.layers1, transformer.layers2
        self.layers3, self.layers4 = transformer.layers3, transformer.layers4
        self.merge_order = MERGE_ORDER[merging]
        self.window: IntTriple = tuple(transformer.window_size)
        self.use_checkpoint = use_checkpoint
        self._windows: dict[tuple[IntTriple, bool, torch.device], Windows] = {}

    def forward(self, image: Tensor, normalize: bool = True) -> list[Tensor]:
        """[B, 1, X, Y, Z] -> features at 1/2, 1/4, ... 1/32 of the resolution, [B, C, ...] in channels-last memory."""
        embed = self.patch_embed.proj
        tokens = functional.conv3d(image, embed.weight, embed.bias, embed.stride).permute(0, 2, 3, 4, 1).contiguous()
        features = [_channels_first(tokens, normalize)]
        for (stage,) in (self.layers1, self.layers2, self.layers3, self.layers4):
            for index, block in enumerate(stage.blocks):
                windows = self._windows_of(tuple(tokens.shape[1:4]), index % 2 == 1, tokens.device)
                if self.use_checkpoint and torch.is_grad_enabled():
                    tokens = checkpoint(_transform, block, tokens, windows, use_reentrant=False)
                else:
                    tokens = _transform(block, tokens, windows)
            tokens = _merge(stage.downsample, tokens, self.merge_order)
            features.append(_channels_first(tokens, normalize))
        return features

    def prepare(self, image: IntTriple, device: torch.device) -> None:
        """Lay out the windows for images of this shape ahead of the first call, outside of what is compiled."""
        for level in range(1, 5):
            grid = tuple(edge // 2**level for edge in image)
            for is_shifted in (False, True):
                self._windows_of(grid, is_shifted, device)

    def _windows_of(self, grid: Any, is_shifted: bool, device: torch.device) -> Windows:
        key = (grid, is_shifted, device)
        if key not in self._windows:
            self._windows[key] = Windows.of(grid, self.window, is_shifted=is_shifted, device=device)
        return self._windows[key]


def _channels_first(tokens: Tensor, normalize: bool) -> Tensor:
    if normalize:
        tokens = functional.layer_norm(tokens, tokens.shape[-1:])
    return tokens.permute(0, 4, 1, 2, 3)


def _transform(block: Any, tokens: Tensor, windows: Windows) -> Tensor:
    """One transformer block; tokens [B, X, Y, Z, C]."""
    rows = tokens.flatten(1, 3)
    rows = rows + _attend(block.attn, block.norm1(rows), windows)
    parts = [part + block.mlp(block.norm2(part)) for part in torch.split(rows, _rows_at_once(rows), dim=1)]
    return torch.cat(parts, dim=1).view(tokens.shape)


def _rows_at_once(rows: Tensor) -> int:
    """On a CPU without gradients what is between two matrix products of a block stays in cache."""
    total = rows.shape[1]
    return total if rows.is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling() else min(total, CACHED_ROWS)


def _attend(attention: Any, rows: Tensor, windows: Windows) -> Tensor:
    """Self-attention within windows; rows [B, N, C]. Tokens outside the grid are zeros and take part, as in MONAI."""
    batch, _, channels = rows.shape
    size, heads = windows.size, attention.num_heads
    gathered = rows.index_select(1, windows.gather).index_fill(1, windows.outside, 0)
    index = attention.relative_position_index[:size, :size].reshape(-1)
    bias = attention.relative_position_bias_table[index].view(size, size, heads).permute(2, 0, 1)
    at_once = max(1, _rows_at_once(gathered) // size) * size
    outputs = []
    sizes = [count * size for count, _ in windows.groups]
    for group, (_, mask) in zip(torch.split(gathered, sizes, dim=1), windows.groups, strict=True):
        added = bias if mask is None else bias + mask
        for part in torch.split(group, at_once, dim=1):
            qkv = attention.qkv(part).view(batch, -1, size, 3, heads, channels // heads)
            q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)  # [B * windows, heads, size, C / heads]
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=added[None].to(q.dtype), scale=attention.scale)
            outputs.append(mixed.transpose(1, 2).reshape(part.shape))
    output: Tensor = attention.proj(torch.cat(outputs, dim=1).index_select(1, windows.scatter))
    return output


def _merge(merging: Any, tokens: Tensor, order: tuple[IntTriple, ...]) -> Tensor:
    """Blocks of 2x2x2 tokens become one of twice the channels."""
    parts = torch.cat([tokens[:, i::2, j::2, k::2] for i, j, k in order], dim=-1)
    merged: Tensor = merging.reduction(merging.norm(parts))
    return merged
