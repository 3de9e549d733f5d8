"""Checkpoints know their organs, architecture and origin, and load by name."""

from pathlib import Path

import pytest
import torch

from atlas_ray.exceptions import CheckpointError
from atlas_ray.segmentation.architectures import Architecture, NNUNet, SwinUNETR, UNet
from atlas_ray.segmentation.checkpoints import (
    CheckpointHeader,
    Provenance,
    load_into,
    load_network,
    read_checkpoint,
    save_checkpoint,
)

TINY: list[Architecture] = [
    SwinUNETR(feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)),
    NNUNet(features=(4, 8, 16)),
    UNet(features=(4, 8, 16)),
]
PROVENANCE = Provenance(round=0, cases=2, data_key="k", steps=10, seed=0, created="2026-01-01T00:00:00Z")


def header(architecture: Architecture, organs: tuple[str, ...]) -> CheckpointHeader:
    return CheckpointHeader(
        architecture=architecture, organs=organs, spacing=(1.5, 1.5, 1.5), window_hu=(-175, 250), provenance=PROVENANCE
    )


def saved(path: Path, architecture: Architecture, organs: tuple[str, ...]) -> torch.nn.Module:
    torch.manual_seed(0)
    network = architecture.build(len(organs))
    save_checkpoint(path, header(architecture, organs), network.state_dict())
    return network.eval()


@pytest.mark.parametrize("architecture", TINY, ids=lambda a: a.architecture)
def test_a_network_comes_back_as_it_was(tmp_path: Path, architecture: Architecture) -> None:
    before = saved(tmp_path / "a.pt", architecture, ("x", "y"))
    after, read, sha256, report = load_network(tmp_path / "a.pt", ("x", "y"))
    window = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        assert torch.equal(before(window), after.eval()(window))
        assert before(window).shape == (1, 2, 64, 32, 32)
    assert report.match_ratio == 1
    assert read.provenance == PROVENANCE
    assert len(sha256) == 64


@pytest.mark.parametrize("architecture", TINY, ids=lambda a: a.architecture)
def test_output_channels_follow_the_organs_name_not_their_position(tmp_path: Path, architecture: Architecture) -> None:
    before = saved(tmp_path / "a.pt", architecture, ("x", "y"))
    after, _, _, report = load_network(tmp_path / "a.pt", ("new", "y", "x"))
    window = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        old, now = before(window), after.eval()(window)
    assert torch.allclose(now[:, 2], old[:, 0], atol=1e-5)
    assert torch.allclose(now[:, 1], old[:, 1], atol=1e-5)
    assert report.fresh_organs == ("new",)


def test_the_report_names_what_did_not_match(tmp_path: Path) -> None:
    small, deep = UNet(features=(4, 8, 16)), UNet(features=(4, 8, 16, 32))
    saved(tmp_path / "a.pt", small, ("x",))
    read, state, _ = read_checkpoint(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"only \d+% of the unet tensors match, 90% are needed .* missing"):
        load_into(deep.build(1), deep, ("x",), read, state)
    state["stranger"] = torch.zeros(1)
    report = load_into(small.build(1), small, ("x",), read, state)
    assert report.unexpected == ("stranger",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "owned",))  # type: ignore[return-value]

    torch.save({"header": "{}", "state": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="damaged or not ours"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt is damaged"):
        read_checkpoint(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(tmp_path / "missing.pt")
