"""The part of MONAI Label's REST that its 3D Slicer module uses, under /monailabel: the same queue, revisions and accounts.

    GET  /info/                     organs, "models" (labels that exist), the strategy, how far the round is
    GET  /auth/, POST /auth/token   log in with name and password
    POST /activelearning/attention  lease the next case
    GET  /datastore/...             images and labels
    PUT  /datastore/label           what was drawn, as revisions; tag "final" (or none) submits the case
    POST /infer/{model}             a label that exists: "current" with everything saved, the ensemble's, an architecture's

Semantics are those of monailabel 0.8.5. Slicer numbers the segments of a label map as it likes and says how in `label_info`;
without it the values are the organ set's label ids. Not covered: training, sessions, scribbles, images that are uploaded, OHIF
(which needs a DICOMweb server).
"""

import json
import secrets
import tempfile
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Form, HTTPException, Query, Request, UploadFile
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, ValidationError

from atlas_ray.annotation.queue import WorkItem
from atlas_ray.exceptions import CaseError, LabelError
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.storage import place
from atlas_ray.volume import Volume, corner_distance_mm, nifti_bytes, read_volume, same_grid
from ui.api import Round, User, UserRole
from ui.login import SLICER, LoginRefused, Principal, address_of, current_principal, read_form
from ui.store import Record, Store

CURRENT, ENSEMBLE = "current", "ensemble"
STRATEGY = "attention"
SUBMITTED = "final"  # MONAI Label's tag for what is done; also what no tag means
LARGEST_VOXEL = 8  # bytes: float64, which label maps are sometimes saved as
HEADER_ROOM = 1 << 20

router = APIRouter(prefix=SLICER)
CaseId = Annotated[str, Query(alias="image", max_length=255)]


class Segment(BaseModel):
    """Which value of an uploaded label map is which organ."""

    name: str
    idx: Annotated[int, Field(ge=0)]


class LabelParams(BaseModel):
    """What a client says of an uploaded label map; it says more, which means nothing here."""

    label_info: list[Segment] | None = None


# --- what there is ----------------------------------------------------------------------------------------------------


@router.get("/info/")
def info(store: Round, user: User) -> Record:
    labels = {organ.name: organ.label_id for organ in store.organs}
    models = {name: {"type": "segmentation", "labels": labels, "dimension": 3, "config": {}} for name in _models(store)}
    described = {CURRENT: "the label with everything saved so far", ENSEMBLE: "the ensemble's pseudo-label"}
    for name, model in models.items():
        model["description"] = described.get(name, f"what {name} alone predicted")
    return {
        "name": "atlas_ray",
        "description": f"round {store.round}, organ set {store.organs.name}",
        "version": store.organs.version,
        "labels": list(store.organs.names),
        "models": models,
        "trainers": {},
        "strategies": {STRATEGY: {"description": "the round's queue, largest expected gain first"}},
        "scoring": {},
        "train_stats": {},
        "datastore": _progress(store),
    }


def _models(store: Store) -> list[str]:
    """The current label first: it is the one Slicer opens a case with."""
    scored = (item.case_id for item in store.queue.items(store.round))
    first = next((case_id for case_id in scored if store.workspace.scores(store.round, case_id).exists()), None)
    alone = sorted(store.workspace.case_scores(store.round, first).checkpoints) if first is not None else []
    return [CURRENT, ENSEMBLE, *alone]


def _progress(store: Store) -> Record:
    counts = store.queue.counts(store.round)
    done = counts.get("submitted", 0)
    return {"total": sum(counts.values()), "completed": done, "label_tags": {SUBMITTED: done} if done else {}}


@router.get("/datastore/")
def datastore(store: Round, user: User, output: Literal["stats", "all"] = "stats") -> Record:
    if output == "stats":
        return _progress(store)
    file = {"ext": ".nii.gz", "info": {}}
    objects: dict[str, Record] = {}
    for item in store.queue.items(store.round):
        labels = {SUBMITTED: file} if item.state == "submitted" else {}
        objects[item.case_id] = {"image": file, "labels": labels}
    return {"name": "atlas_ray", "description": f"round {store.round}", "objects": objects}


@router.get("/datastore/image")
def image(case_id: CaseId, store: Round, user: User) -> Response:
    """The CT as int16 .nii.gz."""
    return _file(case_id, store.image(case_id))


@router.get("/datastore/label")
def label(
    case_id: Annotated[str, Query(alias="label", max_length=255)], store: Round, user: User, role: UserRole, tag: str = SUBMITTED
) -> Response:
    """The label map as it stands."""
    if tag not in ("", SUBMITTED):
        raise HTTPException(404, f"there is no label with tag {tag!r}; {SUBMITTED!r} is the one there is")
    item = store.shown(case_id, user, role)
    return _file(case_id, store.labels(item)[0])


