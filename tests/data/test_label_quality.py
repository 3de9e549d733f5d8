"""Scores of labels: the formula by hand, and wrong labels of synthetic patients at the top of the list."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from atlas_ray.data.label_quality import LabelQuality, OrganLabelScore, agreement, score_organ
from atlas_ray.data.phantom import Phantom, procedural_patient
from atlas_ray.organs import load_organs
from atlas_ray.volume import reorient

ORGANS = load_organs("abdomenatlas_1_0")
ALONE = LabelQuality(temperature=0.1, neighborhood_mm=0)
SPACING = (8.0, 8.0, 8.0)


def line(*values: int) -> np.ndarray:
    return np.array(values, np.uint16)[:, None, None]


def test_the_score_is_the_softmin_of_what_the_label_says() -> None:
    """Two voxels: the labeled one has p = 1, the unlabeled but predicted one p(not the organ) = 0.2."""
    found = agreement(line(1, 0) > 0, line(10, 8), most=10, spacing=SPACING, settings=ALONE)
    weight = math.exp((1 - 0.2) / 0.1)  # of the second voxel, against 1 of the first
    assert found == pytest.approx(((1 + 0.2 * weight) / (1 + weight), 0.6))


def test_a_high_temperature_is_the_mean_and_a_low_one_the_worst_voxel() -> None:
    given = {"label_XYZ": line(1, 1, 1) > 0, "sums_XYZ": line(9, 5, 1), "most": 10, "spacing": SPACING}
    hot = agreement(**given, settings=LabelQuality(temperature=1e6, neighborhood_mm=0))
    cold = agreement(**given, settings=LabelQuality(temperature=1e-4, neighborhood_mm=0))
    assert hot == pytest.approx((0.5, 0.5))
    assert cold == pytest.approx((0.1, 0.5))


def test_voxels_that_are_alike_count_each() -> None:
    """p = 1, 1, 0.1."""
    found = agreement(
        line(1, 1, 1) > 0, line(10, 10, 1), most=10, spacing=SPACING, settings=LabelQuality(temperature=0.5, neighborhood_mm=0)
    )
    weight = math.exp((1 - 0.1) / 0.5)
    assert found == pytest.approx(((2 + 0.1 * weight) / (2 + weight), 0.7))


def test_what_lies_near_counts_and_what_lies_far_does_not() -> None:
    """p(organ) = 0.4 beside the label is a doubt about it; five voxels away it is another matter. Edges of 8 mm."""
    label, sums = line(1, 0, 0, 0, 0, 0) > 0, line(10, 4, 0, 0, 0, 4)
    assert agreement(label, sums, most=10, spacing=SPACING, settings=ALONE) == (1.0, 1.0)
    near = agreement(label, sums, most=10, spacing=SPACING, settings=LabelQuality(neighborhood_mm=5))
    assert near is not None
    assert near[1] == pytest.approx((1 + 0.6) / 2)


def test_near_is_in_mm_of_each_axis_and_on_both_sides() -> None:
    """5 mm reach one voxel along x; p(not the organ) is 0.7 before the labeled voxel, 0.6 behind it and farther off."""
    label, sums = line(0, 0, 1, 0, 0) > 0, line(4, 3, 10, 4, 4)
    near = agreement(label, sums, most=10, spacing=(5.0, 1.0, 0.5), settings=LabelQuality(neighborhood_mm=5))
    assert near is not None
    assert near[1] == pytest.approx((0.7 + 1 + 0.6) / 3)


def test_no_organ_at_all_has_no_score_and_a_missing_one_a_low_one() -> None:
    nothing, organ = line(0, 0, 0), line(0, 10, 0)
    assert agreement(nothing > 0, nothing, most=10, spacing=SPACING, settings=ALONE) is None
    assert agreement(nothing > 0, line(0, 5, 0), most=10, spacing=SPACING, settings=ALONE) is None  # a half is not predicted
    assert agreement(nothing > 0, organ, most=10, spacing=SPACING, settings=ALONE) == (0.0, 0.0)


def test_volumes_say_what_is_missing_and_what_is_too_much() -> None:
    settings = {"most": 10, "spacing": (10.0, 10.0, 10.0), "source": "original", "in_sample": False, "settings": ALONE}
    found = score_organ("p", "liver", line(1, 1, 0, 0) > 0, line(4, 10, 10, 10), **settings)
    assert found is not None
    assert (found.label_ml, found.predicted_ml, found.missing_ml, found.surplus_ml) == (2, 3, 2, 1)
    assert found.dice == pytest.approx(2 * 1 / 5)


# --- wrong labels ----------------------------------------------------------------------------------------------------


def shifted(labels: np.ndarray) -> np.ndarray:
    """One organ three voxels lower, as a label of another scan would lie."""
    organ = labels == ORGANS.label_id("spleen")
    wrong = np.where(organ, 0, labels).astype(np.uint8)
    wrong[np.roll(organ, 3, axis=2)] = ORGANS.label_id("spleen")
    return wrong


def swapped(labels: np.ndarray) -> np.ndarray:
    """Left and right kidney exchanged."""
    left, right = ORGANS.label_id("kidney_left"), ORGANS.label_id("kidney_right")
    return np.select([labels == left, labels == right], [np.uint8(right), np.uint8(left)], labels)


def halved(labels: np.ndarray) -> np.ndarray:
    """The lower half of the liver forgotten."""
    organ = labels == ORGANS.label_id("liver")
    lowest, *_, highest = np.flatnonzero(organ.any(axis=(0, 1)))
    lower = np.arange(labels.shape[2]) < (lowest + highest) // 2
    return np.where(organ & lower, np.uint8(0), labels)


def forgotten(labels: np.ndarray) -> np.ndarray:
    """No aorta."""
    return np.where(labels == ORGANS.label_id("aorta"), np.uint8(0), labels)


@pytest.fixture(scope="module")
def patients() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (label map, what two imperfect networks say as sums of bytes [K, X, Y, Z]): soft at the borders, noisy, a bit off."""
    made = {}
    knobs = Phantom(spacing=SPACING, field_of_view_mm=(320, 256, 320))
    for seed in range(5):
        labels = np.asarray(reorient(procedural_patient(knobs, seed=seed, organs=ORGANS).label).voxels, np.uint8)
        random = np.random.default_rng(seed)
        sums = np.zeros((len(ORGANS), *labels.shape), np.uint16)
        for k, name in enumerate(ORGANS.names):
            for sigma in (0.4, 0.6):
                soft = gaussian_filter((labels == ORGANS.label_id(name)).astype(np.float32), sigma)
                noisy = soft + 0.05 * gaussian_filter(random.standard_normal(labels.shape), 1)
                sums[k] += np.rint(255 * noisy.clip(0, 1)).astype(np.uint16)
        made[f"p{seed}"] = (labels, sums)
    return made


@pytest.mark.parametrize(
    ("spoil", "organs"),
    [(shifted, {"spleen"}), (swapped, {"kidney_left", "kidney_right"}), (halved, {"liver"}), (forgotten, {"aorta"})],
)
def test_a_wrong_label_surfaces_at_the_top(
    patients: dict[str, tuple[np.ndarray, np.ndarray]], spoil: Callable[[np.ndarray], np.ndarray], organs: set[str]
) -> None:
    scores: list[OrganLabelScore] = []
    for name, (labels, sums) in patients.items():
        given = spoil(labels) if name == "p3" else labels
        for k, organ in enumerate(ORGANS.names):
            found = score_organ(
                name,
                organ,
                ORGANS.mask(given, organ),
                sums[k],
                most=2 * 255,
                spacing=SPACING,
                source="original",
                in_sample=False,
                settings=LabelQuality(),
            )
            scores += [found] if found else []
    scores.sort(key=lambda s: s.score)
    assert {(s.case_id, s.organ) for s in scores[: len(organs)]} == {("p3", organ) for organ in organs}
    assert scores[len(organs) - 1].score < 0.5 * scores[len(organs)].score, "by a clear distance"
