"""The REST routes on a small real workspace."""

import base64
import gzip
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from ui_workspace import AFFINE, PEAK, SHAPE, make_client, make_workspace

from atlas_ray.annotation.revisions import decode_runs, encode_runs
from atlas_ray.records import Case
from atlas_ray.volume import read_volume
from atlas_ray.workspace import Workspace, write_lines

DICOM = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cptac_pda_189"
SIZE = int(np.prod(SHAPE))


@pytest.fixture(scope="module")
def shared_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """For tests that only read."""
    with make_client(make_workspace(tmp_path_factory.mktemp("ui"))) as client:
        yield client


@pytest.fixture
def client(workspace: Workspace) -> Iterator:
    with make_client(workspace) as client:
        client.post("/api/v1/cases/case_0/lease").raise_for_status()
        yield client


def volume(response) -> nibabel.Nifti1Image:
    assert response.status_code == 200, response.text
    return nibabel.Nifti1Image.from_bytes(response.content)  # the client has undone Content-Encoding


def voxels(response) -> np.ndarray:
    return np.asanyarray(volume(response).dataobj)


def flat(*position: int) -> int:
    return int(np.ravel_multi_index(position, SHAPE, order="F"))


def put(client, runs: list[tuple[int, int, int]], *, revision: int | None = 0, organ: str = "ball", case_id: str = "case_0"):
    headers = {} if revision is None else {"If-Match": f'"{revision}"'}
    body = encode_runs(np.array(runs, np.uint32).reshape(-1, 3))
    return client.put(f"/api/v1/cases/{case_id}/labels/{organ}?seconds=2.5", content=body, headers=headers)


# --- reading ---


def test_queue_and_case(shared_client) -> None:
    listing = shared_client.get("/api/v1/cases?round=0").json()
    assert [(i["case_id"], i["state"], i["organs"]) for i in listing["items"]] == [
        ("case_0", "waiting", ["ball"]),
        ("case_1", "waiting", ["ball"]),
        ("case_2", "waiting", ["ball"]),
    ]
    assert shared_client.get("/api/v1/cases?round=5").status_code == 404
    case = shared_client.get("/api/v1/cases/case_0").json()
    assert case["shape"] == list(SHAPE)
    assert case["orientation"] == "LPS"
    assert [(o["name"], o["rev"], o["queried"]) for o in case["organs"]] == [("ball", 0, True), ("cube", 0, False)]


def test_a_case_says_which_networks_know_which_organ(shared_client) -> None:
    """A network that does not know an organ must not be offered for it: that its label map has no voxel of it is no opinion."""
    case = shared_client.get("/api/v1/cases/case_0").json()
    assert case["architectures"] == ["unet", "visitor"]
    assert [(o["name"], o["unknown_to"]) for o in case["organs"]] == [("ball", []), ("cube", ["visitor"])]


def test_image_is_served_on_its_own_grid(shared_client) -> None:
    image = volume(shared_client.get("/api/v1/cases/case_0/image"))
    assert image.shape == SHAPE
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)


def test_image_is_not_sent_twice(shared_client) -> None:
    tag = shared_client.get("/api/v1/cases/case_0/image").headers["etag"]
    assert shared_client.get("/api/v1/cases/case_0/image", headers={"If-None-Match": tag}).status_code == 304


def test_other_volumes(shared_client) -> None:
    base = "/api/v1/cases/case_0"
    labels = voxels(shared_client.get(f"{base}/labels"))
    assert set(np.unique(labels)) == {0, 3, 7}
    assert voxels(shared_client.get(f"{base}/heat"))[PEAK] == 180
    assert voxels(shared_client.get(f"{base}/attention/ball"))[PEAK] == 1
    np.testing.assert_array_equal(voxels(shared_client.get(f"{base}/architectures/unet")), labels)
    np.testing.assert_array_equal(voxels(shared_client.get(f"{base}/labels/ball")), labels == 3)
    first, second = shared_client.get(f"{base}/components").json()["components"]
    assert (first["organ"], first["peak"], first["verdict"]) == ("ball", list(PEAK), None)
    assert second["organ"] == "cube"


