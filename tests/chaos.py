"""A prediction job on a cluster where anything may die, and what must be true of its workspace afterwards.

Nothing is simulated: processes get SIGKILL, the workspace's disk is filled, the tracking server is stopped, the database is locked
by another process. A fault happens when a random number of cases is finished, so that all of them happen while there is work.
"""

import contextlib
import functools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from small_cases import make_campaign, make_cases

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue
from atlas_ray.cluster.prediction import predict_cases
from atlas_ray.cluster.session import in_process
from atlas_ray.config import Campaign, load_config
from atlas_ray.lock import holder_of
from atlas_ray.records import Case
from atlas_ray.tables import read_scores
from atlas_ray.workspace import RESULT, file_sha256, read_sums

REPOSITORY = Path(__file__).resolve().parents[1]
STARTS = 25  # of one job, until it counts as one that never ends
ENVIRONMENT = {
    "PYTHONPATH": str(REPOSITORY),
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
}


# --- a cluster -------------------------------------------------------------------------------------------------------


class Hosts:
    """Several Ray nodes on this machine: a head that stays, and nodes that may go.

    Args:
        nodes: beside the head.
    """

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        self._arguments = {"num_cpus": 2, "object_store_memory": 150 * 2**20, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=self._arguments)
        self.nodes = [self._add() for _ in range(nodes)]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def _add(self) -> Any:
        return self.cluster.add_node(**{k: v for k, v in self._arguments.items() if k != "include_dashboard"})

    def workers(self, title: str = "ray::") -> list[int]:
        """Process ids of the workers whose title starts so and who are not idle. A node's agents are none: a node ends with them,
        and the head has to stay."""
        raylets = {
            process.process.pid for node in self.cluster.list_all_nodes() for process in node.all_processes.get("raylet", ())
        }
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                name = (folder / "cmdline").read_bytes().decode(errors="replace")
                if parent in raylets and name.startswith(title) and "IDLE" not in name and "Agent" not in name:
                    found.append(int(folder.name))
        return found

    def lose_node(self, chance: random.Random) -> bool:
        """SIGKILL a raylet and what runs on it, and add a node."""
        if not self.nodes:
            return False
        node = self.nodes.pop(chance.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.append(self._add())
        return True

    def close(self) -> None:
        self.cluster.shutdown()


@contextlib.contextmanager
def hosts(nodes: int) -> Iterator[Hosts]:
    with mock.patch.dict(os.environ, ENVIRONMENT):
        cluster = Hosts(nodes)
        try:
            yield cluster
        finally:
            cluster.close()


# --- things that go away and come back -------------------------------------------------------------------------------


class Disk:
    """A small file system for the workspace. Needs root: others have no disk of their own, and `fill` does nothing."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder, self._full = folder, folder / "filler"
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        self.is_own = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fill(self, seconds: float) -> bool:
        """Not a byte is left for a while."""
        if not self.is_own:
            return False
        with contextlib.suppress(OSError), self._full.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        threading.Timer(seconds, lambda: self._full.unlink(missing_ok=True)).start()
        return True

    def close(self) -> None:
        self._full.unlink(missing_ok=True)
        if self.is_own:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


class TrackingServer:
    """MLflow in a process of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder = folder
        self._start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _start(self) -> None:
        place = ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--artifacts-destination", str(self._folder)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1", *place],
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        raise TimeoutError(f"no tracking server at {self.uri}")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def go_away(self, seconds: float) -> bool:
        self.close()
        threading.Timer(seconds, self._start).start()
        return True


