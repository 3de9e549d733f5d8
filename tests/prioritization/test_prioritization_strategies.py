"""Query strategies on four cases whose order each can be seen at a glance."""

import pytest
from pydantic import TypeAdapter

from atlas_ray.prioritization.minutes import MinutesModel
from atlas_ray.prioritization.strategies import (
    AttentionSize,
    AttentionVolume,
    BenefitPerMinute,
    ClassStratified,
    Diverse,
    ForegroundAwareRandom,
    MeanEntropy,
    MutualInformation,
    RandomOrder,
    RankedCase,
    Strategy,
    informed,
    organs_by_heat,
    seeded,
)
from atlas_ray.records import CaseScores, OrganScores
from atlas_ray.scores import Scores


def organ(name: str, *, voxels: int = 1, mm3: float = 1.0, heat: float = 1.0, ml: float = 1.0, entropy: float = 0.0) -> OrganScores:
    return OrganScores(
        organ=name, attention_voxels=voxels, attention_mm3=mm3, heat_sum=heat, predicted_ml=ml, components=1, entropy=entropy
    )


def case(case_id: str, *organs: OrganScores, round_index: int = 1) -> CaseScores:
    return CaseScores(
        case_id=case_id,
        round=round_index,
        checkpoints={},
        attention_mode="faithful",
        attention_voxels=sum(o.attention_voxels for o in organs),
        attention_mm3=sum(o.attention_mm3 for o in organs),
        organs=organs,
        seconds=1.0,
    )


@pytest.fixture
def cases() -> list[CaseScores]:
    return [
        case("thin", organ("a", voxels=900, mm3=90.0, heat=5, entropy=0.1), organ("b", voxels=100, mm3=10.0, heat=7, entropy=0.3)),
        case("thick", organ("a", voxels=40, mm3=400.0, heat=9, entropy=0.5), organ("b", voxels=0, mm3=0, heat=0, ml=0)),
        case("tied_b", organ("b", voxels=40, mm3=100.0, heat=3, entropy=0.2), organ("a", voxels=0, mm3=0, heat=3, entropy=0.2)),
        case("empty", organ("a", voxels=0, mm3=0, heat=0, ml=0), organ("b", voxels=0, mm3=0, heat=0, ml=0)),
    ]


def order(ranked: list[RankedCase]) -> list[str]:
    assert [c.rank for c in ranked] == list(range(1, len(ranked) + 1))
    return [c.case_id for c in ranked]


@pytest.mark.parametrize(
    ("strategy", "expected", "scores"),
    [
        (AttentionSize(), ["thin", "thick", "tied_b", "empty"], [1000, 40, 40, 0]),  # 40 and 40: by case id
        (AttentionVolume(), ["thick", "thin", "tied_b", "empty"], [400, 100, 100, 0]),
        (MeanEntropy(), ["thick", "thin", "tied_b", "empty"], [0.5, 0.2, 0.2, 0]),  # thick's absent b does not dilute it
    ],
)
def test_order_and_scores(strategy, expected, scores, cases):
    for given in (cases, cases[::-1]):
        ranked = strategy.rank(Scores.of(given))
        assert order(ranked) == expected
        assert [c.score for c in ranked] == pytest.approx(scores)


def test_a_mean_is_over_organs_that_are_predicted_or_draw_attention():
    predicted, drawing, absent = (
        organ("a", ml=1, voxels=0, entropy=0.2),
        organ("b", ml=0, voxels=3, entropy=0.4),
        organ("c", ml=0, voxels=0, entropy=0.9),
    )
    assert MeanEntropy().rank(Scores.of([case("x", predicted, drawing, absent)]))[0].score == pytest.approx(0.3)


def test_organs_by_descending_heat_without_cold_ones(cases):
    assert organs_by_heat(Scores.of(cases)) == [("b", "a"), ("a",), ("a", "b"), ()]  # 3 and 3: by name
    assert AttentionSize().rank(Scores.of(cases))[0].organs == ("b", "a")


def test_random_order_is_fixed_by_seed_and_round():
    many = [case(f"case_{i:02d}", organ("a")) for i in range(30)]
    ranked = order(RandomOrder(seed=4).rank(Scores.of(many)))
    assert ranked == order(RandomOrder(seed=4).rank(Scores.of(many[::-1])))
    assert sorted(ranked) == [c.case_id for c in many]
    assert ranked != sorted(ranked)
    assert ranked != order(RandomOrder(seed=5).rank(Scores.of(many)))
    assert ranked != order(RandomOrder(seed=4).rank(Scores.of([c.model_copy(update={"round": 2}) for c in many])))
    assert [c for c in ranked if c != "case_07"] == order(
        RandomOrder(seed=4).rank(Scores.of([c for c in many if c.case_id != "case_07"]))
    )


