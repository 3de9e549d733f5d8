"""MONAI bundles, TorchScript and exported programs as members, held to MONAI's own sliding window."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from torch import nn

from atlas_ray.exceptions import CheckpointError
from atlas_ray.organs import Organs
from atlas_ray.segmentation.members.bundle import MonaiBundle
from atlas_ray.segmentation.members.loaded import LoadedMember
from atlas_ray.segmentation.members.program import Program
from atlas_ray.storage import BucketPath
from atlas_ray.volume import Volume, reorient

ORGANS = Organs.model_validate(
    {
        "name": "two",
        "organs": [
            {"name": "liver", "label_id": 1, "color": "#c8604f"},
            {"name": "spleen", "label_id": 2, "color": "#9b6bd6"},
        ],
    }
)
NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 4, "channels": [4, 8], "strides": [2], "num_res_units": 1}
CONFIG = {
    "imports": ["$import os", "$os.mkdir('was_run')"],
    "spacing": [1.5, 1.5, 2.0],
    "width": 4,
    "network_def": {"_target_": "UNet", **NETWORK, "channels": ["@width", 8], "_desc_": "small"},
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing", "mode": "bilinear"},
            {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1, "clip": True},
        ],
    },
    "inferer": {
        "_target_": "SlidingWindowInferer",
        "roi_size": [16, 16, 8],
        "sw_batch_size": 4,
        "overlap": 0.3,
        "mode": "gaussian",
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}],
    },
}
METADATA = {
    "network_data_format": {
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "Liver", "2": "liver tumor", "3": "spleen"}}}
    }
}
LABELS = {"Liver": "liver", "liver tumor": "liver"}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return UNet(**NETWORK).eval()


@pytest.fixture
def bundle(tmp_path: Path, network: nn.Module) -> Path:
    for folder in ("configs", "models"):
        (tmp_path / "bundle" / folder).mkdir(parents=True)
    root = tmp_path / "bundle"
    (root / "configs" / "inference.json").write_text(json.dumps(CONFIG))
    (root / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    torch.save({"model": network.state_dict()}, root / "models" / "model.pt")
    return root


def load_bundle(root: Path, **settings: Any) -> LoadedMember:
    given = {"member": "monai_bundle", "name": "theirs", "path": str(root), "organs": LABELS, **settings}
    return MonaiBundle.model_validate(given).load(ORGANS, data_root=None, device="cpu", precision="float32")


def change(root: Path, **sections: Any) -> None:
    (root / "configs" / "inference.json").write_text(json.dumps({**CONFIG, **sections}))


def ct(spacing: tuple[float, float, float] = (1.5, 1.5, 2.0)) -> Volume:
    hu = np.random.default_rng(0).integers(-200, 300, (37, 30, 21), dtype=np.int16)
    return Volume(hu, np.diag([*spacing, 1.0]))


def all_of(member: LoadedMember, image: Volume) -> torch.Tensor:
    return torch.cat([made for _, made in member.probabilities(member.place(image), "cpu")], dim=-1)


def theirs(network: nn.Module, image: Volume, inferer: dict[str, Any]) -> torch.Tensor:
    """Outputs of MONAI's sliding window, scaled as the bundle says."""
    scaled = torch.from_numpy((image.voxels.clip(-57, 164) + 57) / np.float32(221))[None, None]
    with torch.inference_mode():
        return SlidingWindowInferer(**inferer)(scaled, network)[0]


# --- bundles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["gaussian", "constant"])
def test_a_bundle_says_what_monais_inferer_says(bundle: Path, network: nn.Module, mode: str) -> None:
    inferer = {**CONFIG["inferer"], "mode": mode}  # type: ignore[dict-item]
    change(bundle, inferer=inferer)
    member = load_bundle(bundle, batch=3)
    assert member.outputs_K == ((1, 2), (3,))
    del inferer["_target_"]
    expected = theirs(network, ct(), inferer).softmax(dim=0)
    joined = torch.stack([expected[1] + expected[2], expected[3]])
    assert joined.std() > 0.01
    torch.testing.assert_close(all_of(member, ct()), joined, atol=1e-5, rtol=0)
    assert not (bundle / "was_run").exists()
    assert not Path("was_run").exists()


