"""REST under /api/v1: everything the editor does, and everything a script may do.

Volumes are gzipped NIfTI sent with Content-Encoding gzip, so that a browser inflates them natively. An edit is PUT as
compressed little-endian uint32 runs (start, length, value) in file voxel order, with If-Match naming the revision it was made on.

Where a case is read twice, everybody gets their own reading; a reviewer chooses by naming the case CASE@1 or CASE@2.
"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import Base64Bytes, Field
from starlette.concurrency import run_in_threadpool

from atlas_ray.annotation.agreement import TOLERANCE_MM
from atlas_ray.annotation.queue import CaseVerdict, LeaseError, QueueError, WorkItem
from atlas_ray.annotation.review import Role, RoleError
from atlas_ray.annotation.revisions import MAX_RUN_BYTES, RUN_BYTES, RevisionConflict, Step, TimeSpent, Verdict, decode_runs
from atlas_ray.exceptions import AtlasError, CaseError, LabelError, RevisionError, WorkspaceError
from atlas_ray.records import RevisionKind
from atlas_ray.schema import Schema
from ui.login import Principal, current_principal, current_role, current_user
from ui.store import Record, Store, split_address
from ui.tools import Tool, ToolError

User = Annotated[str, Depends(current_user)]
UserRole = Annotated[Role, Depends(current_role)]
Seconds = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]
NOTE_LENGTH = 2000
STATUS: dict[type[AtlasError], int] = {
    RoleError: 403,
    LeaseError: 409,
    QueueError: 404,
    LabelError: 404,
    WorkspaceError: 404,
    RevisionError: 422,
    ToolError: 422,
    CaseError: 422,
}


class Submission(Schema):
    seconds: Seconds = 0.0
    note: Annotated[str, Field(max_length=NOTE_LENGTH)] = ""
    verdict: CaseVerdict = "fixed"


class Judgment(Schema):
    verdict: Verdict


class Review(Schema):
    """`reason`: a rejection needs one; the annotator reads it as the case's `review_note`."""

    verdict: Literal["accepted", "rejected"]
    reason: Annotated[str, Field(max_length=NOTE_LENGTH)] = ""


class Resolution(Schema):
    reading: Literal[1, 2]


class SavedStep(Schema):
    """One named step; `runs` as in a PUT, base64."""

    name: Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^<>\x00-\x1f]+$")]
    kind: RevisionKind = "edit"
    seconds: Seconds = 0.0
    component: Annotated[int, Field(ge=0)] | None = None
    runs: Base64Bytes


class Steps(Schema):
    steps: Annotated[list[SavedStep], Field(min_length=1, max_length=200)]


class Spent(TimeSpent):
    seconds: Seconds
    component: Annotated[int, Field(ge=0)] | None = None


class Times(Schema):
    entries: Annotated[list[Spent], Field(max_length=1000)]


class Comment(Schema):
    text: Annotated[str, Field(min_length=1, max_length=NOTE_LENGTH)]


class Note(Schema):
    note: Annotated[str, Field(max_length=NOTE_LENGTH)] = ""


def get_store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


Round = Annotated[Store, Depends(get_store)]


def shown_item(case_id: str, store: Round, user: User, role: UserRole) -> WorkItem:
    """The reading of the case in the path that the user sees."""
    return store.shown(case_id, user, role)


def case_of(case_id: str) -> str:
    """The case in the path, whichever reading of it is meant."""
    return split_address(case_id)[0]


Item = Annotated[WorkItem, Depends(shown_item)]
CaseId = Annotated[str, Depends(case_of)]
router = APIRouter(prefix="/api/v1")


# --- queue ------------------------------------------------------------------------------------------------------------


@router.get("/session")
def session(store: Round, user: Annotated[Principal, Depends(current_principal)]) -> Record:
    """Who is logged in, what that one may do, how the server knows ("none": everybody on this machine is let in), and the round."""
    return {**asdict(user), "round": store.round, "organs": list(store.organs.names)}


@router.get("/cases")
def cases(store: Round, user: User, round: Annotated[int | None, Query(ge=0)] = None) -> Record:
    """The queue in rank order."""
    if round not in (None, store.round):
        raise HTTPException(404, f"this server shows round {store.round}; start another one for round {round}")
    return {"round": store.round, "items": store.items()}


@router.post("/cases/next")
def next_case(store: Round, user: User) -> Any:
    """Lease the next case: the user's unfinished one, else the first nobody holds; 204 where nothing is left."""
    item = store.queue.next(user, round_index=store.round)
    return item if item is not None else Response(status_code=204)


@router.get("/cases/peek")
def peek(store: Round, user: User) -> Any:
    """What `next` will give after the case the user holds, so that it can be fetched ahead; not leased. 204 for nothing."""
    item = store.queue.peek(user, round_index=store.round)
    return {"case_id": item.case_id} if item is not None else Response(status_code=204)


@router.get("/cases/{case_id}")
def case(item: Item, store: Round) -> Record:
    return store.describe(item)


