"""The merge of a round's submitted cases, and what an end in the middle of it leaves."""

from pathlib import Path

import numpy as np
import pytest
from cubes import HU, SHAPE, cube_campaign, write, write_cubes
from paper_workspace import fill_queue, write_prediction

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue
from atlas_ray.config import Campaign
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.steps import merge
from atlas_ray.steps.merge import merge_step
from atlas_ray.storage import remove
from atlas_ray.volume import read_labels
from atlas_ray.workspace import write_lines


def predict(campaign: Campaign, label_id: int) -> None:
    write(campaign.open_workspace().pseudo_label(0, "a"), np.full(SHAPE, label_id, np.uint8))


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """One pool case, predicted to be all liver; somebody has looked at it and found it right."""
    campaign = cube_campaign(tmp_path, *HU)
    workspace = campaign.open_workspace()
    write_lines(workspace.manifest, [write_cubes(campaign, "a", "pool", seed=0)])
    write_prediction(workspace, 0, "a")
    predict(campaign, 1)
    fill_queue(campaign, 0, ["a"])
    with open_database(campaign.database_url) as database:
        queue = Queue(database)
        queue.submit(queue.claim(0, "a", "ada").item_id, "ada")
    return campaign


def test_a_merge_that_is_killed_leaves_the_annotation_before_it(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label and provenance belong together: a new label under the old provenance would be trained on as something else."""
    workspace = campaign.open_workspace()
    assert merge_step(campaign, 0) == 1
    before = workspace.provenance(0, "a").read_bytes()
    predict(campaign, 2)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merge, "seal", killed)
        with pytest.raises(KeyboardInterrupt):
            merge_step(campaign, 0)
    assert np.unique(read_labels(workspace.annotation(0, "a"))).tolist() == [1]
    assert workspace.provenance(0, "a").read_bytes() == before
    assert merge_step(campaign, 0) == 1
    assert np.unique(read_labels(workspace.annotation(0, "a"))).tolist() == [2]


def test_a_case_whose_prediction_is_gone_is_not_merged_as_empty(campaign: Campaign) -> None:
    workspace = campaign.open_workspace()
    remove(workspace.prediction(0, "a"))
    with pytest.raises(WorkspaceError, match=r"the prediction of a in round 0, on which it was annotated, is gone; run"):
        merge_step(campaign, 0)
    assert workspace.merged(0) == set()
