"""Tracking: the same run is found again after a restart, a failure is told, and a server that is away never costs a round."""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.cluster.tracking import KEY_TAG, Run, replay, round_run, step_run
from atlas_ray.config import Campaign

pytestmark = [
    # Ray Data 2.60 sets its own deprecated options whenever it makes a context
    pytest.mark.filterwarnings("ignore:`use_[a-z0-9_]+` is deprecated:DeprecationWarning"),
]

CAMPAIGN: dict[str, Any] = {
    "name": "small",
    "datasets": [{"source": "phantom", "name": "pool", "count": 1, "split": "pool"}],
    "architectures": [{"architecture": "unet", "features": [4, 8]}],
    "patches": {"patch": [16, 16, 16]},
    "inference": {"window": [16, 16, 16]},
}


@pytest.fixture(autouse=True)
def _no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between retries MLflow sleeps for seconds."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One workspace for all tests: making MLflow's tables takes seconds. Every test takes another round."""
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def campaign(store: Path) -> Campaign:
    return Campaign.model_validate({**CAMPAIGN, "workspace": str(store)})


@pytest.fixture(scope="module")
def client(campaign: Campaign) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=campaign.tracking_uri)


def away(tmp_path: Path, uri: str = "http://127.0.0.1:9") -> Campaign:
    """Port 9 refuses at once."""
    return Campaign.model_validate({**CAMPAIGN, "workspace": str(tmp_path), "tracking": {"uri": uri}})


def backlog(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "tracking_backlog.jsonl").read_text().splitlines()]


# --- runs and their keys --------------------------------------------------------------------------------------------


def test_a_round_that_is_resumed_goes_on_in_its_run(campaign: Campaign, client: Any) -> None:
    with round_run(campaign, 1) as first:
        assert client.get_run(first.run_id).info.status == "RUNNING"
    assert client.get_run(first.run_id).info.status == "FINISHED"
    with round_run(campaign, 1) as second:
        assert second.run_id == first.run_id
        assert client.get_run(first.run_id).info.status == "RUNNING"
    with round_run(campaign, 2) as other:
        assert other.run_id != first.run_id


def test_steps_are_children_of_their_round_and_found_again(campaign: Campaign, client: Any) -> None:
    with round_run(campaign, 3) as parent:
        with step_run(campaign, 3, "train-unet", kind="train") as child:
            pass
        with step_run(campaign, 3, "train-unet", kind="train") as again:
            pass
        with step_run(campaign, 3, "predict") as other:
            pass
        assert client.get_run(parent.run_id).info.status == "RUNNING"
    assert again.run_id == child.run_id != other.run_id
    tags = client.get_run(child.run_id).data.tags
    assert tags["mlflow.parentRunId"] == parent.run_id
    assert (tags[KEY_TAG], tags["kind"], tags["round"]) == ("round-003/train-unet", "train", "003")


def test_a_step_run_alone_makes_its_round_and_leaves_it_ended(campaign: Campaign, client: Any) -> None:
    with step_run(campaign, 4, "evaluate") as child:
        parent = client.get_run(child.run_id).data.tags["mlflow.parentRunId"]
        assert client.get_run(parent).info.status == "FINISHED"
    with round_run(campaign, 4) as run:
        assert run.run_id == parent


def test_a_block_that_fails_ends_its_runs_as_failed(campaign: Campaign, client: Any) -> None:
    runs = []
    with pytest.raises(KeyboardInterrupt), round_run(campaign, 5) as parent, step_run(campaign, 5, "predict") as child:  # noqa: PT012
        runs += [parent, child]
        raise KeyboardInterrupt
    assert [client.get_run(run.run_id).info.status for run in runs] == ["FAILED", "FAILED"]
    with round_run(campaign, 5) as repaired:
        pass
    assert client.get_run(repaired.run_id).info.status == "FINISHED"


# --- what is logged -------------------------------------------------------------------------------------------------


def test_a_round_carries_every_knob(campaign: Campaign, client: Any) -> None:
    with round_run(campaign, 6) as run:
        pass
    params = client.get_run(run.run_id).data.params
    assert params["patches.patch"] == "[16, 16, 16]"
    assert params["training.learning_rate"] == "0.0001"


