"""`python -m ui WORKSPACE_OR_CONFIG`: open the annotation app of a campaign in the browser.

python -m ui CAMPAIGN                                    serve it
python -m ui CAMPAIGN users add|list|role|password|remove
python -m ui CAMPAIGN tokens add|list|revoke
"""

import getpass
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from atlas_ray.annotation.accounts import NAME, AccountError, Accounts
from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.review import Role
from atlas_ray.exceptions import AtlasError, ConfigError
from atlas_ray.redaction import without_passwords
from ui.login import LOOPBACK
from ui.settings import find_campaign
from ui.store import newest_round

Parameters = ParamSpec("Parameters")

LAST_ANSWERS_S = 3  # an open page keeps a connection for ever; Ctrl+C must not wait for it
HELP = """Annotation app of a campaign, and who may use it.

CAMPAIGN is the campaign's folder or its YAML file, and stands before the command:

python -m ui CAMPAIGN [OPTIONS]

python -m ui CAMPAIGN users add NAME

python -m ui CAMPAIGN tokens add NAME --user USER
"""


class CampaignFirst(TyperGroup):
    """`CAMPAIGN users add` rather than `users CAMPAIGN add`; without a command the app is served."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if len(args) > 1 and args[1] in self.commands:
            args = [args[1], args[0], *args[2:]]
        elif args and args[0] not in {"--help", *self.commands}:
            args = ["serve", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(cls=CampaignFirst, help=HELP, add_completion=False, no_args_is_help=True)
users = typer.Typer(help="The people who may log in.", no_args_is_help=True)
tokens = typer.Typer(help="Keys for scripts and 3D Slicer: `Authorization: Bearer TOKEN`.", no_args_is_help=True)
app.add_typer(users, name="users")
app.add_typer(tokens, name="tokens")

Campaign = Annotated[Path, typer.Argument(metavar="CAMPAIGN", help="the campaign's folder, or its YAML file", show_default=False)]
Name = Annotated[str, typer.Argument(help="letters, digits and . _ @ -", show_default=False)]
PasswordFile = Annotated[Path | None, typer.Option(help="file with the password; default: it is asked for", show_default=False)]


def in_one_line(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """An AtlasError ends the command with its message and exit code."""

    @wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except AtlasError as error:
            typer.echo(f"error: {without_passwords(str(error))}", err=True)
            sys.exit(error.exit_code)

    return run


@contextmanager
def accounts_of(campaign: Path) -> Iterator[Accounts]:
    workspace, settings = find_campaign(campaign)
    with open_database(settings.database_url(workspace)) as database:
        yield Accounts(database)


def find_user(campaign: Path, *, host: str, no_auth: bool, user: str | None) -> str | None:
    """Who works without logging in; None where people log in. Raises ConfigError for what would let anybody in, or nobody."""
    if no_auth:
        if host not in LOOPBACK:
            raise ConfigError(f"--no-auth with --host {host} lets everybody on the network in; it is for 127.0.0.1")
        name = user or getpass.getuser()
        if not NAME.fullmatch(name):
            raise ConfigError(f"user name {name!r} is not usable; up to 64 letters, digits and . _ @ - are allowed")
        return name
    if user is not None:
        raise ConfigError("--user is for --no-auth; with accounts everybody logs in under their own name")
    with accounts_of(campaign) as accounts:
        if not accounts.all():
            first = f"python -m ui {campaign} users add NAME --role admin"
            raise ConfigError(f"nobody may log in yet; add the first account with `{first}`, or work alone with --no-auth")
    return None


@app.command()
@in_one_line
def serve(
    campaign: Campaign,
    round: Annotated[int | None, typer.Option(help="default: the newest one with a queue", show_default=False)] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 serves the network")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="no accounts: everybody on this machine is the one user")] = False,
    user: Annotated[str | None, typer.Option(help="with --no-auth: who; default: your login name", show_default=False)] = None,
    organs: Annotated[str | None, typer.Option(help="organ set, if there is no campaign.yaml", show_default=False)] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM file: serve https", show_default=False)] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key", show_default=False)] = None,
) -> None:
    """Open the annotation app of a campaign."""
    workspace, settings = find_campaign(campaign)
    organ_set = settings.load_organs(organs)
    alone = find_user(campaign, host=host, no_auth=no_auth, user=user)
    shown = round if round is not None else newest_round(workspace)
    from ui.app import create_app

    web = create_app(
        workspace.root,
        round=shown,
        organs=organ_set,
        settings=settings,
        user=alone,
    )
    scheme = "https" if certificate else "http"
    who = f"no login: everybody on this machine is {alone}" if alone else "people log in with their accounts"
    typer.echo(f"atlas_ray round {shown}: {scheme}://{host}:{port}/  ({who}; Ctrl+C stops)")
    if host not in LOOPBACK and not certificate:
        typer.echo("passwords travel unencrypted: give --certificate and --key, or put a proxy with https in front", err=True)
    import uvicorn

    uvicorn.run(
        web,
        host=host,
        port=port,
        log_level="warning",
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_graceful_shutdown=LAST_ANSWERS_S,
    )


# --- users ------------------------------------------------------------------------------------------------------------


def read_password(file: Path | None) -> str:
    """Never from an argument: those are in the shell's history and the list of processes. Raises AccountError."""
    if file is None:
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    if not file.is_file():
        raise AccountError(f"--password-file {file} does not exist")
    return file.read_text().rstrip("\r\n")


