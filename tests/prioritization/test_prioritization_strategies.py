"""Query strategies on four cases whose order each can be seen at a glance."""

import pytest
from pydantic import TypeAdapter

from atlas_ray.prioritization.strategies import (
    AttentionSize,
    AttentionVolume,
    ForegroundAwareRandom,
    MeanEntropy,
    RandomOrder,
    RankedCase,
    Strategy,
    organs_by_heat,
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
