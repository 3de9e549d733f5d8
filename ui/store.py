"""What the app shows and stores, as bytes and records: workspace + queue + revisions of one round. Knows nothing of the web.

Volumes leave as .nii.gz on the image's own grid. What is drawn on is the round's draft (merge.draft_label), which never changes
during the round; every edit is a revision on top of it. The client sends voxels in file order and never any geometry.
"""

import gzip
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import yaml

from atlas_ray.annotation.database import Database
from atlas_ray.annotation.drafts import read_draft
from atlas_ray.annotation.merge import paint_edits
from atlas_ray.annotation.queue import CaseVerdict, Queue, WorkItem
from atlas_ray.annotation.revisions import Revisions, Verdict, decode_runs
from atlas_ray.exceptions import ConfigError, WorkspaceError
from atlas_ray.organs import Organs
from atlas_ray.records import Case, Revision
from atlas_ray.volume import Volume, nifti_bytes, read_volume
from atlas_ray.workspace import Workspace

Value = TypeVar("Value")
Record = dict[str, Any]

INT16 = np.iinfo(np.int16)
NIFTI_INT16 = 4  # datatype code
GZIP_EXTRA_FIELD = 4  # header flag; block-gzip files carry one, and browsers stop after their first block


class Recent(Generic[Value]):
    """The last few results of a slow function; two threads that want the same one compute it once."""

    def __init__(self, compute: Callable[[Hashable], Value], *, keep: int) -> None:
        self.compute = compute
        self.keep = keep
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()
        self._busy: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable) -> Value:
        with self._lock:
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            if key not in self._values:
                value = self.compute(key)
                with self._lock:
                    self._values[key] = value
                    while len(self._values) > self.keep:
                        self._values.popitem(last=False)
        with self._lock:
            self._busy.pop(key, None)
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        return self.get(key)  # another case pushed it out in between