@users.command("add")
@in_one_line
def add_user(ctx: typer.Context, name: Name, role: Role = "annotator", password_file: PasswordFile = None) -> None:
    """Add somebody. Reviewers may also accept and send back; admins may everything."""
    with accounts_of(ctx.obj) as accounts:
        accounts.add(name, read_password(password_file), role)
    typer.echo(f"{name} may log in as {role}")


@users.command("list")
@in_one_line
def list_users(ctx: typer.Context) -> None:
    """Everybody who may log in."""
    with accounts_of(ctx.obj) as accounts:
        show(["name", "role", "since"], [[account.name, account.role, account.created[:10]] for account in accounts.all()])


@users.command("role")
@in_one_line
def change_role(ctx: typer.Context, name: Name, role: Role) -> None:
    """Change what somebody may do, from the next click on."""
    with accounts_of(ctx.obj) as accounts:
        accounts.set_role(name, role)
    typer.echo(f"{name} is {role}")


@users.command("password")
@in_one_line
def change_password(ctx: typer.Context, name: Name, password_file: PasswordFile = None) -> None:
    """Give somebody a new password and log them out everywhere."""
    with accounts_of(ctx.obj) as accounts:
        accounts.set_password(name, read_password(password_file))
    typer.echo(f"{name} has a new password")


@users.command("remove")
@in_one_line
def remove_user(ctx: typer.Context, name: Name) -> None:
    """Remove an account and its tokens; what was annotated stays."""
    with accounts_of(ctx.obj) as accounts:
        accounts.remove(name)
    typer.echo(f"{name} may no longer log in")


# --- tokens -----------------------------------------------------------------------------------------------------------


@tokens.command("add")
@in_one_line
def add_token(
    ctx: typer.Context,
    name: Name,
    user: Annotated[str, typer.Option(help="the account it acts as", show_default=False)],
    role: Annotated[Role, typer.Option(help="at most the user's own")] = "annotator",
    days: Annotated[float | None, typer.Option(min=0, help="until it expires; default: never", show_default=False)] = None,
) -> None:
    """Print a new token, this once: only its digest is kept."""
    with accounts_of(ctx.obj) as accounts:
        typer.echo(accounts.add_token(name, user=user, role=role, days=days))


@tokens.command("list")
@in_one_line
def list_tokens(ctx: typer.Context) -> None:
    """Every token, without its text."""
    with accounts_of(ctx.obj) as accounts:
        rows = [[t.name, t.user, t.role, t.created[:10], (t.expires or "never")[:10]] for t in accounts.all_tokens()]
    show(["name", "user", "role", "since", "expires"], rows)


@tokens.command("revoke")
@in_one_line
def revoke_token(ctx: typer.Context, name: Name) -> None:
    """End a token, from its next request on."""
    with accounts_of(ctx.obj) as accounts:
        accounts.revoke_token(name)
    typer.echo(f"token {name} is revoked")


@users.callback()
@tokens.callback()
def remember_campaign(ctx: typer.Context, campaign: Campaign) -> None:
    ctx.obj = campaign


def show(headers: list[str], rows: list[list[str]]) -> None:
    table = Table(*headers, box=None)
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)


if __name__ == "__main__":
    app(prog_name="python -m ui")
