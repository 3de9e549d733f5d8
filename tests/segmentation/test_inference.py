"""The ensemble over one volume: members, bytes, memory, the coarse pass and its way back."""

import gc
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from atlas_ray.segmentation.coarse import Coarse
from atlas_ray.segmentation.inference import EnsemblePrediction, Inference, normalize, predict_ensemble

SMALL = {"window": (16, 16, 16), "precision": "float32"}


class BrightIsOrgan(torch.nn.Module):
    """A network with a known answer: logit 8 where the image is above one half, -8 elsewhere, for two organs of opposite sign."""

    def forward(self, x: Tensor) -> Tensor:
        sign = torch.where(x > 0.5, 8.0, -8.0)
        return torch.cat([sign, -sign], dim=1)


def ct(shape: tuple[int, int, int] = (20, 33, 41), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-300, 400, shape).astype(np.int16)


def predict(members: dict[str, Any], image: np.ndarray, settings: Inference, **more: Any) -> EnsemblePrediction:
    return predict_ensemble(members, image, settings, window_hu=(-175, 250), spacing=(2, 2, 2), device="cpu", **more)


def test_hounsfield_units_are_clipped_to_the_window() -> None:
    hu = np.array([-3024, -175, 37.5, 250, 3000])
    assert normalize(hu, (-175, 250)).tolist() == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("shape", [(20, 33, 41), (7, 16, 50), (5, 5, 5)])
def test_windows_put_together_are_the_image(shape: tuple[int, int, int]) -> None:
    image = ct(shape)
    network = BrightIsOrgan()
    p = predict({"one": network, "two": network}, image, Inference(batch=3, **SMALL)).bytes_MKXYZ
    assert p.shape == (2, 2, *shape)
    assert p.dtype == np.uint8
    bright = normalize(image, (-175, 250)) > 0.5
    for member in p:
        assert np.array_equal(member[0], np.where(bright, 255, 0))  # sigmoid(8) is 254.9 of 255
        assert np.array_equal(member[1], np.where(bright, 0, 255))


def test_a_constant_stays_itself_and_is_rounded() -> None:
    """sigmoid(-1) = 0.26894, times 255 = 68.58; sigmoid(0.1) = 0.52498, times 255 = 133.87."""

    def constant(windows: Tensor) -> Tensor:
        return torch.tensor([-1.0, 0.1]).view(1, 2, 1, 1, 1).expand(len(windows), 2, *windows.shape[2:])

    p = predict({"one": constant}, ct(), Inference(overlap=0.75, **SMALL)).bytes_MKXYZ
    assert np.unique(p[0, 0]).tolist() == [69]
    assert np.unique(p[0, 1]).tolist() == [134]


def test_every_member_has_its_overlap() -> None:
    calls = {"often": 0, "seldom": 0}

    def member(name: str) -> Any:
        def forward(windows: Tensor) -> Tensor:
            calls[name] += len(windows)
            return windows

        return forward

    settings = Inference(overlap=0.5, overlaps={"seldom": 0.0}, batch=2, **SMALL)
    predict({name: member(name) for name in calls}, ct((32, 32, 32)), settings)
    assert calls == {"often": 3**3, "seldom": 2**3}


@pytest.mark.parametrize("batch", [1, 7])
def test_a_mapped_file_holds_the_same_and_leaves_nothing_behind(batch: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1)
    settings = Inference(overlap=0.75, batch=batch, **SMALL)
    in_memory = predict({"one": network, "two": BrightIsOrganThrice()}, ct(), settings)
    mapped = predict(
        {"one": network, "two": BrightIsOrganThrice()},
        ct(),
        settings.model_copy(update={"memory_gb": 0.0}),
        scratch_dir=tmp_path,
    )
    assert files_mapped_from(tmp_path) == 1
    assert np.array_equal(in_memory.bytes_MKXYZ, mapped.bytes_MKXYZ)
    assert not list(tmp_path.iterdir())
    del mapped
    gc.collect()
    assert files_mapped_from(tmp_path) == 0


