"""Pairs of label makers and false positives, counted by hand."""

import numpy as np
import pytest

from atlas_ray.evaluation.components import Rules
from atlas_ray.evaluation.false_positives import false_components_mm3, false_positives, share_of
from atlas_ray.evaluation.paper import paper_figures
from atlas_ray.evaluation.raters import compare_makers, pair_means, symmetric_dice
from atlas_ray.organs import Organ, Organs, load_organs

ORGANS = Organs(
    name="two", organs=(Organ(name="ball", label_id=1, color="#e0383e"), Organ(name="cube", label_id=2, color="#3fb8af"))
)
RULES = Rules(resamples=100)


def labels(text: str) -> np.ndarray:
    return np.array([int(c) for c in text], np.uint8)[:, None, None]


def test_every_pair_and_organ():
    maps = {"a": labels("11200"), "b": labels("10200"), "reader": labels("11000")}
    scores = {(s.first, s.second, s.organ): s for s in compare_makers("c", maps, ORGANS, (1, 1, 1), tolerance_mm=1)}
    assert list(scores) == [(f, s, o) for f, s in [("a", "b"), ("a", "reader"), ("b", "reader")] for o in ("ball", "cube")]
    assert scores["a", "b", "ball"].dice == pytest.approx(2 / 3)
    assert scores["a", "b", "ball"].surface_dice == 1  # a voxel of 1 mm away
    assert compare_makers("c", maps, ORGANS, (1, 1, 1), tolerance_mm=0)[0].surface_dice < 1
    assert scores["a", "b", "cube"].dice == 1
    assert scores["a", "reader", "cube"].dice == 0  # one of them has none
    assert scores["a", "reader", "cube"].surface_dice == 0


def test_an_organ_that_neither_has_says_nothing():
    (ball, cube) = compare_makers("c", {"a": labels("100"), "b": labels("100")}, ORGANS, (1, 1, 1), tolerance_mm=0)
    assert (ball.dice, ball.surface_dice) == (1, 1)
    assert (cube.dice, cube.surface_dice) == (None, None)
    assert symmetric_dice(np.zeros(3, bool), np.zeros(3, bool)) is None


def test_an_organ_that_a_network_does_not_know_is_not_an_organ_that_it_missed():
    maps = {"a": labels("120"), "guest": labels("100"), "reader": labels("122")}
    scores = compare_makers("c", maps, ORGANS, (1, 1, 1), tolerance_mm=0, unknown={"guest": ("cube",)})
    dice = {(s.first, s.second): s.dice for s in scores if s.organ == "cube"}
    assert dice == {("a", "guest"): None, ("a", "reader"): pytest.approx(2 / 3), ("guest", "reader"): None}
    assert [s.surface_dice for s in scores if s.second == "guest"] == [1, None]


def test_means_are_per_case_first():
    scores = [
        *compare_makers("one", {"a": labels("12"), "b": labels("10")}, ORGANS, (1, 1, 1), tolerance_mm=0),  # 1 and 0
        *compare_makers("two", {"a": labels("10"), "b": labels("10")}, ORGANS, (1, 1, 1), tolerance_mm=0),  # 1 and nothing
    ]
    (pair,) = pair_means(scores, RULES)
    assert (pair.first, pair.second, pair.cases) == ("a", "b", 2)
    assert pair.dice.value == 0.75
    assert pair.surface_dice.value == 0.75
    (other,) = pair_means([scores[0].model_copy(update={"dice": 0.25, "surface_dice": 0.5})], RULES)
    assert (other.dice.value, other.surface_dice.value) == (0.25, 0.5)


def test_maps_of_two_grids_are_refused():
    with pytest.raises(ValueError, match="c: a has shape"):
        compare_makers("c", {"a": labels("1"), "b": labels("11")}, ORGANS, (1, 1, 1), tolerance_mm=0)


def test_false_components():
    predicted = labels("1101000111") == 1
    assert false_components_mm3(predicted, 2.0, RULES) == [4.0, 2.0, 6.0]
    assert false_components_mm3(predicted, 2.0, Rules(min_false_positive_mm3=4)) == [4.0, 6.0]
    assert false_components_mm3(predicted & False, 2.0, RULES) == []


def test_false_positive_rate_is_of_cases():
    found = false_positives("cyst", [[4.0, 2.0], [], [6.0], []], RULES)
    assert (found.cases, found.cases_with_any, found.components) == (4, 2, 3)
    assert (found.rate.value, found.median_mm3, found.largest_mm3) == (0.5, 4.0, 6.0)
    half = false_positives("cyst", [[4.0, 2.0], [], [6.0], []], Rules(confidence=0.5)).rate
    assert found.rate.low < half.low < 0.5 < half.high < found.rate.high
    none = false_positives("cyst", [[], []], RULES)
    assert (none.rate.value, none.components, none.median_mm3) == (0.0, 0, None)
    assert false_positives("cyst", [], RULES).rate.value is None


def test_the_papers_false_positive_rate_and_its_interval():
    paper = paper_figures().false_positives
    found = share_of(paper.cases_with_any, paper.cases, confidence=0.95)
    assert found.value == pytest.approx(0.094, abs=0.0005)  # they print 9.3 %
    assert (found.low, found.high) == (pytest.approx(0.0674, abs=1e-3), pytest.approx(0.1277, abs=1e-3))
    nothing = share_of(0, 59, confidence=0.90)
    assert nothing.low == 0
    assert nothing.high == pytest.approx(1 - 0.05 ** (1 / 59))  # all 59 are without: (1 - p)^59 = 0.05


def test_the_papers_table_1_is_for_the_organs_we_know_and_its_means_are_right():
    table = paper_figures().attention
    assert set(table.sensitivity) == set(table.precision) == set(load_organs("abdomenatlas_1_0").names)
    assert np.mean(list(table.sensitivity.values())) == pytest.approx(table.mean_sensitivity, abs=0.005)
    assert np.mean(list(table.precision.values())) == pytest.approx(table.mean_precision, abs=0.005)
