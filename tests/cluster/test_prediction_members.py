"""Members in the stream: beside an architecture or alone, on their own grid, and with organs that they do not know."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from atlas_ray.cluster.prediction import predict_cases, read_case
from atlas_ray.config import Campaign
from atlas_ray.exceptions import CheckpointError
from atlas_ray.records import Case
from atlas_ray.segmentation.architectures import UNet
from atlas_ray.segmentation.checkpoints import CheckpointHeader, Provenance, save_checkpoint
from atlas_ray.volume import Volume, read_volume, reorient, write_volume

ORGANS = """
name: two
organs:
  - {name: liver, label_id: 6, color: "#c8604f"}
  - {name: spleen, label_id: 2, color: "#9b6bd6"}
"""
SHAPE, SPACING = (16, 20, 8), (2.0, 2.0, 4.0)  # of the image in RAS; the campaign's spacing is 2 mm
CUBE = (slice(3, 9), slice(5, 15), slice(2, 6))
UNET = UNet(features=(4, 8), residual_units=1)


class Bright(nn.Module):
    """Output 0 where the CT is above `hu`, output 1 nowhere."""

    def __init__(self, hu: float) -> None:
        super().__init__()
        self.hu = hu

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([windows - self.hu, torch.full_like(windows, -200.0)], dim=1).clamp(-20, 20)


def save_program(root: Path, hu: float = 0.0) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.trace(Bright(hu), torch.zeros(1, 1, 8, 8, 8)).save(str(root / "bright.pt"))


def member(**changes: Any) -> dict[str, Any]:
    scaled = {"intensity": {"intensity": "hu"}, "window": [8, 8, 8], "overlap": 0.25}
    return {"member": "torchscript", "name": "bright", "path": "bright.pt", "organs": {0: "liver"}, **scaled, **changes}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "two.yaml").write_text(ORGANS)
    save_program(tmp_path)
    return tmp_path


def campaign_of(root: Path, members: list[dict[str, Any]], *, with_unet: bool) -> Campaign:
    campaign = Campaign.model_validate(
        {
            "name": "small",
            "workspace": str(root / "workspace"),
            "data_root": str(root),
            "organs": str(root / "two.yaml"),
            "datasets": [{"source": "phantom", "name": "unused", "count": 1, "split": "pool"}],
            "preprocessing": {"spacing": (2, 2, 2)},
            "architectures": [UNET] if with_unet else [],
            "members": members,
            "patches": {"patch": (16, 16, 16)},
            "inference": {"window": (16, 16, 16), "overlap": 0.25, "precision": "float32"},
        }
    )
    if with_unet:
        save_unet(campaign)
    return campaign


def save_unet(campaign: Campaign) -> None:
    """Says "spleen, 88 %; liver, 12 %" everywhere."""
    network = UNET.build(2)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([-2.0, 2.0]))
    origin = Provenance(round=0, cases=1, data_key="abc", steps=1, seed=0, created="2026-01-01T00:00:00+00:00")
    header = CheckpointHeader(
        architecture=UNET, organs=("liver", "spleen"), spacing=(2, 2, 2), window_hu=(-175, 250), provenance=origin
    )
    save_checkpoint(campaign.open_workspace().checkpoint(0, "unet"), header, network.state_dict())


def save_case(folder: Path) -> Case:
    """A CT of -100 HU with a cube of 100 HU, stored as LPS."""
    voxels = np.full(SHAPE, -100, np.int16)
    voxels[CUBE] = 100
    image = reorient(Volume(voxels, np.diag([*SPACING, 1.0])), "LPS")
    write_volume(path := folder / "a.nii.gz", image)
    known = {"image": str(path), "sha256": "0" * 64, "shape": SHAPE, "spacing": SPACING, "orientation": "LPS"}
    return Case.model_validate({"case_id": "a", **known, "source": "here", "license": "CC0-1.0", "split": "pool"})


def label_of(campaign: Campaign, name: str = "") -> np.ndarray:
    workspace = campaign.open_workspace()
    path = workspace.architecture_label(0, "a", name) if name else workspace.pseudo_label(0, "a")
    return np.asarray(reorient(read_volume(path)).voxels)


def cube(inside: int, outside: int) -> np.ndarray:
    label = np.full(SHAPE, outside, np.uint8)
    label[CUBE] = inside
    return label


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("grid", [{}, {"spacing": [1.0, 1.0, 2.0], "orientation": "LPI"}])
def test_a_member_alone_is_an_ensemble(root: Path, grid: dict[str, Any]) -> None:
    """At the campaign's spacing, and at a finer one of its own: then the row carries the CT as it is."""
    campaign = campaign_of(root, [member(**grid)], with_unet=False)
    case = save_case(root)
    row = read_case({"case_id": "a", "case": case.model_dump_json()}, campaign_json=campaign.model_dump_json(), round_index=0)
    assert row["image"].shape == (16, 20, 16)
    assert row["original"].shape == SHAPE if grid else "original" not in row
    assert predict_cases(campaign, 0, [case]).predicted == 1
    np.testing.assert_array_equal(label_of(campaign), cube(6, 0))
    np.testing.assert_array_equal(label_of(campaign, "bright"), cube(6, 0))
    scores = campaign.open_workspace().case_scores(0, "a")
    assert scores.checkpoints == {"bright": campaign.members[0].identity(str(root))}
    assert scores.absent == {"bright": ("spleen",)}
    assert scores.organs[1].attention_voxels == 0, "nobody knows the spleen"