@pytest.mark.parametrize(
    "path",
    [
        "cases/nobody",
        "cases/nobody/image",
        "cases/..%2f..%2fetc/image",
        "cases/case_0/labels/unknown",
        "cases/case_0/attention/..%2fheat",
        "cases/case_0/attention/cube",
        "cases/case_0/architectures/%2e%2e%2fpseudo_label",
        "cases/case_0/labels/unknown/history",
    ],
)
def test_unknown_names_are_404(shared_client, path: str) -> None:
    assert shared_client.get(f"/api/v1/{path}").status_code == 404


def test_float_and_wide_images_become_int16(workspace: Workspace) -> None:
    case = workspace.case("case_0")
    wide = np.full(SHAPE, 40.4, np.float32)
    wide[0, 0, 0], wide[1, 0, 0], wide[2, 0, 0] = 1e6, np.nan, -3024.0
    nibabel.save(nibabel.Nifti1Image(wide, AFFINE), case.image)
    with make_client(workspace) as client:
        image = volume(client.get("/api/v1/cases/case_0/image"))
    found = np.asanyarray(image.dataobj)
    assert found.dtype == np.int16
    assert found[:4, 0, 0].tolist() == [32767, -1024, -3024, 40]
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)


@pytest.mark.skipif(not DICOM.exists(), reason=f"{DICOM} is not on this machine")
def test_dicom_folder(workspace: Workspace) -> None:
    folder = next(path.parent for path in sorted(DICOM.rglob("*.dcm")))
    truth = read_volume(folder)
    case = Case(
        case_id="dicom", image=str(folder), sha256="a" * 64, shape=truth.shape, spacing=truth.spacing,
        orientation=truth.orientation, source="x", license="x", split="pool",
    )  # fmt: skip
    write_lines(workspace.manifest, [case])
    with make_client(workspace) as client:
        image = volume(client.get("/api/v1/cases/dicom/image"))
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), truth.voxels)
    np.testing.assert_allclose(image.affine, truth.affine, atol=1e-4)


# --- saving ---


def test_only_the_edited_voxels_change(client, workspace: Workspace) -> None:
    """Everything else, the affine and the whole header stay bit for bit those of the pseudo-label."""
    before = workspace.pseudo_label(0, "case_0").read_bytes()
    x, y, z = PEAK
    assert put(client, [(flat(0, 0, 0), 2, 1), (flat(x, y, z), 3, 1)]).json() == {"rev": 1, "voxels": 5}
    served = client.get("/api/v1/cases/case_0/labels")
    expected = np.asanyarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(before)).dataobj).copy()
    expected[0:2, 0, 0] = 3
    expected[x : x + 3, y, z] = 3
    np.testing.assert_array_equal(voxels(served), expected)
    assert served.content[:352] == gzip.decompress(before)[:352]
    np.testing.assert_array_equal(volume(served).affine, nibabel.Nifti1Image.from_bytes(gzip.decompress(before)).affine)
    assert workspace.pseudo_label(0, "case_0").read_bytes() == before
    np.testing.assert_array_equal(
        voxels(client.get("/api/v1/cases/case_1/labels")) == 3, voxels(client.get("/api/v1/cases/case_1/labels/ball"))
    )


def test_a_stale_save_is_refused_and_changes_nothing(client) -> None:
    assert put(client, [(0, 1, 1)]).headers["etag"] == '"1"'
    stale = put(client, [(5, 1, 1)])
    assert (stale.status_code, stale.json()["current"], stale.headers["etag"]) == (412, 1, '"1"')
    mask = client.get("/api/v1/cases/case_0/labels/ball")
    assert mask.headers["etag"] == '"1"'
    assert voxels(mask).ravel(order="F")[[0, 5]].tolist() == [1, 0]
    assert put(client, [(5, 1, 1)], revision=1).json()["rev"] == 2


def test_a_save_names_the_revision_it_was_made_on(client) -> None:
    assert put(client, [(0, 1, 1)], revision=None).status_code == 428
    headers = {"If-Match": "*"}
    assert client.put("/api/v1/cases/case_0/labels/ball", content=encode_runs([[0, 1, 1]]), headers=headers).status_code == 422


