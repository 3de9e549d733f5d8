"""The prediction stream: Ray Data reads, predicts, finishes one case after the other, with bounded memory.

    read (CPU tasks) -> ensemble (actors, GPU if there) -> finish (CPU tasks) -> small result rows to the driver

The three scale apart: readers and finishers are CPU tasks anywhere in the cluster, an actor does nothing but run its networks.

Small cases go through several in a block, large ones alone (`cases_per_block`); every function here sees one row, one case, at a
time.

Keys of a row, in the order they appear:

    case_id       str
    case          str       the Case as JSON
    claim         int       the job's, on the workspace (lock.py)
    image         int16     [X, Y, Z] CT at the networks' spacing, RAS; None in an error row
    original      int16     the same at its own spacing; only where a member has a grid of its own
    shape, affine, header   the image's own grid (tuple, float64 [4, 4], NIfTI header bytes or b"")
    error         str       "" or why the case was set aside
    ends_stream   bool      whether the reason is nothing of the case's
    stages        str       laps so far, as JSON (timing.Stopwatch)
    checkpoints   str       architecture or member -> sha256 of its weights, as JSON
    absent        str       member -> organs that it does not know, as JSON
    packed_NAME   bytes     probabilities of one of them (segmentation.packed_probabilities); None in an error row
    candidates_image        int16   the image once more, behind the ensemble; only where attention is calibrated
    actor_peak_mb, finish_peak_mb   float   peak resident memory of the process that did it

A bad case becomes an error row; it never ends the stream. A case that kills its process is started `max_attempts` times and then
set aside: Ray Data would retry it for ever, so every start leaves a marker file first. The marker says in which job and on which
node; a start that ended because one of these did counts a third. Cases with a marker come last, so that those nobody suspects are
done before.

What may pass by itself (patience.py) is tried again for `patience_s`. A workspace that cannot be written for longer ends the
stream: that is no case's fault.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atlas_ray.attention.criteria import CalibratedAttention
from atlas_ray.cluster.calibrated import detector_of
from atlas_ray.cluster.finishing import finish
from atlas_ray.cluster.identity import Identity
from atlas_ray.cluster.metrics import StreamMetrics
from atlas_ray.cluster.session import runs_in_process
from atlas_ray.cluster.timing import StageTimes, Stopwatch, peak_mb
from atlas_ray.config import Campaign
from atlas_ray.data.preprocess import to_network_grid
from atlas_ray.exceptions import AtlasError, CaseError, WorkspaceError
from atlas_ray.lock import check_claim, check_lock, held_claim
from atlas_ray.patience import is_full, patiently
from atlas_ray.progress import Advance, not_shown
from atlas_ray.records import Case, Quarantined
from atlas_ray.schema import IntTriple
from atlas_ray.segmentation.checkpoints import load_network
from atlas_ray.segmentation.inference import predict_ensemble
from atlas_ray.segmentation.members.loaded import LoadedMember
from atlas_ray.segmentation.memory import give_back
from atlas_ray.segmentation.packed_probabilities import PackedProbabilities, pack
from atlas_ray.segmentation.rungs import Rung, Rungs
from atlas_ray.storage import PARTIALS, create, is_whole, new_folder, remove
from atlas_ray.tables import SCHEMAS, add_to_tables, result_keys, save_table
from atlas_ray.volume import Volume, header_bytes, header_from_bytes, read_volume, reorient
from atlas_ray.workspace import Workspace, file_sha256

log = logging.getLogger(__name__)
Row = dict[str, Any]
GIB = 2**30
TABLED_TOGETHER = 1000  # finished cases that wait for their rows in the round's tables
FORGIVEN = 3  # starts that ended with their node or their job count as one that a case is to blame for
MOST_TOGETHER = 16  # cases in a block
BLOCK_VOXELS = 2**22  # of the largest case, times the cases of a block
FEWEST_BLOCKS = 32  # of a stream, so that all actors and tasks have work
FRUITLESS = 3  # streams in a row that the cluster ends before a case is through, until the job gives up
STEPS = ("read", "predict", "finish")


@dataclass(frozen=True, slots=True)
class PredictionSummary:
    """What a run of the stream did.

    Args:
        predicted, skipped, failed: cases done now, done before, set aside.
        times: where the time went.
        actor_peak_mb, finish_peak_mb: highest resident memory of any actor, and of any task that finished a case.
    """

    predicted: int
    skipped: int
    failed: tuple[Quarantined, ...]
    times: StageTimes
    actor_peak_mb: float
    finish_peak_mb: float


def predict_cases(
    campaign: Campaign, round_index: int, cases: Sequence[Case], *, progress: Advance = not_shown
) -> PredictionSummary:
    """Predict every case that has no result of this very image, these weights, parameters and code.

    Args:
        cases: which; finished ones are passed over, and those that failed before on the same inputs.
        progress: told of every case that leaves the stream, and of those done before.

    Raises:
        CheckpointError: the files of a member are missing, or not the ones that were asked for.
        AtlasError: more than `max_failed_fraction` of the cases failed; the others are finished all the same.
    """
    workspace, patience_s = campaign.open_workspace(), campaign.cluster.patience_s
    work = plan_predictions(campaign, round_index, cases)
    by_id = {case.case_id: case for case in work.todo}
    failed = list(work.failed)
    done: list[str] = []
    times, actor_peak_mb, finish_peak_mb = StageTimes(), 0.0, 0.0
    metrics = StreamMetrics(campaign.name, round_index, len(work.todo))
    for _ in range(len(cases) - len(work.todo)):
        progress(done_before=True)
    claim = held_claim()
    items = [{"case_id": case.case_id, "case": case.model_dump_json(), "claim": claim} for case in work.todo]
    for row in stream(campaign, round_index, items, finish_case) if items else ():
        check_lock()
        times.add(row["stages"])
        metrics.count(failed=bool(row["error"]), stages=row["stages"], busy=times.busy("networks"))
        progress(failed=bool(row["error"]))
        actor_peak_mb = max(actor_peak_mb, row["actor_peak_mb"])
        finish_peak_mb = max(finish_peak_mb, row["finish_peak_mb"])
        if row["error"]:
            case = by_id[row["case_id"]]
            set_aside = {"step": step_of(round_index), "path": case.image, "key": work.identity.key(case)}
            failed.append(Quarantined(case_id=case.case_id, reason=row["error"], **set_aside))
            patiently(partial(workspace.add_to_quarantine, failed[-1]), patience_s)
            continue
        done.append(row["case_id"])
        if len(done) % TABLED_TOGETHER == 0:
            patiently(partial(add_to_tables, workspace, round_index, done[-TABLED_TOGETHER:]), patience_s)
    for kind in SCHEMAS:
        patiently(partial(save_table, workspace, round_index, kind), patience_s)
    patiently(partial(workspace.take_from_quarantine, step_of(round_index), {*done, *work.finished}), patience_s)
    patiently(partial(clear_away, workspace, round_index), patience_s)
    if len(failed) > campaign.cluster.max_failed_fraction * len(cases):
        allowed = campaign.cluster.max_failed_fraction
        raise AtlasError(
            f"{len(failed)} of {len(cases)} cases failed, {allowed:.0%} are allowed; reasons in {workspace.quarantine}; "
            "once their cause is gone, --retry-failed gives them another try"
        )
    return PredictionSummary(len(done), len(work.finished), tuple(failed), times, actor_peak_mb, finish_peak_mb)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What there is to do in a round, and what is not.

    Args:
        todo: cases without a result, or with one of another image, other weights, parameters or code; last those that were started
            before and did not end.
        finished: ids of cases with the result wanted.
        failed: cases that were set aside before, on the very same inputs; `retry_failed` forgets them.
    """

    identity: Identity
    todo: tuple[Case, ...]
    finished: tuple[str, ...]
    failed: tuple[Quarantined, ...]


