"""Partial-label Dice + binary cross-entropy, weighted by who said what.

Axis letters: B batch, K organs, X Y Z; N known pairs of case and organ, V voxels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DICE_SMOOTH = 1e-5  # keeps an absent, not predicted organ at loss 0 instead of 0/0


def supervised_loss(
    outputs: Sequence[Tensor], targets_BKXYZ: Tensor, trust_BK: Tensor, *, focus_BXYZ: Tensor, gain_BK: Tensor
) -> Tensor:
    """Partial-label loss over the outputs of a network, the finest first: every coarser one counts half as much, all together 1
    (deep supervision as in nnU-Net, Isensee et al. 2021, which leaves the coarsest out; here it counts too).

    Args:
        outputs: logits [B, K, ...], each of its own resolution over the same extent.
        targets_BKXYZ, focus_BXYZ: at the finest resolution; for the others the nearest voxel is taken.
        trust_BK, gain_BK: see `partial_label_loss`.
    """
    shares = [0.5**level for level in range(len(outputs))]
    total = outputs[0].new_zeros(())
    for share, logits in zip(shares, outputs, strict=True):
        targets, focus = targets_BKXYZ, focus_BXYZ
        if logits.shape[2:] != targets.shape[2:]:
            targets = F.interpolate(targets.float(), logits.shape[2:], mode="nearest-exact")
            focus = F.interpolate(focus[:, None].float(), logits.shape[2:], mode="nearest-exact")[:, 0]
        total = total + share / sum(shares) * partial_label_loss(logits, targets, trust_BK, focus_BXYZ=focus, gain_BK=gain_BK)
    return total


def partial_label_loss(
    logits_BKXYZ: Tensor,
    targets_BKXYZ: Tensor,
    trust_BK: Tensor,
    *,
    focus_BXYZ: Tensor | None = None,
    gain_BK: Tensor | None = None,
) -> Tensor:
    """Mean over the known (case, organ) pairs of trust x (soft Dice loss + BCE).

    An organ a case has no ground truth for is not a negative: its channel contributes exactly zero to the loss and to every
    gradient (the authors' released code lost this and counts unlabeled organs as background: paper-algorithm a.7).

    Args:
        logits_BKXYZ: any float type; computed in float32.
        targets_BKXYZ: 0 or 1; what stands in unknown channels is ignored, NaN included.
        trust_BK: weight of each case's label of each organ, 0 where nothing is known of it; booleans will do.
        focus_BXYZ: 0 or 1; in voxels with 1 a pair counts `gain_BK` times as much.
        gain_BK: at least 1; None is 1 for all.

    Returns:
        Scalar; 0, still attached to the graph, when nothing is known.
    """
    known_BK = trust_BK > 0
    if not known_BK.any():
        return logits_BKXYZ.sum() * 0.0
    logits_NV = logits_BKXYZ.float()[known_BK].flatten(1)  # only known pairs reach the arithmetic: N of B x K
    targets_NV = targets_BKXYZ[known_BK].flatten(1).to(logits_NV.dtype)
    weights_NV = None
    if focus_BXYZ is not None and gain_BK is not None and (gain_BK > 1).any():
        focus_NV = focus_BXYZ.flatten(1)[known_BK.nonzero()[:, 0]].to(logits_NV.dtype)
        weights_NV = 1 + (gain_BK[known_BK] - 1).to(logits_NV.dtype)[:, None] * focus_NV
    entropy_NV = F.binary_cross_entropy_with_logits(logits_NV, targets_NV, weight=weights_NV, reduction="none")
    loss_N = soft_dice_loss(logits_NV, targets_NV, weights_NV) + entropy_NV.mean(1)
    return (trust_BK[known_BK].to(loss_N.dtype) * loss_N).mean()


def soft_dice_loss(logits_NV: Tensor, targets_NV: Tensor, weights_NV: Tensor | None = None) -> Tensor:
    """1 - 2|PT| / (|P|+|T|) per row, [N] (Milletari et al. 2016, with the sums instead of the squares); sums over voxels are
    weighted where weights are given."""
    probabilities_NV, volumes_NV = torch.sigmoid(logits_NV), targets_NV
    if weights_NV is not None:
        probabilities_NV, volumes_NV = probabilities_NV * weights_NV, targets_NV * weights_NV
    intersection_N = (probabilities_NV * targets_NV).sum(1)
    total_N = probabilities_NV.sum(1) + volumes_NV.sum(1)
    return 1 - (2 * intersection_N + DICE_SMOOTH) / (total_N + DICE_SMOOTH)
