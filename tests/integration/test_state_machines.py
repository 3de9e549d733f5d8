"""Any interleaving of work, crashes, retries, lost leases, abandoning and replaying keeps what the campaign promises.

Two machines that hypothesis drives: the annotation queue with its revisions and the merge, the round with its steps and the lock.
Each invariant is a method named after what it promises.
"""

import shutil
import tempfile
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atlas_ray import rounds
from atlas_ray.annotation.database import Database, open_database, sqlite_url
from atlas_ray.annotation.merge import merge_case
from atlas_ray.annotation.queue import LeaseError, Queue, QueueEntry
from atlas_ray.annotation.review import to_merge
from atlas_ray.annotation.revisions import RevisionConflict, Revisions, diff_runs
from atlas_ray.config import Campaign
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.lock import acquire, holder_of, locked
from atlas_ray.organs import load_organs
from atlas_ray.rounds import STEPS, run_round
from atlas_ray.steps.abandon import abandon_round, replay_from

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # every commit is on disk before it is reported
ORGANS = load_organs("abdomenatlas_1_0")
LIVER, SPLEEN = ORGANS.names[:2]
SHAPE = (2, 2, 2)
MINE = {LIVER: np.arange(8).reshape(SHAPE, order="F") < 4, SPLEEN: np.arange(8).reshape(SHAPE, order="F") >= 4}  # do not overlap
CASES, USERS = ("c0", "c1", "c2"), ("ada", "bob")
QUICK = settings(max_examples=25, stateful_step_count=30, suppress_health_check=list(HealthCheck))


class Clock:
    def __init__(self) -> None:
        from datetime import UTC, datetime

        self.time = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)

    def __call__(self) -> Any:
        return self.time


