"""One function over many cases as Ray tasks, a bounded number at once."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from atlas_ray.cluster.session import runs_in_process

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_cases(function: Callable[[Item], Result], items: Iterable[Item], *, num_cpus: float = 1.0) -> Iterator[Result]:
    """Like the built-in map, but spread over the cluster; results in the order of the items.

    Args:
        function: picklable (a module's function, or a partial of one); returns something small and catches what a bad case
            may raise.
        items: small and picklable.
        num_cpus: each task's request.
    """
    if runs_in_process():
        yield from map(function, items)
        return
    import ray

    task: Any = ray.remote(num_cpus=num_cpus)(_call)
    most = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    waiting: list[Any] = []
    for item in items:
        waiting.append(task.remote(function, item))
        if len(waiting) >= most:
            yield ray.get(waiting.pop(0))
    while waiting:
        yield ray.get(waiting.pop(0))


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)
