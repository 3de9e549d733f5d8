"""Starting Ray the same way everywhere: on the cluster the job runs in, else on this machine."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


_without_ray = ContextVar("without_ray", default=False)


@contextmanager
def in_process() -> Iterator[None]:
    """Inside, cases go through the same functions one after the other, in this process and without Ray: for a few small ones."""
    token = _without_ray.set(True)
    try:
        yield
    finally:
        _without_ray.reset(token)


def runs_in_process() -> bool:
    return _without_ray.get()


def ray_cpus() -> float:
    """CPUs of the cluster in use; one where there is none."""
    if runs_in_process():
        return 1.0
    import ray

    return float(ray.cluster_resources().get("CPU", 1.0))


class Terminated(BaseException):
    """This process was told to end: every `with` block on the way out is left in good order, the lock's too."""


def end_when_told() -> None:
    """From here on SIGTERM, by which schedulers announce that a machine is taken away, raises Terminated in the main thread."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough; a second must not interrupt the way out
        raise Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


@contextmanager
def ray_session() -> Iterator[None]:
    """Join the cluster named by RAY_ADDRESS (set inside a Ray job), or start one on this machine and stop it afterwards."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    if runs_in_process():
        yield
        return
    import ray

    if ray.is_initialized():
        yield
        return
    told = signal.getsignal(signal.SIGTERM)
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # loopback only: ray.init(address="local") listens on 127.0.0.1
        # Logical CPUs: a laptop with two cores must still fit a reader, an actor and a writer; the threads are set explicitly.
        ray.init(
            address="local",
            num_cpus=max(4, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,  # training tells its progress through a file, everything else through result rows
            logging_level=logging.WARNING,
            _node_ip_address="127.0.0.1",
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, told)  # Ray has put a handler of its own there
    try:
        yield
    finally:
        ray.shutdown()
