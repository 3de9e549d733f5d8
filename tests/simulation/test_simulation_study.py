"""A study of two strategies on a handful of tiny patients, from the job's configuration to its page."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atlas_ray.cluster.session import in_process
from atlas_ray.config import Campaign
from atlas_ray.progress import Advance, not_shown
from atlas_ray.simulation.arms import arms_of, study_of
from atlas_ray.simulation.modes import compare_modes
from atlas_ray.simulation.play import Curves, play
from atlas_ray.simulation.report import write_report

SCAN = {"spacing": [12, 12, 12], "field_of_view_mm": [320, 240, 240]}
STUDY = {
    "name": "tiny",
    "organs": "abdomenatlas_1_0",
    "datasets": [
        {"source": "phantom", "name": "train", "count": 2, "split": "train", "labeled_organs": "all", "phantom": SCAN},
        {"source": "phantom", "name": "pool", "count": 4, "split": "pool", "phantom": SCAN,
         "rare": ["stomach_cavity"], "rare_share": 0.25},
        {"source": "phantom", "name": "held", "count": 2, "split": "holdout", "phantom": SCAN},
    ],
    "preprocessing": {"spacing": [12, 12, 12]},
    "architectures": [{"architecture": "unet", "features": [8, 16]}],
    "patches": {"patch": [16, 16, 16]},
    "training": {"steps": 60, "batch": 2, "learning_rate": 0.01, "warmup_steps": 2, "validation_cases": 0},
    "finetuning": {"steps": 4, "batch": 1, "learning_rate": 0.001, "warmup_steps": 1, "validation_cases": 0},
    "inference": {"window": [16, 16, 16], "overlap": 0.0},
    "annotation": {"annotator": {"annotator": "oracle"}},
    "simulation": {
        "rounds": 2,
        "minutes": 4,
        "strategies": {"ours": {"strategy": "diverse"}, "by_chance": {"strategy": "foreground_aware_random"}},
        "annotators": {"perfect": {"annotator": "oracle", "scope": "asked", "minutes_per_case": 1, "minutes_per_organ": 0.5}},
        "rules": {"resamples": 50},
        "modes": ["physical", "calibrated"],
    },
}  # fmt: skip


@contextmanager
def _no_bar(what: str, total: int) -> Iterator[Advance]:
    yield not_shown


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Campaign, Curves]:
    campaign = Campaign.model_validate({**STUDY, "workspace": str(tmp_path_factory.mktemp("study"))})
    with in_process():
        return campaign, play(campaign, cpus=1, bar=_no_bar)


def test_every_arm_has_a_point_before_and_after_each_round(played: tuple[Campaign, Curves]) -> None:
    campaign, curves = played
    assert set(curves) == {arm.name for arm in arms_of(study_of(campaign))} == {
        "full_label-all-s0", "ours-perfect-s0", "by_chance-perfect-s0"
    }  # fmt: skip
    assert all([point.round for point in points] == [0, 1, 2] for points in curves.values())
    starts = [points[0].networks for points in curves.values()]
    assert starts[0] == starts[1] == starts[2]  # all from the same networks


def test_minutes_are_equal_but_for_the_last_organ(played: tuple[Campaign, Curves]) -> None:
    _, curves = played
    for name in ("ours-perfect-s0", "by_chance-perfect-s0"):
        spent = [point.work.minutes for point in curves[name]]
        assert spent[0] == 0
        assert all(4 * r <= minutes <= 4 * r + 1.5 or len(p.work.looked_at) == 4
                   for r, (minutes, p) in enumerate(zip(spent, curves[name], strict=True)))  # fmt: skip


def test_with_every_label_the_labels_are_the_truth(played: tuple[Campaign, Curves]) -> None:
    _, curves = played
    last = curves["full_label-all-s0"][-1]
    assert set(last.labels.values()) == {1.0}
    assert len(last.work.looked_at) == 4


def test_labels_get_better_where_people_were(played: tuple[Campaign, Curves]) -> None:
    _, curves = played
    before, after = curves["ours-perfect-s0"][0], curves["ours-perfect-s0"][1]
    assert after.work.changed
    assert all(after.labels[case] > before.labels[case] for case in after.work.changed)


def test_started_again_it_repeats_nothing_and_says_the_same(played: tuple[Campaign, Curves]) -> None:
    campaign, curves = played
    points = sorted(Path(campaign.workspace).rglob("point.json"))
    written = [path.stat().st_mtime_ns for path in points]
    with in_process():
        assert play(campaign, cpus=1, bar=_no_bar) == curves
    assert [path.stat().st_mtime_ns for path in points] == written


def test_the_page_says_who_is_better_and_what_it_took(played: tuple[Campaign, Curves]) -> None:
    campaign, curves = played
    with in_process():
        modes = compare_modes(campaign, bar=_no_bar)
        result = write_report(campaign, curves, modes)
    assert [mode.mode for mode in result.modes] == ["physical", "calibrated"]
    assert all(mode.errors == modes[0].errors > 0 for mode in modes)  # the networks' errors are the same, however one looks
    assert (result.pool, result.holdout, result.variants.cases) == (4, 2, 1)
    assert result.full_label["labels"] == 1.0
    (comparison,) = result.annotators["perfect"].comparisons
    assert comparison.against == "by_chance"
    page = campaign.open_workspace().simulation_report.read_text()
    assert all(words in page for words in ("ours less", "by_chance", "Organ voxels by hand", "calibrated", "data:image/png"))
