"""Train (round 0) or fine-tune (later rounds) every architecture on what is known by then."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from atlas_ray import __version__
from atlas_ray.annotation.drafts import (
    latest_annotation,
    read_provenance,
)
from atlas_ray.cluster import training
from atlas_ray.cluster.tasks import map_cases
from atlas_ray.cluster.tracking import step_run
from atlas_ray.config import Campaign
from atlas_ray.data.preprocess import Preprocessing, cache_key, write_cache
from atlas_ray.exceptions import AtlasError, CaseError
from atlas_ray.organs import Organs
from atlas_ray.records import Case, LabelSource, Quarantined
from atlas_ray.schema import Schema
from atlas_ray.segmentation.checkpoints import Provenance as CheckpointProvenance
from atlas_ray.segmentation.schedule import Schedule
from atlas_ray.storage import is_whole, place
from atlas_ray.workspace import Workspace, file_sha256, now

log = logging.getLogger(__name__)
Progress = Callable[[], None]


def _nothing() -> None:
    """No progress bar."""


class LabeledCase(Schema):
    """A case with the label training uses and what may be believed of it.

    Args:
        sources: organ -> who says what its label is, for the organs that count.
        attention: maps of the organs that a person changed, from the round they were changed in.
        is_annotated: whether a person has annotated any of it in this campaign.
    """

    case: Case
    label: str
    sources: dict[str, LabelSource]
    attention: tuple[str, ...] = ()
    is_annotated: bool = False


def labeled_cases(campaign: Campaign, round_index: int) -> list[LabeledCase]:
    """What round `round_index`'s networks learn from: ground truth, and every annotation of an earlier round over it.

    Where `trust.pseudo` is above 0, unlabeled cases that nobody has annotated come with the last round's pseudo-label.
    """
    workspace, trust = campaign.open_workspace(), _section(campaign, round_index).trust
    labeled = []
    for case in workspace.cases():
        if case.split == "holdout":
            continue
        found = _label_of(campaign, round_index, case)
        sources = {organ: source for organ, source in found.sources.items() if trust.of(source) > 0}
        if sources:
            labeled.append(found.model_copy(update={"sources": sources}))
    return labeled


def _label_of(campaign: Campaign, round_index: int, case: Case) -> LabeledCase:
    workspace = campaign.open_workspace()
    latest = latest_annotation(workspace, case.case_id, before=round_index)
    if latest is not None:
        return _annotated(workspace, case, latest)
    pseudo = workspace.pseudo_label(round_index - 1, case.case_id)
    if not case.labeled_organs and pseudo.exists():
        return LabeledCase(case=case, label=str(pseudo), sources=dict.fromkeys(campaign.load_organs().names, "pseudo"))
    return LabeledCase(case=case, label=str(workspace.label(case.case_id)), sources=dict.fromkeys(case.labeled_organs, "original"))


def _annotated(workspace: Workspace, case: Case, annotated_in: int) -> LabeledCase:
    organs = read_provenance(workspace, annotated_in, case.case_id).organs
    revised = [workspace.attention(e.round, case.case_id, e.organ) for e in organs if e.source == "revised" and e.round is not None]
    return LabeledCase(
        case=case,
        label=str(workspace.annotation(annotated_in, case.case_id)),
        sources={entry.organ: entry.source for entry in organs},
        attention=tuple(str(path) for path in revised if path.exists()),
        is_annotated=True,
    )


def _section(campaign: Campaign, round_index: int) -> Schedule:
    return campaign.training if round_index == 0 else campaign.finetuning


def train_step(campaign: Campaign, round_index: int, *, progress: Progress = _nothing) -> list[Path]:
    """Train (round 0) or fine-tune (later rounds) every architecture; finished checkpoints are kept."""
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    wanted = [(a, workspace.checkpoint(round_index, a.architecture)) for a in campaign.architectures]
    if all(path.exists() for _, path in wanted):
        return [path for _, path in wanted]
    section = _section(campaign, round_index)
    labeled, watched = _divided(campaign, labeled_cases(campaign, round_index), section)
    training_cases, validation = _cached(campaign, organs, labeled), _cached(campaign, organs, watched)
    data_key = hashlib.sha256("".join(f"{c.folder}{c.sources}{c.is_annotated}" for c in training_cases).encode()).hexdigest()[:16]
    for architecture, path in wanted:
        name = architecture.architecture
        parent = None if round_index == 0 else workspace.checkpoint(round_index - 1, name)
        if parent is not None and not parent.exists():
            raise AtlasError(f"checkpoint {parent} is missing; train round {round_index - 1} first")
        schedule, parent_sha256 = section.of(name), file_sha256(parent) if parent else ""
        training_key = _hash(parent_sha256, data_key, schedule, architecture, campaign.patches)  # another one resumes nothing
        with step_run(campaign, round_index, f"train-{name}", kind="train") as run:
            plan = training.TrainingPlan(
                name=f"{campaign.name}-r{round_index:03d}-{name}-{training_key}",
                output=str(path),
                last_output=str(workspace.last_checkpoint(round_index, name)),
                parent=str(parent) if parent else None,
                storage=str(workspace.train_storage),
                organs=organs,
                architecture=architecture,
                schedule=schedule,
                patches=campaign.patches,
                preprocessing=campaign.preprocessing,
                inference=campaign.inference,
                pseudo_labels=campaign.pseudo_labels,
                cases=training_cases,
                validation=validation,
                provenance=CheckpointProvenance(
                    round=round_index,
                    parent=parent_sha256 or None,
                    cases=len(training_cases),
                    data_key=data_key,
                    steps=schedule.steps,
                    seed=schedule.seed,
                    created=now(),
                    versions=_versions(),
                ),
                tracking_uri=campaign.tracking_uri,
                run_id=run.run_id,
            )
            run.params({"architecture": architecture.model_dump_json(), "cases": str(len(training_cases)), "data_key": data_key})
            training.train(plan, _resources(campaign))
            sha256 = file_sha256(path)
            run.tags({"checkpoint": str(path), "sha256": sha256})
            run.register(
                campaign.registered_model(name),
                sha256,
                alias="candidate" if round_index else "champion",
                tags={"path": str(path), "round": str(round_index)},
            )
        progress()
    return [path for _, path in wanted]


def _divided(campaign: Campaign, labeled: list[LabeledCase], section: Schedule) -> tuple[list[LabeledCase], list[LabeledCase]]:
    """The cases to train on, and those to validate on.

    Validation cases of the training split are chosen by a hash of their names, so that every round leaves out the same ones.
    """
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    if section.validate_on == "holdout":
        holdout = [c for c in workspace.cases() if c.split == "holdout" and workspace.truth(c.case_id).exists()]
        truths = [
            LabeledCase(case=c, label=str(workspace.truth(c.case_id)), sources=dict.fromkeys(organs.names, "original"))
            for c in holdout[: section.validation_cases]
        ]
        return labeled, truths
    own = sorted((x for x in labeled if x.case.split == "train"), key=lambda x: hashlib.sha256(x.case.case_id.encode()).digest())
    watched = own[: section.validation_cases]
    return [x for x in labeled if x not in watched], watched


def cache_keys(campaign: Campaign, round_index: int) -> set[str]:
    """Names of the cache entries that the round's training reads; cases whose label is gone have none."""
    organs = campaign.load_organs()
    labeled, watched = _divided(campaign, labeled_cases(campaign, round_index), _section(campaign, round_index))
    there = [case for case in (*labeled, *watched) if place(case.label).exists()]
    return {_cache_key(case, campaign.preprocessing, organs) for case in there}


