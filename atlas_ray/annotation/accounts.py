"""Who may use the app: accounts with passwords, tokens for scripts, and how often a password may be tried.

All of it lies in the annotation database, so that several servers of one campaign know the same people and count the same
attempts. Passwords are kept as argon2id hashes. Tokens are 256 random bits: of them a plain SHA-256 is kept, because nobody
can guess what it was made from. Adding, changing and removing leaves an event.
"""

import hashlib
import re
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from pwdlib import PasswordHash
from sqlalchemy import Column, Integer, String, Table, delete, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from atlas_ray.annotation.database import Database, UtcDateTime, events, metadata, utc_now
from atlas_ray.annotation.review import Role
from atlas_ray.exceptions import AtlasError
from atlas_ray.schema import Schema

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
ROLES: tuple[Role, ...] = ("annotator", "reviewer", "admin")  # each may do what the ones before it may
PASSWORD_LENGTHS = range(8, 1025)
TOKEN_PREFIX = "atlas_"  # so that a leaked token is recognized as one
ATTEMPTS_PER_USER = 10
ATTEMPTS_PER_ADDRESS = 30  # a whole ward may sit behind one address
ATTEMPTS_WINDOW = timedelta(minutes=5)

accounts = Table(
    "account",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("password", String(255), nullable=False),  # argon2id, with its salt and parameters
    Column("role", String(16), nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("session", Integer, nullable=False, default=0),  # what was signed for an earlier one is refused
)

tokens = Table(
    "token",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("user", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("expires", UtcDateTime),
)

attempts = Table(
    "login_attempt",
    metadata,
    Column("source", String(320), primary_key=True),
    Column("started", UtcDateTime, nullable=False),
    Column("count", Integer, nullable=False),
)

signing_keys = Table(
    "signing_key",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("value", String(64), nullable=False),
)


class AccountError(AtlasError):
    """An account or token that cannot be made, changed or found as asked."""

    exit_code = 2


class Account(Schema):
    """Somebody who may log in.

    Args:
        created: ISO 8601, UTC.
        session: grows when the password changes or the user logs out.
    """

    name: str
    role: Role
    created: str
    session: int


class Token(Schema):
    """A script's key: it acts as its user, with its own role or the user's, whichever may do less.

    Args:
        created, expires: ISO 8601, UTC; None never expires.
    """

    name: str
    user: str
    role: Role
    created: str
    expires: str | None


class Accounts:
    """The accounts and tokens in one database.

    Args:
        database: open; the caller closes it.
        hasher: of passwords; the default takes 64 MiB and some tenths of a second per password, on purpose.
        now: the clock, aware; tests pass their own.
    """

    def __init__(self, database: Database, *, hasher: PasswordHash | None = None, now: Callable[[], datetime] = utc_now) -> None:
        self.database = database
        self.hasher = hasher or PasswordHash.recommended()
        self.now = now
        self._nobodys_hash: str | None = None

    def signing_key(self) -> str:
        """The random key all servers of this campaign sign with; made by whoever asks first."""
        query = select(signing_keys.c.value).where(signing_keys.c.name == "session")
        for last_attempt in (False, True):
            try:
                with self.database.write() as connection:
                    if (found := connection.execute(query).scalar()) is not None:
                        return str(found)
                    made = secrets.token_hex(32)
                    connection.execute(insert(signing_keys).values(name="session", value=made))
                    return made
            except IntegrityError:  # another server made it in between
                if last_attempt:
                    raise
        raise AssertionError("unreachable")

    # --- accounts ---
    def add(self, name: str, password: str, role: Role = "annotator") -> Account:
        """Raises AccountError: the name is taken or not usable, the password too short or too long."""
        if not NAME.fullmatch(name):
            raise AccountError(f"user name {name!r} is not usable; up to 64 letters, digits and . _ @ - are allowed")
        row = {"name": name, "password": self._hash(password), "role": role, "created": self.now(), "session": 0}
        try:
            with self.database.write() as connection:
                connection.execute(insert(accounts).values(**row))
                self._log(connection, name, "account added", role)
        except IntegrityError:
            raise AccountError(f"there is already an account {name!r}") from None
        return _account(row)

    def all(self) -> tuple[Account, ...]:
        """By name."""
        with self.database.read() as connection:
            return tuple(_account(row._mapping) for row in connection.execute(select(accounts).order_by(accounts.c.name)))

    def get(self, name: str) -> Account | None:
        with self.database.read() as connection:
            row = connection.execute(select(accounts).where(accounts.c.name == name)).first()
        return None if row is None else _account(row._mapping)

    def set_role(self, name: str, role: Role) -> None:
        """Holds from the next request on. Raises AccountError for an unknown user."""
        self._change(name, {"role": role}, "role changed", role)

    def set_password(self, name: str, password: str) -> None:
        """Logs the user out everywhere. Raises AccountError for an unknown user or an unusable password."""
        self._change(name, {"password": self._hash(password), "session": accounts.c.session + 1}, "password changed")

    def end_sessions(self, name: str) -> None:
        """Log the user out everywhere; tokens stay."""
        self._change(name, {"session": accounts.c.session + 1}, "logged out")

    def remove(self, name: str) -> None:
        """With the user's tokens; what the user did stays. Raises AccountError for an unknown user."""
        with self.database.write() as connection:
            if not connection.execute(delete(accounts).where(accounts.c.name == name)).rowcount:
                raise self._unknown(name)
            connection.execute(delete(tokens).where(tokens.c.user == name))
            self._log(connection, name, "account removed")

    def check(self, name: str, password: str) -> Account | None:
        """The account, if the password is its own. An unknown name takes as long as a wrong password."""
        with self.database.read() as connection:
            row = connection.execute(select(accounts).where(accounts.c.name == name)).first()
        fits = len(password) in PASSWORD_LENGTHS
        if self._nobodys_hash is None:
            self._nobodys_hash = self.hasher.hash(secrets.token_hex(16))
        right = self.hasher.verify(password if fits else "", self._nobodys_hash if row is None else row.password)
        return _account(row._mapping) if row is not None and right else None

    def _hash(self, password: str) -> str:
        if len(password) not in PASSWORD_LENGTHS:
            shortest, longest = PASSWORD_LENGTHS[0], PASSWORD_LENGTHS[-1]
            raise AccountError(f"the password has {len(password)} characters; {shortest} to {longest} are allowed")
        return self.hasher.hash(password)

    def _change(self, name: str, values: dict[str, Any], action: str, detail: str = "") -> None:
        with self.database.write() as connection:
            if not connection.execute(update(accounts).where(accounts.c.name == name).values(**values)).rowcount:
                raise self._unknown(name)
            self._log(connection, name, action, detail)

    def _unknown(self, name: str) -> AccountError:
        known = ", ".join(account.name for account in self.all()) or "nobody"
        return AccountError(f"there is no account {name!r}; there is {known}")

    # --- tokens ---
    def add_token(self, name: str, *, user: str, role: Role = "annotator", days: float | None = None) -> str:
        """A new token's text, which is shown this once and not kept.

        Args:
            user: the account it acts as.
            days: until it expires; None never.

        Raises:
            AccountError: the name is taken or not usable, or there is no such user.
        """
        if not NAME.fullmatch(name):
            raise AccountError(f"token name {name!r} is not usable; up to 64 letters, digits and . _ @ - are allowed")
        if self.get(user) is None:
            raise self._unknown(user)
        text = TOKEN_PREFIX + secrets.token_urlsafe(32)
        expires = None if days is None else self.now() + timedelta(days=days)
        row = {"name": name, "digest": _digest(text), "user": user, "role": role, "created": self.now(), "expires": expires}
        try:
            with self.database.write() as connection:
                connection.execute(insert(tokens).values(**row))
                self._log(connection, user, "token added", name)
        except IntegrityError:
            raise AccountError(f"there is already a token {name!r}") from None
        return text

    def all_tokens(self) -> tuple[Token, ...]:
        """By name."""
        columns = [column for column in tokens.c if column.name != "digest"]
        with self.database.read() as connection:
            return tuple(_token(row._mapping) for row in connection.execute(select(*columns).order_by(tokens.c.name)))

    def revoke_token(self, name: str) -> None:
        """Holds from the next request on. Raises AccountError for an unknown token."""
        with self.database.write() as connection:
            user = connection.execute(select(tokens.c.user).where(tokens.c.name == name)).scalar()
            if user is None:
                raise AccountError(f"there is no token {name!r}")
            connection.execute(delete(tokens).where(tokens.c.name == name))
            self._log(connection, user, "token revoked", name)

    def token_bearer(self, text: str) -> Account | None:
        """Whom a token acts as, with the role it gives; None where it is unknown, revoked or expired."""
        query = select(accounts, tokens.c.role.label("token_role"), tokens.c.expires)
        query = query.join(tokens, tokens.c.user == accounts.c.name).where(tokens.c.digest == _digest(text))
        with self.database.read() as connection:
            row = connection.execute(query).first()
        if row is None or (row.expires is not None and row.expires <= self.now()):
            return None
        return _account(row._mapping).model_copy(update={"role": min(row.role, row.token_role, key=ROLES.index)})

    # --- attempts ---
    def count_attempt(self, user: str, address: str) -> float:
        """Count an attempt to log in, before the password is looked at: so attempts made at the same moment count too.

        Returns:
            0 where it may be made, else the seconds until the next one may.
        """
        with self.database.write() as connection:
            connection.execute(delete(attempts).where(attempts.c.started <= self.now() - ATTEMPTS_WINDOW))
        # The address first: one that is refused must not use up the attempts of users.
        return self._count(f"address {address}", ATTEMPTS_PER_ADDRESS) or self._count(f"user {user}", ATTEMPTS_PER_USER)

    def _count(self, source: str, limit: int) -> float:
        here = attempts.c.source == source
        for last_attempt in (False, True):
            try:
                with self.database.write() as connection:
                    more = update(attempts).where(here, attempts.c.count < limit).values(count=attempts.c.count + 1)
                    if connection.execute(more).rowcount:
                        return 0.0
                    started: datetime | None = connection.execute(select(attempts.c.started).where(here)).scalar()
                    if started is not None:
                        return max(1.0, (started + ATTEMPTS_WINDOW - self.now()).total_seconds())
                    connection.execute(insert(attempts).values(source=source, started=self.now(), count=1))
                    return 0.0
            except IntegrityError:  # another server counted its first attempt in between
                if last_attempt:
                    raise
        raise AssertionError("unreachable")

    def forget_attempts(self, user: str) -> None:
        """After a right password; those of the address stay, or one's own account would let one guess at others' for ever."""
        with self.database.write() as connection:
            connection.execute(delete(attempts).where(attempts.c.source == f"user {user}"))

    def _log(self, connection: Connection, user: str, action: str, detail: str = "") -> None:
        connection.execute(insert(events).values(created=self.now(), user=user, action=action, detail=detail))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _account(row: Any) -> Account:
    return Account(name=row["name"], role=row["role"], created=row["created"].isoformat(), session=row["session"])


def _token(row: Any) -> Token:
    expires = row["expires"]
    times = {"created": row["created"].isoformat(), "expires": None if expires is None else expires.isoformat()}
    return Token(name=row["name"], user=row["user"], role=row["role"], **times)
