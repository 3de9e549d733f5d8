"""Training patches: what is drawn depends only on (seed, step, worker), organs are drawn fairly, image and label move together."""

from pathlib import Path

import numpy as np
import pytest

from atlas_ray.data.patches import AIR_HU, Augmentation, Batch, CachedCase, Deck, PatchSampling, augment, draw_batch, open_cached
from atlas_ray.data.phantom import Phantom, procedural_patient
from atlas_ray.data.preprocess import write_blocks
from atlas_ray.organs import Organs

ORGANS = Organs.model_validate(
    {
        "name": "three",
        "organs": [
            {"name": "liver", "label_id": 6, "color": "#c8604f"},
            {"name": "spleen", "label_id": 2, "color": "#9b6bd6"},
            {"name": "aorta", "label_id": 9, "color": "#e0383e"},
        ],
    }
)
STILL = Augmentation(affine_probability=0, shift_hu=0, gain=0, noise_hu=0)  # patches exactly as they lie in the volume
ONLY_MOVED = Augmentation(affine_probability=1, shift_hu=0, gain=0, noise_hu=0)


def cached(
    label: np.ndarray,
    *,
    known: tuple[float, ...] = (1, 1, 1),
    image: np.ndarray | None = None,
    focus: np.ndarray | None = None,
    revised: tuple[bool, ...] = (False, False, False),
    is_annotated: bool = False,
) -> CachedCase:
    """A case whose CT is 50 HU plus the label id, so that a voxel shows where it came from."""
    foreground = np.full((3, 64, 3), -1, np.int16)
    for k, value in enumerate(ORGANS.label_ids):
        found = np.argwhere(label == value)[:64]
        foreground[k, : len(found)] = found
    image = (50 + label.astype(np.int16)) if image is None else image
    return CachedCase(
        image, label.astype(np.uint8), foreground, np.array(known, np.float32), np.array(revised), focus, is_annotated
    )


def three_organs() -> np.ndarray:
    """A big liver, a spleen a fiftieth of its size, an aorta of four voxels, far from each other."""
    label = np.zeros((40, 40, 40), np.uint8)
    label[2:14, 2:14, 2:14] = 6
    label[30:33, 30:33, 30:33] = 2
    label[20, 5, 30:34] = 9
    return label


def draw_all(cases: list[CachedCase], *, size: int = 1, step: int = 0, worker: int = 0, seed: int = 0, **sampling: object) -> Batch:
    settings = PatchSampling.model_validate({"patch": (8, 8, 8), "augmentation": STILL, **sampling})
    return draw_batch(Deck(cases), ORGANS, settings, size=size, seed=seed, step=step, worker=worker)


