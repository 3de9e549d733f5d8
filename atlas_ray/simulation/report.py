"""The study as one record and one HTML page."""

from collections.abc import Sequence

import numpy as np

from atlas_ray.config import Campaign
from atlas_ray.data.sources import certain_variants
from atlas_ray.evaluation.bootstrap import Interval
from atlas_ray.evaluation.ranking import auroc
from atlas_ray.figures import figure, heading, page, picture, png, table, text
from atlas_ray.records import Case
from atlas_ray.schema import Schema
from atlas_ray.simulation.arms import FULL_LABEL, arms_of, study_of
from atlas_ray.simulation.curves import Comparison, Measure, Seeds, Standing, comparison, standing, values
from atlas_ray.simulation.modes import ModeResult
from atlas_ray.simulation.play import Curves
from atlas_ray.steps.evaluate import Evaluation
from atlas_ray.storage import write_atomically
from atlas_ray.tables import read_scores

TITLES: dict[Measure, str] = {
    "networks": "Dice of the networks on the holdout",
    "labels": "Dice of the pool's labels",
    "surface": "surface Dice of the networks on the holdout",
}


class Variants(Schema):
    """Rare variants among pool and holdout, and whether a strategy's first list has them in front.

    Args:
        cases: with a variant; wrong: of them, those whose networks get an organ much worse than in ordinary cases.
        auroc: strategy -> chance that a case the networks get wrong stands before a case without a variant.
    """

    cases: int
    wrong: int
    auroc: dict[str, Interval]


class AnnotatorResult(Schema):
    """What one kind of annotator gives."""

    standings: dict[str, Standing]
    comparisons: tuple[Comparison, ...]


class StudyResult(Schema):
    """Everything the page says, for scripts."""

    pool: int
    holdout: int
    full_label: dict[Measure, float]
    start: dict[Measure, float]
    annotators: dict[str, AnnotatorResult]
    variants: Variants
    modes: tuple[ModeResult, ...] = ()


def write_report(campaign: Campaign, curves: Curves, modes: Sequence[ModeResult] = ()) -> StudyResult:
    """simulation.json, and simulation.html last."""
    study, workspace = study_of(campaign), campaign.open_workspace()
    reference = _seeds(campaign, curves, FULL_LABEL, "all")
    horizon = study.rounds * study.minutes
    results, pictures = {}, list[str]()
    for annotator in study.annotators:
        arms = {name: _seeds(campaign, curves, name, annotator) for name in study.strategies}
        first, *others = study.strategies
        results[annotator] = AnnotatorResult(
            standings={
                n: standing(seeds, reference, study.rules, margin=study.margin, horizon=horizon) for n, seeds in arms.items()
            },
            comparisons=tuple(comparison(arms[first], arms[name], name, study.rules, horizon=horizon) for name in others),
        )
        pictures += [
            picture(
                _curves(arms, reference, measure),
                f"{TITLES[measure]}, annotator {annotator}; bars from the lowest to the highest seed",
            )
            for measure in TITLES
        ]
    measures: tuple[Measure, ...] = ("networks", "labels", "surface")
    result = StudyResult(
        pool=len(reference[0][0].labels),
        holdout=len(reference[0][0].networks),
        full_label={m: float(values(reference, m)[:, -1].mean()) for m in measures},
        start={m: float(values(reference, m)[:, 0].mean()) for m in measures},
        annotators=results,
        variants=variants(campaign),
        modes=tuple(modes),
    )
    write_atomically(workspace.simulation_results, result.model_dump_json(indent=2))
    write_atomically(workspace.simulation_report, _page(campaign, result, pictures))
    return result


def variants(campaign: Campaign) -> Variants:
    """Of round 0, before anybody has annotated."""
    study, workspace = study_of(campaign), campaign.open_workspace()
    cases = {case.case_id: case for case in workspace.cases() if case.split != "train"}
    has = {case_id: bool(certain_variants(case.image)) for case_id, case in cases.items()}
    wrong = _got_wrong(campaign, list(cases.values()), has, study.wrong_below)
    scores = read_scores(workspace, 0)
    scores = scores.take(np.isin(scores.case_id_N, [case_id for case_id in cases if wrong[case_id] or not has[case_id]]))
    areas = {}
    for name, strategy in study.strategies.items():
        ranked = strategy.rank(scores)
        areas[name] = auroc([-case.rank for case in ranked], [wrong[case.case_id] for case in ranked], study.rules)
    return Variants(cases=sum(has.values()), wrong=sum(wrong.values()), auroc=areas)


def _got_wrong(campaign: Campaign, cases: Sequence[Case], has: dict[str, bool], below: float) -> dict[str, bool]:
    """Case -> whether it has a variant, and an organ's Dice lies so far below that organ's median over ordinary cases."""
    workspace = campaign.open_workspace()
    dice: dict[str, dict[str, float | None]] = {}
    for split in ("pool", "holdout"):
        dice |= Evaluation.model_validate_json(workspace.evaluation(0, split).read_bytes()).per_case
    ordinary = [dice[case.case_id] for case in cases if not has[case.case_id]]
    names = campaign.load_organs().names
    usual = {name: float(np.median([d for row in ordinary if (d := row.get(name)) is not None] or [0.0])) for name in names}
    worst = {
        case.case_id: max((usual[n] - d for n, d in dice[case.case_id].items() if d is not None), default=0.0) for case in cases
    }
    return {case_id: has[case_id] and worst[case_id] > below for case_id in worst}


