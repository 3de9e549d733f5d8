"""What every job shares: arguments, configuration, logging, progress, exit codes.

Exit codes: 0 done, 1 an AtlasError or a disk that cannot be written (one line on stderr), 2 a configuration or usage error, 130
interrupted, 143 told to end (SIGTERM: a machine that is taken away).
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atlas_ray.cluster.session import Terminated, end_when_told
from atlas_ray.config import Campaign, dump_config, load_config
from atlas_ray.exceptions import AtlasError
from atlas_ray.lock import holder_of
from atlas_ray.patience import may_pass
from atlas_ray.progress import Advance
from atlas_ray.progress import progress as bar
from atlas_ray.redaction import RedactingFormatter, without_passwords
from atlas_ray.storage import write_atomically

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A campaign's YAML file, or the name of one in configs/.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a knob, such as training.steps=200.")
]
RoundOption = Annotated[int, typer.Option("--round", min=0, help="Round number; round 0 is the first.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print cases, resources and outputs, and change nothing.")]
RetryFailedOption = Annotated[bool, typer.Option("--retry-failed", help="Give cases that were set aside another try.")]
SplitOption = Annotated[
    list[str] | None, typer.Option("--split", help="Only cases of this split: train, pool, holdout. Repeatable.")
]

TELEMETRY_OFF = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "GRADIO_ANALYTICS_ENABLED": "False"}

console = Console(stderr=True, highlight=False)
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)  # a log file has no width to fit


def job_with_words(usage: str | None) -> typer.Typer:
    """For a job that does several things, each under a word: `python -m jobs.JOB WORD CONFIG`. Add each with `.command()`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=usage, rich_markup_mode=None)
    app.callback()(lambda: None)  # typer leaves the word out where there is only one
    return app


def run(command: Callable[..., None] | typer.Typer) -> None:
    """Run a job's function, or its words, as a command line. Called under `if __name__ == "__main__"`."""
    os.environ.update({key: value for key, value in TELEMETRY_OFF.items() if key not in os.environ})
    logs = logging.StreamHandler()
    logs.setFormatter(RedactingFormatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[logs])
    if isinstance(command, typer.Typer):
        app = command
    else:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(command)
    end_when_told()
    try:
        app()
    except AtlasError as error:
        console.print(f"error: {without_passwords(str(error))}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if not may_pass(error):
            raise
        message = without_passwords(f"error: {error}; what is finished is kept, run the same command to go on")
        console.print(message, style="bold red", markup=False, soft_wrap=True)
        sys.exit(1)
    except Terminated:
        console.print("told to end (SIGTERM); what is finished is kept, run the same command to go on")
        sys.exit(143)
    except KeyboardInterrupt:
        console.print("interrupted; what is finished is kept, run the same command to go on")
        sys.exit(130)


def open_campaign(config: str, overrides: Sequence[str] | None, *, dry_run: bool = False) -> Campaign:
    """Load the configuration and leave it, resolved, in the workspace for the app; not while another job is at work."""
    campaign = load_config(config, overrides or ())
    if not dry_run and holder_of(campaign.open_workspace()) is None:
        write_atomically(campaign.open_workspace().config, dump_config(campaign))
    return campaign


def progress(what: str, total: int) -> AbstractContextManager[Advance]:
    """A bar on a terminal, lines in a log. Yields the function that counts one more."""
    return bar(what, total, console)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout. The title is a line of its own: Rich would wrap it at the width of a narrow table."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))  # a path or message may hold what looks like markup
    out.print(title, style="italic", markup=False)
    out.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
