"""Checkpoints: weights plus everything needed to use them again (organ names, architecture knobs, preprocessing, provenance)."""

import hashlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from atlas_ray.exceptions import CheckpointError
from atlas_ray.schema import Schema, Triple
from atlas_ray.segmentation.architectures import Architecture
from atlas_ray.storage import write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = "atlas_ray.checkpoint/1"


class Provenance(Schema):
    """Where weights come from.

    Args:
        round: the round whose annotation they were trained on; 0 for the first training.
        parent: sha256 of the checkpoint fine-tuned, None when trained from scratch.
        cases: how many cases it was trained on.
        data_key: hash over case ids and labels used.
        steps, seed: of the training.
        created: ISO 8601, UTC.
        versions: package -> version.
    """

    round: int
    parent: str | None = None
    cases: int
    data_key: str
    steps: int
    seed: int
    created: str
    versions: dict[str, str] = Field(default_factory=dict)


class CheckpointHeader(Schema):
    """Everything but the weights."""

    format: str = FORMAT
    architecture: Architecture
    organs: tuple[str, ...]
    spacing: Triple
    window_hu: tuple[float, float]
    provenance: Provenance


class LoadReport(Schema):
    """What became of every tensor, by name.

    Args:
        matched: loaded as they are.
        missing: in the network, not in the checkpoint; stay at their random start.
        unexpected: in the checkpoint, not in the network.
        mismatched: in both, with different shapes; stay random.
        fresh_organs: organs whose output channel starts fresh, because the checkpoint never knew them.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    fresh_organs: tuple[str, ...] = ()

    @property
    def match_ratio(self) -> float:
        """Share of the network's tensors that were loaded."""
        return len(self.matched) / max(1, len(self.matched) + len(self.missing) + len(self.mismatched))

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} tensors matched"]
        for what in ("missing", "unexpected", "mismatched", "fresh_organs"):
            names = getattr(self, what)
            if names:
                shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                parts.append(f"{len(names)} {what.replace('_', ' ')}: {shown}")
        return "; ".join(parts)


def save_checkpoint(path: Path, header: CheckpointHeader, state: dict[str, "Tensor"]) -> str:
    """Write header and weights as one file, atomically. Returns the file's sha256."""
    import torch

    buffer = BytesIO()
    torch.save({"header": header.model_dump_json(), "state": state}, buffer)
    data = buffer.getvalue()
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def read_checkpoint(path: Path) -> tuple[CheckpointHeader, dict[str, "Tensor"], str]:
    """Header, weights and sha256 of a checkpoint. Only tensors and plain values are unpickled (`weights_only`).

    Raises:
        CheckpointError: missing, damaged or written by something else.
    """
    import torch

    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    try:
        content: Any = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
        header = CheckpointHeader.model_validate_json(content["header"])
        return header, content["state"], hashlib.sha256(data).hexdigest()
    except ValidationError as error:
        raise CheckpointError(f"checkpoint {path} has a header this version does not know: {error.errors()[0]}") from error
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, KeyError, ... for a damaged file
        raise CheckpointError(f"checkpoint {path} is damaged or not ours ({FORMAT}): {error}") from error


def load_into(
    network: "nn.Module",
    architecture: Architecture,
    organs: tuple[str, ...],
    header: CheckpointHeader,
    state: dict[str, "Tensor"],
    *,
    min_match: float = 0.9,
) -> LoadReport:
    """Copy weights into a network by tensor name, and its output channels by organ name.

    Args:
        network: built from `architecture` for `organs`.
        header, state: as `read_checkpoint` gave them; its organs may be other ones or in another order.
        min_match: smallest accepted share of the network's tensors.

    Raises:
        CheckpointError: fewer tensors match.
    """
    own = network.state_dict()
    fresh = tuple(name for name in organs if name not in header.organs)
    matched, mismatched = [], []
    for key, tensor in state.items():
        if key not in own:
            continue
        fitted = _by_organ(tensor, own[key], organs, header.organs) if key.startswith(architecture.head_prefixes) else tensor
        if fitted.shape == own[key].shape:
            own[key] = fitted
            matched.append(key)
        else:
            mismatched.append(key)
    report = LoadReport(
        matched=tuple(matched),
        missing=tuple(key for key in own if key not in state),
        unexpected=tuple(key for key in state if key not in own),
        mismatched=tuple(mismatched),
        fresh_organs=fresh,
    )
    if report.match_ratio < min_match:
        raise CheckpointError(
            f"only {report.match_ratio:.0%} of the {architecture.architecture} tensors match, {min_match:.0%} are needed ({report})"
        )
    network.load_state_dict(own)
    return report


def _by_organ(tensor: "Tensor", start: "Tensor", organs: tuple[str, ...], stored: tuple[str, ...]) -> "Tensor":
    """Rows of an output layer in this network's organ order; an organ the checkpoint lacks keeps its random start."""
    if tensor.shape[0] != len(stored) or tensor.shape[1:] != start.shape[1:]:
        return tensor
    fitted = start.clone()
    for channel, name in enumerate(organs):
        if name in stored:
            fitted[channel] = tensor[stored.index(name)]
    return fitted


def load_network(path: Path, organs: tuple[str, ...]) -> tuple["nn.Module", CheckpointHeader, str, LoadReport]:
    """The network of a checkpoint with output channels for `organs`, its header, its sha256 and the report."""
    header, state, sha256 = read_checkpoint(path)
    network = header.architecture.build(len(organs))
    report = load_into(network, header.architecture, organs, header, state)
    return network, header, sha256, report
