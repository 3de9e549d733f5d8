"""The fault campaign: prediction jobs on a cluster of three nodes where everything dies, against undisturbed runs.

python benchmarks/faults.py [--seeds 20] [--cases 300] [--faults actor worker ...]

Each seed: a job predicts small cases, 5 % of them damaged. When random numbers of cases are done, an inference actor, a worker and
a raylet get SIGKILL (a node joins instead), the driver gets SIGKILL and SIGTERM, the workspace's disk is full for a while (needs
root), MLflow and then the annotation database are away for a minute. The same command is started again until it ends well.
tests/chaos.py says what must be true then. Nothing here is a timing.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from chaos import Setting, TrackingServer, campaign_with_faults, hosts

FAULTS = (
    "actor",
    "actor",
    "worker",
    "worker",
    "raylet",
    "raylet",
    "driver",
    "driver",
    "preemption",
    "disk",
    "tracking",
    "database",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--away", type=float, default=60.0, help="seconds that MLflow and the database are away")
    parser.add_argument("--faults", nargs="*", default=FAULTS, choices=sorted(set(FAULTS)))
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="faults"))
    violations = 0
    print("| seed | faults | starts of the job | seconds | violations |\n|---|---|---|---|---|", flush=True)
    server = TrackingServer(root / "mlflow") if "tracking" in given.faults else None
    try:
        if server is not None:
            server.wait()
        with hosts(2) as cluster:
            setting = Setting(cluster, given.cases, tracking=server, away_s=given.away)
            for seed in range(given.first_seed, given.first_seed + given.seeds):
                folder = root / f"seed_{seed}"
                found = campaign_with_faults(folder, setting, given.faults, seed)
                violations += len(found.violations)
                print(
                    f"| {seed} | {', '.join(found.faults)} | {found.starts} | {found.seconds:.0f} | {len(found.violations)} |",
                    flush=True,
                )
                for line in found.violations:
                    print(f"VIOLATION seed {seed}: {line}", file=sys.stderr, flush=True)
                if not found.violations:
                    shutil.rmtree(folder)
    finally:
        if server is not None:
            server.close()
    print(f"\n{given.seeds} seeds, {given.cases} cases each: {violations} violations")
    if violations:
        print(f"what they left lies in {root}", file=sys.stderr)
    else:
        shutil.rmtree(root)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
