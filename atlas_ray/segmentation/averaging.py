"""Averages of weights: of a network over its training steps, and of a fine-tuned network with the one it started from."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average (Polyak and Juditsky 1992; as in Tarvainen and Valpola 2017).

    The first steps' share is larger, min(decay, (1 + n) / (10 + n)) being kept in update n, so that the random start is forgotten
    in trainings much shorter than 1 / (1 - decay) steps.

    Args:
        network: what is averaged; copied, never changed.
        decay: what is kept of the average in one update.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take the weights after a step (0-based) into the average."""
        kept = min(self.decay, (1 + step) / (10 + step))
        for mean, new in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(new, 1 - kept)
            else:
                mean.copy_(new)  # counters


@torch.no_grad()
def blended(tuned: Mapping[str, Tensor], parent: Mapping[str, Tensor], parent_share: float) -> dict[str, Tensor]:
    """Weights between a fine-tuned network's and its parent's, tensor by tensor (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903).

    Fine-tuning on few cases costs a network some of what it knew. Between the two networks lie some that keep most of both.

    Args:
        tuned, parent: state dicts with the same names and shapes; neither is changed. Counters are the tuned network's.
        parent_share: 0 gives the tuned network, 1 its parent.
    """
    return {name: new.lerp(parent[name], parent_share) if new.is_floating_point() else new for name, new in tuned.items()}