@pytest.mark.parametrize(
    "runs",
    [[(SIZE - 1, 2, 1)], [(0, 0, 1)], [(0, 1, 2)], [(5, 2, 1), (6, 1, 1)], [(9, 1, 1), (3, 1, 1)], [(4294967295, 4294967295, 1)]],
)
def test_malformed_runs_are_refused(client, runs: list[tuple[int, int, int]]) -> None:
    import zlib

    body = zlib.compress(np.array(runs, "<u4").tobytes())
    answer = client.put("/api/v1/cases/case_0/labels/ball", content=body, headers={"If-Match": '"0"'})
    assert answer.status_code == 422, answer.text
    assert client.get("/api/v1/cases/case_0/labels/ball").headers["etag"] == '"0"'


@pytest.mark.parametrize(
    "body", [b"", b"not compressed", gzip.compress(b"12345"), gzip.compress(bytes(12))[:-9], gzip.compress(bytes(65 << 20))]
)
def test_malformed_bodies_are_refused(client, body: bytes) -> None:
    assert client.put("/api/v1/cases/case_0/labels/ball", content=body, headers={"If-Match": '"0"'}).status_code == 422


def test_a_browsers_gzip_is_read(client) -> None:
    body = gzip.compress(np.array([[7, 1, 1]], "<u4").tobytes())
    assert client.put("/api/v1/cases/case_0/labels/ball", content=body, headers={"If-Match": '"0"'}).json()["rev"] == 1


def test_large_bodies_are_refused_unread(client) -> None:
    headers = {"If-Match": '"0"', "Content-Length": str(1 << 40)}
    assert client.put("/api/v1/cases/case_0/labels/ball", content=b"x", headers=headers).status_code == 413


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "x"])
def test_strange_times_are_refused(client, seconds: str) -> None:
    headers = {"If-Match": '"0"'}
    answer = client.put(f"/api/v1/cases/case_0/labels/ball?seconds={seconds}", content=encode_runs([[0, 1, 1]]), headers=headers)
    assert answer.status_code == 422


def test_history_and_revert(client) -> None:
    put(client, [(0, 4, 1)])
    put(client, [(1, 1, 0)], revision=1)
    history = client.get("/api/v1/cases/case_0/labels/ball/history").json()["revisions"]
    assert [(r["revision_id"], r["parent_id"], r["user"], r["voxels"], r["seconds"]) for r in history] == [
        (1, 0, "annotator", 4, 2.5),
        (2, 1, "annotator", 1, 2.5),
    ]
    draft = voxels(client.get("/api/v1/cases/case_0/architectures/unet")) == 3
    assert client.post("/api/v1/cases/case_0/labels/ball/revert/0").json() == {"rev": 3}
    np.testing.assert_array_equal(voxels(client.get("/api/v1/cases/case_0/labels/ball")), draft)
    assert client.post("/api/v1/cases/case_0/labels/ball/revert/99").status_code == 422


# --- named steps ---


def step(name: str, *runs: tuple[int, int, int], **more) -> dict:
    body = base64.b64encode(encode_runs(np.array(runs, np.uint32).reshape(-1, 3))).decode()
    return {"name": name, "runs": body, **more}


def post_steps(client, *steps: dict, revision: int = 0):
    headers = {"If-Match": f'"{revision}"'}
    return client.post("/api/v1/cases/case_0/labels/ball/steps", json={"steps": steps}, headers=headers)


def ball_corner(client) -> list[int]:
    """The first six voxels of the organ's mask."""
    return voxels(client.get("/api/v1/cases/case_0/labels/ball")).ravel(order="F")[:6].tolist()


def test_every_step_is_a_revision_and_survives_a_reload(client) -> None:
    first = step("brush", (0, 3, 1), seconds=1.5, component=1)
    answer = post_steps(client, first, step("erase", (1, 1, 0)))
    assert (answer.json(), answer.headers["etag"]) == ({"rev": 2, "voxels": 4}, '"2"')
    assert post_steps(client, step("erase", (1, 1, 1), kind="undo"), revision=2).json() == {"rev": 3, "voxels": 1}
    assert ball_corner(client) == [1, 1, 1, 0, 0, 0]
    told = client.get("/api/v1/cases/case_0/labels/ball/steps").json()
    assert told["rev"] == 3
    assert [(s["revision_id"], s["name"], s["kind"], s["voxels"], s["seconds"], s["component"]) for s in told["steps"]] == [
        (1, "brush", "edit", 3, 1.5, 1),
        (2, "erase", "edit", 1, 0.0, None),
        (3, "erase", "undo", 1, 0.0, None),
    ]
    assert [decode_runs(base64.b64decode(s["runs"])).tolist() for s in told["steps"]] == [[[0, 3, 1]], [[1, 1, 0]], [[1, 1, 1]]]
    history = client.get("/api/v1/cases/case_0/labels/ball/history").json()["revisions"]
    assert [(r["name"], r["kind"]) for r in history] == [("brush", "edit"), ("erase", "edit"), ("erase", "undo")]


