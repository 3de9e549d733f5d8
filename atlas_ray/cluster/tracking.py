"""MLflow: one parent run per round, a child run per training and per step, found again after a restart by its key.

Tracking never fails a job: a server that is away costs log lines, not the round. What could not be sent is kept in
`tracking_backlog.jsonl` in the workspace, and sent when a run is next begun or ended and the server answers.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from atlas_ray.config import Campaign, flat
from atlas_ray.redaction import without_passwords
from atlas_ray.storage import append_line, as_local, place, write_atomically

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG = "atlas_ray.key"
SQLITE = "sqlite:///"
TABLES_TAG = "mlflow.loggedArtifacts"  # MLflow's own: which artifacts are tables
log = logging.getLogger(__name__)


class Run:
    """One MLflow run, addressed by id: usable in the driver and, through `uri` and `run_id`, in a worker."""

    def __init__(self, uri: str, run_id: str | None, backlog: Path | None = None, *, key: str = "", kind: str = "step") -> None:
        self.uri = uri
        self.run_id = run_id
        self.key, self.kind = key, kind  # what the run is found by; the backlog's only names for a run that could not be made
        self._backlog = backlog

    def metrics(self, values: Mapping[str, float | None], *, step: int = 0, at: int | None = None) -> None:
        """Log numbers, of now or of a time in milliseconds since the epoch; None and NaN are left out."""
        from mlflow.entities import Metric

        at = at or _now_ms()
        rows = [Metric(_metric_name(k), float(v), at, step) for k, v in values.items() if v is not None and v == v]
        if rows:
            self._send(
                "metrics", {m.key: m.value for m in rows}, lambda c: c.log_batch(self.run_id, metrics=rows), step=step, at=at
            )

    def params(self, values: Mapping[str, str]) -> None:
        """Log parameters once; MLflow refuses to change them, so a resumed round keeps what was logged first."""
        from mlflow.entities import Param

        def send(client: "MlflowClient") -> None:
            known = client.get_run(self.run_id).data.params
            rows = [Param(k, v[:6000]) for k, v in values.items() if k not in known]
            for start in range(0, len(rows), 100):
                client.log_batch(self.run_id, params=rows[start : start + 100])

        self._send("params", dict(values), send)

    def tags(self, values: Mapping[str, str]) -> None:
        def send(client: "MlflowClient") -> None:
            for key, value in values.items():
                client.set_tag(self.run_id, key, value)

        self._send("tags", dict(values), send)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a small file (CSV, plot, JSON) to the run."""

        def send(client: Any) -> None:
            with as_local(path) as local:
                client.log_artifact(self.run_id, str(local), folder)

        self._send("artifact", str(path), send, folder=folder)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table that MLflow shows and compares between runs. One of this name that is there is replaced; MLflow would append."""
        path = f"{name}.json"
        text = json.dumps({"columns": list(columns), "data": [list(row) for row in rows]})

        def send(client: "MlflowClient") -> None:
            client.log_text(self.run_id, text, path)
            shown = json.loads(client.get_run(self.run_id).data.tags.get(TABLES_TAG, "[]"))
            if not any(entry["path"] == path for entry in shown):
                client.set_tag(self.run_id, TABLES_TAG, json.dumps([*shown, {"path": path, "type": "table"}]))

        self._send("table", {"name": name, "columns": list(columns), "rows": [list(row) for row in rows]}, send)

    def dataset(self, name: str, *, sha256: str, source: Path, profile: Mapping[str, object]) -> None:
        """What the run worked on, so that runs on the same data are found by its digest.

        Args:
            source: where it is described.
            profile: counts, for people.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entry = Dataset(name, sha256[:32], "local", json.dumps({"uri": str(source)}), profile=json.dumps(profile))
        tags = [InputTag("mlflow.data.context", "round"), InputTag("sha256", sha256)]
        kept = {"name": name, "sha256": sha256, "source": str(source), "profile": dict(profile)}
        self._send("dataset", kept, lambda c: c.log_inputs(self.run_id, [DatasetInput(entry, tags)]))

    def register(self, model: str, sha256: str, *, alias: Literal["champion", "candidate"], tags: Mapping[str, str]) -> None:
        """Weights as a version of a registered model; the same weights are one version, however often they are named.

        An alias moves to them, and "candidate" is taken away from weights that become the champion. The registry names the
        checkpoint by path and sha256 and holds no copy of it.
        """

        def send(client: "MlflowClient") -> None:
            if not client.search_registered_models(f"name = '{model}'"):
                client.create_registered_model(model)
            known = client.search_model_versions(f"name = '{model}' and tags.sha256 = '{sha256}'")
            source = f"runs:/{self.run_id}/checkpoint"
            version = known[0] if known else client.create_model_version(model, source, run_id=self.run_id)
            for key, value in {"sha256": sha256, **tags}.items():
                client.set_model_version_tag(model, version.version, key, value)
            client.set_registered_model_alias(model, alias, version.version)
            aliases = client.get_registered_model(model).aliases
            if alias == "champion" and str(aliases.get("candidate")) == str(version.version):
                client.delete_registered_model_alias(model, "candidate")

        self._send("version", {"model": model, "sha256": sha256, "alias": alias, **tags}, send)

    def end(self, status: str) -> bool:
        """FINISHED or FAILED; otherwise the run would stay RUNNING for ever. Returns whether the server took it."""
        return self._send("status", status, lambda c: c.set_terminated(self.run_id, status))

    def _send(self, what: str, values: Any, call: Any, **where: object) -> bool:
        """Whether it was sent."""
        if self.run_id is None:
            self._keep(what, values, where)
            return False
        try:
            call(_client(self.uri))
        except Exception as error:  # whatever the store raises, the round matters more
            log.warning("MLflow at %s did not take %s: %s", without_passwords(self.uri), what, _first_line(error))
            self._keep(what, values, where)
            return False
        return True

    def _keep(self, what: str, values: Any, where: Mapping[str, object]) -> None:
        if self._backlog is not None:
            entry = {"key": self.key, "kind": self.kind, "run": self.run_id, "what": what, **where, "values": values}
            append_line(self._backlog, json.dumps(entry, default=str))


