"""The annotation app as a Ray Serve application: rayservice.yaml names `build`. Needs infra/requirements-serve.txt."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from ui.__main__ import find_user
from ui.app import create_app
from ui.settings import find_campaign
from ui.store import newest_round


def create(campaign: str) -> FastAPI:
    """What `python -m ui CAMPAIGN` serves, with accounts. Raises ConfigError where nobody may log in yet."""
    find_user(Path(campaign), host="0.0.0.0", no_auth=False, user=None)
    workspace, settings = find_campaign(Path(campaign))
    return create_app(workspace.root, round=newest_round(workspace), organs=settings.load_organs(), settings=settings)


def build(args: dict[str, str]) -> Any:
    """The application for `args: {campaign: FILE_OR_FOLDER}`."""
    ingress = serve.ingress(lambda: create(args["campaign"]))
    return serve.deployment(name="AnnotationService")(ingress(type("AnnotationService", (), {}))).bind()