def test_the_newest_steps_can_be_asked_for(client) -> None:
    post_steps(client, *(step(f"step {n}", (n, 1, 1)) for n in range(5)))
    path = "/api/v1/cases/case_0/labels/ball/steps"
    assert [s["name"] for s in client.get(f"{path}?last=2").json()["steps"]] == ["step 3", "step 4"]
    assert [s["revision_id"] for s in client.get(f"{path}?after=3").json()["steps"]] == [4, 5]
    assert client.get(f"{path}?after=5").json() == {"rev": 5, "steps": []}
    assert client.get("/api/v1/cases/case_0/labels/cube/steps").json() == {"rev": 0, "steps": []}


def test_steps_are_stored_all_or_none(client) -> None:
    assert post_steps(client, step("brush", (0, 1, 1)), step("brush", (SIZE - 1, 2, 1))).status_code == 422
    assert ball_corner(client) == [0, 0, 0, 0, 0, 0]
    assert post_steps(client, step("brush", (0, 1, 1))).json()["rev"] == 1
    stale = post_steps(client, step("brush", (3, 1, 1)), step("brush", (4, 1, 1)))
    assert (stale.status_code, stale.json()["current"]) == (412, 1)
    assert ball_corner(client) == [1, 0, 0, 0, 0, 0]
    assert client.post("/api/v1/cases/case_0/labels/ball/steps", json={"steps": [step("x", (0, 1, 1))]}).status_code == 428


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [step("brush", (0, 1, 1))] * 201,
        [step("", (0, 1, 1))],
        [step("<img src=x>", (0, 1, 1))],
        [step("brush", (0, 1, 1), kind="merge")],
        [step("brush", (0, 1, 1), seconds=-1)],
        [{"name": "brush", "runs": "not base64!"}],
    ],
    ids=["none", "too many", "unnamed", "markup", "unknown kind", "negative time", "not base64"],
)
def test_malformed_steps_are_refused(client, wrong: list[dict]) -> None:
    assert post_steps(client, *wrong).status_code == 422
    assert client.get("/api/v1/cases/case_0/labels/ball/steps").json()["rev"] == 0


def test_small_bodies_that_unfold_to_gigabytes_are_refused(client) -> None:
    """Each step is below the limit, all of them together are not; the zeros are no valid runs, so the sizes differ."""
    many = np.zeros((1 << 20, 3), np.uint32)
    many[:, 0], many[:, 1] = np.arange(1 << 20), 1
    body = base64.b64encode(gzip.compress(many[:SIZE].tobytes())).decode()
    steps = [{"name": "brush", "runs": body}] * 80  # 80 x 0.86 MB
    answer = post_steps(client, *steps)
    assert answer.status_code == 422
    assert "allowed" in answer.json()["detail"]


def test_the_draft_of_an_organ_stays(client) -> None:
    before = voxels(client.get("/api/v1/cases/case_0/labels/ball"))
    put(client, [(0, 4, 1)])
    answer = client.get("/api/v1/cases/case_0/labels/ball/draft")
    assert answer.headers["etag"] == '"0"'
    np.testing.assert_array_equal(voxels(answer), before)


# --- tools ---


