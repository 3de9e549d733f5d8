"""Where a training loop runs: as a worker of Ray Train, or alone in this process."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from atlas_ray.storage import write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn

STATE = "state.pt"
State = dict[str, Any]  # tensors, numbers and dicts of them: what torch.load takes with weights_only


class Reporter(Protocol):
    """What the loop knows of the place it runs in. The first worker has rank 0."""

    rank: int
    device: "torch.device"

    def prepare(self, network: "nn.Module") -> "nn.Module":
        """The network as this worker calls it; its weights stay those of `network`."""

    def latest(self) -> State | None:
        """The last state that was kept, None before the first."""

    def keep(self, step: int, state: Callable[[], State]) -> None:
        """Called by every worker after the same steps; the first one's state is kept."""

    def agree(self, flag: bool) -> bool:
        """What the first worker says, for all of them."""


class RayReporter:
    """A worker of Ray Train."""

    def __init__(self) -> None:
        import ray.train
        from ray.train.torch import get_device

        self.rank = ray.train.get_context().get_world_rank()
        self.device = get_device()

    def prepare(self, network: "nn.Module") -> "nn.Module":
        from ray.train.torch import prepare_model

        prepared: nn.Module = prepare_model(network)
        return prepared

    def latest(self) -> State | None:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return _load(Path(folder) / STATE, self.device)

    def keep(self, step: int, state: Callable[[], State]) -> None:
        import ray.train
        import torch

        if self.rank:
            ray.train.report({"step": step})
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state(), Path(folder) / STATE)
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def agree(self, flag: bool) -> bool:
        import torch
        import torch.distributed

        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return flag
        said = torch.tensor([flag], dtype=torch.uint8, device=self.device)
        torch.distributed.broadcast(said, 0)
        return bool(said.item())


@dataclass
class FolderReporter:
    """The only worker, in this process.

    Args:
        folder: where the state is kept; it is removed by whoever removes the training's storage.
    """

    folder: Path
    device: "torch.device"
    rank: int = 0

    def prepare(self, network: "nn.Module") -> "nn.Module":
        return network

    def latest(self) -> State | None:
        path = self.folder / STATE
        return _load(path, self.device) if path.exists() else None

    def keep(self, step: int, state: Callable[[], State]) -> None:
        from io import BytesIO

        import torch

        buffer = BytesIO()
        torch.save(state(), buffer)
        write_atomically(self.folder / STATE, buffer.getvalue())

    def agree(self, flag: bool) -> bool:
        return flag


def _load(path: Path, device: "torch.device") -> State:
    import torch

    with path.open("rb") as file:
        state: State = torch.load(file, map_location=device, weights_only=True)
    return state
