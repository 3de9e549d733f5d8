"""What may pass is tried again, what stays broken is not, and there is an end to it."""

import errno
from collections.abc import Callable

import pytest

from atlas_ray.exceptions import CaseError
from atlas_ray.patience import is_full, may_pass, patiently


def fails(error: BaseException, times: int) -> tuple[Callable[[], str], list[int]]:
    """A function that raises so often before it answers, and the list of its calls."""
    calls: list[int] = []

    def call() -> str:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        return "done"

    return call, calls


def raised_from(cause: BaseException) -> CaseError:
    error = CaseError("ct.nii.gz cannot be read")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
        TimeoutError(),
        ConnectionResetError(),
        raised_from(OSError(errno.ESTALE, "Stale file handle")),
    ],
    ids=repr,
)
def test_what_may_pass_is_tried_again(error: BaseException) -> None:
    call, calls = fails(error, 2)
    assert patiently(call, 60) == "done"
    assert len(calls) == 3


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        EOFError(),
        raised_from(OSError("Not a gzipped file")),
        ValueError("ours"),
    ],
    ids=repr,
)
def test_what_stays_broken_is_raised_at_once(error: BaseException) -> None:
    call, calls = fails(error, 1)
    with pytest.raises(type(error)):
        patiently(call, 60)
    assert len(calls) == 1


def test_patience_ends_with_the_last_error() -> None:
    call, calls = fails(OSError(errno.ENOSPC, "No space left on device"), 1000)
    with pytest.raises(OSError, match="No space left"):
        patiently(call, 0.3)
    assert len(calls) >= 2


def test_a_share_of_a_disk_may_be_full_too() -> None:
    assert is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert is_full(raised_from(OSError(errno.ENOSPC, "No space left on device")))
    assert not is_full(OSError(errno.EIO, "Input/output error"))
    assert not may_pass(OSError("without a number"))