class Store:
    """One round of a campaign, as the annotators see it.

    Args:
        workspace: the campaign's folder.
        round_index: the round shown.
        organs: the campaign's organ set.
        database: open; closed by the store.
        lease_minutes: how long a case stays its annotator's without a sign of life.
    """

    def __init__(
        self, workspace: Workspace, *, round_index: int, organs: Organs, database: Database, lease_minutes: float = 30.0
    ) -> None:
        self.workspace = workspace
        self.round = round_index
        self.organs = organs
        self.database = database
        self.queue = Queue(database, lease_minutes=lease_minutes)
        self.revisions = Revisions(database)
        self._images: Recent[bytes] = Recent(lambda case_id: display_image(self.case(str(case_id))), keep=3)
        self._drafts: Recent[Volume] = Recent(lambda case_id: self._read_draft(str(case_id)), keep=3)
        self._cases: dict[str, Case] = {}
        self._manifest_time = 0

    def close(self) -> None:
        self.database.close()

    # --- cases ---
    def case(self, case_id: str) -> Case:
        """A case of the manifest; ids become paths only after they were found here. Raises WorkspaceError."""
        changed = self.workspace.manifest.stat().st_mtime_ns if self.workspace.manifest.exists() else 0
        if changed != self._manifest_time or not self._cases:
            self._cases = {case.case_id: case for case in self.workspace.cases()}
            self._manifest_time = changed
        if case_id not in self._cases:
            raise WorkspaceError(f"case {case_id!r} is not in {self.workspace.manifest}")
        return self._cases[case_id]

    def item(self, case_id: str) -> WorkItem:
        """The case's place in the queue. Raises QueueError where it has none."""
        return self.queue.item((self.round, case_id))

    def items(self) -> list[Record]:
        """The round's queue in rank order, each item with its attention size."""
        return [self._with_attention(item) for item in self.queue.items(self.round)]

    def _with_attention(self, item: WorkItem) -> Record:
        path = self.workspace.scores(self.round, item.case_id)
        size = self.workspace.case_scores(self.round, item.case_id).attention_mm3 if path.exists() else None
        return item.model_dump() | {"attention_mm3": size}

    def describe(self, case_id: str) -> Record:
        """Everything the editor needs to know of a case but its voxels."""
        case, item = self.case(case_id), self.item(case_id)
        scores = self.workspace.case_scores(self.round, case_id)
        by_organ = {entry.organ: entry for entry in scores.organs}
        current = self.current_revisions(case_id)
        organs = [
            organ.model_dump()
            | {
                "queried": organ.name in item.organs,
                "rev": current.get(organ.name, 0),
                "attention_mm3": by_organ[organ.name].attention_mm3 if organ.name in by_organ else 0.0,
                "predicted_ml": by_organ[organ.name].predicted_ml if organ.name in by_organ else None,
            }
            for organ in self.organs
        ]
        return {
            "case_id": case_id,
            "round": self.round,
            "item": item.model_dump(),
            "shape": case.shape,
            "spacing": case.spacing,
            "orientation": case.orientation,
            "source": case.source,
            "organs": organs,
            "architectures": sorted(scores.checkpoints),
        }

    def components(self, case_id: str) -> list[Record]:
        """Attention components of the case, highest score first, each with its latest verdict."""
        self.case(case_id)
        said = {(v.organ, v.component): v.verdict for v in self.revisions.verdicts(self.round, case_id)}
        found = sorted(self.workspace.case_components(self.round, case_id), key=lambda component: -component.score)
        return [component.model_dump() | {"verdict": said.get((component.organ, component.index))} for component in found]

    # --- volumes ---
    def image(self, case_id: str) -> bytes:
        """The CT as int16 .nii.gz."""
        return self._images.get(self.case(case_id).case_id)

    def labels(self, case_id: str) -> tuple[bytes, str]:
        """The label map as it stands: the draft with every revision painted in."""
        draft = self._drafts.get(case_id)
        edits = self.revisions.edits(self.round, case_id)
        return nifti_bytes(draft.with_voxels(paint_edits(draft.voxels, edits, self.organs))), str(len(edits))

    def mask(self, case_id: str, organ: str) -> tuple[bytes, int]:
        """One organ's own mask as it stands, and its revision."""
        revision = self.revisions.current(self.round, case_id, organ)
        voxels = self._mask(case_id, organ, at=revision)
        return nifti_bytes(self._drafts.get(case_id).with_voxels(voxels.astype(np.uint8))), revision

    def _mask(self, case_id: str, organ: str, *, at: int) -> npt.NDArray[np.bool_]:
        return self.revisions.mask(self._draft_mask(case_id, organ), self.round, case_id, organ, at=at)

    def _draft_mask(self, case_id: str, organ: str) -> npt.NDArray[np.bool_]:
        return self.organs.mask(self._drafts.get(case_id).voxels, organ)

    def _read_draft(self, case_id: str) -> Volume:
        return read_draft(self.workspace, self.round, self.case(case_id), self.organs)

    def heat(self, case_id: str) -> Path:
        return self._present(self.workspace.heat(self.round, self.case(case_id).case_id))

    def attention(self, case_id: str, organ: str) -> Path:
        return self._present(self.workspace.attention(self.round, self.case(case_id).case_id, self.organs[organ].name))

    def architecture(self, case_id: str, name: str) -> Path:
        """Label map of one architecture. Raises WorkspaceError for one that did not predict this case."""
        known = self.workspace.case_scores(self.round, self.case(case_id).case_id).checkpoints
        if name not in known:
            raise WorkspaceError(f"architecture {name!r} did not predict case {case_id}; {', '.join(sorted(known))} did")
        return self._present(self.workspace.architecture_label(self.round, case_id, name))

    def _present(self, path: Path) -> Path:
        if not path.exists():
            raise WorkspaceError(f"{path.name} was not written for this case in round {self.round}")
        return path

    # --- edits ---
    def current_revisions(self, case_id: str) -> dict[str, int]:
        """Organ -> latest revision, for the organs that have one."""
        return {organ: n for organ in self.organs.names if (n := self.revisions.current(self.round, case_id, organ))}

    def save(self, case_id: str, organ: str, body: bytes, *, parent_id: int, user: str, seconds: float) -> Revision:
        """Store an edit of one organ on top of revision `parent_id`.

        Raises:
            LeaseError: somebody else holds the case.
            RevisionConflict: the organ has a newer revision.
            RevisionError: the runs are malformed or leave the grid.
        """
        x, y, z = self.case(case_id).shape
        name = self.organs[organ].name
        runs = decode_runs(body, size=x * y * z)
        self.queue.heartbeat(self.item(case_id).item_id, user)
        return self.revisions.save(
            self.round, case_id, name, user=user, parent_id=parent_id, runs=runs, seconds=seconds, size=x * y * z
        )

    def history(self, case_id: str, organ: str) -> list[Revision]:
        return self.revisions.history(self.round, self.case(case_id).case_id, self.organs[organ].name)

    def revert(self, case_id: str, organ: str, *, to: int, user: str) -> Revision:
        """Bring an earlier revision back, as a new one. Raises LeaseError, RevisionError, RevisionConflict."""
        self.queue.heartbeat(self.item(case_id).item_id, user)
        return self.revisions.revert(self._draft_mask(case_id, organ), self.round, case_id, organ, to=to, user=user)

    def judge(self, case_id: str, organ: str, component: int, verdict: Verdict, *, user: str) -> None:
        """Record what a component was. Raises WorkspaceError for one the case does not have."""
        self.case(case_id)
        if not any((c.organ, c.index) == (organ, component) for c in self.workspace.case_components(self.round, case_id)):
            raise WorkspaceError(f"case {case_id} has no attention component {component} of {organ!r} in round {self.round}")
        self.queue.heartbeat(self.item(case_id).item_id, user)
        self.revisions.judge(self.round, case_id, organ, component, verdict, user=user)

    def submit(self, case_id: str, *, user: str, seconds: float, note: str, verdict: CaseVerdict) -> WorkItem:
        """Hand the case in; the seconds no revision carries are kept as the case's own."""
        item = self.item(case_id)
        total = seconds + sum(v for v in self.revisions.seconds(self.round, case_id).values())
        submitted = self.queue.submit(item.item_id, user, verdict=verdict, seconds=max(0.0, total - item.seconds), note=note)
        if item.state != "submitted" and seconds > 0:
            self.revisions.log_time(self.round, case_id, user=user, seconds=seconds)
        return submitted


