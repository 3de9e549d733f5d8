"""`python -m ui`: what it accepts and how it says no."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner
from ui_workspace import ORGANS

from atlas_ray.exceptions import ConfigError, WorkspaceError
from atlas_ray.workspace import Workspace
from ui.__main__ import find_login, find_organs, find_workspace
from ui.store import campaign_settings, newest_round


def test_network_needs_a_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--password-file"):
        find_login("0.0.0.0", None, "anna")
    secret = tmp_path / "password"
    with pytest.raises(ConfigError, match="does not exist"):
        find_login("0.0.0.0", secret, None)
    secret.write_text("short\n")
    with pytest.raises(ConfigError, match="5 characters; 8"):
        find_login("0.0.0.0", secret, None)
    secret.write_text("correct horse\n")
    assert find_login("0.0.0.0", secret, None).user(None) is None
    assert find_login("127.0.0.1", None, "anna").user(None) == "anna"
    with pytest.raises(ConfigError, match="user name"):
        find_login("127.0.0.1", None, "anna; drop")


def test_workspace_or_configuration(workspace: Workspace, tmp_path: Path) -> None:
    assert find_workspace(workspace.root).root == workspace.root
    config = tmp_path / "campaign.yaml"
    config.write_text(yaml.safe_dump({"workspace": str(workspace.root)}))
    assert find_workspace(config).root == workspace.root
    config.write_text("organs: x\n")
    with pytest.raises(ConfigError, match="workspace"):
        find_workspace(config)
    with pytest.raises(ConfigError, match="does not exist"):
        find_workspace(tmp_path / "absent")


def test_settings_and_round(workspace: Workspace, tmp_path: Path) -> None:
    assert campaign_settings(workspace.config) == {}
    with pytest.raises(ConfigError, match="--organs"):
        find_organs(None, {})
    workspace.config.write_text(
        yaml.safe_dump({"organs": ORGANS.model_dump(mode="json"), "annotation": {"database": None, "lease_minutes": 5}})
    )
    settings = campaign_settings(workspace.config)
    assert settings["lease_minutes"] == 5
    assert "database" not in settings
    assert find_organs(None, settings) == ORGANS
    assert newest_round(workspace) == 0
    workspace.round(1).mkdir()
    assert newest_round(workspace) == 0
    with pytest.raises(WorkspaceError, match=r"jobs\.predict"):
        newest_round(Workspace(tmp_path / "empty"))


def test_errors_are_one_line_and_an_exit_code(tmp_path: Path) -> None:
    import typer

    from ui.__main__ import main

    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, [str(tmp_path / "absent")])
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert len(result.output.strip().splitlines()) == 1
