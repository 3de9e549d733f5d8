"""Which training is resumed: the one of the same data, settings and parent, and no other."""

from pathlib import Path

import pytest
from cubes import cube_campaign, write_cubes

from atlas_ray.cluster import training
from atlas_ray.cluster.training import Resources, TrainingPlan
from atlas_ray.config import Campaign
from atlas_ray.steps.train import train_step
from atlas_ray.workspace import write_lines

pytestmark = pytest.mark.usefixtures("in_this_process")


def name_of(campaign: Campaign) -> str:
    """Of round 1's training, under which its state is kept; it is interrupted at once."""
    plans = list[TrainingPlan]()

    def interrupted(plan: TrainingPlan, _: Resources) -> Path:
        plans.append(plan)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_step(campaign, 1)
    return plans[0].name


def test_a_training_of_another_parent_resumes_nothing(tmp_path: Path) -> None:
    """Between two starts a gate may have put the champion in the candidate's place."""
    campaign = cube_campaign(tmp_path, "liver")
    workspace = campaign.open_workspace()
    write_lines(workspace.manifest, [write_cubes(campaign, "a", "train", seed=0, labeled=["liver"])])
    parent = workspace.checkpoint(0, "unet")
    parent.parent.mkdir(parents=True)
    parent.write_bytes(b"candidate")
    first = name_of(campaign)
    assert name_of(campaign) == first
    parent.write_bytes(b"champion")
    assert name_of(campaign) != first
    longer = campaign.model_copy(update={"finetuning": campaign.finetuning.model_copy(update={"steps": 61})})
    assert len({first, name_of(campaign), name_of(longer)}) == 3