def test_a_bundle_brings_a_ct_to_its_spacing(bundle: Path) -> None:
    member = load_bundle(bundle)
    assert member.place(ct((3.0, 3.0, 2.0))).values.shape == (74, 60, 21)
    other = load_bundle(
        bundle, spacing=(3.0, 3.0, 6.0), orientation="LPS", intensity={"intensity": "standard", "mean": 50, "std": 10}
    )
    placed = other.place(ct())
    assert placed.values.shape == (18, 15, 7)
    assert placed.flipped == (True, True, False)
    assert placed.prepare(np.array([60], np.int16)).tolist() == [1.0]


def test_what_was_turned_and_resampled_lies_where_it_was(bundle: Path) -> None:
    """A member that answers with its input's brightness: a bright block keeps its place on the campaign's grid."""
    hu = np.full((32, 32, 16), -500, np.int16)
    hu[4:12, 16:28, 8:14] = 500
    member = load_bundle(bundle, orientation="LAS", spacing=(3.0, 3.0, 4.0), activation="none")
    bright = LoadedMember(
        "it", lambda windows: windows.repeat(1, 4, 1, 1, 1), member.outputs_K, "none", member.sliding, member.place
    )
    bytes_KXYZ = bright.predict(Volume(hu, np.diag([1.5, 1.5, 2.0, 1])), (32, 32, 16), device="cpu", memory_gb=1)
    inside = np.zeros((32, 32, 16), bool)
    inside[5:11, 17:27, 9:13] = True
    outside = np.ones((32, 32, 16), bool)
    outside[2:14, 14:30, 6:16] = False
    assert (bytes_KXYZ[0][inside] == 255).all()
    assert (bytes_KXYZ[0][outside] == 0).all()


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (
            {"_target_": "os.system", "command": "touch was_run"},
            r"asks for 'os.system'; networks of monai.networks.nets are allowed",
        ),
        ({"_target_": "monai.bundle.run"}, r"asks for 'monai.bundle.run'"),
        ({"_target_": "UNet", "channels": "$__import__('os').mkdir('was_run')"}, r"channels is .*which would have to be run"),
        ({"_target_": "UNet", "act": {"_target_": "builtins.eval"}}, r"asks for 'builtins.eval'"),
        ({"_target_": "UNet", "_requires_": ["$print()"]}, r"_requires_.* is '\$print\(\)', which would have to be run"),
        ({"_target_": "UNet", "_mode_": "debug"}, r"has _mode_; _target_ and _desc_ are allowed"),
        ({"_target_": "UNet", "channels": "@nowhere"}, r"refers to '@nowhere', which is not there"),
        ({"_target_": "UNet", "channels": "%other.json::x"}, r"which would have to be run"),
        ({"_target_": "UNet", "spatial_dims": 3}, r"network 'UNet' cannot be built"),
        ("$@network", r"which would have to be run"),
    ],
)
def test_nothing_but_a_network_is_run(bundle: Path, described: Any, said: str) -> None:
    change(bundle, network_def=described)
    with pytest.raises(CheckpointError, match=said):
        load_bundle(bundle)
    assert not Path("was_run").exists()


@pytest.mark.parametrize(
    ("sections", "settings", "said"),
    [
        ({}, {"network": "net"}, r"has no network under 'net'; it has imports, spacing"),
        ({"inferer": None}, {}, r"has no inferer with a roi_size; say `window:`"),
        (
            {"preprocessing": {"transforms": [{"_target_": "HistogramNormalized"}]}},
            {},
            r"prepares images with 'HistogramNormalized'",
        ),
        (
            {"network_def": {"_target_": "UNet", **NETWORK, "channels": [4, 4]}},
            {},
            r"model.pt does not fit its network .*of another shape",
        ),
        (
            {"network_def": {"_target_": "UNet", **NETWORK, "num_res_units": 0}},
            {},
            r"model.pt does not fit .* missing: .* unexpected: ",
        ),
        ({}, {"weights": "models/other.pt"}, r"models/other.pt is missing"),
        ({}, {"organs": {"lung": "liver"}}, r"no label 'lung'; it has background \(0\), Liver \(1\)"),
    ],
)
def test_a_bundle_that_does_not_fit_is_named(bundle: Path, sections: Any, settings: Any, said: str) -> None:
    change(bundle, **sections)
    with pytest.raises(CheckpointError, match=said):
        load_bundle(bundle, **settings)


