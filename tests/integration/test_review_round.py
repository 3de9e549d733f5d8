"""What review decides is what is merged: through the steps a campaign runs, without any network."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.drafts import read_provenance
from atlas_ray.annotation.queue import Queue, QueueEntry
from atlas_ray.annotation.review import accept, reject, resolve
from atlas_ray.annotation.revisions import Revisions, TimeSpent
from atlas_ray.config import Campaign
from atlas_ray.organs import Organ, Organs
from atlas_ray.records import Case
from atlas_ray.steps.annotate import annotation_metrics, annotation_progress
from atlas_ray.steps.merge import merge_step
from atlas_ray.steps.prioritize import queue_labels_step
from atlas_ray.volume import Volume, read_volume, write_volume
from atlas_ray.workspace import write_lines
from ui.store import newest_round

SHAPE = (6, 5, 4)
ORGANS = Organs(
    name="two", organs=(Organ(name="one", label_id=2, color="#ff0000"), Organ(name="other", label_id=5, color="#00ff00"))
)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """Three cases with a label of one organ, one without any."""
    (tmp_path / "organs.yaml").write_text(yaml.safe_dump(ORGANS.model_dump(mode="json")))
    campaign = Campaign.model_validate(
        {
            "name": "review",
            "workspace": str(tmp_path / "workspace"),
            "organs": str(tmp_path / "organs.yaml"),
            "datasets": [{"source": "phantom", "name": "unused", "count": 1, "split": "pool"}],
            "annotation": {"second_reader_share": 1.0},
        }
    )
    workspace = campaign.open_workspace()
    label = np.zeros(SHAPE, np.uint8, order="F")
    label[0, :2, 0] = 2
    cases = []
    for name in ("good", "bad", "twice", "bare"):
        write_volume(tmp_path / f"{name}.nii.gz", Volume(np.zeros(SHAPE, np.int16), np.diag([1.0, 1, 2, 1])))
        write_volume(workspace.label(name), Volume(label, np.diag([1.0, 1, 2, 1])))
        case = Case(
            case_id=name, image=str(tmp_path / f"{name}.nii.gz"), sha256="0" * 64, shape=SHAPE, spacing=(1, 1, 2),
            orientation="RAS", source="x", license="x", split="train", labeled_organs=() if name == "bare" else ("one",),
        )  # fmt: skip
        cases.append(case)
    write_lines(workspace.manifest, cases)
    return campaign


def voxels_of_one(campaign: Campaign, case_id: str) -> list[int]:
    """Flat file-order indices of the organ in the merged annotation."""
    label = read_volume(campaign.open_workspace().annotation(0, case_id)).voxels
    return np.flatnonzero((label == 2).ravel(order="F")).tolist()


def test_only_what_was_accepted_or_taken_is_merged(campaign: Campaign) -> None:
    warnings.simplefilter("ignore")  # mlflow's own on import
    assert queue_labels_step(campaign, 0) == 3
    assert queue_labels_step(campaign, 0) == 0
    assert newest_round(campaign.open_workspace()) == 0  # the app finds it although nothing is predicted
    with open_database(campaign.database_url) as database:
        queue, revisions = Queue(database), Revisions(database)
        entries = [QueueEntry(case_id="twice", reading=n, organs=("one",), rank=9) for n in (1, 2)]
        again = [QueueEntry(case_id=i.case_id, organs=i.organs, rank=i.rank) for i in queue.items(0) if i.case_id != "twice"]
        queue.fill(0, again + entries)
        reject(queue, queue.item((0, "twice", 1)).item_id, "rita", role="reviewer", reason="read it twice")
        accept(queue, queue.item((0, "good")).item_id, "rita", role="reviewer")
        reject(queue, queue.item((0, "bad")).item_id, "rita", role="reviewer", reason="it is elsewhere")
        for reading, user, start in ((1, "anna", 12), (2, "ben", 24)):
            item = queue.claim(0, "twice", user, reading=reading)
            runs = [[start, 1, 1]]
            revisions.save(0, "twice", "one", user=user, parent_id=0, runs=runs, seconds=60 * reading, reading=reading)
            queue.submit(item.item_id, user, seconds=60 * reading)
        revisions.log_times(0, "good", [TimeSpent(organ="one", seconds=30)], user="rita")
        revisions.judge(0, "twice", "one", 1, "fixed", user="anna")
        revisions.judge(0, "twice", "one", 2, "not_an_error", user="anna")
        revisions.judge(0, "twice", "one", 3, "accepted", user="anna")
        assert merge_step(campaign, 0) == 1  # "twice" is not decided
        progress = annotation_progress(queue, revisions, 0, second_reader_share=1.0)
        assert (progress.submitted, progress.open, progress.to_review, progress.reviewed) == (3, 1, 2, 1)
        assert not progress.complete
        assert progress.minutes_by_organ == {"one": 3.5}
        assert progress.minutes == 3
        assert progress.median_minutes == 1.0  # 0, 1 and 2
        assert progress.attention_precision == 0.5
        metrics = annotation_metrics(progress)
        assert (metrics["annotation/attention_precision"], metrics["annotation_minutes/one"]) == (0.5, 3.5)
        resolve(queue, 0, "twice", "rita", role="reviewer", reading=2)
        assert merge_step(campaign, 0) == 2
    assert voxels_of_one(campaign, "good") == [0, 6]
    assert voxels_of_one(campaign, "twice") == [0, 6, 24]  # ben's edit, not anna's
    good, twice = (read_provenance(campaign.open_workspace(), 0, case_id)["one"] for case_id in ("good", "twice"))
    assert (good.source, good.users) == ("original", ("rita",))
    assert (twice.source, twice.users, twice.revisions) == ("revised", ("ben",), ((0, 1),))
    assert not campaign.open_workspace().annotation(0, "bad").exists()
