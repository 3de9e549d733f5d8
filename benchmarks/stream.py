"""Many small volumes through the real job: the driver's memory, what a case costs beside its networks, and a kill of everything.

python benchmarks/stream.py [--cases 8448] [--edge 48] [--cases-per-stream N]

`jobs.predict` runs as a process of its own, with a Ray of its own. When a random share of the cases is finished, the driver and
every process of its Ray get SIGKILL; the same command then goes on to the end. The driver's resident memory is sampled every second
and, with 2,000 cases or more, drawn into docs/stream_memory.png. Cases: eight different CT, the others hard links to them; a U-Net
of two small stages.

Overhead of a case: wall-clock time between the first case finished and the last one, over the cases, less the actor's own seconds
in its networks. With two cores, one of which computes networks, it holds whatever readers, finishers, driver and Ray do beside it
and cannot be hidden behind it.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from measure import machine, show_rows
from small_cases import make_campaign, make_cases

from atlas_ray.config import Campaign, load_config
from atlas_ray.figures import figure, png
from atlas_ray.lock import holder_of
from atlas_ray.storage import write_atomically

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_CASE_S = 3.6  # 512 x 512 x 300 at 1.5 mm, overlap 0.5, on an A100 (benchmarks/sizing.py); other cards: 1.1 to 53 s
PICTURE = REPOSITORY / "docs" / "stream_memory.png"


@dataclass(slots=True)
class Watched:
    """One start of the job: samples of (seconds since the very first start, cases finished, driver's resident MB)."""

    samples: list[tuple[float, int, float]] = field(default_factory=list)
    code: int | None = None


def watch(config: Path, campaign: Campaign, log: Path, began: float, *, kill_at: int | None) -> Watched:
    """Run the job, to its end or until so many cases are finished; then everything is killed."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        command = [sys.executable, "-m", "jobs.predict", str(config)]
        job = subprocess.Popen(command, cwd=log.parent, env=environment, stdout=out, stderr=subprocess.STDOUT)
    seen, predictions = Watched(), campaign.open_workspace().predictions(0)
    while job.poll() is None:
        done = sum(not path.name.startswith(".") for path in predictions.iterdir()) if predictions.exists() else 0
        seen.samples.append((time.monotonic() - began, done, resident_mb(job.pid)))
        if kill_at is not None and done >= kill_at:
            for pid in [*descendants(job.pid), job.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            job.wait()
            return seen
        time.sleep(1)
    seen.code = job.returncode
    return seen


def resident_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    return 0.0


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    parents = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found, new = list[int](), {pid}
    while new := {child for child, parent in parents.items() if parent in new}:
        found += new
    return found


def network_seconds(campaign: Campaign, log: str) -> float:
    """Of the actors, as the job's own table says."""
    rows = [line.split("│") for line in log.splitlines() if "│" in line]
    return sum(float(row[2]) for row in rows if len(row) > 2 and row[1].strip() in ("networks", "pack"))


def slope_mb(samples: list[tuple[float, int, float]]) -> float:
    """Growth of the driver per 1,000 cases, by least squares over the second half."""
    import numpy as np

    half = [s for s in samples if s[1] > samples[-1][1] / 2 and s[2] > 0]
    if len({s[1] for s in half}) < 2:
        return float("nan")
    return float(np.polyfit([s[1] for s in half], [s[2] for s in half], 1)[0] * 1000)


def draw(starts: list[Watched], cases: int) -> bytes:
    with figure(8, 3.6) as (made, axes):
        for name, seen in zip(("until everything is killed", "the same command again"), starts, strict=False):
            points = [s for s in seen.samples if s[2] > 0]
            axes.plot([s[1] for s in points], [s[2] for s in points], label=name, linewidth=1.2)
        axes.set(xlabel=f"cases finished, of {cases}", ylabel="driver's resident memory, MB", ylim=(0, None))
        axes.legend(frameon=False)
        return png(made)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=8448)
    parser.add_argument("--edge", type=int, default=48)
    parser.add_argument("--cases-per-stream", type=int, help="of the configuration's own, 2000")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-kill", action="store_true")
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="stream"))
    config = make_campaign(
        root,
        workspace=root / "workspace",
        inference={"window": [given.edge] * 3, "overlap": 0.25},
        cluster={"task_memory_gb": 0.2} | ({"cases_per_stream": given.cases_per_stream} if given.cases_per_stream else {}),
    )
    cases = make_cases(root, config, given.cases, edge=given.edge, linked=True)
    campaign = load_config(config)
    kill_at = None if given.no_kill else random.Random(given.seed).randrange(given.cases // 5, 4 * given.cases // 5)
    began, starts = time.monotonic(), []
    if kill_at is not None:
        starts.append(watch(config, campaign, root / "first.log", began, kill_at=kill_at))
    starts.append(watch(config, campaign, root / "last.log", began, kill_at=None))
    last, log = starts[-1], (root / "last.log").read_text()
    if last.code:
        print(log[-3000:], file=sys.stderr)
        return 1
    there = campaign.open_workspace().predicted(0)
    wrong = [case.case_id for case in cases if case.case_id not in there]
    left = [str(path) for path in campaign.open_workspace().root.rglob("*.partial")]
    left += [str(p) for p in (root / "workspace" / "attempts").rglob("*") if p.is_file()]
    running = [s for s in last.samples if s[1] > last.samples[0][1]]
    first, final = running[0], next(s for s in running if s[1] == running[-1][1])
    count = final[1] - first[1]
    own = network_seconds(campaign, log) / max(1, len(cases) - last.samples[0][1])
    wall = (final[0] - first[0]) / max(1, count)
    if len(cases) >= 2000:
        write_atomically(PICTURE, draw(starts, given.cases))
    rows = [
        ("cases", f"{len(cases)} of {given.edge}^3"),
        ("everything killed at", "-" if kill_at is None else f"{starts[0].samples[-1][1]} cases"),
        ("without a result in the end", len(wrong)),
        ("left behind, lock held", f"{len(left)}, {holder_of(campaign.open_workspace()) is not None}"),
        ("driver, MB: at the first case, at the last", f"{first[2]:.0f}, {final[2]:.0f}"),
        ("driver's growth per 1,000 cases over the second half, MB", f"{slope_mb(last.samples):.1f}"),
        ("wall-clock ms a case, from the first case to the last", f"{1000 * wall:.0f}"),
        ("the actor's own ms a case", f"{1000 * own:.0f}"),
        ("overhead a case, ms", f"{1000 * (wall - own):.0f}"),
        (f"that, of a CT whose networks take {REAL_CASE_S} s", f"{(wall - own) / REAL_CASE_S:.1%}"),
    ]
    print(machine())
    show_rows("Many small volumes through the job", ("", ""), rows)
    print("\n" + "\n".join(line for line in log.splitlines() if "│" in line or line.startswith("actors in their")))
    shutil.rmtree(root)
    return 1 if wrong or left else 0


if __name__ == "__main__":
    sys.exit(main())
