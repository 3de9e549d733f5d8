"""The prediction stream: Ray Data reads, predicts and writes one case after the other, with bounded memory.

    read (CPU tasks) -> ensemble + attention (actors, GPU if there) -> write (CPU tasks) -> small result rows to the driver

Keys of a row, in the order they appear (one row, one case, one block):

    case_id       str
    case          str       the Case as JSON
    image         int16     [X, Y, Z] CT at the networks' spacing, RAS; None in an error row
    shape, affine, header   the image's own grid (tuple, float64 [4, 4], NIfTI header bytes or b"")
    files         dict      relative path -> finished bytes of the prediction folder; None in an error row
    error         str       "" or why the case was set aside
    seconds       float     time in the actor
    peak_mb       float     peak resident memory of the actor's process

A bad case becomes an error row; it never ends the stream. A case that kills its process is started `max_attempts` times and then
set aside: Ray Data would retry it for ever, so every start leaves a marker file first.
"""

import logging
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from atlas_ray.attention.scoring import case_scores, find_components, organ_scores, quantized_heat, rank_components, without_small
from atlas_ray.config import Campaign
from atlas_ray.data.preprocess import to_network_grid
from atlas_ray.exceptions import AtlasError, CaseError
from atlas_ray.organs import LabelMap
from atlas_ray.records import AttentionComponent, Case, OrganScores, Quarantined
from atlas_ray.schema import IntTriple, Triple
from atlas_ray.segmentation.checkpoints import load_network
from atlas_ray.segmentation.inference import plain_forward, predict_ensemble
from atlas_ray.segmentation.pseudo_labels import clean_label_map, label_map, native_slabs, support
from atlas_ray.volume import Volume, header_bytes, header_from_bytes, nifti_bytes, read_volume, reorient
from atlas_ray.workspace import (
    Workspace,
    architecture_label_in,
    attention_in,
    components_in,
    file_sha256,
    heat_in,
    new_folder,
    pseudo_label_in,
    scores_in,
    write_atomically,
)

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Row = dict[str, Any]
GIB = 2**30


@dataclass(frozen=True, slots=True)
class PredictionSummary:
    """What a run of the stream did."""

    predicted: int
    skipped: int
    failed: tuple[Quarantined, ...]
    peak_mb: float


def predict_cases(
    campaign: Campaign, round_index: int, cases: Sequence[Case], *, progress: Callable[[Row], None] = lambda row: None
) -> PredictionSummary:
    """Predict every case that is not predicted yet by this round's checkpoints.

    Args:
        cases: which; finished ones are passed over.
        progress: called with every small result row.

    Raises:
        AtlasError: more than `max_failed_fraction` of the cases failed; the others are finished all the same.
    """
    workspace = campaign.open_workspace()
    paths = {name: workspace.checkpoint(round_index, name) for name in campaign.architecture_names}
    shas = {name: _sha256(path, round_index) for name, path in paths.items()}
    todo = [case for case in cases if not _finished(workspace, round_index, case.case_id, shas)]
    failed: list[Quarantined] = []
    peak_mb = 0.0
    for row in _stream(campaign, round_index, todo) if todo else ():
        progress(row)
        peak_mb = max(peak_mb, row["peak_mb"])
        if row["error"]:
            failed.append(Quarantined(case_id=row["case_id"], step=f"predict-{round_index:03d}", reason=row["error"]))
    if failed:
        workspace.add_to_quarantine(*failed)
    if len(failed) > campaign.cluster.max_failed_fraction * len(cases):
        allowed = campaign.cluster.max_failed_fraction
        raise AtlasError(
            f"{len(failed)} of {len(cases)} cases failed, {allowed:.0%} are allowed; reasons in {workspace.quarantine}"
        )
    return PredictionSummary(len(todo) - len(failed), len(cases) - len(todo), tuple(failed), peak_mb)


def _sha256(path: Path, round_index: int) -> str:
    if not path.exists():
        raise AtlasError(f"checkpoint {path} is missing; run `python -m jobs.train CONFIG --round {round_index}` first")
    return file_sha256(path)


def _finished(workspace: Workspace, round_index: int, case_id: str, shas: dict[str, str]) -> bool:
    """Predicted, and by these very weights."""
    if not workspace.scores(round_index, case_id).exists():
        return False
    return workspace.case_scores(round_index, case_id).checkpoints == shas


