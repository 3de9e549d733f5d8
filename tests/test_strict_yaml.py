"""YAML that would be half ignored, or never end, is refused with its line."""

from pathlib import Path

import pytest

from atlas_ray.exceptions import ConfigError
from atlas_ray.strict_yaml import LARGEST_BYTES, parse_yaml, read_yaml


def test_plain_yaml_is_what_it_says() -> None:
    assert parse_yaml("a: 1\nb: [x, {c: ''}]\n", where="here") == {"a": 1, "b": ["x", {"c": ""}]}
    assert parse_yaml("base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\n", where="here")["more"] == {"x": 1, "y": 3}
    assert parse_yaml("", where="here") is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: 1\nb: 2\na: 3\n", r"here is not valid YAML: line 3: key 'a' is given twice, first in line 1"),
        ("ids:\n  1: x\n  0x1: y\n", "key 1 is given twice"),
        ("- {a: {b: 1, b: 1}}\n", "key 'b' is given twice"),
        ("a: [1", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: &a [*a]", "an alias of what it stands in"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_refused(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_yaml(text, where="here")


def test_aliases_that_unfold_without_end_are_counted_not_unfolded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 20)]
    with pytest.raises(ConfigError, match="more than 100000 values once its aliases are written out"):
        parse_yaml("\n".join(lines), where="here")


def test_a_file_has_a_size_and_is_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 1")
    assert read_yaml(path) == {"a": 1}
    path.write_text("#" * (LARGEST_BYTES + 1))
    with pytest.raises(ConfigError, match=r"x\.yaml is larger than 1048576 bytes"):
        read_yaml(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml")
