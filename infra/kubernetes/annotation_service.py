"""The annotation app as a Ray Serve application: rayservice.yaml names `build`. Needs infra/requirements-serve.txt."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from ui.__main__ import database_url, find_organs, find_user, find_workspace
from ui.app import create_app
from ui.store import campaign_settings, newest_round


def create(campaign: str) -> FastAPI:
    """What `python -m ui CAMPAIGN` serves, with accounts. Raises ConfigError where nobody may log in yet."""
    find_user(Path(campaign), host="0.0.0.0", no_auth=False, user=None)
    workspace = find_workspace(Path(campaign))
    settings = campaign_settings(workspace.config)
    return create_app(
        workspace.root,
        round=newest_round(workspace),
        organs=find_organs(None, settings),
        database_url=database_url(workspace),
        lease_minutes=settings.get("lease_minutes", 30.0),
    )


def build(args: dict[str, str]) -> Any:
    """The application for `args: {campaign: FILE_OR_FOLDER}`."""
    ingress = serve.ingress(lambda: create(args["campaign"]))
    return serve.deployment(name="AnnotationService")(ingress(type("AnnotationService", (), {}))).bind()
