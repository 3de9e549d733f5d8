"""The page: what the queue table says."""

import gc
from collections.abc import Iterator

import pytest
from ui_workspace import ORGANS

from atlas_ray.workspace import Workspace
from ui.app import create_app

# gradio 6.31 makes an event loop per app and never closes it, and its imports use names that others have deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(starlette|gradio|fastapi|pandas|websockets).*"),
]


@pytest.fixture(autouse=True)
def collect_gradios_loops() -> Iterator[None]:
    """Here, where they are allowed for, and not in some later test."""
    yield
    gc.collect()


def test_queue_table(workspace: Workspace) -> None:
    from ui.page import queue_rows, round_summary

    app = create_app(workspace.root, round=0, organs=ORGANS, user="anna")
    store = app.state.store
    store.queue.claim(0, "case_1", "bob")
    rows = queue_rows(store)
    assert [row[:2] + row[4:6] for row in rows] == [
        [1, "case_0", "waiting", ""],
        [2, "case_1", "leased", "bob"],
        [3, "case_2", "waiting", ""],
    ]
    assert "0 of 3 cases done" in round_summary(store)
    store.close()
