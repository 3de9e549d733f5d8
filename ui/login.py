"""Who is asking: one gate in front of every route, Gradio's included.

With accounts, nothing but the ways to log in answers without a signed cookie or a token. With `--no-auth` the app is for this
machine alone: it listens on loopback, and the gate checks the Host header so that a foreign web page cannot reach it through a
DNS name. In both, a browser may change something only from this site's own pages, and no body is longer than its kind may be.
"""

import html
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Literal
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.to_thread
from fastapi import HTTPException
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atlas_ray.annotation.accounts import NAME, ROLES, TOKEN_PREFIX, Account, Accounts
from atlas_ray.annotation.review import Role

COOKIE = "atlas_ray"
SESSION_SECONDS = 12 * 3600  # a working day
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
HASHES_AT_ONCE = 2  # 64 MiB each: many attempts at the same moment must not fill the memory, nor the threads of other requests
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_SITE = frozenset({"same-origin", "none"})  # Sec-Fetch-Site; "none" is what a person typed

SLICER = "/monailabel"
SLICER_TOKEN = f"{SLICER}/token/"  # 3D Slicer sends no header when it loads an image: its server address carries the token
OPEN = frozenset({"/login", f"{SLICER}/auth/", f"{SLICER}/auth/token"})  # the ways to log in

