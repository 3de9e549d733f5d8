import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "ui"))  # ui_workspace
sys.path.insert(0, str(HERE))  # kit, campaign

CHROMIUM = shutil.which("chromium")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="chromium is not installed"))


@pytest.fixture(scope="session")
def playwright_driver() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="session")
def browser(playwright_driver: Any) -> Iterator[Any]:
    from kit import FLAGS, PATIENCE_MS

    browser = playwright_driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE_MS)
    yield browser
    browser.close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages, each its own user's browser, that must neither complain nor talk to anybody but the server."""
    from kit import PATIENCE_MS

    contexts: list[Any] = []
    complaints: list[str] = []
    foreign: list[str] = []

    def open_page(*, expected: tuple[str, ...] = (), width: int = 1600, height: int = 1000) -> Any:
        """expected: what the page may complain of, because the test brings it about."""
        context = browser.new_context(viewport={"width": width, "height": height})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()

        def complain(text: str) -> None:
            if not any(part in text for part in expected):
                complaints.append(text)

        page.on("console", lambda message: complain(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complain(str(error)))
        page.on("request", lambda request: foreign.append(request.url) if is_foreign(request.url) else None)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints
    assert not foreign


def is_foreign(url: str) -> bool:
    return not url.startswith(("http://localhost:", "data:", "blob:"))
