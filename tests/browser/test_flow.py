"""An annotator's way through a case, on a real CT and on a large synthetic one: from error to error, to the next case."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from campaign import make_campaign, predicted, synthetic_patient
from kit import (
    EDITOR,
    AppServer,
    aim,
    draft_and_label,
    drag,
    note,
    revision,
    wait_for_case,
    wait_until_idle,
)

from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.queue import Queue
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.organs import Organs, load_organs
from atlas_ray.volume import read_volume
from atlas_ray.workspace import Workspace

STOMACH, LIVER = 9, 5
BIG = (512, 512, 300)
BIG_AFFINE = np.diag([-0.75, -0.75, 1.5, 1.0])
NewPage = Callable[..., Any]
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def organs() -> Organs:
    return load_organs("abdomenatlas_1_0")


@pytest.fixture(scope="module", params=["real", pytest.param("synthetic", marks=pytest.mark.slow)])
def campaign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, organs: Organs) -> Workspace:
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "real":
        ct, labels = (read_volume(request.getfixturevalue("shared_data") / "ts1" / name) for name in ("ct.nii.gz", "labels.nii.gz"))
        image, truth, affine = ct.voxels.astype(np.int16), labels.voxels.astype(np.uint8), ct.affine
        cases = [predicted(name, image, affine, truth, cavities=(STOMACH, LIVER)) for name in ("patient_1", "patient_2")]
    else:
        image, truth = synthetic_patient(BIG, BIG_AFFINE)
        small = synthetic_patient((96, 80, 60), np.diag([-4.0, -4.0, 7.5, 1.0]))
        cases = [predicted("patient_1", image, BIG_AFFINE, truth, cavities=(STOMACH, LIVER))]
        cases += [predicted("patient_2", small[0], np.diag([-4.0, -4.0, 7.5, 1.0]), small[1], cavities=(STOMACH,))]
    return make_campaign(root, organs, cases)


@pytest.fixture(scope="module")
def server(campaign: Workspace) -> Iterator[AppServer]:
    server = AppServer(campaign).start()
    yield server
    server.stop()


def mask_hash(page: Any) -> int:
    """Of the active mask; voxels of a large one would not pass the wire between test and browser."""
    return int(page.evaluate(
        f"(() => {{ let hash = 7; const mask = {EDITOR}.active.edit.mask; for (let v = 0; v < mask.length; v++)"
        " if (mask[v]) hash = (Math.imul(hash, 31) + v) | 0; return hash; })()"
    ))  # fmt: skip


def hash_of(mask: np.ndarray) -> int:
    value = 7
    for voxel in np.flatnonzero(mask.ravel(order="F")).tolist():
        value = (value * 31 + voxel) & 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def test_an_annotator_s_way_through_a_case(
    new_page: NewPage, server: AppServer, campaign: Workspace, organs: Organs, request: pytest.FixtureRequest
) -> None:
    is_real = "real" in request.node.name
    page = new_page(width=1366, height=768)
    images: list[str] = []
    page.on("request", lambda request: images.append(request.url) if request.url.endswith("/cases/patient_2/image") else None)
    page.goto(f"{server.url}/ui/")
    page.locator('#queue [data-testid="cell-0-1"]').click()
    wait_for_case(page, "patient_1")
    truth = read_volume(campaign.architecture_label(0, "patient_1", "nnunet")).voxels
    draft = read_volume(campaign.pseudo_label(0, "patient_1")).voxels
    page.keyboard.press("n")
    page.keyboard.press("p")
    page.wait_for_function(f"{EDITOR}.current === 0 && !{EDITOR}.switching")
    first = page.evaluate(f"{EDITOR}.component")
    label_id = organs.label_id(first["organ"])
    start = mask_hash(page)

    # Component 1 is a cavity: take it from the networks, one after the other, until one has it right.
    for _ in range(3):
        page.keyboard.press("t")
        page.wait_for_function(f"!{EDITOR}.switching && {EDITOR}.takeover.cycle !== null")
        if "nnunet" in note(page) or "unet:" in note(page):
            break
    assert "taken from" in note(page)
    fixed = mask_hash(page)
    assert fixed == hash_of(truth == label_id)

    # Paint, erase, lasso, fill and interpolate around it.
    x, y, z = first["peak"]
    page.evaluate(f"{EDITOR}.moveCursor({[x, y, z]})")
    page.evaluate(f"{EDITOR}.setRadius(5)")
    page.keyboard.press("e")
    spot, _ = aim(page, "axial", (x, y, z))
    page.mouse.click(*spot)
    page.keyboard.press("b")
    page.mouse.click(*spot)
    page.keyboard.press("l")
    page.keyboard.down("Control")
    reach = 5 if is_real else 20
    corners = [(x - reach, y - reach), (x + reach, y - reach), (x + reach, y + reach), (x - reach, y + reach)]
    drag(page, [aim(page, "axial", (*corner, z))[0] for corner in corners], steps=3)
    page.keyboard.up("Control")
    page.keyboard.press("g")
    page.mouse.click(*spot)
    # A slice erased whole comes back by interpolation between its neighbors.
    page.keyboard.press("l")
    page.keyboard.down("Control")
    far = 200 if is_real else 800
    outside = [(x - far, y - far), (x + far, y - far), (x + far, y + far), (x - far, y + far)]
    page.evaluate(f"{EDITOR}.scene.lasso = {[[*corner, z] for corner in outside]}")
    page.evaluate(f"import('/static/tools.js').then(({{TOOLS}}) => TOOLS.lasso.end({EDITOR}, {EDITOR}.planes.axial, 0))")
    page.keyboard.up("Control")
    page.wait_for_function(f"{EDITOR}.scene.lasso.length === 0")
    page.keyboard.press("i")
    page.wait_for_function(f"!{EDITOR}.switching && !document.querySelector('[data-id=step]').textContent.endsWith('…')")
    steps = page.evaluate(f"{EDITOR}.active.edit.past.map((step) => step.name.split(' ')[0])")
    assert steps[0] == "take"
    assert steps[1:3] == ["erase", "paint"]
    assert steps[-1] == "interpolate", (steps, note(page))
    edited = mask_hash(page)

    # Undo everything, redo everything.
    count = len(steps)
    for _ in range(count):
        page.keyboard.press("z")
    assert mask_hash(page) == start
    for _ in range(count):
        page.keyboard.press("y")
    assert mask_hash(page) == edited
    wait_until_idle(page)
    saved = revision(page)
    assert saved >= 3 * count

    # After a reload the same case, mask and history are there.
    page.reload()
    wait_for_case(page, "patient_1")
    assert mask_hash(page) == edited
    assert len(page.evaluate(f"{EDITOR}.active.edit.past.map((step) => step.name)")) == count
    page.locator('[data-tab="history"]').click()
    rows = page.locator('[data-id="history"] li')
    page.wait_for_function("document.querySelectorAll('[data-id=history] li').length > 2")
    assert "anna" in rows.first.inner_text()
    rows.nth(0).click()
    page.wait_for_function(f"{EDITOR}.scene.compare !== null")
    page.keyboard.press("Escape")

    # What is on disk is the draft with exactly the edited organ changed, as the screen shows it.
    _, label = draft_and_label(campaign, "patient_1", organs)
    assert hash_of(label == label_id) == edited
    others = (draft != label_id) & (label != label_id)
    assert (label[others] == draft[others]).all()

    # Verdicts go on from error to error; with enough of them the case is handed in, and the next one is there at once.
    page.locator('[data-tab="errors"]').click()
    while page.evaluate(f"{EDITOR}.components.some((c) => !c.verdict)"):
        judged = page.evaluate(f"{EDITOR}.components.filter((c) => c.verdict).length")
        page.keyboard.press("f")
        page.wait_for_function(f"{EDITOR}.components.filter((c) => c.verdict).length > {judged} && !{EDITOR}.switching")
    page.wait_for_function(f"{EDITOR}.volumes.next !== null")
    page.evaluate(f"{EDITOR}.volumes.next.loaded")
    ahead = len(images)
    assert ahead > 0
    page.keyboard.press("Control+Enter")
    page.get_by_text("patient_1 is submitted").wait_for()
    page.keyboard.press("Enter")
    wait_for_case(page, "patient_2")
    assert len(images) == ahead, "what was fetched ahead was not used"
    with open_database(sqlite_url(campaign.annotation_db)) as database:
        item = Queue(database).items(0, state="submitted")[0]
        assert (item.case_id, item.verdict) == ("patient_1", "fixed")
        assert {v.verdict for v in Revisions(database).verdicts(0, "patient_1")} == {"fixed"}
