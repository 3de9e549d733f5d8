"""What may pass by itself is tried again, with a cap: a share that stalls, a bucket that is away, a disk that is full just now."""

import errno
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import tenacity

Result = TypeVar("Result")
log = logging.getLogger(__name__)
LONGEST_PAUSE_S = 10.0
FULL = {errno.ENOSPC, errno.EDQUOT}
# ENOTEMPTY: two attempts at one case put their folders in place at the same moment.
PASSING = FULL | {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.EIO,
    errno.EMFILE,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENFILE,
    errno.ENOLCK,
    errno.ENOTEMPTY,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


def patiently(call: Callable[[], Result], patience_s: float, passes: Callable[[BaseException], bool] | None = None) -> Result:
    """Call until it succeeds, with growing pauses, for at most `patience_s` and one pause more; then its last error is raised.

    Args:
        call: may be called again after any error that `passes`.
        passes: whether an error may pass by itself; None is `may_pass`.
    """
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(passes or may_pass),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_S),
        stop=tenacity.stop_after_delay(patience_s),
        before_sleep=_tell,
        reraise=True,
    )
    return attempts(call)


def may_pass(error: BaseException) -> bool:
    """Whether trying again makes sense: a broken file stays broken, and so does a missing permission."""
    return any(isinstance(e, ConnectionError | TimeoutError) or _number(e) in PASSING for e in causes(error))


def is_full(error: BaseException) -> bool:
    """Whether a disk, or somebody's share of it, is full."""
    return any(_number(e) in FULL for e in causes(error))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _number(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _tell(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    if state.attempt_number == 1:
        log.warning("%s; it is tried again", (str(error) or type(error).__name__).splitlines()[0])
