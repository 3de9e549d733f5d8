"""Learning rate by hand, and which settings contradict each other."""

from typing import Any

import pytest

from atlas_ray.segmentation.schedule import Schedule, Trust


def test_the_learning_rate_warms_up_and_falls_along_a_half_cosine_to_a_hundredth() -> None:
    schedule = Schedule(steps=110, warmup_steps=10, learning_rate=1.0)
    assert schedule.learning_rate_at(0) == pytest.approx(0.1)
    assert schedule.learning_rate_at(9) == pytest.approx(1.0)
    assert schedule.learning_rate_at(60) == pytest.approx(0.01 + 0.99 / 2)
    assert schedule.learning_rate_at(110) == pytest.approx(0.01)


def test_what_a_person_changed_counts_most_and_what_nobody_saw_not_at_all() -> None:
    trust = Trust()
    assert trust.of("revised") > trust.of("original") > trust.of("confirmed") > trust.of("pseudo") == 0


@pytest.mark.parametrize("wrong", [{"patience": 3}, {"keep": "best"}, {"keep": "best", "validate_on": "train"}])
def test_weights_are_never_selected_by_the_holdout(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="selected by the holdout they would look better than they are"):
        Schedule.model_validate(wrong)
    fair = {"validate_every": 10, "validation_cases": 2, "validate_on": "train"}
    assert Schedule.model_validate({**wrong, **fair}).validate_on == "train"