def plan_predictions(campaign: Campaign, round_index: int, cases: Sequence[Case]) -> Predictions:
    """Hold the results that are there against what is wanted.

    Raises:
        AtlasError: a missing checkpoint.
        CheckpointError: the files of a member are missing, or not the ones that were asked for.
    """
    workspace = campaign.open_workspace()
    identity = Identity.of(campaign, checkpoint_shas(campaign, round_index), detector=detector_of(campaign, round_index).sha256)
    keys = result_keys(workspace, round_index)
    set_aside = workspace.set_aside(step_of(round_index))
    todo, finished, failed = [], [], []
    for case in cases:
        earlier = set_aside.get(case.case_id)
        if identity.holds(keys.get(case.case_id, ""), case):
            finished.append(case.case_id)
        elif earlier is not None and identity.holds(earlier.key, case):
            failed.append(earlier)
        else:
            todo.append(case)
    suspects = {marker.stem for marker in _markers(workspace, round_index)}
    todo.sort(key=lambda case: case.case_id in suspects)
    return Predictions(identity, tuple(todo), tuple(finished), tuple(failed))


def step_of(round_index: int) -> str:
    """Name of the prediction of a round in the quarantine list."""
    return f"predict-{round_index:03d}"


def retry_failed(campaign: Campaign, round_index: int) -> int:
    """Forget every failure and every start without a result of this round's prediction. Returns how many cases were set aside."""
    workspace = campaign.open_workspace()
    set_aside = workspace.set_aside(step_of(round_index))
    for step in STEPS:
        remove(workspace.attempts(f"{step}-{round_index:03d}"))
    return workspace.take_from_quarantine(step_of(round_index), set_aside)