FORM = "application/x-www-form-urlencoded"
FORM_PATHS = frozenset({"/login", "/logout", f"{SLICER}/auth/token"})
MAX_FORM = 4096
BODY_KINDS = ("application/json", "application/octet-stream")
MAX_BODY = 32 << 20  # compressed runs of an organ redrawn from nothing are below 1 MB
MAX_UPLOAD = 64 << 20  # a compressed label map is below 5 MB

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>atlas_ray</title><link rel="icon" href="data:,">
<style>body{{background:#0c1015;color:#dfe7ee;font:15px system-ui,sans-serif;display:grid;place-items:center;height:95vh}}
form{{display:grid;gap:12px;width:280px}}input,button{{font:inherit;padding:8px 10px;border-radius:6px;border:1px solid #2a343f;
background:#141a21;color:inherit}}button{{background:#1f6f43;cursor:pointer}}p{{color:#ff7b72;margin:0}}</style>
<form method="post" action="/login"><h2>atlas_ray</h2>{error}<label>Name <input name="user" value="{user}" required autofocus
maxlength="64" autocomplete="username"></label><label>Password <input name="password" type="password" required
autocomplete="current-password"></label><button>Open</button></form></html>"""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from, and what told so."""

    user: str
    role: Role
    auth: Literal["none", "session", "token"]


class LoginRefused(Exception):
    """Wrong name or password, or too many attempts: `retry_after` seconds until the next one, 0 for right away."""

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        return 429 if self.retry_after else 401

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(round(self.retry_after))} if self.retry_after else {}


class Login:
    """Checks passwords, cookies and tokens.

    Args:
        accounts: who may log in; None lets everybody on this machine in.
        default_user: who that is, without accounts.
    """

    def __init__(self, accounts: Accounts | None = None, *, default_user: str = "annotator") -> None:
        self.accounts = accounts
        self.default_user = default_user
        self._signer = URLSafeTimedSerializer(accounts.signing_key(), salt="atlas_ray session") if accounts else None
        self._turns = anyio.CapacityLimiter(HASHES_AT_ONCE)

    # --- who ---
    async def sign_in(self, user: str, password: str, *, address: str) -> str:
        """The signed text that says who somebody is, for SESSION_SECONDS. Raises LoginRefused."""
        return await anyio.to_thread.run_sync(self._sign_in, user, password, address, limiter=self._turns)

    def _sign_in(self, user: str, password: str, address: str) -> str:
        if self.accounts is None:
            raise LoginRefused("this server knows no accounts; it was started with --no-auth")
        name = user if NAME.fullmatch(user) else ""
        if wait := self.accounts.count_attempt(name, address):
            raise LoginRefused(f"too many attempts; the next one is possible in {round(wait)} seconds", retry_after=wait)
        account = self.accounts.check(name, password)
        if account is None:
            raise LoginRefused("wrong name or password")
        self.accounts.forget_attempts(name)
        return self.session_of(account)

    def session_of(self, account: Account) -> str:
        assert self._signer is not None
        return str(self._signer.dumps([account.name, account.session]))

    def principal(self, connection: HTTPConnection) -> Principal | None:
        """Whom a request comes from; None for nobody known. An Authorization header that does not hold is never made up for
        by a cookie."""
        if self.accounts is None:
            return Principal(self.default_user, "admin", "none")
        header = connection.headers.get("authorization")
        if header is not None:
            kind, _, text = header.partition(" ")
            return self.bearer(text.strip()) if kind.lower() == "bearer" else None
        return self._session(_cookie(connection))

    def bearer(self, text: str) -> Principal | None:
        """Whom a token, or the text `sign_in` gave, belongs to."""
        if not text.startswith(TOKEN_PREFIX):
            return self._session(text)
        account = self.accounts.token_bearer(text) if self.accounts else None
        return Principal(account.name, account.role, "token") if account else None

    def _session(self, text: str | None) -> Principal | None:
        if text is None or self.accounts is None or self._signer is None:
            return None
        try:
            name, session = self._signer.loads(text, max_age=SESSION_SECONDS)
        except BadSignature:
            return None
        account = self.accounts.get(name)
        if account is None or account.session != session:
            return None
        return Principal(account.name, account.role, "session")

    # --- routes ---
    def page(self) -> Response:
        """The form."""
        return self._form() if self.accounts else RedirectResponse("/ui/", 303)

    def _form(self, *, user: str = "", refused: LoginRefused | None = None) -> Response:
        shown = f"<p>{html.escape(str(refused).capitalize())}.</p>" if refused else ""
        page = PAGE.format(error=shown, user=html.escape(user, quote=True))
        return HTMLResponse(page, refused.status if refused else 200, headers=refused.headers if refused else None)

    async def enter(self, request: Request) -> Response:
        """Check what was typed, set the cookie."""
        form = await read_form(request)
        user = form.get("user", "").strip()
        try:
            session = await self.sign_in(user, form.get("password", ""), address=address_of(request))
        except LoginRefused as refused:
            return self._form(user=user, refused=refused)
        response = RedirectResponse("/ui/", 303)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, session, max_age=SESSION_SECONDS, httponly=True, samesite="strict", secure=secure)
        return response

    def leave(self, request: Request) -> Response:
        """Log out, on every machine: what was signed for this user so far is refused from now on."""
        if self.accounts is not None and current_principal(request).auth == "session":
            self.accounts.end_sessions(current_user(request))
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a posted form; the first value of each."""
    try:
        fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=16)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    return {key: values[0] for key, values in fields.items()}


def address_of(request: Request) -> str:
    return request.client.host if request.client else ""


class Gate:
    """ASGI middleware: lets through only who is known, from this site, with bodies of a bounded size."""

    def __init__(self, app: ASGIApp, *, login: Login) -> None:
        self.app = app
        self.login = login

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        principal = await run_in_threadpool(self._principal, connection)
        try:
            self._require_own_site(connection)
            limit = _body_limit(connection)
            if principal is None and scope["path"] not in OPEN:
                raise HTTPException(401, "log in first")
        except HTTPException as refusal:
            await _answer(connection, refusal)(scope, receive, send)
            return
        if principal is not None:
            scope.setdefault("state", {}).update(asdict(principal))
        await self.app(scope, _bounded(receive, limit), _hardened(send))

    def _principal(self, connection: HTTPConnection) -> Principal | None:
        scope = connection.scope
        if not scope["path"].startswith(SLICER_TOKEN):
            return self.login.principal(connection)
        token, _, rest = scope["path"].removeprefix(SLICER_TOKEN).partition("/")
        scope["path"] = f"{SLICER}/{rest}"
        scope["raw_path"] = scope["path"].encode()
        return self.login.bearer(token)

    def _require_own_site(self, connection: HTTPConnection) -> None:
        """A foreign page may neither change anything nor open a socket. Raises HTTPException."""
        host = connection.headers.get("host", "")
        if self.login.accounts is None and _hostname(host) not in LOOPBACK:
            raise HTTPException(421, f"this server answers on localhost only, not as {host!r}")
        if connection.scope["type"] == "http" and connection.scope["method"] in SAFE:
            return
        origin, site = connection.headers.get("origin"), connection.headers.get("sec-fetch-site")
        if (origin is not None and urlsplit(origin).netloc != host) or (site is not None and site not in OWN_SITE):
            raise HTTPException(403, f"requests from {origin or site} are refused")


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:  # an unclosed bracket
        return None


def _body_limit(connection: HTTPConnection) -> int:
    """How long the body may be, by its kind. Raises HTTPException: of another kind, or announced as longer."""
    length = connection.headers.get("content-length")
    if length in (None, "0") and "transfer-encoding" not in connection.headers:
        return 0
    kind = connection.headers.get("content-type", "").partition(";")[0].strip().lower()
    limit = _limit_of_kind(connection, kind)
    if limit is None:
        raise HTTPException(415, f"a body of type {kind!r}; {' and '.join(BODY_KINDS)} are allowed")
    if length is not None and (not length.isdecimal() or int(length[:20]) > limit):
        raise _too_large(limit)
    return limit


def _limit_of_kind(connection: HTTPConnection, kind: str) -> int | None:
    """None for a kind that is not read here. A page of another site can send forms, multipart and nameless bodies without
    asking; these are read only where they must be, and nameless ones only from what is no browser."""
    path = connection.scope["path"]
    if kind == FORM:
        return MAX_FORM if path in FORM_PATHS else None
    if kind == "multipart/form-data":
        return MAX_UPLOAD if path.startswith(f"{SLICER}/") else None
    if kind == "":
        from_browser = "origin" in connection.headers or "sec-fetch-site" in connection.headers
        return None if from_browser else MAX_BODY
    return MAX_BODY if kind in BODY_KINDS else None


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the body is too long; {limit} bytes are allowed")


def _bounded(receive: Receive, limit: int) -> Receive:
    """Stops a body that grows beyond the limit, however it is sent."""
    read = 0

    async def bounded() -> Message:
        nonlocal read
        message = await receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > limit:
                raise _too_large(limit)
        return message

    return bounded


def _hardened(send: Send) -> Send:
    """No other site may frame a page of ours, and no browser may take a file for something else than it says."""

    async def hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["X-Frame-Options"] = "SAMEORIGIN"
            headers["Referrer-Policy"] = "same-origin"
        await send(message)

    return hardened


def _answer(connection: HTTPConnection, refusal: HTTPException) -> Response:
    wants_page = connection.scope.get("method") == "GET" and "text/html" in connection.headers.get("accept", "")
    if refusal.status_code == 401 and wants_page:
        return RedirectResponse("/login", 303)
    headers = {"WWW-Authenticate": "Bearer"} if refusal.status_code == 401 else None
    return JSONResponse({"detail": refusal.detail}, refusal.status_code, headers=headers)


def _cookie(connection: HTTPConnection) -> str | None:
    try:
        morsel = SimpleCookie(connection.headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel else None


# --- for the routes ---------------------------------------------------------------------------------------------------


def current_principal(request: Request) -> Principal:
    return Principal(request.state.user, request.state.role, request.state.auth)


def current_user(request: Request) -> str:
    """Whom the gate let in: the one dependency of the REST routes and of the Gradio page."""
    return current_principal(request).user


def current_role(request: Request) -> Role:
    return current_principal(request).role


def require_role(role: Role) -> Callable[[Request], str]:
    """A dependency that gives the user, or answers 403 where the user's role may do less than `role`."""

    def user_with_role(request: Request) -> str:
        principal = current_principal(request)
        if ROLES.index(principal.role) < ROLES.index(role):
            raise HTTPException(403, f"{principal.user} is {principal.role}; this needs {role}")
        return principal.user

    return user_with_role
