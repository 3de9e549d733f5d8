"""The REST routes on a small real workspace."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from starlette.testclient import TestClient
from ui_workspace import AFFINE, ORGANS, PEAK, SHAPE, make_workspace

from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.revisions import encode_runs
from atlas_ray.records import Case
from atlas_ray.volume import read_volume
from atlas_ray.workspace import Workspace, write_lines
from ui.app import create_api
from ui.login import COOKIE, Login
from ui.store import Store

DICOM = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cptac_pda_189"


def make_client(workspace: Workspace, *, login: Login | None = None, local_only: bool = True) -> TestClient:
    """The REST side: gradio leaves event loops unclosed, so only the tests of the page load it."""
    database = open_database(sqlite_url(workspace.annotation_db))
    store = Store(workspace, round_index=0, organs=ORGANS, database=database)
    api = create_api(store, login=login or Login(default_user="annotator"), local_only=local_only)
    return TestClient(api, base_url="http://localhost", follow_redirects=False)


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


SIZE = int(np.prod(SHAPE))


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


# --- the queue ---


def as_user(client, user: str) -> dict[str, str]:
    return {"Cookie": f"{COOKIE}={client.app_login.cookie(user)}"}


@pytest.fixture
def two_users(workspace: Workspace) -> Iterator:
    login = Login(default_user="anna")
    with make_client(workspace, login=login) as client:
        client.app_login = login
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


# --- who may ask ---


def test_login_and_logout(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.login.REFUSAL_SECONDS", 0.0)
    with make_client(workspace, login=Login("correct horse"), local_only=False) as client:
        assert client.post("/login", content="user=anna&password=wrong").status_code == 401
        assert client.post("/login", content="user=%3Cb%3E&password=correct+horse").status_code == 422
        answer = client.post("/login", content="user=anna&password=correct+horse")
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/")
        assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].replace("samesite", "SameSite").split("; "))
        assert client.get("/api/v1/session").json()["user"] == "anna"
        client.get("/logout")
        assert client.get("/api/v1/session").status_code == 401


def test_cookies_are_signed_and_end() -> None:
    login = Login("correct horse")
    cookie = login.cookie("anna", now=0)
    assert login.user(cookie, now=10) == "anna"
    assert login.user(cookie, now=1e6) is None
    assert login.user(cookie.replace("anna", "root"), now=10) is None
    assert login.user("", now=10) is login.user(None, now=10) is login.user("x:é:y", now=10) is None
    assert Login("other horse").user(cookie, now=10) is None
    assert Login("correct horse").user(cookie, now=10) == "anna"  # a restarted server knows its users


def test_foreign_pages_cannot_use_a_local_server(shared_client) -> None:
    assert shared_client.get("/api/v1/session", headers={"Host": "evil.example"}).status_code == 421
    foreign = {"Origin": "http://evil.example"}
    assert shared_client.post("/api/v1/cases/next", headers=foreign).status_code == 403
    assert shared_client.get("/api/v1/session", headers=foreign).status_code == 200  # the browser keeps the answer from the page


def test_root_leads_to_the_page(shared_client) -> None:
    assert shared_client.get("/").headers["location"] == "/ui/"
    assert shared_client.get("/static/editor.js").headers["cache-control"] == "no-cache"