def _stream(campaign: Campaign, round_index: int, cases: Sequence[Case]) -> Iterator[Row]:
    import ray.data

    cluster = campaign.cluster
    context = ray.data.DataContext.get_current()
    context.wait_for_min_actors_s = 600  # without a free GPU for ten minutes, say so instead of waiting for ever
    context.execution_no_progress_timeout_s = 3600
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context.enable_progress_bars = False
    items = [{"case_id": case.case_id, "case": case.model_dump_json()} for case in cases]
    plan = campaign.model_dump_json()
    # Different CPU requests keep Ray Data from fusing the three operators into one process (reference: ray.md 0.6).
    rows = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map(
            read_case,
            fn_kwargs={"campaign_json": plan, "round_index": round_index},
            num_cpus=0.5,
            memory=cluster.read_memory_gb * GIB,
        )
        .map(
            Ensemble,
            fn_constructor_kwargs={"campaign_json": plan, "round_index": round_index},
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=cluster.actors, max_tasks_in_flight_per_actor=2),
            num_cpus=1,
            num_gpus=cluster.gpus_per_actor if cluster.use_gpu else 0,
        )
        .map(write_case, fn_kwargs={"campaign_json": plan, "round_index": round_index}, num_cpus=0.25)
    )
    yield from rows.iter_rows()


# --- read -----------------------------------------------------------------------------------------------------------


def read_case(row: Row, *, campaign_json: str, round_index: int) -> Row:
    """Decode one CT and bring it to the networks' spacing. Never raises for a bad case."""
    campaign = Campaign.model_validate_json(campaign_json)
    case = Case.model_validate_json(row["case"])
    empty: Row = {"image": None, "shape": None, "affine": None, "header": b"", "error": ""}
    step = f"read-{round_index:03d}"
    if refusal := _claim(campaign, step, case.case_id):
        return {**row, **empty, "error": refusal}
    try:
        image = read_volume(case.image, series_uid=case.series_uid)
        if image.shape != case.shape:
            raise CaseError(f"{case.image} has shape {image.shape}, at ingest it had {case.shape}; run ingest again")
        network = to_network_grid(image, campaign.preprocessing)
    except CaseError as error:
        return {**row, **empty, "error": str(error)}
    finally:
        _release(campaign, step, case.case_id)
    return {
        **row,
        **empty,
        "image": network.voxels,
        "shape": np.array(image.shape),
        "affine": image.affine,
        "header": header_bytes(image),
    }


def _claim(campaign: Campaign, step: str, case_id: str) -> str:
    """Note one more start of this case; the reason for refusing it, or ""."""
    workspace, limit = campaign.open_workspace(), campaign.cluster.max_attempts
    for number in range(1, limit + 1):
        marker = workspace.attempt(step, case_id, number)
        marker.parent.mkdir(parents=True, exist_ok=True)
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            continue
        return ""
    return f"started {limit} times without a result: it kills its process (out of memory, or a crash in a decoder)"


def _release(campaign: Campaign, step: str, case_id: str) -> None:
    """Clear a case's ledger of one step: the process has outlived it, whatever came of the case."""
    workspace = campaign.open_workspace()
    for number in range(1, campaign.cluster.max_attempts + 1):
        workspace.attempt(step, case_id, number).unlink(missing_ok=True)


def forget_attempts(campaign: Campaign, round_index: int, case_id: str) -> None:
    """Clear a case's ledger: when it is done, or when someone asks to try it again."""
    for step in ("read", "predict"):
        _release(campaign, f"{step}-{round_index:03d}", case_id)


# --- ensemble and attention -----------------------------------------------------------------------------------------


