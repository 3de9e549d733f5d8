"""A real Chromium paints with every tool on a small case; then the disk is checked voxel by voxel."""

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from kit import (
    EDITOR,
    AppServer,
    active_mask,
    aim,
    draft_and_label,
    drag,
    note,
    open_case,
    revision,
    take_up,
    wait_for_case,
    wait_until_idle,
)
from ui_workspace import ORGANS, PEAK, SHAPE, SPACING, make_workspace

from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.queue import Queue
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.workspace import Workspace

NewPage = Callable[..., Any]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("editor"))
    workspace.config.write_text(f"organs: {ORGANS.model_dump_json()}\n")  # JSON is YAML
    for case in workspace.cases():  # its second component is the cube's
        shutil.copy(workspace.attention(0, case.case_id, "ball"), workspace.attention(0, case.case_id, "cube"))
    return workspace


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[AppServer]:
    server = AppServer(workspace).start()
    yield server
    server.stop()


@pytest.fixture
def page(new_page: NewPage) -> Any:
    return new_page()


def distance_mm(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """From every voxel's center to the segment between two voxel coordinates, [X, Y, Z]."""
    spacing = np.array(SPACING)
    centers = np.moveaxis(np.indices(SHAPE), 0, -1) * spacing
    start, along = start * spacing, (stop - start) * spacing
    share = np.clip((centers - start) @ along / max(along @ along, 1e-12), 0, 1)
    return np.linalg.norm(centers - start - share[..., None] * along, axis=-1)


def flat(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(mask.ravel(order="F"))


def test_a_stroke_reaches_the_disk_by_itself_and_nothing_else_does(page: Any, server: AppServer, workspace: Workspace) -> None:
    open_case(page, server, "case_0")
    page.keyboard.press("n")
    page.wait_for_function(f"{EDITOR}.organ.name === 'cube'")
    page.keyboard.press("p")
    page.wait_for_function(f"{EDITOR}.organ.name === 'ball' && !{EDITOR}.switching")
    assert tuple(page.evaluate(f"{EDITOR}.scene.cursor")) == PEAK
    before = active_mask(page)

    page.keyboard.press("b")
    radius = page.evaluate(f"{EDITOR}.radius")
    (first, start), (last, end) = aim(page, "axial", PEAK), aim(page, "axial", (PEAK[0] + 6, PEAK[1], PEAK[2]))
    drag(page, [first, last])
    ended = time.monotonic()
    draft, label = draft_and_label(workspace, "case_0", ORGANS)
    while (label == draft).all():
        draft, label = draft_and_label(workspace, "case_0", ORGANS)
        assert time.monotonic() - ended < 20  # a third of a second, and what a busy machine takes
    painted = active_mask(page)
    in_slice = np.indices(SHAPE)[2] == PEAK[2]
    expected = np.where((distance_mm(start, end) <= radius) & in_slice & (draft == 0), 3, draft)
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(flat(label == 3), painted)
    assert len(painted) > len(before)

    page.keyboard.press("z")
    np.testing.assert_array_equal(active_mask(page), before)
    page.keyboard.press("y")
    np.testing.assert_array_equal(active_mask(page), painted)
    wait_until_idle(page)
    assert page.locator('[data-id="save"]').inner_text() == "Saved · revision 3"

    page.reload()
    wait_for_case(page, "case_0")
    np.testing.assert_array_equal(active_mask(page), painted)
    page.keyboard.press("z")
    np.testing.assert_array_equal(active_mask(page), before)  # the history is there after a reload
    wait_until_idle(page)
    draft, label = draft_and_label(workspace, "case_0", ORGANS)
    np.testing.assert_array_equal(label, draft)


def test_the_eraser_a_sphere_and_the_other_planes(page: Any, server: AppServer, workspace: Workspace) -> None:
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
    np.testing.assert_array_equal(np.setdiff1d(before, after), flat(gone))
    wait_until_idle(page)
    draft, label = draft_and_label(workspace, "case_1", ORGANS)
    np.testing.assert_array_equal(label, np.where(gone, 0, draft))


def test_other_organs_are_protected_until_the_annotator_says_otherwise(page: Any, server: AppServer, workspace: Workspace) -> None:
    open_case(page, server, "case_1")
    take_up(page, "ball")
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
    wait_until_idle(page)
    _, label = draft_and_label(workspace, "case_1", ORGANS)
    assert label[inside_cube] == 3
    assert label[47, 30, 14] == 7
    page.keyboard.press("z")
    wait_until_idle(page)


def test_painting_within_a_hu_range_changes_only_voxels_in_it(page: Any, server: AppServer) -> None:
    """The ball is 60 HU bright, what surrounds it -100: a brush across its border, gated, stays inside."""
    open_case(page, server, "case_1")
    take_up(page, "ball")
    page.locator('[data-id="gate-low"]').fill("0")
    page.locator('[data-id="gate-high"]').fill("130")
    page.locator('[data-id="gate-high"]').press("Tab")
    assert page.locator('[data-toggle="gate"]').get_attribute("aria-pressed") == "true"
    before = active_mask(page)
    page.evaluate(f"{EDITOR}.moveCursor({list(PEAK)})")
    pixel, center = aim(page, "axial", PEAK)
    page.evaluate(f"{EDITOR}.setRadius(12)")
    page.mouse.click(*pixel)
    added = np.setdiff1d(active_mask(page), before)
    hu = np.array(page.evaluate(f"{added.tolist()}.map((v) => {EDITOR}.scene.data[v])"))
    assert len(added) > 10
    assert (hu >= 0).all()
    assert (hu <= 130).all()
    near = flat((distance_mm(center, center) <= 12) & (np.indices(SHAPE)[2] == PEAK[2]))
    left = np.setdiff1d(near, active_mask(page))
    assert not any(0 <= hu <= 130 for hu in page.evaluate(f"{left.tolist()}.map((v) => {EDITOR}.scene.data[v])"))
    page.keyboard.press("z")
    wait_until_idle(page)


def test_lasso_fill_and_copied_slice(page: Any, server: AppServer) -> None:
    open_case(page, server, "case_1")
    take_up(page, "ball")
    start = active_mask(page)
    # A lasso around the notch: everything with its center inside the drawn square, of this slice.
    z = PEAK[2]
    corners = [(PEAK[0] + dx, PEAK[1] + dy, z) for dx, dy in ((-4, -4), (4, -4), (4, 4), (-4, 4))]
    page.evaluate(f"{EDITOR}.moveCursor({list(PEAK)})")
    page.keyboard.press("l")
    drag(page, [aim(page, "axial", corner)[0] for corner in corners], steps=4)
    square = {(x, y) for x in range(PEAK[0] - 3, PEAK[0] + 4) for y in range(PEAK[1] - 3, PEAK[1] + 4)}
    added = np.setdiff1d(active_mask(page), start)
    xs, ys, zs = np.unravel_index(added, SHAPE, order="F")
    assert set(zs.tolist()) == {z}
    inside = {(int(x), int(y)) for x, y in square if x + SHAPE[0] * (y + SHAPE[1] * z) not in set(start.tolist())}
    assert inside <= set(zip(xs.tolist(), ys.tolist(), strict=True))
    assert all(abs(x - PEAK[0]) <= 4 and abs(y - PEAK[1]) <= 4 for x, y in zip(xs.tolist(), ys.tolist(), strict=True))
    # The slice above becomes like this one.
    page.keyboard.press("ArrowUp")
    page.keyboard.press(",")
    mask = np.zeros(SHAPE, bool)
    mask[np.unravel_index(active_mask(page), SHAPE, order="F")] = True
    np.testing.assert_array_equal(mask[:, :, z + 1], mask[:, :, z])
    # Ctrl and the fill tool remove a connected piece.
    page.keyboard.press("g")
    page.keyboard.down("Control")
    page.mouse.click(*aim(page, "axial", (PEAK[0], PEAK[1], z + 1))[0])
    page.keyboard.up("Control")
    mask[:, :, z + 1] = False
    np.testing.assert_array_equal(active_mask(page), flat(mask))
    for _ in range(3):
        page.keyboard.press("z")
    np.testing.assert_array_equal(active_mask(page), start)
    # Without it, it adds connected voxels of like HU: the ball is homogeneous, its notch is filled.
    page.evaluate(f"{EDITOR}.moveCursor({list(PEAK)})")
    page.mouse.click(*aim(page, "axial", PEAK)[0])
    filled = np.setdiff1d(active_mask(page), start)
    assert len(filled) > 20
    assert set(np.unravel_index(filled, SHAPE, order="F")[2].tolist()) == {z}
    page.keyboard.press("z")
    wait_until_idle(page)


def test_the_server_works_out_what_the_browser_cannot(page: Any, server: AppServer) -> None:
    """Fill holes, grow, shrink, largest piece: each one step, and undone as one."""
    open_case(page, server, "case_1")
    take_up(page, "cube")
    start = active_mask(page)
    sizes = {}
    for key in ("+", "-", "Shift+M", "Shift+L", "Shift+H", "Shift+R"):
        steps = revision(page)
        page.keyboard.press(key)
        page.wait_for_function(f"!{EDITOR}.switching && !document.querySelector('[data-id=step]').textContent.endsWith('…')")
        sizes[key] = len(active_mask(page))
        if sizes[key] != len(start):
            page.keyboard.press("z")
        wait_until_idle(page)
        np.testing.assert_array_equal(active_mask(page), start)
        assert revision(page) in (steps, steps + 2)
    assert sizes["+"] > len(start) > sizes["-"]
    assert sizes["Shift+L"] == len(start)


def test_growing_from_strokes_fills_the_notch(page: Any, server: AppServer) -> None:
    open_case(page, server, "case_1")
    take_up(page, "ball")
    start = active_mask(page)
    page.evaluate(f"{EDITOR}.moveCursor({list(PEAK)})")
    page.keyboard.press("w")
    page.evaluate(f"{EDITOR}.setRadius(2)")
    drag(page, [aim(page, "axial", PEAK)[0], aim(page, "axial", (PEAK[0] + 4, PEAK[1], PEAK[2]))[0]])
    np.testing.assert_array_equal(active_mask(page), start)  # seeds are not the mask
    page.keyboard.press("Enter")
    page.wait_for_function(f"!{EDITOR}.switching && {EDITOR}.scene.seeds.size === 0")
    assert PEAK[0] + SHAPE[0] * (PEAK[1] + SHAPE[1] * PEAK[2]) in set(active_mask(page).tolist()), note(page)
    page.keyboard.press("z")
    np.testing.assert_array_equal(active_mask(page), start)
    wait_until_idle(page)


def test_typing_in_a_text_field_is_not_painting(page: Any, server: AppServer) -> None:
    open_case(page, server, "case_0")
    page.locator('[data-tab="comments"]').click()
    page.locator('[data-id="comment"]').click()
    page.keyboard.type("ez [n] Z")
    assert page.locator('[data-id="comment"]').input_value() == "ez [n] Z"
    assert page.evaluate(f"{EDITOR}.tool") == "brush"
    page.locator('[data-do="comment"]').click()
    page.get_by_text("ez [n] Z").wait_for()
    assert page.locator('[data-tab="comments"]').inner_text() == "Comments (1)"


def test_the_help_lists_every_key_and_closes(page: Any, server: AppServer) -> None:
    open_case(page, server, "case_0")
    page.keyboard.press("?")
    page.get_by_text("take the whole organ from the next network").wait_for()
    page.keyboard.press("Escape")
    assert page.locator('[data-id="help"]').is_hidden()


def test_attention_is_shown_per_criterion(page: Any, server: AppServer) -> None:
    open_case(page, server, "case_0")
    page.wait_for_function(f"{EDITOR}.scene.flags !== null")
    assert page.locator("[data-criterion]").all_inner_texts() == ["disagreement", "overlap"]  # in the order of their bits
    assert page.evaluate(f"{EDITOR}.scene.flagBits") == 0
    page.keyboard.press("q")
    assert page.evaluate(f"{EDITOR}.scene.flagBits") == 255
    page.get_by_role("button", name="disagreement").click()
    assert page.evaluate(f"{EDITOR}.scene.flagBits") == 2
    page.keyboard.press("Alt+1")
    assert page.evaluate(f"{EDITOR}.scene.flagBits") == 255


def test_both_themes_at_a_small_screen(new_page: NewPage, server: AppServer) -> None:
    """Nothing of the editor is cut off at 1366 x 768, and the panels follow the page's theme."""
    page = new_page(width=1366, height=768)
    open_case(page, server, "case_0")
    grounds = []
    for theme in ("remove", "add"):
        page.evaluate(f"document.body.classList.{theme}('dark')")
        grounds.append(page.evaluate("getComputedStyle(document.querySelector('.ar-side')).backgroundColor"))
        for part in (".ar-bar", ".ar-rail", ".ar-side", ".ar-foot"):
            box = page.locator(part).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 1366
            assert box["y"] + box["height"] <= 768
    assert grounds[0] != grounds[1]
    assert page.locator(".ar-bar").bounding_box()["height"] < 45  # one row
    for button in page.locator(".ar-rail button").all():
        assert button.evaluate("(button) => button.scrollWidth <= button.clientWidth"), button.inner_text()


def test_from_the_queue_to_submitted(page: Any, server: AppServer, workspace: Workspace) -> None:
    page.goto(f"{server.url}/ui/")
    page.locator("#session").get_by_text("no login").wait_for()  # and no way out
    assert page.get_by_role("button", name="Log out").count() == 0
    page.locator('#queue [data-testid="cell-2-1"]').click()
    wait_for_case(page, "case_2")
    page.keyboard.press("Control+Enter")
    page.get_by_text("100 % of the attention has no verdict").wait_for()
    page.locator('[data-choice="back"]').click()
    page.keyboard.press("j")
    page.wait_for_function(f"{EDITOR}.components[0].verdict === 'not_an_error' && {EDITOR}.current === 1")
    assert page.locator('[data-id="reviewed"]').inner_text().startswith("91 % reviewed")
    page.keyboard.press("Control+Enter")  # 9 % are left: not worth a question
    page.get_by_text("case_2 is submitted").wait_for()
    with open_database(sqlite_url(workspace.annotation_db)) as database:
        item = Queue(database).items(0, state="submitted")[0]
        assert (item.case_id, item.verdict) == ("case_2", "accepted")
        assert [v.verdict for v in Revisions(database).verdicts(0, "case_2")] == ["not_an_error"]
        assert item.seconds > 0
    page.get_by_role("tab", name="Queue").click()
    page.get_by_text("1 of 3 cases done").wait_for()
