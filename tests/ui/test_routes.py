"""Every route there is: closed to strangers, deaf to paths in names, and polite about bodies it cannot read."""

import asyncio
import gc
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from fastapi import FastAPI
from sqlalchemy import select
from starlette.routing import BaseRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from ui_workspace import ORGANS, make_workspace

from atlas_ray.annotation.database import metadata
from atlas_ray.workspace import Workspace
from ui.app import create_app
from ui.login import MAX_BODY, OPEN

# gradio 6.31 makes an event loop per app and never closes it, and its imports use names that others have deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(starlette|gradio|fastapi|pandas|websockets).*"),
]

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
HOST = "http://atlas.example"
UP = (
    "..", ".", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%2e%2e%2f%2e%2e%2fcampaign.yaml", "..%5c..%5cetc", "....%2f%2fetc",
    "%252e%252e%252fetc", "%2fetc%2fpasswd", "case_0%2f..%2fcase_1", "case_0%00", "%c0%ae%c0%ae%2f", "~root", "annotation.db",
)  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("routes"))


@pytest.fixture(scope="module")
def client(workspace: Workspace) -> Iterator[TestClient]:
    """The whole app, Gradio included, on the network."""
    app = create_app(workspace.root, round=0, organs=ORGANS)
    with TestClient(app, base_url=HOST, follow_redirects=False) as client:
        yield client
    gc.collect()  # here, where gradio's loops are allowed for, and not in some later test


@pytest.fixture(scope="module")
def known(client: TestClient) -> dict[str, str]:
    """The headers of somebody who may everything."""
    accounts = client.app.state.login.accounts
    accounts.add("ada", "correct horse", "admin")
    return {"Authorization": f"Bearer {accounts.add_token('test', user='ada', role='admin')}"}


