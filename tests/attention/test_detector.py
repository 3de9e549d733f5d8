"""Candidates and what is known of them, detectors by hand and learned, and what they show."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from error_cases import SHAPE, candidates_of_played, play, revised
from pydantic import ValidationError

from atlas_ray.attention import candidates as on_disk
from atlas_ray.attention import learning
from atlas_ray.attention.anatomy_rules import RULES, AnatomyRules, OrganCohort, OrganShape
from atlas_ray.attention.candidates import FEATURES, NETWORKS, Candidates, Surroundings, describe
from atlas_ray.attention.conformal import NEVER, CaseErrors
from atlas_ray.attention.criteria import CalibratedAttention, Overlap, PhysicalAttention, PredictiveEntropy
from atlas_ray.attention.detector import (
    AttentionDetector,
    Boosting,
    BoostingLearner,
    Learner,
    Logistic,
    LogisticLearner,
    OrganDetector,
    Tree,
    cohorts,
    judged,
)
from atlas_ray.attention.learning import _with_threshold, compare, learn

LN_2 = float(np.log(2))


def features_by_name(values_F: np.ndarray) -> dict[str, float]:
    return dict(zip(FEATURES, values_F.tolist(), strict=True))


def test_features_of_a_candidate_by_hand() -> None:
    """Six voxels of 2 x 1 x 1 mm in a row; the label is the first three, the candidate voxels 2 and 3. Of two networks both say 1
    of voxels 0 to 2, one says so of 3, none of 4 and 5."""
    bytes_MXYZ = np.zeros((2, 6, 1, 1), np.uint8)
    bytes_MXYZ[:, :3], bytes_MXYZ[0, 3] = 255, 255
    mask = np.arange(6).reshape(6, 1, 1) < 3
    image = np.array([50, 50, 50, 10, 10, 10], np.int16).reshape(6, 1, 1)
    around = Surroundings(bytes_MXYZ, image, mask, None, (2.0, 1.0, 1.0))
    (values,) = describe(np.array([2, 3]), np.zeros(2, np.int32), np.array([True, False]), np.array([NETWORKS], np.int8), around)
    assert features_by_name(values) == pytest.approx(
        {
            "log_mm3": np.log(4),
            "probability": 0.75,
            "probability_lowest": 0.5,
            "probability_highest": 1,
            "deviation": 0.25,
            "deviation_highest": 0.5,
            "entropy": LN_2 / 2,
            "entropy_highest": LN_2,
            "information": LN_2 / 2,
            "information_highest": LN_2,
            "overlap": 0.5,
            "split_votes": 0.5,
            "inside": 0.5,
            "depth_mm": 0,  # 2 mm inside, 2 mm outside
            "deepest_mm": 2,
            "outermost_mm": -2,
            "hu": 30,
            "hu_spread": 20,
            "hu_gap": 20,
            "fill": 1,
            "elongation": np.sqrt((1 + 4 / 12) * 12),  # along x: voxel centers 1 mm off their mean, each voxel 2 mm wide
            "thickness_mm": 1,
            "networks_agree": 0.75,
            "rule_missing_slice": 0,
            "rule_pieces": 0,
            "rule_sides": 0,
            "rule_cohort": 0,
        }
    )


def test_a_lost_cap_is_a_candidate_and_survives_the_disk() -> None:
    case = play(4, error=True, doubt=False)
    found = candidates_of_played(case)
    (again,) = on_disk.from_bytes(on_disk.to_bytes({"liver": found})).values()
    lost = (case.truth_XYZ & ~case.label_XYZ).reshape(-1)[found.places_N]
    at_the_cap = np.bincount(found.member_N, weights=lost) / np.bincount(found.member_N)
    assert at_the_cap[found.source_C == NETWORKS].max() > 0.5
    assert RULES[found.source_C[-1]] == "cohort"
    for name in ("shape", "organ_shape"):
        assert getattr(again, name) == getattr(found, name)
    for name in ("places_N", "member_N", "source_C", "features_CF"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def two_candidates() -> Candidates:
    """Voxels 0 and 1, and voxels 1 and 2, of a row of four; the second from the cohort's rule."""
    values = np.zeros((2, len(FEATURES)))
    values[:, 0] = (1, 3)
    return Candidates(
        shape=(4, 1, 1),
        places_N=np.array([0, 1, 1, 2]),
        member_N=np.array([0, 0, 1, 1], np.int32),
        bits_N=np.array([1, 2, 8, 8], np.uint8),
        heat_N=np.array([0.5, 0.4, 1.0, 1.0]),
        source_C=np.array([NETWORKS, RULES.index("cohort")], np.int8),
        features_CF=values,
        organ_shape=OrganShape(log_ml=5.0, center_mm=(0, 0, 0)),
    )


