"""An empty annotation database, a clock the test sets, and an organ set of three."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from annotation_helpers import Clock

from atlas_ray.annotation.database import Database, open_database, sqlite_url
from atlas_ray.organs import Organ, Organs


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "a folder" / "annotation.db")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with open_database(url) as opened:
        yield opened


@pytest.fixture
def organs() -> Organs:
    """Liver 1, spleen 2, aorta 3."""
    named = (("liver", 1), ("spleen", 2), ("aorta", 3))
    return Organs(name="three", organs=tuple(Organ(name=name, label_id=i, color="#808080") for name, i in named))
