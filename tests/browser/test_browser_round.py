"""A round as its people see it: an annotator and a reviewer log in, work on one case and hand it to each other.

With ATLAS_SCREENSHOTS=FOLDER it leaves the pictures of the documentation there.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from campaign import make_campaign, predicted, synthetic_patient
from kit import EDITOR, AppServer, aim, draft_and_label, note, picture, wait_for_case, wait_until_idle

from atlas_ray.annotation.accounts import Accounts
from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.queue import Queue
from atlas_ray.data.phantom import Phantom, procedural_patient
from atlas_ray.organs import Organs, load_organs
from atlas_ray.prioritization.effort import Budget
from atlas_ray.storage import write_atomically
from atlas_ray.volume import read_volume
from atlas_ray.workspace import Workspace

STOMACH, LIVER, GALL_BLADDER = 9, 5, 2
PASSWORD = "correct horse"
REASON = "The fundus is still cut off near the diaphragm."
NewPage = Callable[..., Any]


@pytest.fixture(scope="module")
def organs() -> Organs:
    return load_organs("abdomenatlas_1_0")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, organs: Organs) -> Workspace:
    knobs = Phantom(spacing=(2.0, 2.0, 3.0), orientation="LPS", field_of_view_mm=(370, 270, 210))
    patient = procedural_patient(knobs, seed=3, organs=organs)
    affine = np.diag([-6.0, -6.0, 8.0, 1.0])
    small = synthetic_patient((64, 48, 40), affine)
    truth = np.asfortranarray(patient.label.voxels)
    cases = [predicted("patient_01", patient.image.voxels, patient.image.affine, truth, cavities=(STOMACH, GALL_BLADDER))]
    cases += [predicted(f"patient_{n:02}", small[0], affine, small[1], cavities=(STOMACH, LIVER)[: 1 + n % 2]) for n in range(2, 9)]
    workspace = make_campaign(tmp_path_factory.mktemp("round"), organs, cases)
    with workspace.config.open("a") as config:
        config.write("annotation: {second_reader_share: 1.0}\n")
    others_worked_on_it(workspace)
    networks_were_measured(workspace, organs)
    return workspace


def others_worked_on_it(workspace: Workspace) -> None:
    with open_database(sqlite_url(workspace.annotation_db)) as database:
        accounts, queue = Accounts(database), Queue(database)
        for name, role in (("anna", "annotator"), ("ben", "annotator"), ("rita", "reviewer")):
            accounts.add(name, PASSWORD, role)
        held = {n: queue.claim(0, f"patient_{n:02}", "ben").item_id for n in (2, 3, 4, 5)}
        queue.submit(held[2], "ben", seconds=140, note="motion at the dome")
        queue.submit(held[3], "ben", verdict="unsure", seconds=205, note="is this duodenum or pancreas?")
        queue.flag(held[4], "ben", note="arterial phase, the portal vein is not enhanced")


def networks_were_measured(workspace: Workspace, organs: Organs) -> None:
    """A priority list of 160 cases with its cut, and the Dice of two rounds."""
    scores = [900 * 0.93**n + 12 for n in range(160)]
    listed = pd.DataFrame({"rank": range(1, 161), "case_id": [f"patient_{n:02}" for n in range(1, 161)], "score": scores})
    listed.to_parquet(workspace.priority_parquet(0))
    budget = Budget(case_ids=("patient_01",), cases=8, of_cases=160, share=0.05, minutes=120, days=0.25, knee=31, rule="share")
    write_atomically(workspace.budget(0), budget.model_dump_json())
    for number in (0, 1):
        found = [
            {"organ": organ.name, "dice": 0.80 + 0.015 * n % 0.13 + 0.03 * number, "cases": 12} for n, organ in enumerate(organs)
        ]
        write_atomically(workspace.evaluation(number), json.dumps({"organs": found}))


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[AppServer]:
    server = AppServer(workspace, user=None).start()
    yield server
    server.stop()


def log_in(page: Any, server: AppServer, user: str) -> None:
    page.goto(f"{server.url}/ui/")
    assert page.url.endswith("/login")
    page.get_by_label("Name").fill(user)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button").click()
    page.locator("#session").get_by_text(user).wait_for()


def log_out(page: Any) -> None:
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")


def cell(page: Any, table: str, text: str) -> Any:
    return page.locator(f'#{table} [role="gridcell"]').get_by_text(text, exact=True).first


def test_a_case_goes_from_the_annotator_to_the_reviewer_and_back(
    new_page: NewPage, server: AppServer, workspace: Workspace, organs: Organs
) -> None:
    page = new_page(width=1366, height=768)
    log_in(page, server, "anna")
    cell(page, "queue", "motion at the dome").wait_for()
    picture(page, "queue.png")

    # The stomach's cavity is the first error; one network has it right.
    page.get_by_role("button", name="Next case").first.click()
    wait_for_case(page, "patient_01")
    page.wait_for_function(f"{EDITOR}.component.organ === 'stomach' && {EDITOR}.scene.flags !== null")
    picture(page, "error.png")
    for _ in range(3):
        page.keyboard.press("t")
        page.wait_for_function(f"!{EDITOR}.switching && {EDITOR}.takeover.cycle !== null")
        if "nnunet" in note(page):
            break
    assert "taken from nnunet" in note(page)
    page.mouse.click(*aim(page, "axial", page.evaluate(f"{EDITOR}.component.peak"))[0])
    page.keyboard.press("e")
    page.mouse.click(*aim(page, "axial", page.evaluate(f"{EDITOR}.component.peak"))[0])
    page.keyboard.press("z")
    wait_until_idle(page)
    page.keyboard.press("a")  # what is fixed is seen without the attention on it
    picture(page, "fixed.png")
    page.keyboard.press("a")
    while page.evaluate(f"{EDITOR}.components.some((c) => !c.verdict)"):
        judged = page.evaluate(f"{EDITOR}.components.filter((c) => c.verdict).length")
        page.keyboard.press("f" if judged == 0 else "j")
        page.wait_for_function(f"{EDITOR}.components.filter((c) => c.verdict).length > {judged} && !{EDITOR}.switching")
    page.keyboard.press("Control+Enter")
    page.get_by_text("patient_01 is submitted").wait_for()
    truth = read_volume(workspace.architecture_label(0, "patient_01", "nnunet")).voxels
    draft, label = draft_and_label(workspace, "patient_01", organs)
    np.testing.assert_array_equal(label == STOMACH, truth == STOMACH)
    np.testing.assert_array_equal(label[truth != STOMACH], draft[truth != STOMACH])
    log_out(page)

    # The reviewer looks at it without being able to change it, and sends it back.
    log_in(page, server, "rita")
    page.get_by_role("tab", name="Review").click()
    cell(page, "review", "patient_01").click()
    page.locator("#review-said").get_by_text("patient_01").wait_for()
    page.locator("#reason textarea, #reason input").fill(REASON)
    picture(page, "review.png")
    page.locator("#review-open").click()
    wait_for_case(page, "patient_01")
    assert page.locator('[data-id="case-note"]').inner_text() == "read only: submitted; reopen it to change it"
    page.get_by_role("tab", name="Review").click()
    cell(page, "review", "patient_01").click()
    page.locator("#review-said").get_by_text("patient_01").wait_for()
    page.locator("#reason textarea, #reason input").fill(REASON)
    page.locator("#reject").click()
    page.locator("#review-said").get_by_text("is rejected").wait_for()
    log_out(page)

    # Its annotator gets it first, reads why, and hands it in again.
    log_in(page, server, "anna")
    cell(page, "queue", REASON).wait_for()
    page.get_by_role("button", name="Next case").first.click()
    wait_for_case(page, "patient_01")
    assert page.locator('[data-id="alert"]').inner_text() == f"Sent back by rita: {REASON}"
    page.keyboard.press("Control+Enter")
    page.get_by_text("patient_01 is submitted").wait_for()
    log_out(page)

    log_in(page, server, "rita")
    page.get_by_role("tab", name="Review").click()
    cell(page, "review", "patient_01").click()
    page.locator("#review-said").get_by_text("patient_01").wait_for()
    page.locator("#accept").click()
    page.locator("#review-said").get_by_text("is accepted").wait_for()
    page.get_by_role("tab", name="Round").click()
    page.locator(".round-report svg").nth(1).wait_for()
    page.get_by_role("button", name="Light / dark").click()
    assert page.locator(".round-report").get_by_text("3 of 8").is_visible()
    picture(page, "round.png")
