"""Anatomical rules by hand, and always: they end, applying them again changes nothing, and every voxel they changed is recorded.

Slices are written from the patient's left to the right, one letter per organ.
"""

from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from atlas_ray.components import connected_components
from atlas_ray.config import load_config
from atlas_ray.data.phantom import Patient, Phantom, procedural_patient
from atlas_ray.exceptions import ConfigError
from atlas_ray.organs import Organ, Organs
from atlas_ray.segmentation.anatomy import AnatomyRule, apply_anatomy
from atlas_ray.volume import Volume, reorient

LETTERS = ".LRVPS"  # left lung, right lung, vein, pancreas, spleen
NAMES = ("lung_left", "lung_right", "vein", "pancreas", "spleen")
ORGANS = Organs(
    name="five",
    organs=tuple(
        Organ(name=n, label_id=i, color="#000000", may_touch=("vein",) if n == "spleen" else ()) for i, n in enumerate(NAMES, 1)
    ),
)
AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])  # 20 mm3


def rules(*given: dict[str, Any]) -> list[Any]:
    return TypeAdapter(list[AnatomyRule]).validate_python(list(given))


def scan(*slices: str) -> np.ndarray:
    """[X, Y, Z] of slices from below, rows separated by spaces."""
    return np.array([[[LETTERS.index(c) for c in row] for row in s.split()] for s in slices], np.uint8).transpose(2, 1, 0)


def text(voxels: np.ndarray) -> list[str]:
    return [" ".join("".join(LETTERS[v] for v in row) for row in slice_) for slice_ in voxels.transpose(2, 1, 0)]


def corrected(given: list[Any], *slices: str) -> tuple[list[str], list[tuple[str, str, int, int]], tuple[str, ...]]:
    volume = Volume(scan(*slices), AFFINE)
    record = apply_anatomy(given, volume, ORGANS)
    return text(volume.voxels), [(c.rule, c.organ, c.taken, c.given) for c in record.changes], record.notes


def test_the_largest_component_of_the_organs_named() -> None:
    largest = rules({"rule": "largest_component", "organs": ["spleen"]})
    after, changes, notes = corrected(largest, "SS..S.PP..P")
    assert after == ["SS....PP..P"]
    assert changes == [("largest_component", "spleen", 1, 0)]
    assert notes == ()


def test_how_many_components_and_how_small() -> None:
    two = rules({"rule": "largest_component", "organs": ["spleen", "pancreas"], "keep": 2, "smallest_mm3": 40})
    after, changes, _ = corrected(two, "SSS.S.SS.PP.P")
    assert after == ["SSS...SS.PP.."]  # a voxel has 20 mm3
    assert changes == [("largest_component", "pancreas", 1, 0), ("largest_component", "spleen", 1, 0)]


def test_a_pair_by_side() -> None:
    sides = rules({"rule": "sides", "left": "lung_left", "right": "lung_right"})
    after, changes, notes = corrected(sides, "LRRL...RRLR.")
    assert after == ["LLLL...RRRR."]
    assert changes == [("sides", "lung_left", 1, 2), ("sides", "lung_right", 2, 1)]
    assert notes == ()


def test_sides_that_are_not_certain_stay() -> None:
    sides = rules({"rule": "sides", "left": "lung_left", "right": "lung_right"})
    after, changes, notes = corrected(sides, ".LLRR......")
    assert after == [".LLRR......"]
    assert changes == []
    assert notes == ("0 sides lung_left, lung_right: one component of 4 voxels: the other is missing, or they touch",)


def test_a_vessel_ends_where_the_organ_does() -> None:
    ends = rules({"rule": "not_below", "organ": "vein", "of": "pancreas"})
    after, changes, _ = corrected(ends, "VV..", ".V..", ".VP.", ".VPP")
    assert after == ["....", "....", ".VP.", ".VPP"]
    assert changes == [("not_below", "vein", 3, 0)]
    assert corrected(ends, "VV..")[0::2] == (["VV.."], ("0 not_below vein, pancreas: no pancreas",))


def test_a_stray_piece_inside_another_organ_becomes_it() -> None:
    stray = rules({"rule": "adjacency"})
    slices = ("PPPPP.SS", "PPSPP.SS", "PPPPP.SS")  # one voxel of spleen in the pancreas
    after, changes, _ = corrected(stray, *slices)
    assert after == ["PPPPP.SS", "PPPPP.SS", "PPPPP.SS"]
    assert changes == [("adjacency", "pancreas", 0, 1), ("adjacency", "spleen", 1, 0)]
    assert corrected(rules({"rule": "adjacency", "organs": ["vein"]}), *slices)[1] == []


def test_what_may_touch_and_what_lies_free_stays() -> None:
    stray = rules({"rule": "adjacency"})
    for slices in (("VVVVV.SS", "VVSVV.SS", "VVVVV.SS"), ("P..S..SS", "P..S..SS", "P..S..SS")):
        assert corrected(stray, *slices)[1] == []