def test_parameters_stay_as_they_were_logged_first(campaign: Campaign, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    with step_run(campaign, 7, "predict") as run:
        run.params({"cases": "4"})
        run.params({"cases": "5", "new": "x" * 7000})
    params = client.get_run(run.run_id).data.params
    assert params["cases"] == "4"
    assert params["new"] == "x" * 6000  # MLflow takes no more
    assert not caplog.records


def test_numbers_tags_and_files_arrive(campaign: Campaign, client: Any, tmp_path: Path) -> None:
    table = tmp_path / "priority.csv"
    table.write_text("rank,case\n1,a\n")
    with step_run(campaign, 8, "prioritize") as run:
        run.metrics({"dice/liver": 0.5, "dice/no organ": None, "dice/undefined": math.nan, "dice/left kidney": 1}, step=3)
        run.metrics({"dice/absent": None})
        run.tags({"sha256": "abc"})
        run.artifact(table, "lists")
    stored = client.get_run(run.run_id)
    assert stored.data.metrics == {"dice/liver": 0.5, "dice/left_kidney": 1.0}
    assert client.get_metric_history(run.run_id, "dice/liver")[0].step == 3
    assert stored.data.tags["sha256"] == "abc"
    assert [file.path for file in client.list_artifacts(run.run_id, "lists")] == ["lists/priority.csv"]


def test_tables_and_data_arrive_once(campaign: Campaign, client: Any, tmp_path: Path) -> None:
    for dice in (0.5, 0.75):
        with round_run(campaign, 30) as run:
            run.table("per_case", ("case", "dice"), [("a", dice), ("b", None)])
            run.dataset("small-manifest", sha256="ab" * 32, source=tmp_path / "manifest.jsonl", profile={"pool": 2})
    found = client.get_run(run.run_id)
    assert json.loads(found.data.tags["mlflow.loggedArtifacts"]) == [{"path": "per_case.json", "type": "table"}]
    table = json.loads(Path(client.download_artifacts(run.run_id, "per_case.json", str(tmp_path))).read_text())
    assert table == {"columns": ["case", "dice"], "data": [["a", 0.75], ["b", None]]}
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.dataset.profile) == ("small-manifest", "ab" * 16, '{"pool": 2}')


def test_a_worker_logs_to_the_run_the_driver_made(campaign: Campaign, client: Any) -> None:
    with step_run(campaign, 9, "train-unet", kind="train") as run:
        Run(campaign.tracking_uri, run.run_id).metrics({"train/loss": 1.5}, step=20)
    assert client.get_run(run.run_id).data.metrics == {"train/loss": 1.5}


def test_everything_lies_in_the_workspace(campaign: Campaign, client: Any, store: Path, tmp_path: Path) -> None:
    (tmp_path / "plot.svg").write_text("<svg/>")
    with step_run(campaign, 10, "prioritize") as run:
        run.artifact(tmp_path / "plot.svg")
    assert (store / "mlflow.db").is_file()
    assert list((store / "mlartifacts").rglob("plot.svg"))
    assert not (store / "tracking_backlog.jsonl").exists()


def test_files_lie_beside_a_store_that_several_campaigns_share(
    campaign: Campaign, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in ./mlruns of wherever the job was started."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared.svg").write_text("<svg/>")
    tracking = {"uri": campaign.tracking_uri, "experiment": "shared"}
    other = Campaign.model_validate({**CAMPAIGN, "workspace": str(tmp_path / "workspace"), "tracking": tracking})
    with step_run(other, 0, "prioritize") as run:
        run.artifact(tmp_path / "shared.svg")
    assert list((store / "mlartifacts").rglob("shared.svg"))
    assert not (tmp_path / "mlruns").exists()


# --- a server that is away ------------------------------------------------------------------------------------------


def test_without_a_server_the_round_goes_on_and_values_wait_in_the_backlog(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), step_run(away(tmp_path), 0, "evaluate") as run:
        run.metrics({"dice/mean": 0.75, "dice/none": None}, step=2)
        run.tags({"sha256": "abc"})
        run.artifact(tmp_path / "priority.csv")
    assert run.run_id is None
    assert [entry["what"] for entry in backlog(tmp_path)] == ["metrics", "tags", "artifact", "status"]
    assert backlog(tmp_path)[0]["values"] == {"dice/mean": 0.75}
    assert "MLflow at http://127.0.0.1:9 is away" in caplog.text


def test_the_backlog_says_which_run_and_step_a_value_belongs_to(tmp_path: Path) -> None:
    with step_run(away(tmp_path), 2, "evaluate") as run:
        run.metrics({"dice/mean": 0.75}, step=2)
    entry = backlog(tmp_path)[0]
    assert entry["key"] == "round-002/evaluate"
    assert entry["step"] == 2