class Ensemble:
    """Actor: holds every architecture's network and turns one CT into one finished prediction."""

    def __init__(self, campaign_json: str, round_index: int) -> None:
        import torch

        self.campaign = Campaign.model_validate_json(campaign_json)
        self.round = round_index
        self.organs = self.campaign.load_organs()
        self.device = torch.device("cuda" if self.campaign.cluster.use_gpu else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(self.campaign.cluster.cpus_per_actor)
        workspace = self.campaign.open_workspace()
        self.members, self.checkpoints = {}, {}
        for name in self.campaign.architecture_names:
            network, _, sha256, _ = load_network(workspace.checkpoint(round_index, name), self.organs.names)
            self.members[name] = plain_forward(network.to(self.device).eval(), self.campaign.inference, self.device)
            self.checkpoints[name] = sha256

    def __call__(self, row: Row) -> Row:
        """Predict one row; its image is dropped, its finished files are added."""
        import torch

        began = time.monotonic()
        result = {
            "case_id": row["case_id"],
            "case": row["case"],
            "files": None,
            "error": row["error"],
            "seconds": 0.0,
            "peak_mb": 0.0,
        }
        if row["error"]:
            return result
        if refusal := _claim(self.campaign, f"predict-{self.round:03d}", row["case_id"]):
            return {**result, "error": refusal}
        case = Case.model_validate_json(row["case"])
        grid = Volume(_no_voxels(row["shape"]), np.array(row["affine"]), header_from_bytes(row["header"]))
        try:
            files = self.predict(case, np.array(row["image"]), grid, began)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            _release(self.campaign, f"predict-{self.round:03d}", case.case_id)
            return {**result, "error": f"out of GPU memory: {str(error).splitlines()[0]}"}
        return {**result, "files": files, "seconds": time.monotonic() - began, "peak_mb": _peak_mb()}

    def predict(self, case: Case, image: npt.NDArray[np.int16], grid: Volume, began: float) -> dict[str, bytes]:
        """Every file of one prediction, by its path in the prediction folder; scores.json last."""
        import torch

        campaign, organs = self.campaign, self.organs
        ras_shape = reorient(grid).shape
        with torch.inference_mode():
            prediction = predict_ensemble(
                self.members,
                image,
                campaign.inference,
                window_hu=campaign.preprocessing.window_hu,
                spacing=campaign.preprocessing.spacing,
                device=self.device,
            )
            stored = prediction.bytes_MKXYZ
            native = self._on_native_grid(stored, support(stored, campaign.pseudo_labels), case, ras_shape, _ras_spacing(grid))
        to_image = _Turner(grid, ras_shape)
        label = to_image(clean_label_map(native.label, organs) if campaign.pseudo_labels.largest_component else native.label)
        folder = Path()
        files = {str(pseudo_label_in(folder)): nifti_bytes(grid.with_voxels(label))}
        for name, architecture_label in zip(campaign.architecture_names, native.architecture_labels, strict=True):
            files[str(architecture_label_in(folder, name))] = nifti_bytes(grid.with_voxels(to_image(architecture_label)))
        components: list[AttentionComponent] = []
        scores: list[OrganScores] = []
        strongest = np.zeros(grid.shape, np.uint8)
        for channel, name in enumerate(organs.names):
            bits, heat = (to_image(dense) for dense in native.attention[channel].dense())
            bits, heat = without_small(bits, heat, spacing=grid.spacing, min_volume_mm3=campaign.attention.min_component_mm3)
            found = find_components(
                bits,
                heat,
                organ=name,
                criterion_names=campaign.attention.criterion_names,
                spacing=grid.spacing,
            )
            components += found
            stored_heat = quantized_heat(heat)
            np.maximum(strongest, stored_heat, out=strongest)
            files[str(attention_in(folder, name))] = nifti_bytes(grid.with_voxels(bits))
            scores.append(
                organ_scores(
                    bits,
                    heat,
                    organ=name,
                    spacing=grid.spacing,
                    predicted_voxels=int(organs.mask(label, name).sum()),
                    components=len(found),
                    entropy=native.entropy[channel],
                )
            )
        files[str(heat_in(folder))] = nifti_bytes(grid.with_voxels(strongest))
        lines = (component.model_dump_json() + "\n" for component in rank_components(components))
        files[str(components_in(folder))] = "".join(lines).encode()
        record = case_scores(
            case.case_id,
            scores,
            round_index=self.round,
            checkpoints=self.checkpoints,
            attention_mode=campaign.attention.mode,
            seconds=time.monotonic() - began,
            peak_memory_mb=_peak_mb(),
        )
        files[str(scores_in(folder))] = record.model_dump_json(indent=2).encode()
        return files

    def _on_native_grid(
        self, stored: npt.NDArray[np.uint8], counted: npt.NDArray[np.uint32], case: Case, ras_shape: IntTriple, spacing: Triple
    ) -> "_Native":
        """Labels and attention on the image's own grid (in RAS), slab by slab."""
        import torch

        campaign, organs = self.campaign, self.organs
        bits_K111 = np.arange(len(organs), dtype=np.uint32)[:, None, None, None]
        native = _Native.empty(ras_shape, len(organs), len(self.members))
        threshold = campaign.pseudo_labels.threshold
        halo = campaign.attention.halo(spacing)[2]
        for slab in native_slabs(stored, counted, ras_shape, halo=halo):
            probabilities_MKXYZ = torch.from_numpy(slab.bytes_MKXYZ).to(self.device).float() / 255
            support_MKXYZ = torch.from_numpy((slab.support_MXYZ[:, None] >> bits_K111 & 1).astype(bool)).to(self.device)
            masked = probabilities_MKXYZ * support_MKXYZ
            inner = slab.inner(masked)
            z = slice(slab.start, slab.stop)
            mean_KXYZ = inner.mean(dim=0)
            native.label[..., z] = label_map(mean_KXYZ, organs, threshold)
            for m, architecture_label in enumerate(native.architecture_labels):
                architecture_label[..., z] = label_map(inner[m], organs, threshold)
            native.add_entropy(slab.inner(probabilities_MKXYZ).mean(dim=0))
            maps = campaign.attention(
                probabilities_MKXYZ,
                support_MKXYZ=support_MKXYZ,
                organs=organs,
                spacing=spacing,
                skip=frozenset(case.labeled_organs) if case.split == "train" else frozenset(),  # a holdout is watched whole
            )
            native.add_attention(slab.start, slab.inner(maps.bits_KXYZ), slab.inner(maps.heat_KXYZ))
        return native


@dataclass(slots=True)
class _Sparse:
    """One organ's attention as it grows slab by slab: only the voxels that have any (0.7 to 7 % of a CT)."""

    shape: IntTriple
    where: list[npt.NDArray[np.intp]]
    bits: list[npt.NDArray[np.uint8]]
    heat: list[npt.NDArray[np.float32]]

    def dense(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        bits, heat = np.zeros(self.shape, np.uint8), np.zeros(self.shape, np.float32)
        for where, some_bits, some_heat in zip(self.where, self.bits, self.heat, strict=True):
            bits.reshape(-1)[where] = some_bits
            heat.reshape(-1)[where] = some_heat
        return bits, heat


@dataclass(slots=True)
class _Native:
    """What accumulates on the image's own grid, in RAS."""

    label: LabelMap
    architecture_labels: list[LabelMap]
    attention: list[_Sparse]
    entropy_sum: npt.NDArray[np.float64]
    entropy_count: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, shape: IntTriple, organs: int, architectures: int) -> "_Native":
        return cls(
            np.zeros(shape, np.uint8),
            [np.zeros(shape, np.uint8) for _ in range(architectures)],
            [_Sparse(shape, [], [], []) for _ in range(organs)],
            np.zeros(organs),
            np.zeros(organs, np.int64),
        )

    def add_attention(self, start: int, bits_KXYZ: "torch.Tensor", heat_KXYZ: "torch.Tensor") -> None:
        for sparse, bits, heat in zip(self.attention, bits_KXYZ.cpu().numpy(), heat_KXYZ.cpu().numpy(), strict=True):
            x, y, z = np.nonzero(bits)
            if len(x):
                sparse.where.append(np.ravel_multi_index((x, y, z + start), sparse.shape))
                sparse.bits.append(bits[x, y, z])
                sparse.heat.append(heat[x, y, z])

    def add_entropy(self, mean_KXYZ: "torch.Tensor") -> None:
        """Binary entropy of the mean probability, summed where the organ is at least possible (p > 0.05)."""
        possible = mean_KXYZ > 0.05
        p = mean_KXYZ.clamp(1e-6, 1 - 1e-6)
        entropy = -(p * p.log() + (1 - p) * (1 - p).log()) * possible
        self.entropy_sum += entropy.sum(dim=(1, 2, 3)).cpu().numpy()
        self.entropy_count += possible.sum(dim=(1, 2, 3)).cpu().numpy()

    @property
    def entropy(self) -> list[float]:
        return [float(v) for v in self.entropy_sum / np.maximum(1, self.entropy_count)]


class _Turner:
    """Turns arrays from RAS back to the image's own axis order and directions."""

    def __init__(self, grid: Volume, ras_shape: IntTriple) -> None:
        self._affine = reorient(grid).affine
        self._orientation = grid.orientation
        self._shape = ras_shape

    def __call__(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(reorient(Volume(voxels, self._affine), self._orientation).voxels)


def _no_voxels(shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """A grid needs a shape, not memory: one byte seen as a whole volume."""
    return np.broadcast_to(np.uint8(0), tuple(int(n) for n in shape))


def _ras_spacing(grid: Volume) -> Triple:
    return reorient(grid).spacing


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


# --- write ----------------------------------------------------------------------------------------------------------


def write_case(row: Row, *, campaign_json: str, round_index: int) -> Row:
    """Put one prediction in its place, whole; what goes to the driver is small."""
    files = row.pop("files")
    row.pop("case")
    if row["error"]:
        return row
    campaign = Campaign.model_validate_json(campaign_json)
    final = campaign.open_workspace().prediction(round_index, row["case_id"])
    with new_folder(final) as partial:
        for name, data in files.items():
            write_atomically(partial / name, bytes(data))
    forget_attempts(campaign, round_index, row["case_id"])
    return row
