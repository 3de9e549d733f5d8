"""An average of a network's weights over its training steps."""

import copy

import torch
from torch import nn


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
