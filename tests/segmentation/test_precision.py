"""Precision: what is asked for is used; "auto" takes bfloat16 only where the processor has units for it."""

import pytest
import torch

from atlas_ray.segmentation.precision import uses_bfloat16


def test_what_is_asked_for_is_used() -> None:
    assert uses_bfloat16("bfloat16", "cpu")
    assert not uses_bfloat16("float32", "cpu")


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "expected"), [(False, False, False), (True, False, True), (False, True, True), (True, True, True)]
)
def test_auto_asks_the_processor(monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, expected: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert uses_bfloat16("auto", torch.device("cpu")) is expected
