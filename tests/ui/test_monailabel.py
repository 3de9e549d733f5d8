"""What 3D Slicer's MONAI Label module does, with MONAI Label's own client against a real server."""

import gc
import gzip
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
import uvicorn
from ui_workspace import AFFINE, ORGANS, PASSWORD, SHAPE, make_client, make_workspace

from atlas_ray.annotation.accounts import ATTEMPTS_PER_USER
from atlas_ray.annotation.revisions import encode_runs
from atlas_ray.volume import read_volume
from atlas_ray.workspace import Workspace

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports cgi, which Python 3.13 has no more
    monailabel = pytest.importorskip("monailabel.client", reason="monailabel's client cannot be imported", exc_type=ImportError)

# The client leaves its connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
BALL, CUBE = ORGANS.label_ids
NOTCH = (slice(20, 24), slice(23, 27), slice(11, 13))


@pytest.fixture(scope="module", autouse=True)
def collect_connections() -> Iterator[None]:
    """Here, where they are allowed for, and not in some later module."""
    yield
    gc.collect()


class Served:
    """A server on a free port of this machine."""

    def __init__(self, workspace: Workspace, accounts: dict[str, str] | None) -> None:
        self.app = make_client(workspace, accounts=accounts).app
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", timeout_graceful_shutdown=3))
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{bound.getsockname()[1]}/monailabel"
        self.thread = threading.Thread(target=self.server.run, args=([bound],), daemon=True)  # it closes the socket
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the server did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def alone(workspace: Workspace) -> Iterator[Served]:
    """Without accounts."""
    served = Served(workspace, None)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Without accounts, for tests that change nothing; case_0 is leased."""
    served = Served(make_workspace(tmp_path_factory.mktemp("slicer")), None)
    served.app.state.store.queue.next("annotator", round_index=0)
    yield served
    served.stop()


@pytest.fixture
def reader(unchanged: Served, tmp_path: Path):
    return monailabel.MONAILabelClient(unchanged.url, str(tmp_path), "user-xyz")


@pytest.fixture
def together(workspace: Workspace) -> Iterator[Served]:
    served = Served(workspace, {"anna": "annotator", "bob": "annotator"})
    yield served
    served.stop()


@pytest.fixture
def client(alone: Served, tmp_path: Path):
    return monailabel.MONAILabelClient(alone.url, str(tmp_path), "user-xyz")


@pytest.fixture
def draft(unchanged: Served) -> np.ndarray:
    return np.asarray(read_volume(unchanged.app.state.store.workspace.pseudo_label(0, "case_0")).voxels)


def save_file(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return str(path)


def current(client) -> np.ndarray:
    return np.asarray(read_volume(client.download_label("case_0", "final")).voxels)


def revisions(served: Served, organ: str) -> list[tuple[str, int]]:
    found = served.app.state.store.revisions.history(0, "case_0", organ)
    return [(revision.user, revision.voxels) for revision in found]


def filled(draft: np.ndarray) -> np.ndarray:
    """The draft with a corner of the ball's notch painted."""
    drawn = draft.copy()
    drawn[NOTCH] = BALL
    return drawn


# --- what there is ---


def test_info(reader) -> None:
    info = reader.info()
    assert not info.get("config")  # with one, Slicer asks for a newer server
    assert info["labels"] == ["ball", "cube"]
    assert list(info["models"]) == ["current", "ensemble", "unet", "visitor"]  # Slicer opens a case with the first
    for model in info["models"].values():
        assert model["type"] == "segmentation"
        assert model["labels"] == {"ball": BALL, "cube": CUBE}
        assert model["description"]
    assert list(info["strategies"]) == ["attention"]
    assert info["datastore"] == {"total": 3, "completed": 0, "label_tags": {}}
    assert reader.auth_enabled() is False