@router.post("/cases/{case_id}/lease")
def lease(item: Item, store: Round, user: User) -> Any:
    """Take the case, or prolong one's lease of it; 409 where somebody else has it or it is submitted."""
    return store.queue.claim(store.round, item.case_id, user, reading=item.reading)


@router.delete("/cases/{case_id}/lease")
def release(item: Item, store: Round, user: User) -> Any:
    return store.queue.release(item.item_id, user)


@router.post("/cases/{case_id}/submit")
def submit(item: Item, store: Round, user: User, body: Annotated[Submission, Body()]) -> Any:
    return store.submit(item, user=user, seconds=body.seconds, note=body.note, verdict=body.verdict)


@router.post("/cases/{case_id}/time", status_code=204)
def log_time(item: Item, store: Round, user: User, body: Annotated[Times, Body()]) -> None:
    """Active seconds that no step carries."""
    store.log_time(item, body.entries, user=user)


@router.get("/cases/{case_id}/comments")
def comments(item: Item, store: Round) -> Record:
    """What people said about the case, oldest first."""
    return {"comments": store.comments(item)}


@router.post("/cases/{case_id}/comments", status_code=204)
def comment(item: Item, store: Round, user: User, body: Annotated[Comment, Body()]) -> None:
    store.queue.comment(item.item_id, user, body.text)


# --- review -----------------------------------------------------------------------------------------------------------


@router.get("/review")
def to_review(store: Round, user: User, role: UserRole) -> Record:
    """What waits for a reviewer, each item with the reason why; 403 for annotators."""
    return {"round": store.round, "items": store.to_review(user, role)}


@router.post("/cases/{case_id}/review")
def review(item: Item, store: Round, user: User, role: UserRole, body: Annotated[Review, Body()]) -> Any:
    """Accept a submitted case, or send it back with a reason."""
    if body.verdict == "accepted":
        return store.accept(item, user, role, note=body.reason)
    if not body.reason.strip():
        raise HTTPException(422, "a rejection needs a reason: the annotator has nothing else to go by")
    return store.reject(item, user, role, reason=body.reason)


@router.get("/cases/{case_id}/agreement")
def agreement(
    case: CaseId, store: Round, user: User, role: UserRole, tolerance_mm: Annotated[float, Query(gt=0, le=100)] = TOLERANCE_MM
) -> Record:
    """Dice and surface Dice of the case's two readings, per organ."""
    return {"case_id": case, "organs": store.agreement(case, user, role, tolerance_mm=tolerance_mm)}


@router.post("/cases/{case_id}/resolve")
def resolve(case: CaseId, store: Round, user: User, role: UserRole, body: Annotated[Resolution, Body()]) -> Any:
    """Take one of the case's two readings; the other one is superseded."""
    return store.resolve(case, user, role, reading=body.reading)


@router.post("/cases/{case_id}/{action}")
def set_aside(
    action: Literal["skip", "flag", "reopen"], item: Item, store: Round, user: User, body: Annotated[Note, Body()]
) -> Any:
    if action == "reopen":
        return store.queue.reopen(item.item_id, user)
    return (store.queue.skip if action == "skip" else store.queue.flag)(item.item_id, user, note=body.note)


# --- volumes ----------------------------------------------------------------------------------------------------------


@router.get("/cases/{case_id}/image")
def image(case: CaseId, request: Request, store: Round, user: User) -> Response:
    """The CT, int16, on its own grid."""
    tag = store.case(case).sha256[:32]
    if f'"{tag}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": f'"{tag}"'})
    return _gzipped(store.image(case), tag)


@router.get("/cases/{case_id}/labels")
def labels(item: Item, store: Round) -> Response:
    """The label map as it stands: draft and current revisions, on the header of the pseudo-label."""
    return _gzipped(*store.labels(item))


@router.get("/cases/{case_id}/labels/{organ}")
def mask(item: Item, organ: str, store: Round) -> Response:
    """One organ's own mask (0 or 1); its revision is the ETag."""
    data, revision = store.mask(item, organ)
    return _gzipped(data, str(revision))


@router.get("/cases/{case_id}/labels/{organ}/draft")
def draft(item: Item, organ: str, store: Round) -> Response:
    """The organ's mask before any edit."""
    data, revision = store.mask(item, organ, at=0)
    return _gzipped(data, str(revision))


@router.get("/cases/{case_id}/heat")
def heat(case: CaseId, store: Round, user: User) -> Response:
    return _file(store.heat(case))


@router.get("/cases/{case_id}/attention/{organ}")
def attention(case: CaseId, organ: str, store: Round, user: User) -> Response:
    """One bit per criterion that fired."""
    return _file(store.attention(case, organ))


@router.get("/cases/{case_id}/architectures/{name}")
def architecture(case: CaseId, name: str, store: Round, user: User) -> Response:
    return _file(store.architecture(case, name))


def _gzipped(data: bytes, tag: str) -> Response:
    headers = {"Content-Encoding": "gzip", "ETag": f'"{tag}"', "Cache-Control": "no-cache"}
    return Response(data, media_type="application/octet-stream", headers=headers)


