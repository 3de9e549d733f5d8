"""Merging by hand: one row of eight voxels, a digit per voxel. 1 is the liver, 2 the spleen, 3 the aorta, 0 nothing."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from atlas_ray.annotation.merge import OrganProvenance, Provenance, draft_label, merge_case, paint_edits
from atlas_ray.annotation.revisions import Edit
from atlas_ray.exceptions import GeometryError, LabelError, RevisionError
from atlas_ray.organs import Organs
from atlas_ray.records import Revision

Row = npt.NDArray[np.uint8]


def row(digits: str) -> Row:
    return np.array([int(d) for d in digits], np.uint8).reshape(-1, 1, 1)


def digits(labels: Row) -> str:
    return "".join(str(v) for v in labels.ravel(order="F"))


def edit(organ: str, *runs: Sequence[int], number: int = 1, user: str = "anna", round_index: int = 1) -> Edit:
    revision = Revision(
        round=round_index,
        case_id="c",
        organ=organ,
        revision_id=number,
        parent_id=number - 1,
        user=user,
        created="2026-01-05T08:00:00+00:00",
        voxels=0,
        seconds=0,
    )
    return Edit(number, revision, np.array(runs, np.uint32).reshape(-1, 3))


# --- the draft ---


def test_ground_truth_lies_over_the_pseudo_label(organs: Organs) -> None:
    pseudo, original = row("11002233"), row("01110000")
    #                                        liver is labeled: its truth replaces the networks' liver, also where that
    #                                        leaves nothing (voxel 0); spleen and aorta are the networks'
    assert digits(draft_label(pseudo, original, ["liver"], organs)) == "01112233"


def test_an_original_organ_takes_voxels_from_a_pseudo_neighbor(organs: Organs) -> None:
    assert digits(draft_label(row("00002222"), row("00111100"), ["liver"], organs)) == "00111122"


def test_organs_the_case_is_not_labeled_for_are_not_read(organs: Organs) -> None:
    pseudo, original = row("11002233"), row("01113333")
    assert digits(draft_label(pseudo, original, ["liver"], organs)) == "01112233"
    assert digits(draft_label(pseudo, None, [], organs)) == "11002233"
    assert digits(draft_label(pseudo, original, [], organs)) == "11002233"


def test_an_organ_the_truth_says_is_absent_is_cleared(organs: Organs) -> None:
    assert digits(draft_label(row("11002233"), row("00000000"), ["spleen"], organs)) == "11000033"


def test_the_draft_is_a_new_array(organs: Organs) -> None:
    pseudo, original = row("11002233"), row("01110000")
    draft_label(pseudo, original, ["liver"], organs)[:] = 9
    assert (digits(pseudo), digits(original)) == ("11002233", "01110000")


def test_labeled_organs_need_a_label_on_the_same_grid(organs: Organs) -> None:
    with pytest.raises(LabelError, match="labeled organs liver but no original"):
        draft_label(row("11"), None, ["liver"], organs)
    with pytest.raises(GeometryError, match=r"\(2, 1, 1\) and \(3, 1, 1\)"):
        draft_label(row("11"), row("111"), ["liver"], organs)
    with pytest.raises(LabelError, match="'heart' is not in organ set"):
        draft_label(row("11"), row("11"), ["heart"], organs)


# --- painting ---


@pytest.mark.parametrize(
    ("edits", "result", "why"),
    [
        ([], "11002233", "nothing saved, nothing changed"),
        ([edit("liver", [2, 2, 1])], "11112233", "grown into background"),
        ([edit("liver", [0, 1, 0])], "01002233", "shrunk"),
        ([edit("liver", [4, 1, 1])], "11001233", "taken from a neighbor that was not saved"),
        ([edit("liver", [4, 1, 1]), edit("spleen", [4, 1, 0])], "11001233", "taken, and the neighbor's loss saved too"),
        ([edit("spleen", [4, 1, 0]), edit("liver", [4, 1, 1])], "11001233", "the same in the other order"),
        ([edit("liver", [3, 1, 1]), edit("spleen", [3, 1, 1])], "11022233", "both claim it: the last saved has it"),
        ([edit("spleen", [3, 1, 1]), edit("liver", [3, 1, 1])], "11012233", "and in the other order the other"),
        ([edit("liver", [4, 1, 1]), edit("liver", [4, 1, 0], number=2)], "11002233", "given back: the neighbor's again"),
        (
            [edit("liver", [3, 1, 1]), edit("spleen", [3, 1, 1]), edit("spleen", [3, 1, 0], number=2)],
            "11012233",
            "the last claim is withdrawn: the older one holds",
        ),
        ([edit("spleen", [4, 2, 0]), edit("aorta", [6, 2, 0])], "11000000", "two organs erased"),
        ([edit("liver", [6, 2, 1]), edit("spleen", [0, 1, 1])], "21002211", "two organs, two neighbors"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_painting(organs: Organs, edits: list[Edit], result: str, why: str) -> None:
    draft = row("11002233")
    assert digits(paint_edits(draft, edits, organs)) == result
    assert digits(draft) == "11002233"


def test_painting_follows_the_file_order_of_a_real_grid(organs: Organs) -> None:
    draft = np.zeros((3, 2, 2), np.uint8)  # C-ordered: only the meaning of the runs is Fortran
    painted = paint_edits(draft, [edit("spleen", [1, 3, 1], [10, 1, 1])], organs)
    assert np.argwhere(painted == 2).tolist() == [[0, 1, 0], [1, 0, 0], [1, 1, 1], [2, 0, 0]]


def test_an_edit_of_another_grid_or_organ_set_is_refused(organs: Organs) -> None:
    with pytest.raises(RevisionError, match="the grid has 8 voxels"):
        paint_edits(row("11002233"), [edit("liver", [7, 2, 1])], organs)
    with pytest.raises(LabelError, match="'heart' is not in organ set"):
        paint_edits(row("11002233"), [edit("heart", [7, 1, 1])], organs)


# --- the annotation and where it comes from ---

WEIGHTS_1, WEIGHTS_2 = {"unet": "aa11"}, {"unet": "bb22"}


def test_nothing_but_a_pseudo_label(organs: Organs) -> None:
    labels, provenance = merge_case(row("11000233"), organs, case_id="c", round_index=1, checkpoints=WEIGHTS_1)
    assert digits(labels) == "11000233"
    assert provenance == Provenance(
        case_id="c",
        round=1,
        organs=(
            OrganProvenance(organ="liver", source="pseudo", round=1, checkpoints=WEIGHTS_1, voxels=2),
            OrganProvenance(organ="spleen", source="pseudo", round=1, checkpoints=WEIGHTS_1, voxels=1),
            OrganProvenance(organ="aorta", source="pseudo", round=1, checkpoints=WEIGHTS_1, voxels=2),
        ),
    )
    assert provenance.human_organs == ()


def test_each_organ_has_its_own_source(organs: Organs) -> None:
    labels, provenance = merge_case(
        row("11002233"),
        organs,
        case_id="c",
        round_index=1,
        original=row("01110000"),
        labeled_organs=["liver"],
        edits=[edit("spleen", [3, 1, 1], user="anna"), edit("spleen", [5, 1, 0], number=2, user="ben")],
        reviewed={"spleen": "ben", "aorta": "ben"},
        checkpoints=WEIGHTS_1,
    )
    assert digits(labels) == "01122033"
    assert provenance.organs == (
        # voxel 3 of the ground truth went to the spleen, though nobody saved the liver
        OrganProvenance(organ="liver", source="original", voxels=2, overridden_voxels=1),
        OrganProvenance(
            organ="spleen",
            source="revised",
            round=1,
            users=("anna", "ben"),
            revisions=((1, 1), (1, 2)),
            checkpoints=WEIGHTS_1,
            voxels=2,
        ),
        OrganProvenance(organ="aorta", source="confirmed", round=1, users=("ben",), checkpoints=WEIGHTS_1, voxels=2),
    )
    assert provenance.human_organs == ("spleen", "aorta")


def test_edits_that_cancel_out_confirm(organs: Organs) -> None:
    edits = [edit("aorta", [0, 1, 1]), edit("aorta", [0, 1, 0], number=2)]
    labels, provenance = merge_case(row("11002233"), organs, case_id="c", round_index=1, edits=edits)
    assert digits(labels) == "11002233"
    assert (provenance["aorta"].source, provenance["aorta"].revisions) == ("confirmed", ((1, 1), (1, 2)))


def test_what_a_neighbor_takes_is_no_change_of_an_organ_that_was_looked_at(organs: Organs) -> None:
    edits = [edit("liver"), edit("spleen", [0, 1, 1])]
    labels, provenance = merge_case(row("11002233"), organs, case_id="c", round_index=1, edits=edits)
    assert digits(labels) == "21002233"
    assert (provenance["liver"].source, provenance["liver"].overridden_voxels) == ("confirmed", 1)
    assert provenance["spleen"].source == "revised"


def test_looking_at_ground_truth_leaves_it_ground_truth(organs: Organs) -> None:
    _, provenance = merge_case(
        row("1122"),
        organs,
        case_id="c",
        round_index=1,
        original=row("1111"),
        labeled_organs=["liver"],
        reviewed={"liver": "anna"},
    )
    assert provenance["liver"] == OrganProvenance(organ="liver", source="original", users=("anna",), voxels=4)


def test_ground_truth_can_be_revised(organs: Organs) -> None:
    labels, provenance = merge_case(
        row("1122"), organs, case_id="c", round_index=1, original=row("1111"), labeled_organs=["liver"],
        edits=[edit("liver", [3, 1, 0])],
    )  # fmt: skip
    assert digits(labels) == "1110"
    assert provenance["liver"].source == "revised"


def test_what_people_did_stays_over_the_next_rounds_pseudo_label(organs: Organs) -> None:
    round_1 = merge_case(
        row("11002233"),
        organs,
        case_id="c",
        round_index=1,
        original=row("00000033"),
        labeled_organs=["aorta"],
        edits=[edit("liver", [0, 1, 0])],
        checkpoints=WEIGHTS_1,
    )
    assert digits(round_1[0]) == "01002233"
    labels, provenance = merge_case(
        row("11122003"),  # new networks: the liver is wrong again, the spleen has moved
        organs,
        case_id="c",
        round_index=2,
        original=row("00000033"),
        labeled_organs=["aorta"],
        previous=round_1,
        checkpoints=WEIGHTS_2,
    )
    assert digits(labels) == "01022033"
    assert provenance.organs == (
        OrganProvenance(
            organ="liver", source="revised", round=1, users=("anna",), revisions=((1, 1),), checkpoints=WEIGHTS_1, voxels=1
        ),
        OrganProvenance(organ="spleen", source="pseudo", round=2, checkpoints=WEIGHTS_2, voxels=2),
        OrganProvenance(organ="aorta", source="original", voxels=2),
    )


def test_a_confirmed_organ_stays_too_and_can_be_revised_later(organs: Organs) -> None:
    round_1 = merge_case(row("11002200"), organs, case_id="c", round_index=1, reviewed={"liver": "anna"}, checkpoints=WEIGHTS_1)
    labels, provenance = merge_case(
        row("00112200"), organs, case_id="c", round_index=2, previous=round_1, checkpoints=WEIGHTS_2,
        edits=[edit("liver", [2, 1, 1], user="ben", round_index=2)],
    )  # fmt: skip
    assert digits(labels) == "11102200"
    assert provenance["liver"] == OrganProvenance(
        organ="liver",
        source="revised",
        round=2,
        users=("anna", "ben"),
        revisions=((2, 1),),
        checkpoints=WEIGHTS_1,
        voxels=3,
    )


def test_a_revision_of_ground_truth_stays_over_the_ground_truth(organs: Organs) -> None:
    known = {"case_id": "c", "original": row("1111"), "labeled_organs": ["liver"]}
    round_1 = merge_case(row("1122"), organs, round_index=1, edits=[edit("liver", [3, 1, 0])], **known)  # type: ignore[arg-type]
    labels, provenance = merge_case(row("1122"), organs, round_index=2, previous=round_1, **known)  # type: ignore[arg-type]
    assert digits(labels) == "1110"
    assert (provenance["liver"].source, provenance["liver"].round) == ("revised", 1)
    again = [edit("liver", [0, 1, 0], user="ben", round_index=2)]
    labels, provenance = merge_case(row("1122"), organs, round_index=2, previous=round_1, edits=again, **known)  # type: ignore[arg-type]
    assert digits(labels) == "0110"
    assert (provenance["liver"].users, provenance["liver"].revisions) == (("anna", "ben"), ((1, 1), (2, 1)))


def test_an_organ_that_the_set_no_longer_has_is_left_out(organs: Organs) -> None:
    previous = Provenance(
        case_id="c", round=1, organs=tuple(OrganProvenance(organ=o, source="revised") for o in ("heart", "liver"))
    )
    assert digits(draft_label(row("2200"), None, [], organs, previous=(row("0144"), previous))) == "2100"


def test_provenance_survives_json(organs: Organs) -> None:
    _, provenance = merge_case(row("12"), organs, case_id="c", round_index=1, edits=[edit("liver", [1, 1, 1])])
    assert Provenance.model_validate_json(provenance.model_dump_json()) == provenance
    with pytest.raises(LabelError, match="case c: no provenance of organ 'heart'"):
        provenance["heart"]


def test_voxels_nobody_touched_are_bit_identical(organs: Organs) -> None:
    rng = np.random.default_rng(4)
    pseudo = rng.integers(0, 4, (9, 8, 7)).astype(np.uint8)
    labels, _ = merge_case(pseudo, organs, case_id="c", round_index=1, edits=[edit("liver", [100, 20, 1], [300, 5, 0])])
    touched = np.zeros(pseudo.size, bool)
    touched[100:120] = touched[300:305] = True
    before, after = pseudo.ravel(order="F"), labels.ravel(order="F")
    assert np.array_equal(after[~touched], before[~touched])
    assert (after[100:120] == 1).all()
    assert np.array_equal(after[300:305], np.where(before[300:305] == 1, 0, before[300:305]))
