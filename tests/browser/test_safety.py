"""Nothing is lost: two annotators, a stale save, a server and a browser that die in the middle of a stroke."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import (
    EDITOR,
    FLAGS,
    PATIENCE_MS,
    AppServer,
    active_mask,
    aim,
    draft_and_label,
    drag,
    open_case,
    revision,
    wait_for_case,
    wait_until_idle,
)
from ui_workspace import ORGANS, PEAK, SHAPE, make_workspace

from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.workspace import Workspace

NewPage = Callable[..., Any]
SERVER_AWAY = (
    "ERR_CONNECTION_REFUSED",
    "Failed to fetch",
    "ERR_EMPTY_RESPONSE",
    "ERR_CONNECTION_RESET",
    "WebSocket",
    "SSE",
    "heartbeat",
    "NetworkError",
    "Could not resolve app config",
    "Connection",
)
CONFLICT = ("412 (Precondition Failed)",)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = make_workspace(tmp_path)
    workspace.config.write_text(f"organs: {ORGANS.model_dump_json()}\n")
    return workspace


@pytest.fixture
def server(workspace: Workspace) -> Iterator[AppServer]:
    server = AppServer(workspace, bare=True).start()
    yield server
    server.stop()


def dab(page: Any, voxel: tuple[int, int, int]) -> None:
    page.evaluate(f"{EDITOR}.setRadius(2)")
    page.evaluate(f"{EDITOR}.moveCursor({list(voxel)})")
    page.mouse.click(*aim(page, "axial", voxel)[0])


def flat(x: int, y: int, z: int) -> int:
    return x + SHAPE[0] * (y + SHAPE[1] * z)


def behind_the_back(workspace: Workspace, parent: int, runs: list[list[int]]) -> None:
    with open_database(sqlite_url(workspace.annotation_db)) as database:
        Revisions(database).save(0, "case_0", "ball", user="bob", parent_id=parent, runs=runs, size=int(np.prod(SHAPE)))


def test_two_annotators_never_get_the_same_case(new_page: NewPage, workspace: Workspace) -> None:
    """Each with a server of their own on one database, so that only the database can keep them apart."""
    servers = [AppServer(workspace, user, bare=True).start() for user in ("anna", "bob")]
    pages = [new_page(), new_page()]
    try:
        for page, server in zip(pages, servers, strict=True):
            page.goto(f"{server.url}/ui/")
        for page in pages:
            page.locator('[data-do="next"]').click()
        for page in pages:
            page.wait_for_selector(".ar-root[data-case]")
        taken = [page.evaluate(f"{EDITOR}.caseId") for page in pages]
        assert len(set(taken)) == 2
        open_case(pages[1], servers[1], taken[0])  # looking is allowed, painting is not
        before = active_mask(pages[1])
        dab(pages[1], PEAK)
        np.testing.assert_array_equal(active_mask(pages[1]), before)
        assert pages[1].locator('[data-id="case-note"]').inner_text() == "read only: anna works on it"
    finally:
        for page in pages:  # before their servers: a page that still fetches ahead would complain
            page.close()
        for server in servers:
            server.stop()


def test_a_stale_save_is_refused_and_put_on_top_where_it_does_no_harm(
    server: AppServer, new_page: NewPage, workspace: Workspace
) -> None:
    page = new_page(expected=CONFLICT)
    open_case(page, server, "case_0")
    behind_the_back(workspace, 0, [[0, 3, 1]])
    dab(page, (5, 40, PEAK[2]))
    wait_until_idle(page)
    assert revision(page) == 2
    _, label = draft_and_label(workspace, "case_0", ORGANS)
    assert label[5, 40, PEAK[2]] == 3
    assert label[:3, 0, 0].tolist() == [3, 3, 3]
    assert {0, 1, 2, flat(5, 40, PEAK[2])} <= set(active_mask(page).tolist())


@pytest.mark.parametrize("choice", ["mine", "theirs"])
def test_where_both_changed_a_voxel_the_annotator_chooses_and_both_are_kept(
    choice: str, server: AppServer, new_page: NewPage, workspace: Workspace
) -> None:
    page = new_page(expected=CONFLICT)
    open_case(page, server, "case_0")
    spot = (5, 40, PEAK[2])
    behind_the_back(workspace, 0, [[flat(*spot), 1, 1], [flat(9, 40, PEAK[2]), 1, 1]])
    dab(page, spot)
    page.get_by_text("bob changed ball meanwhile").wait_for()
    page.locator('[data-choice="show"]').click()
    page.wait_for_function(f"{EDITOR}.scene.compare !== null")
    page.locator(f'[data-choice="{choice}"]').click()
    wait_until_idle(page)
    _, label = draft_and_label(workspace, "case_0", ORGANS)
    assert label[spot] == 3
    assert label[9, 40, PEAK[2]] == 3
    assert label[5, 41, PEAK[2]] == (3 if choice == "mine" else 0)
    if choice == "theirs":
        page.keyboard.press("y")
        wait_until_idle(page)
        assert draft_and_label(workspace, "case_0", ORGANS)[1][5, 41, PEAK[2]] == 3


def test_a_killed_server_costs_nothing(server: AppServer, new_page: NewPage, workspace: Workspace) -> None:
    page = new_page(expected=SERVER_AWAY)
    open_case(page, server, "case_0")
    dab(page, (5, 40, PEAK[2]))
    wait_until_idle(page)
    pixels = [aim(page, "axial", (x, 44, PEAK[2]))[0] for x in (4, 10)]
    drag(page, pixels, release=False)
    server.kill()
    page.mouse.up()
    dab(page, (20, 44, PEAK[2]))
    page.wait_for_selector('[data-id="save"][data-state="offline"]')
    page.keyboard.press("z")
    page.keyboard.press("y")
    painted = active_mask(page)
    server.start()
    wait_until_idle(page)
    _, label = draft_and_label(workspace, "case_0", ORGANS)
    np.testing.assert_array_equal(np.flatnonzero((label == 3).ravel(order="F")), painted)
    assert page.locator('[data-id="save"]').get_attribute("data-state") == "saved"


def test_a_killed_browser_and_server_cost_at_most_the_last_second_of_a_stroke(
    playwright_driver: Any, server: AppServer, workspace: Workspace, tmp_path: Path
) -> None:
    """kill -9 of both while a stroke is being painted; then the same item, with its undo history."""
    chromium = shutil.which("chromium")

    def launch() -> Any:
        context = playwright_driver.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=chromium,
            args=FLAGS,
            viewport={"width": 1600, "height": 1000},
            timeout=PATIENCE_MS,
        )
        context.set_default_timeout(PATIENCE_MS)
        return context

    context = launch()
    page = context.pages[0]
    page.goto(f"{server.url}/ui/")
    page.locator('[data-do="next"]').click()
    wait_for_case(page, "case_0")
    before = active_mask(page)
    dab(page, (5, 40, PEAK[2]))
    wait_until_idle(page)
    server.kill()  # from here on nothing reaches the server
    dab(page, (12, 40, PEAK[2]))
    finished = active_mask(page)
    drag(page, [aim(page, "axial", (x, 44, PEAK[2]))[0] for x in (4, 10)], release=False)
    page.wait_for_timeout(1100)  # more than lies between two drafts of a stroke
    drafted = page.evaluate(f"{EDITOR}.active.lastDraft")
    page.mouse.move(*aim(page, "axial", (11, 44, PEAK[2]))[0])
    page.wait_for_function(f"{EDITOR}.active.lastDraft > {drafted}")
    page.evaluate(f"{EDITOR}.active.outbox.openId")  # a promise: it is written
    page.evaluate(f"{EDITOR}.drafts.shelves()")  # and on disk: reading waits for what is being written
    held = active_mask(page)
    kill_browser(tmp_path / "profile")
    server.start()

    context = launch()
    page = context.pages[0]
    page.goto(f"{server.url}/ui/")
    page.locator('[data-do="next"]').click()
    wait_for_case(page, "case_0")
    wait_until_idle(page)
    after = active_mask(page)
    assert set(finished.tolist()) <= set(after.tolist())
    assert set(after.tolist()) <= set(held.tolist())
    assert len(after) > len(finished)  # the stroke that was never ended is there, too
    for _ in range(3):
        page.keyboard.press("z")
    np.testing.assert_array_equal(active_mask(page), before)
    wait_until_idle(page)
    draft, label = draft_and_label(workspace, "case_0", ORGANS)
    np.testing.assert_array_equal(label, draft)
    context.close()


def kill_browser(profile: Path) -> None:
    """kill -9 of the Chromium processes of this profile, and of no other."""
    while pids := processes_of(profile):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def processes_of(profile: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"--user-data-dir={profile}".encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def test_another_case_s_unsent_edits_are_offered_when_the_page_opens(server: AppServer, new_page: NewPage) -> None:
    page = new_page(expected=SERVER_AWAY)
    open_case(page, server, "case_0")
    server.kill()
    dab(page, (5, 40, PEAK[2]))
    page.wait_for_selector('[data-id="save"][data-state="offline"]')
    painted = active_mask(page)
    page.on("dialog", lambda dialog: dialog.accept())  # "leave the page?"
    page.goto("about:blank")
    server.start()
    page.goto(f"{server.url}/ui/")
    page.get_by_role("button", name="Open case_0").click()
    wait_for_case(page, "case_0")
    wait_until_idle(page)
    np.testing.assert_array_equal(active_mask(page), painted)
