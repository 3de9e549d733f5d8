"""However a file lies in space, the saved label differs from the pseudo-label in exactly the edited voxels."""

import gzip
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from campaign import Predicted, make_campaign
from kit import EDITOR, PATIENCE_MS, AppServer, aim, drag, open_case, take_up, wait_until_idle

from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.merge import paint_edits
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.organs import Organ, Organs
from atlas_ray.volume import read_volume, write_volume
from atlas_ray.workspace import Workspace

ORGANS = Organs(name="one", organs=(Organ(name="block", label_id=4, color="#e0383e"),))
SHAPE = (32, 28, 20)
OBLIQUE = np.array([[-1.4, 0.21, 0.5, 40.0], [0.2, 1.38, -0.72, -30.0], [-0.12, -0.22, 3.9, 30.0], [0, 0, 0, 1]])


def affine_of(order: tuple[int, int, int], signs: tuple[int, int, int]) -> np.ndarray:
    """File axis a runs along world axis order[a], with the sign given."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * (1.4, 1.6, 2.5)[axis]
    affine[:3, 3] = (-31.0, 12.5, 7.0)
    return affine


AFFINES = {
    "RAS": affine_of((0, 1, 2), (1, 1, 1)),
    "LPS": affine_of((0, 1, 2), (-1, -1, 1)),
    "LAS": affine_of((0, 1, 2), (-1, 1, 1)),
    "PIR": affine_of((1, 2, 0), (-1, -1, 1)),
    "oblique": OBLIQUE,
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    rng = np.random.default_rng(0)
    cases = []
    for name, affine in AFFINES.items():
        draft = np.zeros(SHAPE, np.uint8)
        draft[8:20, 8:20, 5:14] = 4
        other = draft.copy()
        other[16:20, 8:20, 5:14] = 0
        image = rng.normal(40, 20, SHAPE).astype(np.int16)
        cases.append(Predicted(name, image, affine, draft, {"unet": draft, "nnunet": other}))
    return make_campaign(tmp_path_factory.mktemp("orientations"), ORGANS, cases)


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[AppServer]:
    server = AppServer(workspace, bare=True).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    yield page
    page.close()


@pytest.mark.parametrize("name", AFFINES)
def test_exactly_the_edited_voxels_change(name: str, page: Any, server: AppServer, workspace: Workspace) -> None:
    open_case(page, server, name)
    take_up(page, "block")
    changed: set[int] = set()
    for plane, center in (("axial", (24, 14, 9)), ("coronal", (14, 24, 9)), ("sagittal", (14, 14, 17))):
        page.evaluate(f"{EDITOR}.moveCursor({list(center)})")
        page.evaluate(f"{EDITOR}.setRadius(4)")
        pixel, position = aim(page, plane, center)
        drag(page, [pixel])
        across = page.evaluate(f"{EDITOR}.planes['{plane}'].w.axis")
        changed |= disc(position, 4.0, across, AFFINES[name])
    wait_until_idle(page)
    pseudo, label = saved_label(workspace, name)
    flat = pseudo.flatten(order="F")
    flat[sorted(changed)] = 4
    np.testing.assert_array_equal(label, flat.reshape(SHAPE, order="F"))
    assert 30 < (label != pseudo).sum() <= len(changed)


def disc(center: np.ndarray, radius: float, across: int, affine: np.ndarray) -> set[int]:
    """Voxels of the flat brush, from its definition: centers within the radius, of the slice clicked."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    grid = np.indices(SHAPE).reshape(3, -1, order="F")
    reach = max(radius, *(s / 2 for a, s in enumerate(spacing) if a != across))
    away = sum(((grid[a] - center[a]) * spacing[a]) ** 2 for a in range(3) if a != across)
    return set(np.flatnonzero((away <= reach**2 + 1e-6) & (grid[across] == round(center[across]))).tolist())


def saved_label(workspace: Workspace, case_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Pseudo-label and annotation, as the merge step writes it: the header and affine are the pseudo-label's, bit by bit."""
    pseudo = read_volume(workspace.pseudo_label(0, case_id))
    with open_database(sqlite_url(workspace.annotation_db)) as database:
        label = paint_edits(pseudo.voxels, Revisions(database).edits(0, case_id), ORGANS)
    path = workspace.annotation(0, case_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, pseudo.with_voxels(label))
    with gzip.open(workspace.pseudo_label(0, case_id)) as before, gzip.open(path) as after:
        assert before.read(352) == after.read(352)
    written = read_volume(path)
    np.testing.assert_array_equal(written.affine, pseudo.affine)
    return np.asarray(pseudo.voxels), np.asarray(written.voxels)