LOCK_IT = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextlib.contextmanager
def database_away(path: Path, seconds: float) -> Iterator[None]:
    """Another process holds it, and dies in the end."""
    holder = subprocess.Popen([sys.executable, "-c", LOCK_IT, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        yield
    finally:
        holder.kill()
        holder.wait()


# --- a campaign with faults ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """
    Args:
        faults: what happened, in order.
        starts: of the job.
        violations: what is not as it must be.
    """

    faults: list[str] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a seed's campaign runs on.

    Args:
        cluster: shared by all.
        tracking: None is a file in the workspace.
        away_s: how long tracking and the database are away.
        full_s: how long at most the disk is full.
        patience_s: of the job.
        hesitation_s: at most between the moment and the fault.
    """

    cluster: Hosts
    cases: int
    edge: int = 24
    corrupt: float = 0.05
    tracking: TrackingServer | None = None
    away_s: float = 60.0
    full_s: float = 16.0
    patience_s: float = 8.0
    hesitation_s: float = 1.0


def campaign_with_faults(root: Path, setting: Setting, faults: Sequence[str], seed: int) -> Outcome:
    """Predict and prioritize, with faults in a random order at random moments; a job that ends otherwise than well starts again.

    Args:
        root: an empty folder.
        faults: of "actor", "worker", "raylet", "driver", "preemption", "disk", "tracking", "database".
    """
    chance, outcome, began = random.Random(seed), Outcome(), time.monotonic()
    disk = Disk(root / "disk", megabytes=64 + setting.cases // 4)
    try:
        config = make_campaign(
            root,
            workspace=root / "disk" / "workspace",
            annotation={"database": f"sqlite:///{root}/annotation.db"},
            tracking={"uri": setting.tracking.uri if setting.tracking else f"sqlite:///{root}/mlflow.db"},
            effort={"budget_share": 0.5},
            cluster={"max_failed_fraction": 0.5, "patience_s": setting.patience_s, "task_memory_gb": 0.2},
        )
        cases = make_cases(root, config, setting.cases, edge=setting.edge)
        wanted = undisturbed(setting.cases, setting.edge)
        bad = break_some(cases, max(1, round(setting.corrupt * len(cases))), chance)
        job = Job(root, ["predict", str(config)], setting.cluster.address)
        act: dict[str, Callable[[], bool]] = {
            "actor": lambda: _kill_one(setting.cluster.workers("ray::MapWorker"), chance),
            "worker": lambda: _kill_one(setting.cluster.workers(), chance),
            "raylet": lambda: setting.cluster.lose_node(chance),
            "driver": lambda: job.signal(signal.SIGKILL),
            "preemption": lambda: job.signal(signal.SIGTERM),
            "disk": lambda: disk.fill(chance.uniform(1, setting.full_s)),
            "tracking": lambda: setting.tracking is not None and setting.tracking.go_away(setting.away_s),
        }
        order = [fault for fault in faults if fault in act]
        chance.shuffle(order)
        moments = sorted(chance.randrange(3 * (len(cases) - len(bad)) // 4) for _ in order)
        predictions = load_config(config).open_workspace().predictions(0)
        upcoming = list(zip(moments, order, strict=True))
        while not job.has_succeeded():
            if job.starts > STARTS:
                outcome.violations.append(f"{job.starts} starts, and still: {job.last_words()}")
                break
            if upcoming and _finished(predictions) >= upcoming[0][0]:
                moment, fault = upcoming.pop(0)
                time.sleep(chance.uniform(0, setting.hesitation_s))
                if act[fault]():
                    outcome.faults.append(fault)
                elif fault in ("actor", "worker"):  # none is at work just now
                    upcoming.insert(0, (moment, fault))
            time.sleep(0.05)
        outcome.starts = job.starts
        if setting.tracking:
            setting.tracking.wait()
        away = setting.away_s if "database" in faults else 0
        if away:
            outcome.faults.append("database")
        outcome.violations += prioritize(root, config, away, setting.cluster.address)
        outcome.violations += violations(load_config(config), cases, bad, wanted)
    finally:
        disk.close()
    outcome.seconds = time.monotonic() - began
    return outcome


class Job:
    """A command that is started again whenever it ends otherwise than well."""

    def __init__(self, root: Path, arguments: Sequence[str], address: str) -> None:
        self._root, self._arguments, self.starts = root, arguments, 0
        self._environment = {**os.environ, **ENVIRONMENT, "RAY_ADDRESS": address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        self._start()

    def _start(self) -> None:
        self.starts += 1
        with self._log.open("w") as log:
            command = [sys.executable, "-m", f"jobs.{self._arguments[0]}", *self._arguments[1:]]
            self._process = subprocess.Popen(command, cwd=self._root, env=self._environment, stdout=log, stderr=subprocess.STDOUT)

    @property
    def _log(self) -> Path:
        return self._root / f"{self._arguments[0]}.{self.starts}.log"

    def has_succeeded(self) -> bool:
        """Whether it has ended well; where it has ended otherwise, it is started again."""
        code = self._process.poll()
        if code is not None and code != 0:
            self._start()
        return code == 0

    def signal(self, number: signal.Signals) -> bool:
        if self._process.poll() is not None:
            return False
        self._process.send_signal(number)
        self._process.wait()
        return True

    def last_words(self) -> str:
        return self._log.read_text()[-2000:]


def prioritize(root: Path, config: Path, away_s: float, address: str) -> list[str]:
    """Fill the queue, with the database away at first."""
    with open_database(load_config(config).database_url):
        pass  # it is there, and then it is away
    guard = database_away(root / "annotation.db", away_s) if away_s else contextlib.nullcontext()
    with guard:
        job = Job(root, ["prioritize", str(config)], address)
        deadline = time.monotonic() + 600
        while not job.has_succeeded():
            if time.monotonic() > deadline or job.starts > STARTS:
                return [f"prioritize: {job.last_words()}"]
            time.sleep(0.2)
    return []


@functools.cache
def undisturbed(count: int, edge: int) -> dict[str, dict[str, str]]:
    """Case -> file -> sha256 of the same cases, predicted one after the other without Ray. They are the same for every seed."""
    with tempfile.TemporaryDirectory(prefix="undisturbed") as folder:
        root = Path(folder)
        config = make_campaign(root, workspace=root / "workspace", tracking={"uri": f"sqlite:///{root}/mlflow.db"})
        cases = make_cases(root, config, count, edge=edge)
        campaign = load_config(config)
        with in_process():
            predict_cases(campaign, 0, cases)
        return {case.case_id: sums_of(campaign, case.case_id) for case in cases}


def sums_of(campaign: Campaign, case_id: str) -> dict[str, str]:
    """Without scores.json, which also says how long it took."""
    listed = read_sums(campaign.open_workspace().prediction(0, case_id))
    return {name: digest for name, digest in listed.items() if name != RESULT}


def break_some(cases: Sequence[Case], count: int, chance: random.Random) -> set[str]:
    """Damage images after ingest, each in another way. Returns the cases' ids."""
    bad = set()
    for n, case in enumerate(chance.sample(list(cases), count)):
        path = Path(case.image)
        data = path.read_bytes()
        match n % 4:
            case 0:
                path.write_bytes(data[: chance.randrange(20, len(data) // 2)])
            case 1:
                path.write_bytes(b"")
            case 2:
                path.unlink()
            case 3:
                middle = len(data) // 2
                path.write_bytes(data[:middle] + chance.randbytes(64) + data[middle + 64 :])
        bad.add(case.case_id)
    return bad


def _kill_one(pids: list[int], chance: random.Random) -> bool:
    if not pids:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(chance.choice(pids), signal.SIGKILL)
    return True


def _finished(predictions: Path) -> int:
    return sum(not path.name.startswith(".") for path in predictions.iterdir()) if predictions.exists() else 0


# --- what must be true -----------------------------------------------------------------------------------------------


def violations(campaign: Campaign, cases: Sequence[Case], bad: set[str], wanted: dict[str, dict[str, str]]) -> list[str]:
    """Everything that is not as it must be, a line each."""
    workspace, found = campaign.open_workspace(), list[str]()
    good = {case.case_id for case in cases} - bad
    there = {path.name for path in workspace.predictions(0).iterdir()}
    found += [f"{case_id}: no result" for case_id in sorted(good - there)]
    found += [f"{name}: should not be there" for name in sorted(there - good)]
    for case_id in sorted(good & there):
        folder = workspace.prediction(0, case_id)
        if (sums := sums_of(campaign, case_id)) != wanted[case_id]:
            files = sorted({name for name, _ in sums.items() ^ wanted[case_id].items()})
            found.append(f"{case_id}: {files} of {sorted(wanted[case_id])} differ from the undisturbed run")
        if any(file_sha256(folder / name) != digest for name, digest in read_sums(folder).items()):
            found.append(f"{case_id}: a file is not what was written")
    rows = sorted(read_scores(workspace, 0).case_id_N.tolist())
    if rows != sorted(good):
        found.append(f"the table of scores has {len(rows)} rows for {len(good)} cases")
    listed = [entry.case_id for entry in workspace.quarantined()]
    if sorted(listed) != sorted(bad):
        found.append(f"set aside: {sorted(set(listed) - bad)} too many, {sorted(bad - set(listed))} too few, {len(listed)} lines")
    by_id = {case.case_id: case for case in cases}
    for entry in workspace.quarantined():
        if Path(by_id[entry.case_id].image).name not in entry.reason:
            found.append(f"{entry.case_id}: set aside because: {entry.reason}")
    found += [f"left behind: {path}" for path in workspace.root.rglob("*.partial")]
    found += [f"left behind: {path}" for path in (workspace.root / "attempts").rglob("*") if path.is_file()]
    if (holder := holder_of(workspace)) is not None:
        found.append(f"still locked by {holder[0]}")
    if workspace.tracking_backlog.exists():
        found.append(f"tracking was not told: {workspace.tracking_backlog.read_text()[:300]}")
    with open_database(campaign.database_url) as database:
        queued = [item.case_id for item in Queue(database).items(0)]
    if len(queued) != len(set(queued)) or not queued or not set(queued) <= good:
        found.append(f"the queue holds {len(queued)} items of {len(set(queued))} cases")
    return found
