"""What to do when a volume does not fit: fewer windows at once, then sums in the machine's memory, then give up with a reason."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

log = logging.getLogger(__name__)
Result = TypeVar("Result")
CPU_ALLOCATOR = "DefaultCPUAllocator"  # in the message of the RuntimeError that torch raises where malloc fails


@dataclass(frozen=True, slots=True)
class Rung:
    """How much memory a volume is predicted with.

    Args:
        batch: windows per forward pass.
        sums_on_cpu: the band of sums lies in the machine's memory, not on the networks' device.
    """

    batch: int
    sums_on_cpu: bool

    def __str__(self) -> str:
        return f"{self.batch} windows at once, sums on the {'CPU' if self.sums_on_cpu else 'device'}"


@dataclass(slots=True)
class Rungs:
    """From the fastest way to the smallest. What a volume was too large for is not tried again with one as large.

    Args:
        batch: windows per forward pass to begin with; halved down to 1.
        has_device: networks run on a GPU, whose memory the sums can leave.
    """

    batch: int
    has_device: bool
    _too_large: dict[Rung, int] = field(default_factory=dict)  # rung -> voxels of the smallest volume that did not fit

    def __iter__(self) -> Iterator[Rung]:
        batch = self.batch
        while batch > 1:
            yield Rung(batch, sums_on_cpu=False)
            batch //= 2
        yield Rung(1, sums_on_cpu=False)
        if self.has_device:
            yield Rung(1, sums_on_cpu=True)

    def climb_down(self, voxels: int, attempt: Callable[[Rung], Result], *, clean_up: Callable[[], None]) -> Result:
        """The result of the first attempt that fits.

        Args:
            voxels: of the volume.
            attempt: raises `MemoryError` or torch's out-of-memory errors where it does not fit.
            clean_up: called after each that did not.

        Raises:
            MemoryError: none fits; says what was tried last.
        """
        why = ""
        rungs = [rung for rung in self if voxels < self._too_large.get(rung, voxels + 1)] or list(self)[-1:]
        for rung in rungs:
            try:
                return attempt(rung)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
            clean_up()  # outside of the handler: the traceback no longer holds the tensors
            self._too_large[rung] = min(voxels, self._too_large.get(rung, voxels))
            log.warning("a volume of %d voxels does not fit with %s: %s", voxels, rung, why)
        raise MemoryError(f"out of memory, even with {rungs[-1]}: {why}")


def is_out_of_memory(error: Exception) -> bool:
    """Of the machine or of a GPU; torch tells the first by its message alone."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error)
    )