# --- images -----------------------------------------------------------------------------------------------------------


def display_image(case: Case) -> bytes:
    """The case's image as int16 .nii.gz with its geometry in the sform: the file itself where it is that already."""
    path = Path(case.image)
    if path.is_file() and _is_served_as_it_lies(path):
        return path.read_bytes()
    volume = read_volume(path, series_uid=case.series_uid)
    # No header: a NIfTI-1 with the affine as sform is what every viewer reads; nothing is ever written back to it.
    return nifti_bytes(Volume(to_int16(volume.voxels), volume.affine))


def to_int16(voxels: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """HU as int16: rounded, clamped, NaN as air."""
    if voxels.dtype == np.int16:
        return voxels
    if voxels.dtype.kind == "f":
        voxels = np.rint(np.nan_to_num(voxels, nan=-1024.0))
    return np.clip(voxels, INT16.min, INT16.max).astype(np.int16)


def _is_served_as_it_lies(path: Path) -> bool:
    """Whether a browser can show the file's bytes: one gzip member; NIfTI-1, little-endian, int16, 3-D, unscaled, sform."""
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] != b"\x1f\x8b" or start[3] & GZIP_EXTRA_FIELD:
        return False
    try:
        with gzip.open(path) as file:
            header = file.read(348)
    except (OSError, EOFError):
        return False
    if len(header) < 348 or struct.unpack_from("<i", header)[0] != 348:
        return False
    dims = struct.unpack_from("<8h", header, 40)
    (datatype,) = struct.unpack_from("<h", header, 70)
    slope, intercept = struct.unpack_from("<2f", header, 112)
    (sform,) = struct.unpack_from("<h", header, 254)
    unscaled = not np.isfinite(slope) or slope == 0 or (slope == 1 and intercept == 0)
    flat = dims[0] >= 3 and all(n in (0, 1) for n in dims[4 : dims[0] + 1])
    return bool(datatype == NIFTI_INT16 and unscaled and flat and sform > 0)


# --- the campaign's settings ------------------------------------------------------------------------------------------


def campaign_settings(path: Path) -> Record:
    """What the app needs of campaign.yaml: organs, annotation.database, annotation.lease_minutes; {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    annotation = config.get("annotation") or {}
    wanted = {"organs": config.get("organs"), **{key: annotation.get(key) for key in ("database", "lease_minutes")}}
    return {key: value for key, value in wanted.items() if value is not None}


def newest_round(workspace: Workspace) -> int:
    """The newest round with a priority list, else with a prediction: a round ends by predicting the next one's holdout, and
    nobody annotates that. Raises WorkspaceError where nothing is predicted."""
    rounds = [0]
    while workspace.round(rounds[-1]).exists():
        rounds.append(rounds[-1] + 1)
    for is_ready in (lambda r: workspace.priority_csv(r).exists(), workspace.predicted):
        ready = [r for r in rounds if is_ready(r)]
        if ready:
            return ready[-1]
    raise WorkspaceError(f"{workspace.root} has no predicted round; run `python -m jobs.predict CONFIG --round N` first")
