"""Thresholds with a promise: by hand on small numbers, and kept over 200 resamplings."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from error_cases import revised

from atlas_ray.attention.anatomy_rules import AnatomyRules
from atlas_ray.attention.conformal import NEVER, CaseErrors, controlled_threshold, held_out_loss, needed_cases
from atlas_ray.attention.detector import LogisticLearner, judged
from atlas_ray.attention.learning import learn, region_scores

RESAMPLINGS = 200


def errors(*pairs: tuple[float, float]) -> CaseErrors:
    """(volume, score) of each region."""
    volumes, scores = zip(*pairs, strict=True)
    return CaseErrors(np.array(volumes, float), np.array(scores, float))


def test_loss_is_the_share_of_the_volume_below_the_threshold() -> None:
    case = errors((30, 0.9), (10, 0.4), (60, NEVER))
    assert case.loss(0.4) == pytest.approx(0.6)  # the region nobody points at
    assert case.loss(0.5) == pytest.approx(0.7)
    assert case.loss(0.95) == 1


@pytest.mark.parametrize(("alpha", "cases"), [(0.1, 9), (0.2, 4), (0.05, 19), (0.3, 3), (0.5, 1)])
def test_cases_that_a_promise_takes(alpha: float, cases: int) -> None:
    assert needed_cases(alpha) == cases
    assert controlled_threshold([errors((1, 0.7))] * cases, alpha) == 0.7
    assert controlled_threshold([errors((1, 0.7))] * (cases - 1), alpha) is None


def test_threshold_by_hand() -> None:
    """19 cases of one region, scores 0.05 .. 0.95: m of them missed gives m / 20 + 1 / 20. Alpha 0.2 allows m = 3."""
    cases = [errors((1, k / 20)) for k in range(1, 20)]
    assert controlled_threshold(cases, 0.2) == pytest.approx(4 / 20)  # those of 1/20, 2/20, 3/20 are missed
    assert controlled_threshold(cases, 0.05) == pytest.approx(1 / 20)  # nothing may be missed


def test_no_threshold_finds_what_has_no_candidate() -> None:
    cases = [errors((1, 0.5), (1, NEVER))] * 20  # half of every case is lost
    assert controlled_threshold(cases, 0.1) is None
    assert controlled_threshold(cases, 0.6) == 0.5


def test_held_out_cases_have_no_part_in_their_threshold() -> None:
    """The case with the low score is missed by the threshold that the others set, and found once it helps to set it."""
    cases = [errors((1, 0.8))] * 9 + [errors((1, 0.2))]
    folds = np.array([0] * 9 + [1])
    assert held_out_loss(cases, folds, 0.1) == [1.0]  # nine are left without fold 1, one without fold 0
    assert controlled_threshold(cases, 0.1) == 0.2


def test_a_region_has_the_score_of_its_most_suspicious_candidate() -> None:
    """Candidate 1 touches both regions that are touched at all."""
    one = replace(revised(1), volumes_R=np.ones(3), touching=np.array([[0, 0], [1, 0], [1, 1]]))
    assert region_scores(one, np.array([0.2, 0.7])).tolist() == [0.7, 0.7, NEVER]
    assert region_scores(one, np.array([0.7, 0.2])).tolist() == [0.7, 0.2, NEVER]


def covered(cases: Sequence[CaseErrors], calibration: int, alpha: float) -> tuple[float, float]:
    """Mean loss of cases left out over random splits, and how far chance moves it (three standard errors)."""
    random, losses = np.random.default_rng(0), []
    for _ in range(RESAMPLINGS):
        order = random.permutation(len(cases))
        threshold = controlled_threshold([cases[i] for i in order[:calibration]], alpha)
        assert threshold is not None
        losses.append(np.mean([cases[i].loss(threshold) for i in order[calibration:]]))
    return float(np.mean(losses)), float(3 * np.std(losses) / np.sqrt(RESAMPLINGS))


@pytest.mark.parametrize("alpha", [0.1, 0.25])
def test_expected_loss_of_exchangeable_cases_is_below_alpha(alpha: float) -> None:
    """New cases every time, some with small regions that score low, and the promise is not empty: more than half is used."""
    random, losses = np.random.default_rng(3), []

    def drawn() -> CaseErrors:
        count = random.integers(1, 5)
        volumes = random.exponential(size=count)
        return CaseErrors(volumes, random.beta(2, 1, count))

    for _ in range(RESAMPLINGS):
        threshold = controlled_threshold([drawn() for _ in range(30)], alpha)
        assert threshold is not None
        losses.append(np.mean([drawn().loss(threshold) for _ in range(30)]))
    chance = 3 * np.std(losses) / np.sqrt(RESAMPLINGS)
    assert alpha / 2 < np.mean(losses) <= alpha + chance


def test_expected_loss_of_real_detector_scores_is_below_alpha() -> None:
    """A detector learned on some cases scores others; those are split into calibration and new ones 200 times."""
    first = [revised(n) for n in range(30)]
    detector = learn(first, ("liver",), cohort={}, anatomy=AnatomyRules(), learner=LogisticLearner(), alpha=0.2, round_index=0)
    own = detector.of("liver")
    assert own is not None
    assert own.scorer is not None
    cases = []
    for one in (revised(n) for n in range(30, 120)):
        values, counts = judged(one.candidates, None, AnatomyRules())
        if len(one.volumes_R):
            scores = region_scores(one, np.where(counts, own.scorer.probabilities(values), NEVER))
            cases.append(CaseErrors(one.volumes_R, scores))
    assert len(cases) > 40
    mean, chance = covered(cases, 20, 0.2)
    assert mean <= 0.2 + chance
    assert own.missed_share is not None
    assert own.missed_share <= 0.3