def test_foreground_aware_random_puts_cases_without_organs_last(cases):
    for seed in range(20):
        ranked = ForegroundAwareRandom(seed=seed).rank(Scores.of(cases))
        assert order(ranked)[-1] == "empty"
        organs = {c.case_id: c.organs for c in ranked}
        assert organs["empty"] == ()
        assert organs["thick"] == ("a",)
        assert sorted(organs["tied_b"]) == ["a", "b"]  # an organ without attention may be drawn: it is a random baseline
    drawn = {ForegroundAwareRandom(seed=s).rank(Scores.of(cases))[0].organs for s in range(20)}
    assert ("a", "b") in drawn
    assert ("b", "a") in drawn
    assert all(c.organs == () for c in ForegroundAwareRandom(min_predicted_ml=1.0).rank(Scores.of(cases)))


@pytest.mark.parametrize("name", ["attention_size", "attention_volume", "mean_entropy", "random", "foreground_aware_random"])
def test_chosen_by_name_and_empty_pool(name):
    strategy = TypeAdapter(Strategy).validate_python({"strategy": name})
    assert strategy.strategy == name
    assert strategy.rank(Scores.of([])) == []


# --- what is learned, spread and noised ---


def sized(case_id: str, *organs: tuple[str, float, float], error: str = "spill", **values: float) -> CaseScores:
    """Organs as (name, attention in ml, predicted ml)."""
    made = [
        organ(name, mm3=1000 * ml, ml=predicted).model_copy(update={"error": error, **values}) for name, ml, predicted in organs
    ]
    return case(case_id, *made)


def test_mutual_information_ignores_what_all_networks_find_hard():
    hard = sized("hard", ("a", 1, 1), entropy=0.7, mutual_information=0.0)
    disputed = sized("disputed", ("a", 1, 1), entropy=0.3, mutual_information=0.2)
    both = Scores.of([hard, disputed])
    assert order(MeanEntropy().rank(both)) == ["hard", "disputed"]
    assert order(MutualInformation().rank(both)) == ["disputed", "hard"]


def test_benefit_counts_the_excess_over_the_organs_size_and_time():
    """Organ a has 2 ml of attention as a rule. 20 ml more in 80 ml are a Dice of about 0.2, in 2,000 ml one of 0.01."""
    usual = [sized(f"usual_{n}", ("a", 2, 80), ("b", 30, 2000)) for n in range(5)]
    small, large = sized("small", ("a", 22, 80), ("b", 30, 2000)), sized("large", ("a", 2, 80), ("b", 50, 2000))
    strategy = BenefitPerMinute(minutes=MinutesModel(per_case=1, per_organ=1, per_component=0, per_ml=0))
    ranked = strategy.rank(Scores.of([*usual, large, small]))
    assert [(c.case_id, c.organs) for c in ranked[:3]] == [("small", ("a",)), ("large", ("b",)), ("usual_0", ("a", "b"))]
    assert ranked[0].score == pytest.approx(20 / 100 / 2, rel=1e-4)
    assert ranked[1].score == pytest.approx(20 / 2020 / 2, rel=1e-4)
    assert order(AttentionVolume().rank(Scores.of([*usual, large, small])))[0] in {"small", "large"}  # both 52 ml: no difference


def test_a_second_organ_is_asked_about_where_it_raises_the_ratio():
    cases = [*(sized(f"usual_{n}", ("a", 0, 90), ("b", 0, 90)) for n in range(5)), sized("both", ("a", 10, 90), ("b", 10, 90))]
    slow_to_open = BenefitPerMinute(minutes=MinutesModel(per_case=5, per_organ=1, per_component=0, per_ml=0))
    both, *others = slow_to_open.rank(Scores.of(cases))
    assert both.organs == ("a", "b")  # 0.1 / 6 < 0.2 / 7
    assert all(c.organs == () for c in others)  # nothing to gain
    much_less = [*cases[:5], sized("both", ("a", 10, 90), ("b", 0.5, 90))]
    quick_to_open = BenefitPerMinute(minutes=MinutesModel(per_case=0.1, per_organ=1, per_component=0, per_ml=0))
    assert quick_to_open.rank(Scores.of(much_less))[0].organs == ("a",)  # 0.1 / 1.1 > 0.1055 / 2.1


