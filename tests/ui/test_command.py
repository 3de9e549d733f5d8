"""`python -m ui`: what it accepts and how it says no."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner
from ui_workspace import CHEAP, ORGANS

from atlas_ray.annotation.accounts import Accounts
from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.exceptions import ConfigError, WorkspaceError
from atlas_ray.workspace import Workspace
from ui.__main__ import app
from ui.settings import Settings, find_campaign
from ui.store import newest_round


@pytest.fixture
def run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`python -m ui CAMPAIGN ...`"""
    monkeypatch.setattr("atlas_ray.annotation.accounts.PasswordHash.recommended", lambda: CHEAP)
    workspace.config.write_text(f"organs: {ORGANS.model_dump_json()}\n")  # JSON is YAML
    return lambda *words, **more: CliRunner().invoke(app, [str(workspace.root), *words], **more)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("correct horse\n")
    return path


@pytest.fixture
def accounts(workspace: Workspace) -> Iterator[Accounts]:
    with open_database(sqlite_url(workspace.annotation_db)) as database:
        yield Accounts(database, hasher=CHEAP)


def write_config(path: Path, workspace: Workspace, **sections: Any) -> None:
    path.write_text(yaml.safe_dump({"workspace": str(workspace.root), **sections}))


# --- who may be served ---


def test_without_accounts_it_says_how_to_add_the_first(run, workspace: Workspace) -> None:
    result = run()
    assert result.exit_code == 2
    assert f"`python -m ui {workspace.root} users add NAME --role admin`" in result.output
    assert "--no-auth" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--no-auth", "--host", "0.0.0.0"], "--no-auth with --host 0.0.0.0 lets everybody on the network in"),
        (["--no-auth", "--host", "localhost.evil.example"], "lets everybody on the network in"),
        (["--no-auth", "--user", "anna; drop"], "user name 'anna; drop' is not usable"),
        (["--user", "anna"], "--user is for --no-auth"),
    ],
)
def test_what_would_let_the_wrong_people_in_is_refused(run, options: list[str], message: str) -> None:
    result = run(*options)
    assert result.exit_code == 2
    assert message in result.output


def test_what_is_served_to_whom(run, workspace: Workspace, accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    served = {}
    monkeypatch.setattr("uvicorn.run", lambda web, **options: served.update(options, login=web.state.login))
    monkeypatch.setattr("ui.app.mount_page", lambda app, store: None)
    alone = run("--no-auth", "--user", "anna", "--port", "7000")
    assert alone.exit_code == 0, alone.output
    assert "http://127.0.0.1:7000/  (no login: everybody on this machine is anna;" in alone.output
    assert served["login"].accounts is None
    assert served["login"].default_user == "anna"
    accounts.add("ada", "correct horse", "admin")
    together = run("--host", "0.0.0.0")
    assert together.exit_code == 0, together.output
    assert "people log in with their accounts" in together.output
    assert "unencrypted" in together.output
    assert served["login"].accounts.get("ada").role == "admin"
    assert served["host"] == "0.0.0.0"
    assert "unencrypted" not in run("--host", "0.0.0.0", "--certificate", "x.pem", "--key", "y.pem").output


# --- accounts and tokens ---


def test_users(run, secret: Path, accounts: Accounts) -> None:
    assert run("users", "add", "ada", "--role", "admin", "--password-file", str(secret)).output == "ada may log in as admin\n"
    asked = run("users", "add", "bob", input="battery staple\nbattery staple\n")
    assert asked.exit_code == 0, asked.output
    assert "battery" not in asked.output
    listed = run("users", "list").output.splitlines()
    assert [line.split()[:2] for line in listed] == [["name", "role"], ["ada", "admin"], ["bob", "annotator"]]
    assert run("users", "role", "bob", "reviewer").exit_code == 0
    secret.write_text("another one")
    assert run("users", "password", "bob", "--password-file", str(secret)).exit_code == 0
    real = Accounts(accounts.database)
    assert real.check("bob", "another one").role == "reviewer"
    assert real.check("ada", "correct horse") is not None  # the line's end is no part of the password
    assert run("users", "remove", "bob").exit_code == 0
    assert [account.name for account in accounts.all()] == ["ada"]


def test_tokens(run, accounts: Accounts) -> None:
    accounts.add("ada", "correct horse", "admin")
    text = run("tokens", "add", "script", "--user", "ada", "--role", "reviewer", "--days", "30").output.strip()
    assert accounts.token_bearer(text).role == "reviewer"
    listed = run("tokens", "list").output
    assert listed.splitlines()[1].split()[:3] == ["script", "ada", "reviewer"]
    assert text not in listed
    assert run("tokens", "revoke", "script").exit_code == 0
    assert accounts.token_bearer(text) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["users", "remove", "bob"], "no account 'bob'"),
        (["users", "add", "bob", "--password-file", "absent"], "--password-file absent does not exist"),
        (["users", "add", "b b", "--password-file", "{secret}"], "user name 'b b' is not usable"),
        (["tokens", "add", "script", "--user", "bob"], "no account 'bob'"),
        (["tokens", "revoke", "script"], "no token 'script'"),
    ],
)
def test_errors_of_accounts(run, secret: Path, words: list[str], message: str) -> None:
    result = run(*(word.format(secret=secret) for word in words))
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_password_is_no_argument(run) -> None:
    assert run("users", "add", "bob", "correct horse").exit_code == 2
    assert run("users", "add", "bob", "--password", "correct horse").exit_code == 2


