"""The bookkeeping of a large campaign: manifest, tables, resume scan, ranking, queue and status, without any volume.

python benchmarks/bookkeeping.py [--cases 100000] [--components 100] [--folder FOLDER]

Every case has its own scores.json, as after a prediction; components are written straight into their table: a hundred thousand
files of them would take long to make, and nothing timed here reads them but what adds new cases.
"""

import argparse
import logging
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measure import show_rows

from atlas_ray import tables
from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue, QueueEntry
from atlas_ray.cluster.identity import Identity
from atlas_ray.cluster.prediction import plan_predictions
from atlas_ray.config import Campaign
from atlas_ray.records import AttentionComponent, Case, CaseScores, OrganScores
from atlas_ray.status import read_status
from atlas_ray.steps.predict import to_predict
from atlas_ray.steps.prioritize import prioritize_step
from atlas_ray.tables import SCHEMAS, add_to_tables, read_scores, save_table
from atlas_ray.workspace import Workspace, file_sha256, write_lines

FEW = 200  # cases predicted since the table was saved, with all their files


def make_campaign(folder: Path) -> Campaign:
    pool = [{"source": "phantom", "name": "pool", "count": 1, "split": "pool"}]
    return Campaign.model_validate({"name": "books", "workspace": str(folder), "datasets": pool})


def make_cases(count: int) -> list[Case]:
    known = {"shape": (512, 512, 400), "spacing": (0.8, 0.8, 1.5), "orientation": "LPS", "source": "pool", "license": "CC0-1.0"}
    return [
        Case.model_validate(
            {"case_id": f"case_{n:06d}", "image": f"/data/{n:06d}.nii.gz", "sha256": f"{n:064x}", "split": "pool", **known}
        )
        for n in range(count)
    ]


def write_result(workspace: Workspace, case: Case, organs: tuple[str, ...], key: str, draw: random.Random) -> None:
    scores = [
        OrganScores.model_construct(
            organ=name, attention_voxels=(n := draw.randrange(20_000)), attention_mm3=0.96 * n, heat_sum=100.0 * n,
            predicted_ml=50.0, components=11, entropy=draw.random(),
        )
        for name in organs
    ]  # fmt: skip
    record = CaseScores.model_construct(
        case_id=case.case_id,
        round=0,
        checkpoints={"swin_unetr": "a" * 64, "nnunet": "b" * 64, "unet": "c" * 64},
        attention_mode="physical",
        attention_voxels=sum(s.attention_voxels for s in scores),
        attention_mm3=sum(s.attention_mm3 for s in scores),
        criteria=("inconsistency", "uncertainty", "overlap"),
        organs=tuple(scores),
        seconds=12.5,
        peak_memory_mb=2000.0,
        key=key,
        bytes=4_000_000,
    )
    path = workspace.scores(0, case.case_id)
    path.parent.mkdir()
    path.write_text(record.model_dump_json(indent=2))


def write_components(workspace: Workspace, cases: list[Case], organs: tuple[str, ...], each: int) -> None:
    """A part per 5,000 cases, as a prediction leaves them."""
    draw, schema = np.random.default_rng(0), SCHEMAS["components"]
    stamps = workspace.result_stamps(0)
    for start in range(0, len(cases), 5000):
        some = cases[start : start + 5000]
        rows = len(some) * each
        corners = draw.integers(0, 400, (rows, 3))
        box = pa.FixedSizeListArray.from_arrays(np.stack([corners, corners + 9], -1).ravel(), 2)
        columns = {
            "case_id": np.repeat([c.case_id for c in some], each),
            "stamp": np.repeat([stamps[c.case_id] for c in some], each),
            "organ": np.resize(np.array(organs), rows),
            "index": np.tile(np.arange(1, each + 1), len(some)),
            "box": pa.FixedSizeListArray.from_arrays(box, 3),
            "peak": pa.FixedSizeListArray.from_arrays(corners.ravel(), 3),
            "voxels": draw.integers(1, 5000, rows),
            "volume_mm3": draw.random(rows) * 1e4,
            "reason": np.resize(np.array(["inconsistency", "uncertainty", "overlap"]), rows),
            "criteria": pa.array([["inconsistency", "overlap"]] * rows),
            "score": draw.random(rows) * 1e4,
            "mean_heat": draw.random(rows),
            "error": np.resize(np.array(["spill", "unknown"]), rows),
        }
        tables._write(workspace, 0, "components", [pa.table({k: pa.array(v) for k, v in columns.items()}).cast(schema)])