# --- programs --------------------------------------------------------------------------------------------------------


def save_program(path: Path, network: nn.Module, kind: str) -> Path:
    example = torch.rand(2, 1, 16, 16, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and people still have such files
        if kind == "torchscript":
            torch.jit.trace(network, example).save(str(path))
        else:
            torch.export.save(torch.export.export(network, (example,)), str(path))
    return path


def load_program(path: Path | BucketPath, kind: str, **settings: Any) -> LoadedMember:
    given = {"member": kind, "name": "theirs", "path": str(path), "window": (16, 16, 8), "overlap": 0.3, "batch": 2}
    scaling = {"intensity": "window", "hu": (-57, 164)}
    named = {"organs": {1: "liver", 2: "liver", 3: "spleen"}, "activation": "softmax"}
    made = Program.model_validate({**given, "intensity": scaling, **named, **settings})
    return made.load(ORGANS, data_root=None, device="cpu", precision="float32")


@pytest.mark.parametrize(("kind", "suffix"), [("torchscript", "pt"), ("exported_program", "pt2")])
def test_a_program_says_what_its_network_says(tmp_path: Path, network: nn.Module, kind: str, suffix: str) -> None:
    path = save_program(tmp_path / f"net.{suffix}", network, kind)
    expected = theirs(network, ct(), {"roi_size": (16, 16, 8), "overlap": 0.3, "mode": "gaussian"}).softmax(dim=0)
    joined = torch.stack([expected[1] + expected[2], expected[3]])
    torch.testing.assert_close(all_of(load_program(path, kind), ct()), joined, atol=1e-5, rtol=0)
    named = load_program(path, kind, labels=("none", "liver", "tumor", "spleen"), organs={})
    assert named.outputs_K == ((1,), (3,))
    with pytest.raises(CheckpointError, match=rf"net.{suffix} .*windows.*\(16, 16, 7\)"):
        load_program(path, kind, window=(16, 16, 7))
    with pytest.raises(CheckpointError, match=r"has no label '9'; it has output 0 \(0\), output 1 \(1\)"):
        load_program(path, kind, organs={9: "liver"})
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=f"net.{suffix} is no {kind}"):
        load_program(path, kind)


def test_probabilities_are_taken_as_they_are(tmp_path: Path) -> None:
    path = save_program(tmp_path / "net.pt", nn.Hardtanh(-1, 2), "torchscript")
    member = load_program(path, "torchscript", organs={0: "liver"}, activation="none", intensity={"intensity": "hu"})
    image = Volume(np.array([-3, 0, 1, 7], np.int16).reshape(4, 1, 1), np.eye(4))
    assert all_of(member, reorient(image))[0, :, 0, 0].tolist() == pytest.approx([0, 0, 1, 1])


def test_a_program_in_a_bucket_is_the_one_that_lies_there_now(
    bucket: BucketPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image = Volume(np.array([0, 1], np.int16).reshape(2, 1, 1), np.eye(4))
    given = {"organs": {0: "liver"}, "activation": "none", "intensity": {"intensity": "hu"}}

    def says(network: nn.Module) -> list[float]:
        (bucket / "net.pt").write_bytes(save_program(tmp_path / "net.pt", network, "torchscript").read_bytes())
        member = load_program(bucket / "net.pt", "torchscript", **given)
        return [round(value, 3) for value in all_of(member, reorient(image))[0, :, 0, 0].tolist()]

    assert says(nn.Hardtanh(0, 1)) == [0, 1]
    assert says(nn.Sequential(nn.Hardtanh(0.5, 1), nn.Identity())) == [0.5, 1]
    with pytest.raises(CheckpointError, match=f"member 'theirs' .*: nothing lies at {bucket}/gone.pt"):
        load_program(bucket / "gone.pt", "torchscript", **given)
