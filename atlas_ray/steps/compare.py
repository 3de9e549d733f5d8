"""Two rounds on the same cases: what the annotation in between was worth, with paired intervals."""

from collections.abc import Iterable, Sequence

from atlas_ray.config import Campaign
from atlas_ray.evaluation.bootstrap import Interval, bootstrap_mean, paired_difference
from atlas_ray.evaluation.components import Rules
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.records import RoundRecord, Split
from atlas_ray.schema import Schema
from atlas_ray.steps.evaluate import Evaluation
from atlas_ray.steps.measured import Table, publish


class ComparedOrgan(Schema):
    """Dice of one organ, or of the mean over a case's organs, on the cases that both rounds have measured."""

    organ: str
    cases: int
    before: Interval
    after: Interval
    difference: Interval


class Comparison(Schema):
    """Two rounds.

    Args:
        minutes: people spent from the first round up to the second, None where no record says so.
        attention_ml: mean attention size of a case in each of them.
    """

    rounds: tuple[int, int]
    split: str
    rules: Rules
    mean: ComparedOrgan
    organs: tuple[ComparedOrgan, ...]
    minutes: float | None
    attention_ml: tuple[float | None, float | None]


def compare_step(campaign: Campaign, rounds: tuple[int, int], *, split: Split = "holdout") -> Comparison:
    """Compare the evaluations of two rounds; the comparison is written and tracked with the later one.

    Raises:
        WorkspaceError: a round is not evaluated, or the two share no case.
    """
    before, after = (read_evaluation(campaign, r, split) for r in rounds)
    shared = [case for case in before.per_case if case in after.per_case]
    if not shared:
        raise WorkspaceError(f"rounds {rounds[0]} and {rounds[1]} were evaluated on different {split} cases")
    rules = campaign.evaluation
    organs = campaign.load_organs().names
    first, second = ([e.per_case[case] for case in shared] for e in (before, after))
    per_organ = tuple(_compared(o, [case[o] for case in first], [case[o] for case in second], rules) for o in organs)
    mean = _compared("mean", [_mean(case.values()) for case in first], [_mean(case.values()) for case in second], rules)
    comparison = Comparison(
        rounds=rounds,
        split=split,
        rules=rules,
        mean=mean,
        organs=per_organ,
        minutes=_minutes(campaign, rounds),
        attention_ml=(_ml(before), _ml(after)),
    )
    rows = [*comparison.organs, comparison.mean]
    publish(
        campaign,
        max(rounds),
        f"compare_{split}_{rounds[0]:03d}_{rounds[1]:03d}",
        comparison,
        metrics={f"dice_gain/{row.organ}": row.difference.value for row in rows},
        tables={
            "organs": Table(
                ("organ", "cases", "before", "after", "difference", "low", "high"),
                tuple(
                    (r.organ, r.cases, r.before.value, r.after.value, r.difference.value, r.difference.low, r.difference.high)
                    for r in rows
                ),
            ),
            "per_case": Table(
                ("case", "organ", "before", "after"),
                tuple((case, o, before.per_case[case][o], after.per_case[case][o]) for case in shared for o in organs),
            ),
        },
        plots={},
    )
    return comparison


def read_evaluation(campaign: Campaign, round_index: int, split: Split) -> Evaluation:
    """Raises WorkspaceError where the round is not evaluated."""
    path = campaign.open_workspace().evaluation(round_index, split)
    if not path.exists():
        raise WorkspaceError(f"{path} is missing; run `python -m jobs.evaluate dice CONFIG --round {round_index} --split {split}`")
    return Evaluation.model_validate_json(path.read_bytes())


def _compared(organ: str, before: Sequence[float | None], after: Sequence[float | None], rules: Rules) -> ComparedOrgan:
    both = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    return ComparedOrgan(
        organ=organ,
        cases=len(both),
        before=bootstrap_mean([b for b, _ in both], rules),
        after=bootstrap_mean([a for _, a in both], rules),
        difference=paired_difference(before, after, rules),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _ml(evaluation: Evaluation) -> float | None:
    return None if evaluation.attention_mm3 is None else evaluation.attention_mm3 / 1000


def _minutes(campaign: Campaign, rounds: tuple[int, int]) -> float | None:
    """Of the rounds from the earlier one up to, and without, the later one."""
    paths = [campaign.open_workspace().record(r) for r in range(min(rounds), max(rounds))]
    records = [RoundRecord.model_validate_json(path.read_bytes()) for path in paths if path.exists()]
    return sum(r.minutes for r in records) if records else None
