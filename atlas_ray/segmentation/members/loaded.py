"""A network that somebody else trained, ready to predict: its windows, its outputs, its own grid, and the way back.

K organs of the campaign, C outputs of the member; a b c the member's axes, X Y Z in RAS.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from atlas_ray.schema import IntTriple
from atlas_ray.segmentation.inference import ByteStore
from atlas_ray.segmentation.members.grid import Placed, onto_common_grid
from atlas_ray.segmentation.members.labels import Outputs
from atlas_ray.segmentation.precision import Precision, uses_bfloat16
from atlas_ray.segmentation.windows import Spread, Weighting, Windows, slide
from atlas_ray.volume import Volume

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Activation = Literal["softmax", "sigmoid", "none"]
Forward = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True, slots=True)
class Sliding:
    """How windows slide over a member's grid.

    Args:
        window: voxels per axis of the member.
        overlap: share of a window that the next one covers again.
        batch: windows per forward pass.
        spread, weighting: see `windows`.
    """

    window: IntTriple
    overlap: float
    batch: int = 1
    spread: Spread = "monai"
    weighting: Weighting = "gaussian"


@dataclass(frozen=True, slots=True, eq=False)
class LoadedMember:
    """A member with its weights.

    Args:
        name: in the campaign.
        forward: windows [B, 1, *window] -> outputs [B, C, *window].
        outputs_K: for each organ the outputs that are it; () where the member does not know it.
        activation: what makes outputs probabilities. Of several outputs that are one organ, those of a softmax exclude each other
            and are added; of others the largest counts.
        sliding: over its grid.
        place: a CT in RAS -> the CT on its grid.
    """

    name: str
    forward: Forward
    outputs_K: Outputs
    activation: Activation
    sliding: Sliding
    place: Callable[[Volume], Placed]

    def at_most(self, batch: int) -> "LoadedMember":
        """With fewer windows per forward pass, where memory is short."""
        return replace(self, sliding=replace(self.sliding, batch=min(self.sliding.batch, batch)))

    def probabilities(
        self, placed: Placed, device: "torch.device | str", sums_on: "torch.device | str | None" = None
    ) -> "Iterator[tuple[slice, Tensor]]":
        """Of the organs that the member knows, on its own grid, a few slices of the last axis at a time: [organs, a, b, slices].

        Args:
            device: of the network.
            sums_on: where windows are added up; None is `device`.
        """
        import torch

        sliding = self.sliding
        windows = Windows.over(placed.values.shape, sliding.window, sliding.overlap, sliding.spread)
        with torch.inference_mode():
            for slices, outputs_Cabc in slide(
                self.forward,
                placed.values,
                windows,
                prepare=placed.prepare,
                batch=sliding.batch,
                device=device,
                sums_on=sums_on,
                weighting=sliding.weighting,
            ):
                yield slices, self._joined(outputs_Cabc)

    def _joined(self, outputs_Cabc: "Tensor") -> "Tensor":
        import torch

        if self.activation == "softmax":
            made = outputs_Cabc.softmax(dim=0)
            return torch.stack([made[list(some)].sum(dim=0) for some in self.outputs_K if some])
        made = outputs_Cabc.sigmoid() if self.activation == "sigmoid" else outputs_Cabc.clamp(0, 1)
        return torch.stack([made[list(some)].amax(dim=0) for some in self.outputs_K if some])

    def predict(
        self,
        image: Volume,
        shape: IntTriple,
        *,
        device: "torch.device | str",
        memory_gb: float,
        sums_on: "torch.device | str | None" = None,
        scratch_dir: Path | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Probabilities on the campaign's grid, round(255 p); of an organ that the member does not know, 0.

        On its own grid they are bytes too, in a mapped file above `memory_gb`, and one organ at a time travels.

        Args:
            image: in RAS; at its own spacing, or at the campaign's where that is the member's too.
            shape: of the campaign's grid, which covers the same extent.

        Returns:
            bytes_KXYZ, X the fastest axis.
        """
        import torch

        placed = self.place(image)
        known = [k for k, some in enumerate(self.outputs_K) if some]
        store = ByteStore((len(known), *placed.values.shape), memory_gb, scratch_dir)
        for slices, made in self.probabilities(placed, device, sums_on):
            torch.from_numpy(store.array[..., slices]).copy_(made.mul_(255).add_(0.5).to(torch.uint8))  # truncates: rounds
            store.release()
        x, y, z = shape
        result_KXYZ = np.zeros((len(self.outputs_K), z, y, x), np.uint8).swapaxes(1, 3)
        for row, k in enumerate(known):
            onto_common_grid(store.array[row], placed, result_KXYZ[k])
        return result_KXYZ


def running(network: "nn.Module", *, device: "torch.device | str", precision: Precision) -> Forward:
    """A network's inference on a device as it is: whatever layers a member has must stay what they were."""
    import torch

    device = torch.device(device)
    in_bfloat16 = uses_bfloat16(precision, device)
    network = network.eval().to(device)

    @torch.inference_mode()
    def infer(windows: "Tensor") -> "Tensor":
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bfloat16):
            outputs = network(windows.to(device))
        logits: Tensor = outputs[0] if isinstance(outputs, list | tuple) else outputs
        return logits.float()

    return infer
