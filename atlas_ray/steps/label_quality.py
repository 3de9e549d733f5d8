"""Given labels, original ones too, scored by what the networks think of them: the worst are worth a look.

Out of sample are holdout cases, annotations newer than the networks, and organs of a case that were not labeled when the networks
were trained. Of other labels a network that has learned them may only repeat them; a second campaign whose networks have not seen
these cases can judge instead.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from atlas_ray.annotation.drafts import latest_annotation, read_provenance
from atlas_ray.cluster.identity import Identity
from atlas_ray.cluster.label_scores import GivenLabel, GivenOrgan, ScoredLabel, score_case
from atlas_ray.cluster.prediction import Row, checkpoint_shas, stream
from atlas_ray.cluster.tracking import step_run
from atlas_ray.config import Campaign
from atlas_ray.data.label_quality import OrganLabelScore
from atlas_ray.exceptions import AtlasError, ConfigError, WorkspaceError
from atlas_ray.organs import Organs
from atlas_ray.records import Case, LabelSource
from atlas_ray.steps.train import labeled_cases
from atlas_ray.storage import write_atomically
from atlas_ray.workspace import Workspace, file_sha256

log = logging.getLogger(__name__)


def given_labels(campaign: Campaign, round_index: int, judge: Campaign) -> list[tuple[Case, GivenLabel]]:
    """Every case with a label to score: the reference of a holdout, the last annotation up to the round, the original label.

    Args:
        judge: whose networks of the round judge; the campaign itself, or another with the same organs.

    Raises:
        ConfigError: the judge does not know every organ.
        AtlasError: a checkpoint is missing.
    """
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    if unknown := sorted(set(organs.names) - set(judge.load_organs().names)):
        raise ConfigError(f"{judge.name} does not know {', '.join(unknown)}; it cannot judge {campaign.name}")
    learned = {found.case.sha256: set(found.sources) for found in labeled_cases(judge, round_index)}
    identity = Identity.of(judge, checkpoint_shas(judge, round_index))
    given = []
    for case in workspace.cases():
        path, sources = _label(case, round_index, workspace, organs)
        if not sources:
            continue
        named = tuple(
            GivenOrgan(organ=name, label_id=organs.label_id(name), source=source, in_sample=name in learned.get(case.sha256, ()))
            for name, source in sources.items()
        )
        parts = [identity.key(case), file_sha256(path), campaign.label_quality.model_dump(), [o.model_dump() for o in named]]
        label = GivenLabel(
            case_id=case.case_id,
            path=str(path),
            organs=named,
            settings=campaign.label_quality,
            result=str(workspace.label_score(round_index, case.case_id)),
            key=hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
        )
        given.append((case, label))
    return given


def _label(case: Case, round_index: int, workspace: Workspace, organs: Organs) -> tuple[Path, dict[str, LabelSource]]:
    """The label map to score, and of which organs it says something that is no network's word alone."""
    if case.split == "holdout":
        truth = workspace.truth(case.case_id)
        return truth, dict.fromkeys(organs.names, "original") if truth.exists() else {}
    latest = latest_annotation(workspace, case.case_id, before=round_index + 1)
    if latest is not None:
        entries = read_provenance(workspace, latest, case.case_id).organs
        return workspace.annotation(latest, case.case_id), {e.organ: e.source for e in entries if e.source != "pseudo"}
    return workspace.label(case.case_id), dict.fromkeys(case.labeled_organs, "original")


def finished_label(label: GivenLabel, workspace: Workspace, round_index: int) -> ScoredLabel | None:
    """The scores, where they are of this very label, these networks and settings."""
    try:
        found = ScoredLabel.model_validate_json(workspace.label_score(round_index, label.case_id).read_bytes())
    except (FileNotFoundError, ValidationError):  # none yet, or another version's
        return None
    return found if found.key == label.key else None


def label_quality_step(
    campaign: Campaign, round_index: int, *, judge: Campaign | None = None, progress: Callable[[Row], None] = lambda row: None
) -> list[OrganLabelScore]:
    """Score every given label that is not scored yet; write the table, worst first, and track it.

    Raises:
        WorkspaceError: nothing is labeled.
        AtlasError: a checkpoint is missing, or more than `cluster.max_failed_fraction` of the cases failed.
    """
    judge, workspace = judge or campaign, campaign.open_workspace()
    given = given_labels(campaign, round_index, judge)
    if not given:
        raise WorkspaceError(f"{workspace.manifest} has no labeled case; there is nothing to score")
    todo = [(case, label) for case, label in given if not finished_label(label, workspace, round_index)]
    items = [{"case_id": case.case_id, "case": case.model_dump_json(), "label": label.model_dump_json()} for case, label in todo]
    failed = []
    for row in stream(judge, round_index, items, score_case) if items else ():
        progress(row)
        if row["error"]:
            log.warning("%s: %s", row["case_id"], row["error"])
            failed.append(row["case_id"])
    done = [found for _, label in given if (found := finished_label(label, workspace, round_index))]
    scores = worst_first(score for found in done for score in found.organs)
    _write(campaign, round_index, scores)
    if len(failed) > campaign.cluster.max_failed_fraction * len(given):
        raise AtlasError(f"{len(failed)} of {len(given)} labels could not be scored, such as {failed[0]}; the log has the reasons")
    return scores


def worst_first(scores: Iterable[OrganLabelScore]) -> list[OrganLabelScore]:
    return sorted(scores, key=lambda s: (s.score, s.mean_probability, s.case_id, s.organ))


def _write(campaign: Campaign, round_index: int, scores: Sequence[OrganLabelScore]) -> None:
    workspace = campaign.open_workspace()
    table = pd.DataFrame([s.model_dump() for s in scores], columns=list(OrganLabelScore.model_fields))
    write_atomically(workspace.label_quality_csv(round_index), table.to_csv(index=False, float_format="%.6g"))
    write_atomically(workspace.label_quality_parquet(round_index), table.to_parquet(index=False))
    unseen = table[~table.in_sample.astype(bool)]
    means = {f"label_quality/{organ}": float(of.score.mean()) for organ, of in table.groupby("organ", sort=False)}
    with step_run(campaign, round_index, "label-quality") as run:
        run.metrics(
            {
                "label_quality/labels": len(table),
                "label_quality/out_of_sample": len(unseen),
                "label_quality/mean": float(table.score.mean()),
                "label_quality/mean_out_of_sample": float(unseen.score.mean()),
                **means,
            },
            step=round_index,
        )
        run.artifact(workspace.label_quality_csv(round_index))