def test_next_sample_is_leased_and_can_be_loaded(client, alone: Served, workspace: Workspace, tmp_path: Path) -> None:
    sample = client.next_sample("attention", {})
    assert (sample["id"], sample["name"], sample["weight"]) == ("case_0", "case_0.nii.gz", 3.0)
    assert sample["path"] == workspace.case("case_0").image  # this machine: Slicer reads the file itself
    assert alone.app.state.store.queue.item((0, "case_0")).state == "leased"
    assert client.next_sample("attention", {"x": 1})["id"] == "case_0"  # the unfinished one
    answer = requests.get(f"{alone.url}/datastore/image?image=case_0", timeout=10)
    assert "content-encoding" not in answer.headers
    (tmp_path / sample["name"]).write_bytes(answer.content)
    loaded = read_volume(tmp_path / sample["name"])
    np.testing.assert_array_equal(loaded.voxels, read_volume(sample["path"]).voxels)
    np.testing.assert_allclose(loaded.affine, AFFINE, atol=1e-5)
    with pytest.raises(monailabel.client.MONAILabelClientException, match=r"Status: 404.*no strategy"):
        client.next_sample("random", {})


@pytest.mark.parametrize("model", ["current", "ensemble", "unet"])
def test_infer_gives_a_label_that_exists(reader, draft: np.ndarray, model: str) -> None:
    file, params = reader.infer(model, "case_0", {"result_extension": ".nrrd"})
    found = read_volume(file)
    np.testing.assert_array_equal(found.voxels, draft)
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-5)
    assert params["label_names"] == {"ball": BALL, "cube": CUBE}


def test_infer_names_only_the_organs_that_are_there(client, draft: np.ndarray, tmp_path: Path) -> None:
    """Slicer gives the n-th name to the n-th value it finds."""
    client.save_label("case_0", save_file(tmp_path / "label.nii.gz", np.where(draft == CUBE, CUBE, 0).astype(np.uint8)), tag="work")
    _, params = client.infer("current", "case_0", {})
    assert params["label_names"] == {"cube": CUBE}
    assert client.infer("ensemble", "case_0", {})[1]["label_names"] == {"ball": BALL, "cube": CUBE}


# --- saving ---


def test_a_submitted_label_is_stored_bit_for_bit(client, alone: Served, draft: np.ndarray, tmp_path: Path) -> None:
    client.next_sample("attention", {})
    drawn = filled(draft)
    drawn[0:2, 0, 0] = CUBE
    answer = client.save_label("case_0", save_file(tmp_path / "label.nii.gz", drawn), params={})
    assert (answer["image"], answer["label"], answer["organs"]) == ("case_0", "case_0", ["ball", "cube"])
    np.testing.assert_array_equal(current(client), drawn)
    assert revisions(alone, "ball") == [("annotator", int((drawn != draft)[NOTCH].sum()))]
    assert revisions(alone, "cube") == [("annotator", 2)]
    item = alone.app.state.store.queue.item((0, "case_0"))
    assert (item.state, item.verdict, item.user) == ("submitted", "fixed", "annotator")
    assert client.info()["datastore"] == {"total": 3, "completed": 1, "label_tags": {"final": 1}}
    assert list(client.datastore()["objects"]["case_0"]["labels"]) == ["final"]
    assert client.next_sample("attention", {})["id"] == "case_1"


def test_slicers_own_numbers_are_read_by_its_label_info(client, draft: np.ndarray, tmp_path: Path) -> None:
    """Slicer counts the segments from 1; our ids are 3 and 7."""
    drawn = filled(draft)
    slicers = np.select([drawn == CUBE, drawn == BALL], [1, 2], 0).astype(np.int16)
    info = [{"name": name, "idx": n} for n, name in enumerate(["background", "cube", "ball", "Segment_3"])]  # the last one is empty
    client.save_label("case_0", save_file(tmp_path / "label.nii", slicers), tag="work", params={"label_info": info})
    np.testing.assert_array_equal(current(client), drawn)


def test_organs_that_are_not_listed_stay(client, alone: Served, draft: np.ndarray, tmp_path: Path) -> None:
    only_ball = (filled(draft) == BALL).astype(np.uint8)
    info = {"label_info": [{"name": "ball", "idx": 1}]}
    assert client.save_label("case_0", save_file(tmp_path / "l.nii.gz", only_ball), "work", info)["organs"] == ["ball"]
    np.testing.assert_array_equal(current(client), filled(draft))
    over_cube = only_ball.copy()
    over_cube[40:42, 20, 10] = 1
    assert client.save_label("case_0", save_file(tmp_path / "l.nii.gz", over_cube), "work", info)["organs"] == ["ball", "cube"]
    expected = filled(draft)
    expected[40:42, 20, 10] = BALL
    np.testing.assert_array_equal(current(client), expected)


