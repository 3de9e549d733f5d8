"""Campaigns for the editor: a CT, what it should be, and three networks that differ where the draft is wrong.

The attention is where the networks disagree, as prediction leaves it: per organ one bit per criterion, its components, its heat.
benchmarks/app.py makes its volume here too.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.queue import Queue, QueueEntry
from atlas_ray.organs import Organs
from atlas_ray.records import AttentionComponent, Case, CaseScores, OrganScores
from atlas_ray.storage import write_atomically
from atlas_ray.volume import Volume, write_volume
from atlas_ray.workspace import Workspace, write_lines

Labels = npt.NDArray[np.uint8]  # [X, Y, Z]
CRITERIA = ("inconsistency", "uncertainty")
EVERY_NEIGHBOR = np.ones((3, 3, 3))


@dataclass(frozen=True)
class Predicted:
    """One case as the networks leave it.

    Args:
        image: HU, [X, Y, Z]; affine: its geometry.
        networks: name -> label map; the draft is one of them.
    """

    case_id: str
    image: npt.NDArray[np.int16]
    affine: npt.NDArray[np.float64]
    draft: Labels
    networks: dict[str, Labels]


def make_campaign(root: Path, organs: Organs, cases: list[Predicted]) -> Workspace:
    """A workspace of round 0 with the cases in its queue, in their order."""
    workspace = Workspace(root / "campaign")
    records = [_write_case(workspace, root, organs, case) for case in cases]
    write_lines(workspace.manifest, records)
    workspace.config.write_text(f"organs: {organs.model_dump_json()}\n")  # JSON is YAML
    with open_database(sqlite_url(workspace.annotation_db)) as database:
        found = {case.case_id: workspace.case_components(0, case.case_id) for case in cases}
        disputed = {case_id: tuple(dict.fromkeys(c.organ for c in components)) for case_id, components in found.items()}
        entries = [QueueEntry(case_id=id_, organs=names, rank=n, score=1 / n) for n, (id_, names) in enumerate(disputed.items(), 1)]
        Queue(database).fill(0, entries)
    return workspace


def _box(mask: npt.NDArray[np.bool_], margin: int = 1) -> tuple[slice, ...]:
    """The box around a mask; the whole volume of a large CT is slow to look at again and again."""
    spans = []
    for axis, n in enumerate(mask.shape):
        found = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        spans.append(slice(max(0, int(found[0]) - margin), min(n, int(found[-1]) + 1 + margin)))
    return tuple(spans)


def _write_case(workspace: Workspace, root: Path, organs: Organs, case: Predicted) -> Case:
    spacing = tuple(float(s) for s in np.linalg.norm(case.affine[:3, :3], axis=0))
    image = root / "images" / f"{case.case_id}.nii.gz"

    def put(path: Path, voxels: npt.NDArray[np.integer]) -> None:
        write_volume(path, Volume(np.asfortranarray(voxels), case.affine))

    put(image, case.image)
    put(workspace.pseudo_label(0, case.case_id), case.draft)
    for name, labels in case.networks.items():
        put(workspace.architecture_label(0, case.case_id, name), labels)
    heat = np.zeros(case.draft.shape, np.uint8, order="F")
    found: list[AttentionComponent] = []
    first, *rest = case.networks.values()
    box = _box(np.logical_or.reduce([labels != first for labels in rest]))
    for organ in organs:
        votes = [labels[box] == organ.label_id for labels in case.networks.values()]
        hot = np.logical_or.reduce(votes) & ~np.logical_and.reduce(votes)
        if not hot.any():
            continue
        depth = ndimage.distance_transform_edt(hot)
        bits = np.zeros(case.draft.shape, np.uint8, order="F")
        bits[box] = hot + 2 * (depth > 2)  # the networks are unsure inside, too
        # Hottest in the middle, as the entropy of an ensemble is.
        heat[box] = np.maximum(heat[box], np.where(hot, np.clip(70 + 30 * depth, 0, 255), 0).astype(np.uint8))
        put(workspace.attention(0, case.case_id, organ.name), bits)
        found += _components(organ.name, bits[box], heat[box], float(np.prod(spacing)), [s.start for s in box])
    put(workspace.heat(0, case.case_id), heat)
    ranked = [c.model_copy(update={"index": n}) for n, c in enumerate(sorted(found, key=lambda c: -c.score), 1)]
    write_lines(workspace.components(0, case.case_id), ranked)
    voxels = int((heat > 0).sum())
    scores = CaseScores(
        case_id=case.case_id, round=0, checkpoints=dict.fromkeys(case.networks, "0" * 64), attention_mode="physical", seconds=1.0,
        criteria=CRITERIA, attention_voxels=voxels, attention_mm3=voxels * float(np.prod(spacing)),
        organs=tuple(
            OrganScores(organ=o.name, attention_voxels=0, attention_mm3=0, heat_sum=0, predicted_ml=0, components=0) for o in organs
        ),
    )  # fmt: skip
    write_atomically(workspace.scores(0, case.case_id), scores.model_dump_json())
    import nibabel

    return Case(
        case_id=case.case_id, image=str(image), sha256=case.case_id.ljust(64, "0")[:64].encode().hex()[:64], shape=case.image.shape,
        spacing=spacing, orientation="".join(nibabel.aff2axcodes(case.affine)), source="test", license="none", split="pool",
    )  # fmt: skip


def _components(organ: str, bits: Labels, heat: Labels, voxel_mm3: float, corner: list[int]) -> list[AttentionComponent]:
    labels, count = ndimage.label(bits > 0, structure=EVERY_NEIGHBOR)
    result = []
    for number, box in enumerate(ndimage.find_objects(labels, max_label=count), 1):
        inside = labels[box] == number
        if (voxels := int(inside.sum())) < 20:
            continue
        hot = np.where(inside, heat[box], 0)
        place = np.unravel_index(hot.argmax(), hot.shape)
        peak = tuple(int(p) + s.start + c for p, s, c in zip(place, box, corner, strict=True))
        fired = tuple(name for bit, name in enumerate(CRITERIA) if (bits[box][inside] >> bit & 1).any())
        result.append(
            AttentionComponent(
                organ=organ, index=0, box=tuple((s.start + c, s.stop + c) for s, c in zip(box, corner, strict=True)), peak=peak,
                voxels=voxels,
                volume_mm3=voxels * voxel_mm3, reason=fired[0], criteria=fired, score=float(hot.sum()) / 255 * voxel_mm3,
                mean_heat=float(hot.sum()) / 255 / voxels,
            )
        )  # fmt: skip
    return result


# --- what is wrong ----------------------------------------------------------------------------------------------------


def with_cavity(truth: Labels, label_id: int, spacing: tuple[float, ...], radius_mm: float = 14.0) -> Labels:
    """The label map with a hole in one organ, as networks leave it where gas or contrast fills a stomach."""
    box = _box(truth == label_id)
    mask = truth[box] == label_id
    depth = ndimage.distance_transform_edt(mask, sampling=spacing)
    deepest = np.unravel_index(depth.argmax(), mask.shape)
    grid = np.ogrid[tuple(slice(0, n) for n in mask.shape)]
    away = sum(((g - c) * s) ** 2 for g, c, s in zip(grid, deepest, spacing, strict=True))
    result = truth.copy(order="F")
    result[box][mask & (away <= min(radius_mm, 0.8 * float(depth.max())) ** 2)] = 0
    return result


def predicted(
    case_id: str, image: npt.NDArray[np.int16], affine: npt.NDArray[np.float64], truth: Labels, *, cavities: tuple[int, ...]
) -> Predicted:
    """A case whose draft has cavities in some organs: one network is right, one has all cavities, one only the first."""
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0))
    drafts = [truth]
    for label_id in cavities:
        drafts.append(with_cavity(drafts[-1], label_id, spacing))
    return Predicted(case_id, image, affine, drafts[-1], {"swin_unetr": drafts[-1], "nnunet": truth, "unet": drafts[1]})


def synthetic_patient(
    shape: tuple[int, int, int], affine: npt.NDArray[np.float64], *, seed: int = 0
) -> tuple[npt.NDArray[np.int16], Labels]:
    """A torso of ellipsoids in an LPS-like grid: HU and label map (ids of abdomenatlas_1_0)."""
    rng = np.random.default_rng(seed)
    parts = [  # label id, HU, center and half axes as shares of the grid (first index grows toward the patient's left)
        (5, 105, (0.33, 0.44, 0.62), (0.19, 0.19, 0.17)), (8, 110, (0.75, 0.58, 0.64), (0.07, 0.10, 0.10)),
        (9, 45, (0.62, 0.36, 0.60), (0.12, 0.10, 0.12)), (4, 150, (0.33, 0.64, 0.40), (0.06, 0.07, 0.14)),
        (3, 150, (0.68, 0.64, 0.42), (0.06, 0.07, 0.14)), (1, 180, (0.53, 0.56, 0.50), (0.024, 0.026, 0.48)),
        (7, 140, (0.45, 0.55, 0.50), (0.028, 0.022, 0.48)), (6, 90, (0.53, 0.45, 0.48), (0.14, 0.045, 0.04)),
        (2, 10, (0.36, 0.33, 0.50), (0.045, 0.05, 0.06)),
    ]  # fmt: skip
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    scaled = [(g / n).astype(np.float32) for g, n in zip(grid, shape, strict=True)]

    def inside(center: tuple[float, ...], half: tuple[float, ...]) -> npt.NDArray[np.bool_]:
        return sum(((g - c) / h) ** 2 for g, c, h in zip(scaled, center, half, strict=True)) <= 1

    noise = rng.normal(0, 14, (64, 64, 32)).astype(np.int16)
    image = np.full(shape, -1000, np.int16, order="F")
    labels = np.zeros(shape, np.uint8, order="F")
    image[inside((0.5, 0.5, 0.5), (0.44, 0.36, 5.0))] = -95
    image[inside((0.5, 0.5, 0.5), (0.41, 0.33, 5.0))] = 45
    image[inside((0.5, 0.5, 0.5), (0.36, 0.28, 5.0))] = -80
    image[inside((0.5, 0.70, 0.5), (0.055, 0.06, 5.0))] = 420
    for label_id, hu, center, half in parts:
        where = inside(center, half)
        image[where], labels[where] = hu, label_id
    tiles = [-(-n // t) for n, t in zip(shape, noise.shape, strict=True)]
    image += np.tile(noise, tiles)[: shape[0], : shape[1], : shape[2]]
    return image, labels
