"""Which outputs of a member are which organ of the campaign.

A member speaks of labels: names ("liver"), and the output channels behind each. By default a label is the organ of the same name; a
member's `organs` adds to that. What it does not know is absent: it has no opinion, which is not the same as "nowhere".
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

from atlas_ray.exceptions import CheckpointError
from atlas_ray.organs import Organs


def _with_text_keys(value: Any) -> Any:
    return {str(key): organ for key, organ in value.items()} if isinstance(value, dict) else value


# Label name of a member, or the number of an output, as YAML or as JSON has it -> organ of the campaign, None for none.
LabelOrgans = Annotated[dict[str, str | None], BeforeValidator(_with_text_keys)]
Outputs = tuple[tuple[int, ...], ...]  # for each organ of the campaign the member's output channels; () where it is absent


def outputs_of(labels: Mapping[str, int], wanted: LabelOrgans, organs: Organs, *, where: str) -> Outputs:
    """The output channels of every organ.

    Args:
        labels: the member's label names and the output channel of each.
        wanted: exceptions from "the organ of that name"; a number that is no name stands for an output channel. Several labels may
            be one organ.
        where: the member, for messages.

    Raises:
        CheckpointError: a label or an organ that does not exist, or no organ at all.
    """
    organ_of: dict[int, str] = {channel: name for name, channel in labels.items() if name in organs.names}
    for label, organ in wanted.items():
        channel = labels.get(label, int(label) if label.isdigit() else None)
        if channel is None or channel not in labels.values():
            raise CheckpointError(f"{where} has no label {label!r}; it has {_listed(labels)}")
        if organ is None:
            organ_of.pop(channel, None)
        elif organ in organs.names:
            organ_of[channel] = organ
        else:
            raise CheckpointError(f"{where}: label {label!r} is to be {organ!r}; the campaign has {', '.join(organs.names)}")
    if not organ_of:
        raise CheckpointError(
            f"{where} knows none of {', '.join(organs.names)}; it has {_listed(labels)}. Say which is which in `organs:`"
        )
    return tuple(tuple(sorted(c for c, organ in organ_of.items() if organ == name)) for name in organs.names)


def _listed(labels: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({channel})" for name, channel in labels.items())


def require_outputs(outputs: Outputs, channels: int, *, where: str) -> None:
    """Raise CheckpointError where the network has fewer outputs than its labels say."""
    if (most := max(c for some in outputs for c in some)) >= channels:
        raise CheckpointError(f"{where} has {channels} outputs; `organs` or its labels speak of output {most}")


def numbered(names: Sequence[str]) -> dict[str, int]:
    """Label names in the order of the outputs."""
    return {name: channel for channel, name in enumerate(names)}
