"""Sending a job to a Ray cluster's job server.

The checkout travels with the job, data never does: images, workspace and tokens stay where they are, so the workspace must be
storage the cluster shares. The campaign's configuration is resolved here, with absolute paths, and left in the workspace.
"""

import asyncio
import hashlib
import itertools
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from atlas_ray.config import Campaign, dump_config
from atlas_ray.data.sources import DatasetSource
from atlas_ray.exceptions import AtlasError, ConfigError
from atlas_ray.organs import CONFIGS
from atlas_ray.redaction import without_passwords
from atlas_ray.schema import Schema
from atlas_ray.storage import write_atomically

CHECKOUT = CONFIGS.parent
VERBS = ("ingest", "train", "predict", "prioritize", "merge", "promote", "evaluate", "run_round", "simulate", "export")
WITHOUT_ROUND = ("ingest", "simulate")
WITH_WORDS = ("evaluate",)  # what they do is said by a word: "evaluate dice"
EXCLUDES = (  # as in .gitignore; nothing here is needed to run a job, and some of it must not leave this machine
    ".git", ".venv", ".env", ".ci", "__pycache__",
    ".pytest_cache", ".mypy_cache", ".ruff_cache", ".import_linter_cache", "*.egg-info",
    "/workspaces", "/screenshots", "/build", "/tests", "/infra", "/benchmarks",
    "*.nii", "*.nii.gz", "*.dcm", "*.pt", "*.npz", "*.db", "auth_token", "*.token",
)  # fmt: skip
POLL_S = 0.5
START_S = 60.0


class Submission(Schema):
    """A job as it is sent.

    Args:
        stem: of the submission id; the first free number comes after it.
        files: path in the workspace -> text that must be there: the resolved configuration, and an organ set of the user's own.
    """

    verb: str
    stem: str
    entrypoint: str
    files: dict[str, str]


def plan_submission(campaign: Campaign, verb: str, *, round_index: int | None = None, extra: Sequence[str] = ()) -> Submission:
    """What would be sent: `python -m jobs.VERB` on the resolved configuration. Changes nothing.

    Args:
        verb: the job, with its word where it has words ("evaluate dice").
        round_index: passed on where given.
        extra: further arguments of that job.

    Raises:
        ConfigError: no such job, one that has no round, or an argument with a password.
    """
    name, *words = verb.split() or [""]
    if name not in VERBS or (words and name not in WITH_WORDS):
        raise ConfigError(f"no job {verb!r}; allowed are {', '.join(VERBS)}")
    if name in WITH_WORDS and len(words) != 1:
        raise ConfigError(f"jobs.{name} needs one word that says what to do; `python -m jobs.{name} --help` lists them")
    if round_index is not None and name in WITHOUT_ROUND:
        raise ConfigError(f"jobs.{name} takes no --round")
    campaign, files = _self_contained(campaign)
    text = dump_config(campaign)
    config = _submitted(campaign, "campaign", text)
    round_arguments = [] if round_index is None else ["--round", str(round_index)]
    if with_password := [argument for argument in extra if without_passwords(argument) != argument]:
        raise ConfigError(
            f"{without_passwords(with_password[0])}: the job server shows a job's command to everybody who may ask it; "
            "leave the password out, and give it to the cluster's nodes (infra/README.md)"
        )
    return Submission(
        verb=verb,
        stem=f"{campaign.name}-{'-'.join([name, *words])}-r{round_index or 0}",
        entrypoint=shlex.join(["python", "-m", f"jobs.{name}", *words, config, *round_arguments, *extra]),
        files={**files, config: text},
    )


def _self_contained(campaign: Campaign) -> tuple[Campaign, dict[str, str]]:
    """The campaign without paths that mean something only on this machine or in this folder, and the files that go along."""
    update: dict[str, Any] = {"data_root": campaign.data_root or str(Path.cwd())}
    update["datasets"] = tuple(
        d.resolve() if isinstance(d, DatasetSource) and d.dataset.endswith((".yaml", ".yml")) else d for d in campaign.datasets
    )
    files = {}
    if campaign.organs.endswith((".yaml", ".yml")):
        text = Path(campaign.organs).read_text()
        update["organs"] = _submitted(campaign, "organs", text)
        files[update["organs"]] = text
    return campaign.model_copy(update=update), files


def _submitted(campaign: Campaign, what: str, text: str) -> str:
    """Named by its content: two submissions never write two texts to one place."""
    name = f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    return str(campaign.open_workspace().root / "submitted" / name)


class JobServer:
    """A cluster's job server. Every method raises AtlasError in one line where it does not answer or refuses.

    Args:
        address: such as "http://127.0.0.1:8265".
    """

    def __init__(self, address: str) -> None:
        import logging

        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.WARNING)  # its packaging lists every ignored file

        self.address = address
        self._client: Any = self._asked(lambda: JobSubmissionClient(address))

    def submit(self, submission: Submission) -> str:
        """Send the job. Returns its submission id, `<stem>-<n>` with the first n that is free."""
        for path, text in submission.files.items():
            write_atomically(Path(path), text)
        taken = {job.submission_id for job in self._asked(self._client.list_jobs)}
        free = (f"{submission.stem}-{n}" for n in itertools.count(1))
        submission_id = next(name for name in free if name not in taken)
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._asked(lambda: self._send(submission, submission_id))
                return submission_id
            except AtlasError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(2)  # a head that has just started answers before it can run jobs

    def _send(self, submission: Submission, submission_id: str) -> None:
        self._client.submit_job(
            entrypoint=submission.entrypoint,
            submission_id=submission_id,
            runtime_env={"working_dir": str(CHECKOUT), "excludes": list(EXCLUDES), "env_vars": {"PYTHONUNBUFFERED": "1"}},
            metadata={"verb": submission.verb},
        )

    def follow(self, submission_id: str, write: Callable[[str], object]) -> None:
        """Hand the job's log on until it ends. Raises AtlasError when it did not succeed."""
        self._asked(lambda: asyncio.run(self._tail(submission_id, write)))
        while not (status := self._asked(lambda: self._client.get_job_status(submission_id))).is_terminal():
            time.sleep(POLL_S)
        if status.value != "SUCCEEDED":
            message = (self._asked(lambda: self._client.get_job_info(submission_id)).message or "").strip().splitlines()
            raise AtlasError(f"job {submission_id} ended {status.value}: {message[0] if message else 'see its log'}")

    async def _tail(self, submission_id: str, write: Callable[[str], object]) -> None:
        async for text in self._client.tail_job_logs(submission_id):
            write(text)

    def _asked(self, question: Callable[[], Any]) -> Any:
        from ray.exceptions import AuthenticationError

        try:
            return question()
        except AuthenticationError as error:
            raise AtlasError(
                f"{self.address} wants a token it did not get; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's "
                f"token file ({_first_line(error)})"
            ) from error
        except ConnectionError as error:  # Ray's own and the socket's
            raise AtlasError(
                f"no Ray job server answers at {self.address} ({_first_line(error)}); start one with `ray start --head`, "
                "or give the dashboard's address with --address"
            ) from error
        except (RuntimeError, OSError) as error:  # what the server refuses; requests' errors are OSErrors
            raise AtlasError(f"{self.address}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
