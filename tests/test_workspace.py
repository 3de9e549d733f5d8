"""The campaign's folder: files appear whole or not at all, and its small readers say what is missing."""

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atlas_ray.exceptions import WorkspaceError
from atlas_ray.records import Case, CaseScores, Quarantined, RoundState
from atlas_ray.storage import new_folder, remove, write_atomically
from atlas_ray.workspace import Workspace, read_lines, scores_in, seal, write_lines


def case(case_id: str) -> Case:
    return Case(
        case_id=case_id,
        image=f"/data/{case_id}/ct.nii.gz",
        sha256="0" * 64,
        shape=(4, 5, 6),
        spacing=(1.0, 2.0, 3.0),
        orientation="RAS",
        source="somewhere",
        license="CC0",
        split="pool",
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "campaign")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_opening_a_workspace_makes_nothing(workspace: Workspace) -> None:
    assert not workspace.root.exists()
    assert workspace.root.is_absolute()


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_atomically(path, "long text")
    write_atomically(path, b"short")
    assert path.read_bytes() == b"short"
    assert names(path.parent) == ["a.json"]


def test_a_folder_appears_when_its_block_has_ended(tmp_path: Path) -> None:
    final = tmp_path / "predictions" / "case_1"
    with new_folder(final) as partial:
        (partial / "scores.json").write_text("{}")
        assert not final.exists()
    assert names(final) == ["scores.json"]
    assert names(final.parent) == ["case_1"]


def test_a_folder_whose_block_failed_never_appears_and_keeps_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "case_1"
    final.mkdir()
    (final / "old").touch()

    def fail() -> None:
        with new_folder(final) as partial:
            (partial / "new").touch()
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert names(final) == ["old"]
    assert names(tmp_path) == ["case_1"]


def test_a_second_writer_of_a_folder_wins(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with new_folder(tmp_path / "case_1") as partial:
            (partial / "who").write_text(text)
    assert (tmp_path / "case_1" / "who").read_text() == "second"


REPLACE_AND_DIE = """
import os, pathlib, signal, sys
from atlas_ray.storage import new_folder

left = int(sys.argv[2])


def fatal(call):
    def counted(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    return counted


with new_folder(pathlib.Path(sys.argv[1])) as partial:
    for name in ("label", "heat", "scores.json"):
        (partial / name).write_text("new")
    os.rename, os.unlink, os.rmdir = fatal(os.rename), fatal(os.unlink), fatal(os.rmdir)
"""


def test_a_folder_whose_replacement_is_killed_is_never_half_of_one(tmp_path: Path) -> None:
    """Before each change to the disk that replacing makes: the old folder, the new one, or none; a mixture would count as done."""
    seen, moments = list[set[str]](), 0
    while True:
        final = tmp_path / str(moments) / "case_1"
        final.mkdir(parents=True)
        for name in ("label", "heat", "scores.json"):
            (final / name).write_text("old")
        ended = subprocess.run([sys.executable, "-c", REPLACE_AND_DIE, str(final), str(moments)], check=False)
        if final.exists():
            assert names(final) == ["heat", "label", "scores.json"]
            seen.append({path.read_text() for path in final.iterdir()})
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
        moments += 1
    assert moments >= 4  # two renames, and what is done to the old one's files
    assert seen[0] == {"old"}
    assert seen[-1] == {"new"}
    assert all(len(texts) == 1 for texts in seen)


def test_who_writes_into_a_folder_that_is_removed_fails_and_spoils_nothing(tmp_path: Path) -> None:
    """What died leaves a partial folder, which is removed later; a process taken for dead may still be writing into its own."""
    final = tmp_path / "case_1"
    with new_folder(final) as partial:
        (partial / "scores.json").write_text("good")

    def write_on() -> None:
        with new_folder(final) as partial:
            write_atomically(partial / "attention" / "liver", "late")
            remove(partial)
            write_atomically(partial / "attention" / "spleen", "late")

    def seal_late() -> None:
        with new_folder(final) as partial:
            write_atomically(partial / "label", "late")
            remove(partial)
            seal(partial, "scores.json", "late")

    def end_late() -> None:
        with new_folder(final) as partial:
            (partial / "scores.json").write_text("late")
            remove(partial)

    for late in (write_on, seal_late, end_late):
        with pytest.raises(FileNotFoundError):
            late()
        assert (final / "scores.json").read_text() == "good"
        assert names(tmp_path) == ["case_1"]


def test_twins_that_write_one_folder_all_succeed_and_one_of_them_is_there(tmp_path: Path) -> None:
    """A task that was started again beside its first attempt: what both make is the same, and neither may fail the case."""
    final, together = tmp_path / "case_1", threading.Barrier(4)

    def write(text: str) -> None:
        for _ in range(25):
            with new_folder(final) as partial:
                for name in "abc":
                    write_atomically(partial / name, text)
                together.wait(timeout=60)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, text) for text in ("1", "2", "3", "4")]:
            done.result()
    assert len({path.read_text() for path in final.iterdir()}) == 1
    assert names(final) == ["a", "b", "c"]
    assert names(tmp_path) == ["case_1"]


