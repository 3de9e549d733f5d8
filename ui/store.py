"""What the app shows and stores, as bytes and records: workspace + queue + revisions of one round. Knows nothing of the web.

Volumes leave as .nii.gz on the image's own grid. What is drawn on is the round's draft (merge.draft_label), which never changes
during the round; every edit is a revision on top of it. The client sends voxels in file order and never any geometry.

A case that is read twice is shown as one of its readings, a WorkItem (`Store.shown`): everybody's own; reviewers say which, by
naming it CASE@2.
"""

import base64
import gzip
import io
import math
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from atlas_ray.annotation.agreement import TOLERANCE_MM, OrganAgreement, agreement
from atlas_ray.annotation.database import Database
from atlas_ray.annotation.drafts import read_draft
from atlas_ray.annotation.merge import paint_edits
from atlas_ray.annotation.queue import CaseVerdict, LeaseError, Queue, QueueError, WorkItem
from atlas_ray.annotation.review import Role, accept, awaiting, reject, require_reviewer, resolve
from atlas_ray.annotation.revisions import (
    RevisionConflict,
    Revisions,
    Step,
    TimeSpent,
    Verdict,
    diff_runs,
    encode_runs,
)
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.records import Case, Revision
from atlas_ray.storage import place
from atlas_ray.volume import Volume, nifti_bytes, read_volume
from atlas_ray.workspace import Workspace
from ui.settings import Settings, read_settings
from ui.tools import Proposal, Subject, propose

Value = TypeVar("Value")
Record = dict[str, Any]
Mask = npt.NDArray[np.bool_]

SPOKEN = ("comment", "skip", "flag", "accept", "reject")  # events whose detail is a person's own words

