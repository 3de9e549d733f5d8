"""Run every benchmark and write docs/benchmarks.md.

python benchmarks/run.py [NAME ...]      NAME is a script without .py; none is all of them
A script that is run alone keeps the other sections of the page.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

from measure import machine

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
BY_HAND = {"faults", "fuzz", "mlflow_picture", "proof", "sizing", "stream"}  # campaigns and pages; what the page says of them stays
NOT_BENCHMARKS = {*BY_HAND, "measure", "organ_case", "patients", "run"}
HEAD = """# Benchmarks

Made by `make bench` (one script alone: `make bench ARGS=attention`). Every ratio comes from variants run in turn in one process.
Timing never decides a test. "times ours" says how many times as long the peer takes.
"""


def main() -> None:
    scripts = {path.stem: path for path in sorted(HERE.glob("*.py")) if path.stem not in NOT_BENCHMARKS}
    wanted = sys.argv[1:] or list(scripts)
    unknown = [name for name in wanted if name not in scripts]
    if unknown:
        raise SystemExit(f"no benchmark {', '.join(unknown)}; there are {', '.join(scripts)}")
    sections = _sections(PAGE.read_text()) if PAGE.exists() else {}
    failed = []
    for name in wanted:
        print(f"--- {name}", flush=True)
        result = subprocess.run([sys.executable, str(scripts[name])], stdout=subprocess.PIPE, text=True, check=False)
        print(result.stdout, flush=True)
        if result.returncode:
            failed.append(name)
            continue
        about = f"`python benchmarks/{name}.py` on {machine()}; {time.strftime('%Y-%m-%d')}"
        sections[name] = f"{about}\n{result.stdout.rstrip()}\n"
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(
            HEAD + "".join(f"\n## {key}\n\n{sections[key]}" for key in sorted(sections) if key in scripts or key in BY_HAND)
        )
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _sections(page: str) -> dict[str, str]:
    """Name -> text of every section of an earlier page."""
    parts = re.split(r"^## (\w+)\n\n", page, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


if __name__ == "__main__":
    main()
