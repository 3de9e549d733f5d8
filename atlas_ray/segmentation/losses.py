"""Partial-label Dice + binary cross-entropy.

Axis letters: B batch, K organs, X Y Z.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DICE_SMOOTH = 1e-5  # keeps an absent, not predicted organ at loss 0 instead of 0/0


def partial_label_loss(logits_BKXYZ: Tensor, targets_BKXYZ: Tensor, known_BK: Tensor) -> Tensor:
    """Mean over the known (case, organ) pairs of soft Dice loss + BCE.

    An organ a case has no ground truth for is not a negative: its channel contributes exactly zero to the loss and to every
    gradient (the authors' released code lost this and counts unlabeled organs as background: paper-algorithm a.7).

    Args:
        logits_BKXYZ: any float type; computed in float32.
        targets_BKXYZ: 0 or 1; what stands in unknown channels is ignored, NaN included.
        known_BK: bool, which organs each case has ground truth for.

    Returns:
        Scalar; 0, still attached to the graph, when nothing is known.
    """
    if not known_BK.any():
        return logits_BKXYZ.sum() * 0.0
    logits_NV = logits_BKXYZ.float()[known_BK].flatten(1)  # only known pairs reach the arithmetic: N of B x K
    targets_NV = targets_BKXYZ[known_BK].flatten(1).to(logits_NV.dtype)
    return soft_dice_loss(logits_NV, targets_NV) + F.binary_cross_entropy_with_logits(logits_NV, targets_NV)


def soft_dice_loss(logits_NV: Tensor, targets_NV: Tensor) -> Tensor:
    """1 - 2|PT| / (|P|+|T|) per row, averaged (Milletari et al. 2016, with the sums instead of the squares)."""
    probabilities_NV = torch.sigmoid(logits_NV)
    intersection_N = (probabilities_NV * targets_NV).sum(1)
    total_N = probabilities_NV.sum(1) + targets_NV.sum(1)
    return (1 - (2 * intersection_N + DICE_SMOOTH) / (total_N + DICE_SMOOTH)).mean()
