"""Tables repeat what the cases' files say: complete when parts lack cases, are old, or say things twice."""

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from atlas_ray import tables
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.records import AttentionComponent, CaseScores, OrganScores
from atlas_ray.storage import BucketPath, new_folder, write_atomically
from atlas_ray.tables import SCHEMAS, add_to_tables, read_scores, read_table, result_bytes, result_keys, save_table
from atlas_ray.workspace import Workspace, components_in, scores_in, write_lines


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def predict(workspace: Workspace, case_id: str, *, key: str = "", components: int = 1, **voxels: int) -> None:
    organs = tuple(
        OrganScores(organ=name, attention_voxels=n, attention_mm3=2.0 * n, heat_sum=n, predicted_ml=1, components=components)
        for name, n in voxels.items()
    )
    total = sum(voxels.values())
    record = CaseScores(
        case_id=case_id,
        round=1,
        checkpoints={"unet": "ab"},
        attention_mode="physical",
        attention_voxels=total,
        attention_mm3=2.0 * total,
        organs=organs,
        seconds=1,
        key=key,
        bytes=10,
    )
    box = ((1, 2), (3, 4), (5, 6))
    found = [
        AttentionComponent(
            organ=name, index=n + 1, box=box, peak=(1, 3, 5), voxels=1, volume_mm3=2, reason="overlap", criteria=("overlap",),
            score=0.5, mean_heat=0.25,
        )
        for name in voxels
        for n in range(components)
    ]  # fmt: skip
    with new_folder(workspace.prediction(1, case_id)) as folder:
        write_lines(components_in(folder), found)
        write_atomically(scores_in(folder), record.model_dump_json())


def sizes(workspace: Workspace) -> dict[str, int]:
    scores = read_scores(workspace, 1)
    return dict(zip(scores.case_id_N.tolist(), scores.attention_voxels_N.tolist(), strict=True))


def parts(workspace: Workspace, kind: str = "scores") -> int:
    return len(list((workspace.tables(1) / kind).glob("*.parquet")))


def test_tables_in_a_bucket(bucket: BucketPath) -> None:
    workspace = Workspace(f"{bucket}/campaign")
    predict(workspace, "a", liver=5, key="k1")
    save_table(workspace, 1, "scores")
    predict(workspace, "b", spleen=6, key="k2")
    assert sizes(workspace) == {"a": 5, "b": 6}, "one from the table, one from its file"
    add_to_tables(workspace, 1, ["b"])
    for kind in SCHEMAS:
        save_table(workspace, 1, kind)
    assert result_keys(workspace, 1) == {"a": "k1", "b": "k2"}
    assert sorted(read_table(workspace, 1, "components").column("case_id").to_pylist()) == ["a", "b"]


def test_nothing_predicted(workspace: Workspace) -> None:
    assert sizes(workspace) == {}
    assert result_keys(workspace, 1) == {}
    save_table(workspace, 1, "scores")
    assert parts(workspace) == 0


def test_without_any_part_the_files_are_read(workspace: Workspace) -> None:
    predict(workspace, "b", liver=3, spleen=4)
    predict(workspace, "a", spleen=5)
    predict(workspace, "c")
    scores = read_scores(workspace, 1)
    assert scores.case_id_N.tolist() == ["a", "b", "c"]
    assert scores.attention_voxels_N.tolist() == [5, 7, 0]
    liver, spleen = scores.organs.index("liver"), scores.organs.index("spleen")
    assert scores.attention_voxels_NK[:, [liver, spleen]].tolist() == [[0, 5], [3, 4], [0, 0]]
    assert scores.has_NK[:, [liver, spleen]].tolist() == [[False, True], [True, True], [False, False]]
    assert parts(workspace) == 0, "reading writes nothing"


def test_a_saved_table_needs_no_file_of_a_case_but_its_presence(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    predict(workspace, "a", liver=5, key="k1")
    predict(workspace, "b", liver=6, key="k2")
    save_table(workspace, 1, "scores")
    monkeypatch.setattr(tables, "_read_scores", lambda *_: pytest.fail("a case's file was read"))
    assert sizes(workspace) == {"a": 5, "b": 6}
    assert result_keys(workspace, 1) == {"a": "k1", "b": "k2"}
    assert result_bytes(workspace, 1) == 20


def test_a_case_that_came_went_or_changed(workspace: Workspace) -> None:
    for case_id in ("a", "b", "c"):
        predict(workspace, case_id, liver=1)
    save_table(workspace, 1, "scores")
    predict(workspace, "b", liver=20)  # predicted anew
    os.utime(workspace.scores(1, "b"), ns=(1, 1))  # the clock may have gone backwards
    shutil.rmtree(workspace.prediction(1, "c"))
    predict(workspace, "d", liver=4)
    assert sizes(workspace) == {"a": 1, "b": 20, "d": 4}
    save_table(workspace, 1, "scores")
    assert parts(workspace) == 1, "rows that no longer count are gone"
    assert sizes(workspace) == {"a": 1, "b": 20, "d": 4}


def test_what_stands_in_two_parts_counts_once(workspace: Workspace) -> None:
    predict(workspace, "a", liver=5)
    add_to_tables(workspace, 1, ["a"])
    add_to_tables(workspace, 1, ["a"])
    assert parts(workspace) == 2
    assert sizes(workspace) == {"a": 5}
    assert read_table(workspace, 1, "components").num_rows == 1


def test_many_parts_become_one(workspace: Workspace) -> None:
    for n in range(12):
        predict(workspace, f"c{n:02d}", liver=n)
        add_to_tables(workspace, 1, [f"c{n:02d}"])
    assert parts(workspace) == 12
    save_table(workspace, 1, "scores")
    assert parts(workspace) == 1
    assert sizes(workspace) == {f"c{n:02d}": n for n in range(12)}


def test_components_are_a_row_each(workspace: Workspace) -> None:
    predict(workspace, "a", liver=5, components=2)
    predict(workspace, "b", spleen=1, components=0)
    save_table(workspace, 1, "components")
    rows = read_table(workspace, 1, "components").to_pylist()
    assert [(r["case_id"], r["organ"], r["index"], r["peak"], r["criteria"]) for r in rows] == [
        ("a", "liver", 1, [1, 3, 5], ["overlap"]),
        ("a", "liver", 2, [1, 3, 5], ["overlap"]),
    ]
    assert rows[0]["box"] == [[1, 2], [3, 4], [5, 6]]


def test_a_part_of_another_version_counts_for_nothing(workspace: Workspace) -> None:
    predict(workspace, "a", liver=5)
    save_table(workspace, 1, "scores")
    (part,) = (workspace.tables(1) / "scores").glob("*.parquet")
    pq.write_table(pq.read_table(part).drop_columns(["entropy"]), part)
    assert sizes(workspace) == {"a": 5}
    save_table(workspace, 1, "scores")
    (joined,) = (workspace.tables(1) / "scores").glob("*.parquet")
    assert pq.read_schema(joined).names == SCHEMAS["scores"].names


def test_a_broken_file_is_named(workspace: Workspace) -> None:
    predict(workspace, "a", liver=1)
    workspace.scores(1, "a").write_text("{}")
    with pytest.raises(WorkspaceError, match=r"a/scores\.json is not a CaseScores"):
        read_scores(workspace, 1)
