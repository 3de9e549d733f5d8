"""Who gets in, as whom, for how long, and how often one may try."""

import time
from collections.abc import Iterator

import pytest
from fastapi import Depends
from starlette.testclient import TestClient
from ui_workspace import PASSWORD, make_client

from atlas_ray.annotation.accounts import ATTEMPTS_PER_USER, Accounts
from atlas_ray.workspace import Workspace
from ui.login import COOKIE, SESSION_SECONDS, require_role

HOST = "atlas.example"
PEOPLE = {"anna": "annotator", "rita": "reviewer", "ada": "admin"}


@pytest.fixture
def client(workspace: Workspace) -> Iterator[TestClient]:
    with make_client(workspace, accounts=PEOPLE, base_url=f"http://{HOST}") as client:
        yield client


@pytest.fixture
def accounts(client: TestClient) -> Accounts:
    return client.app.state.login.accounts


def log_in(client: TestClient, user: str = "anna", password: str = PASSWORD):
    return client.post("/login", data={"user": user, "password": password})


def who(client: TestClient, **headers: str) -> tuple[str, str, str] | int:
    answer = client.get("/api/v1/session", headers=headers)
    return tuple(answer.json()[key] for key in ("user", "role", "auth")) if answer.status_code == 200 else answer.status_code


# --- passwords and cookies ---


def test_log_in_and_out(client: TestClient) -> None:
    assert who(client) == 401
    answer = log_in(client, "rita")
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/")
    assert who(client) == ("rita", "reviewer", "session")
    kept = client.cookies[COOKIE]
    assert client.post("/logout").headers["location"] == "/login"
    assert COOKIE not in client.cookies
    assert who(client, Cookie=f"{COOKIE}={kept}") == 401  # a copy of the cookie ends too


def test_the_cookie_is_for_this_site_alone(client: TestClient, workspace: Workspace) -> None:
    parts = log_in(client).headers["set-cookie"].lower().split("; ")
    assert {"httponly", "samesite=strict", "path=/", f"max-age={SESSION_SECONDS}"} <= set(parts)
    assert "secure" not in parts
    client.base_url = f"https://{HOST}"
    assert "secure" in log_in(client).headers["set-cookie"].lower().split("; ")


@pytest.mark.parametrize(
    ("user", "password"),
    [("anna", "wrong password"), ("nobody", PASSWORD), ("anna", ""), ("", ""), ("<b>", PASSWORD), ("anna\0", PASSWORD), ("é", "é")],
)
def test_every_wrong_login_gets_the_same_answer(client: TestClient, user: str, password: str) -> None:
    answer = log_in(client, user, password)
    assert answer.status_code == 401
    assert "Wrong name or password." in answer.text
    assert "<b>" not in answer.text
    assert "set-cookie" not in answer.headers


def test_cookies_are_signed_and_end(client: TestClient, accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(client)
    cookie = client.cookies[COOKIE]
    client.cookies.clear()
    payload, stamp, signature = cookie.split(".")
    forged = [f"{payload}.{stamp}.{signature[:-1]}", f"{payload[:-1]}.{stamp}.{signature}", "x", "é", "a.b.c", "", '["ada",0]']
    for text in forged:
        assert who(client, Cookie=f"{COOKIE}={text}".encode()) == 401, text
    assert who(client, Cookie=f"{COOKIE}={cookie}") == ("anna", "annotator", "session")
    now = time.time()
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: now + SESSION_SECONDS + 2)
    assert who(client, Cookie=f"{COOKIE}={cookie}") == 401


def test_what_changes_holds_from_the_next_request_on(client: TestClient, accounts: Accounts) -> None:
    log_in(client)
    accounts.set_role("anna", "admin")
    assert who(client) == ("anna", "admin", "session")
    accounts.set_password("anna", "battery staple")
    assert who(client) == 401
    log_in(client, password="battery staple")
    accounts.remove("anna")
    assert who(client) == 401


def test_another_server_of_the_campaign_knows_the_cookie(client: TestClient, workspace: Workspace) -> None:
    log_in(client)
    with make_client(workspace, accounts={}) as other:
        assert who(other, Cookie=f"{COOKIE}={client.cookies[COOKIE]}") == ("anna", "annotator", "session")


def test_too_many_attempts(client: TestClient) -> None:
    for _ in range(ATTEMPTS_PER_USER):
        assert log_in(client, password="wrong password").status_code == 401
    for password in ("wrong password", PASSWORD):  # the right one may not be found by trying either
        answer = log_in(client, password=password)
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= 300
    assert log_in(client, "rita").status_code == 303


