"""`python -m ui WORKSPACE_OR_CONFIG`: open the annotation app of a campaign in the browser."""

import getpass
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from atlas_ray.exceptions import AtlasError, ConfigError
from atlas_ray.organs import CONFIGS, Organs, load_organs
from atlas_ray.workspace import Workspace
from ui.login import LOOPBACK, USER, Login
from ui.store import campaign_settings, newest_round

MIN_PASSWORD = 8


def find_workspace(path: Path) -> Workspace:
    """The workspace itself, or the one a campaign's configuration names. Raises ConfigError."""
    if path.is_dir():
        return Workspace(path)
    if not path.is_file() and (CONFIGS / f"{path}.yaml").is_file():
        path = CONFIGS / f"{path}.yaml"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; a workspace folder or a campaign's YAML file is allowed")
    config = yaml.safe_load(path.read_text()) or {}
    if not isinstance(config, dict) or not config.get("workspace"):
        raise ConfigError(f"{path} has no key 'workspace'; it names the campaign's folder")
    return Workspace(config["workspace"])


def find_organs(option: str | None, settings: dict[str, Any]) -> Organs:
    """The campaign's organ set; the option wins. Raises ConfigError where neither names one."""
    chosen = option or settings.get("organs")
    if chosen is None:
        raise ConfigError("the workspace has no campaign.yaml that names its organ set; give it with --organs NAME_OR_FILE")
    return Organs.model_validate(chosen) if isinstance(chosen, dict) else load_organs(chosen)


def find_login(host: str, password_file: Path | None, user: str | None) -> Login:
    """Refuses to open the app to the network without a password. Raises ConfigError."""
    name = user or getpass.getuser()
    if not USER.fullmatch(name):
        raise ConfigError(f"user name {name!r} is not usable; letters, digits and . _ @ - are allowed")
    if password_file is None:
        if host not in LOOPBACK:
            raise ConfigError(f"--host {host} opens the app to the network: give --password-file, or use 127.0.0.1")
        return Login(default_user=name)
    if not password_file.is_file():
        raise ConfigError(f"--password-file {password_file} does not exist")
    password = password_file.read_text().strip()
    if len(password) < MIN_PASSWORD:
        raise ConfigError(f"the password in {password_file} has {len(password)} characters; {MIN_PASSWORD} are the least")
    return Login(password)


def main(
    campaign: Annotated[Path, typer.Argument(metavar="WORKSPACE_OR_CONFIG", help="the campaign's folder, or its YAML file")],
    round: Annotated[int | None, typer.Option(help="default: the newest one with a queue")] = None,
    host: Annotated[str, typer.Option(help="other than loopback needs --password-file")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    user: Annotated[str | None, typer.Option(help="who annotates, where no password is asked; default: the login name")] = None,
    organs: Annotated[str | None, typer.Option(help="organ set, where the workspace has no campaign.yaml")] = None,
    password_file: Annotated[Path | None, typer.Option(help="file with the shared password")] = None,
) -> None:
    """Open the annotation app of a campaign."""
    try:
        workspace = find_workspace(campaign)
        settings = campaign_settings(workspace.config)
        organ_set = find_organs(organs, settings)
        login = find_login(host, password_file, user)
        shown = round if round is not None else newest_round(workspace)
        from ui.app import create_app

        app = create_app(
            workspace.root,
            round=shown,
            organs=organ_set,
            database_url=settings.get("database"),
            lease_minutes=settings.get("lease_minutes", 30.0),
            login=login,
            local_only=host in LOOPBACK,
        )
    except AtlasError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    serve(app, host, port, shown, login)


def serve(app: Any, host: str, port: int, shown: int, login: Login) -> None:
    import uvicorn

    who = "password required" if login.password else f"no password, loopback only, annotator {login.default_user}"
    typer.echo(f"atlas_ray round {shown}: http://{host}:{port}/  ({who}; Ctrl+C stops)")
    uvicorn.run(app, host=host, port=port, log_level="warning")


if __name__ == "__main__":
    typer.run(main)
