"""Accounts, tokens and attempts in the database."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from annotation_helpers import Clock
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import select

from atlas_ray.annotation import accounts as module
from atlas_ray.annotation.accounts import ATTEMPTS_PER_ADDRESS, ATTEMPTS_PER_USER, AccountError, Accounts
from atlas_ray.annotation.database import Database, open_database
from atlas_ray.annotation.queue import Queue

CHEAP = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))
PASSWORD = "correct horse"


@pytest.fixture
def accounts(database: Database, clock: Clock) -> Accounts:
    return Accounts(database, hasher=CHEAP, now=clock)


@pytest.fixture
def other_server(url: str, database: Database, clock: Clock) -> Iterator[Accounts]:
    """The same database, opened by somebody else."""
    with open_database(url) as opened:
        yield Accounts(opened, hasher=CHEAP, now=clock)


# --- accounts ---


def test_only_the_right_password_of_the_right_user_holds(accounts: Accounts, other_server: Accounts) -> None:
    accounts.add("anna", PASSWORD, "reviewer")
    accounts.add("bob", "another one")
    found = other_server.check("anna", PASSWORD)
    assert found is not None
    assert (found.name, found.role, found.created) == ("anna", "reviewer", "2026-01-05T08:00:00+00:00")
    assert accounts.check("anna", "another one") is None
    assert accounts.check("anna", "") is None
    assert accounts.check("nobody", PASSWORD) is None
    assert [(account.name, account.role) for account in accounts.all()] == [("anna", "reviewer"), ("bob", "annotator")]


def test_a_password_is_kept_as_argon2id(database: Database) -> None:
    accounts = Accounts(database)
    accounts.add("anna", PASSWORD)
    with database.read() as connection:
        kept = connection.execute(select(module.accounts.c.password)).scalar()
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,")
    assert PASSWORD not in kept
    assert accounts.check("anna", PASSWORD) is not None


def test_an_unknown_name_takes_as_long_as_a_wrong_password(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what takes the time: each verifies one hash of the same cost."""
    verified: list[str] = []
    monkeypatch.setattr(accounts.hasher, "verify", lambda password, kept: verified.append(kept) or False)
    accounts.add("anna", PASSWORD)
    accounts.check("anna", "wrong password")
    accounts.check("nobody", "wrong password")
    assert [kept.split("$")[1:4] for kept in verified] == [["argon2id", "v=19", "m=8,t=1,p=1"]] * 2


@pytest.mark.parametrize("name", ["", "a b", "../etc", "anna;", ".anna", "a" * 65, "ännä"])
def test_unusable_names(accounts: Accounts, name: str) -> None:
    with pytest.raises(AccountError, match="not usable; up to 64 letters"):
        accounts.add(name, PASSWORD)


@pytest.mark.parametrize("password", ["", "seven77", "x" * 1025])
def test_unusable_passwords(accounts: Accounts, password: str) -> None:
    with pytest.raises(AccountError, match=f"{len(password)} characters; 8 to 1024"):
        accounts.add("anna", password)


def test_names_are_taken_once_and_must_exist(accounts: Accounts) -> None:
    accounts.add("anna", PASSWORD)
    with pytest.raises(AccountError, match="already an account 'anna'"):
        accounts.add("anna", PASSWORD)
    for change in (
        lambda: accounts.remove("bob"),
        lambda: accounts.set_role("bob", "admin"),
        lambda: accounts.set_password("bob", PASSWORD),
        lambda: accounts.add_token("script", user="bob"),
    ):
        with pytest.raises(AccountError, match="no account 'bob'; there is anna"):
            change()


def test_a_new_password_ends_what_was_signed_before(accounts: Accounts) -> None:
    before = accounts.add("anna", PASSWORD).session
    accounts.set_password("anna", "battery staple")
    after = accounts.check("anna", "battery staple")
    assert after is not None
    assert after.session != before
    assert accounts.check("anna", PASSWORD) is None
    accounts.end_sessions("anna")
    assert accounts.get("anna").session not in (before, after.session)


def test_all_servers_sign_with_one_random_key(accounts: Accounts, other_server: Accounts) -> None:
    assert accounts.signing_key() == other_server.signing_key()
    assert len(bytes.fromhex(accounts.signing_key())) == 32


def test_a_database_from_before_there_were_accounts_gets_them(url: str, accounts: Accounts) -> None:
    with accounts.database.write() as connection:
        for table in (module.accounts, module.tokens, module.attempts, module.signing_keys):
            table.drop(connection)
    with open_database(url) as opened:
        again = Accounts(opened, hasher=CHEAP)
        again.add("anna", PASSWORD)
        assert again.check("anna", PASSWORD) is not None
        assert again.signing_key()