def test_an_error_in_the_block_is_not_hidden_by_the_server_s(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ours"), step_run(away(tmp_path), 0, "predict"):
        raise ValueError("ours")
    assert backlog(tmp_path)[-1]["values"] == "FAILED"


def test_a_server_lost_halfway_costs_nothing_but_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run("http://127.0.0.1:9", "0" * 32, tmp_path / "tracking_backlog.jsonl")
    with caplog.at_level(logging.WARNING):
        run.metrics({"train/loss": 1.0})
    assert len(caplog.records) == 1
    assert backlog(tmp_path)[0]["values"] == {"train/loss": 1.0}


def test_what_waited_is_told_when_the_server_is_back(campaign: Campaign, client: Any, store: Path, tmp_path: Path) -> None:
    """Everything a run can be told, in runs that did not exist; what was away is MLflow, the workspace is the same."""
    (tmp_path / "priority.csv").write_text("rank,case\n1,a\n")
    before = time.time()
    with round_run(away(store), 12) as parent, step_run(away(store), 12, "prioritize") as run:
        run.metrics({"dice/mean": 0.75}, step=2)
        run.params({"cases": "4"})
        run.tags({"sha256": "abc"})
        run.artifact(tmp_path / "priority.csv", "lists")
        run.artifact(tmp_path / "gone.csv")
        run.table("organs", ("organ", "dice"), [("liver", 0.5)])
        run.dataset("pool", sha256="d" * 64, source=tmp_path, profile={"cases": 4})
        run.register("waited-unet", "aaaa", alias="champion", tags={"round": "12"})
    assert parent.run_id is run.run_id is None
    time.sleep(0.1)
    with step_run(campaign, 12, "evaluate") as other:
        pass

    assert not (store / "tracking_backlog.jsonl").exists()
    found = client.search_runs([client.get_run(other.run_id).info.experiment_id], "tags.round = '012'")
    runs = {entry.data.tags[KEY_TAG]: entry for entry in found}
    assert set(runs) == {"round-012", "round-012/prioritize", "round-012/evaluate"}
    told = runs["round-012/prioritize"]
    assert told.info.status == runs["round-012"].info.status == "FINISHED"
    assert told.data.tags["mlflow.parentRunId"] == runs["round-012"].info.run_id
    (point,) = client.get_metric_history(told.info.run_id, "dice/mean")
    assert (point.value, point.step) == (0.75, 2)
    assert before <= point.timestamp / 1000 <= before + 60
    assert told.data.params["cases"] == "4"
    assert told.data.tags["sha256"] == "abc"
    assert {file.path for file in client.list_artifacts(told.info.run_id)} == {"lists", "organs.json"}
    assert [entry.dataset.name for entry in told.inputs.dataset_inputs] == ["pool"]
    assert client.get_model_version_by_alias("waited-unet", "champion").tags["sha256"] == "aaaa"
    assert runs["round-012"].data.params["patches.patch"] == "[16, 16, 16]"


def test_what_waits_waits_on_while_the_server_is_away(tmp_path: Path) -> None:
    with step_run(away(tmp_path), 0, "evaluate") as run:
        run.metrics({"dice/mean": 0.75})
    waiting = backlog(tmp_path)
    assert replay(away(tmp_path)) == len(waiting) == 2
    assert backlog(tmp_path) == waiting


def test_a_password_reaches_neither_log_nor_backlog(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), round_run(away(tmp_path, "http://anna:geheim@127.0.0.1:9"), 0) as run:
        run.metrics({"dice/mean": 0.5})
        Run(run.uri, "0" * 32, tmp_path / "tracking_backlog.jsonl").metrics({"dice/mean": 0.5})
    assert "127.0.0.1:9" in caplog.text
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("atlas_ray")]
    assert ours
    assert "geheim" not in "\n".join(ours)
    assert "geheim" not in (tmp_path / "tracking_backlog.jsonl").read_text()


def test_a_password_is_no_parameter_of_a_run(store: Path, client: Any) -> None:
    secret = {"database": "postgresql+psycopg://anna:geheim@db.hospital/annotation"}
    campaign = Campaign.model_validate({**CAMPAIGN, "workspace": str(store), "annotation": secret})
    with round_run(campaign, 11) as run:
        pass
    assert client.get_run(run.run_id).data.params["annotation.database"] == "postgresql+psycopg://anna@db.hospital/annotation"


# --- registry -------------------------------------------------------------------------------------------------------


def test_the_same_weights_are_one_version_whose_alias_moves(campaign: Campaign, client: Any) -> None:
    with step_run(campaign, 30, "promote") as run:
        run.register("small-unet", "aaaa", alias="candidate", tags={"round": "1"})
        run.register("small-unet", "bbbb", alias="champion", tags={"round": "0"})
        assert client.get_model_version_by_alias("small-unet", "candidate").tags["sha256"] == "aaaa"
        run.register("small-unet", "aaaa", alias="champion", tags={"round": "1", "gate": "promoted"})
    assert len(client.search_model_versions("name = 'small-unet'")) == 2
    assert client.get_model_version_by_alias("small-unet", "champion").tags == {"sha256": "aaaa", "round": "1", "gate": "promoted"}
    assert set(client.get_registered_model("small-unet").aliases) == {"champion"}


def test_a_registry_that_is_away_costs_a_line_of_the_backlog(tmp_path: Path) -> None:
    with step_run(away(tmp_path), 0, "promote") as run:
        run.register("small-unet", "aaaa", alias="champion", tags={"round": "0"})
    kept = [entry for entry in backlog(tmp_path) if entry["what"] == "version"]
    assert [entry["values"] for entry in kept] == [{"model": "small-unet", "sha256": "aaaa", "alias": "champion", "round": "0"}]