def clear_away(workspace: Workspace, round_index: int) -> None:
    """Remove what processes that died left of this round's prediction. Only for the one who has the workspace, and no stream."""
    for folder in workspace.predictions(round_index).glob(PARTIALS):
        remove(folder)
    for marker in _markers(workspace, round_index):
        if workspace.scores(round_index, marker.stem).exists():
            remove(marker)


def _markers(workspace: Workspace, round_index: int) -> list[Path]:
    """Of starts that have not ended, "CASE.NUMBER" each."""
    folders = [workspace.attempts(f"{step}-{round_index:03d}") for step in STEPS]
    return [marker for folder in folders if folder.exists() for marker in folder.iterdir()]


def checkpoint_shas(campaign: Campaign, round_index: int) -> dict[str, str]:
    """Whose weights predict in a round: architecture or member -> sha256.

    Raises:
        AtlasError: a checkpoint is missing.
        CheckpointError: the files of a member are missing, or not the ones that were asked for.
    """
    workspace = campaign.open_workspace()
    trained = {name: _sha256(workspace.checkpoint(round_index, name), round_index) for name in campaign.architecture_names}
    return trained | {member.name: member.identity(campaign.data_root) for member in campaign.members}


def _sha256(path: Path, round_index: int) -> str:
    if not path.exists():
        raise AtlasError(f"checkpoint {path} is missing; run `python -m jobs.train CONFIG --round {round_index}` first")
    return file_sha256(path)


def check_members(campaign: Campaign) -> None:
    """Load every member once, here and on the CPU: one that does not fit ends the step with its reason, not an actor's traceback.

    Raises:
        CheckpointError: files, keys or organs that do not fit.
    """
    organs = campaign.load_organs()
    for member in campaign.members:
        member.load(organs, data_root=campaign.data_root, device="cpu", precision="float32")


def stream(campaign: Campaign, round_index: int, items: Sequence[Row], end: Callable[..., Row]) -> Iterator[Row]:
    """Predict cases with a round's checkpoints and do something with the probabilities.

    Args:
        items: rows with `case_id` and `case`; what else they hold reaches `end` as it is.
        end: a module's function of (row, campaign_json, round_index) that gives a small row, such as `finish_case`.

    Raises:
        CheckpointError: a member does not fit.
        AtlasError: the workspace cannot be written, or the cluster keeps ending the stream; what is finished is kept.
    """
    plan: dict[str, Any] = {"campaign_json": campaign.model_dump_json(), "round_index": round_index}
    if runs_in_process():
        ensemble = Ensemble(**plan)
        yield from (_go_on(end(ensemble(read_case(item, **plan)), **plan)) for item in items)
        return
    check_members(campaign)
    # Ray Data keeps about 10 kB of statistics per block until a stream ends; streams that end keep the driver's memory flat.
    most = campaign.cluster.cases_per_stream * cases_per_block(campaign, items)
    for first in range(0, len(items), most):
        yield from _streams(campaign, plan, items[first : first + most], end)


