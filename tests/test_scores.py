"""Scores in columns: three cases whose columns are written out by hand."""

import numpy as np
import pytest

from atlas_ray.records import CaseScores, OrganScores
from atlas_ray.scores import CASE_COLUMNS, ORGAN_COLUMNS, Scores


def case(case_id: str, round_index: int = 0, **voxels: int) -> CaseScores:
    organs = tuple(
        OrganScores(organ=name, attention_voxels=n, attention_mm3=2.0 * n, heat_sum=0, predicted_ml=1, components=1)
        for name, n in voxels.items()
    )
    return CaseScores(
        case_id=case_id,
        round=round_index,
        checkpoints={},
        attention_mode="physical",
        attention_voxels=sum(voxels.values()),
        attention_mm3=2.0 * sum(voxels.values()),
        organs=organs,
        seconds=1.5,
    )


def test_a_row_per_case_and_a_column_per_organ() -> None:
    scores = Scores.of([case("x", a=3, b=4), case("y", b=5), case("z")])
    assert scores.organs == ("a", "b")
    assert scores.case_id_N.tolist() == ["x", "y", "z"]
    assert scores.attention_voxels_N.tolist() == [7, 5, 0]
    assert scores.has_NK.tolist() == [[True, True], [False, True], [False, False]]
    assert scores.attention_voxels_NK.tolist() == [[3, 4], [0, 5], [0, 0]]
    assert scores.attention_mm3_NK.tolist() == [[6, 8], [0, 10], [0, 0]]
    assert scores.attention_voxels_NK.dtype == np.int64


def test_some_cases_in_another_order() -> None:
    scores = Scores.of([case("x", a=3), case("y", a=5), case("z", a=1)])
    assert scores.take([2, 0]).attention_voxels_NK.tolist() == [[1], [3]]
    assert scores.take(scores.attention_voxels_N > 2).case_id_N.tolist() == ["x", "y"]
    assert len(scores.take([])) == 0


def test_one_round_only() -> None:
    assert Scores.of([case("x", 2), case("y", 2)]).of_round() == 2
    assert Scores.of([]).of_round() == 0
    with pytest.raises(ValueError, match=r"rounds \[1, 2\]"):
        Scores.of([case("x", 1), case("y", 2)]).of_round()


def test_columns_follow_the_records() -> None:
    assert set(CASE_COLUMNS) <= set(CaseScores.model_fields)
    assert set(ORGAN_COLUMNS) == set(OrganScores.model_fields) - {"organ"}