def test_changes_leave_events(accounts: Accounts) -> None:
    accounts.add("anna", PASSWORD)
    accounts.set_role("anna", "reviewer")
    accounts.add_token("script", user="anna")
    accounts.revoke_token("script")
    accounts.remove("anna")
    events = [(event.user, event.action, event.detail) for event in Queue(accounts.database).events()]
    assert events == [
        ("anna", "account added", "annotator"),
        ("anna", "role changed", "reviewer"),
        ("anna", "token added", "script"),
        ("anna", "token revoked", "script"),
        ("anna", "account removed", ""),
    ]


# --- tokens ---


def test_a_token_acts_as_its_user_and_only_its_digest_is_kept(accounts: Accounts, database: Database) -> None:
    accounts.add("anna", PASSWORD)
    text = accounts.add_token("script", user="anna")
    assert accounts.token_bearer(text).name == "anna"
    assert accounts.token_bearer(text + "x") is None
    assert text != accounts.add_token("other", user="anna")
    with database.read() as connection:
        kept = connection.execute(select(module.tokens).where(module.tokens.c.name == "script")).one()
    assert kept.digest == hashlib.sha256(text.encode()).hexdigest()
    assert text not in map(str, kept)


@pytest.mark.parametrize(
    ("users_role", "tokens_role", "role"),
    [("admin", "annotator", "annotator"), ("annotator", "admin", "annotator"), ("reviewer", "reviewer", "reviewer")],
)
def test_a_token_may_do_what_both_it_and_its_user_may(accounts: Accounts, users_role, tokens_role, role) -> None:
    accounts.add("anna", PASSWORD, users_role)
    assert accounts.token_bearer(accounts.add_token("script", user="anna", role=tokens_role)).role == role


def test_tokens_end(accounts: Accounts, clock: Clock) -> None:
    accounts.add("anna", PASSWORD)
    texts = {name: accounts.add_token(name, user="anna", days=days) for name, days in (("short", 1), ("long", None), ("bad", None))}
    assert [(token.name, token.expires) for token in accounts.all_tokens()] == [
        ("bad", None), ("long", None), ("short", "2026-01-06T08:00:00+00:00"),
    ]  # fmt: skip
    accounts.revoke_token("bad")
    clock.pass_minutes(24 * 60)
    assert {name for name, text in texts.items() if accounts.token_bearer(text)} == {"long"}
    accounts.remove("anna")
    assert accounts.token_bearer(texts["long"]) is None
    assert accounts.all_tokens() == ()
    with pytest.raises(AccountError, match="no token 'bad'"):
        accounts.revoke_token("bad")


# --- attempts ---


def test_a_users_attempts_are_counted_over_all_servers_and_addresses(accounts: Accounts, other_server: Accounts, clock) -> None:
    for n in range(ATTEMPTS_PER_USER):
        assert (accounts, other_server)[n % 2].count_attempt("anna", f"10.0.0.{n}") == 0
    clock.pass_minutes(2)
    assert other_server.count_attempt("anna", "10.0.0.99") == 3 * 60
    assert accounts.count_attempt("bob", "10.0.0.99") == 0
    clock.pass_minutes(3)
    assert accounts.count_attempt("anna", "10.0.0.99") == 0


def test_attempts_at_the_same_moment_are_counted_one_by_one(accounts: Accounts) -> None:
    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(lambda n: accounts.count_attempt("anna", f"10.0.0.{n}"), range(ATTEMPTS_PER_USER + 6)))
    assert sorted(wait == 0 for wait in waits) == [False] * 6 + [True] * ATTEMPTS_PER_USER


def test_an_address_has_attempts_of_its_own(accounts: Accounts) -> None:
    for n in range(ATTEMPTS_PER_ADDRESS):
        assert accounts.count_attempt(f"user{n}", "10.0.0.1") == 0
    assert accounts.count_attempt("anna", "10.0.0.1") == 5 * 60
    for _ in range(ATTEMPTS_PER_USER):  # the refused one has used up none of hers
        assert accounts.count_attempt("anna", "10.0.0.2") == 0


def test_a_right_password_clears_the_user_but_not_the_address(accounts: Accounts) -> None:
    for _ in range(ATTEMPTS_PER_ADDRESS):
        assert accounts.count_attempt("anna", "10.0.0.1") == 0
        accounts.forget_attempts("anna")
    assert accounts.count_attempt("anna", "10.0.0.1") > 0


def test_old_sources_are_dropped(accounts: Accounts, database: Database, clock: Clock) -> None:
    for n in range(5):
        accounts.count_attempt(f"user{n}", "10.0.0.1")
    clock.pass_minutes(6)
    accounts.count_attempt("anna", "10.0.0.2")
    with database.read() as connection:
        assert set(connection.execute(select(module.attempts.c.source)).scalars()) == {"user anna", "address 10.0.0.2"}
