"""Passwords in addresses are left out of what is written, and nothing else is."""

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from atlas_ray.annotation.database import open_database
from atlas_ray.cluster.submission import plan_submission
from atlas_ray.config import dump_config, flat, load_config
from atlas_ray.exceptions import ConfigError, WorkspaceError
from atlas_ray.redaction import RedactingFormatter, without_passwords

DATABASE = "postgresql+psycopg://ada:hunter2@db.hospital:5432/atlas"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DATABASE, "postgresql+psycopg://ada@db.hospital:5432/atlas"),
        ("http://ada:p%40ss@host:5000/x", "http://ada@host:5000/x"),
        ("postgresql://ada:with/slash@host/db", "postgresql://ada@host/db"),
        ("postgresql://ada:with@sign@host/db", "postgresql://ada@host/db"),
        ("redis://:hunter2@host", "redis://@host"),
        ("postgresql://host/db?user=ada&password=x&sslmode=require", "postgresql://host/db?user=ada&sslmode=require"),
        ("postgresql://host/db?password=x", "postgresql://host/db"),
        ("https://host/?token=a&api_key=b&page=2&Signature=c", "https://host/?page=2"),
        ("'http://ada:x@host' and \"http://bob:y@host\"", "'http://ada@host' and \"http://bob@host\""),
    ],
)
def test_the_password_goes_and_the_user_stays(text: str, expected: str) -> None:
    assert without_passwords(text) == expected


@pytest.mark.parametrize(
    "text",
    ["http://host:5000/a@b", "http://host:5000", "sqlite:////data/annotation.db", "s3://bucket/key@2x.png", "a: b@c",
     "12:30 ada@host", "postgresql://ada@host/db?passfile=/run/secrets/pgpass", "file:///C:/x"],
)  # fmt: skip
def test_what_holds_no_password_is_as_it_was(text: str) -> None:
    assert without_passwords(text) == text


@pytest.fixture
def config(tmp_path: Path) -> Path:
    datasets = [{"source": "phantom", "name": "pool", "count": 1, "split": "pool"}]
    content = {"name": "small", "workspace": str(tmp_path / "w"), "datasets": datasets, "annotation": {"database": DATABASE},
               "tracking": {"uri": "http://ada:hunter2@mlflow:5000"}}  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "c.yaml"


def test_a_configuration_keeps_its_password_to_itself(config: Path) -> None:
    campaign = load_config(config)
    assert campaign.database_url == DATABASE, "the job itself can log in"
    assert "hunter2" not in dump_config(campaign)
    assert yaml.safe_load(dump_config(campaign))["annotation"]["database"] == DATABASE.replace(":hunter2", "")
    assert flat(campaign)["tracking.uri"] == "http://ada@mlflow:5000"
    assert "hunter2" not in "".join(flat(campaign).values())
    submission = plan_submission(campaign, "predict", round_index=0)
    assert "hunter2" not in submission.model_dump_json()


def test_errors_of_a_configuration_show_no_password(config: Path) -> None:
    for override in (f"annotation.database=[{DATABASE}]", f"tracking={DATABASE}", f"annotation.database.x={DATABASE}",
                     f"={DATABASE}", f'annotation.database={{"a": {DATABASE}'):  # fmt: skip
        with pytest.raises(ConfigError) as raised:
            load_config(config, [override])
        assert "hunter2" not in str(raised.value), override


def test_a_password_is_not_sent_as_an_argument(config: Path) -> None:
    with pytest.raises(ConfigError, match="job server shows") as raised:
        plan_submission(load_config(config), "predict", extra=["--set", f"annotation.database={DATABASE}"])
    assert "hunter2" not in str(raised.value)


def test_a_database_that_refuses_says_where_a_password_comes_from() -> None:
    with pytest.raises(WorkspaceError, match="PGPASSWORD"):
        open_database("postgresql+psycopg://ada@127.0.0.1:9/atlas?connect_timeout=2")
    with pytest.raises(WorkspaceError) as raised:
        open_database("postgresql+psycopg://ada:hunter2@127.0.0.1:9/atlas?connect_timeout=2")
    assert "hunter2" not in str(raised.value)
    assert "PGPASSWORD" not in str(raised.value)


def test_logs_of_a_job_show_no_password() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactingFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("alone")
    logger.addHandler(handler)
    try:
        raise OSError(f"cannot reach {DATABASE}")
    except OSError:
        logger.exception("connecting to %s", DATABASE)
    assert "hunter2" not in stream.getvalue()
    assert "Traceback" in stream.getvalue()


def test_a_job_that_fails_shows_no_password(config: Path) -> None:
    command = [sys.executable, "-m", "jobs.predict", str(config), "--set", f"tracking.url={DATABASE}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "tracking.url" in result.stderr
    assert "hunter2" not in result.stderr + result.stdout