def cases_per_block(campaign: Campaign, items: Sequence[Row]) -> int:
    """How many cases Ray Data handles as one: a block costs it 20 ms of a processor, which is nothing beside a large CT and more
    than a tiny one's networks take. What is started again after a loss is a block."""
    cases = (Case.model_validate_json(item["case"]) for item in items)
    voxel_mm3 = math.prod(campaign.preprocessing.spacing)
    largest = max(math.prod(case.shape) * max(1.0, case.voxel_volume_mm3 / voxel_mm3) for case in cases)
    return max(1, min(MOST_TOGETHER, int(BLOCK_VOXELS / largest), len(items) // FEWEST_BLOCKS))


def _go_on(row: Row) -> Row:
    """The row, unless it says that the stream cannot."""
    if row.pop("ends_stream", False):
        raise AtlasError(f"{row['error']}; what is finished is kept, run the same command to go on")
    return row


def _streams(campaign: Campaign, plan: dict[str, Any], items: Sequence[Row], end: Callable[..., Row]) -> Iterator[Row]:
    """One stream, and another one for what is left whenever the cluster ends it: too many nodes gone at once, objects lost."""
    from ray import exceptions as rays

    lost = (rays.RayActorError, rays.WorkerCrashedError, rays.ObjectLostError, rays.NodeDiedError, rays.RaySystemError)
    left, fruitless = {item["case_id"]: item for item in items}, 0
    while left:
        try:
            for row in _ray_stream(campaign, plan, tuple(left.values()), end):
                left.pop(row["case_id"], None)
                fruitless = 0
                yield _go_on(row)
            return
        except (*lost, rays.OutOfDiskError, rays.ObjectStoreFullError) as error:
            fruitless += 1
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if fruitless == FRUITLESS:
                raise AtlasError(
                    f"the cluster ended {FRUITLESS} streams in a row before a case was through: {reason}; "
                    "what is finished is kept, run the same command to go on"
                ) from error
            log.warning("the cluster ended the stream (%s); another one goes on with the %d cases left", reason, len(left))


def _ray_stream(campaign: Campaign, plan: dict[str, Any], items: Sequence[Row], end: Callable[..., Row]) -> Iterator[Row]:
    import ray.data

    cluster = campaign.cluster
    blocks = math.ceil(len(items) / cases_per_block(campaign, items))
    context = ray.data.DataContext.get_current()
    context.wait_for_min_actors_s = 600  # without a free GPU for ten minutes, say so instead of waiting for ever
    context.execution_no_progress_timeout_s = 3600
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context.enable_progress_bars = False
    # Different CPU requests keep Ray Data from fusing the three operators into one process (reference: ray.md 0.6).
    rows = (
        ray.data.from_items(list(items), override_num_blocks=blocks)
        .map(
            read_case,
            fn_kwargs=plan,
            num_cpus=0.5,
            memory=cluster.task_memory_gb * GIB,
        )
        .map(
            Ensemble,
            fn_constructor_kwargs=plan,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=cluster.actors, max_tasks_in_flight_per_actor=2),
            num_cpus=1,
            num_gpus=cluster.gpus_per_actor if cluster.use_gpu else 0,
        )
        .map(
            end,
            fn_kwargs=plan,
            num_cpus=1,
            num_gpus=cluster.gpus_per_task,
            memory=cluster.task_memory_gb * GIB,
        )
    )
    yield from rows.iter_rows()


# --- read -----------------------------------------------------------------------------------------------------------


def read_case(row: Row, *, campaign_json: str, round_index: int) -> Row:
    """Decode one CT and bring it to the networks' spacing. Never raises for a bad case."""
    campaign = Campaign.model_validate_json(campaign_json)
    case = Case.model_validate_json(row["case"])
    empty: Row = {"image": None, "shape": None, "affine": None, "header": b"", "error": "", "ends_stream": False, "stages": "[]"}
    if has_originals := _has_originals(campaign):
        empty["original"] = None
    watch = Stopwatch()
    step = f"read-{round_index:03d}"
    try:
        if refusal := _claim(campaign, step, case.case_id):
            return {**row, **empty, "error": refusal}
    except OSError as error:
        return {**row, **empty, **unwritable(campaign, error)}
    try:
        with watch("read"):
            image = patiently(partial(read_volume, case.image, series_uid=case.series_uid), campaign.cluster.patience_s)
        if image.shape != case.shape:
            raise CaseError(f"{case.image} has shape {image.shape}, at ingest it had {case.shape}; run ingest again")
        with watch("resample"):
            network = to_network_grid(image, campaign.preprocessing)
    except CaseError as error:
        return {**row, **empty, "error": str(error)}
    finally:
        _release(campaign, step, case.case_id)
    originals = {"original": _as_int16(reorient(image).voxels)} if has_originals else {}
    return {
        **row,
        **empty,
        **originals,
        "image": network.voxels,
        "shape": np.array(image.shape),
        "affine": image.affine,
        "header": header_bytes(image),
        "stages": watch.record(),
    }


def _has_originals(campaign: Campaign) -> bool:
    return any(member.needs_original(campaign.preprocessing.spacing) for member in campaign.members)


def _as_int16(voxels: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """HU as they are stored, or rounded. C order, so that the row carries them without another copy."""
    if voxels.dtype != np.int16:
        ends = np.iinfo(np.int16)
        voxels = np.clip(np.rint(voxels), ends.min, ends.max).astype(np.int16)
    return np.ascontiguousarray(voxels)


def unwritable(campaign: Campaign, error: OSError) -> Row:
    """What a row says where the workspace cannot be written."""
    what = "is full" if is_full(error) else "cannot be written"
    return {"error": f"{campaign.workspace} {what}: {error}", "ends_stream": True}


def _claim(campaign: Campaign, step: str, case_id: str) -> str:
    """Note one more start of this case; the reason for refusing it, or "". Raises OSError where no marker can be written."""
    workspace, limit = campaign.open_workspace(), campaign.cluster.max_attempts
    here = _whereabouts()
    starts = list[str]()
    for number in range(1, FORGIVEN * limit + 1):
        marker = workspace.attempt(step, case_id, number)
        try:
            patiently(partial(create, marker, here), campaign.cluster.patience_s)
        except FileExistsError:
            starts.append(marker.read_text() if marker.exists() else "")
            if _blame(starts) >= limit:
                break
            continue
        return ""
    return f"started {len(starts)} times without a result: it kills its process (out of memory, or a crash in a decoder)"


def _whereabouts() -> str:
    """Which job this process works for, and on which node."""
    import ray

    if not ray.is_initialized():  # asking Ray for its context would start one
        return f"{os.getpid()} here"
    context = ray.get_runtime_context()
    return f"{context.get_job_id()} {context.get_node_id()}"


def _blame(starts: Sequence[str]) -> int:
    """How many of the starts, as `_whereabouts` told them, ended by themselves; of the others every third counts."""
    import ray

    job, node = _whereabouts().split()
    nodes = {node}
    if ray.is_initialized():
        nodes |= {known["NodeID"] for known in ray.nodes() if known["Alive"]}
    own = sum(start.partition(" ")[0] == job and start.partition(" ")[2] in nodes for start in starts)
    return own + (len(starts) - own) // FORGIVEN


def _release(campaign: Campaign, step: str, case_id: str) -> None:
    """Clear a case's ledger of one step: the process has outlived it, whatever came of the case."""
    workspace = campaign.open_workspace()
    for number in range(1, FORGIVEN * campaign.cluster.max_attempts + 1):
        try:
            patiently(workspace.attempt(step, case_id, number).unlink, campaign.cluster.patience_s)
        except FileNotFoundError:
            return


def forget_attempts(campaign: Campaign, round_index: int, case_id: str) -> None:
    """Clear a case's ledger: when it is done, or when someone asks to try it again."""
    for step in STEPS:
        _release(campaign, f"{step}-{round_index:03d}", case_id)


# --- ensemble -------------------------------------------------------------------------------------------------------


class Ensemble:
    """Actor: holds every network, trained here or by others, and turns one CT into probabilities, and does nothing else."""

    def __init__(self, campaign_json: str, round_index: int) -> None:
        import torch

        self.campaign = Campaign.model_validate_json(campaign_json)
        self.round = round_index
        organs = self.campaign.load_organs()
        self.device = torch.device("cuda" if self.campaign.cluster.use_gpu else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(self.campaign.cluster.cpus_per_actor)
        self.rungs = Rungs(self.campaign.inference.batch, has_device=self.device.type != "cpu")
        workspace = self.campaign.open_workspace()
        self.members, self.checkpoints = {}, {}
        for name in self.campaign.architecture_names:
            network, _, sha256, _ = load_network(workspace.checkpoint(round_index, name), organs.names)
            prepare = self.campaign.inference.prepare
            self.members[name] = prepare(network.eval(), device=self.device, cache_dir=workspace.compiled)
            self.checkpoints[name] = sha256
        spacing, root = self.campaign.preprocessing.spacing, self.campaign.data_root
        self.others: list[tuple[LoadedMember, Rungs, bool]] = []  # the last: whether it wants the CT at its own spacing
        self.absent: dict[str, tuple[str, ...]] = {}
        for given in self.campaign.members:
            member = given.load(organs, data_root=root, device=self.device, precision=self.campaign.inference.precision)
            rungs = Rungs(member.sliding.batch, has_device=self.device.type != "cpu")
            self.others.append((member, rungs, given.needs_original(spacing)))
            self.checkpoints[given.name] = given.identity(root)
            if unknown := tuple(name for name, some in zip(organs.names, member.outputs_K, strict=True) if not some):
                self.absent[given.name] = unknown

    def __call__(self, row: Row) -> Row:
        """Predict one row; its images are dropped, its packed probabilities are added.

        Candidates of calibrated attention are judged by the CT, too, which goes on to them as `candidates_image`.
        """
        image, original = row.pop("image"), row.pop("original", None)
        packed = {_packed_key(name): None for name in self.checkpoints}
        known = {"checkpoints": json.dumps(self.checkpoints), "absent": json.dumps(self.absent)}
        result = {**row, **known, **packed, "actor_peak_mb": 0.0}
        if isinstance(self.campaign.attention, CalibratedAttention):
            result["candidates_image"] = image
        if row["error"]:
            return result
        step = f"predict-{self.round:03d}"
        try:
            if refusal := _claim(self.campaign, step, row["case_id"]):
                return {**result, "error": refusal}
        except OSError as error:
            return {**result, **unwritable(self.campaign, error)}
        watch = Stopwatch(row["stages"])
        try:
            if self.members:
                with watch("networks"):
                    bytes_MKXYZ = self.rungs.climb_down(image.size, partial(self.predict, np.asarray(image)), clean_up=give_back)
                with watch("pack"):
                    result |= {_packed_key(name): pack(one) for name, one in zip(self.members, bytes_MKXYZ, strict=True)}
                del bytes_MKXYZ
            for member, rungs, wants_original in self.others:
                seen = np.asarray(original if wants_original else image)
                predict = partial(self.predict_member, member, seen, self._ras_grid(row), np.asarray(image).shape)
                with watch("networks"):
                    bytes_KXYZ = rungs.climb_down(seen.size, predict, clean_up=give_back)
                with watch("pack"):
                    result[_packed_key(member.name)] = pack(bytes_KXYZ)
                del bytes_KXYZ
        except MemoryError as error:
            result["error"] = str(error)
        _release(self.campaign, step, row["case_id"])
        return {**result, "stages": watch.record(), "actor_peak_mb": peak_mb()}

    def predict(self, image_XYZ: npt.NDArray[np.int16], rung: Rung) -> npt.NDArray[np.uint8]:
        """bytes_MKXYZ, probabilities of a CT at the networks' spacing."""
        campaign = self.campaign
        return predict_ensemble(
            self.members,
            image_XYZ,
            campaign.inference.model_copy(update={"batch": rung.batch}),
            sums_on_cpu=rung.sums_on_cpu,
            window_hu=campaign.preprocessing.window_hu,
            spacing=campaign.preprocessing.spacing,
            device=self.device,
        ).bytes_MKXYZ

    def predict_member(
        self, member: LoadedMember, image_XYZ: npt.NDArray[np.int16], ras: Volume, shape: IntTriple, rung: Rung
    ) -> npt.NDArray[np.uint8]:
        """bytes_KXYZ of one member at the networks' spacing.

        Args:
            image_XYZ: the CT in RAS on any grid over the extent of `ras`.
            shape: at the networks' spacing.
        """
        edges = [n * edge / own for n, edge, own in zip(ras.shape, ras.spacing, image_XYZ.shape, strict=True)]
        image = Volume(image_XYZ, np.diag([*edges, 1.0]))
        memory_gb = self.campaign.inference.memory_gb
        return member.at_most(rung.batch).predict(
            image, shape, device=self.device, memory_gb=memory_gb, sums_on="cpu" if rung.sums_on_cpu else None
        )

    @staticmethod
    def _ras_grid(row: Row) -> Volume:
        """The image's own grid, turned to RAS, without voxels."""
        return reorient(Volume(_no_voxels(row["shape"]), np.array(row["affine"])))


def _packed_key(architecture: str) -> str:
    """One column each: Arrow holds at most 2 GiB of bytes in a column of a block."""
    return f"packed_{architecture}"


def packed_probabilities(row: Row) -> tuple[dict[str, str], PackedProbabilities, dict[str, tuple[str, ...]]]:
    """Take the probabilities out of a row: member -> sha256 of its weights, what they say, and the organs each knows nothing of."""
    checkpoints = json.loads(row["checkpoints"])
    packed = [row.pop(_packed_key(name)) for name in checkpoints]
    absent = {member: tuple(organs) for member, organs in json.loads(row["absent"]).items()}
    return checkpoints, PackedProbabilities([] if row["error"] else packed), absent


# --- finish ---------------------------------------------------------------------------------------------------------


def finish_case(row: Row, *, campaign_json: str, round_index: int) -> Row:
    """Make labels, attention and scores of the probabilities, and put them in their place, whole."""
    campaign = Campaign.model_validate_json(campaign_json)
    checkpoints, probabilities, absent = packed_probabilities(row)
    detector, image = detector_of(campaign, round_index), row.pop("candidates_image", None)
    case_id, watch = row["case_id"], Stopwatch(row["stages"])
    result = {key: row[key] for key in ("case_id", "error", "ends_stream", "actor_peak_mb")} | {"finish_peak_mb": 0.0}
    if row["error"]:
        return {**result, "stages": watch.record()}
    case, workspace = Case.model_validate_json(row["case"]), campaign.open_workspace()
    grid = Volume(_no_voxels(row["shape"]), np.array(row["affine"]), header_from_bytes(row["header"]))
    identity = Identity.of(campaign, checkpoints, detector=detector.sha256)

    def write() -> None:
        if _is_there(workspace, round_index, case, identity):  # of a block that is predicted once more, or by a twin of this task
            return
        with new_folder(workspace.prediction(round_index, case_id)) as folder:
            finish(
                folder,
                campaign,
                case,
                grid,
                probabilities,
                round_index=round_index,
                checkpoints=checkpoints,
                absent=absent,
                key=identity.key(case),
                watch=watch,
                detector=detector.learned,
                image_XYZ=image,
            )
            check_claim(workspace, row.get("claim", 0))

    try:
        if refusal := _claim(campaign, f"finish-{round_index:03d}", case_id):
            return {**result, "error": refusal, "stages": watch.record()}
        patiently(write, campaign.cluster.patience_s)
        forget_attempts(campaign, round_index, case_id)
    except WorkspaceError as error:
        result |= {"error": str(error), "ends_stream": True}
    except OSError as error:
        result |= unwritable(campaign, error)
    return {**result, "stages": watch.record(), "finish_peak_mb": peak_mb()}


def _is_there(workspace: Workspace, round_index: int, case: Case, identity: Identity) -> bool:
    if not is_whole(workspace.prediction(round_index, case.case_id)):
        return False
    try:
        return identity.holds(workspace.case_scores(round_index, case.case_id).key, case)
    except (WorkspaceError, FileNotFoundError):
        return False


def _no_voxels(shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """A grid needs a shape, not memory: one byte seen as a whole volume."""
    return np.broadcast_to(np.uint8(0), tuple(int(n) for n in shape))
