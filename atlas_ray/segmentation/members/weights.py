"""Weights that others saved: read without running what a pickle may hold, and fitted to the last key.

A checkpoint of another project is a pickle. `weights_only` unpickles tensors and plain values; nnU-Net's also hold numpy scalars,
which are allowed there and nothing else.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_ray.exceptions import CheckpointError
from atlas_ray.schema import Schema
from atlas_ray.workspace import file_sha256

if TYPE_CHECKING:
    from torch import Tensor, nn

State = dict[str, "Tensor"]
SHOWN = 8  # keys that a message lists


def read_pickle(path: Path, *, with_numpy_scalars: bool = False) -> Any:
    """A checkpoint's content, on the CPU.

    Raises:
        CheckpointError: missing, damaged, or it holds objects other than tensors and plain values.
    """
    import torch

    require_file(path)
    allowed = torch.serialization.safe_globals(_numpy_scalars()) if with_numpy_scalars else nullcontext()
    try:
        with allowed:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, KeyError, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged, or holds more than tensors and plain values: {reason}") from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _numpy_scalars() -> list[Any]:
    """What a pickled numpy scalar is made of; numpy before 2.0 called it by another module."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]


def require_file(path: Path) -> None:
    """Raise CheckpointError where there is no file."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; a member's weights must lie where its `path` says")


def section(content: Any, key: str, path: Path) -> State:
    """The state dict under a container's key, or the content where that is one itself.

    Raises:
        CheckpointError: there is none.
    """
    import torch

    state = content.get(key, content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path} has no tensors under {key!r}; it holds {found}")
    return dict(state)


def without(state: State, *prefixes: str) -> State:
    """The same tensors without these prefixes, each taken off where a key has it, in this order."""
    for prefix in prefixes:
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def fit(network: "nn.Module", state: State, path: Path, *, hint: str = "") -> None:
    """Load every tensor by name.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another shape; names file and keys.
    """
    own = network.state_dict()
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
            for key in own
            if key in state and own[key].shape != state[key].shape
        ],
    }
    if any(problems.values()):
        parts = [f"{len(keys)} {what}: {listed(keys)}" for what, keys in problems.items() if keys]
        matched = len(own) - len(problems["missing"]) - len(problems["of another shape"])
        raise CheckpointError(f"{path} does not fit its network ({matched} of {len(own)} tensors match): {'; '.join(parts)}{hint}")
    network.load_state_dict(state)


def listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def identity(files: Iterable[Path], settings: Schema) -> str:
    """sha256 over what decides a member's predictions: its files' bytes and its settings, but not where it lies or its name."""
    digest = hashlib.sha256(settings.model_dump_json(exclude={"name", "path", "sha256"}).encode())
    for path in files:
        require_file(path)
        digest.update(file_sha256(path).encode())
    return digest.hexdigest()
