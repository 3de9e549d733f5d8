"""The editor on a large CT: first view, redraw, brush, saving, the next case, and the browser's memory.

A headless Chromium before the app in its own process, over localhost. The volume is synthetic: 512 x 512 x 300 voxels, nine organs,
three networks and the attention where they disagree. The editor is alone in its page: the one around it is loaded once a day.

python benchmarks/app.py [SLICES]
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import one_thread, show_rows

one_thread()
REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "browser")]
from campaign import make_campaign, predicted, synthetic_patient
from kit import EDITOR, FLAGS, AppServer, open_case, revision, wait_until_idle

from atlas_ray.organs import load_organs

CAVITIES = (9, 5)
ROUNDS = 5
TIMED = "(async () => {{ const begun = performance.now(); {body}; return performance.now() - begun; }})()"


def main() -> None:
    slices = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    shape, affine = (512, 512, slices), np.diag([-0.75, -0.75, 1.5, 1.0])
    with tempfile.TemporaryDirectory(prefix="app") as folder:
        image, truth = synthetic_patient(shape, affine)
        cases = [predicted(f"patient_{n}", image, affine, truth, cavities=CAVITIES) for n in (1, 2)]
        workspace = make_campaign(Path(folder), load_organs("abdomenatlas_1_0"), cases)
        del image, truth, cases
        server = AppServer(workspace, bare=True).start()
        try:
            rows = measure(server)
        finally:
            server.stop()
    title = f"Editor, {' x '.join(map(str, shape))}"
    show_rows(title, ("what", "median", "smallest to largest", "n"), rows, note="Chromium without a GPU, 1366 x 768.")


def measure(server: AppServer) -> list[tuple[Any, ...]]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        rows = [first_view(page, server), *drawing(page), *editing(page)]
        rows.append(
            ("memory of the renderer", f"{renderer_mb(browser):.0f} MB", "image, labels, attention, one mask, the next case", 1)
        )
        rows.append(next_case(page))
        browser.close()
    return rows


def first_view(page: Any, server: AppServer) -> tuple[Any, ...]:
    """From asking for the case to planes with labels, attention and a mask to paint on; the first one warms the server up."""
    seconds = []
    for _ in range(ROUNDS + 1):
        open_case(page, server, "patient_1")
        seconds.append(page.evaluate(f"Number({EDITOR}.root.dataset.loadMs)"))
    return row("first view", seconds[1:])


def drawing(page: Any) -> list[tuple[Any, ...]]:
    planes = {name: f"{EDITOR}.planes.{name}.draw()" for name in ("axial", "coronal", "sagittal")}
    every = "; ".join(planes.values())
    found = [row("redraw of three planes", [timed(page, every) for _ in range(10 * ROUNDS)])]
    found += [row(f"redraw, {name}", [timed(page, body) for _ in range(10 * ROUNDS)]) for name, body in planes.items()]
    return found


def editing(page: Any) -> list[tuple[Any, ...]]:
    peak = page.evaluate(f"{EDITOR}.component.peak")
    begin, end = f"{EDITOR}.active.edit.begin('paint')", f"{EDITOR}.made({EDITOR}.active.edit.end())"

    def dab(radius: float, *, sphere: bool) -> str:
        how = f"{{radius: {radius}, value: VALUE, across: 2, sphere: {str(sphere).lower()}, blocked: {EDITOR}.blocked()}}"
        return f"{EDITOR}.active.edit.paint({peak}, {[peak[0] + 6, peak[1], peak[2]]}, {how})"

    found = []
    for what, body in (("brush step, 10 mm disc", dab(10, sphere=False)), ("brush step, 10 mm sphere", dab(10, sphere=True))):
        times = []
        for n in range(4 * ROUNDS):
            page.evaluate(begin)
            times.append(timed(page, body.replace("VALUE", str(n % 2))))
            page.evaluate(end)
        found.append(row(what, times))
    wait_until_idle(page)
    stroke = f"{begin}; {dab(10, sphere=True)}; {end}; await {EDITOR}.flush()"
    found.append(row("a stroke until it is saved", saved(page, [stroke.replace("VALUE", str(n % 2)) for n in range(ROUNDS)])))
    page.evaluate(f"{EDITOR}.takeover.fetchAhead()")  # what the editor does by itself after the first view
    for what, where in (("an error", "component"), ("an organ", "organ")):
        taken = f"await {EDITOR}.takeNext('{where}'); await {EDITOR}.flush()"
        found.append(row(f"{what} taken from the next network, until it is saved", saved(page, [taken] * ROUNDS)))
    found.append(row("undo", [timed(page, f"{EDITOR}.undo()") for _ in range(3)]))
    names = page.evaluate(f"{EDITOR}.info.organs.map((o) => o.name)")
    found.append(row("another organ, first time", [timed(page, f"await {EDITOR}.activate('{name}')") for name in names[:3]]))
    found.append(row("another organ, again", [timed(page, f"await {EDITOR}.activate('{name}')") for name in names[:3]]))
    return found


def saved(page: Any, changes: list[str]) -> list[float]:
    """Milliseconds of each change up to the server's answer; of those that changed something."""
    times = []
    for change in changes:
        wait_until_idle(page)
        before = revision(page)
        milliseconds = timed(page, change)
        if revision(page) > before:
            times.append(milliseconds)
    return times


def next_case(page: Any) -> tuple[Any, ...]:
    """With the case fetched ahead."""
    page.wait_for_function(f"{EDITOR}.volumes.next !== null", timeout=60_000)
    page.evaluate(f"{EDITOR}.volumes.next.loaded.then(() => null)")
    page.evaluate(f"{EDITOR}.open('patient_2')")
    page.wait_for_selector('.ar-root[data-case="patient_2"]', timeout=60_000)
    return row("next case, fetched ahead", [page.evaluate(f"Number({EDITOR}.root.dataset.loadMs)")])


def timed(page: Any, body: str) -> float:
    return float(page.evaluate(TIMED.format(body=body)))


def row(what: str, milliseconds: list[float]) -> tuple[Any, ...]:
    spread = f"{shown(min(milliseconds))} to {shown(max(milliseconds))}"
    return what, shown(statistics.median(milliseconds)), spread, len(milliseconds)


def shown(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2f} s" if milliseconds >= 1000 else f"{milliseconds:.1f} ms"


def renderer_mb(browser: Any) -> float:
    """The largest resident set among the browser's renderers."""
    session = browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    sizes = []
    for process in processes:
        if process["type"] == "renderer":
            status = Path(f"/proc/{process['id']}/status").read_text()
            sizes.append(next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")))
    return max(sizes)


if __name__ == "__main__":
    main()