def every_route(routes: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Path with its parameters' names and methods of every route, those of mounted apps included."""
    for route in routes:
        path = prefix + (getattr(route, "path", "") or "")
        if hasattr(route, "effective_route_contexts"):  # what include_router leaves
            yield from every_route(list(route.effective_route_contexts()), prefix)
        elif inner := getattr(route, "routes", None):
            yield from every_route(inner, path)
        else:
            yield path, set(getattr(route, "methods", None) or {"GET"})


def filled(path: str, value: str = "case_0") -> str:
    return re.sub(r"\{[^}]*\}", value, path)


@pytest.fixture(scope="module")
def paths(client: TestClient) -> list[str]:
    found = sorted({path for path, _ in every_route(client.app.routes)})
    assert len(found) > 60, found
    for expected in ("/api/v1/cases/{case_id}/labels/{organ}", "/static", "/ui/gradio_api/queue/join", "/openapi.json", "/logout"):
        assert expected in found
    assert any("theme.css" in path for path in found)
    return found


@dataclass
class Answer:
    """What came back of one request."""

    method: str
    path: str
    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""


def ask(app: FastAPI, asked: Iterable[tuple[str, str]], headers: dict[str, str] | None = None) -> list[Answer]:
    """Requests as (method, path), with the path as it stands: a client would tidy up its dots. A GET has no body, others {}."""

    async def one(method: str, path: str) -> Answer:
        answer = Answer(method, path)
        body = b"" if method in ("GET", "HEAD", "OPTIONS") else b"{}"
        sent = {"host": HOST.removeprefix("http://"), "content-type": "application/json", "content-length": str(len(body))}
        sent |= {name.lower(): value for name, value in (headers or {}).items()}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": unquote(path), "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": ("10.0.0.1", 5000),
            "server": ("atlas.example", 80), "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        }  # fmt: skip
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict:
            return next(messages, {"type": "http.disconnect"})

        async def send(message: dict) -> None:
            if message["type"] == "http.response.start":
                answer.status, answer.headers = message["status"], dict(message["headers"])
            answer.body += message.get("body", b"")

        await app(scope, receive, send)
        return answer

    async def every() -> list[Answer]:
        return [await one(method, path) for method, path in asked]

    # A loop of its own in a thread of its own: Playwright's still runs in this one when browser tests came before.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, every()).result()


# --- strangers ---


def test_strangers_reach_nothing_but_the_ways_to_log_in(client: TestClient, paths: list[str]) -> None:
    more = [
        "/",
        "/ui/",
        "/static/editor.js",
        "/nowhere",
        "/login/",
        "/login/x",
        "//login",
        "/LOGIN",
        "/login%2f",
        "/monailabel/auth/../info/",
    ]
    closed = {*map(filled, paths), *more} - OPEN
    answers = ask(client.app, [(method, path) for path in closed for method in METHODS])
    assert len(answers) > 500
    for answer in answers:
        assert answer.status == 401, answer
        assert answer.headers[b"www-authenticate"] == b"Bearer"
        assert answer.body == b'{"detail":"log in first"}'
    for page in ask(client.app, [("GET", path) for path in closed], {"Accept": "text/html,*/*"}):
        assert (page.status, page.headers[b"location"]) == (303, b"/login"), page


def test_strangers_open_no_socket(client: TestClient, paths: list[str]) -> None:
    for path in map(filled, paths):
        if path not in OPEN:
            with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect(path):
                pass
            assert refused.value.status_code == 401, path


def test_the_ways_to_log_in_say_nothing_else(client: TestClient) -> None:
    assert client.get("/login").status_code == 200
    for answer in ask(client.app, [(method, path) for path in OPEN for method in METHODS]):
        assert answer.status in (200, 401, 404, 405, 415, 422), answer


def test_whoever_logged_in_reaches_the_page(client: TestClient, known: dict[str, str]) -> None:
    assert client.get("/ui/", headers=known).status_code == 200
    assert client.get("/ui/config", headers=known).json()["username"] == "ada"
    assert client.get("/openapi.json", headers=known).status_code == 200
    assert client.get("/", headers=known).headers["location"] == "/ui/"


# --- paths in names ---


def contents(workspace: Workspace) -> dict[str, str]:
    """Digest of every file of the campaign but the database, which test servers write to by themselves."""
    files = [path for path in workspace.root.parent.rglob("*") if path.is_file() and "annotation.db" not in path.name]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(client: TestClient) -> dict[str, list[tuple]]:
    """Everything in the database."""
    with client.app.state.store.database.read() as connection:
        return {table.name: [tuple(row) for row in connection.execute(select(table))] for table in metadata.sorted_tables}


def test_no_name_is_a_path(client: TestClient, known: dict[str, str], workspace: Workspace) -> None:
    before = contents(workspace), rows(client)
    names = [(path, methods) for path, methods in every_route(client.app.routes) if "{" in path and path.startswith("/api")]
    assert len(names) > 15
    asked = [
        (method, filled(path.replace(parameter, name, 1)))
        for path, methods in names
        for parameter in re.findall(r"\{[^}]*\}", path)
        for name in UP
        for method in methods
    ]
    assert len(asked) > 300
    for answer in ask(client.app, asked, known):
        if answer.status == 307:  # one slash less
            (answer,) = ask(client.app, [(answer.method, urlsplit(answer.headers[b"location"].decode()).path)], known)
        assert 400 <= answer.status < 500, answer
        assert b"root:" not in answer.body
    assert (contents(workspace), rows(client)) == before


@pytest.mark.parametrize(
    "path", ["/static/..%2flogin.py", "/static/%2e%2e/login.py", "/static/..%5clogin.py", "/static//etc/passwd"]
)
def test_static_files_are_those_of_their_folder(client: TestClient, known: dict[str, str], path: str) -> None:
    assert client.get(path, headers=known).status_code == 404


@pytest.mark.parametrize("path", ["/etc/passwd", "../ui/login.py", "{root}/annotation.db", "{root}/../images/case_0.nii.gz"])
def test_gradio_serves_no_file_of_the_machine(client: TestClient, known: dict[str, str], workspace: Workspace, path: str) -> None:
    assert Path(workspace.root, "annotation.db").exists()
    answer = client.get(f"/ui/gradio_api/file={path.format(root=workspace.root)}", headers=known)
    assert answer.status_code in (403, 404)


# --- bodies ---


def with_bodies(client: TestClient) -> list[tuple[str, str]]:
    return [
        (method, filled(path))
        for path, methods in every_route(client.app.routes)
        for method in methods & {"POST", "PUT", "PATCH", "DELETE"}
    ]


def test_long_bodies_are_refused_on_every_route(client: TestClient, known: dict[str, str]) -> None:
    """Announced, or sent in pieces without saying how many: the second kind would fill the memory."""
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 1 << 20
            yield bytes(1 << 20)

    routes = with_bodies(client)
    assert len(routes) > 20
    for method, path in routes:
        headers = known | {"Content-Type": "application/json"}
        announced = client.request(method, path, content=b"{}", headers=headers | {"Content-Length": str(MAX_BODY + 1)})
        assert announced.status_code == 413, (method, path)
    for kind, path in (
        ("application/json", "/api/v1/cases/case_0/submit"),
        ("application/octet-stream", "/api/v1/cases/case_0/labels/ball"),
    ):
        client.post("/api/v1/cases/case_0/lease", headers=known).raise_for_status()
        headers = known | {"Content-Type": kind, "If-Match": '"0"'}
        answer = client.request("POST" if "json" in kind else "PUT", path, content=pieces(), headers=headers)
        assert "content-length" not in answer.request.headers
        assert answer.status_code == 413, path
    assert client.get("/api/v1/cases/case_0", headers=known).json()["item"]["state"] == "leased"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff\xfe", b"null", b"[]", b'"x"', b"1e999", b'{"seconds": NaN}', b"[" * 5000, b'{"note": "\\ud800"}',
        b'{"\\ud800": 1}', json.dumps({"seconds": 10**400}).encode(), b'{"unknown": 1}', b'{"note": 7}', b"{}" * 2,
    ],
)  # fmt: skip
def test_malformed_json_is_refused(client: TestClient, known: dict[str, str], body: bytes) -> None:
    client.post("/api/v1/cases/case_1/lease", headers=known).raise_for_status()
    before = rows(client)
    for path in ("submit", "skip", "flag"):
        answer = client.post(f"/api/v1/cases/case_1/{path}", content=body, headers=known | {"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500, (path, body)
        assert json.loads(answer.content)
    assert rows(client) == before


def test_what_was_wrong_is_not_repeated(client: TestClient, known: dict[str, str]) -> None:
    answer = client.post("/api/v1/cases/case_0/skip", json={"note": ["a secret"]}, headers=known)
    assert answer.status_code == 422
    assert "note" in answer.text
    assert "a secret" not in answer.text
