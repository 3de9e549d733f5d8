"""Forward passes of one window: the plain networks against their accelerated twins, and what the hardware could do at best.

Sizes are the paper's: 96^3 voxels, Swin UNETR of feature size 48, nnU-Net of 32 to 320 and U-Net of 32 to 512 channels. Random
weights, one thread. Rates count the multiplications and additions of direct convolutions, so Winograd's may pass the machine's own.

python benchmarks/networks.py [NAME ...]      NAME is swin_unetr, nnunet or unet; none is all of them
"""

import sys
import time
from collections.abc import Callable

import torch
from measure import interleaved, show, show_rows
from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atlas_ray.segmentation.acceleration import accelerate
from atlas_ray.segmentation.architectures import Architecture, NNUNet, SwinUNETR, UNet
from atlas_ray.segmentation.precision import Precision, uses_bfloat16

WINDOW = (96, 96, 96)
ORGANS = 9
NETWORKS: list[tuple[Architecture, int]] = [(UNet(), 5), (NNUNet(), 3), (SwinUNETR(), 2)]  # with rounds
NOTE = "Processor seconds of one thread, because this clock leaves out waiting for a shared core."


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or [architecture.architecture for architecture, _ in NETWORKS]
    rates = ceilings()
    best = max(rates.values())
    show_rows("What this machine can do", ("operation", "GFLOP/s"), [(name, f"{rate:.0f}") for name, rate in rates.items()])
    rows = [row for network, rounds in NETWORKS if network.architecture in wanted for row in compare(network, rounds, best)]
    note = f"Relative differences are norms over all logits; the share is of {best:.0f} GFLOP/s, the best rate above."
    header = ("network", "GFLOP", "variant", "GFLOP/s", "share", "largest difference", "relative difference")
    show_rows("Rates and differences", header, rows, note=note)
    if not uses_bfloat16("auto", "cpu"):
        emulated()


def plain(architecture: Architecture) -> nn.Module:
    """The network as its authors run it."""
    torch.manual_seed(0)
    network = architecture.build(ORGANS).eval()
    if isinstance(architecture, SwinUNETR):
        theirs = MonaiSwinUNETR(1, ORGANS, feature_size=architecture.feature_size).eval()
        theirs.load_state_dict(network.state_dict())
        return theirs
    return network


def compare(architecture: Architecture, rounds: int, best: float) -> list[tuple[str, ...]]:
    """Print the times, return the rows of the second table."""
    windows = torch.rand(1, 1, *WINDOW)
    peer = plain(architecture)
    ours = architecture.build(ORGANS).eval()
    ours.load_state_dict(peer.state_dict())
    variants: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"plain float32": torch.inference_mode()(peer)}
    precisions: list[Precision] = ["float32", "bfloat16"] if uses_bfloat16("auto", "cpu") else ["float32"]
    for precision in precisions:
        variants[f"ours {precision}"] = accelerate(
            ours, device="cpu", precision=precision, window=WINDOW, batch=1, compile=precision == "bfloat16"
        )
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        expected = peer(windows)
    work = counter.get_total_flops() / 1e9
    outputs = {name: call(windows) for name, call in variants.items()}  # and warm up
    calls = {name: lambda call=call: call(windows) for name, call in variants.items()}
    times = interleaved(calls, rounds=rounds, warm_up=False, clock=time.process_time)
    show(f"{architecture.architecture}, one window", times, ours=list(variants)[-1], note=f"{NOTE} {rounds} rounds.")
    return [
        (
            architecture.architecture,
            f"{work:.0f}",
            name,
            f"{work / times[name].median:.0f}",
            f"{work / times[name].median / best:.0%}",
            f"{(outputs[name] - expected).abs().max():.1e}",
            f"{(outputs[name] - expected).norm() / expected.norm():.1e}",
        )
        for name in variants
    ]


def ceilings() -> dict[str, float]:
    """GFLOP/s of a large matrix product and of convolutions that suit the machine."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    calls: dict[str, Callable[[], object]] = {"matrix product 2048": lambda: a @ b}
    work = {"matrix product 2048": 2 * 2048**3}
    for channels, layout, name in (
        (64, torch.contiguous_format, "channels-first"),
        (64, torch.channels_last_3d, "channels-last"),
        (32, torch.channels_last_3d, "channels-last"),
    ):
        convolution = nn.Conv3d(channels, channels, 3, padding=1).to(memory_format=layout)
        inputs = torch.rand(1, channels, 48, 48, 48).contiguous(memory_format=layout)
        key = f"direct convolution {channels} to {channels} channels, 48^3, {name}"
        calls[key] = lambda convolution=convolution, inputs=inputs: convolution(inputs)
        work[key] = 2 * 27 * channels**2 * 48**3
    with torch.inference_mode():
        times = interleaved(calls, rounds=5, clock=time.process_time)
    return {name: work[name] / min(measured.seconds) / 1e9 for name, measured in times.items()}


def emulated() -> None:
    """Why "auto" is float32 where there are no units for bfloat16."""
    calls = {}
    for name, dtype in (("bfloat16, emulated", torch.bfloat16), ("float32", torch.float32)):
        convolution = nn.Conv3d(32, 32, 3, padding=1).to(dtype=dtype, memory_format=torch.channels_last_3d)
        inputs = torch.rand(1, 32, 16, 16, 16).to(dtype).contiguous(memory_format=torch.channels_last_3d)
        calls[name] = lambda convolution=convolution, inputs=inputs: convolution(inputs)
    with torch.inference_mode():
        times = interleaved(calls, rounds=5, clock=time.process_time)
    show("bfloat16 without units for it: a convolution of 32 channels, 16^3", times, ours="float32", note=NOTE)


if __name__ == "__main__":
    main()
