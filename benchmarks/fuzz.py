"""Malformed NIfTI, DICOM, YAML and REST bodies, as many as one likes: crashes, hangs, and what was accepted wrongly.

python benchmarks/fuzz.py --count 5000 [--seed 1]

The inputs are those of tests/malformed.py. Nothing here is a timing.
"""

import argparse
import resource
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from malformed import run_all


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reasons", action="store_true", help="one refusal of every kind")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # pydicom's, of what it is made to read
    share = {"nifti": 0.45, "dicom": 0.2, "configs": 0.2, "requests": 0.15}
    counts = {name: max(1, round(given.count * part)) for name, part in share.items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        tallies = run_all(Path(folder), seed=given.seed, **counts)
    print("| input | number | refused by name | accepted, as written | violations | slowest |\n|---|---|---|---|---|---|")
    for name, tally in tallies.items():
        refused, accepted = tally.refused.total(), tally.accepted.total()
        print(f"| {name} | {tally.count()} | {refused} | {accepted} | {len(tally.violations)} | {tally.slowest_s:.2f} s |")
    print(f"\nseed {given.seed}; peak memory grew by {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024} MB")
    for name, tally in tallies.items():
        for kind, reason in tally.reasons.items() if given.reasons else ():
            print(f"{name}, {kind}: {reason[:250]}")
        for violation in tally.violations:
            print(f"VIOLATION {name}, {violation[:400]}")
    return 1 if any(tally.violations for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