INT16 = np.iinfo(np.int16)
NIFTI_INT16 = 4  # datatype code
NIFTI_HEADER = 348  # bytes
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
        settings: how people work; None is what the workspace's campaign.yaml says.
    """

    def __init__(
        self, workspace: Workspace, *, round_index: int, organs: Organs, database: Database, settings: Settings | None = None
    ) -> None:
        settings = settings or read_settings(workspace.config)
        self.workspace = workspace
        self.round = round_index
        self.organs = organs
        self.database = database
        self.queue = Queue(database, lease_minutes=settings.annotation.lease_minutes)
        self.revisions = Revisions(database)
        self.second_reader_share = settings.annotation.second_reader_share
        self.tracking_uri = settings.tracking_uri
        self._images: Recent[bytes] = Recent(lambda case_id: display_image(self.case(str(case_id))), keep=3)
        self._drafts: Recent[Volume] = Recent(lambda case_id: self._read_draft(str(case_id)), keep=3)

    def close(self) -> None:
        self.database.close()

    # --- cases ---
    def case(self, case_id: str) -> Case:
        """A case of the manifest; ids become paths only after they were found here. Raises WorkspaceError."""
        return self.workspace.case(case_id)

    def shown(self, address: str, user: str, role: Role) -> WorkItem:
        """The item of a case that a user sees: their own reading, else the one nobody has, else (a reviewer) the one that counts.

        Args:
            address: the case's id; a reviewer's may end in @1 or @2, the reading they want to see.

        Raises:
            QueueError: the case is not in the queue.
            LeaseError: an annotator asks for a case that others read blind.
        """
        case_id, asked = split_address(address)
        items = self.queue.readings(self.round, self.case(case_id).case_id)
        may_choose = role != "annotator"
        if asked is not None and may_choose:
            return self.queue.item((self.round, case_id, asked))
        mine = [item for item in items if item.user == user]
        nobodys = [item for item in items if item.user is None]
        counting = [item for item in items if may_choose or len(items) == 1]
        candidates = [*mine, *nobodys, *sorted(counting, key=lambda item: item.review == "superseded")]
        if not candidates:
            raise LeaseError(f"case {case_id} is read twice, each time blind, and both readings are somebody else's", items[0])
        return candidates[0]

    def items(self) -> list[Record]:
        """The round's queue in rank order, each item with its attention size and what its reviewer said."""
        return [self.with_attention(item) for item in self.queue.items(self.round)]

    def with_attention(self, item: WorkItem) -> Record:
        """The item with its case's attention size and what its reviewer said."""
        path = self.workspace.scores(self.round, item.case_id)
        size = self.workspace.case_scores(self.round, item.case_id).attention_mm3 if path.exists() else None
        return item.model_dump() | {"attention_mm3": size, "review_note": self._review_note(item)}

    def _holder(self, item: WorkItem) -> str | None:
        """Whose lease of the item runs."""
        runs = item.lease_expires is not None and datetime.fromisoformat(item.lease_expires) > self.queue.now()
        return item.user if runs else None

    def _review_note(self, item: WorkItem) -> str:
        """What the reviewer gave as the reason; "" where nobody decided."""
        if item.review is None:
            return ""
        said = [event.detail for event in self.queue.events(item.item_id) if event.action in ("accept", "reject")]
        return said[-1] if said else ""

    def describe(self, item: WorkItem) -> Record:
        """Everything the editor needs to know of a case but its voxels; a case no network has seen has no attention."""
        case_id, case = item.case_id, self.case(item.case_id)
        is_predicted = self.workspace.scores(self.round, case_id).exists()
        scores = self.workspace.case_scores(self.round, case_id) if is_predicted else None
        by_organ = {entry.organ: entry for entry in scores.organs} if scores else {}
        absent = scores.absent if scores else {}
        current = self.current_revisions(item)
        organs = [
            organ.model_dump()
            | {
                "queried": organ.name in item.organs,
                "rev": current.get(organ.name, 0),
                "attention_mm3": by_organ[organ.name].attention_mm3 if organ.name in by_organ else 0.0,
                "predicted_ml": by_organ[organ.name].predicted_ml if organ.name in by_organ else None,
                "unknown_to": [name for name in sorted(absent) if organ.name in absent[name]],
            }
            for organ in self.organs
        ]
        return {
            "case_id": case_id,
            "round": self.round,
            "item": item.model_dump(),
            "holder": self._holder(item),
            "review_note": self._review_note(item),
            "shape": case.shape,
            "spacing": case.spacing,
            "orientation": case.orientation,
            "source": case.source,
            "organs": organs,
            "architectures": sorted(scores.checkpoints) if scores else [],
            "criteria": scores.criteria if scores else (),
        }

    def components(self, item: WorkItem) -> list[Record]:
        """Attention components of the case that the item asks about, highest score first, each with its latest verdict."""
        verdicts = self.revisions.verdicts(self.round, item.case_id, reading=item.reading)
        said = {(v.organ, v.component): v.verdict for v in verdicts}
        all_of_them = self.workspace.case_components(self.round, item.case_id)
        asked = [component for component in all_of_them if not item.components or component.index in item.components]
        found = sorted(asked, key=lambda component: -component.score)
        return [component.model_dump() | {"verdict": said.get((component.organ, component.index))} for component in found]

    # --- volumes ---
    def image(self, case_id: str) -> bytes:
        """The CT as int16 .nii.gz."""
        return self._images.get(self.case(case_id).case_id)

    def labels(self, item: WorkItem) -> tuple[bytes, str]:
        """The label map as it stands: the draft with every revision painted in."""
        painted, edits = self._painted(item)
        return nifti_bytes(self._drafts.get(item.case_id).with_voxels(painted)), str(edits)

    def label_map(self, item: WorkItem) -> Volume:
        """The label map as it stands."""
        return self._drafts.get(item.case_id).with_voxels(self._painted(item)[0])

    def _painted(self, item: WorkItem) -> tuple[LabelMap, int]:
        edits = self.revisions.edits(self.round, item.case_id, reading=item.reading)
        return paint_edits(self._drafts.get(item.case_id).voxels, edits, self.organs), len(edits)

    def mask(self, item: WorkItem, organ: str, *, at: int | None = None) -> tuple[bytes, int]:
        """One organ's own mask at a revision (None: as it stands, 0: the draft), and that revision."""
        revision = self._current(item, organ) if at is None else at
        voxels = self._mask(item, organ, at=revision)
        return nifti_bytes(self._drafts.get(item.case_id).with_voxels(voxels.astype(np.uint8))), revision

    def _mask(self, item: WorkItem, organ: str, *, at: int) -> Mask:
        draft = self._draft_mask(item.case_id, organ)
        return self.revisions.mask(draft, self.round, item.case_id, organ, at=at, reading=item.reading)

    def _current(self, item: WorkItem, organ: str) -> int:
        return self.revisions.current(self.round, item.case_id, self.organs[organ].name, reading=item.reading)

    def _draft_mask(self, case_id: str, organ: str) -> Mask:
        return self.organs.mask(self._drafts.get(case_id).voxels, organ)

    def _hounsfield(self, case_id: str) -> npt.NDArray[np.int16]:
        """The image as shown, [X, Y, Z]."""
        shape = self.case(case_id).shape
        with gzip.open(io.BytesIO(self.image(case_id))) as file:
            (start,) = struct.unpack_from("<f", file.read(NIFTI_HEADER), 108)  # vox_offset
            file.seek(int(start))
            data = file.read(2 * math.prod(shape))  # and no more, whatever the file holds
        return np.frombuffer(data, "<i2").reshape(shape, order="F")

    def _read_draft(self, case_id: str) -> Volume:
        return read_draft(self.workspace, self.round, self.case(case_id), self.organs)

    def heat(self, case_id: str) -> Path:
        return self._present(self.workspace.heat(self.round, self.case(case_id).case_id))

    def attention(self, case_id: str, organ: str) -> Path:
        return self._present(self.workspace.attention(self.round, self.case(case_id).case_id, self.organs[organ].name))

    def ensemble(self, case_id: str) -> Path:
        return self._present(self.workspace.pseudo_label(self.round, self.case(case_id).case_id))

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
    def current_revisions(self, item: WorkItem) -> dict[str, int]:
        """Organ -> latest revision, for the organs that have one."""
        return {organ: n for organ in self.organs.names if (n := self._current(item, organ))}

    def voxels(self, case_id: str) -> int:
        """Of the case's grid: what a run may address."""
        x, y, z = self.case(case_id).shape
        return x * y * z

    def save(self, item: WorkItem, organ: str, steps: Sequence[Step], *, parent_id: int, user: str) -> list[Revision]:
        """Store steps of one organ on top of revision `parent_id`, all or none.

        Raises:
            LeaseError: somebody else holds the case.
            RevisionConflict: the organ has a newer revision.
            RevisionError: runs are malformed or leave the grid.
        """
        name, size = self.organs[organ].name, self.voxels(item.case_id)
        self.queue.heartbeat(item.item_id, user)
        key = (self.round, item.case_id, name)
        return self.revisions.append(*key, steps, user=user, parent_id=parent_id, size=size, reading=item.reading)

    def replace_labels(self, item: WorkItem, labels: LabelMap, organs: Collection[str], *, user: str) -> tuple[str, ...]:
        """Make the label map say what `labels` says of some organs, with one revision per organ that changes; their names.

        Where it says so already no mask is touched, so that what is handed back as it was changes nothing, even where masks
        overlap. An organ that is not among `organs` only gives up the voxels another one takes.

        Args:
            labels: [X, Y, Z] on the case's grid, label ids of the organ set.

        Raises:
            LeaseError: the case is not the user's.
            RevisionConflict: somebody saved in between; organs before that one are stored, and the next try stores the rest.
        """
        before, after, draft = (
            layer.reshape(-1, order="F")
            for layer in (self._painted(item)[0], np.asfortranarray(labels), self._drafts.get(item.case_id).voxels)
        )
        spoken_of = np.zeros(256, bool)
        spoken_of[[0, *(self.organs.label_id(name) for name in organs)]] = True
        where = np.flatnonzero((before != after) & (spoken_of[before] | (after != 0)))
        wanted = after[where]
        claims = np.unique([draft[where], before[where], wanted])  # a mask may lie hidden beneath another one
        changed = []
        for name in self.organs.names:
            revision = self._current(item, name)
            if not revision and self.organs.label_id(name) not in claims:
                continue
            own = self._mask(item, name, at=revision)
            new = own.copy(order="F")
            new.reshape(-1, order="F")[where] = wanted == self.organs.label_id(name)
            runs = diff_runs(own, new)
            if len(runs):
                self.save(item, name, [Step(name="label map", runs=runs)], parent_id=revision, user=user)
                changed.append(name)
        return tuple(changed)

    def steps(self, item: WorkItem, organ: str, *, after: int, last: int) -> list[Record]:
        """The newest steps of an organ with their runs, oldest first."""
        name = self.organs[organ].name
        edits = self.revisions.edits(self.round, item.case_id, name, reading=item.reading, after=after, last=last)
        return [edit.revision.model_dump() | {"runs": base64.b64encode(encode_runs(edit.runs)).decode()} for edit in edits]

    def history(self, item: WorkItem, organ: str) -> list[Revision]:
        return self.revisions.history(self.round, item.case_id, self.organs[organ].name, reading=item.reading)

    def revert(self, item: WorkItem, organ: str, *, to: int, user: str) -> Revision:
        """Bring an earlier revision back, as a new one. Raises LeaseError, RevisionError, RevisionConflict."""
        self.queue.heartbeat(item.item_id, user)
        draft = self._draft_mask(item.case_id, organ)
        return self.revisions.revert(draft, self.round, item.case_id, organ, to=to, user=user, reading=item.reading)

    def propose(self, item: WorkItem, organ: str, tool: Proposal) -> tuple[bytes, int]:
        """What a tool would change, as gzipped runs, and how many voxels that is. Nothing is stored.

        Raises:
            RevisionConflict: the annotator does not see the organ's newest revision.
            ToolError: the tool cannot do it.
        """
        current = self._current(item, organ)
        if tool.rev != current:
            raise RevisionConflict(f"{organ} of case {item.case_id} is at revision {current}, not {tool.rev}", current_id=current)
        before = self._mask(item, organ, at=current)
        subject = Subject(before, self.case(item.case_id).spacing, lambda: self._hounsfield(item.case_id))
        is_protected = np.full(256, tool.protect)
        is_protected[[0, *(self.organs.label_id(name) for name in (organ, *self.organs[organ].may_touch))]] = False
        protected = is_protected[self._painted(item)[0]]
        runs = diff_runs(before, propose(tool, subject, protected))
        return gzip.compress(runs.astype("<u4").tobytes(), mtime=0), int(runs[:, 1].sum(dtype=np.int64))

    def judge(self, item: WorkItem, organ: str, component: int, verdict: Verdict, *, user: str) -> None:
        """Record what a component was. Raises WorkspaceError for one the case does not have."""
        found = self.workspace.case_components(self.round, item.case_id)
        if not any((c.organ, c.index) == (organ, component) for c in found):
            raise WorkspaceError(f"case {item.case_id} has no attention component {component} of {organ!r} in round {self.round}")
        self.queue.heartbeat(item.item_id, user)
        self.revisions.judge(self.round, item.case_id, organ, component, verdict, user=user, reading=item.reading)

    def log_time(self, item: WorkItem, entries: Sequence[TimeSpent], *, user: str) -> None:
        """Add active seconds. Raises LabelError for an organ the campaign does not have."""
        for entry in entries:
            if entry.organ is not None:
                self.organs.channel(entry.organ)
        self.revisions.log_times(self.round, item.case_id, entries, user=user, reading=item.reading)

    def submit(self, item: WorkItem, *, user: str, seconds: float, note: str, verdict: CaseVerdict) -> WorkItem:
        """Hand the case in; the seconds no revision carries are kept as the case's own."""
        logged = sum(self.revisions.seconds(self.round, item.case_id, reading=item.reading).values())
        more = max(0.0, logged + seconds - item.seconds)
        submitted = self.queue.submit(item.item_id, user, verdict=verdict, seconds=more, note=note)
        if item.state != "submitted" and seconds > 0:
            self.log_time(item, [TimeSpent(seconds=seconds)], user=user)
        return submitted

    def comments(self, item: WorkItem) -> list[Record]:
        """What people said about the case, oldest first: comments and the reasons they gave."""
        spoken = [event for event in self.queue.events(item.item_id) if event.action in SPOKEN and event.detail]
        return [{"user": e.user, "created": e.created, "action": e.action, "text": e.detail} for e in spoken]

    # --- review ---
    def to_review(self, user: str, role: Role) -> list[Record]:
        """Items a reviewer has to look at, each with the reason why. Raises RoleError for an annotator."""
        require_reviewer(user, role)
        return self.awaiting()

    def awaiting(self) -> list[Record]:
        items = awaiting(self.queue.items(self.round), second_reader_share=self.second_reader_share)
        return [self.with_attention(item) | {"reason": reason} for item, reason in items]

    def accept(self, item: WorkItem, user: str, role: Role, *, note: str) -> WorkItem:
        return accept(self.queue, item.item_id, user, role=role, note=note)

    def reject(self, item: WorkItem, user: str, role: Role, *, reason: str) -> WorkItem:
        return reject(self.queue, item.item_id, user, role=role, reason=reason)

    def resolve(self, case_id: str, user: str, role: Role, *, reading: int) -> WorkItem:
        return resolve(self.queue, self.round, case_id, user, role=role, reading=reading)

    def agreement(self, case_id: str, user: str, role: Role, *, tolerance_mm: float = TOLERANCE_MM) -> list[OrganAgreement]:
        """How the two readings of a case agree. Raises RoleError for an annotator, QueueError where there is only one."""
        require_reviewer(user, role)
        readings = self.queue.readings(self.round, self.case(case_id).case_id)
        if len(readings) != 2:
            raise QueueError(f"case {case_id} is read once; two readings are compared")
        first, second = (self._painted(item)[0] for item in readings)
        return agreement(first, second, self.organs, self.case(case_id).spacing, tolerance_mm=tolerance_mm)