def test_the_same_label_again_changes_nothing_even_where_masks_overlap(
    client, alone: Served, draft: np.ndarray, tmp_path: Path
) -> None:
    client.next_sample("attention", {})
    start = int(np.ravel_multi_index((42, 20, 10), SHAPE, order="F"))  # in the cube, whose own mask is not saved
    answer = requests.put(
        f"{alone.url.removesuffix('/monailabel')}/api/v1/cases/case_0/labels/ball",
        data=encode_runs([[start, 3, 1]]), headers={"If-Match": '"0"'}, timeout=10,
    )  # fmt: skip
    assert answer.json()["voxels"] == 3
    shown = current(client)
    assert (shown[42:45, 20, 10] == BALL).all()
    assert client.save_label("case_0", save_file(tmp_path / "l.nii.gz", shown), "work")["organs"] == []
    assert revisions(alone, "cube") == []
    erased = shown.copy()
    erased[42:45, 20, 10] = 0  # the cube's own mask has these voxels beneath: they must not come up
    assert client.save_label("case_0", save_file(tmp_path / "l.nii.gz", erased), "work")["organs"] == ["ball", "cube"]
    np.testing.assert_array_equal(current(client), erased)


def test_a_label_handed_in_as_it_was_is_accepted(client, alone: Served, draft: np.ndarray, tmp_path: Path) -> None:
    client.next_sample("attention", {})
    client.save_label("case_0", save_file(tmp_path / "l.nii.gz", draft.astype(np.float32)))
    assert alone.app.state.store.queue.item((0, "case_0")).verdict == "accepted"


def moved(affine: np.ndarray, mm: float) -> np.ndarray:
    result = affine.copy()
    result[0, 3] += mm
    return result


