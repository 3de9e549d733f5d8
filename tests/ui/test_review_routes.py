"""The review stage by REST: who sees what, who may decide, and cases no network has seen."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fastapi import FastAPI, Request
from nibabel import Nifti1Image
from starlette.testclient import TestClient
from ui_workspace import AFFINE, ORGANS, SHAPE

from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.queue import Queue, QueueEntry
from atlas_ray.annotation.revisions import encode_runs
from atlas_ray.records import Case
from atlas_ray.volume import Volume, read_volume, write_volume
from atlas_ray.workspace import Workspace, write_lines
from ui.api import add_error_handlers, current_role, current_user, router
from ui.store import Store

ROLES = {"anna": "annotator", "ben": "annotator", "carl": "annotator", "rita": "reviewer", "adam": "admin"}
As = Callable[..., TestClient]


def serve(workspace: Workspace, round_index: int = 0) -> FastAPI:
    """The routes with the user named by a header, as the gate would."""
    store = Store(workspace, round_index=round_index, organs=ORGANS, database=open_database(sqlite_url(workspace.annotation_db)))
    app = FastAPI()
    app.state.store = store
    app.include_router(router)
    add_error_handlers(app)
    app.dependency_overrides[current_user] = who
    app.dependency_overrides[current_role] = role
    return app


def who(request: Request) -> str:
    return request.headers["x-user"]


def role(request: Request) -> str:
    return ROLES[request.headers["x-user"]]


@pytest.fixture
def as_user(workspace: Workspace) -> Iterator[As]:
    """A client per user; case_0 is read twice."""
    with open_database(sqlite_url(workspace.annotation_db)) as database:
        queue = Queue(database)
        again = [QueueEntry(case_id="case_0", reading=2, organs=("ball",), rank=1, score=3.0)]
        kept = [QueueEntry(case_id=i.case_id, organs=i.organs, rank=i.rank, score=i.score) for i in queue.items(0)]
        queue.fill(0, kept + again)
    app = serve(workspace)
    yield lambda user: TestClient(app, base_url="http://localhost/api/v1", headers={"x-user": user})
    app.state.store.close()


def annotate(client: TestClient, case_id: str, *runs: tuple[int, int, int], verdict: str = "fixed") -> None:
    client.post(f"cases/{case_id}/lease").raise_for_status()
    if runs:
        put = client.put(f"cases/{case_id}/labels/ball", content=encode_runs(np.array(runs)), headers={"If-Match": '"0"'})
        put.raise_for_status()
    client.post(f"cases/{case_id}/submit", json={"seconds": 60, "verdict": verdict}).raise_for_status()


def corner(client: TestClient, address: str = "case_0") -> list[int]:
    """The organ's first four voxels."""
    answer = client.get(f"cases/{address}/labels/ball")
    answer.raise_for_status()
    return np.asanyarray(Nifti1Image.from_bytes(answer.content).dataobj).ravel(order="F")[:4].tolist()


# --- accept and reject ---


def test_a_rejected_case_comes_back_to_its_annotator_with_the_reason(as_user: As) -> None:
    anna, rita = as_user("anna"), as_user("rita")
    annotate(anna, "case_1", (0, 1, 1), verdict="unsure")
    (item,) = rita.get("review").json()["items"]
    assert (item["case_id"], item["user"], item["reason"]) == ("case_1", "anna", "the annotator was unsure")
    said = {"verdict": "rejected", "reason": "the notch is still open"}
    assert rita.post("cases/case_1/review", json=said).json()["state"] == "waiting"
    assert rita.get("review").json()["items"] == []
    back = anna.post("cases/next").json()
    assert (back["case_id"], back["note"], back["review"]) == ("case_1", "", "rejected")
    assert anna.get("cases/case_1").json()["review_note"] == "the notch is still open"
    assert [c["text"] for c in anna.get("cases/case_1/comments").json()["comments"]] == ["the notch is still open"]
    assert corner(anna, "case_1") == [1, 0, 0, 0]  # what was saved is still there
    anna.post("cases/case_1/submit", json={}).raise_for_status()
    assert rita.post("cases/case_1/review", json={"verdict": "accepted"}).json()["review"] == "accepted"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "review", None),
        ("POST", "cases/case_1/review", {"verdict": "accepted"}),
        ("POST", "cases/case_1/review", {"verdict": "rejected", "reason": "no"}),
        ("GET", "cases/case_0/agreement", None),
        ("POST", "cases/case_0/resolve", {"reading": 1}),
    ],
)
def test_annotators_do_not_review(as_user: As, method: str, path: str, body: dict | None) -> None:
    annotate(as_user("anna"), "case_1")
    refused = as_user("ben").request(method, path, json=body)
    assert (refused.status_code, "ben is an annotator" in refused.text) == (403, True)


def test_nobody_but_an_admin_decides_on_their_own_work(as_user: As) -> None:
    for user, status in (("rita", 403), ("adam", 200)):
        case_id = "case_1" if user == "rita" else "case_2"
        annotate(as_user(user), case_id)
        assert as_user(user).post(f"cases/{case_id}/review", json={"verdict": "accepted"}).status_code == status


def test_what_cannot_be_decided_is_refused(as_user: As) -> None:
    rita = as_user("rita")
    annotate(as_user("anna"), "case_1")
    assert rita.post("cases/case_1/review", json={"verdict": "rejected", "reason": " "}).status_code == 422
    assert rita.post("cases/case_1/review", json={"verdict": "perhaps"}).status_code == 422
    assert rita.post("cases/case_2/review", json={"verdict": "accepted"}).status_code == 409  # nobody has submitted it
    assert rita.post("cases/case_2/resolve", json={"reading": 1}).status_code == 409
    assert rita.get("cases/case_2/agreement").status_code == 404  # read once
    assert rita.post("cases/nobody/review", json={"verdict": "accepted"}).status_code == 404