def _file(case_id: str, data: bytes) -> Response:
    """As a file to keep: without Content-Encoding, which a downloader would undo."""
    headers = {"Content-Disposition": f'attachment; filename="{case_id}.nii.gz"'}
    return Response(data, media_type="application/gzip", headers=headers)


# --- logging in -------------------------------------------------------------------------------------------------------


@router.get("/auth/")
def is_login_needed(request: Request) -> Record:
    return {"enabled": not hasattr(request.state, "user")}


@router.post("/auth/token")
async def access_token(request: Request) -> JSONResponse:
    """Name and password for the bearer token of a session."""
    login = request.app.state.login
    if login.accounts is None:
        return JSONResponse({"access_token": None, "token_type": None})
    form = await read_form(request)
    try:
        session = await login.sign_in(form.get("username", ""), form.get("password", ""), address=address_of(request))
    except LoginRefused as refused:
        return JSONResponse({"detail": str(refused)}, refused.status, headers=refused.headers)
    return JSONResponse({"access_token": session, "token_type": "bearer"})


@router.get("/auth/token/valid")
def who(principal: Annotated[Principal, Depends(current_principal)]) -> Record:
    return {"username": principal.user, "roles": [principal.role]}


# --- annotating -------------------------------------------------------------------------------------------------------


@router.post("/activelearning/{strategy}")
def next_sample(
    strategy: str,
    store: Round,
    principal: Annotated[Principal, Depends(current_principal)],
    params: Annotated[Record | None, Body()] = None,
) -> Record:
    """Lease the next case; {} where nothing is left."""
    if strategy != STRATEGY:
        raise HTTPException(404, f"there is no strategy {strategy!r}; {STRATEGY!r} is the one there is")
    item = store.queue.next(principal.user, round_index=store.round)
    if item is None:
        return {}
    sample = {"id": item.case_id, "name": f"{item.case_id}.nii.gz", "PatientID": item.case_id, "weight": item.score}
    path = place(store.case(item.case_id).image)
    if principal.auth == "none" and isinstance(path, Path) and path.is_file():
        sample["path"] = str(path)
    return sample | {"organs": item.organs, "lease_expires": item.lease_expires}


@router.put("/datastore/label")
def save_label(
    case_id: CaseId,
    label: UploadFile,
    store: Round,
    user: User,
    role: UserRole,
    tag: Annotated[str, Query(max_length=64)] = SUBMITTED,
    params: Annotated[str, Form()] = "{}",
) -> Record:
    """Keep a label map: every organ it changes gets a revision; with the tag "final", or none, the case is submitted.

    Organs that `label_info` does not list stay as they are. 409 the case is not the user's; 422 another grid, another organ.
    """
    item = store.shown(case_id, user, role)
    try:
        segments = LabelParams.model_validate_json(params or "{}").label_info
    except ValidationError as error:
        raise HTTPException(422, f"params cannot be read: {error.errors()[0]['msg']}") from error
    current = store.label_map(item)
    name = Path(label.filename or "label").name
    found = _read_label(label.file.read(), name, current)
    drawn, listed = _as_organs(found, segments, store.organs)
    item = store.queue.claim(store.round, item.case_id, user, reading=item.reading)
    changed = store.replace_labels(item, drawn, listed, user=user)
    if tag in ("", SUBMITTED):
        verdict = "fixed" if store.current_revisions(item) else "accepted"
        store.submit(item, user=user, seconds=0.0, note="", verdict=verdict)
    return {"image": case_id, "label": case_id, "organs": changed}


def _read_label(data: bytes, name: str, current: Volume) -> Volume:
    """The uploaded label map. Raises HTTPException where it is no NIfTI file, or not on the grid of `current`."""
    most = current.voxels.size * LARGEST_VOXEL + HEADER_ROOM
    with tempfile.NamedTemporaryFile(suffix=".nii") as file:
        file.write(_unfolded(data, name, most))
        file.flush()
        try:
            found = read_volume(file.name)
        except CaseError as error:
            raise HTTPException(422, str(error).replace(file.name, name)) from error
    if not same_grid(found, current):
        raise HTTPException(422, f"{name} is not on the image's grid: {_difference(found, current)}")
    return found


