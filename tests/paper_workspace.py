"""A campaign that exists on paper: manifest, results and queue are there as files, and no voxel was ever computed."""

from pathlib import Path
from typing import Any

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue, QueueEntry
from atlas_ray.config import Campaign
from atlas_ray.records import Case, CaseScores, OrganScores, Split
from atlas_ray.workspace import Workspace, file_sha256, seal, write_lines


def make_campaign(root: Path, **changes: Any) -> Campaign:
    datasets = [{"source": "phantom", "name": "unused", "count": 1, "split": "pool"}]
    unet = {"architecture": "unet", "features": [4, 8], "residual_units": 1}
    return Campaign.model_validate(
        {"name": "paper", "workspace": str(root / "workspace"), "datasets": datasets, "architectures": [unet], **changes}
    )


def make_case(root: Path, case_id: str, split: Split = "pool", **fields: Any) -> Case:
    """Its image is a file of a few bytes."""
    image = root / "images" / f"{case_id}.nii.gz"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(case_id.encode())
    known = {"image": str(image), "sha256": file_sha256(image), "shape": (4, 4, 4), "spacing": (1, 1, 1), "orientation": "RAS"}
    return Case.model_validate({"case_id": case_id, **known, "source": "x", "license": "CC0-1.0", "split": split, **fields})


def write_manifest(campaign: Campaign, cases: list[Case]) -> None:
    write_lines(campaign.open_workspace().manifest, cases)


def write_prediction(workspace: Workspace, round_index: int, case_id: str, *, key: str = "", attention: int = 1) -> None:
    folder = workspace.prediction(round_index, case_id)
    for name in ("pseudo_label.nii.gz", "heat.nii.gz", "attention/liver.nii.gz", "architectures/unet.nii.gz", "components.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"" if name.endswith("jsonl") else f"{name} of {case_id}".encode())
    organ = OrganScores(
        organ="liver", attention_voxels=attention, attention_mm3=attention, heat_sum=attention, predicted_ml=1, components=0
    )
    record = CaseScores(
        case_id=case_id,
        round=round_index,
        checkpoints={"unet": "ab"},
        attention_mode="physical",
        attention_voxels=attention,
        attention_mm3=attention,
        organs=(organ,),
        seconds=1,
        key=key,
        bytes=100,
    )
    seal(folder, "scores.json", record.model_dump_json())


def write_annotation(workspace: Workspace, round_index: int, case_id: str) -> None:
    folder = workspace.annotations(round_index) / case_id
    folder.mkdir(parents=True)
    (folder / "label.nii.gz").write_bytes(b"label")
    seal(folder, "provenance.json", "{}")


def fill_queue(campaign: Campaign, round_index: int, case_ids: list[str]) -> None:
    entries = [QueueEntry(case_id=case_id, organs=("liver",), rank=rank) for rank, case_id in enumerate(case_ids, 1)]
    with open_database(campaign.database_url) as database:
        Queue(database).fill(round_index, entries)
