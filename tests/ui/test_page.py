"""The whole app, Gradio included: who gets in, and what the queue table says."""

import gc
import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from ui_workspace import ORGANS

from atlas_ray.workspace import Workspace
from ui.app import create_app
from ui.login import COOKIE, Login

# gradio 6.31 makes an event loop per app and never closes it, and its imports use names that others have deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(starlette|gradio|fastapi|pandas|websockets).*"),
]


@pytest.fixture(autouse=True)
def collect_gradios_loops() -> Iterator[None]:
    """Here, where they are allowed for, and not in some later test."""
    yield
    gc.collect()


def routes(app: FastAPI) -> list[str]:
    """Every path of the app but the login page, with its parameters filled in."""
    paths = [getattr(route, "path", "") for route in app.routes]
    gradio = next(route.app for route in app.routes if getattr(route, "path", "") == "/ui")
    paths += [f"/ui{getattr(route, 'path', '')}" for route in gradio.routes]
    paths += [*app.openapi()["paths"], "/static/editor.js"]
    return sorted({re.sub(r"\{[^}]*\}", "case_0", path) for path in paths} - {"", "/login"})


def test_with_a_password_nothing_but_the_login_page_answers(workspace: Workspace) -> None:
    login = Login("correct horse")
    app = create_app(workspace.root, round=0, organs=ORGANS, login=login, local_only=False)
    with TestClient(app, base_url="http://localhost", follow_redirects=False) as client:
        found = routes(app)
        assert len(found) > 40, found
        for path in found:
            for method in ("GET", "PUT", "POST", "DELETE"):
                assert client.request(method, path).status_code == 401, (method, path)
            assert client.get(path, headers={"Accept": "text/html"}).headers["location"] == "/login"
        assert client.get("/login").status_code == 200
        known = {"Cookie": f"{COOKIE}={login.cookie('anna')}"}
        assert client.get("/ui/", headers=known).status_code == 200
        assert client.get("/ui/config", headers=known).json()["username"] == "anna"


def test_queue_table(workspace: Workspace) -> None:
    from ui.page import queue_rows, round_summary

    app = create_app(workspace.root, round=0, organs=ORGANS)
    store = app.state.store
    store.queue.claim(0, "case_1", "bob")
    rows = queue_rows(store)
    assert [row[:2] + row[4:6] for row in rows] == [
        [1, "case_0", "waiting", ""],
        [2, "case_1", "leased", "bob"],
        [3, "case_2", "waiting", ""],
    ]
    assert "0 of 3 cases done" in round_summary(store)
    store.close()
