"""The command lines as a user meets them: real processes, exit codes, one line per error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.queue import Queue

REPOSITORY = Path(__file__).resolve().parents[2]
JOBS = sorted(path.stem for path in (REPOSITORY / "jobs").glob("*.py") if path.stem != "__init__")


def job(verb: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}
    command = [sys.executable, "-m", f"jobs.{verb}", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr."""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_the_jobs_are_there():
    work = {"ingest", "train", "promote", "predict", "prioritize", "merge", "evaluate", "run_round", "simulate", "export", "submit"}
    assert set(JOBS) == work | {"status", "verify", "abandon", "gc"}


@pytest.mark.parametrize("verb", JOBS)
def test_every_job_explains_itself(verb, tmp_path):
    result = job(verb, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "CONFIG" in result.stdout
    assert ("--dry-run" in result.stdout) == (verb not in ("status", "verify")), "what only reads needs none"
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_key_is_one_line_that_names_the_right_one(tmp_path):
    result = job("ingest", "demo", "--set", "trainning.steps=3", cwd=tmp_path)
    assert result.returncode == 2
    assert "trainning: no such key; did you mean 'training'?" in error_line(result)
    assert "demo.yaml" in result.stderr


def test_an_unknown_config_is_one_line_that_lists_what_there_is(tmp_path):
    result = job("run_round", "nothing_like_this", cwd=tmp_path)
    assert result.returncode == 2
    assert "'nothing_like_this' not found" in error_line(result)
    assert "demo.yaml" in result.stderr


@pytest.mark.parametrize(
    "arguments", [("ingest", "demo"), ("run_round", "demo"), ("simulate", "demo"), ("submit", "ingest", "demo")]
)
def test_a_dry_run_changes_nothing_on_disk(arguments, tmp_path):
    result = job(*arguments, "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("verb", "before"), [("train", "ingest"), ("export", "ingest"), ("merge", "prioritize")])
def test_a_dry_run_too_early_says_what_to_run_and_changes_nothing(verb, before, tmp_path):
    result = job(verb, "demo", "--dry-run", cwd=tmp_path)
    assert result.returncode == 1
    assert f"python -m jobs.{before}" in error_line(result)
    assert list(tmp_path.iterdir()) == []


def test_a_job_with_words_lists_them_and_is_sent_with_one(tmp_path):
    assert "dice " in job("evaluate", "--help", cwd=tmp_path).stdout
    assert job("evaluate", "dice", "--help", cwd=tmp_path).stdout.count("CONFIG") >= 1
    sent = job("submit", "evaluate dice", "demo", "--round", "1", "--dry-run", cwd=tmp_path)
    assert "python -m jobs.evaluate dice " in sent.stdout, sent.stderr
    assert "demo-evaluate-dice-r1" in sent.stdout


def test_prioritize_before_predict_says_what_to_run(tmp_path):
    (tmp_path / "workspaces" / "demo").mkdir(parents=True)
    (tmp_path / "workspaces" / "demo" / "manifest.jsonl").touch()
    result = job("prioritize", "demo", cwd=tmp_path)
    assert result.returncode == 1
    assert "python -m jobs.predict" in error_line(result)


def test_labels_can_be_queued_before_anything_is_predicted(tmp_path):
    workspace = tmp_path / "workspaces" / "demo"
    workspace.mkdir(parents=True)
    case = {"case_id": "a", "image": "/nowhere", "sha256": "0", "shape": [1, 1, 1], "spacing": [1, 1, 1], "orientation": "RAS"}
    case |= {"source": "x", "license": "x", "split": "train", "labeled_organs": ["liver"]}
    lines = [case, case | {"case_id": "b", "labeled_organs": []}, case | {"case_id": "c", "split": "holdout"}]
    (workspace / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    planned = job("prioritize", "demo", "--labels", "--dry-run", cwd=tmp_path)
    assert "would queue labels" in planned.stdout, planned.stderr
    assert not (workspace / "annotation.db").exists()
    result = job("prioritize", "demo", "--labels", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with open_database(sqlite_url(workspace / "annotation.db")) as database:
        assert [(i.case_id, i.state, i.organs) for i in Queue(database).items(0)] == [("a", "submitted", ("liver",))]


def test_an_address_that_does_not_answer_is_one_line(tmp_path):
    result = job("submit", "ingest", "demo", "--address", "http://127.0.0.1:9", cwd=tmp_path)
    assert result.returncode == 1
    assert "http://127.0.0.1:9" in error_line(result)
    assert "ray start --head" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fly", "demo"), "no job 'fly'; allowed are ingest"),
        (("ingest now", "demo"), "no job 'ingest now'; allowed are ingest"),
        (("ingest", "demo", "--round", "1"), "takes no --round"),
        (("evaluate", "demo"), "jobs.evaluate needs one word that says what to do"),
    ],
)
def test_submit_refuses_what_no_job_would_take(arguments, said, tmp_path):
    result = job("submit", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert said in error_line(result)
