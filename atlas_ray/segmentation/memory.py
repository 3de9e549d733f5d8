"""Large arrays that are used again instead of given back to the system.

A full-resolution feature map is larger than what the allocator keeps, so every new one is fresh pages from the system, and their
first touch takes several times as long as writing them. Networks ask for the same few sizes again and again.
"""

import weakref
from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_free: dict[int, list[npt.NDArray[np.float32]]] = defaultdict(list)


def empty(*shape: int) -> Tensor:
    """An uninitialized float32 tensor on the CPU.

    When the last tensor that shares its memory is gone, the next of its size gets it. The process keeps the most that was in use at
    once since the last `give_back`.
    """
    size = int(np.prod(shape))
    buffer = _free[size].pop() if _free[size] else np.empty(size, np.float32)
    lent = buffer[:]  # its own object: torch holds it as long as the memory is in use
    weakref.finalize(lent, _free[size].append, buffer)
    return torch.from_numpy(lent).view(shape)


def give_back() -> None:
    """Return to the system what is free: another network asks for other sizes."""
    _free.clear()
