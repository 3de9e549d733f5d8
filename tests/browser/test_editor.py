"""A real Chromium annotates a case: jump, paint, undo, redo, save, reload; then the disk is checked voxel by voxel."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ui_workspace import ORGANS, PEAK, SHAPE, SPACING, make_workspace

from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.merge import paint_edits
from atlas_ray.annotation.queue import Queue
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.volume import read_volume
from atlas_ray.workspace import Workspace

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
REPOSITORY = Path(__file__).resolve().parents[2]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]
EDITOR = "document.querySelector('.ar-root').atlasEditor"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("editor"))
    organs = ORGANS.model_dump_json()
    workspace.config.write_text(f"organs: {organs}\n")  # JSON is YAML
    return workspace


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[str]:
    """The app as a user starts it, in its own process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ui", str(workspace.root), "--port", str(port), "--no-auth", "--user", "anna"]
    log = workspace.root / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, env={**os.environ})
    try:
        url = f"http://localhost:{port}"
        wait_until_up(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/api/v1/session", timeout=2):
                return
        except OSError:
            time.sleep(0.25)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "sync_api.Browser") -> Iterator["sync_api.Page"]:
    """A page that must neither complain nor talk to anybody but the server."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    complaints: list[str] = []
    foreign: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: foreign.append(request.url) if is_foreign(request.url) else None)
    yield page
    page.close()
    # Chromium itself reports the refused save of a conflict, which one test brings about on purpose.
    assert not [text for text in complaints if "412 (Precondition Failed)" not in text]
    assert not foreign


def is_foreign(url: str) -> bool:
    return not url.startswith(("http://localhost:", "data:", "blob:"))


def open_case(page: "sync_api.Page", server: str, case_id: str) -> None:
    page.goto(f"{server}/ui/?case={case_id}")
    page.wait_for_selector(f'.ar-root[data-case="{case_id}"]')


Aim = tuple[tuple[int, int], np.ndarray]


def aim(page: "sync_api.Page", plane: str, voxel: tuple[int, int, int]) -> Aim:
    """The whole screen pixel nearest to a voxel's center, and the voxel coordinates exactly under that pixel."""
    box = page.locator(f'[data-plane="{plane}"]').bounding_box()
    left, top = box["x"], box["y"]
    x, y = page.evaluate(f"{EDITOR}.planes['{plane}'].toScreen({list(voxel)})")
    pixel = round(left + x), round(top + y)
    position = page.evaluate(f"{EDITOR}.planes['{plane}'].toVoxel({pixel[0] - left}, {pixel[1] - top})")
    return pixel, np.array(position)


def active_mask(page: "sync_api.Page") -> np.ndarray:
    """Flat file-order indices of the active organ's mask."""
    return np.array(page.evaluate(f"[...{EDITOR}.active.edit.mask.keys()].filter((v) => {EDITOR}.active.edit.mask[v])"))


def wait_for_save(page: "sync_api.Page", revision: int) -> None:
    page.wait_for_function(f"{EDITOR}.active.saver.revision === {revision} && !{EDITOR}.active.saver.pending", timeout=10_000)
    assert page.locator('[data-id="save"]').inner_text() == f"Saved · revision {revision}"


