"""A network as a program: TorchScript (.pt), or what torch.export saved (.pt2).

A program is code. torch runs it without Python, but a file from somebody you do not trust should not be run at all; `sha256` pins
the one you mean.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from atlas_ray.exceptions import CheckpointError
from atlas_ray.organs import Organs
from atlas_ray.schema import IntTriple, Triple
from atlas_ray.segmentation.members.given import GivenMember
from atlas_ray.segmentation.members.labels import numbered, outputs_of, require_outputs
from atlas_ray.segmentation.members.loaded import Activation, Forward, LoadedMember, Sliding
from atlas_ray.segmentation.members.scan import CTWindow, Intensity, place_scan
from atlas_ray.segmentation.members.weights import identity, require_file
from atlas_ray.segmentation.precision import Precision
from atlas_ray.segmentation.windows import Spread, Weighting

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Program(GivenMember):
    """A saved program that takes windows [B, 1, *window] and gives outputs [B, C, *window].

    Args:
        labels: names of its outputs in order; without, `organs` speaks of numbers from 0 on.
        activation: what makes its outputs probabilities; "none" where they are.
        spacing: mm, in its axes; None takes the campaign's.
        orientation: of its axes.
        intensity: what HU become.
        window, overlap, batch, spread, weighting: of the sliding windows. An exported program usually takes one batch size only.
    """

    member: Literal["torchscript", "exported_program"]
    labels: tuple[str, ...] = ()
    activation: Activation = "sigmoid"
    spacing: Triple | None = None
    orientation: str = Field(default="RAS", pattern=r"^[LRAPIS]{3}$")
    intensity: Intensity = CTWindow()
    window: IntTriple = (96, 96, 96)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    batch: PositiveInt = 1
    spread: Spread = "monai"
    weighting: Weighting = "gaussian"

    def identity(self, data_root: str | None) -> str:
        """sha256 of the program and the settings. Raises CheckpointError where the file is missing."""
        return self.require(identity((self.located(data_root),), self))

    def needs_original(self, spacing: Triple) -> bool:
        """Whether it wants the CT at its own spacing rather than at the campaign's."""
        return self.spacing not in (None, spacing)

    def load(self, organs: Organs, *, data_root: str | None, device: "torch.device | str", precision: Precision) -> LoadedMember:
        """Raises CheckpointError: no such program, one that does not take these windows, or outputs that it does not have."""
        import torch

        path = self.located(data_root)
        require_file(path)
        try:
            program = _script(path, device) if self.member == "torchscript" else _export(path, device)
            made = program(torch.zeros(self.batch, 1, *self.window, device=device))
        except Exception as error:  # whatever torch, or the program itself, raises
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"{path} is no {self.member} that takes windows [{self.batch}, 1, {self.window}]: {reason}"
            ) from error
        if made.shape[0] != self.batch or tuple(made.shape[2:]) != self.window:
            raise CheckpointError(
                f"{path} gives {tuple(made.shape)} for windows of {self.window}; outputs of the same size are needed"
            )
        labels = numbered(self.labels) if self.labels else {f"output {c}": c for c in range(made.shape[1])}
        outputs_K = outputs_of(labels, self.organs, organs, where=self.title)
        require_outputs(outputs_K, made.shape[1], where=self.title)
        return LoadedMember(
            name=self.name,
            forward=_filled(program, self.batch),
            outputs_K=outputs_K,
            activation=self.activation,
            sliding=Sliding(self.window, self.overlap, self.batch, self.spread, self.weighting),
            place=partial(place_scan, orientation=self.orientation, spacing=self.spacing, intensity=self.intensity),
        )


def _script(path: Any, device: "torch.device | str") -> Forward:
    import warnings

    from torch import jit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript as a whole; people still have such files
        program: Any = jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    program.eval()
    return lambda windows: program(windows.to(device)).float()


def _export(path: Any, device: "torch.device | str") -> Forward:
    import torch

    program: Any = torch.export.load(str(path)).module().to(device)
    return lambda windows: program(windows.to(device)).float()


def _filled(program: Forward, batch: int) -> Forward:
    """A program may take one batch size only: a smaller batch is filled up with zeros."""
    from torch.nn import functional

    def forward(windows: "Tensor") -> "Tensor":
        missing = batch - len(windows)
        return program(functional.pad(windows, (0,) * 9 + (missing,)) if missing else windows)[: len(windows)]

    return forward
