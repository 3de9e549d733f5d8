"""The oracle in people's place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cubes import HU, SHAPE, cube_campaign, write, write_cubes
from paper_workspace import fill_queue, write_prediction
from sqlalchemy.exc import OperationalError

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue, WorkItem
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.config import Campaign
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.steps.annotate import annotate_step
from atlas_ray.workspace import write_lines

CASES = ["a", "b", "c"]


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """Three cases with a liver that was not predicted at all; attention marks all of it."""
    oracle = {"annotator": "oracle", "minutes_per_case": 2}
    campaign = cube_campaign(tmp_path, *HU, annotation={"annotator": oracle}, tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"})
    workspace, nothing, liver = campaign.open_workspace(), np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    liver[4:8, 4:8, 4:8] = 1
    write_lines(workspace.manifest, [write_cubes(campaign, name, "pool", seed=0) for name in CASES])
    for name in CASES:
        write_prediction(workspace, 0, name)
        write(workspace.pseudo_label(0, name), nothing)
        write(workspace.truth(name), liver)
        write(workspace.attention(0, name, "liver"), liver)
        write(workspace.attention(0, name, "spleen"), nothing)
    fill_queue(campaign, 0, CASES)
    return campaign


def lose_the_database_once(monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    """Between what was drawn of a case and its submission, where most could be said twice."""
    submit, lost = Queue.submit, []

    def submit_or_lose(queue: Queue, item_id: int, *args: Any, **fields: Any) -> WorkItem:
        if before in [item.case_id for item in queue.items(0) if item.item_id == item_id] and not lost:
            lost.append(item_id)
            raise OperationalError("UPDATE", {}, Exception("server closed the connection unexpectedly"))
        return submit(queue, item_id, *args, **fields)

    monkeypatch.setattr(Queue, "submit", submit_or_lose)


def test_the_oracle_goes_on_where_the_database_left_it(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_the_database_once(monkeypatch, before="b")
    done = annotate_step(campaign, 0)
    assert (done.submitted, done.open, done.minutes) == (3, 0, 6)
    assert (done.organs, done.voxels) == (3, 3 * 64), "what was saved before is not saved again"
    with open_database(campaign.database_url) as database:
        assert Revisions(database).seconds(0, "b") == {None: 120, "liver": 0}


def test_a_database_that_stays_away_is_an_error(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_the_database_once(monkeypatch, before="a")
    impatient = campaign.model_copy(update={"cluster": campaign.cluster.model_copy(update={"patience_s": 0})})
    with pytest.raises(WorkspaceError, match=r"is away: .*closed the connection"):
        annotate_step(impatient, 0)
