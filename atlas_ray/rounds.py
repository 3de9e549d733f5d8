"""One round start to finish, resumable at every step; and a whole campaign with an oracle in the annotator's chair.

    round r:  [train r]  predict r  evaluate r  prioritize r  annotate r  merge r  train r+1  predict r+1 (holdout)  evaluate r+1

Every step skips what is finished, so a round that was killed anywhere is continued by starting it again. A round with a human
annotator stops after `prioritize` and goes on, when started again, once the queue is worked off.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, get_args

from atlas_ray.annotation.database import Database, with_database
from atlas_ray.annotation.drafts import read_provenance
from atlas_ray.annotation.oracle import OracleAnnotator
from atlas_ray.annotation.queue import Queue, WorkItem
from atlas_ray.annotation.revisions import Edit, Revisions
from atlas_ray.cluster import prediction
from atlas_ray.cluster.tracking import Run, round_run
from atlas_ray.config import Campaign
from atlas_ray.exceptions import ConfigError, WorkspaceError
from atlas_ray.lock import check_lock
from atlas_ray.prioritization.effort import Budget
from atlas_ray.prioritization.stopping import RoundOutcome, StopDecision
from atlas_ray.progress import Advance, not_shown
from atlas_ray.records import RoundRecord
from atlas_ray.schema import Schema
from atlas_ray.steps.abandon import replay_from
from atlas_ray.steps.annotate import AnnotationProgress, annotate_step, annotation_metrics, annotation_state
from atlas_ray.steps.evaluate import Evaluation, evaluate_step, evaluation_metrics
from atlas_ray.steps.ingest import ingest_step
from atlas_ray.steps.merge import merge_step
from atlas_ray.steps.predict import predict_step, to_predict
from atlas_ray.steps.prioritize import prioritize_step
from atlas_ray.steps.promote import promote_step
from atlas_ray.steps.train import train_step
from atlas_ray.storage import write_atomically
from atlas_ray.workspace import file_sha256, now

log = logging.getLogger(__name__)
ProgressBar = Callable[[str, int], AbstractContextManager[Advance]]
Step = Literal["train", "predict", "evaluate", "prioritize", "annotate", "merge", "finetune", "check"]
STEPS: tuple[Step, ...] = get_args(Step)


class RoundResult(Schema):
    """What a call of `run_round` reached.

    Args:
        waiting: True where people still have cases to annotate; the round is then not finished.
        skipped: steps that an earlier call had finished.
        before, after: the networks the round started with and those it ended with, on the holdout; None without a holdout.
    """

    round: int
    waiting: bool
    skipped: tuple[str, ...]
    budget: Budget
    annotation: AnnotationProgress
    before: Evaluation | None = None
    after: Evaluation | None = None
    stop: StopDecision | None = None


@contextmanager
def _no_bar(what: str, total: int) -> Iterator[Advance]:
    yield not_shown


def run_round(
    campaign: Campaign, round_index: int, *, replay: Step | None = None, retry: bool = False, bar: ProgressBar = _no_bar
) -> RoundResult:
    """Run, or go on with, one round.

    Args:
        replay: start again from this step.
        retry: give cases that were set aside another try.
        bar: opens a progress bar for (what, total) and yields the function that advances it.

    Raises:
        WorkspaceError: the round was abandoned, or another job has taken the workspace.
    """
    workspace = campaign.open_workspace()
    if retry and workspace.set_aside(prediction.step_of(round_index)):
        replay = replay if replay == "train" else "predict"
    if replay is not None:
        replay_from(campaign, round_index, STEPS, replay)
    if retry:  # forgotten only now: killed in between, the next start still knows that there is something to predict
        prediction.retry_failed(campaign, round_index)
    if when := workspace.round_state(round_index).abandoned:
        raise WorkspaceError(f"round {round_index} was abandoned at {when}; `--replay STEP` takes it up again ({', '.join(STEPS)})")
    with round_run(campaign, round_index) as run:
        return _Round(campaign, round_index, run, bar).go()


class _Round:
    """The state machine: which steps are done stands in the workspace, not here."""

    def __init__(self, campaign: Campaign, round_index: int, run: Run, bar: ProgressBar) -> None:
        self.campaign, self.index, self.run, self.bar = campaign, round_index, run, bar
        self.workspace = campaign.open_workspace()
        self.skipped: list[str] = []

    def go(self) -> RoundResult:
        campaign, r = self.campaign, self.index
        report = ingest_step(campaign)
        new = len(report.cases) - len(report.skipped)
        log.info("ingest: %d cases (%d new), %d quarantined", len(report.cases), new, len(report.quarantined))
        self._once("train", lambda: self._train(r))
        self._once("predict", lambda: self._predict(r, ("train", "pool", "holdout")))
        self._once("evaluate", lambda: self._evaluate(r))
        if not to_predict(campaign, ("train", "pool")):
            log.info("every case is fully labeled: there is nothing to annotate")
            return self._result(campaign.effort.budget([]), self._annotation(), waiting=False)
        self._once("prioritize", lambda: prioritize_step(campaign, r))
        budget = Budget.model_validate_json(self.workspace.budget(r).read_bytes())
        self._once("annotate", lambda: self._annotate(budget), finished=lambda: self._annotation().complete)
        annotation = self._annotation()
        if not annotation.complete:
            return self._result(budget, annotation, waiting=True)
        self._once("merge", lambda: merge_step(campaign, r))
        self._once("finetune", lambda: self._train(r + 1))
        self._once("check", lambda: self._check())
        return self._result(budget, annotation, waiting=False)

    def _once(self, step: Step, work: Callable[[], object], *, finished: Callable[[], bool] = lambda: True) -> None:
        if step in self.workspace.finished_steps(self.index):
            self.skipped.append(step)
            log.info("round %d, %s: done before, skipped", self.index, step)
            return
        check_lock()
        log.info("round %d, %s: starting", self.index, step)
        self.workspace.start_step(self.index, step, now())
        work()
        check_lock()
        if finished():
            self.workspace.finish_step(self.index, step, now())

    def _train(self, round_index: int) -> None:
        verb = "train" if round_index == 0 else "fine-tune"
        with self.bar(f"{verb} networks of round {round_index}", len(self.campaign.architectures)) as advance:
            train_step(self.campaign, round_index, progress=advance)

    def _predict(self, round_index: int, splits: tuple[Literal["train", "pool", "holdout"], ...]) -> None:
        total = len(to_predict(self.campaign, splits))
        with self.bar(f"predict round {round_index}", total) as advance:
            predict_step(self.campaign, round_index, splits=splits, progress=advance)

    def _annotate(self, budget: Budget) -> None:
        with self.bar("annotate", budget.cases) as advance:
            annotate_step(self.campaign, self.index, progress=advance)

    def _annotation(self) -> AnnotationProgress:
        return annotation_state(self.campaign, self.index)

    def _has_holdout(self) -> bool:
        return any(c.split == "holdout" and self.workspace.truth(c.case_id).exists() for c in self.workspace.cases())

    def _evaluate(self, round_index: int) -> None:
        if self._has_holdout():
            evaluate_step(self.campaign, round_index)

    def _check(self) -> None:
        """The fine-tuned networks on the holdout, beside those the round started with: what got worse does not go on."""
        if self._has_holdout():
            self._predict(self.index + 1, ("holdout",))
        promote_step(self.campaign, self.index + 1)
        self._evaluate(self.index + 1)

    def _evaluation(self, round_index: int) -> Evaluation | None:
        path = self.workspace.evaluation(round_index)
        return Evaluation.model_validate_json(path.read_bytes()) if path.exists() else None

    def _result(self, budget: Budget, annotation: AnnotationProgress, *, waiting: bool) -> RoundResult:
        before, after = self._evaluation(self.index), None if waiting else self._evaluation(self.index + 1)
        stop = None if waiting else self.campaign.stop.met(self._outcome(budget))
        result = RoundResult(
            round=self.index,
            waiting=waiting,
            skipped=tuple(self.skipped),
            budget=budget,
            annotation=annotation,
            before=before,
            after=after,
            stop=stop,
        )
        self._record(result)
        return result

    def _record(self, result: RoundResult) -> None:
        """The round's line in the campaign's story: in the workspace and on the parent run."""
        before = result.before
        record = RoundRecord(
            round=self.index,
            dice={row.organ: row.dice for row in before.organs if row.dice is not None} if before else {},
            mean_dice=before.mean_dice if before else None,
            dice_by_architecture={k: v for k, v in before.mean_by_architecture.items() if v is not None} if before else {},
            mean_attention_mm3=before.attention_mm3 if before else None,
            mean_attention_voxels=before.attention_voxels if before else None,
            cases_revised=result.annotation.submitted,
            organs_revised=result.annotation.organs,
            voxels_revised=result.annotation.voxels,
            minutes=result.annotation.minutes,
            queried_share=result.budget.share,
        )
        write_atomically(self.workspace.record(self.index), record.model_dump_json(indent=2))
        if before is not None:
            self.run.metrics(evaluation_metrics(before), step=self.index)
        self.run.metrics(annotation_metrics(result.annotation), step=self.index)
        if result.after is not None:
            self.run.metrics({"dice_after/mean": result.after.mean_dice}, step=self.index)
        for path in (
            self.workspace.manifest,
            self.workspace.priority_csv(self.index),
            self.workspace.plot(self.index, "attention_curve"),
        ):
            self.run.artifact(path)
        sha256 = file_sha256(self.workspace.manifest)
        splits = dict(Counter[str](case.split for case in self.workspace.cases()))
        self.run.dataset(f"{self.campaign.name}-manifest", sha256=sha256, source=self.workspace.manifest, profile=splits)
        self.run.tags(self._checkpoints())
        self.run.tags({"data_sha256": sha256, "stop": result.stop.reason if result.stop else "waiting"})

    def _checkpoints(self) -> dict[str, str]:
        """Tag -> sha256 of the weights: those that the round predicted with, and those that it trained."""
        tags = {}
        for what, round_index in (("checkpoint", self.index), ("trained", self.index + 1)):
            for name in self.campaign.architecture_names:
                path = self.workspace.checkpoint(round_index, name)
                if path.exists():
                    tags[f"{what}.{name}"] = file_sha256(path)
        return tags

    def _outcome(self, budget: Budget) -> RoundOutcome:
        """What the stop rule is told: how much the top case of the list had to be changed."""
        audited = [found for found in map(self._revised, budget.audit) if found is not None]
        audit = self.campaign.effort.audit.result([revised / max(1, labeled) for revised, labeled in audited])
        if not budget.case_ids:
            return RoundOutcome(rounds=self.index + 1, top_case=None, audit=audit)
        top = self._revised(budget.case_ids[0])
        revised, labeled = top or (0, 0)
        return RoundOutcome(
            rounds=self.index + 1,
            top_case=budget.case_ids[0],
            top_case_reviewed=top is not None,
            top_voxels_revised=revised,
            top_voxels_labeled=labeled,
            audit=audit,
        )

    def _revised(self, case_id: str) -> tuple[int, int] | None:
        """Voxels revised, and voxels of the organs that were up for revision; None where the case is not submitted."""

        def ask(database: Database) -> tuple[WorkItem, Sequence[Edit]]:
            return Queue(database).item((self.index, case_id)), Revisions(database).edits(self.index, case_id)

        item, edits = with_database(self.campaign.database_url, ask, self.campaign.cluster.patience_s)
        if item.state != "submitted":
            return None
        provenance = read_provenance(self.workspace, self.index, case_id)
        return sum(edit.revision.voxels for edit in edits), sum(provenance[name].voxels for name in item.organs)


def simulate(campaign: Campaign, rounds: int, *, bar: ProgressBar = _no_bar) -> list[RoundResult]:
    """Rounds with the oracle annotator until the stop rule is met, at most `rounds`.

    Raises:
        ConfigError: the campaign waits for people.
    """
    if not isinstance(campaign.annotation.annotator, OracleAnnotator):
        raise ConfigError("a simulation needs `annotation: {annotator: {annotator: oracle}}`; this campaign waits for people")
    results: list[RoundResult] = []
    for round_index in range(rounds):
        results.append(run_round(campaign, round_index, bar=bar))
        stop = results[-1].stop
        if stop is not None and stop.met:
            log.info("campaign stops after round %d: %s", round_index, stop.reason)
            break
    return results
