from pathlib import Path

import pytest
from ui_workspace import make_workspace

from atlas_ray.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)