class _Told(Run):
    """A run that is told what it missed: what the server does not take is an error here."""

    def _send(self, what: str, values: Any, call: Any, **where: object) -> bool:
        call(_client(self.uri))
        return True


def replay(campaign: Campaign, *, but_status_of: str = "") -> int:
    """Send what waits in the backlog, in its order, as far as the server answers. Returns how many entries wait on.

    What a server that answers refuses (a file that is gone meanwhile) is dropped with a warning.

    Args:
        but_status_of: key of a run that is open again, whose old end is no longer true.
    """
    backlog = campaign.open_workspace().tracking_backlog
    if not backlog.exists():
        return 0
    lines = backlog.read_text().splitlines()
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            if entry["what"] != "status" or entry["key"] != but_status_of:
                _tell(campaign, entry)
        except Exception as error:  # as in Run._send
            if not _answers(campaign):
                write_atomically(backlog, "".join(f"{waiting}\n" for waiting in lines[number:]))
                return len(lines) - number
            log.warning("MLflow did not take an entry of %s, which is dropped: %s", backlog, _first_line(error))
    backlog.unlink(missing_ok=True)  # an evaluation beside the job may have told it as well
    log.info("MLflow was told the %d entries that waited in %s", len(lines), backlog)
    return 0


def _tell(campaign: Campaign, entry: Mapping[str, Any]) -> None:
    run_id = entry["run"] or _run_of(campaign, entry["key"], entry["kind"])
    run, values = _Told(campaign.tracking_uri, run_id, key=entry["key"]), entry["values"]
    match entry["what"]:
        case "metrics":
            run.metrics(values, step=entry["step"], at=entry["at"])
        case "params":
            run.params(values)
        case "tags":
            run.tags(values)
        case "artifact":
            run.artifact(place(values), entry["folder"])
        case "table":
            run.table(**values)
        case "dataset":
            run.dataset(values["name"], sha256=values["sha256"], source=place(values["source"]), profile=values["profile"])
        case "version":
            model, sha256, alias = (values.pop(name) for name in ("model", "sha256", "alias"))
            run.register(model, sha256, alias=alias, tags=values)
        case "status":
            run.end(values)


