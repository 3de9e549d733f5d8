"""What the documentation says of the tree is true, and the code names no organ."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from atlas_ray.organs import load_organs

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
ORGANS = load_organs("universal_32").names
TEXT_TOKENS = {tokenize.NAME, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}  # from Python 3.12
JS_COMMENT = re.compile(r"/\*.*?\*/|(?<![:\"'`])//[^\n]*", re.DOTALL)


# --- the tree --------------------------------------------------------------------------------------------------------


def tree(readme: str) -> list[str]:
    """Paths in the README's tree, folders with a slash at the end. Two spaces of indent are one folder."""
    block = re.search(r"^## The tree$.*?^```\w*\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    assert block, "README.md has no section 'The tree' with a code block"
    paths, folders = [], []
    for line in block[1].splitlines():
        name = line.split(maxsplit=1)[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def test_tree_is_read_by_its_indent() -> None:
    text = "## The tree\n\n```\na/\n  b.py   one\n  c/     two\n    d.py three\ne.py   four\n```\n"
    assert tree(text) == ["a/", "a/b.py", "a/c/", "a/c/d.py", "e.py"]


def test_every_path_of_the_tree_exists() -> None:
    missing = [path for path in tree(README) if not (REPOSITORY / path).exists()]
    assert not missing, f"README.md names {missing}, which do not exist"


def test_every_module_stands_in_the_tree() -> None:
    folders = (REPOSITORY / "atlas_ray", REPOSITORY / "jobs")
    modules = {str(p.relative_to(REPOSITORY)) for folder in folders for p in folder.rglob("*.py") if p.name != "__init__.py"}
    missing = sorted(modules - set(tree(README)))
    assert not missing, f"README.md does not name {missing}; every module has one line in its tree"


# --- no organ in the code --------------------------------------------------------------------------------------------


def organs_in(text: str) -> list[str]:
    """Organs that `text` spells as whole words; underscores, hyphens and capitals inside a word separate words."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    words = " " + " ".join(re.findall(r"[a-z0-9]+", words.lower())) + " "
    return [organ for organ in ORGANS if f" {organ.replace('_', ' ')} " in words]


def organs_in_python(source: str) -> list[tuple[int, str]]:
    """(line, organ) for every organ in an identifier or a string; docstrings and comments may speak of organs."""
    prose = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr) and _is_string(node.value)]
    skipped = {line for node in prose for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return [
        (token.start[0], organ)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type in TEXT_TOKENS and token.start[0] not in skipped
        for organ in organs_in(token.string)
    ]


def organs_in_javascript(source: str) -> list[tuple[int, str]]:
    """(line, organ) for every organ outside comments."""
    code = JS_COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), source)
    return [(number, organ) for number, line in enumerate(code.splitlines(), start=1) for organ in organs_in(line)]


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_organs_are_found_as_whole_words() -> None:
    assert organs_in("kidney_left_mask") == ["kidney_left"]
    assert organs_in("LIVER_ID") == ["liver"]
    assert organs_in("findSpleen") == ["spleen"]
    assert organs_in("gall-bladder volume") == ["gall_bladder", "bladder"]
    assert organs_in("semicolon, delivered, body") == []


def test_organs_are_found_in_code_but_not_in_prose() -> None:
    python = '"""The liver."""\n\nLIVER = 1  # the spleen\nname = f"{LIVER} aorta"\n\n\ndef f() -> str:\n    """Spleen."""\n'
    assert organs_in_python(python) == [(3, "liver"), (4, "liver"), (4, "aorta")]
    assert organs_in_javascript('/* liver\n*/ const x = "aorta"; // spleen\n') == [(2, "aorta")]


@pytest.mark.parametrize("suffix", ["py", "js"])
def test_no_code_spells_an_organ(suffix: str) -> None:
    find = organs_in_python if suffix == "py" else organs_in_javascript
    files = [p for folder in ("atlas_ray", "jobs", "ui", "benchmarks", "infra") for p in (REPOSITORY / folder).rglob(f"*.{suffix}")]
    assert files
    found = [f"{p.relative_to(REPOSITORY)}:{line}: {organ}" for p in sorted(files) for line, organ in find(p.read_text())]
    assert not found, "organs are named in configs/organs/ only: " + "; ".join(found)


def test_every_test_file_has_a_name_of_its_own() -> None:
    """pytest imports them by it: of two with one name the second is an error for all."""
    names = [path.name for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


# --- the jobs --------------------------------------------------------------------------------------------------------


def test_every_job_of_the_readme_exists() -> None:
    named = set(re.findall(r"python -m jobs\.(\w+)", README))
    there = {p.stem for p in (REPOSITORY / "jobs").glob("*.py")} - {"__init__"}
    assert named <= there, f"README.md runs jobs.{', jobs.'.join(sorted(named - there))}, which do not exist"


@pytest.mark.parametrize("job", ["ingest", "run_round", "merge"])
def test_job_explains_itself(job: str) -> None:
    assert f"python -m jobs.{job} " in README
    result = subprocess.run([sys.executable, "-m", f"jobs.{job}", "--help"], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--set" in result.stdout
    assert "--dry-run" in result.stdout