# --- blind double reading ---


def test_two_annotators_read_one_case_blind(as_user: As) -> None:
    anna, ben, carl, rita = (as_user(user) for user in ("anna", "ben", "carl", "rita"))
    annotate(anna, "case_0", (0, 2, 1))
    assert ben.post("cases/next").json()["reading"] == 2
    assert ben.get("cases/case_0").json()["organs"][0]["rev"] == 0  # the draft, without anna's edit
    assert corner(ben) == [0, 0, 0, 0]
    assert corner(ben, "case_0@1") == [0, 0, 0, 0]  # asking for it does not help
    assert ben.get("cases/case_0/labels/ball/steps").json() == {"rev": 0, "steps": []}
    annotate(ben, "case_0", (1, 2, 1))
    assert (corner(anna), corner(ben)) == ([1, 1, 0, 0], [0, 1, 1, 0])
    assert carl.get("cases/case_0/labels/ball").status_code == 409  # both readings are somebody else's
    assert rita.get("cases/case_0@2/image").status_code == 200
    assert rita.get("cases/case_0@3").status_code == 404
    assert (corner(rita), corner(rita, "case_0@2")) == ([1, 1, 0, 0], [0, 1, 1, 0])


def test_agreement_and_decision(as_user: As) -> None:
    rita = as_user("rita")
    annotate(as_user("anna"), "case_0")
    annotate(as_user("ben"), "case_0", (0, 3, 1))
    assert [i["reading"] for i in rita.get("review").json()["items"]] == [1, 2]
    ball, cube = rita.get("cases/case_0/agreement?tolerance_mm=1").json()["organs"]
    draft = as_user("anna").get("cases/case_0/labels/ball/draft")
    voxels = int(np.asanyarray(Nifti1Image.from_bytes(draft.content).dataobj).sum())
    assert ball["dice"] == pytest.approx(2 * voxels / (2 * voxels + 3))
    assert 0.9 < ball["surface_dice"] < 1
    assert ball["ml"] == pytest.approx([voxels * 0.01125, (voxels + 3) * 0.01125])
    assert (cube["dice"], cube["surface_dice"]) == (1, 1)
    taken = rita.post("cases/case_0/resolve", json={"reading": 2}).json()
    assert (taken["reading"], taken["review"]) == (2, "accepted")
    assert corner(rita) == [1, 1, 1, 0]  # a reviewer now sees the one that counts
    assert rita.get("review").json()["items"] == []


# --- no networks ---


@pytest.fixture
def labeled(tmp_path, workspace: Workspace) -> Workspace:
    """Round 1 of the same campaign: nothing is predicted; one case has a label, the other has none."""
    image = workspace.case("case_0").image
    label = np.zeros(SHAPE, np.uint8)
    label[2:6, 2:6, 2:6] = 3
    label[20:24, 2:6, 2:6] = 7
    write_volume(workspace.label("labeled"), Volume(np.asfortranarray(label), AFFINE))
    cases = [
        Case(
            case_id=name, image=image, sha256="a" * 64, shape=SHAPE, spacing=(1.5, 1.5, 5.0), orientation="LPS", source="x",
            license="x", split="train", labeled_organs=organs,
        )
        for name, organs in (("labeled", ("ball",)), ("bare", ()))
    ]  # fmt: skip
    write_lines(workspace.manifest, cases)
    with open_database(sqlite_url(workspace.annotation_db)) as database:
        entries = [QueueEntry(case_id=c.case_id, organs=("ball",), rank=n) for n, c in enumerate(cases, 1)]
        Queue(database).fill(1, entries, state="submitted")
    return workspace


def test_labels_are_reviewed_without_any_prediction(labeled: Workspace) -> None:
    app = serve(labeled, round_index=1)
    rita, anna = (TestClient(app, base_url="http://localhost/api/v1", headers={"x-user": user}) for user in ("rita", "anna"))
    waiting = rita.get("review").json()["items"]
    assert [(i["case_id"], i["reason"], i["attention_mm3"]) for i in waiting] == [
        ("labeled", "a label nobody has looked at", None),
        ("bare", "a label nobody has looked at", None),
    ]
    case = rita.get("cases/labeled").json()
    assert (case["architectures"], [o["predicted_ml"] for o in case["organs"]]) == ([], [None, None])
    assert rita.get("cases/labeled/components").json() == {"components": []}
    assert rita.get("cases/labeled/heat").status_code == 404
    shown = Nifti1Image.from_bytes(rita.get("cases/labeled/labels").content)
    assert np.array_equal(np.asanyarray(shown.dataobj), np.where(read_volume(labeled.label("labeled")).voxels == 3, 3, 0))
    empty = Nifti1Image.from_bytes(rita.get("cases/bare/labels").content)
    assert (empty.shape, np.asanyarray(empty.dataobj).any()) == (SHAPE, False)
    np.testing.assert_allclose(empty.affine, AFFINE, atol=1e-5)
    assert rita.post("cases/labeled/review", json={"verdict": "accepted"}).status_code == 200
    rita.post("cases/bare/review", json={"verdict": "rejected", "reason": "draw it"}).raise_for_status()
    assert anna.post("cases/next").json()["case_id"] == "bare"
    body = encode_runs(np.array([[0, 5, 1]]))
    assert anna.put("cases/bare/labels/ball", content=body, headers={"If-Match": '"0"'}).json()["rev"] == 1
    app.state.store.close()