def split_address(address: str) -> tuple[str, int | None]:
    """A case's id and the reading its name ends in, if any: "case_7@2". No id has an @."""
    case_id, at, reading = address.partition("@")
    return (case_id, int(reading)) if at and reading in ("1", "2") else (address, None)


# --- images -----------------------------------------------------------------------------------------------------------


def display_image(case: Case) -> bytes:
    """The case's image as int16 .nii.gz with its geometry in the sform: the file itself where it is that already."""
    path = place(case.image)
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
        with path.open("rb") as packed, gzip.open(packed) as file:
            header = file.read(NIFTI_HEADER)
    except (OSError, EOFError):
        return False
    if len(header) < NIFTI_HEADER or struct.unpack_from("<i", header)[0] != NIFTI_HEADER:
        return False
    dims = struct.unpack_from("<8h", header, 40)
    (datatype,) = struct.unpack_from("<h", header, 70)
    slope, intercept = struct.unpack_from("<2f", header, 112)
    (sform,) = struct.unpack_from("<h", header, 254)
    unscaled = not np.isfinite(slope) or slope == 0 or (slope == 1 and intercept == 0)
    flat = dims[0] >= 3 and all(n in (0, 1) for n in dims[4 : dims[0] + 1])
    return bool(datatype == NIFTI_INT16 and unscaled and flat and sform > 0)


# --- rounds -----------------------------------------------------------------------------------------------------------


def newest_round(workspace: Workspace) -> int:
    """The newest round with a priority list, else with a prediction, else with labels to review: a round ends by predicting the
    next one's holdout, and nobody annotates that. Raises WorkspaceError where nothing is predicted and nothing queued."""
    rounds = workspace.rounds()
    for is_ready in (lambda r: workspace.priority_csv(r).exists(), workspace.predicted, workspace.finished_steps):
        ready = [r for r in rounds if is_ready(r)]
        if ready:
            return ready[-1]
    raise WorkspaceError(f"{workspace.root} has no predicted round; run `python -m jobs.predict CONFIG --round N` first")