def test_the_manifest_reads_back(workspace: Workspace) -> None:
    write_lines(workspace.manifest, [case("a"), case("b.1")])
    assert workspace.cases() == [case("a"), case("b.1")]
    assert workspace.case("b.1").case_id == "b.1"
    with pytest.raises(WorkspaceError, match=r"case 'c' is not in .*manifest\.jsonl"):
        workspace.case("c")


def test_a_missing_manifest_says_what_to_run(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match=r"manifest\.jsonl is missing; run `python -m jobs\.ingest CONFIG` first"):
        workspace.cases()


def test_a_line_that_does_not_parse_is_named(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text(case("a").model_dump_json() + "\n{broken\n")
    with pytest.raises(WorkspaceError, match=r"manifest\.jsonl, line 2: not a Case"):
        read_lines(path, Case)
    assert read_lines(tmp_path / "none.jsonl", Case) == []


def test_quarantine_keeps_the_newest_reason_of_a_step(workspace: Workspace) -> None:
    assert workspace.quarantined() == []
    workspace.add_to_quarantine(
        Quarantined(case_id="a", step="ingest", reason="old"), Quarantined(case_id="b", step="ingest", reason="b")
    )
    workspace.add_to_quarantine(
        Quarantined(case_id="a", step="ingest", reason="new"), Quarantined(case_id="a", step="predict", reason="x")
    )
    assert [(q.case_id, q.step, q.reason) for q in workspace.quarantined()] == [
        ("a", "ingest", "new"),
        ("b", "ingest", "b"),
        ("a", "predict", "x"),
    ]


def test_every_path_of_a_case_is_its_own(workspace: Workspace) -> None:
    def paths(case_id: str, number: int) -> list[Path]:
        return [
            workspace.label(case_id),
            workspace.truth(case_id),
            workspace.cache("key", case_id),
            workspace.attempt("predict", case_id, 1),
            workspace.pseudo_label(number, case_id),
            workspace.heat(number, case_id),
            workspace.attention(number, case_id, "organ"),
            workspace.architecture_label(number, case_id, "unet"),
            workspace.components(number, case_id),
            workspace.scores(number, case_id),
            workspace.annotation(number, case_id),
            workspace.provenance(number, case_id),
        ]

    assert len({*paths("a", 0), *paths("a.nii", 0), *paths("a_1", 0)}) == 36
    assert all(path.is_relative_to(workspace.root) for path in paths("a", 0))
    assert workspace.round(7).name == "007"


def test_a_case_is_predicted_when_its_scores_are_there(workspace: Workspace) -> None:
    assert workspace.predicted(0) == set()
    scores = CaseScores(
        case_id="a", round=0, checkpoints={}, attention_mode="physical", attention_voxels=0, attention_mm3=0, organs=(), seconds=1
    )
    write_atomically(workspace.scores(0, "a"), scores.model_dump_json())
    workspace.prediction(0, "half").mkdir(parents=True)
    hidden = workspace.prediction(0, ".b.partial")
    hidden.mkdir()
    scores_in(hidden).write_text(scores.model_dump_json())
    assert workspace.predicted(0) == {"a"}
    assert workspace.case_scores(0, "a") == scores
    with pytest.raises(WorkspaceError, match=r"jobs\.predict CONFIG --round 0"):
        workspace.case_scores(0, "half")


def test_finished_steps_add_up(workspace: Workspace) -> None:
    assert workspace.finished_steps(1) == {}
    workspace.finish_step(1, "train", "2026-01-01T00:00:00Z")
    workspace.finish_step(1, "predict", "2026-01-02T00:00:00Z")
    assert workspace.finished_steps(1) == {"train": "2026-01-01T00:00:00Z", "predict": "2026-01-02T00:00:00Z"}


def test_the_newest_round_is_one_with_work_of_its_own(workspace: Workspace) -> None:
    assert workspace.newest_round() == 0
    workspace.finish_step(0, "predict", "2026-01-01T00:00:00Z")
    workspace.predictions(1).mkdir(parents=True)  # round 0 ends by predicting the next one's holdout
    assert workspace.newest_round() == 0
    write_atomically(workspace.priority_csv(1), "")  # jobs that are run one by one record no steps
    assert workspace.newest_round() == 1
    workspace.write_round_state(1, RoundState(abandoned="2026-01-02T00:00:00Z"))
    assert workspace.newest_round() == 0