def _seeds(campaign: Campaign, curves: Curves, strategy: str, annotator: str) -> Seeds:
    arms = [arm for arm in arms_of(study_of(campaign)) if (arm.strategy_name, arm.annotator_name) == (strategy, annotator)]
    return [curves[arm.name] for arm in arms]


def _curves(arms: dict[str, Seeds], reference: Seeds, measure: Measure) -> bytes:
    with figure(8, 4.5) as (drawn, axes):
        for name, seeds in arms.items():
            minutes_SP = np.array([[point.work.minutes for point in points] for points in seeds])
            dice_SP = values(seeds, measure).mean(axis=2)
            middle = dice_SP.mean(axis=0)
            spread = np.array([middle - dice_SP.min(axis=0), dice_SP.max(axis=0) - middle])
            axes.errorbar(minutes_SP.mean(axis=0), middle, yerr=spread, marker="o", markersize=4, capsize=3, label=name)
        if measure != "labels":
            full = float(values(reference, measure)[:, -1].mean())
            axes.axhline(full, color="#666666", linestyle="--", label="every case labeled")
        axes.set_xlabel("Simulated minutes of annotation")
        axes.set_ylabel(TITLES[measure])
        axes.legend(frameon=False)
    return png(drawn)


def _page(campaign: Campaign, result: StudyResult, pictures: Sequence[str]) -> str:
    study = study_of(campaign)
    blocks = [
        text(
            f"{result.pool} pool cases, {result.holdout} holdout cases, {study.rounds} rounds of {study.minutes:g} minutes, "
            f"{len(study.seeds)} seeds. Patients are synthetic: what is measured is the loop, not networks on real CT."
        ),
        text(
            f"Dice of the networks before any annotation {result.start['networks']:.3f}, with every case labeled "
            f"{result.full_label['networks']:.3f}; surface Dice {result.start['surface']:.3f} and "
            f"{result.full_label['surface']:.3f}."
        ),
    ]
    for annotator, found in result.annotators.items():
        blocks += [heading(f"Annotator: {annotator}"), *_tables(found, study.margin)]
    seen = result.variants
    blocks += [
        heading("Rare variants"),
        text(f"{seen.cases} cases have one; the networks of round 0 get {seen.wrong} of them wrong."),
        table(("Strategy", "AUROC of its first list"), [(name, _digits(area)) for name, area in seen.auroc.items()]),
        *_modes(result.modes, study.rules.min_error_mm3),
        heading("Curves"),
        *pictures,
    ]
    return page(f"Simulated campaign {campaign.name}", *blocks)


def _modes(modes: Sequence[ModeResult], min_error_mm3: float) -> list[str]:
    if not modes:
        return []
    rows = [(m.mode, m.errors, _digits(m.sensitivity), m.regions, _digits(m.precision)) for m in modes]
    return [
        heading("Modes of attention"),
        text(
            "On the holdout, with the networks of the reference after its first round; calibrated attention has learned from every "
            f"pool case. Errors from {min_error_mm3:g} mm3 on, by region, mean over organs."
        ),
        table(("Mode", "Errors", "Sensitivity", "Regions", "Precision"), rows),
    ]


def _tables(found: AnnotatorResult, margin: float) -> list[str]:
    standings = found.standings
    shares = [
        (
            name,
            f"{s.minutes:.1f}",
            f"{s.cases:.1%}",
            f"{s.changed:.1%}",
            f"{s.voxels:.2%}",
            s.efficiency,
            "never"
            if s.reached is None
            else f"after {s.reached.minutes:.1f} min: {s.reached.cases:.1%} of cases, {s.reached.voxels:.2%}",
        )
        for name, s in standings.items()
    ]
    rounds = range(len(next(iter(standings.values())).sensitivity))
    return [
        *(
            block
            for measure, title in TITLES.items()
            for block in (
                text(f"{title}, mean and interval"),
                table(
                    ("Strategy", "AUBC", "at the end"),
                    [(n, _digits(s.aubc[measure]), _digits(s.final[measure])) for n, s in standings.items()],
                ),
                table(
                    (f"{next(iter(standings))} less", "AUBC", "at the end"),
                    [(c.against, _digits(c.aubc[measure]), _digits(c.final[measure])) for c in found.comparisons],
                ),
            )
        ),
        text("What people did"),
        table(
            (
                "Strategy",
                "Minutes",
                "Cases looked at",
                "Cases changed",
                "Organ voxels by hand",
                "FG-Eff (per million voxels)",
                f"Reference less {margin:g}",
            ),
            shares,
        ),
        text("Attention against errors on the holdout, by region: sensitivity / precision after each round"),
        table(
            ("Strategy", *(f"after {r}" for r in rounds)),
            [(n, *(f"{_two(s.sensitivity[r])} / {_two(s.precision[r])}" for r in rounds)) for n, s in standings.items()],
        ),
    ]


def _digits(interval: Interval) -> str:
    """Four digits: strategies differ in the third."""
    if interval.value is None:
        return "-"
    bounds = f" ({interval.low:.4f} to {interval.high:.4f})" if interval.low is not None and interval.high is not None else ""
    return f"{interval.value:.4f}{bounds}"


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