class QueueMachine(RuleBasedStateMachine):
    """People annotate; servers die and come back; leases run out."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine", dir=MEMORY))
        self.clock = Clock()
        self.database: Database | None = None
        self.open()
        self.masks = {(case, organ): [np.zeros(SHAPE, bool)] for case in CASES for organ in MINE}  # as saved, one a revision
        self.handed_in: set[str] = set()
        self.events = 0

    def open(self) -> None:
        self.database = open_database(sqlite_url(self.folder / "annotation.db"))
        self.queue = Queue(self.database, lease_minutes=10, now=self.clock)
        self.revisions = Revisions(self.database, now=self.clock)

    def teardown(self) -> None:
        assert self.database is not None
        self.database.close()
        shutil.rmtree(self.folder)

    def held_by(self, user: str) -> list[Any]:
        return [item for item in self.queue.items(0, state="leased") if item.user == user]

    # --- what happens ---
    @initialize()
    def first(self) -> None:
        self.fill()

    @rule()
    def fill(self) -> None:
        self.queue.fill(0, [QueueEntry(case_id=case, organs=(LIVER, SPLEEN), rank=n) for n, case in enumerate(CASES, 1)])

    @rule(user=st.sampled_from(USERS))
    def next(self, user: str) -> None:
        self.queue.next(user, round_index=0)

    @rule(user=st.sampled_from(USERS), case=st.sampled_from(CASES), organ=st.sampled_from(list(MINE)), bits=st.integers(0, 255))
    def save(self, user: str, case: str, organ: str, bits: int) -> None:
        """As the app: prolong the lease, then append; without the lease nothing is stored."""
        before = self.masks[case, organ][-1]
        after = np.array([bits >> n & 1 for n in range(8)], bool).reshape(SHAPE, order="F") & MINE[organ]
        try:
            self.queue.heartbeat(self.queue.item((0, case)).item_id, user)
        except LeaseError:
            return
        parent = len(self.masks[case, organ]) - 1
        self.revisions.save(0, case, organ, user=user, parent_id=parent, runs=diff_runs(before, after), size=8)
        self.masks[case, organ].append(after)

    @rule(user=st.sampled_from(USERS), case=st.sampled_from(CASES), organ=st.sampled_from(list(MINE)))
    def save_on_an_old_revision(self, user: str, case: str, organ: str) -> None:
        """Another window that has not seen the last edit: refused, whatever else."""
        if len(self.masks[case, organ]) > 1:
            runs = diff_runs(self.masks[case, organ][0], MINE[organ])
            with pytest.raises(RevisionConflict):
                self.revisions.save(0, case, organ, user=user, parent_id=len(self.masks[case, organ]) - 2, runs=runs, size=8)

    @rule(user=st.sampled_from(USERS), again=st.booleans())
    def submit(self, user: str, again: bool) -> None:
        for item in self.held_by(user)[:1]:
            for _ in range(2 if again else 1):  # the answer was lost, the browser asks once more
                self.queue.submit(item.item_id, user)
            self.handed_in.add(item.case_id)

    @rule(user=st.sampled_from(USERS), how=st.sampled_from(["release", "skip"]))
    def give_back(self, user: str, how: str) -> None:
        for item in self.held_by(user)[:1]:
            getattr(self.queue, how)(item.item_id, user)

    @rule(user=st.sampled_from(USERS), case=st.sampled_from(CASES))
    def reopen(self, user: str, case: str) -> None:
        with suppress(LeaseError):
            self.queue.reopen(self.queue.item((0, case)).item_id, user)
            self.handed_in.discard(case)

    @rule()
    def the_lease_runs_out(self) -> None:
        from datetime import timedelta

        self.clock.time += timedelta(minutes=11)

    @rule()
    def the_server_dies(self) -> None:
        """In the middle of a change: it is undone, and everything reported before it is there."""
        assert self.database is not None
        with suppress(RuntimeError), self.database.write() as connection:
            self.queue._log(connection, "ada", "half", detail="done")
            raise RuntimeError("killed")
        self.database.close()
        self.open()

    @rule()
    def the_round_is_abandoned_and_taken_up_again(self) -> None:
        self.queue.close_round(0, "abandon", note="abandoned")
        assert not self.queue.items(0, state="leased")
        assert not self.queue.items(0, state="waiting")
        self.queue.open_round(0, "replay", note="abandoned")

    # --- what is promised ---
    @invariant()
    def there_is_one_item_per_case(self) -> None:
        assert [item.case_id for item in self.queue.items(0)] == list(CASES)

    @invariant()
    def a_leased_item_has_one_holder_and_nobody_holds_another(self) -> None:
        for item in self.queue.items(0):
            assert (item.state == "leased") == (item.lease_expires is not None)
            assert item.state != "leased" or item.user in USERS

    @invariant()
    def nothing_submitted_is_lost(self) -> None:
        assert {item.case_id for item in self.queue.items(0, state="submitted")} == self.handed_in

    @invariant()
    def nothing_saved_is_lost_and_nothing_refused_is_stored(self) -> None:
        saved = {(case, organ): self.revisions.current(0, case, organ) for case, organ in self.masks}
        assert saved == {key: len(masks) - 1 for key, masks in self.masks.items()}

    @invariant()
    def what_is_merged_is_the_draft_with_every_revision(self) -> None:
        for item in to_merge(self.queue.items(0), second_reader_share=0):
            edits = self.revisions.edits(0, item.case_id)
            label, _ = merge_case(np.zeros(SHAPE, np.uint8), ORGANS, case_id=item.case_id, round_index=0, edits=edits)
            expected = sum(self.masks[item.case_id, organ][-1] * np.uint8(ORGANS.label_id(organ)) for organ in MINE)
            np.testing.assert_array_equal(label, expected)

    @invariant()
    def the_log_only_grows_and_holds_nothing_undone(self) -> None:
        events = self.queue.events()
        assert len(events) >= self.events
        assert "half" not in {event.action for event in events}
        self.events = len(events)


class Killed(BaseException):
    """The process is gone."""


class RoundMachine(RuleBasedStateMachine):
    """The real state machine of a round on steps that only write down that they ran."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine", dir=MEMORY))
        unused = [{"source": "phantom", "name": "unused", "count": 1, "split": "pool"}]
        self.campaign = Campaign.model_validate({"name": "m", "workspace": str(self.folder / "w"), "datasets": unused})
        self.workspace = self.campaign.open_workspace()
        self.ran: list[str] = []  # in this start
        self.finished: set[str] = set()  # by the model
        self.written = dict.fromkeys(CASES, 0)
        self.abandoned = self.people_are_done = False
        self.kill_in: str | None = None
        self.steal_in: str | None = None
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(rounds, "round_run", lambda *_: nullcontext(None))
        self.patch.setattr(rounds, "ingest_step", lambda *_: SimpleNamespace(cases=(), skipped=(), quarantined=()))
        self.patch.setattr(rounds, "to_predict", lambda *_: CASES)
        for name in ("prioritize_step", "merge_step"):
            self.patch.setattr(rounds, name, lambda *_, name=name: self.work(name.removesuffix("_step")))
        for step, method in (("evaluate", "_evaluate"), ("annotate", "_annotate"), ("check", "_check")):
            self.patch.setattr(rounds._Round, method, lambda *_, step=step: self.work(step))
        self.patch.setattr(rounds._Round, "_train", lambda _, r: self.work("finetune" if r else "train"))
        self.patch.setattr(rounds._Round, "_predict", lambda *_: self.predict())
        self.patch.setattr(rounds._Round, "_annotation", lambda _: SimpleNamespace(complete=self.people_are_done))
        self.patch.setattr(rounds._Round, "_result", lambda _, budget, annotation, waiting: waiting)
        self.patch.setattr(rounds.Budget, "model_validate_json", lambda _: None)

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.folder)

    def work(self, step: str) -> None:
        self.ran.append(step)
        if step == "prioritize":
            self.workspace.budget(0).write_text("{}")
        if self.kill_in == step:
            raise Killed
        if self.steal_in == step:
            number = max(int(path.stem) for path in self.workspace.locks.glob("*.json"))
            text = (self.workspace.locks / f"{number:08d}.json").read_text().replace('"token":"', '"token":"other')
            (self.workspace.locks / f"{number + 1:08d}.json").write_text(text.replace('"pid":', '"pid":1'))
            self.mine.renew()

    def predict(self) -> None:
        """A case after the other; a result that is there is not made again."""
        for case in CASES:
            if case not in self.workspace.predicted(0):
                self.workspace.scores(0, case).parent.mkdir(parents=True)
                self.workspace.scores(0, case).write_text("{}")
                self.written[case] += 1
                if self.kill_in == "predict":
                    raise Killed
        self.work("predict")

    # --- what happens ---
    @rule(kill_in=st.none() | st.sampled_from(STEPS), steal_in=st.none() | st.sampled_from(STEPS))
    def run(self, kill_in: str | None, steal_in: str | None) -> None:
        self.ran, self.kill_in, self.steal_in = [], kill_in, steal_in
        before = set(self.finished)
        with suppress(Killed, WorkspaceError), locked(self.workspace, "jobs.run_round") as self.mine:
            run_round(self.campaign, 0)
        if self.abandoned:
            assert self.ran == []
        assert not before & set(self.ran), "a finished step ran again"
        broken = {kill_in, steal_in} if {kill_in, steal_in} & set(self.ran) else set()
        self.finished |= {s for s in self.ran if s not in broken and (s != "annotate" or self.people_are_done)}
        for path in self.workspace.locks.glob("*.json"):  # whoever stole it is gone by the next start
            path.unlink()

    @rule()
    def people_finish(self) -> None:
        self.people_are_done = True

    @precondition(lambda self: self.workspace.round(0).exists())
    @rule()
    def abandon(self) -> None:
        abandon_round(self.campaign, 0)
        self.abandoned = True

    @rule(step=st.sampled_from(STEPS))
    def replay(self, step: str) -> None:
        replay_from(self.campaign, 0, STEPS, step)
        self.finished -= set(STEPS[STEPS.index(step) :])
        self.abandoned = False

    @rule()
    def a_second_job_wants_in(self) -> None:
        with locked(self.workspace, "jobs.train"), pytest.raises(WorkspaceError, match="in use"):
            acquire(self.workspace, "jobs.predict")

    # --- what is promised ---
    @invariant()
    def finished_steps_stay_finished(self) -> None:
        assert set(self.workspace.finished_steps(0)) == self.finished

    @invariant()
    def steps_finish_in_their_order(self) -> None:
        done = [step in self.finished for step in STEPS]
        assert done == sorted(done, reverse=True)

    @invariant()
    def every_case_has_at_most_one_result_made_once(self) -> None:
        assert set(self.written.values()) <= {0, 1}

    @invariant()
    def nobody_holds_the_workspace_between_jobs(self) -> None:
        assert holder_of(self.workspace) is None

    @invariant()
    def an_abandoned_round_says_so(self) -> None:
        assert (self.workspace.round_state(0).abandoned is not None) == self.abandoned


QueueMachine.TestCase.settings = QUICK
RoundMachine.TestCase.settings = QUICK
TestQueue = QueueMachine.TestCase
TestRound = RoundMachine.TestCase
