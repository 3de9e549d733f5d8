"""Organ sets: names, label ids and channels, and the one way between them."""

from pathlib import Path

import numpy as np
import pytest

from atlas_ray.exceptions import ConfigError, LabelError
from atlas_ray.organs import CONFIGS, Organ, Organs, load_organs

SETS = sorted(path.stem for path in (CONFIGS / "organs").glob("*.yaml"))


def organ(name: str, label_id: int, *, overlap_partner: bool = True, may_touch: tuple[str, ...] = ()) -> Organ:
    return Organ(name=name, label_id=label_id, color="#102030", overlap_partner=overlap_partner, may_touch=may_touch)


@pytest.mark.parametrize("name", SETS)
def test_every_set_loads_and_counts_without_a_gap(name: str) -> None:
    organs = load_organs(name)
    assert organs.name == name
    assert sorted(organs.label_ids) == list(range(1, len(organs) + 1))
    assert organs.source


def test_released_numberings() -> None:
    assert [(o.label_id, o.name) for o in load_organs("abdomenatlas_1_0")] == [
        (1, "aorta"),
        (2, "gall_bladder"),
        (3, "kidney_left"),
        (4, "kidney_right"),
        (5, "liver"),
        (6, "pancreas"),
        (7, "postcava"),
        (8, "spleen"),
        (9, "stomach"),
    ]
    assert [len(load_organs(n)) for n in ("abdomenatlas_1_1", "universal_32", "btcv")] == [25, 32, 13]
    universal, btcv = load_organs("universal_32"), load_organs("btcv")
    assert universal.names[:13] == btcv.names  # the paper's table starts with BTCV
    assert set(load_organs("abdomenatlas_1_0").names) < set(load_organs("abdomenatlas_1_1").names) < set(universal.names)


@pytest.mark.parametrize("name", SETS)
def test_every_organ_has_a_code_that_tells_its_side(name: str) -> None:
    organs = load_organs(name)
    for o in organs:
        assert o.code is not None, o.name
        assert o.code.side == next((side for side in ("left", "right") if o.name.endswith(side)), None)
    structures = [(o.code.value, o.code.side) for o in organs if o.code and o.code.category == "anatomical_structure"]
    assert len(set(structures)) == len(structures)


@pytest.mark.parametrize("name", SETS)
def test_codes_are_those_of_dicoms_own_tables(name: str) -> None:
    """PS3.16 as pydicom has it. What it has no concept for must stand here, with who vouches for it."""
    from pydicom.sr._concepts_dict import concepts

    meanings: dict[str, str] = {}
    for of_code in concepts["SCT"].values():
        for code, (said, contexts) in of_code.items():
            if contexts:  # else it is a name of SNOMED's, not of DICOM's
                meanings[code] = f"{meanings.get(code, '')}|{said.lower()}"
    elsewhere = {"110765007": "portal vein and splenic vein"}  # TotalSegmentator's totalsegmentator_snomed_mapping.csv
    longer = {"Urinary bladder": "bladder"}
    for o in load_organs(name):
        assert o.code is not None
        for concept in (o.code, *([o.code.region] if o.code.region else [])):
            known = elsewhere.get(concept.value, meanings.get(concept.value, "nothing"))
            assert longer.get(concept.meaning, concept.meaning.lower()) in known.split("|"), (o.name, concept, known)


def test_what_is_wrong_in_an_organ_says_which_organ() -> None:
    without = [
        o.name for o in load_organs("universal_32") if o.code and o.code.category != "anatomical_structure" and not o.code.region
    ]
    assert without == [], "a neoplasm without its region is one of anything"


def test_the_other_side_is_known_by_its_code() -> None:
    organs = load_organs("abdomenatlas_1_0")
    assert organs.mirror("kidney_left") == "kidney_right"
    assert organs.mirror("kidney_right") == "kidney_left"
    assert organs.mirror("liver") is None
    assert load_organs("universal_32").mirror("femur_left") == "femur_right"


def test_voxels_are_counted_per_organ() -> None:
    organs = Organs(name="two", organs=(organ("b", 7), organ("a", 3), organ("c", 200)))
    labels = np.array([[[7, 7], [0, 3]], [[7, 1], [0, 0]]], np.uint8)
    assert organs.voxels(labels) == {"b": 3, "a": 1, "c": 0}


def test_channel_label_id_and_name() -> None:
    organs = Organs(name="two", organs=(organ("b", 7), organ("a", 3)))
    assert organs.names == ("b", "a")
    assert organs.label_ids == (7, 3)
    assert (organs.channel("a"), organs.label_id("a"), organs["a"].name, len(organs)) == (1, 3, "a", 2)
    with pytest.raises(LabelError, match=r"organ 'c' is not in organ set 'two'; it has b, a"):
        organs.channel("c")