def first_feature(weight: float, bias: float) -> Logistic:
    rest = len(FEATURES) + 1
    return Logistic(means=(2.0, *[0.0] * rest), scales=(2.0, *[1.0] * rest), weights=(weight, *[0.0] * rest), bias=bias)


def detector(*organs: OrganDetector, cohort: dict[str, OrganCohort] | None = None) -> AttentionDetector:
    return AttentionDetector(round=0, alpha=0.1, cohort=cohort or {}, anatomy=AnatomyRules(), organs=organs)


USUAL = OrganCohort(medians=(5.0, 0, 0, 0), spreads=(0.1, 3, 3, 3))
SMALLER = OrganCohort(medians=(3.0, 0, 0, 0), spreads=(0.1, 3, 3, 3))


def test_shown_is_what_reaches_the_threshold_with_heat_by_its_probability() -> None:
    """Probability of the first: 1 / (1 + exp(0.5 - bias)) with z = (1 - 2) / 2. An organ's surface counts only in an outlier."""
    own = OrganDetector(organ="liver", scorer=first_feature(1.0, 0.5), threshold=0.5, scope="organ")
    shown = detector(own, cohort={"liver": USUAL}).attention("liver", two_candidates())
    assert shown.places_N.tolist() == [0, 1]
    assert shown.bits_N.tolist() == [1, 2]
    assert shown.heat_N.tolist() == pytest.approx([0.25, 0.2])
    outlier = detector(own, cohort={"liver": SMALLER}).attention("liver", two_candidates())
    assert outlier.places_N.tolist() == [0, 1, 2]
    assert outlier.bits_N.tolist() == [1, 10, 8]  # the shared voxel has both
    assert outlier.heat_N[1] == pytest.approx(1 / (1 + np.exp(-1)))  # the stronger
    strict = detector(own.model_copy(update={"threshold": 0.51}), cohort={"liver": USUAL})
    assert strict.attention("liver", two_candidates()).voxels == 0


def test_z_of_the_cohort_are_the_last_two_features_and_at_most_ten() -> None:
    values, counts = judged(two_candidates(), SMALLER, AnatomyRules())
    assert values[:, -2:].tolist() == [[10, 0], [10, 0]]
    assert counts.tolist() == [True, True]


def test_what_is_usual_is_of_the_cases_that_have_the_organ() -> None:
    """Volumes 5, 6, 7, 8, 9; of another organ there are too few."""
    own = [replace(two_candidates(), organ_shape=OrganShape(log_ml=v, center_mm=(0, 0, 0))) for v in (5, 6, 7, 8, 9)]
    found = cohorts([{"liver": one} | ({"spleen": one} if n else {}) for n, one in enumerate(own)])
    assert {name: one.medians for name, one in found.items()} == {"liver": (7, 0, 0, 0)}


@pytest.mark.parametrize(("min_error_mm3", "volumes", "touching"), [(2, [2, 4], [[0, 0], [1, 1]]), (3, [4], [[1, 0]]), (5, [], [])])
def test_candidates_against_what_was_changed(min_error_mm3: float, volumes: list, touching: list) -> None:
    """Voxel 0, and voxels 2 and 3; of 2 mm3. A candidate that overlaps any change is an error, however small the change."""
    changed = np.array([True, False, True, True]).reshape(4, 1, 1)
    found = compare("a", "liver", two_candidates(), changed, (2.0, 1.0, 1.0), min_error_mm3=min_error_mm3)
    assert found.wrong_C.tolist() == [True, True]
    assert found.volumes_R.tolist() == volumes
    assert found.touching.tolist() == touching


def test_an_organ_without_a_detector_has_none() -> None:
    nothing = detector(OrganDetector(organ="liver"))
    assert nothing.of("liver") is None
    own = OrganDetector(organ="liver", scorer=first_feature(1.0, 0.5), threshold=0.5, scope="organ")
    assert detector(own).of("liver") == own
    assert detector(own).model_copy(update={"features": FEATURES[:-1]}).of("liver") is None  # an earlier version's
    with pytest.raises(ValueError, match="no detector of 'liver'"):
        nothing.attention("liver", two_candidates())


def test_a_tree_by_hand() -> None:
    """x0 <= 1.5 ? 10 : (x1 <= 0 ? 20 : 30)."""
    tree = Tree(
        feature=(0, -1, 1, -1, -1),
        threshold=(1.5, 0, 0, 0, 0),
        left=(1, -1, 3, -1, -1),
        right=(2, -1, 4, -1, -1),
        value=(0, 10, 0, 20, 30),
    )
    assert tree.values(np.array([[1.5, 9], [2, 0], [2, 1]], np.float32)).tolist() == [10, 20, 30]
    boosted = Boosting(start=1.0, rate=0.1, trees=(tree, tree)).probabilities(np.array([[0.0, 0.0]]))
    assert boosted[0] == pytest.approx(1 / (1 + np.exp(-3)))


