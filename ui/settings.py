"""What the app reads of a campaign's configuration: the file that was given, or the one that its jobs left in the workspace."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from atlas_ray.annotation.database import sqlite_url
from atlas_ray.annotation.queue import Annotation
from atlas_ray.exceptions import ConfigError
from atlas_ray.organs import CONFIGS, Organs, load_organs
from atlas_ray.strict_yaml import read_yaml
from atlas_ray.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything but the organs has a default.

    Args:
        organs: name, file, or the set itself; None where the configuration does not say.
        annotation: the configuration's section.
        tracking_uri: of MLflow; None is the workspace's own.
    """

    organs: Any = None
    annotation: Annotation = field(default_factory=Annotation)
    tracking_uri: str | None = None

    def database_url(self, workspace: Workspace) -> str:
        return self.annotation.database or sqlite_url(workspace.annotation_db)

    def load_organs(self, option: str | None = None) -> Organs:
        """The campaign's organ set; the option wins. Raises ConfigError where neither names one."""
        chosen = option or self.organs
        if chosen is None:
            raise ConfigError("the workspace has no campaign.yaml that names its organ set; give it with --organs NAME_OR_FILE")
        return Organs.model_validate(chosen) if isinstance(chosen, dict) else load_organs(chosen)


def find_campaign(path: Path) -> tuple[Workspace, Settings]:
    """The campaign of a workspace's folder, or of its YAML file, which then says how people work. The organ set is the one that the
    jobs have used, once there is one.

    Raises:
        ConfigError: no such file, or one that names no workspace or has a value that is not allowed.
    """
    if path.is_dir():
        workspace = Workspace(path)
        return workspace, read_settings(workspace.config)
    if not path.is_file() and (CONFIGS / f"{path}.yaml").is_file():
        path = CONFIGS / f"{path}.yaml"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; a workspace folder or a campaign's YAML file is allowed")
    if not (root := _read(path).get("workspace")):
        raise ConfigError(f"{path} has no key 'workspace'; it names the campaign's folder")
    workspace, given = Workspace(root), read_settings(path)
    used = _read(workspace.config).get("organs") if workspace.config.is_file() else None
    return workspace, replace(given, organs=used or given.organs)


def read_settings(path: Path) -> Settings:
    """All defaults where there is no file. Raises ConfigError for a value that is not allowed."""
    if not path.is_file():
        return Settings()
    config = _read(path)
    try:
        annotation = Annotation.model_validate(config.get("annotation") or {})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, ('annotation', *first['loc'])))}: {first['msg']}") from error
    return Settings(config.get("organs"), annotation, (config.get("tracking") or {}).get("uri"))


def _read(path: Path) -> dict[str, Any]:
    config = read_yaml(path)
    return config if isinstance(config, dict) else {}
