"""The oracle repairs exactly what the attention points at, and nothing else."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest

from atlas_ray.annotation.oracle import OracleAnnotator, dilate
from atlas_ray.exceptions import GeometryError
from atlas_ray.organs import Organs

Row = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
MM = (1.0, 1.0, 1.0)


def row(digits: str) -> Row:
    return np.array([int(d) for d in digits], np.uint8).reshape(-1, 1, 1)


def marked(stars: str) -> Mask:
    return np.array([c == "*" for c in stars]).reshape(-1, 1, 1)


def revised(draft: str, masks: dict[str, Mask], organs: Organs) -> str:
    """The draft with the organs' new masks; no voxel may be in two."""
    labels = row(draft)
    for name in masks:
        labels[labels == organs.label_id(name)] = 0
    claimed = np.zeros(labels.shape, int)
    for name, mask in masks.items():
        labels[mask] = organs.label_id(name)
        claimed += mask
    assert claimed.max(initial=0) <= 1
    return "".join(str(v) for v in labels.ravel())


def oracle(scope: Literal["component", "organ", "case"], dilation_mm: float = 0.0) -> OracleAnnotator:
    return OracleAnnotator(scope=scope, dilation_mm=dilation_mm)


#        0123456789ab   1 liver, 2 spleen
DRAFT = "110000220000"
TRUTH = "011100022200"
# wrong in the draft: 0 (liver too far), 2 and 3 (liver missing), 6 (spleen too far), 8 and 9 (spleen missing)


@pytest.mark.parametrize(
    ("scope", "attention", "result", "changed"),
    [
        ("component", {"liver": "*..........."}, "010000220000", {"liver"}),
        ("component", {"liver": "..*........."}, "111000220000", {"liver"}),
        ("component", {"liver": "*.**........"}, "011100220000", {"liver"}),
        ("component", {"liver": "......**...."}, "110000220000", set()),  # the truth has no liver there, the draft neither
        ("component", {"liver": "............"}, "110000220000", set()),
        ("component", {}, "110000220000", set()),
        ("component", {"liver": "*..........*", "spleen": "........*..."}, "010000222000", {"liver", "spleen"}),
        ("organ", {"liver": "...........*"}, "011100220000", {"liver"}),  # one marked voxel anywhere: the whole organ
        ("organ", {"liver": "............"}, "110000220000", set()),
        ("case", {}, "011100022200", {"liver", "spleen"}),
    ],
)
def test_scope(
    organs: Organs, scope: Literal["component", "organ", "case"], attention: dict[str, str], result: str, changed: set[str]
) -> None:
    maps = {name: marked(stars) for name, stars in attention.items()}
    masks = oracle(scope).revise(row(DRAFT), row(TRUTH), maps, organs, MM)
    assert set(masks) == changed
    assert revised(DRAFT, masks, organs) == result


def test_it_sees_a_little_beyond_the_attention(organs: Organs) -> None:
    attention = {"liver": marked("..*.........")}
    at_2_mm = (2.0, 1.0, 1.0)  # one voxel along the row is 2 mm
    for dilation_mm, result in ((0, "111000220000"), (1.9, "111000220000"), (2, "111100220000"), (4, "011100220000")):
        masks = oracle("component", dilation_mm).revise(row(DRAFT), row(TRUTH), attention, organs, at_2_mm)
        assert revised(DRAFT, masks, organs) == result


def test_a_voxel_it_takes_is_taken_from_the_neighbor(organs: Organs) -> None:
    masks = oracle("component").revise(row("1122"), row("1112"), {"liver": marked("..*.")}, organs, MM)
    assert set(masks) == {"liver", "spleen"}
    assert revised("1122", masks, organs) == "1112"


def test_a_voxel_one_organ_gives_up_goes_to_the_other_only_if_that_is_pointed_at(organs: Organs) -> None:
    draft, truth = "1122", "1222"
    alone = oracle("component").revise(row(draft), row(truth), {"liver": marked(".*..")}, organs, MM)
    assert revised(draft, alone, organs) == "1022"
    both = oracle("component").revise(row(draft), row(truth), {"liver": marked(".*.."), "spleen": marked(".*..")}, organs, MM)
    assert revised(draft, both, organs) == "1222"


def test_organs_that_swap_voxels_do_not_depend_on_the_order(organs: Organs) -> None:
    attention = {name: marked("****") for name in ("spleen", "liver")}
    assert revised("1122", oracle("component").revise(row("1122"), row("2211"), attention, organs, MM), organs) == "2211"


@pytest.mark.parametrize("scope", ["component", "organ", "case"])
def test_it_never_asks_the_truth_about_an_organ_it_does_not_know(
    organs: Organs, scope: Literal["component", "organ", "case"]
) -> None:
    attention = {"liver": marked("************"), "spleen": marked("************")}
    masks = oracle(scope).revise(row(DRAFT), row(TRUTH), attention, organs, MM, organs_with_truth=["spleen"])
    assert revised(DRAFT, masks, organs) == "110000022200"


def test_a_perfect_draft_is_left_alone(organs: Organs) -> None:
    assert oracle("case").revise(row(TRUTH), row(TRUTH), {}, organs, MM) == {}