# --- the campaign ---


def test_workspace_or_configuration(workspace: Workspace, tmp_path: Path) -> None:
    assert find_campaign(workspace.root)[0].root == workspace.root
    config = tmp_path / "campaign.yaml"
    config.write_text(yaml.safe_dump({"workspace": str(workspace.root)}))
    assert find_campaign(config)[0].root == workspace.root
    config.write_text("organs: x\n")
    with pytest.raises(ConfigError, match="workspace"):
        find_campaign(config)
    with pytest.raises(ConfigError, match="does not exist"):
        find_campaign(tmp_path / "absent")


def test_what_the_jobs_left_says_how_people_work(workspace: Workspace) -> None:
    assert find_campaign(workspace.root)[1] == Settings(), "nothing was run yet"
    with pytest.raises(ConfigError, match="--organs"):
        Settings().load_organs()
    write_config(workspace.config, workspace, organs=ORGANS.model_dump(mode="json"), annotation={"lease_minutes": 5})
    _, settings = find_campaign(workspace.root)
    assert settings.annotation.lease_minutes == 5
    assert settings.database_url(workspace) == sqlite_url(workspace.annotation_db)
    assert settings.load_organs() == ORGANS


def test_a_configuration_that_is_given_has_the_last_word(workspace: Workspace, tmp_path: Path) -> None:
    """But for the organs: there they mean the ids that the jobs have written."""
    elsewhere = sqlite_url(tmp_path / "elsewhere.db")
    write_config(workspace.config, workspace, organs=ORGANS.model_dump(mode="json"), annotation={"second_reader_share": 0.5})
    given = tmp_path / "mine.yaml"
    write_config(given, workspace, organs="abdomenatlas_1_0", annotation={"database": elsewhere, "lease_minutes": 7})
    _, settings = find_campaign(given)
    assert settings.database_url(workspace) == elsewhere
    assert (settings.annotation.lease_minutes, settings.annotation.second_reader_share) == (7, 0)
    assert settings.load_organs() == ORGANS


def test_an_account_goes_where_the_given_configuration_has_its_database(
    run, secret: Path, workspace: Workspace, tmp_path: Path
) -> None:
    given, elsewhere = tmp_path / "mine.yaml", tmp_path / "elsewhere.db"
    write_config(given, workspace, annotation={"database": sqlite_url(elsewhere)})
    added = CliRunner().invoke(app, [str(given), "users", "add", "ada", "--password-file", str(secret)])
    assert added.exit_code == 0, added.output
    with open_database(sqlite_url(elsewhere)) as database:
        assert [account.name for account in Accounts(database).all()] == ["ada"]


def test_a_setting_that_is_not_allowed_is_named(workspace: Workspace, tmp_path: Path) -> None:
    given = tmp_path / "mine.yaml"
    write_config(given, workspace, annotation={"lease_minutes": -1})
    with pytest.raises(ConfigError, match=r"mine\.yaml: annotation\.lease_minutes: .*greater than 0"):
        find_campaign(given)


def test_the_newest_round_is_one_with_something_to_see(workspace: Workspace, tmp_path: Path) -> None:
    assert newest_round(workspace) == 0
    workspace.round(1).mkdir()
    assert newest_round(workspace) == 0
    with pytest.raises(WorkspaceError, match=r"jobs\.predict"):
        newest_round(Workspace(tmp_path / "empty"))


def test_errors_are_one_line_and_an_exit_code(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "absent")])
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert len(result.output.strip().splitlines()) == 1


def test_options_may_stand_before_the_campaign(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--port", "7000", str(tmp_path / "absent")])
    assert "absent does not exist" in result.output


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    for words in ("python -m ui CAMPAIGN users add NAME", "python -m ui CAMPAIGN tokens add NAME --user USER", "serve"):
        assert words in shown
