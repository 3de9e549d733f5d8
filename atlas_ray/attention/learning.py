"""Learning which candidates are errors, from cases that an annotator has revised.

A candidate is an error where it overlaps what the annotator changed. Scores of a case come from detectors that never saw the case
(cross-fitting), and on them the thresholds are chosen by conformal risk control; the detector that is used then learns from all.

What is not covered: an annotator who looks only where attention is shown leaves other errors, which then count as right; and
cross-fitting makes the promise approximate, because the detector in use has seen a few cases more than those that were scored.

Axes: C candidates, F features, R error regions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atlas_ray.attention.anatomy_rules import AnatomyRules, Mask, OrganCohort
from atlas_ray.attention.candidates import Candidates
from atlas_ray.attention.conformal import NEVER, CaseErrors, controlled_threshold, held_out_loss, needed_cases
from atlas_ray.attention.detector import (
    AttentionDetector,
    Boosting,
    Learner,
    Logistic,
    LogisticLearner,
    Numbers,
    OrganDetector,
    Scorer,
    Tree,
    judged,
)
from atlas_ray.components import box_of, connected_components
from atlas_ray.schema import Triple

FOLDS = 5
OWN_THRESHOLD = 2  # times the cases that alpha takes: with just enough, the hardest error of all sets the threshold alone
MIN_OF_EACH = 8  # errors, and candidates that are none, that an organ's own detector needs


@dataclass(frozen=True, slots=True, eq=False)
class Revised:
    """One organ of one revised case.

    Args:
        wrong_C: whether a candidate overlaps what was changed.
        volumes_R: mm3 of each changed region that is large enough to count.
        touching: (candidate, region) wherever they share a voxel.
    """

    case_id: str
    organ: str
    candidates: Candidates
    wrong_C: npt.NDArray[np.bool_]
    volumes_R: Numbers
    touching: npt.NDArray[np.int64]


def compare(
    case_id: str, organ: str, candidates: Candidates, changed_XYZ: Mask, spacing: Triple, *, min_error_mm3: float
) -> Revised:
    """Hold candidates against what the annotator changed, both on one grid in RAS. Raises ValueError for another grid."""
    if changed_XYZ.shape != tuple(candidates.shape):
        raise ValueError(f"{organ} of {case_id}: changes of shape {changed_XYZ.shape}, candidates of shape {candidates.shape}")
    changed_N = changed_XYZ.reshape(-1)[candidates.places_N]
    wrong_C = np.zeros(len(candidates), bool)
    wrong_C[candidates.member_N[changed_N]] = True
    window = box_of(changed_XYZ)
    regions, count = connected_components(np.ascontiguousarray(changed_XYZ[window]).view(np.uint8))
    volumes: Numbers = np.bincount(regions.ravel(), minlength=count + 1)[1:].astype(float) * float(np.prod(spacing))
    is_large = volumes >= min_error_mm3
    number = np.cumsum(is_large) - 1
    at = np.unravel_index(candidates.places_N[changed_N], changed_XYZ.shape)
    region_N = regions[tuple(axis - side.start for axis, side in zip(at, window, strict=True))].astype(np.int64) - 1
    kept_N = is_large[region_N]
    pairs = np.column_stack([candidates.member_N[changed_N][kept_N], number[region_N[kept_N]]]).astype(np.int64)
    return Revised(case_id, organ, candidates, wrong_C, volumes[is_large], np.unique(pairs, axis=0))


@dataclass(frozen=True, slots=True, eq=False)
class _Set:
    """All candidates that count, of one organ or of all."""

    values_CF: Numbers
    wrong_C: npt.NDArray[np.bool_]
    fold_C: npt.NDArray[np.int64]

    @property
    def fewest(self) -> int:
        """Of errors and of others, in what is left without any one fold."""
        left = [self.wrong_C[self.fold_C != fold] for fold in range(FOLDS)]
        return min(int(min(np.count_nonzero(rest), np.count_nonzero(~rest))) for rest in left)


def learn(
    revised: Sequence[Revised],
    organs: Sequence[str],
    *,
    cohort: Mapping[str, OrganCohort],
    anatomy: AnatomyRules,
    learner: Learner,
    alpha: float,
    round_index: int,
) -> AttentionDetector:
    """Detectors and thresholds of every organ, as far as the revised cases allow.

    An organ uses its own detector or that of all organs together, whichever scores cases it has not seen better (log loss). Its
    threshold comes from its own cases with an error; organs with few share one, from the cases' errors in all of them together, and
    alpha is then promised of their error volume together; where these are too few as well, the physical thresholds stay.
    """
    case_ids = sorted({one.case_id for one in revised})
    random = np.random.default_rng(0)
    fold_of = dict(zip(case_ids, (random.permutation(len(case_ids)) % FOLDS).tolist(), strict=True))
    values = [judged(one.candidates, cohort.get(one.organ), anatomy) for one in revised]
    everything = _set(revised, values, fold_of)
    if everything is None or everything.fewest < MIN_OF_EACH:
        cases = {organ: sum(1 for one in revised if one.organ == organ and len(one.volumes_R)) for organ in organs}
        empty = tuple(OrganDetector(organ=organ, cases=cases[organ], needed=needed_cases(alpha)) for organ in organs)
        return AttentionDetector(round=round_index, alpha=alpha, cohort=dict(cohort), anatomy=anatomy, organs=empty)
    pooled, pooled_F = _fitted(learner, everything), _by_fold(learner, everything)
    scorers: dict[str, Scorer] = {}
    errors: dict[str, list[tuple[str, CaseErrors]]] = {}
    counted: dict[str, _Set | None] = {}
    for organ in organs:
        index = [i for i, one in enumerate(revised) if one.organ == organ]
        own = counted[organ] = _set([revised[i] for i in index], [values[i] for i in index], fold_of)
        scorers[organ], by_fold = pooled, pooled_F
        if own is not None and own.fewest >= MIN_OF_EACH:
            own_F = _by_fold(learner, own)
            if _log_loss(own_F, own) < _log_loss(pooled_F, own):
                scorers[organ], by_fold = _fitted(learner, own), own_F
        errors[organ] = []
        for i in index:
            if len(revised[i].volumes_R):
                scores_C = by_fold[fold_of[revised[i].case_id]].probabilities(values[i][0])
                found = region_scores(revised[i], np.where(values[i][1], scores_C, NEVER))
                errors[organ].append((revised[i].case_id, CaseErrors(revised[i].volumes_R, found)))
    enough = needed_cases(alpha)
    few = [organ for organ in organs if len(errors[organ]) < OWN_THRESHOLD * enough]
    group = _joined([pair for organ in few for pair in errors[organ]])
    rows = []
    for organ in organs:
        known = group if organ in few else _joined(errors[organ])
        own = counted[organ]
        row = OrganDetector(
            organ=organ,
            cases=len(errors[organ]),
            needed=enough,
            candidates=len(own.wrong_C) if own else 0,
            errors=int(own.wrong_C.sum()) if own else 0,
        )
        rows.append(_with_threshold(row, known, fold_of, alpha, scorers[organ], "group" if organ in few else "organ"))
    return AttentionDetector(round=round_index, alpha=alpha, cohort=dict(cohort), anatomy=anatomy, organs=tuple(rows))


def _with_threshold(
    row: OrganDetector, cases: Mapping[str, CaseErrors], fold_of: Mapping[str, int], alpha: float, scorer: Scorer, scope: str
) -> OrganDetector:
    """Where the errors that no candidate touches alone break alpha, it is promised of the others."""
    if len(cases) < needed_cases(alpha):
        return row
    listed = list(cases.values())
    lost = sum(float(c.volumes_R[~np.isfinite(c.scores_R)].sum()) for c in listed) / sum(float(c.volumes_R.sum()) for c in listed)
    threshold = controlled_threshold(listed, alpha)
    is_kept = threshold is not None
    folds = np.array([fold_of[case_id] for case_id in cases])
    if threshold is None:
        found = {case_id: _findable(case) for case_id, case in cases.items()}
        folds = np.array([fold_of[case_id] for case_id, case in found.items() if case is not None])
        listed = [case for case in found.values() if case is not None]
        threshold = controlled_threshold(listed, alpha)
    if threshold is None:
        return row.model_copy(update={"without_candidate": lost})
    losses = held_out_loss(listed, folds, alpha)
    update = {
        "scorer": scorer,
        "threshold": threshold,
        "scope": scope,
        "missed_share": float(np.mean(losses)) if losses else None,
        "without_candidate": lost,
        "is_kept": is_kept,
    }
    return row.model_copy(update=update)


def _findable(case: CaseErrors) -> CaseErrors | None:
    """Only its regions that a candidate touches; None where there are none."""
    touched_R = np.isfinite(case.scores_R)
    return CaseErrors(case.volumes_R[touched_R], case.scores_R[touched_R]) if touched_R.any() else None


def _joined(pairs: Sequence[tuple[str, CaseErrors]]) -> dict[str, CaseErrors]:
    """Of every case the regions of all organs together."""
    parts: dict[str, list[CaseErrors]] = {}
    for case_id, part in pairs:
        parts.setdefault(case_id, []).append(part)
    return {
        case_id: CaseErrors(np.concatenate([p.volumes_R for p in own]), np.concatenate([p.scores_R for p in own]))
        for case_id, own in parts.items()
    }


def region_scores(one: Revised, scores_C: Numbers) -> Numbers:
    """Of every region the highest score of a candidate that touches it."""
    result = np.full(len(one.volumes_R), NEVER)
    np.maximum.at(result, one.touching[:, 1], scores_C[one.touching[:, 0]])
    return result


def _set(
    revised: Sequence[Revised], values: Sequence[tuple[Numbers, npt.NDArray[np.bool_]]], fold_of: Mapping[str, int]
) -> _Set | None:
    """None without a single candidate."""
    if not any(counts.any() for _, counts in values):
        return None
    return _Set(
        np.concatenate([features[counts] for features, counts in values]),
        np.concatenate([one.wrong_C[counts] for one, (_, counts) in zip(revised, values, strict=True)]),
        np.concatenate([np.full(counts.sum(), fold_of[one.case_id]) for one, (_, counts) in zip(revised, values, strict=True)]),
    )


def _by_fold(learner: Learner, known: _Set) -> list[Scorer]:
    """Of each fold the detector that has not seen it."""
    kept = [known.fold_C != fold for fold in range(FOLDS)]
    return [_fitted(learner, _Set(known.values_CF[k], known.wrong_C[k], known.fold_C[k])) for k in kept]


def _log_loss(by_fold: Sequence[Scorer], known: _Set) -> float:
    """Mean, in nats, each candidate scored by the detector that has not seen its case."""
    total = 0.0
    for fold, scorer in enumerate(by_fold):
        here = known.fold_C == fold
        if here.any():
            p = np.clip(scorer.probabilities(known.values_CF[here]), 1e-6, 1 - 1e-6)
            total -= float(np.log(np.where(known.wrong_C[here], p, 1 - p)).sum())
    return total / len(known.wrong_C)


def _fitted(learner: Learner, known: _Set) -> Scorer:
    if isinstance(learner, LogisticLearner):
        from sklearn.linear_model import LogisticRegression

        means, spread = known.values_CF.mean(axis=0), known.values_CF.std(axis=0)
        scales = np.where(spread > 1e-9, spread, 1.0)
        regression = LogisticRegression(C=learner.c, max_iter=2000).fit((known.values_CF - means) / scales, known.wrong_C)
        return Logistic(
            means=tuple(means.tolist()),
            scales=tuple(scales.tolist()),
            weights=tuple(regression.coef_[0].tolist()),
            bias=float(regression.intercept_[0]),
        )
    from sklearn.ensemble import GradientBoostingClassifier

    boosted = GradientBoostingClassifier(
        n_estimators=learner.trees,
        max_depth=learner.depth,
        learning_rate=learner.rate,
        subsample=learner.share,
        min_samples_leaf=3,
        random_state=0,
    ).fit(known.values_CF, known.wrong_C)
    share = float(known.wrong_C.mean())
    trees = []
    for (tree,) in boosted.estimators_:
        inner = tree.tree_
        trees.append(
            Tree(
                feature=tuple(np.where(inner.children_left < 0, -1, inner.feature).tolist()),
                threshold=tuple(inner.threshold.tolist()),
                left=tuple(inner.children_left.tolist()),
                right=tuple(inner.children_right.tolist()),
                value=tuple(inner.value[:, 0, 0].tolist()),
            )
        )
    return Boosting(start=float(np.log(share / (1 - share))), rate=learner.rate, trees=tuple(trees))