def draw(cases: list[CachedCase], **how: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU, targets and which organs are known."""
    batch = draw_all(cases, **how)  # type: ignore[arg-type]
    return batch.hu_B1XYZ, batch.targets_BKXYZ, batch.trust_BK > 0


# --- which numbers decide -------------------------------------------------------------------------------------------


def test_the_same_seed_step_and_worker_draw_the_same_batch_whatever_was_drawn_before() -> None:
    cases = [cached(three_organs()), cached(three_organs()[::-1])]
    first = draw(cases, size=3, seed=7, step=11, worker=1, augmentation=Augmentation())
    draw(cases, size=2, seed=7, step=12, worker=1)
    again = draw(cases, size=3, seed=7, step=11, worker=1, augmentation=Augmentation())
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("other", [{"seed": 1}, {"step": 1}, {"worker": 1}])
def test_another_seed_step_or_worker_draws_another_batch(other: dict[str, int]) -> None:
    cases = [cached(three_organs())]
    moving = Augmentation()
    assert not np.array_equal(draw(cases, augmentation=moving)[0], draw(cases, augmentation=moving, **other)[0])


def test_shapes_and_types_of_a_batch() -> None:
    hu, targets, known = draw([cached(three_organs(), known=(True, False, True))], size=2, patch=(8, 10, 12))
    assert (hu.shape, hu.dtype) == ((2, 1, 8, 10, 12), np.float32)
    assert (targets.shape, targets.dtype) == ((2, 3, 8, 10, 12), np.uint8)
    np.testing.assert_array_equal(known, [[True, False, True]] * 2)


def test_a_channel_is_one_where_its_organ_is() -> None:
    hu, targets, _ = draw([cached(three_organs())], size=20, foreground=1.0)
    for channel, label_id in enumerate((6, 2, 9)):
        np.testing.assert_array_equal(targets[:, channel], hu[:, 0] == 50 + label_id)


# --- where patches lie ----------------------------------------------------------------------------------------------


def test_a_patch_larger_than_the_volume_is_filled_up_with_air_without_organs() -> None:
    label = np.full((4, 5, 20), 6, np.uint8)
    hu, targets, _ = draw([cached(label)], size=10, patch=(8, 8, 8))
    inside = hu[:, 0] == 56
    assert (inside.sum(axis=(1, 2, 3)) == 4 * 5 * 8).all()  # all of the two short axes, and none lost to the border
    assert (hu[:, 0][~inside] == AIR_HU).all()
    np.testing.assert_array_equal(targets[:, 0], inside)
    assert not targets[:, 1:].any()


def test_a_patch_never_leaves_a_volume_that_is_large_enough() -> None:
    hu, _, _ = draw([cached(np.full((9, 9, 9), 6, np.uint8))], size=50, foreground=0.5)
    assert hu.min() >= 50


def test_every_place_of_the_volume_can_be_drawn() -> None:
    image = np.arange(6**3, dtype=np.int16).reshape(6, 6, 6)
    case = cached(np.zeros((6, 6, 6), np.uint8), image=image)
    hu, _, _ = draw([case], size=300, patch=(4, 4, 4), foreground=0.0)
    assert set(np.unique(hu)) == set(range(6**3))


def test_a_foreground_patch_holds_a_known_organ() -> None:
    _, targets, _ = draw([cached(three_organs())], size=60, foreground=1.0)
    assert targets.any(axis=(1, 2, 3, 4)).all()


def test_organs_are_drawn_equally_often_whatever_their_size() -> None:
    """The organs lie more than a patch apart, so a patch shows which one it was centered on. 600 draws of p = 1/3: s = 12."""
    _, targets, _ = draw([cached(three_organs())], size=600, foreground=1.0)
    shown = targets.any(axis=(2, 3, 4)).sum(axis=0)
    assert shown.sum() == 600
    assert (abs(shown - 200) < 50).all()


def test_the_share_of_foreground_patches_is_kept() -> None:
    """Background draws of this volume never hit the organ's corner (1 of 93^3 places holds it), so what shows it was centered."""
    label = np.zeros((100, 100, 100), np.uint8)
    label[0, 0, 0] = 6
    _, targets, _ = draw([cached(label)], size=400, foreground=0.67)
    assert abs(targets.any(axis=(1, 2, 3, 4)).mean() - 0.67) < 0.08


def test_an_organ_without_ground_truth_is_never_chosen_as_center() -> None:
    case = cached(three_organs(), known=(False, True, False))
    _, targets, _ = draw([case], size=60, foreground=1.0)
    assert targets[:, 1].any(axis=(1, 2, 3)).all()
    assert not targets[:, (0, 2)].any()


@pytest.mark.parametrize("known", [(True, True, True), (False, False, False)])
def test_a_case_without_any_organ_is_drawn_all_the_same(known: tuple[bool, ...]) -> None:
    hu, targets, _ = draw([cached(np.zeros((20, 20, 20), np.uint8), known=known)], size=5, foreground=1.0)
    assert (hu == 50).all()
    assert not targets.any()


def test_an_organ_that_one_case_of_many_is_labeled_for_is_seen_as_often_as_the_others() -> None:
    """Nine cases know the liver, one the spleen: organ by organ the spleen is half of 400 draws, case by case a tenth."""
    cases = [cached(three_organs(), known=(1, 0, 0)) for _ in range(9)] + [cached(three_organs(), known=(0, 1, 0))]
    shown = {b: draw(cases, size=400, foreground=1.0, balance=b)[2][:, 1].mean() for b in ("organ", "case")}
    assert abs(shown["organ"] - 0.5) < 0.1
    assert abs(shown["case"] - 0.1) < 0.06


@pytest.mark.parametrize(("replay", "share"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0), (None, 0.9)])
def test_replay_is_the_share_of_patches_from_cases_that_nobody_has_annotated(replay: float | None, share: float) -> None:
    old = [cached(np.full((8, 8, 8), 6), image=np.full((8, 8, 8), 1, np.int16)) for _ in range(9)]
    new = cached(np.full((8, 8, 8), 6), image=np.full((8, 8, 8), 2, np.int16), is_annotated=True)
    hu, _, _ = draw([*old, new], size=400, replay=replay)
    assert abs((hu[:, 0, 0, 0, 0] == 1).mean() - share) < 0.08