def test_what_is_usual_is_each_organs_own():
    """Organ a: 1, 2, 3, 4 and 30 ml in 100: median 3, deviations 2 1 0 1 27 with median 1. b never varies. Of c nothing is
    predicted: the one ml of attention is one in five."""
    cases = [sized(f"c{n}", ("a", ml, 100), ("b", 2, 100), ("c", n == 4, 0)) for n, ml in enumerate((1, 2, 3, 4, 30))]
    excess = 0.30 - (0.03 + 2 * 1.4826 * 0.01)
    benefit_NK = BenefitPerMinute().benefit(Scores.of(cases))
    assert benefit_NK[4] == pytest.approx([excess / (1 + excess), 0, 0.2 / 1.2], abs=1e-6)
    assert benefit_NK[3] == pytest.approx([0, 0, 0], abs=1e-6)  # 4 ml are usual
    wide = BenefitPerMinute(spread=30).benefit(Scores.of(cases))
    assert wide[4] == pytest.approx([0, 0, 0.2 / 1.2], abs=1e-6)


def test_a_quick_organ_comes_before_a_slow_one_that_brings_more():
    """A minute an organ and one a ml. a: 50 ml in 100 are a benefit of 1/3 in 51 minutes; b: 10 ml in 50 are 1/6 in 11."""
    cases = [*(sized(f"usual_{n}", ("a", 0, 90), ("b", 0, 90)) for n in range(5)), sized("both", ("a", 50, 100), ("b", 10, 50))]
    for per_case, organs, score in ((0, ("b",), 1 / 6 / 11), (100, ("b", "a"), 1 / 2 / 162)):
        strategy = BenefitPerMinute(minutes=MinutesModel(per_case=per_case, per_organ=1, per_component=0, per_ml=1))
        first = strategy.rank(Scores.of(cases))[0]
        assert (first.case_id, first.organs, first.score) == ("both", organs, pytest.approx(score, rel=1e-4))


def test_diverse_gives_kinds_places_by_worth_and_twins_last():
    """Quotients: spills 40 and 20/2, islands 30 and 14/2, the other 15. With the twin: 40, 39/2 and 20/3."""
    spills = [sized(f"spill_{n}", ("a", ml, 50)) for n, ml in enumerate((40, 39, 20))]  # the first two are much alike
    islands = [sized(f"island_{n}", ("a", ml, 50), error="island") for n, ml in enumerate((30, 14))]
    other, idle = sized("other", ("b", 15, 50)), sized("idle", ("a", 0, 50)).model_copy(update={"organs": ()})
    scores = Scores.of([*spills, *islands, other, idle])
    assert order(Diverse(base=AttentionVolume()).rank(scores)) == [
        "spill_0", "island_0", "other", "spill_2", "island_1", "spill_1", "idle"
    ]  # fmt: skip
    plain = Diverse(base=AttentionVolume(), alike=0).rank(scores)
    assert order(plain) == ["spill_0", "island_0", "spill_1", "other", "island_1", "spill_2", "idle"]


def test_a_kind_is_of_the_organ_that_is_asked_about_first_and_equals_keep_the_bases_order():
    """Quotients: p 30, q 28/2, r 20, s 14."""

    def asked(case_id: str, ml: float, *names: str) -> CaseScores:
        made = [organ(n, mm3=1000 * ml / len(names), heat=len(names) - i) for i, n in enumerate(names)]
        return case(case_id, *(o.model_copy(update={"error": f"of {o.organ}"}) for o in made))

    cases = [asked("s", 14, "c"), asked("r", 20, "b", "a"), asked("q", 28, "a"), asked("p", 30, "a", "b")]
    assert order(Diverse(base=AttentionVolume(), alike=0).rank(Scores.of(cases))) == ["p", "r", "q", "s"]


def test_errors_are_alike_in_both_sizes_or_not_at_all():
    """46 and 40 ml differ by 15 %, 57 and 50 by 14 %; a repeat would come after the last one."""
    cases = [sized(f"{ml}_in_{predicted}", ("a", ml, predicted)) for ml, predicted in ((46, 50), (40.5, 57), (40, 50))]
    ranked = Diverse(base=AttentionVolume()).rank(Scores.of([*cases, sized("other", ("b", 1, 50))]))
    assert order(ranked) == ["46_in_50", "40.5_in_57", "40_in_50", "other"]