def _file(path: Path) -> Response:
    headers = {"Content-Encoding": "gzip", "Cache-Control": "no-cache"}
    return FileResponse(path, media_type="application/octet-stream", headers=headers)


# --- edits ------------------------------------------------------------------------------------------------------------


@router.put("/cases/{case_id}/labels/{organ}")
async def save(
    item: Item, organ: str, request: Request, store: Round, user: User, seconds: Annotated[Seconds, Query()] = 0.0
) -> JSONResponse:
    """Compare-and-set, for scripts: store the runs as one step on top of the revision named by If-Match.

    200 {rev}; 409 the case is somebody else's; 412 {current} there is a newer revision; 422 malformed; 428 no If-Match.
    """
    parent_id = _parent(request)
    step = SavedStep.model_construct(name="script", seconds=seconds, runs=await request.body())  # bounded by the gate
    return await run_in_threadpool(_store_steps, store, item, organ, [step], parent_id, user)


@router.post("/cases/{case_id}/labels/{organ}/steps")
def save_steps(item: Item, organ: str, request: Request, store: Round, user: User, body: Annotated[Steps, Body()]) -> JSONResponse:
    """Compare-and-set: every step becomes one revision, all of them or none; answers as the PUT."""
    return _store_steps(store, item, organ, body.steps, _parent(request), user)


def _store_steps(store: Store, item: WorkItem, organ: str, given: list[SavedStep], parent_id: int, user: str) -> JSONResponse:
    steps, room = [], MAX_RUN_BYTES  # for all steps together
    for step in given:
        runs = decode_runs(step.runs, size=store.voxels(item.case_id), max_bytes=room)
        room -= len(runs) * RUN_BYTES
        steps.append(Step(name=step.name, kind=step.kind, seconds=step.seconds, component=step.component, runs=runs))
    saved = store.save(item, organ, steps, parent_id=parent_id, user=user)
    newest = saved[-1].revision_id
    return JSONResponse({"rev": newest, "voxels": sum(r.voxels for r in saved)}, headers={"ETag": f'"{newest}"'})


@router.get("/cases/{case_id}/labels/{organ}/steps")
def get_steps(
    item: Item, organ: str, store: Round, last: Annotated[int, Query(ge=1, le=1000)] = 200, after: Annotated[int, Query(ge=0)] = 0
) -> Record:
    """The newest steps with their runs (base64), oldest first: what undo needs after a reload."""
    steps = store.steps(item, organ, after=after, last=last)
    return {"rev": steps[-1]["revision_id"] if steps else store.current_revisions(item).get(organ, 0), "steps": steps}


@router.post("/cases/{case_id}/labels/{organ}/propose")
def propose(item: Item, organ: str, store: Round, body: Annotated[Tool, Body()]) -> Response:
    """What a tool would change, as gzipped runs; the client takes it as a step, or not. 412 where `rev` is not the latest."""
    data, voxels = store.propose(item, organ, body)
    return Response(data, media_type="application/octet-stream", headers={"X-Voxels": str(voxels)})


def _parent(request: Request) -> int:
    value = request.headers.get("if-match")
    if value is None:
        raise HTTPException(428, 'If-Match: "revision" is required, so that nobody overwrites what they have not seen')
    found = re.fullmatch(r'"?(\d{1,9})"?', value.strip())
    if not found:
        raise HTTPException(422, f"If-Match is {value!r}; a revision number is allowed")
    return int(found[1])


@router.get("/cases/{case_id}/labels/{organ}/history")
def history(item: Item, organ: str, store: Round) -> Record:
    """Every revision of the organ, oldest first."""
    return {"revisions": store.history(item, organ)}


@router.post("/cases/{case_id}/labels/{organ}/revert/{revision}")
def revert(item: Item, organ: str, revision: int, store: Round, user: User) -> Record:
    """Append the edit that brings an earlier revision back (0 is the draft)."""
    return {"rev": store.revert(item, organ, to=revision, user=user).revision_id}


@router.get("/cases/{case_id}/components")
def components(item: Item, store: Round) -> Record:
    """Attention components, highest score first, in voxels of the image's own grid."""
    return {"components": store.components(item)}


@router.put("/cases/{case_id}/components/{organ}/{index}/verdict")
def judge(item: Item, organ: str, index: int, store: Round, user: User, body: Annotated[Judgment, Body()]) -> Record:
    store.judge(item, organ, index, body.verdict, user=user)
    return {"verdict": body.verdict}


# --- errors -----------------------------------------------------------------------------------------------------------


def add_error_handlers(app: FastAPI) -> None:
    """AtlasErrors as answers: a message for people, a status for programs."""

    def conflict(request: Request, error: RevisionConflict) -> JSONResponse:
        return JSONResponse({"detail": str(error), "current": error.current_id}, 412, headers={"ETag": f'"{error.current_id}"'})

    def refused(request: Request, error: AtlasError) -> JSONResponse:
        status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
        return JSONResponse({"detail": str(error)}, status)

    app.exception_handler(RevisionConflict)(conflict)
    app.exception_handler(AtlasError)(refused)