def test_without_an_annotated_case_replay_does_nothing() -> None:
    hu, _, _ = draw([cached(three_organs()), cached(three_organs())], size=3, replay=0.0)
    assert hu.shape[0] == 3


def test_focus_is_cut_and_moved_with_the_label() -> None:
    label = three_organs()
    case = cached(label, focus=(label == 6).astype(np.uint8), revised=(True, False, False))
    still = draw_all([case], size=20, foreground=1.0)
    np.testing.assert_array_equal(still.focus_BXYZ, still.targets_BKXYZ[:, 0])
    assert still.revised_BK.tolist() == [[True, False, False]] * 20
    moved_ = draw_all([case], size=5, patch=(24, 24, 24), foreground=1.0, augmentation=ONLY_MOVED)
    np.testing.assert_array_equal(moved_.focus_BXYZ, moved_.targets_BKXYZ[:, 0])


def test_cases_are_drawn_equally_often() -> None:
    cases = [cached(np.zeros((8, 8, 8), np.uint8), image=np.full((8, 8, 8), value, np.int16)) for value in (1, 2)]
    hu, _, _ = draw(cases, size=400)
    assert abs((hu[:, 0, 0, 0, 0] == 1).mean() - 0.5) < 0.1


# --- augmentation ---------------------------------------------------------------------------------------------------


def cube(center: tuple[int, int, int], *, edge: int = 24, half: int = 3) -> tuple[np.ndarray, np.ndarray]:
    label = np.zeros((edge, edge, edge), np.uint8)
    label[tuple(slice(c - half, c + half + 1) for c in center)] = 6
    return np.where(label, 300, 0).astype(np.float32), label