def test_the_form(client: TestClient) -> None:
    page = client.get("/login")
    assert page.status_code == 200
    assert 'name="password" type="password"' in page.text
    assert client.post("/login", content=b"user=" + b"x" * 5000, headers={"Content-Type": FORM}).status_code == 413
    many = "&".join(f"a{n}=1" for n in range(20))
    assert client.post("/login", content=many, headers={"Content-Type": FORM}).status_code == 422


FORM = "application/x-www-form-urlencoded"


# --- tokens ---


def test_a_token_is_a_bearer(client: TestClient, accounts: Accounts) -> None:
    token = accounts.add_token("script", user="ada", role="reviewer")
    assert who(client, Authorization=f"Bearer {token}") == ("ada", "reviewer", "token")
    assert who(client, Authorization=f"bearer {token}") == ("ada", "reviewer", "token")
    for header in (f"Basic {token}", f"Bearer {token}x", "Bearer", token, ""):
        assert who(client, Authorization=header) == 401, header
    log_in(client)
    assert who(client, Authorization="Bearer atlas_wrong") == 401  # no cookie makes up for it
    accounts.revoke_token("script")
    assert who(client, Authorization=f"Bearer {token}") == 401


# --- roles ---


@pytest.mark.parametrize(
    ("role", "allowed"), [("annotator", {"anna", "rita", "ada"}), ("reviewer", {"rita", "ada"}), ("admin", {"ada"})]
)
def test_a_route_may_ask_for_a_role(client: TestClient, role, allowed: set[str]) -> None:
    client.app.add_api_route("/asks", lambda: "yes", dependencies=[Depends(require_role(role))])
    for user in PEOPLE:
        log_in(client, user)
        answer = client.get("/asks")
        assert (answer.status_code == 200) == (user in allowed)
        if user not in allowed:
            assert answer.json()["detail"] == f"{user} is {PEOPLE[user]}; this needs {role}"


# --- without accounts ---


def test_alone_on_this_machine(workspace: Workspace) -> None:
    with make_client(workspace) as client:
        assert who(client) == ("annotator", "admin", "none")
        assert client.get("/login").headers["location"] == "/ui/"
        assert log_in(client).status_code == 401
        assert client.post("/logout").status_code == 303
        for host in ("evil.example", "127.0.0.1.evil.example", "[::1", "localhost@evil.example", ""):
            assert who(client, Host=host) == 421, host
        for host in ("localhost:7860", "127.0.0.1", "[::1]:7860"):
            assert who(client, Host=host) == ("annotator", "admin", "none"), host


# --- other sites ---


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://{HOST}.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_foreign_page_changes_nothing(client: TestClient, headers: dict[str, str]) -> None:
    log_in(client)
    for method, path in (
        ("POST", "/api/v1/cases/next"),
        ("DELETE", "/api/v1/cases/case_0/lease"),
        ("POST", "/login"),
        ("POST", "/logout"),
    ):
        assert client.request(method, path, headers=headers).status_code == 403, path
    assert who(client, **headers) == ("anna", "annotator", "session")  # the browser keeps the answer from the page
    assert {item["state"] for item in client.get("/api/v1/cases").json()["items"]} == {"waiting"}


def test_a_page_of_ours_may(client: TestClient) -> None:
    log_in(client)
    own = {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/v1/cases/next", headers=own).status_code == 200
    answer = client.post("/api/v1/cases/case_0/submit", json={}, headers=own)
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"


@pytest.mark.parametrize(
    "kind", ["text/plain", FORM, "multipart/form-data; boundary=x", "application/xml", "text/plain;application/json"]
)
def test_only_bodies_a_foreign_page_cannot_send_are_read(client: TestClient, kind: str) -> None:
    log_in(client)
    client.post("/api/v1/cases/case_0/lease")
    answer = client.post("/api/v1/cases/case_0/submit", content=b"{}", headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert client.get("/api/v1/cases/case_0").json()["item"]["state"] == "leased"


def test_a_browsers_body_has_a_kind(client: TestClient) -> None:
    log_in(client)
    for headers in ({"Origin": f"http://{HOST}"}, {"Sec-Fetch-Site": "same-origin"}):
        assert client.post("/api/v1/cases/case_0/submit", content=b"{}", headers=headers).status_code == 415