def test_boosting_compares_in_float32() -> None:
    """The nearest float32 to 0.1 is a little more than 0.1."""
    stump = Tree(feature=(0, -1, -1), threshold=(0.1, 0, 0), left=(1, -1, -1), right=(2, -1, -1), value=(0, -1, 1))
    boosted = Boosting(start=0.0, rate=1.0, trees=(stump,))
    assert boosted.probabilities(np.array([[0.1]]))[0] == pytest.approx(1 / (1 + np.exp(-1)))


@pytest.fixture(scope="module")
def many() -> list:
    return [revised(n) for n in range(30)]


@pytest.mark.parametrize(("learner", "least"), [(LogisticLearner(), 0.85), (BoostingLearner(), 0.65)])
def test_learned_detector_tells_errors_from_doubts_and_survives_json(many: list, learner: Learner, least: float) -> None:
    """Ten cases with an error alone against ten with a doubt alone, none of which it has seen: how often the error is the more
    probable one (the AUROC). Seventy candidates are few for trees."""
    how = {"cohort": cohorts([{"liver": one.candidates} for one in many]), "anatomy": AnatomyRules(), "alpha": 0.25}
    learned = learn(many, ("liver",), learner=learner, round_index=0, **how)
    again = AttentionDetector.model_validate_json(learned.model_dump_json())
    assert again == learned
    own = again.of("liver")
    assert own is not None
    assert (own.scope, own.cases, own.needed, own.is_kept) == ("organ", 20, 3, True)

    def highest(seed: int, *, error: bool) -> float:
        values, counts = judged(
            candidates_of_played(play(seed, error=error, doubt=not error)), how["cohort"]["liver"], again.anatomy
        )
        return float(own.scorer.probabilities(values)[counts].max())

    wrong, right = (np.array([highest(seed, error=is_wrong) for seed in range(200, 210)]) for is_wrong in (True, False))
    assert (wrong[:, None] > right).mean() >= least