def test_rules_see_ras_whatever_the_file_is(tmp_path: Path) -> None:
    ends = rules(
        {"rule": "not_below", "organ": "vein", "of": "pancreas"}, {"rule": "sides", "left": "lung_left", "right": "lung_right"}
    )
    for orientation in ("RAS", "LPS", "LAI", "SPR", "IRA"):
        volume = reorient(Volume(scan("VV.R..R", "PV.R..L"), AFFINE), orientation)
        volume = Volume(np.asfortranarray(volume.voxels), volume.affine)
        apply_anatomy(ends, volume, ORGANS)
        assert text(reorient(volume).voxels) == ["...L..R", "PV.L..R"], orientation


RULES = st.lists(
    st.one_of(
        st.builds(
            lambda organs, keep: {"rule": "largest_component", "organs": organs, "keep": keep},
            st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
            st.integers(1, 2),
        ),
        st.permutations(NAMES).map(lambda n: {"rule": "sides", "left": n[0], "right": n[1]}),
        st.permutations(NAMES).map(lambda n: {"rule": "not_below", "organ": n[0], "of": n[1]}),
        st.sampled_from([0.5, 0.7]).map(lambda share: {"rule": "adjacency", "share": share}),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150)
@given(voxels=arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3), elements=st.integers(0, 5)), listed=RULES)
def test_rules_end_and_applying_them_again_changes_nothing(voxels: np.ndarray, listed: list[dict[str, Any]]) -> None:
    once = Volume(voxels.copy(), AFFINE)
    record = apply_anatomy(rules(*listed), once, ORGANS)
    balance = dict.fromkeys(NAMES, 0)
    for change in record.changes:
        balance[change.organ] += change.given - change.taken
    for organ in ORGANS:
        grown = int((once.voxels == organ.label_id).sum()) - int((voxels == organ.label_id).sum())
        assert balance[organ.name] == grown
    twice = Volume(once.voxels.copy(), AFFINE)
    apply_anatomy(rules(*listed), twice, ORGANS)
    assert np.array_equal(twice.voxels, once.voxels)


def test_organs_of_a_rule_are_the_campaigns(tmp_path: Path) -> None:
    campaign = {
        "name": "small",
        "workspace": str(tmp_path / "w"),
        "datasets": [{"source": "phantom", "name": "a", "count": 1, "split": "pool"}],
        "pseudo_labels": {"anatomy": [{"rule": "not_below", "organ": "portal_vein", "of": "pancreas"}]},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(campaign))
    with pytest.raises(ConfigError, match=r"pseudo_labels\.anatomy\.0: not_below names \['portal_vein'\]; the campaign has aorta"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(ValidationError, match="cannot end below itself"):
        rules({"rule": "not_below", "organ": "vein", "of": "vein"})


@pytest.fixture(scope="module")
def chest() -> Patient:
    """Both lungs of a phantom, in 6 mm voxels, LPS."""
    knobs = Phantom(spacing=(6, 6, 6), field_of_view_mm=(420, 300, 240), center_mm=(0, 10, 200), orientation="LPS")
    return procedural_patient(knobs, seed=3, organs=LUNGS)


LUNGS = Organs(
    name="lungs",
    organs=tuple(
        Organ(name=name, label_id=i, color="#000000", cut_where_touching=True)
        for i, name in enumerate(("lung_left", "lung_right"), 1)
    ),
)
BY_SIDE = rules({"rule": "sides", "left": "lung_left", "right": "lung_right"})


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_lungs_that_touch_are_cut_where_they_do(chest: Patient) -> None:
    """A membrane's width of voxels between the lungs is missed, and the network calls everything the right one."""
    truth = chest.label.voxels
    touching = reorient(chest.label.with_voxels(np.where(truth > 0, 2, 0).astype(np.uint8)))
    y, z = (int(n) for n in np.median(np.argwhere(reorient(chest.label).voxels == 1), axis=0)[1:])
    across = np.flatnonzero(touching.voxels[:, y, z])
    touching.voxels[across[0] : across[-1] + 1, y : y + 2, z : z + 2] = 2
    assert connected_components(np.ascontiguousarray(touching.voxels))[1] == 1
    given = reorient(touching, "LPS")
    before = given.voxels > 0
    record = apply_anatomy(BY_SIDE, given, LUNGS, image=lambda: chest.image)
    assert record.notes == ()
    assert np.array_equal(given.voxels > 0, before)
    for label_id in (1, 2):
        assert dice(given.voxels == label_id, truth == label_id) > 0.98


@pytest.mark.parametrize("label_id", [1, 2])
def test_one_lung_alone_is_told_by_the_bodys_midline(chest: Patient, label_id: int) -> None:
    one = chest.label.voxels == label_id
    given = chest.label.with_voxels(np.where(one, 3 - label_id, 0).astype(np.uint8))  # all of it on the wrong side
    apply_anatomy(BY_SIDE, given, LUNGS, image=lambda: chest.image)
    assert np.array_equal(given.voxels, np.where(one, label_id, 0))
    unseen = chest.label.with_voxels(np.where(one, 3 - label_id, 0).astype(np.uint8))
    (note,) = apply_anatomy(BY_SIDE, unseen, LUNGS).notes
    assert "the other is missing, or they touch" in note, "without an image nobody knows where the middle is"