def test_scores_below_zero_leave_the_bases_order():
    cases = [case(f"c{n}", organ("a", entropy=0.5 - n / 100)) for n in range(4)]
    base = ClassStratified(beta=(1e9, 1e9))
    assert (
        order(Diverse(base=base, alike=0).rank(Scores.of(cases))) == order(base.rank(Scores.of(cases))) == ["c0", "c1", "c2", "c3"]
    )


def test_an_organ_gets_no_place_for_a_case_that_leaves_no_doubt_of_it():
    """All places are stratified; of b there is doubt in c1 alone."""
    doubts = [(0.1, 0), (0.2, 0.9), (0.3, 0), (0.4, 0), (0.5, 0)]
    cases = [case(f"c{n}", organ("a", entropy=a), organ("b", entropy=b)) for n, (a, b) in enumerate(doubts)]
    ranked = ClassStratified(beta=(1e9, 1e9), stratified_share=1).rank(Scores.of(cases))
    assert order(ranked) == ["c4", "c1", "c3", "c2", "c0"]


def test_stratified_places_go_to_one_organ_after_the_other():
    """Two of three places; beta is so large that the noise is none."""
    strategy = ClassStratified(beta=(1e9, 1e9))
    cases = [
        case(f"c{n}", organ("a", entropy=0.9 - n / 100), organ("b", entropy=0.005 * n, heat=2), organ("sure", entropy=0))
        for n in range(6)
    ]
    ranked = strategy.rank(Scores.of(cases))
    assert order(ranked)[:3] == ["c0", "c1", "c5"]  # plain, by the mean: 0.9 + 0 before 0.89 + 0.005; then organ a; then b
    assert ranked[1].organs[0] == "a"
    assert ranked[2].organs[0] == "b"
    assert sorted(order(ranked)) == [f"c{n}" for n in range(6)]


def test_noise_falls_from_round_to_round():
    """In the first of five rounds beta is 1 and the order nearly random; in the last it is 100 and the entropies' own."""
    cases = [case(f"c{n:02d}", organ("a", entropy=0.01 * 1.3**n)) for n in range(12)]
    last = [c.model_copy(update={"round": 4}) for c in cases]
    first = [c.model_copy(update={"round": 0}) for c in cases]
    by_entropy = [c.case_id for c in cases[::-1]]
    assert order(ClassStratified(seed=3).rank(Scores.of(last))) == by_entropy
    assert order(ClassStratified(seed=3).rank(Scores.of(first))) != by_entropy
    assert order(ClassStratified(seed=3).rank(Scores.of(first))) != order(ClassStratified(seed=4).rank(Scores.of(first)))


@pytest.mark.parametrize(("round_index", "beta"), [(0, 1), (2, 10), (4, 100), (9, 100)])
def test_beta_rises_evenly_on_a_log_scale_and_then_stays(round_index: int, beta: float):
    cases = Scores.of([case(f"c{n}", organ("a", entropy=0.3), round_index=round_index) for n in range(4)])
    scores = {c.case_id: c.score for c in ClassStratified(rounds=5).rank(cases)}
    assert scores == pytest.approx({c.case_id: c.score for c in ClassStratified(beta=(beta, beta)).rank(cases)})


def test_noise_is_gumbels():
    """Its mean is 0.577 and its standard deviation 1.28; three standard errors of 400 draws are 0.19."""
    cases = Scores.of([case(f"c{n}", organ("a", entropy=1.0), round_index=0) for n in range(400)])
    scores = [c.score for c in ClassStratified(stratified_share=0).rank(cases)]
    assert sum(scores) / 400 == pytest.approx(0.577, abs=0.19)


def test_seed_and_minutes_reach_the_base():
    learned = MinutesModel(per_case=9)
    strategy = informed(Diverse(), lambda minutes: learned)
    assert strategy == Diverse(base=BenefitPerMinute(minutes=learned))
    assert seeded(Diverse(base=RandomOrder()), 7) == Diverse(base=RandomOrder(seed=7))
    assert seeded(AttentionSize(), 7) == informed(AttentionSize(), lambda minutes: learned) == AttentionSize()