@pytest.mark.parametrize(
    ("change", "affine", "message"),
    [
        (lambda d: d[:-1], AFFINE, r"not on the image's grid: its shape is (59, 50, 24), the image's (60, 50, 24)"),
        (lambda d: d, moved(AFFINE, 1.0), "its corners lie up to 1 mm from the image's; its affine is [[-1.5, 0.0, 0.0, 45.0]"),
        (lambda d: d, np.diag([-1, 1, 1, 1]) @ AFFINE, "its corners lie up to"),
        (
            lambda d: d[::-1],
            AFFINE @ np.array([[-1, 0, 0, 59], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
            "its corners lie up to",
        ),
        (lambda d: np.where(d == 3, 4, d), AFFINE, "label ids 4 have no organ; known are 3, 7"),
        (lambda d: d + np.float32(0.5), AFFINE, "label"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_difference(reader, unchanged, draft, tmp_path, change, affine, message: str) -> None:
    with pytest.raises(monailabel.client.MONAILabelClientException) as refused:
        reader.save_label("case_0", save_file(tmp_path / "label.nii.gz", change(draft), affine))
    assert refused.value.msg.startswith("Status: 422")
    assert message in refused.value.msg
    np.testing.assert_array_equal(current(reader), draft)
    assert unchanged.app.state.store.queue.item((0, "case_0")).state == "leased"


@pytest.mark.parametrize("info", [[{"name": "Segment_1", "idx": 3}], [{"name": "ball", "idx": -1}], [{"name": "ball"}], 7, "x"])
def test_segments_that_are_no_organs_are_refused(reader, draft: np.ndarray, tmp_path: Path, info) -> None:
    with pytest.raises(monailabel.client.MONAILabelClientException, match="Status: 422"):
        reader.save_label("case_0", save_file(tmp_path / "label.nii.gz", draft), params={"label_info": info})


@pytest.mark.parametrize("kind", ["text", "cut", "bomb", "empty"])
def test_files_that_are_no_label_map_are_refused(reader, draft: np.ndarray, tmp_path: Path, kind: str) -> None:
    whole = Path(save_file(tmp_path / "whole.nii.gz", draft)).read_bytes()
    data = {"text": b"NRRD0004\n" * 100, "cut": whole[: len(whole) // 2], "bomb": gzip.compress(bytes(30 << 20)), "empty": b""}[
        kind
    ]
    (tmp_path / "label.nii.gz").write_bytes(data)
    with pytest.raises(monailabel.client.MONAILabelClientException, match=r"Status: 422.*label\.nii\.gz"):
        reader.save_label("case_0", str(tmp_path / "label.nii.gz"))
    np.testing.assert_array_equal(current(reader), draft)


def test_unknown_names(reader, draft: np.ndarray, tmp_path: Path) -> None:
    refused = monailabel.client.MONAILabelClientException
    for ask in (
        lambda: reader.infer("deepedit", "case_0", {}),
        lambda: reader.infer("../pseudo_label", "case_0", {}),
        lambda: reader.infer("current", "../case_0", {}),
        lambda: reader.download_label("case_0", "original"),
        lambda: reader.download_label("nobody", "final"),
        lambda: reader.save_label("../case_0", save_file(tmp_path / "l.nii.gz", draft)),
    ):
        with pytest.raises(refused) as answer:
            ask()
        assert "404" in answer.value.msg


# --- who ---


def test_log_in_as_the_client_does(together: Served, tmp_path: Path, draft: np.ndarray) -> None:
    anna, bob = (monailabel.MONAILabelClient(together.url, str(tmp_path), name) for name in ("anna", "bob"))
    refused = monailabel.client.MONAILabelClientException
    assert anna.auth_enabled() is True
    with pytest.raises(refused, match="Status: 401"):
        anna.info()
    with pytest.raises(refused, match=r"Status: 401.*wrong name or password"):
        anna.auth_token("anna", "wrong password")
    for client, name in ((anna, "anna"), (bob, "bob")):
        client.update_auth(client.auth_token(name, PASSWORD))
        assert client.auth_valid_token()
    sample = anna.next_sample("attention", {})
    assert sample["id"] == "case_0"
    assert "path" not in sample  # no paths of the server for other machines
    assert bob.next_sample("attention", {})["id"] == "case_1"
    label = save_file(tmp_path / "l.nii.gz", filled(draft))
    with pytest.raises(refused, match=r"Status: 409.*leased by anna"):
        bob.save_label("case_0", label)
    anna.save_label("case_0", label)
    assert [user for user, _ in revisions(together, "ball")] == ["anna"]
    with pytest.raises(refused, match="Status: 409"):
        anna.save_label("case_0", label)  # submitted


def test_attempts_are_limited_here_too(together: Served) -> None:
    for _ in range(ATTEMPTS_PER_USER):
        requests.post(f"{together.url}/auth/token", data={"username": "anna", "password": "wrong password"}, timeout=10)
    answer = requests.post(f"{together.url}/auth/token", data={"username": "anna", "password": PASSWORD}, timeout=10)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0


def test_slicers_server_address_may_carry_a_token(together: Served, tmp_path: Path, draft: np.ndarray) -> None:
    """Slicer loads images without any header, so the address is all there is."""
    token = together.app.state.login.accounts.add_token("slicer", user="anna")
    client = monailabel.MONAILabelClient(f"{together.url}/token/{token}", str(tmp_path))
    assert client.auth_enabled() is False  # nothing left to ask
    assert client.next_sample("attention", {})["id"] == "case_0"
    assert requests.get(f"{client.get_server_url()}/datastore/image?image=case_0", timeout=10).status_code == 200
    assert client.save_label("case_0", save_file(tmp_path / "l.nii.gz", filled(draft)))["organs"] == ["ball"]
    for path in ("/token/atlas_wrong/info/", "/token//info/", "/token/info/", f"/token/{token}x/info/"):
        assert requests.get(f"{together.url}{path}", timeout=10).status_code == 401, path
    elsewhere = f"{together.url.removesuffix('/monailabel')}/api/v1/token/{token}/session"
    assert requests.get(elsewhere, timeout=10).status_code == 401


# --- what is not here ---


def test_what_is_not_here_says_so(reader, tmp_path: Path, draft: np.ndarray) -> None:
    assert reader.train_status(check_if_running=True) is False
    for ask, status in (
        (lambda: reader.train_status(), 404),
        (lambda: reader.train_start("unet", {}), 501),
        (lambda: reader.train_stop(), 501),
        (lambda: reader.get_session("x"), 404),
        (lambda: reader.remove_session("x"), 404),
        (lambda: reader.create_session(save_file(tmp_path / "i.nii.gz", draft)), 501),
        (lambda: reader.upload_image(save_file(tmp_path / "i.nii.gz", draft), "new"), 501),
        (lambda: reader.infer("current", "case_0", {}, session_id="x"), 422),
    ):
        with pytest.raises(monailabel.client.MONAILabelClientException) as refused:
            ask()
        assert refused.value.msg.startswith(f"Status: {status}")
        assert "detail" in refused.value.msg