def test_a_proposal_changes_nothing_until_it_is_taken(client) -> None:
    """The notch of the ball at PEAK is closed by growing within a box around it; the runs are then an ordinary step."""
    path = "/api/v1/cases/case_0/labels/ball"
    x, y, z = PEAK
    box = [[x - 3, x + 4], [y - 3, y + 4], [z, z + 1]]
    answer = client.post(f"{path}/propose", json={"tool": "grow", "mm": 3.1, "rev": 0, "box": box})
    assert answer.status_code == 200, answer.text
    runs = decode_runs(answer.content)
    changed = np.zeros(SIZE, bool)
    for start, length, value in runs:
        changed[start : start + length] = value
    inside = np.zeros(SHAPE, bool)
    inside[x - 3 : x + 4, y - 3 : y + 4, z] = True
    assert int(answer.headers["x-voxels"]) == changed.sum() > 0
    assert not (changed.reshape(SHAPE, order="F") & ~inside).any()
    assert client.get(path).headers["etag"] == '"0"'
    assert put(client, runs.tolist()).json()["voxels"] == changed.sum()
    stale = client.post(f"{path}/propose", json={"tool": "grow", "mm": 3, "rev": 0})
    assert (stale.status_code, stale.json()["current"]) == (412, 1)


def test_other_organs_are_protected_unless_told_otherwise(client) -> None:
    """The cube begins 5 voxels of 1.5 mm beside the ball."""
    body = {"tool": "grow", "mm": 10.0, "rev": 0, "box": [[38, 44], [24, 27], [11, 13]]}
    path = "/api/v1/cases/case_0/labels/ball/propose"
    cube = voxels(client.get("/api/v1/cases/case_0/labels/cube")).ravel(order="F") == 1
    for protect in (True, False):
        runs = decode_runs(client.post(path, json=body | {"protect": protect}).content)
        taken = np.concatenate([np.arange(start, start + length) for start, length, _ in runs])
        assert cube[taken].any() != protect


def test_a_random_walker_finds_the_ball_in_the_image(client) -> None:
    x, y, z = PEAK
    body = {
        "tool": "random_walker", "rev": 0, "box": [[15, 32], [18, 32], [11, 14]],
        "foreground": [flat(25, 25, 12), flat(x, y, z)], "background": [flat(15, 18, 11)],
    }  # fmt: skip
    answer = client.post("/api/v1/cases/case_0/labels/ball/propose", json=body)
    assert answer.status_code == 200, answer.text
    put(client, decode_runs(answer.content).tolist())
    assert voxels(client.get("/api/v1/cases/case_0/labels/ball"))[PEAK] == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"tool": "dissolve"}, "dissolve"),
        ({"tool": "grow", "mm": -1}, "greater than 0"),
        ({"tool": "grow", "mm": 1, "box": [[0, 99], [0, 5], [0, 5]]}, "does not lie in a volume of 60 x 50 x 24"),
        ({"tool": "random_walker", "foreground": [0], "background": [1], "box": [[0, 512], [0, 512], [0, 9]]}, "at most"),
        ({"tool": "random_walker", "foreground": [0], "background": [0], "box": [[0, 9], [0, 9], [0, 9]]}, "scribbles"),
        ({"tool": "random_walker", "foreground": [SIZE], "background": [0], "box": [[0, 9], [0, 9], [0, 9]]}, "beyond"),
    ],
)
def test_what_a_tool_cannot_do_is_said(client, body: dict, message: str) -> None:
    answer = client.post("/api/v1/cases/case_0/labels/ball/propose", json={"rev": 0} | body)
    assert answer.status_code == 422
    assert message in answer.text


# --- time and comments ---


def test_time_goes_to_organs_and_components(client) -> None:
    spent = [{"organ": "ball", "component": 1, "seconds": 4}, {"organ": None, "component": None, "seconds": 2}]
    assert client.post("/api/v1/cases/case_0/time", json={"entries": spent}).status_code == 204
    post_steps(client, step("brush", (0, 1, 1), seconds=10, component=1))
    assert client.post("/api/v1/cases/case_0/submit", json={"seconds": 1}).json()["seconds"] == 17
    assert client.post("/api/v1/cases/case_1/time", json={"entries": [{"organ": "x", "seconds": 1}]}).status_code == 404
    assert client.post("/api/v1/cases/case_1/time", json={"entries": [{"organ": "ball", "seconds": -1}]}).status_code == 422


def test_comments_and_reasons_are_one_conversation(client) -> None:
    path = "/api/v1/cases/case_0/comments"
    assert client.get(path).json() == {"comments": []}
    assert client.post(path, json={"text": "is this a second lobe?"}).status_code == 204
    client.post("/api/v1/cases/case_0/flag", json={"note": "ask somebody"}).raise_for_status()
    told = client.get(path).json()["comments"]
    assert [(c["user"], c["action"], c["text"]) for c in told] == [
        ("annotator", "comment", "is this a second lobe?"),
        ("annotator", "flag", "ask somebody"),
    ]
    assert client.post(path, json={"text": ""}).status_code == 422


