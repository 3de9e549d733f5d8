"""A small but real workspace: an anisotropic LPS CT, a pseudo-label with a known error, its attention, and a filled queue."""

from pathlib import Path

import numpy as np
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from starlette.testclient import TestClient

from atlas_ray.annotation.accounts import Accounts
from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.queue import Queue, QueueEntry
from atlas_ray.annotation.review import Role
from atlas_ray.organs import Organ, Organs
from atlas_ray.records import AttentionComponent, Case, CaseScores, OrganScores
from atlas_ray.storage import write_atomically
from atlas_ray.volume import Volume, write_volume
from atlas_ray.workspace import Workspace, write_lines
from ui.app import create_api
from ui.login import Login
from ui.store import Store

SHAPE = (60, 50, 24)
SPACING = (1.5, 1.5, 5.0)
AFFINE = np.array([[-1.5, 0, 0, 44.0], [0, -1.5, 0, 36.0], [0, 0, 5.0, -60.0], [0, 0, 0, 1.0]])  # LPS
ORGANS = Organs(
    name="two_balls",
    organs=(Organ(name="ball", label_id=3, color="#e0383e"), Organ(name="cube", label_id=7, color="#3fb8af")),
)
PEAK = (22, 25, 12)  # in the notch the pseudo-label leaves in the ball
CHEAP = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))  # else every test waits for real ones
PASSWORD = "correct horse"


def make_client(workspace: Workspace, *, accounts: dict[str, Role] | None = None, base_url: str = "http://localhost") -> TestClient:
    """The REST side: gradio leaves event loops unclosed, so only the tests of the page load it.

    Args:
        accounts: names and roles of who may log in with PASSWORD; None lets everybody in as "annotator".
    """
    database = open_database(sqlite_url(workspace.annotation_db))
    store = Store(workspace, round_index=0, organs=ORGANS, database=database)
    login = Login(default_user="annotator") if accounts is None else Login(Accounts(database, hasher=CHEAP))
    for name, role in (accounts or {}).items():
        login.accounts.add(name, PASSWORD, role)
    return TestClient(create_api(store, login=login), base_url=base_url, follow_redirects=False)


def ball(center: tuple[float, float, float], radius_mm: float) -> np.ndarray:
    grid = np.indices(SHAPE).astype(float)
    away = [(axis - c) * s for axis, c, s in zip(grid, center, SPACING, strict=True)]
    return np.sqrt(sum(a * a for a in away)) <= radius_mm


def put(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(np.asfortranarray(voxels), AFFINE))


def write_case(workspace: Workspace, case: Case, ct: np.ndarray, pseudo: np.ndarray, heat: np.ndarray) -> None:
    """Image and everything a prediction leaves."""
    if not Path(case.image).exists():
        put(Path(case.image), ct)
    put(workspace.pseudo_label(0, case.case_id), pseudo)
    put(workspace.heat(0, case.case_id), heat)
    put(workspace.attention(0, case.case_id, "ball"), (heat > 0).astype(np.uint8))
    put(workspace.architecture_label(0, case.case_id, "unet"), pseudo)
    put(workspace.architecture_label(0, case.case_id, "visitor"), np.where(pseudo == 3, pseudo, 0))  # knows the ball alone
    hot = np.argwhere(heat)
    box = tuple((int(low), int(high) + 1) for low, high in zip(hot.min(0), hot.max(0), strict=True))
    component = AttentionComponent(
        organ="ball", index=1, box=box, peak=PEAK, voxels=len(hot), volume_mm3=len(hot) * 11.25, reason="disagreement",
        criteria=("disagreement",), score=100.0, mean_heat=0.5,
    )  # fmt: skip
    second = component.model_copy(update={"organ": "cube", "score": 10.0, "peak": (45, 25, 12)})
    write_lines(workspace.components(0, case.case_id), [component, second])
    scores = CaseScores(
        case_id=case.case_id, round=0, checkpoints={"unet": "0" * 64, "visitor": "1" * 64}, absent={"visitor": ("cube",)},
        attention_mode="physical", attention_voxels=len(hot),
        attention_mm3=len(hot) * 11.25, seconds=1.0, criteria=("disagreement", "overlap"),
        organs=(OrganScores(organ="ball", attention_voxels=1, attention_mm3=5.0, heat_sum=1, predicted_ml=2.0, components=1),),
    )  # fmt: skip
    write_atomically(workspace.scores(0, case.case_id), scores.model_dump_json())


def make_workspace(root: Path) -> Workspace:
    workspace = Workspace(root / "campaign")
    rng = np.random.default_rng(0)
    truth = ball((25, 25, 12), 18)
    cube = np.zeros(SHAPE, bool)
    cube[40:52, 18:32, 8:16] = True
    ct = np.full(SHAPE, -100) + rng.normal(0, 12, SHAPE)
    ct[truth] += 160
    ct[cube] += 230
    notch = ball(PEAK, 7)
    pseudo = np.where(truth & ~notch, 3, 0) + np.where(cube, 7, 0)
    heat = np.where(notch, 180, 0)
    cases = []
    for n, split in enumerate(("pool", "pool", "pool")):
        case = Case(
            case_id=f"case_{n}", image=str(root / "images" / f"case_{n}.nii.gz"), sha256=f"{n}" * 64, shape=SHAPE, spacing=SPACING,
            orientation="LPS", source="synthetic", license="none", split=split,
        )  # fmt: skip
        write_case(workspace, case, np.rint(ct).astype(np.int16), pseudo.astype(np.uint8), heat.astype(np.uint8))
        cases.append(case)
    write_lines(workspace.manifest, cases)
    with open_database(sqlite_url(workspace.annotation_db)) as database:
        entries = [QueueEntry(case_id=case.case_id, organs=("ball",), rank=n + 1, score=3.0 - n) for n, case in enumerate(cases)]
        Queue(database).fill(0, entries)
    return workspace
