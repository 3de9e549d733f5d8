"""Accelerated networks give the network's logits, in every path that this machine can run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from atlas_ray.segmentation import memory
from atlas_ray.segmentation.acceleration import accelerate
from atlas_ray.segmentation.architectures import Architecture, NNUNet, SwinUNETR, UNet
from atlas_ray.segmentation.instance_norm import InstanceNorm

TINY: list[Architecture] = [
    SwinUNETR(feature_size=12, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8)),
    NNUNet(features=(8, 12, 16)),
    UNet(features=(8, 12, 16)),
]
WINDOW = (32, 32, 64)


def trained(architecture: Architecture) -> nn.Module:
    """Random weights, with biases and norms away from their start."""
    torch.manual_seed(0)
    network = architecture.build(3).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("architecture", TINY, ids=lambda a: a.architecture)
def test_float32_equals_the_network(architecture: Architecture) -> None:
    network, windows = trained(architecture), torch.rand(2, 1, *WINDOW)
    infer = accelerate(network, device="cpu", precision="float32", window=WINDOW, batch=2, compile=False)
    with torch.no_grad():
        expected = network(windows)
    for _ in range(2):  # the second call finds used memory
        logits = infer(windows)
        assert logits.dtype == torch.float32
        assert logits.is_contiguous()
        assert float((logits - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(infer(windows[:1]), logits[:1], rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("architecture", TINY[1:], ids=lambda a: a.architecture)
def test_bfloat16_is_near_the_network(architecture: Architecture) -> None:
    network, windows = trained(architecture), torch.rand(1, 1, 16, 16, 16)
    infer = accelerate(network, device="cpu", precision="bfloat16", window=(16, 16, 16), batch=1, compile=False)
    with torch.no_grad():
        expected = network(windows)
    assert float((infer(windows) - expected).norm()) < 3e-2 * float(expected.norm())


def test_the_network_itself_stays_as_it_is() -> None:
    network = trained(TINY[2])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kinds = [type(module) for module in network.modules()]
    for precision in ("float32", "bfloat16"):
        accelerate(network, device="cpu", precision=precision, window=WINDOW, batch=1, compile=False)
    assert [type(module) for module in network.modules()] == kinds
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_other_shapes_are_refused() -> None:
    infer = accelerate(trained(TINY[2]), device="cpu", precision="float32", window=WINDOW, batch=1, compile=False)
    with pytest.raises(ValueError, match=r"prepared for at most 1 of \(32, 32, 64\)"):
        infer(torch.rand(2, 1, *WINDOW))


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_equals_torch_and_keeps_the_layout(affine: bool) -> None:
    theirs = nn.InstanceNorm3d(6, affine=affine)
    if affine:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
    inputs = (torch.randn(2, 6, 3, 4, 5) * 3 + 7).contiguous(memory_format=torch.channels_last_3d)
    outputs = InstanceNorm(theirs)(inputs)
    assert outputs.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(outputs, theirs(inputs), rtol=1e-4, atol=1e-5)


def test_memory_is_lent_again_only_when_nobody_holds_it() -> None:
    first = memory.empty(3, 1013)
    view, address = first[1:], first.data_ptr()
    del first
    assert memory.empty(3, 1013).data_ptr() != address  # the view still holds it
    del view
    tensors = [memory.empty(3039), memory.empty(1013, 3)]
    assert address in {tensor.data_ptr() for tensor in tensors}


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_compiled(tmp_path: Path) -> None:
    script = f"""
import time, torch
from pathlib import Path
from torch._dynamo.utils import counters
from atlas_ray.segmentation.acceleration import accelerate
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.InstanceNorm3d(4), torch.nn.LeakyReLU())
cache = Path({str(tmp_path)!r})
infer = accelerate(network, device="cpu", precision="bfloat16", window=(8, 8, 8), batch=2, compile=True, cache_dir=cache)
assert infer(torch.rand(1, 1, 8, 8, 8)).shape == (1, 4, 8, 8, 8)
print(counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"])
"""
    hits = [
        int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout) for _ in range(2)
    ]
    assert hits[0] == 0
    assert hits[1] >= 1
