"""The app: REST, the editor's files and the Gradio page in one FastAPI process."""

import contextlib
import json
import os
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from atlas_ray.annotation.accounts import Accounts
from atlas_ray.annotation.database import open_database
from atlas_ray.organs import Organs
from atlas_ray.workspace import Workspace
from ui import monailabel
from ui.api import add_error_handlers, router
from ui.login import Gate, Login, current_user
from ui.settings import Settings, read_settings
from ui.store import Store


class FreshStaticFiles(StaticFiles):
    """Static files a browser checks for a newer version each time: an upgraded server must not meet an old editor."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def create_app(
    workspace_root: str | Path,
    *,
    round: int,
    organs: Organs,
    settings: Settings | None = None,
    user: str | None = None,
) -> FastAPI:
    """The whole app of one round: what `create_api` gives, and the page.

    Args:
        workspace_root: the campaign's folder.
        organs: the campaign's organ set.
        settings: the database of queue and revisions, and how people work; None is what the workspace's campaign.yaml says.
        user: lets everybody on this machine in as this user, and nobody else; None asks for an account.

    Raises:
        ConfigError, WorkspaceError: the database cannot be opened.
    """
    workspace = Workspace(workspace_root)
    settings = settings or read_settings(workspace.config)
    database = open_database(settings.database_url(workspace))
    store = Store(workspace, round_index=round, organs=organs, database=database, settings=settings)
    app = create_api(store, login=Login(Accounts(database)) if user is None else Login(default_user=user))
    mount_page(app, store)
    return app


def create_api(store: Store, *, login: Login) -> FastAPI:
    """REST, login and static files behind the gate; closes the store when the server stops."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        store.close()

    app = FastAPI(title="atlas_ray", lifespan=lifespan, docs_url=None, redoc_url=None)  # their pages load from a CDN
    app.state.store = store
    app.state.login = login
    app.include_router(router)
    app.include_router(monailabel.router)
    app.mount("/static", FreshStaticFiles(directory=str(files("ui") / "static")))
    for path, methods, answer in (
        ("/login", ["GET"], login.page),
        ("/login", ["POST"], login.enter),
        ("/logout", ["POST"], login.leave),
        ("/", ["GET"], lambda: RedirectResponse("/ui/")),
        ("/favicon.ico", ["GET"], lambda: Response(status_code=204)),
    ):
        app.add_api_route(path, answer, methods=methods, include_in_schema=False)
    add_error_handlers(app)
    app.exception_handler(RequestValidationError)(_invalid)
    app.add_middleware(Gate, login=login)
    return app


def _invalid(request: Request, error: RequestValidationError) -> Response:
    """What is wrong and where, without repeating what was sent: that may be no text that can be sent back, or a secret."""
    found = [{key: entry[key] for key in ("type", "loc", "msg")} for entry in error.errors()]
    return Response(json.dumps({"detail": found}), 422, media_type="application/json")


def mount_page(app: FastAPI, store: Store) -> None:
    """Put the Gradio page at /ui, behind the same user as everything else."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    import gradio as gr

    from ui.page import CSS, HEAD, ON_LOAD, THEME, build_page

    gr.mount_gradio_app(
        app,
        build_page(store),
        path="/ui",
        auth_dependency=current_user,
        theme=THEME,
        css=CSS,
        head=HEAD,
        js=ON_LOAD,
        footer_links=[],
        max_file_size="1mb",  # nothing is uploaded through Gradio
        ssr_mode=False,
    )