def _unfolded(data: bytes, name: str, most: int) -> bytes:
    """The file's own bytes, at most as many as a label map of this grid can have."""
    raw = data
    if data[:2] == b"\x1f\x8b":
        unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            raw = unzip.decompress(data, most + 1)
        except zlib.error as error:
            raise HTTPException(422, f"{name} is no gzip file: {error}") from error
        if len(raw) <= most and (not unzip.eof or unzip.unused_data):
            raise HTTPException(422, f"{name} is cut off or followed by something else")
    if len(raw) > most:
        raise HTTPException(422, f"{name} is larger than a label map on the image's grid; {most} bytes are allowed")
    return raw


def _difference(found: Volume, current: Volume) -> str:
    if found.shape != current.shape:
        return f"its shape is {found.shape}, the image's {current.shape}"
    off_mm = corner_distance_mm(found.affine, current.affine, current.shape)
    there, here = found.affine[:3].round(4).tolist(), current.affine[:3].round(4).tolist()
    return f"its corners lie up to {off_mm:.3g} mm from the image's; its affine is {there}, the image's {here}"


def _as_organs(found: Volume, segments: list[Segment] | None, organs: Organs) -> tuple[LabelMap, tuple[str, ...]]:
    """The label map with the organ set's ids, and the organs it speaks of. Raises HTTPException for anything else in it."""
    names = {organ.label_id: organ.name for organ in organs} if segments is None else {s.idx: s.name for s in segments if s.idx}
    known = {value: name for value, name in names.items() if name in organs.names}
    strange = [name for value, name in names.items() if value not in known and (found.voxels == value).any()]
    if strange:
        raise HTTPException(422, f"{', '.join(strange)} is no organ of set {organs.name}; it has {', '.join(organs.names)}")
    try:
        return organs.convert(found.voxels, to=organs, ids=known), tuple(dict.fromkeys(known.values()))
    except LabelError as error:
        raise HTTPException(422, str(error)) from error


@router.post("/infer/{model}")
def infer(
    model: str,
    case_id: CaseId,
    store: Round,
    user: User,
    role: UserRole,
    output: Literal["all", "image", "json"] = "all",
    session_id: str = "",
    file: UploadFile | None = None,
) -> Response:
    """A label that exists already; nothing is computed. The label map, and which of its values is which organ."""
    if session_id or file is not None:
        raise HTTPException(422, "only cases of the campaign have labels; there are neither sessions nor uploaded images")
    volume = _existing_label(store, store.shown(case_id, user, role), model)
    present = store.organs.present(volume.voxels)
    # Only the organs that are there: Slicer gives the n-th name to the n-th value it finds.
    params = {"label_names": {name: store.organs.label_id(name) for name in present}, "model": model}
    if output == "json":
        return JSONResponse(params)
    data = nifti_bytes(volume)
    return _file(case_id, data) if output == "image" else _multipart(params, f"{case_id}.nii.gz", data)


def _existing_label(store: Store, item: WorkItem, model: str) -> Volume:
    if model == CURRENT:
        return store.label_map(item)
    if model == ENSEMBLE:
        return read_volume(store.ensemble(item.case_id))
    return read_volume(store.architecture(item.case_id, model))


def _multipart(params: Record, filename: str, data: bytes) -> Response:
    boundary = secrets.token_hex(16)
    head = 'Content-Disposition: form-data; name="{}"{}\r\nContent-Type: {}\r\n\r\n'
    parts = (
        (head.format("params", "", "application/json"), json.dumps(params).encode()),
        (head.format("image", f'; filename="{filename}"', "application/gzip"), data),
    )
    body = b"".join(b"--%s\r\n%s%s\r\n" % (boundary.encode(), start.encode(), content) for start, content in parts)
    return Response(body + f"--{boundary}--\r\n".encode(), media_type=f"multipart/form-data; boundary={boundary}")


# --- what is not here -------------------------------------------------------------------------------------------------


def _refusal(status: int, detail: str) -> Any:
    def refuse() -> None:
        raise HTTPException(status, detail)

    return refuse


for _path, _methods, _status, _detail in (
    ("/train/", ["GET"], 404, "no training runs here; `python -m jobs.train` trains"),  # a client takes 200 for "it runs"
    ("/train/", ["POST", "DELETE"], 501, "training does not run here; `python -m jobs.train` trains"),
    ("/train/{model}", ["POST"], 501, "training does not run here; `python -m jobs.train` trains"),
    ("/session/", ["PUT"], 501, "there are no sessions; every image is a case of the campaign"),
    ("/session/{session_id}", ["GET", "DELETE"], 404, "there are no sessions; every image is a case of the campaign"),
    ("/datastore/", ["PUT", "DELETE"], 501, "images come in with `python -m jobs.ingest`"),
    ("/datastore/image", ["PUT", "DELETE"], 501, "images come in with `python -m jobs.ingest`"),
):
    router.add_api_route(_path, _refusal(_status, _detail), methods=_methods, include_in_schema=False)
