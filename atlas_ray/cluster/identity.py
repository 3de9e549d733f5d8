"""The content key of a prediction: what it was made from. Another image, other weights, another parameter that matters or other
code give another key, and a result with another key than wanted is made again.

What does not matter: how the work is spread (`cluster`), how windows are batched and where sums lie, the queue, the budget. What is
not covered: versions of torch and of the machine's math libraries, and the batch that memory allowed, which move a probability in
its last bits.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atlas_ray.config import Campaign
from atlas_ray.records import Case

PACKAGE = Path(__file__).resolve().parents[1]
COMPUTING = (
    "volume.py",
    "resampling.py",
    "loops.py",
    "organs.py",
    "components.py",
    "data/preprocess.py",
    "segmentation/*.py",
    "segmentation/members/*.py",
    "attention/*.py",
    "cluster/finishing.py",
    "cluster/calibrated.py",
    "prioritization/error_types.py",
)
TRAINING = ("averaging.py", "losses.py", "schedule.py")  # of segmentation/: what only training runs; its outcome is in the weights
SPREADING = {"batch", "memory_gb", "compile"}  # of `inference`: how it is computed, not what


@dataclass(frozen=True, slots=True)
class Identity:
    """Of the predictions of one round by one ensemble.

    Args:
        shared: digest of all that is the same for every case: weights, parameters, organs.
        code: digest of the code that computes.
        any_code: whether results of other code count as well.
    """

    shared: str
    code: str
    any_code: bool

    @classmethod
    def of(cls, campaign: Campaign, checkpoints: dict[str, str], *, detector: str = "") -> "Identity":
        """
        Args:
            checkpoints: architecture -> sha256 of its weights.
            detector: sha256 of the learned detector that attention uses, "" where it uses none.
        """
        parts = [
            sorted(checkpoints.items()),
            campaign.load_organs().model_dump(mode="json"),
            campaign.preprocessing.model_dump(mode="json"),
            campaign.inference.model_dump(mode="json", exclude=SPREADING),
            campaign.pseudo_labels.model_dump(mode="json"),
            campaign.attention.model_dump(mode="json"),
            *([detector] if detector else []),
        ]
        return cls(_digest(json.dumps(parts, sort_keys=True)), code_digest(), not campaign.cluster.recompute_for_new_code)

    def key(self, case: Case) -> str:
        """Of this case's result: "<digest of image, weights, parameters>-<digest of the code>"."""
        # A training case has no attention where it is labeled (cluster.finishing), so its labels matter; no other case's do.
        skipped = sorted(case.labeled_organs) if case.split == "train" else []
        return f"{_digest(json.dumps([self.shared, case.sha256, case.series_uid, skipped]))}-{self.code}"

    def holds(self, key: str, case: Case) -> bool:
        """Whether a result with this key is the one wanted."""
        wanted = self.key(case)
        return key == wanted or (self.any_code and key.partition("-")[0] == wanted.partition("-")[0])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def code_digest() -> str:
    """Of the source of every module that computes a prediction, without docstrings, comments and empty lines."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in COMPUTING for path in PACKAGE.glob(pattern)):
        if path.name not in TRAINING:
            digest.update(f"{path.relative_to(PACKAGE).as_posix()}\n{bare(path.read_text())}".encode())
    return digest.hexdigest()[:8]


def bare(source: str) -> str:
    """Python without what changes nothing: docstrings, lines of comment, empty lines."""
    lines = source.splitlines()
    for text in _docstrings(ast.parse(source)):
        for number in range(text.lineno - 1, text.end_lineno or text.lineno):
            lines[number] = ""
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _docstrings(node: ast.AST) -> Iterator[ast.stmt]:
    """Of a module and what is defined in it, however deep; expressions hold none and are passed over."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
        yield node.body[0]
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _docstrings(child)