def _cache_key(labeled: LabeledCase, preprocessing: Preprocessing, organs: Organs) -> str:
    focus = [place(path) for path in labeled.attention]
    return cache_key(labeled.case, place(labeled.label), preprocessing, organs, focus=focus)


def _resources(campaign: Campaign) -> training.Resources:
    cluster = campaign.cluster
    return training.Resources(
        workers=cluster.train_workers,
        cpus_per_worker=cluster.cpus_per_worker,
        use_gpu=cluster.use_gpu,
        max_failures=cluster.train_failures,
    )


def _cached(campaign: Campaign, organs: Organs, labeled: Sequence[LabeledCase]) -> tuple[training.TrainingCase, ...]:
    """Training cases, each in the cache; one that cannot be read is quarantined and left out."""
    workspace = campaign.open_workspace()
    one = partial(_cache_one, root=str(workspace.root), preprocessing=campaign.preprocessing, organs=organs)
    ready = []
    for result in map_cases(one, labeled):
        if isinstance(result, Quarantined):
            log.warning("%s: %s", result.case_id, result.reason)
            workspace.add_to_quarantine(result)
        else:
            ready.append(result)
    return tuple(ready)


def _cache_one(
    labeled: LabeledCase, *, root: str, preprocessing: Preprocessing, organs: Organs
) -> training.TrainingCase | Quarantined:
    case = labeled.case
    try:
        label, focus = place(labeled.label), [place(path) for path in labeled.attention]
        folder = Workspace(root).cache(_cache_key(labeled, preprocessing, organs), case.case_id)
        if not is_whole(folder):
            write_cache(folder, case, label, preprocessing, organs, focus=focus)
    except (CaseError, OSError) as error:
        return Quarantined(case_id=case.case_id, step="cache", reason=str(error), path=case.image)
    return training.TrainingCase(
        case_id=case.case_id, folder=str(folder), sources=labeled.sources, is_annotated=labeled.is_annotated
    )


def _hash(*parts: Schema | str) -> str:
    shown = [part if isinstance(part, str) else part.model_dump(mode="json") for part in parts]
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"atlas_ray": __version__, **{package: version(package) for package in ("torch", "monai", "ray")}}
