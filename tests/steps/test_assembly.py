"""Sources that label other organs make one network that knows them all, because what is not labeled is not background."""

from pathlib import Path

import pytest
from cubes import HU, cube_campaign, write_cubes

from atlas_ray.steps.evaluate import evaluate_step
from atlas_ray.steps.predict import predict_step
from atlas_ray.steps.train import train_step
from atlas_ray.workspace import write_lines

pytestmark = [
    pytest.mark.usefixtures("in_this_process", "one_thread"),
    # Ray Data 2.60 sets its own deprecated options whenever it makes a context
    pytest.mark.filterwarnings("ignore:`use_[a-z0-9_]+` is deprecated:DeprecationWarning"),
]


ABSENT = "gall_bladder"  # labeled, but removed in all of these patients
SOURCES = ("liver", "spleen", ABSENT, ABSENT, ABSENT)


def dices(root: Path, *, masked: bool) -> dict[str, float]:
    """Five sources of one case, each labeled for one organ; Dice on a case nobody saw."""
    patches = {"patch": [24, 24, 24], "foreground": 0, "augmentation": {"affine_probability": 0}}
    tracking = {"uri": f"sqlite:///{root.parent}/mlflow.db", "experiment": root.name}  # MLflow takes seconds to make its tables
    campaign = cube_campaign(root, *HU, ABSENT, patches=patches, tracking=tracking)
    cases = [write_cubes(campaign, f"source_{k}", "train", seed=k, labeled=[organ]) for k, organ in enumerate(SOURCES)]
    if not masked:
        cases = [case.model_copy(update={"labeled_organs": (*HU, ABSENT)}) for case in cases]
    write_lines(campaign.open_workspace().manifest, [*cases, write_cubes(campaign, "unseen", "holdout", seed=9)])
    train_step(campaign, 0)
    predict_step(campaign, 0, splits=("holdout",))
    return {row.organ: row.dice for row in evaluate_step(campaign, 0).organs if row.dice is not None}


def test_organs_that_no_source_labels_together_appear_with_the_mask(tmp_path: Path) -> None:
    """Without it, four of five sources say of every organ that it is background."""
    (tmp_path / "masked").mkdir()
    (tmp_path / "unmasked").mkdir()
    masked, unmasked = (dices(tmp_path / name, masked=name == "masked") for name in ("masked", "unmasked"))
    assert set(masked) == set(HU)
    for organ in HU:
        assert masked[organ] > 0.75, (masked, unmasked)
        assert unmasked[organ] < masked[organ] - 0.3, (masked, unmasked)
