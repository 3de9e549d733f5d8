"""What SECURITY.md promises of the sources: nothing that is read from a file is run, and nothing unfolds without a bound."""

import ast
from pathlib import Path

import blosc2
import numpy as np
import pytest

from atlas_ray.data.patches import open_cached

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("atlas_ray", "jobs", "ui", "infra") for path in (REPOSITORY / folder).rglob("*.py"))
RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNBOUNDED = {"zlib.decompress", "gzip.decompress", "isal_zlib.decompress", "igzip.decompress", "bz2.decompress", "lzma.decompress",
             "blosc2.decompress", "zipfile.ZipFile", "tarfile.open", "shutil.unpack_archive"}  # fmt: skip


def found_in(source: str) -> list[tuple[int, str]]:
    """(line, what) of everything that may run what it reads, or unfold it without a bound."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, f"import {alias.name}") for alias in node.names if alias.name.split(".")[0] in RUNS_CODE]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in RUNS_CODE:
            found.append((node.lineno, f"from {node.module}"))
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            loader = given.get("Loader", ast.unparse(node.args[1]) if len(node.args) > 1 else "")
            wrong = (
                (name.endswith("torch.load") and given.get("weights_only") != "True")
                or (name.endswith("load") and given.get("allow_pickle", "False") != "False")
                or (name in ("yaml.load", "yaml.load_all") and loader not in ("yaml.SafeLoader", "_Loader"))
                or name in ("yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system")
                or (name.startswith("subprocess.") and given.get("shell", "False") != "False")
                or name in UNBOUNDED
            )
            if wrong:
                found.append((node.lineno, name))
    return found


def test_the_search_finds_what_it_is_for() -> None:
    text = (
        "import pickle\nfrom joblib import load\ntorch.load(p)\ntorch.load(p, weights_only=True)\nnp.load(p, allow_pickle=True)\n"
        "np.load(p)\nyaml.load(t)\nyaml.load(t, yaml.Loader)\nyaml.safe_load(t)\nzlib.decompress(d)\neval(x)\nmodel.eval()\n"
        "subprocess.run(c, shell=True)\n"
    )
    assert [line for line, _ in sorted(found_in(text))] == [1, 2, 3, 5, 7, 8, 10, 11, 13]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_nothing_that_is_read_is_run(path: Path) -> None:
    assert found_in(path.read_text()) == []


def test_the_strict_loader_builds_plain_values_only() -> None:
    import yaml

    from atlas_ray.strict_yaml import _Loader

    assert issubclass(_Loader, yaml.constructor.SafeConstructor)
    assert not issubclass(_Loader, yaml.constructor.FullConstructor)


def test_a_cache_that_carries_a_recipe_instead_of_voxels_is_refused(tmp_path: Path) -> None:
    voxels = blosc2.asarray(np.zeros((4, 4, 4), np.int16), urlpath=str(tmp_path / "a.b2nd"))
    (blosc2.lazyexpr("a + 1", {"a": voxels})).save(urlpath=str(tmp_path / "image.b2nd"))
    blosc2.asarray(np.zeros((4, 4, 4), np.uint8), urlpath=str(tmp_path / "label.b2nd"))
    np.save(tmp_path / "foreground.npy", np.zeros((1, 1, 3), np.int16))
    with pytest.raises(Exception, match=r"LazyArray|b2o|lazy"):
        open_cached(tmp_path, np.ones(1))
