"""The app in its own process and a Chromium before it, and the few questions every test asks them."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.merge import paint_edits
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.organs import Organs
from atlas_ray.volume import read_volume
from atlas_ray.workspace import Workspace

REPOSITORY = Path(__file__).resolve().parents[2]
EDITOR = "document.querySelector('.ar-root').atlasEditor"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MS = 120_000  # of every wait for a page: the machine may be slow, or busy with other things
Page = Any  # playwright's
Voxel = tuple[int, int, int]


class AppServer:
    """`python -m ui` as a user starts it, or bare (see bare_app.py); the port outlives a restart.

    Args:
        user: lets everybody in as this one; None asks for an account.
    """

    def __init__(self, workspace: Workspace, user: str | None = "anna", *, bare: bool = False) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://localhost:{self.port}"
        self.log = workspace.root / f"server_{user}.log"
        open_to = [] if user is None else ["--no-auth", "--user", user]
        whole = ["-m", "ui", str(workspace.root), "--port", str(self.port), *open_to]
        alone = [str(Path(__file__).with_name("bare_app.py")), str(workspace.root), str(self.port), str(user)]
        self.command = [sys.executable, *(alone if bare else whole)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "AppServer":
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(self.command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, env=environment)
        deadline = time.monotonic() + 240
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/login", timeout=10):
                    return self
            except OSError:
                time.sleep(0.25)
        self.kill()
        raise RuntimeError(f"the server did not start:\n{self.log.read_text()}")

    def kill(self) -> None:
        """As a power cut: no goodbye."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
                raise


def picture(page: Page, name: str) -> None:
    """For the documentation, where a folder for it is given."""
    if folder := os.environ.get("ATLAS_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(Path(folder) / name, optimize=True)


def open_case(page: Page, server: AppServer, case_id: str) -> None:
    page.goto(f"{server.url}/ui/?case={case_id}")
    wait_for_case(page, case_id)


def wait_for_case(page: Page, case_id: str) -> None:
    page.wait_for_selector(f'.ar-root[data-case="{case_id}"]', timeout=PATIENCE_MS)
    page.wait_for_function(f"{EDITOR}.active !== null && !{EDITOR}.switching", timeout=PATIENCE_MS)


def take_up(page: Page, organ: str) -> None:
    page.evaluate(f"{EDITOR}.activate('{organ}')")
    page.wait_for_function(f"{EDITOR}.organ.name === '{organ}' && !{EDITOR}.switching")


Aim = tuple[tuple[int, int], npt.NDArray[np.float64]]


def aim(page: Page, plane: str, voxel: Voxel) -> Aim:
    """The whole screen pixel nearest to a voxel's center, and the voxel coordinates exactly under that pixel."""
    box = page.locator(f'[data-plane="{plane}"]').bounding_box()
    left, top = box["x"], box["y"]
    x, y = page.evaluate(f"{EDITOR}.planes['{plane}'].toScreen({list(voxel)})")
    pixel = round(left + x), round(top + y)
    position = page.evaluate(f"{EDITOR}.planes['{plane}'].toVoxel({pixel[0] - left}, {pixel[1] - top})")
    return pixel, np.array(position)


def drag(page: Page, pixels: list[tuple[int, int]], steps: int = 8, release: bool = True) -> None:
    page.mouse.move(*pixels[0])
    page.mouse.down()
    for pixel in pixels[1:]:
        page.mouse.move(*pixel, steps=steps)
    if release:
        page.mouse.up()


def active_mask(page: Page) -> npt.NDArray[np.intp]:
    """Flat file-order indices of the active organ's mask."""
    found = f"[...{EDITOR}.active.edit.mask.keys()].filter((v) => {EDITOR}.active.edit.mask[v])"
    return np.array(page.evaluate(found), dtype=np.intp)


def wait_until_idle(page: Page) -> None:
    """No slow operation of the editor is running, and everything is at the server."""
    page.wait_for_function(f"!{EDITOR}.switching && !{EDITOR}.waiting", timeout=PATIENCE_MS)


def revision(page: Page) -> int:
    return int(page.evaluate(f"{EDITOR}.active.outbox.revision"))


def note(page: Page) -> str:
    return str(page.locator('[data-id="step"]').inner_text())


def draft_and_label(workspace: Workspace, case_id: str, organs: Organs) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The pseudo-label on disk, and the label after the stored revisions."""
    draft = read_volume(workspace.pseudo_label(0, case_id)).voxels
    with open_database(sqlite_url(workspace.annotation_db)) as database:
        return draft, paint_edits(draft, Revisions(database).edits(0, case_id), organs)