class BrightIsOrganThrice(BrightIsOrgan):
    """Three channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, [0, 1, 0]]


def files_mapped_from(folder: Path) -> int:
    maps = Path(f"/proc/{os.getpid()}/maps").read_text()
    return sum(str(folder) in line for line in maps.splitlines())


def test_slices_lie_together_in_memory() -> None:
    p = predict({"one": BrightIsOrgan()}, ct(), Inference(**SMALL)).bytes_MKXYZ
    assert p.swapaxes(2, 4).flags.c_contiguous


def test_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 2, 3, padding=1)
    results = []
    for precision in ("float32", "bfloat16"):
        settings = Inference(window=(16, 16, 16), precision=precision)
        results.append(predict({"one": settings.prepare(network, device="cpu")}, ct(), settings).bytes_MKXYZ.astype(int))
    difference = np.abs(results[0] - results[1])
    assert 0 < difference.max() <= 2


# --- coarse pass -----------------------------------------------------------------------------------------------------


BODY = (60, 60, 60)


def scan(*organs: tuple[slice, slice, slice]) -> np.ndarray:
    """Soft tissue with bright organs."""
    image = np.full(BODY, 0, np.int16)
    for organ in organs:
        image[organ] = 200
    return image


def bright(windows: Tensor) -> Tensor:
    return torch.where(windows > 0.5, 8.0, -8.0)


def blind(windows: Tensor) -> Tensor:
    return torch.full_like(windows, -8.0)


ORGAN = (slice(30, 40), slice(30, 40), slice(30, 40))
COARSE = Inference(coarse=Coarse(architecture="look", margin_mm=8, min_volume_ml=1), **SMALL)


def test_coarse_pass_finds_the_box_and_the_rest_is_not_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    seen = 0

    def fine(windows: Tensor) -> Tensor:
        nonlocal seen
        seen += len(windows)
        return bright(windows)

    with caplog.at_level(logging.INFO):
        found = predict({"look": bright, "fine": fine}, scan(ORGAN), COARSE)
    assert found.region.box == (slice(26, 44),) * 3  # 10 voxels of 2 mm and 8 mm on both sides
    assert found.region.why_whole == ""
    assert seen == 2**3  # 18 voxels, windows of 16 at a step of 8
    whole = predict({"look": bright, "fine": bright}, scan(ORGAN), COARSE.model_copy(update={"coarse": None}))
    assert np.array_equal(found.bytes_MKXYZ, whole.bytes_MKXYZ)
    assert "box 26:44 x 26:44 x 26:44 of (60, 60, 60)" in caplog.text


def test_an_organ_the_look_misses_is_predicted_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = predict({"look": blind, "fine": bright}, scan(ORGAN), COARSE)
    assert found.region.why_whole == "channel 0 has 0 voxels in the coarse pass, fewer than 1.0 ml"
    assert np.array_equal(found.bytes_MKXYZ[1, 0] > 127, scan(ORGAN) > 0)
    assert "the whole volume, channel 0 has 0 voxels" in caplog.text


def test_an_organ_the_box_cuts_off_is_predicted_whole() -> None:
    """The look sees only the part of it that is brightest."""

    def short_sighted(windows: Tensor) -> Tensor:
        return torch.where(windows > 0.95, 8.0, -8.0)

    long = (slice(30, 40), slice(30, 40), slice(10, 50))
    image = scan(long)
    image[ORGAN] = 250
    found = predict({"look": short_sighted, "fine": bright}, image, COARSE)
    assert found.region.why_whole == "channel 0 reaches low Z of the coarse box"
    assert np.array_equal(found.bytes_MKXYZ[1, 0] > 127, image > 0)


def test_settings_say_what_is_allowed() -> None:
    with pytest.raises(ValidationError, match="less than 1"):
        Inference(overlaps={"unet": 1.0})
    assert Inference(overlap=0.5, overlaps={"unet": 0.0}).overlap_of("unet") == 0.0
    assert Inference(overlap=0.5, overlaps={"unet": 0.0}).overlap_of("nnunet") == 0.5