def component_lines(organs: tuple[str, ...], each: int) -> str:
    one = AttentionComponent(
        organ=organs[0], index=1, box=((1, 20), (3, 40), (5, 60)), peak=(4, 9, 16), voxels=812, volume_mm3=779.5, reason="overlap",
        criteria=("inconsistency", "overlap"), score=204.25, mean_heat=0.26,
    )  # fmt: skip
    return (one.model_dump_json() + "\n") * each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--components", type=int, default=100, help="of each case")
    parser.add_argument("--folder", type=Path, help="where the workspace is made, and removed")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    folder = Path(tempfile.mkdtemp(prefix="books", dir=arguments.folder))
    try:
        measure(folder / "workspace", arguments.cases, arguments.components)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, count: int, each: int) -> None:
    campaign = make_campaign(folder)
    workspace, organs = campaign.open_workspace(), campaign.load_organs().names
    cases, draw = make_cases(count), random.Random(0)
    write_lines(workspace.manifest, cases)
    for name in campaign.architecture_names:
        workspace.checkpoint(0, name).parent.mkdir(parents=True, exist_ok=True)
        workspace.checkpoint(0, name).write_bytes(name.encode())
    identity = Identity.of(campaign, {n: file_sha256(workspace.checkpoint(0, n)) for n in campaign.architecture_names})
    workspace.predictions(0).mkdir(parents=True)
    for case in cases:
        write_result(workspace, case, organs, identity.key(case), draw)
    workspace.start_step(0, "predict", "2026-01-01T00:00:00+00:00")
    rows: list[tuple[Any, ...]] = []

    def timed(what: str, work: Callable[[], Any], goal: str = "") -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        rows.append((what, f"{time.perf_counter() - wall:.2f}", f"{time.process_time() - processor:.2f}", goal))
        return result

    timed("manifest, first read of a process", workspace.cases)
    timed("scores table from every case's file (only where it is missing)", lambda: save_table(workspace, 0, "scores"))
    write_components(workspace, cases, organs, each)
    timed(f"components table: {count * each:,} rows joined into one part", lambda: save_table(workspace, 0, "components"))
    everyone = to_predict(campaign, ("train", "pool", "holdout"))
    plan = timed("resume scan: which cases hold", lambda: plan_predictions(campaign, 0, everyone), "30")
    assert not plan.todo, "every key holds"
    timed("scores as columns", lambda: read_scores(workspace, 0))
    budget = timed("prioritize, MLflow's first run included", lambda: prioritize_step(campaign, 0))
    budget = timed("prioritize", lambda: prioritize_step(campaign, 0), "10")
    few = [case.case_id for case in cases[:FEW]]
    for case_id in few:
        workspace.components(0, case_id).write_text(component_lines(organs, each))
    timed(f"{FEW} new cases into both tables", lambda: add_to_tables(workspace, 0, few))
    timed(f"status, {budget.cases:,} cases queued", lambda: read_status(campaign, 0), "30")
    open_app(campaign, timed, f"the app's queue, {budget.cases:,} items")
    with open_database(campaign.database_url) as database:
        entries = [QueueEntry(case_id=case.case_id, organs=organs[:3], rank=rank) for rank, case in enumerate(cases, 1)]
        timed(f"queue filled with {count:,} items", lambda: Queue(database).fill(0, entries))
    open_app(campaign, timed, f"the app's queue, {count:,} items")
    show_rows(f"{count:,} cases, {count * each:,} components", ("what", "seconds", "of them on processors", "goal, seconds"), rows)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def open_app(campaign: Campaign, timed: Callable[..., Any], what: str) -> None:
    from ui.panels import queue_rows, round_summary
    from ui.store import Store

    def first_page() -> None:
        database = open_database(campaign.database_url)
        store = Store(campaign.open_workspace(), round_index=0, organs=campaign.load_organs(), database=database)
        round_summary(store)
        assert queue_rows(store)
        store.close()

    timed(what, first_page, "1")


if __name__ == "__main__":
    main()
