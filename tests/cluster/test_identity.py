"""What a prediction was made from: changed inputs change the keys of exactly the cases they touch."""

import ast
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.cluster import identity
from atlas_ray.cluster.identity import COMPUTING, PACKAGE, Identity, bare, code_digest
from atlas_ray.config import Campaign
from atlas_ray.records import Case

SHAS = {"unet": "aa", "nnunet": "bb"}


def campaign(**changes: Any) -> Campaign:
    datasets = [{"source": "phantom", "name": "unused", "count": 1, "split": "pool"}]
    return Campaign.model_validate({"name": "small", "workspace": "/nowhere", "datasets": datasets, **changes})


def case(case_id: str, sha256: str = "11", **fields: Any) -> Case:
    known = {"image": f"/{case_id}", "sha256": sha256, "shape": (4, 4, 4), "spacing": (1, 1, 1), "orientation": "RAS"}
    return Case.model_validate({"case_id": case_id, **known, "source": "x", "license": "CC0-1.0", "split": "pool", **fields})


KEY = Identity.of(campaign(), SHAS).key(case("a"))


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": {"mode": "physical", "min_component_mm3": 7}},
        {"attention": {"mode": "faithful"}},
        {"preprocessing": {"spacing": (2, 2, 2)}},
        {"inference": {"overlap": 0.5}},
        {"pseudo_labels": {"threshold": 0.4}},
        {"organs": "btcv"},
    ],
)
def test_a_parameter_that_matters_changes_the_key(changes: dict[str, Any]) -> None:
    assert Identity.of(campaign(**changes), SHAS).key(case("a")) != KEY


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other", "workspace": "/elsewhere"},
        {"effort": {"budget_share": 0.9}},
        {"annotation": {"lease_minutes": 3}},
        {"strategy": {"strategy": "random"}},
        {"training": {"steps": 7}},
        {"cluster": {"actors": 4}},
        {"inference": {"batch": 4, "memory_gb": 1, "compile": True}},
    ],
)
def test_a_parameter_that_does_not_matter_leaves_it(changes: dict[str, Any]) -> None:
    assert Identity.of(campaign(**changes), SHAS).key(case("a")) == KEY


def test_image_and_weights_matter_and_names_do_not() -> None:
    same = Identity.of(campaign(), {"nnunet": "bb", "unet": "aa"})
    assert same.key(case("a", "22")) != KEY
    assert same.key(case("b")) == KEY, "the same image, wherever it lies"
    assert Identity.of(campaign(), {**SHAS, "unet": "cc"}).key(case("a")) != KEY
    assert same.key(case("a", labeled_organs=("liver",))) == KEY
    assert same.key(case("a", split="holdout", labeled_organs=("liver",))) == KEY
    assert same.key(case("a", split="train", labeled_organs=("liver",))) != KEY
    one, other = (same.key(case("a", split="train", labeled_organs=o)) for o in (("liver", "aorta"), ("aorta", "liver")))
    assert one == other
    assert same.key(case("a", series_uid="1.2.3")) != KEY
    assert Identity.of(campaign(), SHAS, detector="dd").key(case("a")) != KEY


def test_other_code_counts_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "code_digest", lambda: "newer")
    assert not Identity.of(campaign(), SHAS).holds(KEY, case("a"))
    lenient = Identity.of(campaign(cluster={"recompute_for_new_code": False}), SHAS)
    assert lenient.holds(KEY, case("a"))
    assert not lenient.holds(KEY, case("a", "22"))
    assert not lenient.holds("", case("a"))


def test_words_about_code_are_not_code() -> None:
    source = '"""A module."""\n\nimport os  # why\n\n\ndef f(x):\n    """Doc\n\n    more."""\n    # a comment\n    return x\n'
    assert bare(source) == "import os  # why\ndef f(x):\n    return x"
    assert bare(source) == bare(source.replace("A module", "Something else").replace("# a comment", "# another"))
    assert bare(source) != bare(source.replace("return x", "return -x"))
    assert len(code_digest()) == 8


def test_code_that_only_training_runs_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "PACKAGE", tmp_path)
    (tmp_path / "segmentation").mkdir()
    digests = []
    for name, source in (("windows.py", "x = 1"), ("losses.py", "x = 1"), ("windows.py", "x = 2"), ("heads.py", "x = 2")):
        (tmp_path / "segmentation" / name).write_text(source)
        digests.append(code_digest.__wrapped__())
    first, with_losses, changed, one_more = digests
    assert first == with_losses
    assert len({first, changed, one_more}) == 3


def imported(path: Path) -> set[str]:
    """Files of the package that a module imports from."""
    statements = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}{part}" for node in statements for part in ("", *(f".{alias.name}" for alias in node.names))}
    files = {name.removeprefix("atlas_ray.").replace(".", "/") + ".py" for name in names if name.startswith("atlas_ray.")}
    return {file for file in files if (PACKAGE / file).is_file()}


def test_what_computing_code_is_made_of_counts_too() -> None:
    """But for what describes, names, times or stores."""
    others = {
        "config.py",
        "records.py",
        "schema.py",
        "strict_yaml.py",
        "exceptions.py",
        "cluster/timing.py",
        "storage.py",
        "workspace.py",
    }
    computing = {path.relative_to(PACKAGE).as_posix() for pattern in COMPUTING for path in PACKAGE.glob(pattern)}
    assert set().union(*(imported(PACKAGE / file) for file in computing)) - computing == others