def test_what_comes_next_can_be_fetched_ahead(client) -> None:
    assert client.get("/api/v1/cases/peek").json() == {"case_id": "case_1"}  # case_0 is held
    assert client.get("/api/v1/cases").json()["items"][1]["state"] == "waiting"
    for case_id in ("case_0", "case_1", "case_2"):
        client.post(f"/api/v1/cases/{case_id}/lease").raise_for_status()
        client.post(f"/api/v1/cases/{case_id}/submit", json={}).raise_for_status()
    assert client.get("/api/v1/cases/peek").status_code == 204


# --- the queue ---


def as_user(client, user: str) -> dict[str, str]:
    login = client.app.state.login
    return {"Authorization": f"Bearer {login.session_of(login.accounts.get(user))}"}


@pytest.fixture
def two_users(workspace: Workspace) -> Iterator:
    with make_client(workspace, accounts={"anna": "annotator", "bob": "annotator"}) as client:
        client.headers.update(as_user(client, "anna"))
        yield client


def test_two_annotators_never_hold_one_case(two_users) -> None:
    bob = as_user(two_users, "bob")
    assert two_users.post("/api/v1/cases/next").json()["case_id"] == "case_0"
    assert two_users.post("/api/v1/cases/next", headers=bob).json()["case_id"] == "case_1"
    refused = two_users.post("/api/v1/cases/case_0/lease", headers=bob)
    assert refused.status_code == 409
    assert "leased by anna" in refused.json()["detail"]
    body, match = encode_runs([[0, 1, 1]]), {"If-Match": '"0"'}
    assert two_users.put("/api/v1/cases/case_0/labels/ball", content=body, headers=bob | match).status_code == 409
    assert two_users.get("/api/v1/cases/case_0/labels/ball").headers["etag"] == '"0"'


def test_submit_skip_reopen_and_the_end_of_the_queue(client) -> None:
    put(client, [(0, 1, 1)])
    done = client.post("/api/v1/cases/case_0/submit", json={"seconds": 30, "note": "ok"}).json()
    assert (done["state"], done["seconds"], done["note"]) == ("submitted", 32.5, "ok")
    assert put(client, [(1, 1, 1)], revision=1).status_code == 409
    assert client.post("/api/v1/cases/next").json()["case_id"] == "case_1"
    assert client.post("/api/v1/cases/case_1/skip", json={"note": "cut off"}).json()["state"] == "skipped"
    assert client.post("/api/v1/cases/next").json()["case_id"] == "case_2"
    assert client.post("/api/v1/cases/case_2/submit", json={"seconds": "much"}).status_code == 422
    client.post("/api/v1/cases/case_2/submit", json={}).raise_for_status()
    assert client.post("/api/v1/cases/next").status_code == 204
    assert client.post("/api/v1/cases/case_0/reopen", json={}).json()["state"] == "leased"
    assert put(client, [(1, 1, 1)], revision=1).json()["rev"] == 2
    assert client.post("/api/v1/cases/case_0/submit", json={"seconds": 10}).json()["seconds"] == 45.0


def test_a_case_only_looked_at_goes_back(client) -> None:
    assert client.delete("/api/v1/cases/case_0/lease").json()["state"] == "waiting"


def test_verdicts(client) -> None:
    path = "/api/v1/cases/case_0/components/ball/1/verdict"
    assert client.put(path, json={"verdict": "not_an_error"}).json() == {"verdict": "not_an_error"}
    client.put(path, json={"verdict": "fixed"}).raise_for_status()
    assert [c["verdict"] for c in client.get("/api/v1/cases/case_0/components").json()["components"]] == ["fixed", None]
    assert client.put(path, json={"verdict": "maybe"}).status_code == 422
    assert client.put("/api/v1/cases/case_0/components/ball/9/verdict", json={"verdict": "fixed"}).status_code == 404


# --- files ---


def test_root_leads_to_the_page(shared_client) -> None:
    assert shared_client.get("/").headers["location"] == "/ui/"
    assert shared_client.get("/static/editor.js").headers["cache-control"] == "no-cache"
