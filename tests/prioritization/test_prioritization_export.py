"""The priority list as CSV, Parquet and picture."""

import io

import pandas as pd
import pytest
from matplotlib.image import imread

from atlas_ray.prioritization.effort import Effort
from atlas_ray.prioritization.export import priority_csv, scores_table, write_priority
from atlas_ray.prioritization.plots import attention_curve
from atlas_ray.prioritization.strategies import AttentionSize, RankedCase
from atlas_ray.records import CaseScores, OrganScores
from atlas_ray.scores import Scores


@pytest.fixture
def scores() -> Scores:
    def case(case_id: str, **heat: float) -> CaseScores:
        organs = tuple(
            OrganScores(
                organ=name, attention_voxels=int(value), attention_mm3=2 * value, heat_sum=value, predicted_ml=1.5, components=1
            )
            for name, value in heat.items()
        )
        total = sum(o.attention_voxels for o in organs)
        return CaseScores(
            case_id=case_id,
            round=3,
            checkpoints={},
            attention_mode="physical",
            attention_voxels=total,
            attention_mm3=2.0 * total,
            organs=organs,
            seconds=2.5,
        )

    return Scores.of([case("BDMAP_2", a=10, b=0, c=40), case("BDMAP_1", a=70, b=7, c=0), case("BDMAP_3", a=0, b=0, c=0)])


def test_the_papers_csv(scores):
    assert priority_csv(AttentionSize().rank(scores)) == "BDMAP_1,a,b\nBDMAP_2,c,a\nBDMAP_3\n"
    assert priority_csv([]) == ""


def test_table_has_every_score(scores):
    table = scores_table(AttentionSize().rank(scores), scores)
    assert table["case_id"].tolist() == ["BDMAP_1"] * 3 + ["BDMAP_2"] * 3 + ["BDMAP_3"] * 3
    assert table["rank"].tolist() == [1] * 3 + [2] * 3 + [3] * 3
    assert table["organ"].tolist() == ["a", "b", "c"] * 3
    assert table["revision_order"].fillna(0).tolist() == [1, 2, 0, 2, 0, 1, 0, 0, 0]
    assert table["attention_mm3"].tolist() == [140, 14, 0, 20, 0, 80, 0, 0, 0]
    assert table["case_attention_voxels"].tolist() == [77] * 3 + [50] * 3 + [0] * 3
    assert len(scores_table([], Scores.of([]))) == 0


def test_files_are_written_and_read_back(scores, tmp_path):
    ranked = AttentionSize().rank(scores)
    write_priority(ranked, scores, csv_path=tmp_path / "round" / "p.csv", parquet_path=tmp_path / "round" / "p.parquet")
    assert (tmp_path / "round" / "p.csv").read_text() == "BDMAP_1,a,b\nBDMAP_2,c,a\nBDMAP_3\n"
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "round" / "p.parquet"), scores_table(ranked, scores))
    assert sorted(f.name for f in (tmp_path / "round").iterdir()) == ["p.csv", "p.parquet"]


@pytest.mark.parametrize("values", [[90, 80, 20, 10, 8, 6, 5, 4, 3, 2], [0, 0], [5], []])
def test_curve_is_a_picture(values):
    ranked = [RankedCase(case_id=f"c{i}", rank=i, score=v, organs=("a",) if v else ()) for i, v in enumerate(values, 1)]
    png = attention_curve(ranked, Effort(budget_share=0.2).budget(ranked))
    assert png.startswith(b"\x89PNG")
    assert imread(io.BytesIO(png)).shape[:2] == (480, 840)