def _run_of(campaign: Campaign, key: str, kind: str) -> str:
    """Id of a run that could not be made when it was needed, and its round's with it. Raises RuntimeError while MLflow is away."""
    parent_key, _, step = key.partition("/")
    round_index = int(parent_key.removeprefix("round-"))
    parent = _find_or_create(campaign, parent_key, kind="round", round_index=round_index, parent=None, reopen=False)
    run_id = _find_or_create(campaign, key, kind=kind, round_index=round_index, parent=parent, reopen=False) if step else parent
    if run_id is None:
        raise RuntimeError(f"no run for {key}")
    return run_id


def _answers(campaign: Campaign) -> bool:
    try:
        _client(campaign.tracking_uri).search_experiments(max_results=1)
    except Exception:  # as in Run._send
        return False
    return True


@contextmanager
def round_run(campaign: Campaign, round_index: int) -> Iterator[Run]:
    """The parent run of a round; the same one when the round is resumed. Ends FINISHED, or FAILED when the block raises."""
    with _run(campaign, f"round-{round_index:03d}", kind="round", round_index=round_index, parent=None) as run:
        run.params(flat(campaign))
        yield run


@contextmanager
def step_run(campaign: Campaign, round_index: int, step: str, *, kind: str = "step") -> Iterator[Run]:
    """A child run of the round: a step, or the training of one architecture."""
    parent = _find_or_create(campaign, f"round-{round_index:03d}", kind="round", round_index=round_index, parent=None, reopen=False)
    with _run(campaign, f"round-{round_index:03d}/{step}", kind=kind, round_index=round_index, parent=parent) as run:
        yield run


@contextmanager
def _run(campaign: Campaign, key: str, *, kind: str, round_index: int, parent: str | None) -> Iterator[Run]:
    run_id = _find_or_create(campaign, key, kind=kind, round_index=round_index, parent=parent)
    run = Run(campaign.tracking_uri, run_id, campaign.open_workspace().tracking_backlog, key=key, kind=kind)
    if run_id is not None:
        replay(campaign, but_status_of=key)
    try:
        yield run
    except BaseException:
        run.end("FAILED")
        raise
    if run.end("FINISHED"):
        replay(campaign)


def _find_or_create(
    campaign: Campaign, key: str, *, kind: str, round_index: int, parent: str | None, reopen: bool = True
) -> str | None:
    """Id of the run with this key; None when MLflow cannot be reached.

    `reopen` is for the one who will also end it: a step that is run alone finds or makes its round's run and leaves it ended.
    """
    try:
        client = _client(campaign.tracking_uri)
        experiment = _experiment(client, campaign)
        found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
            if reopen:
                client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {KEY_TAG: key, "kind": kind, "round": f"{round_index:03d}"}
        if parent:
            tags["mlflow.parentRunId"] = parent
        run_id = str(client.create_run(experiment, tags=tags, run_name=key).info.run_id)
        if not reopen:
            client.set_terminated(run_id)
        return run_id
    except Exception as error:  # as in Run._send
        log.warning(
            "MLflow at %s is away (%s); %s is tracked in the backlog",
            without_passwords(campaign.tracking_uri),
            _first_line(error),
            key,
        )
        return None


def _experiment(client: "MlflowClient", campaign: Campaign) -> str:
    name = campaign.tracking.experiment or campaign.name
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    return str(client.create_experiment(name, artifact_location=_artifact_location(campaign)))


def _artifact_location(campaign: Campaign) -> str | None:
    """Beside the store where that is an SQLite file, so by default in the workspace: MLflow would take ./mlruns of wherever the job
    runs. None leaves it to the server."""
    if not campaign.tracking_uri.startswith(SQLITE):
        return None
    store = Path(campaign.tracking_uri.removeprefix(SQLITE)).absolute()
    return store.with_name(campaign.open_workspace().mlflow_artifacts.name).as_uri()


def _client(uri: str) -> "MlflowClient":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault(
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"
    )  # its default of 7 stalls a step for minutes when the server is away
    from mlflow import MlflowClient

    for chatty, level in (("alembic", logging.WARNING), ("mlflow", logging.WARNING), ("urllib3.connectionpool", logging.ERROR)):
        logging.getLogger(chatty).setLevel(level)
    return MlflowClient(tracking_uri=uri)


def _metric_name(name: str) -> str:
    return name.replace(" ", "_")


def _first_line(error: Exception) -> str:
    """MLflow's messages quote the whole address, with its password."""
    return without_passwords((str(error) or type(error).__name__).splitlines()[0])


def _now_ms() -> int:
    import time

    return int(time.time() * 1000)