def test_boosting_is_scikit_learns_own_answer(many: list) -> None:
    """Trees carried over node by node give its probabilities."""
    from sklearn.ensemble import GradientBoostingClassifier

    from atlas_ray.attention.learning import _fitted, _Set

    random = np.random.default_rng(0)
    values = random.normal(size=(200, 5))
    wrong = values[:, 0] * values[:, 1] > 0.2
    ours = _fitted(BoostingLearner(trees=30), _Set(values, wrong, np.zeros(200, np.int64)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = GradientBoostingClassifier(
            n_estimators=30, max_depth=3, learning_rate=0.1, subsample=0.7, min_samples_leaf=3, random_state=0
        ).fit(values, wrong)
    new = random.normal(size=(50, 5))
    np.testing.assert_allclose(ours.probabilities(new), theirs.predict_proba(new)[:, 1], atol=1e-9)


def test_too_few_revised_cases_leave_the_physical_thresholds(many: list) -> None:
    """Nine cases hold six errors; alpha 0.1 takes nine."""
    learned = learn(
        many[:9], ("liver", "spleen"), cohort={}, anatomy=AnatomyRules(), learner=LogisticLearner(), alpha=0.1, round_index=0
    )
    assert [(own.organ, own.scorer, own.needed) for own in learned.organs] == [("liver", None, 9), ("spleen", None, 9)]


def test_organs_with_few_errors_share_a_threshold(many: list) -> None:
    """Twenty errors of one organ, and the same again of another in two cases only."""
    more = [*many, *(replace(one, organ="spleen") for one in many[:3])]
    learned = learn(
        more, ("liver", "spleen"), cohort={}, anatomy=AnatomyRules(), learner=LogisticLearner(), alpha=0.1, round_index=0
    )
    assert [(own.organ, own.scope) for own in learned.organs] == [("liver", "organ"), ("spleen", "none")]
    most = [*many[:18], *(replace(one, organ="spleen", case_id=f"other{n}") for n, one in enumerate(many[:9]))]
    learned = learn(
        [one for one in most if one.organ == "spleen" or int(one.case_id[4:]) < 12],
        ("liver", "spleen"),
        cohort={},
        anatomy=AnatomyRules(),
        learner=LogisticLearner(),
        alpha=0.1,
        round_index=0,
    )
    assert [(own.scope, own.cases) for own in learned.organs] == [("group", 8), ("group", 6)]


def test_an_error_that_only_the_organs_surface_touches_has_no_candidate(many: list) -> None:
    """The surface, every case's last candidate, is shown of outliers alone, and here is none."""
    touched = [replace(one, touching=np.array([[len(one.candidates) - 1, r] for r in range(len(one.volumes_R))])) for one in many]
    touched = [one if len(one.volumes_R) else before for one, before in zip(touched, many, strict=True)]
    learned = learn(touched, ("liver",), cohort={}, anatomy=AnatomyRules(), learner=LogisticLearner(), alpha=0.25, round_index=0)
    (own,) = learned.organs
    assert (own.cases, own.scorer, own.without_candidate) == (20, None, 1.0)


def test_where_too_much_has_no_candidate_the_promise_is_of_the_rest() -> None:
    """Half of every case's error volume is touched by nothing; the other half is found at 0.5."""
    cases = {f"c{n}": CaseErrors(np.array([1.0, 1.0]), np.array([0.5, NEVER])) for n in range(20)}
    folds = {case_id: n % 5 for n, case_id in enumerate(cases)}
    row, scorer = OrganDetector(organ="liver"), first_feature(1.0, 0.5)
    found = _with_threshold(row, cases, folds, 0.1, scorer, "organ")
    assert (found.threshold, found.is_kept, found.without_candidate, found.missed_share) == (0.5, False, 0.5, 0.0)
    kept = _with_threshold(row, cases, folds, 0.6, scorer, "organ")
    assert (kept.threshold, kept.is_kept, kept.without_candidate, kept.missed_share) == (0.5, True, 0.5, 0.5)
    assert _with_threshold(row, dict(list(cases.items())[:8]), folds, 0.1, scorer, "organ") == row  # nine are needed


def test_cases_are_scored_by_detectors_that_have_not_seen_them(many: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a detector gives every candidate the number of the fold that it has not seen."""
    folds, asked = set(range(learning.FOLDS)), dict[str, float]()

    def fitted(learner: Learner, known: learning._Set) -> Logistic:
        unseen = folds - set(known.fold_C.tolist())
        return first_feature(0.0, float(unseen.pop()) if unseen else -1.0)

    def scored(one: learning.Revised, scores_C: np.ndarray) -> np.ndarray:
        asked[one.case_id] = scores_C.max()
        return np.zeros(len(one.volumes_R))

    monkeypatch.setattr(learning, "_fitted", fitted)
    monkeypatch.setattr(learning, "region_scores", scored)
    learn(many, ("liver",), cohort={}, anatomy=AnatomyRules(), learner=LogisticLearner(), alpha=0.25, round_index=0)
    assert len(asked) == 20
    assert sorted(set(asked.values())) == pytest.approx([1 / (1 + np.exp(-n)) for n in sorted(folds)])


def test_an_organ_whose_errors_look_unlike_the_others_has_its_own_detector() -> None:
    """What is an error of one organ is none of the other: together they teach nothing."""

    def one(n: int, organ: str, value: float) -> learning.Revised:
        values = np.zeros((2, len(FEATURES)))
        values[:, 0] = value, -value
        found = replace(two_candidates(), source_C=np.full(2, NETWORKS, np.int8), features_CF=values)
        return learning.Revised(f"c{n}", organ, found, np.array([True, False]), np.ones(1), np.array([[0, 0]]))

    cases = [one(n, organ, value) for n in range(30) for organ, value in (("liver", 1.0), ("spleen", -1.0))]
    how = {"cohort": {}, "anatomy": AnatomyRules(), "learner": LogisticLearner(), "alpha": 0.25, "round_index": 0}
    liver, spleen = (own.scorer for own in learn(cases, ("liver", "spleen"), **how).organs)
    assert liver.weights[0] > 0.5
    assert spleen.weights[0] < -0.5


def test_changes_on_another_grid_are_refused(many: list) -> None:
    with pytest.raises(ValueError, match="changes of shape"):
        compare("a", "liver", many[0].candidates, np.zeros((*SHAPE[:2], 3), bool), (3.0, 3.0, 3.0), min_error_mm3=0)


def test_candidates_and_fallback_need_the_same_criteria() -> None:
    with pytest.raises(ValidationError, match="both need the same criteria"):
        CalibratedAttention(fallback=PhysicalAttention(criteria=(PredictiveEntropy(), Overlap())))
    finer = PhysicalAttention(min_component_mm3=8)
    assert CalibratedAttention(candidates=finer).min_component_mm3 == CalibratedAttention(fallback=finer).min_component_mm3 == 8
    assert CalibratedAttention().criterion_names == ("predictive_entropy", "disagreement", "overlap", "anatomy")
