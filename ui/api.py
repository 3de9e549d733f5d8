"""REST under /api/v1: everything the editor does, and everything a script may do.

Volumes are gzipped NIfTI sent with Content-Encoding gzip, so that a browser inflates them natively. An edit is PUT as
compressed little-endian uint32 runs (start, length, value) in file voxel order, with If-Match naming the revision it was made on.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from atlas_ray.annotation.queue import CaseVerdict, LeaseError, QueueError
from atlas_ray.annotation.revisions import RevisionConflict, Verdict
from atlas_ray.exceptions import AtlasError, CaseError, LabelError, RevisionError, WorkspaceError
from atlas_ray.schema import Schema
from ui.login import current_user
from ui.store import Record, Store

User = Annotated[str, Depends(current_user)]
Seconds = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]
NOTE_LENGTH = 2000
STATUS: dict[type[AtlasError], int] = {
    LeaseError: 409,
    QueueError: 404,
    LabelError: 404,
    WorkspaceError: 404,
    RevisionError: 422,
    CaseError: 422,
}


class Submission(Schema):
    seconds: Seconds = 0.0
    note: Annotated[str, Field(max_length=NOTE_LENGTH)] = ""
    verdict: CaseVerdict = "fixed"


class Judgment(Schema):
    verdict: Verdict


class Note(Schema):
    note: Annotated[str, Field(max_length=NOTE_LENGTH)] = ""


def get_store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


Round = Annotated[Store, Depends(get_store)]
router = APIRouter(prefix="/api/v1")


# --- queue ------------------------------------------------------------------------------------------------------------


@router.get("/session")
def session(store: Round, user: User) -> Record:
    """Who is logged in, and which round is shown."""
    return {"user": user, "round": store.round, "organs": list(store.organs.names)}


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


@router.get("/cases/{case_id}")
def case(case_id: str, store: Round, user: User) -> Record:
    return store.describe(case_id)


@router.post("/cases/{case_id}/lease")
def lease(case_id: str, store: Round, user: User) -> Any:
    """Take the case, or prolong one's lease of it; 409 where somebody else has it or it is submitted."""
    return store.queue.claim(store.round, case_id, user)


@router.delete("/cases/{case_id}/lease")
def release(case_id: str, store: Round, user: User) -> Any:
    return store.queue.release(store.item(case_id).item_id, user)


@router.post("/cases/{case_id}/submit")
def submit(case_id: str, store: Round, user: User, body: Annotated[Submission, Body()]) -> Any:
    return store.submit(case_id, user=user, seconds=body.seconds, note=body.note, verdict=body.verdict)


@router.post("/cases/{case_id}/{action}")
def set_aside(
    case_id: str, action: Literal["skip", "flag", "reopen"], store: Round, user: User, body: Annotated[Note, Body()]
) -> Any:
    item_id = store.item(case_id).item_id
    if action == "reopen":
        return store.queue.reopen(item_id, user)
    return (store.queue.skip if action == "skip" else store.queue.flag)(item_id, user, note=body.note)


# --- volumes ----------------------------------------------------------------------------------------------------------


@router.get("/cases/{case_id}/image")
def image(case_id: str, request: Request, store: Round, user: User) -> Response:
    """The CT, int16, on its own grid."""
    tag = store.case(case_id).sha256[:32]
    if f'"{tag}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": f'"{tag}"'})
    return _gzipped(store.image(case_id), tag)


@router.get("/cases/{case_id}/labels")
def labels(case_id: str, store: Round, user: User) -> Response:
    """The label map as it stands: draft and current revisions, on the header of the pseudo-label."""
    return _gzipped(*store.labels(case_id))


@router.get("/cases/{case_id}/labels/{organ}")
def mask(case_id: str, organ: str, store: Round, user: User) -> Response:
    """One organ's own mask (0 or 1); its revision is the ETag."""
    data, revision = store.mask(case_id, organ)
    return _gzipped(data, str(revision))


@router.get("/cases/{case_id}/heat")
def heat(case_id: str, store: Round, user: User) -> Response:
    return _file(store.heat(case_id))


@router.get("/cases/{case_id}/attention/{organ}")
def attention(case_id: str, organ: str, store: Round, user: User) -> Response:
    """One bit per criterion that fired."""
    return _file(store.attention(case_id, organ))


@router.get("/cases/{case_id}/architectures/{name}")
def architecture(case_id: str, name: str, store: Round, user: User) -> Response:
    return _file(store.architecture(case_id, name))


def _gzipped(data: bytes, tag: str) -> Response:
    headers = {"Content-Encoding": "gzip", "ETag": f'"{tag}"', "Cache-Control": "no-cache"}
    return Response(data, media_type="application/octet-stream", headers=headers)


def _file(path: Path) -> Response:
    headers = {"Content-Encoding": "gzip", "Cache-Control": "no-cache"}
    return FileResponse(path, media_type="application/octet-stream", headers=headers)


# --- edits ------------------------------------------------------------------------------------------------------------


@router.put("/cases/{case_id}/labels/{organ}")
async def save(
    case_id: str, organ: str, request: Request, store: Round, user: User, seconds: Annotated[Seconds, Query()] = 0.0
) -> JSONResponse:
    """Compare-and-set: store the runs on top of the revision named by If-Match.

    200 {rev}; 409 the case is somebody else's; 412 {current} there is a newer revision; 422 malformed; 428 no If-Match.
    """
    parent_id = _parent(request)
    body = await request.body()  # bounded by the gate
    revision = await run_in_threadpool(store.save, case_id, organ, body, parent_id=parent_id, user=user, seconds=seconds)
    answer = {"rev": revision.revision_id, "voxels": revision.voxels}
    return JSONResponse(answer, headers={"ETag": f'"{revision.revision_id}"'})


def _parent(request: Request) -> int:
    value = request.headers.get("if-match")
    if value is None:
        raise HTTPException(428, 'If-Match: "revision" is required, so that nobody overwrites what they have not seen')
    found = re.fullmatch(r'"?(\d{1,9})"?', value.strip())
    if not found:
        raise HTTPException(422, f"If-Match is {value!r}; a revision number is allowed")
    return int(found[1])


@router.get("/cases/{case_id}/labels/{organ}/history")
def history(case_id: str, organ: str, store: Round, user: User) -> Record:
    """Every revision of the organ, oldest first."""
    return {"revisions": store.history(case_id, organ)}


@router.post("/cases/{case_id}/labels/{organ}/revert/{revision}")
def revert(case_id: str, organ: str, revision: int, store: Round, user: User) -> Record:
    """Append the edit that brings an earlier revision back (0 is the draft)."""
    return {"rev": store.revert(case_id, organ, to=revision, user=user).revision_id}


@router.get("/cases/{case_id}/components")
def components(case_id: str, store: Round, user: User) -> Record:
    """Attention components, highest score first, in voxels of the image's own grid."""
    return {"components": store.components(case_id)}


@router.put("/cases/{case_id}/components/{organ}/{index}/verdict")
def judge(case_id: str, organ: str, index: int, store: Round, user: User, body: Annotated[Judgment, Body()]) -> Record:
    store.judge(case_id, organ, index, body.verdict, user=user)
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
