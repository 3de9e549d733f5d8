"""Playing the arms of a study: round 0 once, then every arm in its own process, each resumable at every step."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from atlas_ray.cluster.session import in_process, runs_in_process
from atlas_ray.cluster.tasks import map_cases
from atlas_ray.config import Campaign
from atlas_ray.evaluation.components import Rules
from atlas_ray.progress import Advance
from atlas_ray.simulation.arms import Arm, arm_campaign, arms_of, link_round_0, study_of
from atlas_ray.simulation.points import Point, reached, work_before
from atlas_ray.steps.annotate import annotate_step
from atlas_ray.steps.evaluate import evaluate_step
from atlas_ray.steps.ingest import ingest_step
from atlas_ray.steps.merge import merge_step
from atlas_ray.steps.predict import predict_step
from atlas_ray.steps.prioritize import prioritize_step
from atlas_ray.steps.train import train_step
from atlas_ray.storage import write_atomically
from atlas_ray.workspace import now

log = logging.getLogger(__name__)
ProgressBar = Callable[[str, int], AbstractContextManager[Advance]]
Curves = dict[str, list[Point]]  # arm -> its points


def play(campaign: Campaign, *, cpus: float, bar: ProgressBar) -> Curves:
    """The whole study. What is finished is skipped; an arm that was killed goes on where it was.

    Args:
        cpus: that Ray has, to be divided among the arms.
        bar: opens a progress bar for (what, total) and yields the function that advances it.
    """
    study = study_of(campaign)
    prepare(campaign, bar=bar)
    arms, curves = arms_of(study), {}
    one = partial(play_arm, campaign_json=campaign.model_dump_json())
    with bar(f"{len(arms)} arms of {study.rounds} rounds", len(arms)) as advance:
        for arm, points in zip(arms, map_cases(one, arms, num_cpus=max(1.0, cpus / study.at_once)), strict=True):
            curves[arm.name] = [Point.model_validate_json(point) for point in points]
            advance()
    return curves


def prepare(campaign: Campaign, *, bar: ProgressBar) -> None:
    """Round 0: cases, networks, predictions, and Dice on pool and holdout. Networks and predictions are made in this process, which
    costs small campaigns less than starting workers."""
    report = ingest_step(campaign)
    log.info("ingest: %d cases, %d quarantined", len(report.cases), len(report.quarantined))
    with bar("train networks of round 0", len(campaign.architectures)) as advance, in_process():
        train_step(campaign, 0, progress=advance)
    cases = [case for case in campaign.open_workspace().cases() if case.split != "train"]
    with bar("predict round 0", len(cases)) as advance, in_process():
        predict_step(campaign, 0, splits=("pool", "holdout"), progress=advance)
        for split in ("pool", "holdout"):
            if not campaign.open_workspace().evaluation(0, split).exists():
                evaluate_step(campaign, 0, split=split)


def play_arm(arm: Arm, *, campaign_json: str) -> list[str]:
    """One arm to its end; its points as JSON, which travels."""
    import torch

    campaign = Campaign.model_validate_json(campaign_json)
    if not runs_in_process():  # a process of this arm's own, beside the others'
        torch.set_num_threads(1)
    study, own = study_of(campaign), arm_campaign(campaign, arm)
    link_round_0(campaign, own)
    with in_process():
        points = [_point(own, 0, study.rules)]
        for round_index in range(study.rounds):
            _round(own, round_index, None if arm.minutes is None else arm.minutes * (round_index + 1))
            points.append(_point(own, round_index + 1, study.rules))
    return [point.model_dump_json() for point in points]


def _round(campaign: Campaign, round_index: int, minutes: float | None) -> None:
    """Rank, annotate, merge and learn.

    Args:
        minutes: of this round and those before it; what one round oversteps is taken from the next.
    """
    workspace = campaign.open_workspace()
    left = None if minutes is None else minutes - work_before(campaign, round_index).minutes
    work: dict[str, Callable[[], object]] = {
        "prioritize": lambda: prioritize_step(campaign, round_index),
        "annotate": lambda: annotate_step(campaign, round_index, minutes=left),
        "merge": lambda: merge_step(campaign, round_index),
        "finetune": lambda: train_step(campaign, round_index + 1),
    }
    for step, todo in work.items():
        if step not in workspace.finished_steps(round_index):
            todo()
            workspace.finish_step(round_index, step, now())


def _point(campaign: Campaign, round_index: int, rules: Rules) -> Point:
    path = campaign.open_workspace().point(round_index)
    if not path.exists():
        write_atomically(path, reached(campaign, round_index, rules).model_dump_json(indent=2))
    return Point.model_validate_json(path.read_bytes())
