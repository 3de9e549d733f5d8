"""What a round's revisions teach about errors: detectors and thresholds of calibrated attention, for the rounds after it."""

import logging
from collections.abc import Iterator

import numpy as np

from atlas_ray.annotation.drafts import read_draft, read_provenance
from atlas_ray.attention.candidates import Candidates, from_bytes
from atlas_ray.attention.criteria import CalibratedAttention
from atlas_ray.attention.detector import AttentionDetector, cohorts
from atlas_ray.attention.learning import Revised, compare, learn
from atlas_ray.config import Campaign
from atlas_ray.organs import Organs
from atlas_ray.records import Case
from atlas_ray.storage import write_atomically
from atlas_ray.volume import Volume, read_volume, reorient
from atlas_ray.workspace import Workspace

log = logging.getLogger(__name__)


def learn_attention_step(
    campaign: Campaign, round_index: int, *, mode: CalibratedAttention, looked_at: Workspace | None = None
) -> AttentionDetector:
    """Learn from every case that was revised in this round or an earlier one, and write the detector beside the candidates.

    Args:
        mode: what is learned for.
        looked_at: the workspace with the candidates; the campaign's own by default, which has the annotations.
    """
    annotated, organs = campaign.open_workspace(), campaign.load_organs()
    looked_at = looked_at or annotated
    revised: list[Revised] = []
    for earlier in range(round_index + 1):
        for case_id in sorted(annotated.merged(earlier)):
            candidates = _candidates(looked_at, earlier, case_id)
            if candidates:
                case = annotated.case(case_id)
                revised += _revised(annotated, earlier, case, organs, candidates, campaign.evaluation.min_error_mm3)
    seen = [_candidates(looked_at, round_index, case_id) for case_id in sorted(looked_at.predicted(round_index))]
    detector = learn(
        revised,
        organs.names,
        cohort=cohorts([case for case in seen if case]),
        anatomy=mode.anatomy,
        learner=mode.learner,
        alpha=mode.alpha,
        round_index=round_index,
    )
    for line in said(detector):
        log.info("round %d, calibrated attention: %s", round_index, line)
    write_atomically(looked_at.attention_detector(round_index), detector.model_dump_json(indent=1))
    return detector


def said(detector: AttentionDetector) -> Iterator[str]:
    """A line per organ: what its threshold rests on, or what is missing for one."""
    for own in detector.organs:
        have = f"{own.organ}: {own.cases} revised cases with an error, {own.needed} needed for alpha {detector.alpha:g}"
        if own.scorer is None:
            yield f"{have}; the physical thresholds stay in force"
            continue
        rest = " (together with other organs that have few)" if own.scope == "group" else ""
        missed = "not measured" if own.missed_share is None else f"{own.missed_share:.3f}"
        promise = "" if own.is_kept else f"; {own.without_candidate:.0%} of the error volume has no candidate, alpha is of the rest"
        yield f"{have}{rest}; shown from probability {own.threshold:.3f} on, missed share on held-out cases {missed}{promise}"


def _candidates(workspace: Workspace, round_index: int, case_id: str) -> dict[str, Candidates]:
    """{} where the case was predicted without, or they were cleared away."""
    path = workspace.candidates(round_index, case_id)
    return from_bytes(path.read_bytes()) if path.exists() else {}


def _revised(
    workspace: Workspace,
    round_index: int,
    case: Case,
    organs: Organs,
    candidates: dict[str, Candidates],
    min_error_mm3: float,
) -> Iterator[Revised]:
    """Every organ that somebody revised or confirmed in this round."""
    judged = {e.organ for e in read_provenance(workspace, round_index, case.case_id).organs if e.users and e.round == round_index}
    if not judged:
        return
    draft, label = read_draft(workspace, round_index, case, organs), read_volume(workspace.annotation(round_index, case.case_id))
    before, after = _in_ras(draft), _in_ras(label)
    for name in organs.names:
        if name in judged and name in candidates:
            changed = organs.mask(before.voxels, name) != organs.mask(after.voxels, name)
            yield compare(case.case_id, name, candidates[name], changed, before.spacing, min_error_mm3=min_error_mm3)


def _in_ras(volume: Volume) -> Volume:
    ras = reorient(volume)
    return ras.with_voxels(np.ascontiguousarray(ras.voxels, np.uint8))