def augmented(hu: np.ndarray, label: np.ndarray, settings: Augmentation, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return augment((hu, label, np.zeros_like(label)), settings, np.random.default_rng(seed))[:2]


def moved(settings: Augmentation, seed: int, center: tuple[int, int, int] = (12, 12, 12)) -> tuple[np.ndarray, np.ndarray]:
    hu, label = cube(center)
    return augmented(hu, label, settings, seed)


@pytest.mark.parametrize("seed", range(5))
def test_a_bright_cube_stays_on_its_label(seed: int) -> None:
    hu, label = moved(ONLY_MOVED, seed, center=(8, 12, 15))
    bright = hu > 150
    assert label.any()
    assert 2 * (bright & (label == 6)).sum() / (bright.sum() + (label == 6).sum()) > 0.9


def test_moving_moves() -> None:
    hu, _ = moved(Augmentation(affine_probability=1, rotate_deg=20, shift_hu=0, gain=0, noise_hu=0), 0, center=(6, 12, 12))
    assert not np.array_equal(hu, cube((6, 12, 12))[0])


@pytest.mark.parametrize("seed", range(10))
def test_left_stays_left(seed: int) -> None:
    """In RAS a smaller first index is the patient's left; the same holds for the other two axes."""
    for axis in range(3):
        center = [12, 12, 12]
        center[axis] = 5
        _, label = moved(ONLY_MOVED, seed, center=(center[0], center[1], center[2]))
        assert np.argwhere(label)[:, axis].mean() < 11.5


def test_no_label_is_invented_between_two() -> None:
    label = np.zeros((16, 16, 16), np.uint8)
    label[:8] = 2
    label[8:] = 9
    for seed in range(5):
        _, result = augmented(label.astype(np.float32), label, ONLY_MOVED, seed)
        assert set(np.unique(result)) <= {2, 9}
        assert result.dtype == np.uint8


def test_a_rotation_alone_keeps_distances() -> None:
    """Two marks 12 voxels apart on a non-cubic patch: an axis order mistake in the sampling grid would stretch them."""
    label = np.zeros((32, 24, 16), np.uint8)
    label[9:12, 11:14, 7:10] = 2
    label[21:24, 11:14, 7:10] = 9
    turning = Augmentation(affine_probability=1, rotate_deg=30, scale=0, shift_hu=0, gain=0, noise_hu=0)
    for seed in range(5):
        _, result = augmented(label.astype(np.float32), label, turning, seed)
        a, b = (np.argwhere(result == value).mean(axis=0) for value in (2, 9))
        assert np.linalg.norm(a - b) == pytest.approx(12, abs=0.8)


def test_hu_shifts_and_gains_stay_within_their_limits() -> None:
    hu, label = np.full((8, 8, 8), 100, np.float32), np.zeros((8, 8, 8), np.uint8)
    settings = Augmentation(affine_probability=0, shift_hu=20, gain=0.1, noise_hu=0)
    means = [float(augmented(hu, label, settings, seed)[0].mean()) for seed in range(50)]
    assert min(means) >= 100 * 0.9 - 20
    assert max(means) <= 100 * 1.1 + 20
    assert np.std(means) > 3


def test_noise_has_at_most_its_standard_deviation() -> None:
    hu, label = np.zeros((16, 16, 16), np.float32), np.zeros((16, 16, 16), np.uint8)
    settings = Augmentation(affine_probability=0, shift_hu=0, gain=0, noise_hu=10)
    spread = [float(augmented(hu, label, settings, seed)[0].std()) for seed in range(20)]
    assert max(spread) < 10.5
    assert max(spread) - min(spread) > 1


def test_nothing_to_do_changes_nothing() -> None:
    hu, label = cube((8, 12, 15))
    same_hu, same_label = augmented(hu, label, STILL, 0)
    np.testing.assert_array_equal(same_hu, hu)
    np.testing.assert_array_equal(same_label, label)


def test_a_batch_from_a_cache_entry_is_bit_for_bit_the_batch_from_its_arrays(tmp_path: Path) -> None:
    case = cached(three_organs())
    write_blocks(tmp_path / "image.b2nd", case.image)
    write_blocks(tmp_path / "label.b2nd", case.label)
    np.save(tmp_path / "foreground.npy", case.foreground)
    opened = open_cached(tmp_path, case.trust)
    assert opened.image.shape == case.image.shape
    for step in range(5):
        batches = [draw([c], size=3, step=step, patch=(24, 16, 44), augmentation=Augmentation()) for c in (opened, case)]
        for a, b in zip(*batches, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


# --- left and right -------------------------------------------------------------------------------------------------

PAIRED = Organs.model_validate(
    {
        "name": "paired",
        "organs": [
            {"name": "kidney_left", "label_id": 3, "color": "#f5d547"},
            {"name": "liver", "label_id": 5, "color": "#c8604f"},
            {"name": "kidney_right", "label_id": 4, "color": "#e8a33d"},
            {"name": "lung_left", "label_id": 7, "color": "#e567bb"},  # this set has no right one
        ],
    }
)


def test_the_other_side_is_found_by_name() -> None:
    assert PAIRED.mirrored == (2, 1, 0, -1)


def test_a_mirrored_patient_has_the_left_kidney_on_the_left() -> None:
    """On a synthetic patient: mirrored or not, whatever is called left lies at smaller x than what is called right (RAS)."""
    patient = procedural_patient(Phantom(spacing=(6, 6, 6), field_of_view_mm=(384, 336, 384)), seed=3, organs=PAIRED)
    label = np.asarray(patient.label.voxels, np.uint8)
    foreground = np.full((4, 1, 3), -1, np.int16)
    case = CachedCase(
        np.asarray(patient.image.voxels),
        label,
        foreground,
        np.array([1, 2, 3, 1], np.float32),
        np.array([True, False, False, True]),
    )
    batches = {}
    for mirror in (0.0, 1.0):
        settings = PatchSampling(patch=label.shape, augmentation=STILL.model_copy(update={"mirror": mirror}))
        batches[mirror] = draw_batch(Deck([case]), PAIRED, settings, size=1, seed=0, step=0, worker=0)
    before, after = batches[0.0], batches[1.0]
    np.testing.assert_array_equal(after.hu_B1XYZ, before.hu_B1XYZ[:, :, ::-1])
    np.testing.assert_array_equal(after.targets_BKXYZ[0, 0], before.targets_BKXYZ[0, 2, ::-1])
    np.testing.assert_array_equal(after.targets_BKXYZ[0, 1], before.targets_BKXYZ[0, 1, ::-1])
    for batch in (before, after):
        left, right = (np.argwhere(batch.targets_BKXYZ[0, k])[:, 0].mean() for k in (0, 2))
        assert left < right
    assert after.trust_BK.tolist() == [[3, 2, 1, 0]]  # trust goes with the organ; nothing is known of the lung's other side
    assert after.revised_BK.tolist() == [[False, False, True, False]]