@pytest.mark.usefixtures("in_this_process")
def test_an_organ_a_member_lacks_is_the_others_alone(root: Path) -> None:
    """The spleen is the U-Net's: 88 % is above one half, where a mean with a silent member (44 %) would not be. Of the liver both
    speak: in the cube 56 % against 88 % of the spleen, and they disagree there about nothing else."""
    campaign = campaign_of(root, [member()], with_unet=True)
    assert predict_cases(campaign, 0, [save_case(root)]).predicted == 1
    np.testing.assert_array_equal(label_of(campaign), cube(2, 2))
    np.testing.assert_array_equal(label_of(campaign, "unet"), cube(2, 2))
    np.testing.assert_array_equal(label_of(campaign, "bright"), cube(6, 0))
    liver, spleen = campaign.open_workspace().case_scores(0, "a").organs
    assert liver.attention_voxels > 0
    components = campaign.open_workspace().case_components(0, "a")
    assert {c.organ for c in components if "disagreement" in c.criteria} == {"liver"}
    assert spleen.predicted_ml == pytest.approx(np.prod(SHAPE) * 16 / 1000)
    assert spleen.entropy == pytest.approx(0.365, abs=0.005)  # of 88 %, the U-Net's alone


@pytest.mark.usefixtures("in_this_process")
def test_another_member_predicts_again_and_the_same_one_does_not(root: Path) -> None:
    campaign = campaign_of(root, [member()], with_unet=False)
    case = save_case(root)
    assert predict_cases(campaign, 0, [case]).predicted == 1
    assert predict_cases(campaign, 0, [case]).skipped == 1
    save_program(root, hu=150.0)
    assert predict_cases(campaign, 0, [case]).predicted == 1
    assert not label_of(campaign).any()
    mapped = campaign_of(root, [member(organs={0: "liver", 1: "spleen"})], with_unet=False)
    assert predict_cases(mapped, 0, [case]).predicted == 1
    assert mapped.open_workspace().case_scores(0, "a").absent == {}


@pytest.mark.usefixtures("in_this_process")
def test_a_member_that_is_not_there_ends_the_step_before_it_begins(root: Path) -> None:
    campaign = campaign_of(root, [member(path="gone.pt")], with_unet=False)
    with pytest.raises(CheckpointError, match=r"gone.pt is missing; a member's weights must lie where its `path` says"):
        predict_cases(campaign, 0, [save_case(root)])
    campaign = campaign_of(root, [member(sha256="0" * 64)], with_unet=False)
    with pytest.raises(CheckpointError, match=r"member 'bright' \(bright.pt\) has sha256 .*; 0{64} is asked for"):
        predict_cases(campaign, 0, [save_case(root)])


def test_a_member_that_does_not_fit_ends_the_step_before_ray_begins(root: Path) -> None:
    campaign = campaign_of(root, [member(organs={7: "liver"})], with_unet=False)
    with pytest.raises(CheckpointError, match=r"member 'bright' \(bright.pt\) has no label '7'; it has output 0 \(0\)"):
        predict_cases(campaign, 0, [save_case(root)])