def test_its_inputs_stay_as_they_are(organs: Organs) -> None:
    draft, truth, attention = row(DRAFT), row(TRUTH), {"liver": marked("*.**........")}
    oracle("component", 3).revise(draft, truth, attention, organs, MM)
    assert "".join(map(str, draft.ravel())) == DRAFT
    assert "".join(map(str, truth.ravel())) == TRUTH
    assert attention["liver"].sum() == 3


def test_arrays_of_two_grids_are_refused(organs: Organs) -> None:
    with pytest.raises(GeometryError, match="liver has shape"):
        oracle("component").revise(row("11"), row("11"), {"liver": marked("*")}, organs, MM)
    with pytest.raises(GeometryError, match="truth has shape"):
        oracle("component").revise(row("11"), row("111"), {}, organs, MM)


def test_minutes_to_look_and_to_draw() -> None:
    assert OracleAnnotator().organ_minutes(components=9, changed_ml=30) == 0  # the paper's figure is per case
    measured = OracleAnnotator(
        minutes_per_organ=2, minutes_per_component=0.5, minutes_per_revised_organ=1, minutes_per_revised_ml=0.25
    )
    assert measured.organ_minutes(components=4, changed_ml=0) == 2 + 2
    assert measured.organ_minutes(components=4, changed_ml=8) == 2 + 2 + 1 + 2


def test_asked_looks_at_an_organ_without_attention(organs: Organs) -> None:
    asked = {"liver": marked("............")}
    assert revised(DRAFT, oracle("asked").revise(row(DRAFT), row(TRUTH), asked, organs, MM), organs) == "011100220000"


def test_what_is_too_thin_is_left_alone(organs: Organs) -> None:
    """The liver's slab lacks one plane above, which people let stand, and five below."""
    truth, draft = np.zeros((2, 20, 20, 20), np.uint8)
    truth[5:15] = 1
    draft[10:14] = 1
    eager, calm = OracleAnnotator(scope="case"), OracleAnnotator(scope="case", tolerance_mm=2)
    assert np.array_equal(eager.revise(draft, truth, {}, organs, MM)["liver"], truth == 1)
    mask = calm.revise(draft, truth, {}, organs, MM)["liver"]
    assert np.array_equal(mask[:14, 5:15, 5:15], truth[:14, 5:15, 5:15] == 1)
    assert not mask[14].any()


def test_a_hand_of_its_own(organs: Organs) -> None:
    """A ball of 10 mm: noise moves its border by about noise_mm, a bias of 1 mm adds a shell, and one hand is always alike."""
    truth = np.zeros((32, 32, 32), np.uint8)
    grid = np.stack(np.meshgrid(*[np.arange(32) - 15.5] * 3, indexing="ij"))
    truth[np.linalg.norm(grid, axis=0) <= 10] = 2
    assert OracleAnnotator().sees(truth, organs, MM, what="a") is truth
    noisy = OracleAnnotator(noise_mm=1.0).sees(truth, organs, MM, what="a")
    depth = 10 - np.linalg.norm(grid, axis=0)
    moved = np.abs(depth[noisy != truth])
    assert 0.2 < moved.mean() < 1.5
    assert moved.max() < 4.5
    assert np.array_equal(noisy, OracleAnnotator(noise_mm=1.0).sees(truth, organs, MM, what="a"))
    assert not np.array_equal(noisy, OracleAnnotator(noise_mm=1.0, seed=1).sees(truth, organs, MM, what="a"))
    wide = OracleAnnotator(bias_mm=1.0).sees(truth, organs, MM, what="a")
    assert (wide[truth == 2] == 2).all()
    assert depth[wide == 2].min() == pytest.approx(-1, abs=0.9)


def test_a_tired_eye_misses_its_share() -> None:
    tired = OracleAnnotator(miss_rate=0.25)
    missed = sum(tired.misses(f"case_{n}", "liver") for n in range(400))
    assert 70 < missed < 130
    assert not OracleAnnotator().misses("case_0", "liver")


# --- dilation ---


def test_dilation_is_in_mm_along_every_axis() -> None:
    mask = np.zeros((7, 7, 7), bool)
    mask[3, 3, 3] = True
    grown = dilate(mask, 2.0, (1.0, 2.0, 3.0))
    offsets = {(int(x) - 3, int(y) - 3, int(z) - 3) for x, y, z in np.argwhere(grown)}
    assert offsets == {(-2, 0, 0), (-1, 0, 0), (0, 0, 0), (1, 0, 0), (2, 0, 0), (0, -1, 0), (0, 1, 0)}


def test_dilation_of_islands_equals_the_distance_over_the_whole_volume() -> None:
    rng = np.random.default_rng(5)
    mask = rng.random((20, 21, 22)) < 0.004
    mask[0, 0, 0] = mask[-1, -1, -1] = True  # at the border the box is cut
    spacing = (0.8, 1.1, 2.5)
    voxels = np.argwhere(mask) * spacing
    centers = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(mask.shape, spacing, strict=True)), indexing="ij"), -1)
    nearest = np.min([np.linalg.norm(centers - voxel, axis=-1) for voxel in voxels], axis=0)
    assert np.array_equal(dilate(mask, 3.0, spacing), nearest <= 3.0)
    assert np.array_equal(dilate(np.asfortranarray(mask), 3.0, spacing), nearest <= 3.0)


def test_nothing_grows_from_nothing() -> None:
    assert not dilate(np.zeros((4, 4, 4), bool), 5.0, MM).any()
