"""One organ decides, not the mean."""

from atlas_ray.records import OrganDice
from atlas_ray.segmentation.gate import Gate


def rows(**dices: float | None) -> list[OrganDice]:
    return [OrganDice(organ=organ, dice=dice, cases=4) for organ, dice in dices.items()]


def test_one_organ_that_fell_too_far_outweighs_any_gain() -> None:
    judgment = Gate(max_drop=0.02).judge(rows(liver=0.5, spleen=0.9), rows(liver=0.99, spleen=0.87))
    assert not judgment.promoted
    assert judgment.reason == "refused, 0.02 is allowed: of all organs spleen went from 0.900 to 0.870 at worst"


def test_what_falls_within_the_limit_goes_on() -> None:
    judgment = Gate(max_drop=0.02).judge(rows(liver=0.5, spleen=0.9), rows(liver=0.75, spleen=0.890625))
    assert judgment.promoted
    assert (judgment.worst_organ, judgment.worst_drop) == ("spleen", 0.9 - 0.890625)


def test_organs_without_a_reference_say_nothing() -> None:
    assert Gate().judge(rows(liver=None), rows(liver=None)).promoted
    assert Gate().judge(rows(liver=None, spleen=0.5), rows(liver=None, spleen=0.5)).worst_organ == "spleen"
