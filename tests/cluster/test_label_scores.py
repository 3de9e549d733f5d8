"""The step that scores given labels, on synthetic patients whose networks are a fake with a known answer."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from atlas_ray.annotation.merge import OrganProvenance, Provenance
from atlas_ray.cluster import label_scores, prediction
from atlas_ray.cluster.session import in_process
from atlas_ray.config import Campaign
from atlas_ray.data.preprocess import label_to_network_grid
from atlas_ray.exceptions import AtlasError, ConfigError
from atlas_ray.organs import load_organs
from atlas_ray.segmentation.packed_probabilities import pack
from atlas_ray.steps import label_quality
from atlas_ray.steps.ingest import ingest_step
from atlas_ray.steps.label_quality import given_labels, label_quality_step
from atlas_ray.volume import Volume, read_labels, read_volume, write_volume

ORGANS = load_organs("abdomenatlas_1_0")
SCAN = {"spacing": [8, 8, 8], "field_of_view_mm": [320, 256, 320], "orientation": "LPS"}
TRUTH: dict[str, Volume] = {}  # what Seer knows
METRICS: dict[str, float] = {}
pytestmark = pytest.mark.usefixtures("in_this_process")


class Seer:
    """An ensemble of one that knows the true anatomy, and is unsure at its borders."""

    calls = 0

    def __init__(self, campaign_json: str, round_index: int) -> None:
        self._campaign = Campaign.model_validate_json(campaign_json)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        Seer.calls += 1
        labels = label_to_network_grid(TRUTH[row["case_id"]], self._campaign.preprocessing)
        soft = np.stack([gaussian_filter((labels == organ.label_id).astype(np.float32), 0.5) for organ in ORGANS])
        row.pop("image")
        return {
            **row,
            "checkpoints": json.dumps({"unet": "0"}),
            "absent": "{}",
            "packed_unet": pack(np.rint(255 * soft).astype(np.uint8)),
        }


def make(folder: Path, **fields: Any) -> Campaign:
    datasets = [
        {"source": "phantom", "name": name, "count": count, "seed": 1, "split": name, "phantom": SCAN, **more}
        for name, count, more in (("train", 3, {"labeled_organs": ["liver", "spleen"]}), ("pool", 1, {}), ("holdout", 1, {}))
    ]
    content = {"name": "small", "workspace": str(folder), "datasets": datasets, "preprocessing": {"spacing": [8, 8, 8]}}
    content |= {"architectures": [{"architecture": "unet", "features": [4, 8, 16]}], "patches": {"patch": [16, 16, 16]}}
    content |= {"inference": {"window": [32, 32, 32]}, "cluster": {"max_failed_fraction": 0.5}}
    campaign = Campaign.model_validate(content | fields)
    checkpoint = campaign.open_workspace().checkpoint(0, "unet")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    return campaign


@contextmanager
def tracked(campaign: Campaign, round_index: int, step: str) -> Iterator[Any]:
    """A run that keeps what it is told."""

    class Run:
        def metrics(self, values: dict[str, float], *, step: int) -> None:
            METRICS.update(values)

        def artifact(self, path: Path) -> None:
            assert path.exists()

    assert (round_index, step) == (0, "label-quality")
    yield Run()


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Campaign, dict[Path, bytes]]:
    """A campaign, and its label files as ingest wrote them."""
    made = make(tmp_path_factory.mktemp("labels") / "campaign")
    with in_process():
        ingest_step(made)
    for case in made.open_workspace().cases():
        TRUTH[case.case_id] = read_volume(Path(case.image).with_name("label.nii.gz"))
    return made, {path: path.read_bytes() for path in (made.open_workspace().root / "labels").iterdir()}


@pytest.fixture
def campaign(ingested: tuple[Campaign, dict[Path, bytes]], monkeypatch: pytest.MonkeyPatch) -> Campaign:
    """Nothing scored yet, with the spleen of train_0001 shifted by three voxels."""
    monkeypatch.setattr(prediction, "Ensemble", Seer)
    monkeypatch.setattr(label_quality, "step_run", tracked)
    made, labels = ingested
    shutil.rmtree(made.open_workspace().round(0), ignore_errors=True)
    for path, content in labels.items():
        path.write_bytes(content)
    path = made.open_workspace().label("train_0001")
    label = read_volume(path)
    spleen = label.voxels == ORGANS.label_id("spleen")
    voxels = np.where(spleen, np.uint8(0), label.voxels)
    voxels[np.roll(spleen, 3, axis=2)] = ORGANS.label_id("spleen")
    write_volume(path, label.with_voxels(voxels))
    return made


def test_a_wrong_original_label_is_the_first_of_the_table(campaign: Campaign) -> None:
    scores = label_quality_step(campaign, 0)
    assert (scores[0].case_id, scores[0].organ, scores[0].source) == ("train_0001", "spleen", "original")
    assert scores[0].score < 0.5 * scores[1].score
    workspace = campaign.open_workspace()
    table = pd.read_csv(workspace.label_quality_csv(0))
    assert (table.case_id[0], table.organ[0]) == ("train_0001", "spleen")
    assert table.score.is_monotonic_increasing
    assert pd.read_parquet(workspace.label_quality_parquet(0)).columns.tolist() == table.columns.tolist()
    labeled = [(s.case_id, s.organ) for s in scores if s.case_id.startswith("train")]
    assert sorted(labeled) == [(f"train_000{i}", organ) for i in range(3) for organ in ("liver", "spleen")]
    assert (METRICS["label_quality/labels"], METRICS["label_quality/out_of_sample"]) == (6 + len(ORGANS), len(ORGANS))
    assert METRICS["label_quality/spleen"] < METRICS["label_quality/mean"] < METRICS["label_quality/mean_out_of_sample"]
    assert len([s for s in scores if s.case_id == "holdout_0000"]) == len(ORGANS)


def test_what_is_done_is_not_done_again_until_the_label_changes(campaign: Campaign) -> None:
    first = label_quality_step(campaign, 0)
    Seer.calls = 0
    assert label_quality_step(campaign, 0) == first
    assert Seer.calls == 0
    workspace = campaign.open_workspace()
    label = read_volume(workspace.label("train_0000"))
    write_volume(
        workspace.label("train_0000"), label.with_voxels(np.where(label.voxels == ORGANS.label_id("liver"), 0, label.voxels))
    )
    again = label_quality_step(campaign, 0)
    assert Seer.calls == 1
    assert (again[0].case_id, again[0].organ, again[0].label_ml) == ("train_0000", "liver", 0)


def test_labels_the_networks_learned_from_are_told_from_those_they_did_not(campaign: Campaign) -> None:
    workspace = campaign.open_workspace()
    image = read_volume(workspace.case("pool_0000").image)
    write_volume(workspace.annotation(0, "pool_0000"), image.with_voxels(np.zeros(image.shape, np.uint8)))
    entries = [OrganProvenance(organ=n, source="revised" if n == "aorta" else "pseudo", round=0) for n in ORGANS.names]
    record = Provenance(case_id="pool_0000", round=0, organs=tuple(entries))
    workspace.provenance(0, "pool_0000").write_text(record.model_dump_json())
    given = {
        case.case_id: {o.organ: (o.source, o.in_sample) for o in label.organs}
        for case, label in given_labels(campaign, 0, campaign)
    }
    assert given["train_0000"] == {"liver": ("original", True), "spleen": ("original", True)}
    assert given["pool_0000"] == {"aorta": ("revised", False)}, "annotated with these networks' help, after they were trained"
    assert given["holdout_0000"]["liver"] == ("original", False)


def test_another_campaigns_networks_judge_labels_they_have_not_seen(campaign: Campaign, tmp_path: Path) -> None:
    judge = make(tmp_path / "judge")
    (tmp_path / "judge" / "manifest.jsonl").write_text("")
    scores = label_quality_step(campaign, 0, judge=judge)
    assert not any(s.in_sample for s in scores)
    assert (scores[0].case_id, scores[0].organ) == ("train_0001", "spleen")
    other = make(tmp_path / "stranger", organs="btcv")
    (tmp_path / "stranger" / "manifest.jsonl").write_text("")
    assert given_labels(campaign, 0, other), "13 organs, the nine among them"
    with pytest.raises(ConfigError, match=r"small does not know .*esophagus"):
        given_labels(other, 0, campaign)


def test_a_label_that_cannot_be_read_is_named_and_the_others_are_scored(
    campaign: Campaign, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = campaign.open_workspace()
    workspace.label("train_0002").write_bytes(b"no label")
    scores = label_quality_step(campaign, 0)
    assert "train_0002" not in {s.case_id for s in scores}
    assert "train_0002.nii.gz is not a NIfTI file" in caplog.text
    strict = campaign.model_copy(update={"cluster": campaign.cluster.model_copy(update={"max_failed_fraction": 0.0})})
    with pytest.raises(AtlasError, match=r"1 of 4 labels could not be scored, such as train_0002"):
        label_quality_step(strict, 0)
    assert read_labels(workspace.label("train_0000")).any()


def test_a_full_disk_ends_the_step_with_a_line_unless_it_passes(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    write, left = label_scores.write_atomically, [1]

    def full(path: Path, data: str) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(label_scores, "write_atomically", full)
    patient = campaign.model_copy(update={"cluster": campaign.cluster.model_copy(update={"patience_s": 5.0})})
    assert len({score.case_id for score in label_quality_step(patient, 0)}) == 4
    shutil.rmtree(campaign.open_workspace().round(0))
    left[0] = 10**6
    hasty = campaign.model_copy(update={"cluster": campaign.cluster.model_copy(update={"patience_s": 0.0})})
    with pytest.raises(AtlasError, match=r"is full: .*No space left.*run the same command"):
        label_quality_step(hasty, 0)
