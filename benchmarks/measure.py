"""What every benchmark shares: interleaved timing and a Markdown table with ratios.

Variants of one table run in turn, round after round, in one process, so that a disturbance of the machine hits all of them. A ratio
is the median over rounds of (peer / ours), its spread the smallest and largest of them.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def one_thread() -> None:
    """Let every library of this process use one core; call it before numpy and torch are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")


@dataclass(frozen=True)
class Times:
    """Seconds of one variant, one entry a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def ratio(self, ours: "Times") -> tuple[float, float, float]:
        """Median, smallest and largest of this peer's time over ours, round by round."""
        ratios = [peer / own for peer, own in zip(self.seconds, ours.seconds, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def interleaved(
    variants: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Time every variant once a round.

    Args:
        variants: name -> what to run, without arguments.
        rounds: how often.
        warm_up: run each once before, unmeasured (compilation, page cache).
        clock: seconds. `time.process_time` leaves out waiting for a core that others use.
    """
    if warm_up:
        for call in variants.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def show(title: str, times: Mapping[str, Times], *, ours: str, note: str = "") -> None:
    """Print the table: every variant's median, and how many times as long it takes as `ours`."""
    print(f"\n### {title}\n")
    if note:
        print(f"{note}\n")
    print("| variant | median | smallest to largest | times ours |")
    print("|---|---|---|---|")
    for name, measured in times.items():
        low, high = min(measured.seconds), max(measured.seconds)
        share = "1" if name == ours else "{:.2f} ({:.2f} to {:.2f})".format(*measured.ratio(times[ours]))
        print(f"| {name} | {_shown(measured.median)} | {_shown(low)} to {_shown(high)} | {share} |")


def show_rows(title: str, header: tuple[str, ...], rows: list[tuple[Any, ...]], *, note: str = "") -> None:
    """Print any other table."""
    print(f"\n### {title}\n")
    if note:
        print(f"{note}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row) + " |")


def machine() -> str:
    """Processor, cores and vector units, GPU, and the versions that matter."""
    import numpy as np
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    vector = torch.backends.cpu.get_cpu_capability()
    return (
        f"{processor}, {os.cpu_count()} cores ({vector}), {gpu}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"numpy {np.__version__}"
    )


def _shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
