"""What nobody thought of: requests drawn from the app's own OpenAPI, and bytes that almost are what they should be.

Whatever is sent, nothing breaks (no 5xx), a refusal changes nothing, and what is stored can be shown.
"""

import gzip
import hashlib
import json
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from starlette.testclient import TestClient
from ui_workspace import ORGANS, SHAPE, make_client, make_workspace

from atlas_ray.annotation.database import metadata, open_database
from atlas_ray.annotation.revisions import check_runs
from atlas_ray.workspace import Workspace
from ui.app import create_api
from ui.login import Login
from ui.store import Store

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

EXAMPLES_PER_ROUTE = 10
KNOWN = {"case_id": "case_0", "organ": "ball", "image": "case_0", "label": "case_0", "name": "unet", "model": "current", "index": 1,
         "strategy": "attention", "revision": 0, "reading": 1}  # fmt: skip
NEVER_TOUCHED = {"account", "token", "signing_key", "schema_version"}
COUNTED = {"login_attempt"}  # a wrong password is refused, and counted
REVISIONS = st.sampled_from([None, '"0"', "x", '"9999999999"'])
FUZZ = settings(phases=[Phase.generate], suppress_health_check=list(HealthCheck), print_blob=False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def client(workspace: Workspace) -> Iterator[TestClient]:
    """Logged in with every right: nothing is hidden behind a 403."""
    with make_client(workspace, accounts={"ada": "admin"}) as client:
        token = client.app.state.login.accounts.add_token("fuzz", user="ada", role="admin")
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


def files(workspace: Workspace) -> dict[str, str]:
    found = [path for path in workspace.root.parent.rglob("*") if path.is_file() and "annotation.db" not in path.name]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


class Watched:
    """Sends requests and looks at the whole database after each."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.tables = self.look()

    def look(self) -> dict[str, list]:
        with self.client.app.state.store.database.read() as connection:
            return {table.name: connection.execute(select(table)).all() for table in metadata.sorted_tables}

    def send(self, method: str, url: str, body: bytes | None, headers: dict[str, str]) -> int:
        """The status; a refusal must have changed nothing, and nothing at all may touch accounts."""
        answer = self.client.request(method, url, content=body, headers=headers)
        assert answer.status_code < 500, (method, url, body, answer.text)
        before, self.tables = self.tables, self.look()
        changed = {name for name in before if before[name] != self.tables[name]} - COUNTED
        if answer.status_code >= 400 or method in ("GET", "HEAD"):
            assert not changed, (method, url, body, answer.text)
        assert not changed & NEVER_TOUCHED
        return answer.status_code


def assert_everything_can_be_shown(client: TestClient) -> None:
    store = client.app.state.store
    for item in store.queue.items(0):
        assert store.label_map(item).shape == SHAPE
        for edit in store.revisions.edits(0, item.case_id, reading=item.reading):
            check_runs(edit.runs, int(np.prod(SHAPE)))
    assert client.get("/api/v1/cases").status_code == 200


def operations() -> list:
    """Every operation of the OpenAPI, as schemathesis sees it."""
    with open_database("sqlite://") as database:
        store = Store(Workspace("nowhere"), round_index=0, organs=ORGANS, database=database)
        schema = schemathesis.openapi.from_dict(create_api(store, login=Login()).openapi())
    return [result.ok() for result in schema.get_all_operations()]


OPERATIONS = operations()


def test_every_route_is_drawn_from() -> None:
    drawn = {(operation.method.upper(), operation.path) for operation in OPERATIONS}
    assert len(drawn) > 25
    assert {("POST", "/api/v1/cases/next"), ("PUT", "/monailabel/datastore/label"), ("POST", "/monailabel/infer/{model}")} <= drawn


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method.upper()} {operation.path}")
def test_requests_drawn_from_the_openapi(client: TestClient, workspace: Workspace, operation) -> None:
    kept, watched = files(workspace), Watched(client)

    @settings(FUZZ, max_examples=EXAMPLES_PER_ROUTE)
    @given(case=operation.as_strategy(), known=st.sampled_from(["all", "path", "none"]), revision=REVISIONS)
    def ask(case, known: str, revision: str | None) -> None:
        for values in {"all": (case.path_parameters, case.query), "path": (case.path_parameters,), "none": ()}[known]:
            values.update({name: KNOWN[name] for name in values.keys() & KNOWN.keys()})
        case.headers.pop("Authorization", None)
        sent = requests.Request(**case.as_transport_kwargs(base_url="http://localhost")).prepare()
        headers = {name: value for name, value in sent.headers.items() if name.lower() == "content-type"}
        if revision is not None:
            headers["If-Match"] = revision
        body = sent.body.encode() if isinstance(sent.body, str) else sent.body
        watched.send(sent.method, sent.url, body, headers)

    ask()
    assert files(workspace) == kept
    assert_everything_can_be_shown(client)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["seconds", "note", "verdict", "steps", "text", "x"]), inner)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("path", ["submit", "flag", "time", "comments", "labels/ball/steps", "labels/ball/propose"])
def test_any_json(client: TestClient, path: str) -> None:
    watched = Watched(client)

    @settings(FUZZ, max_examples=25)
    @given(value=JSON)
    def ask(value: object) -> None:
        body = json.dumps(value).encode()
        watched.send("POST", f"/api/v1/cases/case_1/{path}", body, {"Content-Type": "application/json", "If-Match": '"0"'})

    ask()
    assert_everything_can_be_shown(client)


SIZE = int(np.prod(SHAPE))
NUMBERS = st.integers(0, 2**32 - 1) | st.integers(SIZE - 3, SIZE + 3) | st.integers(0, 3)
RUNS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=4).map(lambda runs: np.array(runs, "<u4").tobytes())
PACKED = st.one_of(
    st.binary(max_size=64), RUNS.map(zlib.compress), RUNS.map(gzip.compress), st.binary(max_size=64).map(zlib.compress)
)


def test_any_bytes_as_runs(client: TestClient) -> None:
    client.post("/api/v1/cases/case_2/lease").raise_for_status()
    store, watched = client.app.state.store, Watched(client)

    @settings(FUZZ, max_examples=100)
    @given(body=PACKED, cut=st.integers(0, 3))
    def ask(body: bytes, cut: int) -> None:
        current = store.revisions.current(0, "case_2", "cube")
        headers = {"Content-Type": "application/octet-stream", "If-Match": f'"{current}"'}
        status = watched.send("PUT", "/api/v1/cases/case_2/labels/cube", body[: len(body) - cut], headers)
        assert store.revisions.current(0, "case_2", "cube") == current + (status == 200)

    ask()
    assert store.revisions.current(0, "case_2", "cube") > 0  # some of it was valid
    assert_everything_can_be_shown(client)


def test_any_bytes_as_a_label_map(client: TestClient) -> None:
    """A valid file with some bytes of its header changed, and its end cut off."""
    item = client.app.state.store.queue.item((0, "case_2"))
    whole = gzip.decompress(client.app.state.store.labels(item)[0])

    watched = Watched(client)

    @settings(FUZZ, max_examples=50)
    @given(changes=st.dictionaries(st.integers(0, 351), st.integers(0, 255), max_size=3), cut=st.sampled_from([0, 0, 1, 1000]))
    def ask(changes: dict[int, int], cut: int) -> None:
        data = bytearray(whole[: len(whole) - cut])
        for where, value in changes.items():
            data[where] = value
        sent = requests.Request(
            "PUT", "http://localhost/monailabel/datastore/label?image=case_2&tag=work",
            files={"label": ("label.nii", bytes(data))}, data={"params": "{}"},
        ).prepare()  # fmt: skip
        watched.send("PUT", sent.url, sent.body, {"Content-Type": sent.headers["Content-Type"]})

    ask()
    assert_everything_can_be_shown(client)
