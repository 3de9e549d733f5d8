"""A volume that does not fit is tried with less memory, step by step, and in the end refused with a reason."""

import pytest
import torch

from atlas_ray.segmentation.rungs import Rung, Rungs, is_out_of_memory

GPU_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore lines")


class Memory:
    """Fits what needs at most so many windows at once, and says what was tried."""

    def __init__(self, windows: int, *, sums_fit: bool = True) -> None:
        self.windows, self.sums_fit = windows, sums_fit
        self.tried: list[Rung] = []
        self.cleaned = 0

    def __call__(self, rung: Rung) -> str:
        self.tried.append(rung)
        if rung.batch > self.windows or not (self.sums_fit or rung.sums_on_cpu):
            raise GPU_FULL
        return "probabilities"

    def clean(self) -> None:
        self.cleaned += 1


def test_rungs_halve_the_windows_and_then_leave_the_gpu() -> None:
    assert list(Rungs(4, has_device=True)) == [Rung(4, False), Rung(2, False), Rung(1, False), Rung(1, True)]
    assert list(Rungs(1, has_device=False)) == [Rung(1, False)]


def test_first_rung_that_fits_gives_the_result() -> None:
    memory = Memory(windows=2)
    assert Rungs(8, has_device=True).climb_down(1000, memory, clean_up=memory.clean) == "probabilities"
    assert memory.tried == [Rung(8, False), Rung(4, False), Rung(2, False)]
    assert memory.cleaned == 2


def test_sums_leave_the_gpu_last() -> None:
    memory = Memory(windows=9, sums_fit=False)
    Rungs(2, has_device=True).climb_down(1000, memory, clean_up=memory.clean)
    assert memory.tried[-1] == Rung(1, True)


def test_a_volume_as_large_starts_where_the_last_one_ended_and_a_small_one_at_the_top() -> None:
    rungs = Rungs(4, has_device=True)
    rungs.climb_down(1000, Memory(windows=1), clean_up=lambda: None)
    as_large, small = Memory(windows=1), Memory(windows=4)
    rungs.climb_down(1200, as_large, clean_up=lambda: None)
    assert as_large.tried == [Rung(1, False)]
    rungs.climb_down(999, small, clean_up=lambda: None)
    assert small.tried == [Rung(4, False)]


def test_what_fits_nowhere_is_refused_and_so_is_the_next_one_as_large() -> None:
    rungs = Rungs(2, has_device=True)
    for _ in range(2):
        with pytest.raises(MemoryError, match=r"even with 1 windows at once, sums on the CPU: CUDA out of memory"):
            rungs.climb_down(1000, Memory(windows=0), clean_up=lambda: None)


def test_a_bug_is_not_taken_for_a_lack_of_memory() -> None:
    def attempt(rung: Rung) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Rungs(4, has_device=True).climb_down(1000, attempt, clean_up=lambda: None)


def test_torch_says_out_of_memory_in_two_ways() -> None:
    """On CPUs it is a plain RuntimeError; this one is torch's own."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(GPU_FULL)
    assert not is_out_of_memory(RuntimeError("something else"))