def test_masks_channels_and_presence() -> None:
    organs = Organs(name="three", organs=(organ("b", 7), organ("a", 3), organ("c", 255)))
    labels = np.array([[[0, 3], [7, 3]]], np.uint8)
    assert organs.mask(labels, "a").tolist() == [[[False, True], [False, True]]]
    assert organs.channels(labels).astype(int).tolist() == [[[[0, 0], [1, 0]]], [[[0, 1], [0, 1]]], [[[0, 0], [0, 0]]]]
    assert organs.present(labels) == ("b", "a")


def test_partners_of_the_overlap_criterion() -> None:
    organs = Organs(
        name="four",
        organs=(organ("a", 1), organ("b", 2, may_touch=("c",)), organ("c", 3), organ("vessel", 4, overlap_partner=False)),
    )
    assert organs.overlap_partners == ((1, 2), (0,), (0, 1), (0, 1, 2))


@pytest.mark.parametrize(
    ("organs", "match"),
    [
        ((organ("a", 1), organ("a", 2)), r"name \['a'\] given to more than one organ"),
        ((organ("a", 1), organ("b", 1)), r"label_id \[1\] given to more than one organ"),
        ((organ("a", 1, may_touch=("x",)),), r"a may_touch \['x'\], which this set does not have"),
    ],
)
def test_a_set_must_be_consistent(organs: tuple[Organ, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Organs(name="bad", organs=organs)


# --- conversion -----------------------------------------------------------------------------------------------------

THEIRS = Organs(name="theirs", organs=(organ("a", 1), organ("b", 2), organ("c", 3)))
OURS = Organs(name="ours", organs=(organ("c", 9), organ("a", 200)))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "u8", "f4", "f8", ">i2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_conversion_is_by_name(dtype: str, order: str) -> None:
    labels = np.array([[[0, 1, 2, 3]], [[3, 3, 1, 0]]]).astype(dtype, order=order)
    converted = THEIRS.convert(labels, to=OURS)
    assert converted.dtype == np.uint8
    assert converted.tolist() == [[[0, 200, 0, 9]], [[9, 9, 200, 0]]]  # ours have no b


def test_conversion_by_a_files_own_ids() -> None:
    ids = {-1: "", 5: "a", 500: "a", 6: "c"}
    labels = np.array([[[0, -1, 5, 500, 6]]], np.int16)
    assert THEIRS.convert(labels, to=OURS, ids=ids).tolist() == [[[0, 0, 200, 200, 9]]]


def test_there_and_back_keeps_what_both_have() -> None:
    one, other = load_organs("abdomenatlas_1_0"), load_organs("universal_32")
    labels = np.arange(10, dtype=np.uint8).reshape(1, 2, 5)
    there = one.convert(labels, to=other)
    assert there.tolist() == [[[0, 8, 4, 3, 2], [6, 11, 9, 1, 7]]]
    assert np.array_equal(other.convert(there, to=one), labels)


def test_background_only_stays_background() -> None:
    assert not THEIRS.convert(np.zeros((2, 2, 2), np.float32), to=OURS).any()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([0, 1, 77], "label ids 77 have no organ; known are 1, 2, 3"),
        ([0, -5, 2], "label ids -5 have no organ"),
        ([0, 1, 0.5], "holds 0.5; whole numbers are allowed"),
        ([0, 1, np.nan], "holds nan; whole numbers are allowed"),
        (list(range(100)), "label ids 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 and more have no organ"),
    ],
)
def test_what_has_no_organ_is_an_error(values: list[float], match: str) -> None:
    with pytest.raises(LabelError, match=match):
        THEIRS.convert(np.array(values)[None, None], to=OURS)


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_set_of_ones_own_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('name: mine\norgans: [{name: tenth, label_id: 10, color: "#000000"}]\n')
    assert load_organs(path).names == ("tenth",)
    assert load_organs(str(path)).label_id("tenth") == 10


@pytest.mark.parametrize("text", ["organs: []", "name: x\norgans: [{name: Liver}]", "a: [", "just words"])
def test_a_file_that_is_no_organ_set_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml is not (an organ set|valid YAML)"):
        load_organs(tmp_path / "bad.yaml")


def test_an_unknown_set_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'abdomen' not found .* abdomenatlas_1_0, abdomenatlas_1_1, btcv, universal_32"):
        load_organs("abdomen")