def distance_mm(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """From every voxel's center to the segment between two voxel coordinates, [X, Y, Z]."""
    spacing = np.array(SPACING)
    centers = np.moveaxis(np.indices(SHAPE), 0, -1) * spacing
    start, along = start * spacing, (stop - start) * spacing
    share = np.clip((centers - start) @ along / max(along @ along, 1e-12), 0, 1)
    return np.linalg.norm(centers - start - share[..., None] * along, axis=-1)


def on_disk(workspace: Workspace, case_id: str) -> tuple[np.ndarray, np.ndarray]:
    """The pseudo-label, and the label after the stored revisions."""
    draft = read_volume(workspace.pseudo_label(0, case_id)).voxels
    with open_database(sqlite_url(workspace.annotation_db)) as database:
        return draft, paint_edits(draft, Revisions(database).edits(0, case_id), ORGANS)


def test_a_stroke_reaches_the_disk_and_nothing_else_does(
    page: "sync_api.Page", server: str, workspace: Workspace, tmp_path: Path
) -> None:
    open_case(page, server, "case_0")
    assert page.evaluate(f"{EDITOR}.components.length") == 2
    page.keyboard.press("n")
    page.wait_for_function(f"{EDITOR}.organ.name === 'cube'")
    page.keyboard.press("p")
    page.wait_for_function(f"{EDITOR}.organ.name === 'ball' && !{EDITOR}.switching")
    assert tuple(page.evaluate(f"{EDITOR}.scene.cursor")) == PEAK
    before = active_mask(page)

    page.keyboard.press("b")
    radius = page.evaluate(f"{EDITOR}.radius")
    stop = (PEAK[0] + 6, PEAK[1], PEAK[2])
    (first, start), (last, end) = aim(page, "axial", PEAK), aim(page, "axial", stop)
    page.mouse.move(*first)
    page.mouse.down()
    page.mouse.move(*last, steps=8)
    page.mouse.up()
    painted = active_mask(page)
    assert len(painted) > len(before)
    wait_for_save(page, 1)

    page.keyboard.press("z")
    np.testing.assert_array_equal(active_mask(page), before)
    wait_for_save(page, 2)
    page.keyboard.press("y")
    np.testing.assert_array_equal(active_mask(page), painted)
    wait_for_save(page, 3)
    page.screenshot(path=tmp_path / "editor.png")
    assert (tmp_path / "editor.png").stat().st_size > 50_000

    page.reload()
    page.wait_for_selector('.ar-root[data-case="case_0"]')
    page.wait_for_function(f"{EDITOR}.organ?.name === 'ball'")
    np.testing.assert_array_equal(active_mask(page), painted)

    draft, label = on_disk(workspace, "case_0")
    in_slice = np.indices(SHAPE)[2] == PEAK[2]
    expected = np.where((distance_mm(start, end) <= radius) & in_slice & (draft == 0), 3, draft)
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(np.flatnonzero((label == 3).ravel(order="F")), painted)
    assert (label != draft).sum() == len(painted) - len(before)


def test_the_eraser_a_sphere_and_the_other_planes(page: "sync_api.Page", server: str, workspace: Workspace) -> None:
    open_case(page, server, "case_1")
    page.keyboard.press("2")
    page.wait_for_function(f"{EDITOR}.organ.name === 'cube' && !{EDITOR}.switching")
    before = active_mask(page)
    page.keyboard.press("e")
    page.keyboard.press("d")
    page.evaluate(f"{EDITOR}.moveCursor([45, 25, 12])")
    pixel, center = aim(page, "coronal", (45, 25, 12))
    page.mouse.click(*pixel)
    after = active_mask(page)
    gone = distance_mm(center, center) <= page.evaluate(f"{EDITOR}.radius")
    assert np.ptp(np.argwhere(gone)[:, 2]) == 2  # three slices: it is a sphere
    np.testing.assert_array_equal(np.setdiff1d(before, after), np.flatnonzero(gone.ravel(order="F")))
    wait_for_save(page, 1)
    draft, label = on_disk(workspace, "case_1")
    np.testing.assert_array_equal(label, np.where(gone, 0, draft))


def test_other_organs_are_protected_until_the_annotator_says_otherwise(
    page: "sync_api.Page", server: str, workspace: Workspace
) -> None:
    open_case(page, server, "case_1")
    page.keyboard.press("1")
    page.wait_for_function(f"{EDITOR}.organ.name === 'ball' && !{EDITOR}.switching")
    inside_cube = (48, 30, 14)
    page.evaluate(f"{EDITOR}.moveCursor({list(inside_cube)})")
    pixel, _ = aim(page, "axial", inside_cube)
    page.keyboard.press("b")
    for _ in range(20):
        page.keyboard.press("[")
    before = active_mask(page)
    page.mouse.click(*pixel)
    np.testing.assert_array_equal(active_mask(page), before)
    page.keyboard.press("x")
    page.mouse.click(*pixel)
    wait_for_save(page, 1)
    _, label = on_disk(workspace, "case_1")
    assert label[inside_cube] == 3
    assert label[47, 30, 14] == 7


def test_typing_in_a_text_field_is_not_painting(page: "sync_api.Page", server: str) -> None:
    open_case(page, server, "case_0")
    page.evaluate("document.querySelector('.ar-bar').append(Object.assign(document.createElement('input'), {id: 'probe'}))")
    page.locator("#probe").click()
    page.keyboard.type("ez [n]")
    assert page.locator("#probe").input_value() == "ez [n]"
    assert page.evaluate(f"{EDITOR}.tool") == "brush"


def test_from_the_queue_to_submitted(page: "sync_api.Page", server: str, workspace: Workspace) -> None:
    page.goto(f"{server}/ui/")
    page.locator('#queue [data-testid="cell-2-1"]').click()
    page.wait_for_selector('.ar-root[data-case="case_2"]')
    page.keyboard.press("j")
    page.wait_for_function(f"{EDITOR}.components[0].verdict === 'not_an_error'")
    page.keyboard.press("n")
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator('[data-do="submit"]').click()
    page.get_by_text("case_2 is submitted").wait_for()
    with open_database(sqlite_url(workspace.annotation_db)) as database:
        assert Queue(database).item((0, "case_2")).state == "submitted"
        assert [v.verdict for v in Revisions(database).verdicts(0, "case_2")] == ["not_an_error"]
    page.get_by_role("tab", name="Queue").click()
    page.get_by_text("1 of 3 cases done").wait_for()


def test_a_newer_revision_is_not_overwritten(page: "sync_api.Page", server: str, workspace: Workspace) -> None:
    """Somebody saves behind the page's back; the page says so, and S puts its own voxels on top of the newer label."""
    open_case(page, server, "case_0")
    page.wait_for_function(f"{EDITOR}.organ?.name === 'ball'")
    revision = page.evaluate(f"{EDITOR}.active.saver.revision")
    with open_database(sqlite_url(workspace.annotation_db)) as database:
        other = [[0, 3, 1]]
        Revisions(database).save(0, "case_0", "ball", user="bob", parent_id=revision, runs=other, size=int(np.prod(SHAPE)))
    spot = (5, 40, PEAK[2])
    pixel, _ = aim(page, "axial", spot)
    page.mouse.click(*pixel)
    page.wait_for_selector('[data-id="save"][data-state="conflict"]')
    page.keyboard.press("s")
    wait_for_save(page, revision + 2)
    _, label = on_disk(workspace, "case_0")
    assert label[spot] == 3
    assert label[:3, 0, 0].tolist() == [3, 3, 3]
