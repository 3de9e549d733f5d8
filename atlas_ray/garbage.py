"""What a campaign keeps and what it can do without.

Kept, whatever happens: images, labels, truths, annotations with their provenance, the annotation database, every network, the
tracking store; of every prediction the pseudo-label, components, scores and checksums; the whole of the newest round that was
queued, of every later round, and of every round whose queue is not worked off or not merged.

Garbage: of the predictions of the rounds before that, heat, attention (but of annotated cases, where later trainings look closer)
and each architecture's own label map: the app shows them while a round is annotated. Training states of these rounds; cache entries
that no coming training reads; files that a job which died left half-written.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue
from atlas_ray.config import Campaign
from atlas_ray.lock import LEASE_S
from atlas_ray.schema import Schema
from atlas_ray.steps.train import cache_keys
from atlas_ray.storage import PARTIALS, place, remove, write_atomically
from atlas_ray.workspace import Workspace, now

Kind = Literal["heat", "attention", "architectures", "training states", "cache", "leftover"]
HEAVY: dict[str, Kind] = {"heat.nii.gz": "heat", "attention": "attention", "architectures": "architectures"}
OLD_S = 10 * LEASE_S  # a half-written file is nobody's when it is older: its writer has died or lost the lock
COLLECTED = "COLLECTED"  # in a round's folder: what of its predictions was removed, and when


class Garbage(Schema):
    """Something that nobody needs.

    Args:
        where: a file, or a folder with all that is in it.
    """

    kind: Kind
    round: int | None
    where: str
    bytes: int


def find_garbage(campaign: Campaign) -> list[Garbage]:
    """What `collect` would remove. Reads only."""
    workspace = campaign.open_workspace()
    old = old_rounds(campaign)
    found = [_garbage(kind, r, path) for r in old for kind, path in _heavy(workspace, r)]
    found += [_garbage("training states", r, path) for r in old for path in workspace.train_states(r)]
    found += [_garbage("cache", None, path) for path in _unused_cache(workspace, campaign)]
    return found + [_garbage("leftover", None, path) for path in leftovers(workspace)]


def collect(campaign: Campaign, garbage: Sequence[Garbage]) -> int:
    """Remove it. Returns bytes."""
    workspace = campaign.open_workspace()
    freed = 0
    collected = {item.round for item in garbage if item.kind in HEAVY.values()}
    for round_index in (r for r in collected if r is not None):
        write_atomically(workspace.round(round_index) / COLLECTED, f"{', '.join(sorted(set(HEAVY.values())))} at {now()}\n")
    for item in garbage:
        remove(place(item.where))
        freed += item.bytes
    return freed


def old_rounds(campaign: Campaign) -> list[int]:
    """Rounds whose heavy files nobody needs."""
    workspace = campaign.open_workspace()
    rounds = workspace.rounds()
    queued = [r for r in rounds if workspace.priority_csv(r).exists() and not workspace.round_state(r).abandoned]
    newest = max(queued, default=0)
    return [r for r in rounds if r < newest and (workspace.round_state(r).abandoned or _is_merged(campaign, r))]


def _is_merged(campaign: Campaign, round_index: int) -> bool:
    if not campaign.has_database:
        return True
    with open_database(campaign.database_url) as database:
        counts = Queue(database).counts(round_index)
    is_open = counts.get("waiting", 0) + counts.get("leased", 0) + counts.get("flagged", 0)
    merged = "merge" in campaign.open_workspace().finished_steps(round_index)
    return not is_open and (merged or not counts.get("submitted", 0))


def is_collected(path: Path, prediction: Path) -> bool:
    """Whether a file of a prediction is one that `collect` removes, in a round where it has."""
    return path.relative_to(prediction).parts[0] in HEAVY and (prediction.parent.parent / COLLECTED).exists()


def leftovers(workspace: Workspace) -> Iterator[Path]:
    """Half-written files and folders old enough to be nobody's."""
    folders = [workspace.root, workspace.locks]
    folders += [path("x").parent for path in (workspace.label, workspace.truth, workspace.ingested, workspace.attempts)]
    folders += [workspace.caches, *(workspace.caches.glob("*") if workspace.caches.exists() else ())]
    for r in workspace.rounds():
        folders += [workspace.round(r), workspace.predictions(r), workspace.checkpoints(r)]
        folders += [workspace.tables(r) / kind for kind in ("scores", "components")]
        folders += [workspace.annotations(r), *(workspace.annotations(r) / case_id for case_id in sorted(workspace.merged(r)))]
        if (workspace.round(r) / COLLECTED).exists():
            folders += [workspace.prediction(r, case_id) for case_id in sorted(workspace.predicted(r))]
    for folder in folders:
        for path in folder.glob(PARTIALS) if folder.exists() else ():
            if time.time() - path.stat().st_mtime > OLD_S:
                yield path


def _heavy(workspace: Workspace, round_index: int) -> Iterator[tuple[Kind, Path]]:
    annotated = workspace.merged(round_index)
    for case_id in sorted(workspace.predicted(round_index)):
        for name, kind in HEAVY.items():
            if kind == "attention" and case_id in annotated:
                continue
            if (path := workspace.prediction(round_index, case_id) / name).exists():
                yield kind, path


def _unused_cache(workspace: Workspace, campaign: Campaign) -> Iterator[Path]:
    """Entries that neither the newest round's training nor the next one's would look for."""
    if not workspace.caches.exists():
        return
    newest = workspace.newest_round()
    used = cache_keys(campaign, newest) | cache_keys(campaign, newest + 1)
    yield from (path for path in sorted(workspace.caches.iterdir()) if path.name not in used and not path.name.startswith("."))


def _garbage(kind: Kind, round_index: int | None, path: Path) -> Garbage:
    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return Garbage(kind=kind, round=round_index, where=str(path), bytes=size)
