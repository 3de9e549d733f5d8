"""Who is asking: one gate in front of every route, Gradio's included.

With a password, nothing but the login page answers without a signed cookie. Without one the app is for this machine alone: it
listens on loopback, and the gate checks the Host header so that a foreign web page cannot reach it through a DNS name.
"""

import hashlib
import hmac
import html
import re
import secrets
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "atlas_ray"
COOKIE_SECONDS = 12 * 3600  # a working day
USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
MAX_BODY = 32 << 20  # compressed runs of an organ redrawn from nothing are below 1 MB
MAX_FORM = 4096
REFUSAL_SECONDS = 1.0  # of waiting after a wrong password
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>atlas_ray</title><link rel="icon" href="data:,">
<style>body{{background:#0c1015;color:#dfe7ee;font:15px system-ui,sans-serif;display:grid;place-items:center;height:95vh}}
form{{display:grid;gap:12px;width:280px}}input,button{{font:inherit;padding:8px 10px;border-radius:6px;border:1px solid #2a343f;
background:#141a21;color:inherit}}button{{background:#1f6f43;cursor:pointer}}p{{color:#ff7b72;margin:0}}</style>
<form method="post" action="/login"><h2>atlas_ray</h2>{error}<label>Name <input name="user" value="{user}" required autofocus
pattern="[A-Za-z0-9][A-Za-z0-9._@\\-]*" maxlength="64" autocomplete="username"></label>{password}
<button>Open</button></form></html>"""
PASSWORD_FIELD = '<label>Password <input name="password" type="password" required autocomplete="current-password"></label>'


class Login:
    """Signs and reads the cookie that names the user.

    Args:
        password: shared by all annotators; None lets everybody in as whom they say they are (loopback only).
        default_user: who works without a cookie; only without a password.
    """

    def __init__(self, password: str | None = None, *, default_user: str | None = None) -> None:
        self.password = password
        self.default_user = None if password else default_user
        # Derived from the password, so that a restart of the server logs nobody out and a new password everybody.
        salt = b"atlas_ray cookie" if password else secrets.token_bytes(16)
        self._key = hashlib.scrypt((password or "").encode(), salt=salt, n=1 << 14, r=8, p=1)

    def cookie(self, user: str, *, now: float | None = None) -> str:
        text = f"{int(now if now is not None else time.time()) + COOKIE_SECONDS}:{user}"
        return f"{text}:{self._sign(text)}"

    def user(self, cookie: str | None, *, now: float | None = None) -> str | None:
        """Whom a cookie names; the default user (if any) where it is missing, altered or too old."""
        text, _, signature = (cookie or "").rpartition(":")
        if not text or not hmac.compare_digest(signature.encode(), self._sign(text).encode()):
            return self.default_user
        until, _, user = text.partition(":")
        return user if int(until) > (now if now is not None else time.time()) else self.default_user

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def accepts(self, password: str) -> bool:
        return self.password is None or hmac.compare_digest(password.encode(), self.password.encode())

    # --- routes ---
    def page(self, request: Request) -> Response:
        """The form."""
        return self._form()

    def _form(self, *, error: str = "", user: str = "", status: int = 200) -> Response:
        shown = f"<p>{html.escape(error)}</p>" if error else ""
        field = PASSWORD_FIELD if self.password is not None else ""
        return HTMLResponse(PAGE.format(error=shown, user=html.escape(user, quote=True), password=field), status)

    async def enter(self, request: Request) -> Response:
        """Check what was typed, set the cookie."""
        form = {key: values[0] for key, values in parse_qs((await request.body())[:MAX_FORM].decode("utf-8", "replace")).items()}
        user = form.get("user", "").strip()
        if not USER.fullmatch(user):
            return self._form(error="A name has letters, digits and . _ @ -", user=user, status=422)
        if not self.accepts(form.get("password", "")):
            await run_in_threadpool(time.sleep, REFUSAL_SECONDS)
            return self._form(error="Wrong password", user=user, status=401)
        response = RedirectResponse("/ui/", 303)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, self.cookie(user), max_age=COOKIE_SECONDS, httponly=True, samesite="strict", secure=secure)
        return response

    def leave(self, request: Request) -> Response:
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE)
        return response


class Gate:
    """ASGI middleware: lets through only known users, from this site, with bodies of a bounded size.

    Args:
        local_only: the server listens on loopback only; refuse requests that came under another host name.
    """

    def __init__(self, app: ASGIApp, *, login: Login, local_only: bool) -> None:
        self.app = app
        self.login = login
        self.local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        user = self.login.user(_cookie(connection))
        refusal = self._refusal(connection, scope, user)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        scope.setdefault("state", {})["user"] = user
        await self.app(scope, receive, send)

    def _refusal(self, connection: HTTPConnection, scope: Scope, user: str | None) -> Response | None:
        host = connection.headers.get("host", "")
        method = scope.get("method", "GET")
        if self.local_only and urlsplit(f"//{host}").hostname not in LOOPBACK:
            return JSONResponse({"detail": f"this server answers on localhost only, not as {host!r}"}, 421)
        origin = connection.headers.get("origin")
        if origin and (method in UNSAFE or scope["type"] == "websocket") and urlsplit(origin).netloc != host:
            return JSONResponse({"detail": f"requests from {origin} are refused"}, 403)
        if method in UNSAFE and (refused := _body_refusal(connection)):
            return refused
        if user is None and scope["path"] != "/login":
            wants_page = method == "GET" and "text/html" in connection.headers.get("accept", "")
            return RedirectResponse("/login", 303) if wants_page else JSONResponse({"detail": "log in first"}, 401)
        return None


def _body_refusal(connection: HTTPConnection) -> Response | None:
    length = connection.headers.get("content-length")
    if length is None and "transfer-encoding" in connection.headers:
        return JSONResponse({"detail": "a body needs a Content-Length"}, 411)
    if length is not None and (not length.isdigit() or int(length) > MAX_BODY):
        return JSONResponse({"detail": f"a body of {length} bytes; {MAX_BODY} are allowed"}, 413)
    return None


def _cookie(connection: HTTPConnection) -> str | None:
    try:
        morsel = SimpleCookie(connection.headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel else None


def current_user(request: Request) -> str:
    """Whom the gate let in: the one dependency of the REST routes and of the Gradio page."""
    return str(request.state.user)
