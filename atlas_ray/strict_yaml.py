"""YAML as people write it, read strictly: a key given twice, a file too large, aliases that unfold without end are errors.

PyYAML keeps the last of two equal keys without a word, so that half of what somebody wrote would be ignored.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from atlas_ray.exceptions import ConfigError

LARGEST_BYTES = 2**20  # a campaign with a list of every case of a large dataset has a tenth of it
MOST_VALUES = 100_000  # with every alias written out
DEEPEST = 100  # libyaml builds nested values by recursion, which ends the process where it is deep enough


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # in C: in Python a megabyte takes a minute
    """Refuses what `read_yaml` says."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and _unfolded(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values once its aliases are written out")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        _require_different_keys(self, node)
        values: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return values


def _require_different_keys(loader: _Loader, node: Any) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        if isinstance(key, Hashable) and key in lines:
            raise yaml.YAMLError(f"line {line}: key {key!r} is given twice, first in line {lines[key]}")
        if isinstance(key, Hashable):
            lines[key] = line


def _require_modest(text: str) -> None:
    """Raises yaml.YAMLError for what is nested too deeply or has too many values, before any of it is built."""
    depth = values = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        values += isinstance(event, yaml.NodeEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"nested too deeply; {DEEPEST} levels are allowed")
        if values > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values")


def _unfolded(node: Any, sizes: dict[int, int]) -> int:
    """Values of a node with every alias written out. Raises yaml.YAMLError where a node holds itself."""
    if (known := sizes.get(id(node))) is not None:
        if known == 0:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: an alias of what it stands in")
        return known
    sizes[id(node)] = 0  # being counted
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    else:
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
    sizes[id(node)] = 1 + sum(_unfolded(part, sizes) for part in inner)
    return sizes[id(node)]


def parse_yaml(text: str, *, where: str) -> Any:
    """What a text holds: dicts, lists and plain values.

    Args:
        where: names the text in an error.

    Raises:
        ConfigError: not YAML, a key given twice, nested deeper than `DEEPEST`, or more than `MOST_VALUES`.
    """
    try:
        _require_modest(text)
        return yaml.load(text, Loader=_Loader)  # builds plain values only
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {_reason(error)}") from error
    except (ValueError, ArithmeticError, AttributeError) as error:  # month 13, a number of 5,000 digits, `!!int x`, `!!timestamp x`
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def _reason(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the piece of the text that PyYAML shows: it may be half a password."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    said = " ".join(part for part in (error.context, error.problem) if part)
    return f"{said} (line {mark.line + 1}, column {mark.column + 1})"


def find_yaml(name_or_path: str | Path, folder: Path, what: str) -> Path:
    """A file by its path (.yaml, .yml), or one of `folder` by its name.

    Raises:
        ConfigError: there is none; says what was looked for, and what `folder` has.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = folder / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ConfigError(f"{what} {str(name_or_path)!r} not found at {path}; a path to a YAML file or one of: {known}")
    return path


def read_yaml(path: Path) -> Any:
    """What a file holds. Raises ConfigError as `parse_yaml`, and for a file that is larger than `LARGEST_BYTES` or no text."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise ConfigError(f"{path} is larger than {LARGEST_BYTES} bytes; no configuration is")
        return parse_yaml(data.decode(), where=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
