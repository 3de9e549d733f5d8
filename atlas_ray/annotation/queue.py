"""The annotation queue: which case a person works on next, and the lease that keeps everybody else off it.

    waiting ──next/claim──> leased ──submit──> submitted ──reopen──> leased
       ^                      │ ├──skip/flag──> skipped, flagged ──claim/reopen──> leased
       └──────release─────────┘ └── lease runs out: anybody's again, and still the holder's until somebody takes it

Every change is one conditional UPDATE, so that of two processes that want the same item the database lets one win.

A case that is read twice has two items, reading 1 and 2. Nobody gets both: whoever held or edited one is not offered, and cannot
open, the other. An item that review sent back waits for its own annotator; others get it only by opening it on purpose.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import PositiveFloat, model_validator
from sqlalchemy import ColumnElement, Row, Select, and_, case, delete, exists, func, insert, or_, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from atlas_ray.annotation.database import Database, events, revisions, utc_now, work_items
from atlas_ray.annotation.oracle import Annotator, HumanAnnotator, OracleAnnotator
from atlas_ray.exceptions import AtlasError
from atlas_ray.schema import Fraction, Schema

State = Literal["waiting", "leased", "submitted", "skipped", "flagged"]
CaseVerdict = Literal["fixed", "accepted", "unsure"]  # edited; the draft was right; somebody else should look
Level = Literal["case", "organ", "component"]
ReviewVerdict = Literal["accepted", "rejected", "superseded"]  # the last one: the case's other reading was taken

_WAITING: State = "waiting"
_LEASED: State = "leased"


class QueueError(AtlasError):
    """No such item, or an item that is not in a state to do this with."""


class LeaseError(QueueError):
    """The item is not this user's to change; carries the item as it stands."""

    def __init__(self, message: str, item: "WorkItem") -> None:
        super().__init__(message)
        self.item = item


class Annotation(Schema):
    """How cases are annotated: the campaign configuration's section.

    Args:
        database: URL; None is a SQLite file in the workspace.
        lease_minutes: how long a case stays its annotator's without a sign of life from the app.
        annotator: people, or the oracle of a simulated campaign.
        second_reader_share: of the cases, how many a reviewer must accept before they are merged.
        double_reading_share: of the cases, how many two annotators do, blind to each other.
        level: what an item asks about. "case": every organ, whatever the strategy says; "organ": the organs that it lists;
            "component": of those, the components that carry their score.
        component_share: of an organ's summed score, how much the components asked about must carry at level "component".
    """

    database: str | None = None
    lease_minutes: PositiveFloat = 30.0
    annotator: Annotator = HumanAnnotator()
    second_reader_share: Fraction = 0.0
    double_reading_share: Fraction = 0.0
    level: Level = "organ"
    component_share: Fraction = 0.9

    @model_validator(mode="after")
    def _reviewers_are_people(self) -> "Annotation":
        if isinstance(self.annotator, OracleAnnotator) and self.second_reader_share + self.double_reading_share > 0:
            raise ValueError("an oracle has no second reader; second_reader_share and double_reading_share must be 0 with it")
        return self


class QueueEntry(Schema):
    """What prioritization asks to be annotated: one line of the priority list.

    Args:
        organs: in the order to revise them.
        components: the attention components asked about, by index; none is all of the organs'.
        rank: 1 is annotated first.
        score: what it was ranked by.
        reading: 2 for the second, blind annotation of a case that is also listed as reading 1.
    """

    case_id: str
    reading: int = 1
    organs: tuple[str, ...]
    components: tuple[int, ...] = ()
    rank: int
    score: float = 0.0


class WorkItem(Schema):
    """One case of one round to annotate, and how far it is.

    Args:
        reading: 1, or 2 for the second of two blind annotations.
        organs: asked about; once submitted, those that were looked at.
        components: the attention components asked about, by index; none is all of the organs'.
        user: who holds it, or held it last; None while nobody has.
        lease_expires: ISO 8601 UTC, only while leased; after it anybody may take the item.
        seconds: active seconds the annotators reported, over all submissions.
        note: the annotators' last one; every note, and what a reviewer said, is in the events.
        verdict: what the annotator said when submitting.
        review, reviewer: what a second person said of the submission (review.py).
    """

    item_id: int
    round: int
    case_id: str
    reading: int = 1
    organs: tuple[str, ...]
    components: tuple[int, ...] = ()
    rank: int
    score: float
    state: State
    user: str | None = None
    lease_expires: str | None = None
    seconds: float = 0.0
    note: str = ""
    verdict: CaseVerdict | None = None
    review: ReviewVerdict | None = None
    reviewer: str | None = None


class Event(Schema):
    """One line of the audit log: who did what to which item, and when (ISO 8601 UTC)."""

    event_id: int
    created: str
    user: str
    action: str
    item_id: int | None = None
    round: int | None = None
    case_id: str | None = None
    detail: str = ""


class Queue:
    """The items of all rounds in one database.

    Args:
        database: open; the caller closes it.
        lease_minutes: how long an item stays a user's without a sign of life.
        now: the clock, aware; tests pass their own. Servers that share a database must agree on the time to well
            within a lease.
    """

    def __init__(self, database: Database, *, lease_minutes: float = 30.0, now: Callable[[], datetime] = utc_now) -> None:
        self.database = database
        self.lease = timedelta(minutes=lease_minutes)
        self.now = now

    # --- filling ---
    def fill(self, round_index: int, entries: Iterable[QueueEntry], *, user: str = "prioritize", state: State = "waiting") -> int:
        """Make the round's list this one; an item somebody has touched is never changed or removed.

        New cases are added, untouched waiting ones take the new rank, score and organs, and untouched ones that are
        no longer listed leave the queue (an event says so).

        Args:
            state: of the new ones; "submitted" for labels that are there already and only have to be reviewed.

        Returns:
            how many items are new.
        """
        wanted = {(entry.case_id, entry.reading): entry for entry in entries}
        for last_attempt in (False, True):
            try:
                with self.database.write() as connection:
                    return self._fill(connection, round_index, wanted, user, state)
            except IntegrityError:  # another process filled the same round in between: what it added is now known
                if last_attempt:
                    raise
        raise AssertionError("unreachable")

    def _fill(
        self, connection: Connection, round_index: int, wanted: dict[tuple[str, int], QueueEntry], user: str, state: State
    ) -> int:
        rows = connection.execute(select(work_items).where(work_items.c.round == round_index))
        known = {(row.case_id, row.reading): _item(row) for row in rows}
        for key, item in known.items():
            entry = wanted.get(key)
            if entry == QueueEntry(**{name: getattr(item, name) for name in QueueEntry.model_fields}):
                continue
            self._replan(connection, item, entry, user)
        new = [entry for key, entry in wanted.items() if key not in known]
        if new:
            same = {"round": round_index, "state": state}
            rows_new = [{**entry.model_dump(mode="json"), **same} for entry in new]
            connection.execute(insert(work_items), rows_new)
        self._log(connection, user, "fill", round_index=round_index, detail=f"{len(wanted)} listed, {len(new)} new")
        return len(new)

    def _replan(self, connection: Connection, item: WorkItem, entry: QueueEntry | None, user: str) -> None:
        """New rank for an untouched item, or its removal."""
        untouched = and_(work_items.c.item_id == item.item_id, work_items.c.state == _WAITING, work_items.c.user.is_(None))
        if entry is None:
            if connection.execute(delete(work_items).where(untouched)).rowcount:
                self._log(connection, user, "withdraw", item)
            return
        values = entry.model_dump(mode="json", include={"organs", "components", "rank", "score"})
        connection.execute(update(work_items).where(untouched).values(**values))

    # --- looking ---
    def items(self, round_index: int, *, state: State | None = None, limit: int | None = None) -> list[WorkItem]:
        """The round's items in rank order, all or those in one state, at most `limit`."""
        query = select(work_items).where(work_items.c.round == round_index).limit(limit)
        if state is not None:
            query = query.where(work_items.c.state == state)
        with self.database.read() as connection:
            return [_item(row) for row in connection.execute(query.order_by(work_items.c.rank, work_items.c.item_id))]

    def item(self, key: int | tuple[int, str] | tuple[int, str, int]) -> WorkItem:
        """The item of that item_id, or of that (round, case_id, reading = 1). Raises QueueError where there is none."""
        with self.database.read() as connection:
            row = connection.execute(select(work_items).where(_matches(key))).first()
        if row is None:
            raise _missing(key)
        return _item(row)

    def readings(self, round_index: int, case_id: str) -> list[WorkItem]:
        """The case's items, by reading. Raises QueueError where it has none."""
        query = select(work_items).where(work_items.c.round == round_index, work_items.c.case_id == case_id)
        with self.database.read() as connection:
            found = [_item(row) for row in connection.execute(query.order_by(work_items.c.reading))]
        if not found:
            raise _missing((round_index, case_id))
        return found

    def peek(self, user: str, *, round_index: int) -> WorkItem | None:
        """What `next` will give the user once what they hold is handed in; nothing is leased, so somebody may be faster."""
        with self.database.read() as connection:
            row = connection.execute(self._offered(round_index, user).where(~_held_by(user)).limit(1)).first()
        return None if row is None else _item(row)

    def counts(self, round_index: int) -> dict[State, int]:
        """How many of the round's items are in each state; states without any are left out."""
        query = select(work_items.c.state, func.count()).where(work_items.c.round == round_index).group_by(work_items.c.state)
        with self.database.read() as connection:
            return {row[0]: int(row[1]) for row in connection.execute(query)}

    def newest_round(self) -> int | None:
        """The highest round with an item, None where the queue is empty."""
        with self.database.read() as connection:
            return connection.execute(select(func.max(work_items.c.round))).scalar()

    def events(self, item_id: int | None = None) -> list[Event]:
        """The audit log, oldest first, of everything or of one item."""
        query = select(events).order_by(events.c.event_id)
        if item_id is not None:
            query = query.where(events.c.item_id == item_id)
        with self.database.read() as connection:
            return [_event(row) for row in connection.execute(query)]

    # --- taking ---
    def next(self, user: str, *, round_index: int | None = None) -> WorkItem | None:
        """Lease the item to work on: the user's own unfinished one, else the first that nobody holds.

        Args:
            user: who asks; asking again gives the same item with a fresh lease.
            round_index: None means the newest round; items left over from older ones are stale.

        Returns:
            the leased item, or None where the round has nothing left.
        """
        chosen = self.newest_round() if round_index is None else round_index
        if chosen is None:
            return None
        # Each attempt is a transaction of its own, so that it sees what the winner of a lost race has committed.
        while (candidate := self._candidate(chosen, user)) is not None:
            if (item := self._take(candidate, user, self._free_for(user))) is not None:
                return item
        return None

    def claim(self, round_index: int, case_id: str, user: str, *, reading: int = 1) -> WorkItem:
        """Lease one given case: waiting, skipped, flagged, expired or already the user's.

        Raises:
            QueueError: no such case in that round's queue.
            LeaseError: somebody else holds it, it is submitted (reopen it), or the user did the case's other reading.
        """
        item = self.item((round_index, case_id, reading))
        set_aside = and_(work_items.c.state.in_(("skipped", "flagged")), _is_blind(user))
        taken = self._take(item.item_id, user, or_(self._free_for(user), set_aside))
        if taken is None:
            raise self._refusal(item.item_id, user, "open")
        return taken

    def heartbeat(self, item_id: int, user: str) -> WorkItem:
        """Prolong the user's lease, even one that has run out, as long as nobody else has taken the item.

        Raises:
            LeaseError: the item is not the user's any more.
        """
        return self._change(item_id, user, "heartbeat", where=_held_by(user), values={"lease_expires": self.now() + self.lease})

    # --- giving back ---
    def release(self, item_id: int, user: str) -> WorkItem:
        """Put the item back as it was; what was saved stays. Raises LeaseError where the user does not hold it."""
        values = {"state": _WAITING, "lease_expires": None}
        return self._change(item_id, user, "release", where=_held_by(user), values=values)

    def skip(self, item_id: int, user: str, *, note: str = "") -> WorkItem:
        """Set the item aside: not worth annotating. Raises LeaseError where the user does not hold it."""
        return self._set_aside(item_id, user, "skipped", "skip", note)

    def flag(self, item_id: int, user: str, *, note: str) -> WorkItem:
        """Set the item aside for somebody to look at: a broken image, a question. Raises LeaseError."""
        return self._set_aside(item_id, user, "flagged", "flag", note)

    def _set_aside(self, item_id: int, user: str, state: State, action: str, note: str) -> WorkItem:
        values = {"state": state, "lease_expires": None, "note": note}
        return self._change(item_id, user, action, where=_held_by(user), values=values, detail=note)

    def submit(
        self,
        item_id: int,
        user: str,
        *,
        verdict: CaseVerdict = "fixed",
        seconds: float = 0.0,
        note: str = "",
        organs: Sequence[str] | None = None,
    ) -> WorkItem:
        """Hand the item in. Submitting what one has just submitted changes nothing, so that a lost answer can be asked for again.

        Args:
            verdict: see CaseVerdict.
            seconds: active seconds to add to the item.
            organs: those that were looked at, where time ran out before the others; None is all. The others stay unconfirmed.

        Raises:
            LeaseError: the item is not the user's any more; the saved revisions are kept.
        """
        item = self.item(item_id)
        if item.state == "submitted" and item.user == user:
            return item
        values = {
            "state": "submitted",
            "lease_expires": None,
            "verdict": verdict,
            "seconds": work_items.c.seconds + seconds,
            "note": note,
            "review": None,
            "reviewer": None,
            "organs": list(item.organs if organs is None else organs),
        }
        detail = f"{verdict}, {seconds:.0f} s{': ' + note if note else ''}"
        return self._change(item_id, user, "submit", where=_held_by(user), values=values, detail=detail)

    def reopen(self, item_id: int, user: str) -> WorkItem:
        """Take a submitted, skipped or flagged item up again; its revisions and seconds stay.

        Raises:
            LeaseError: it is waiting or leased, or the user did the case's other reading.
        """
        closed = and_(work_items.c.state.in_(("submitted", "skipped", "flagged")), _is_blind(user))
        return self._change(item_id, user, "reopen", where=closed, values=self._lease_values(user))

    def comment(self, item_id: int, user: str, text: str) -> None:
        """Say something about the case; kept with its events, for this reading."""
        item = self.item(item_id)
        with self.database.write() as connection:
            self._log(connection, user, "comment", item, detail=text)

    def close_round(self, round_index: int, user: str, *, note: str) -> int:
        """Set every item aside that is not handed in, whoever holds it; saved revisions stay. Returns how many."""
        is_open = work_items.c.state.in_((_WAITING, _LEASED))
        return self._move_all(round_index, user, "close", is_open, {"state": "skipped", "lease_expires": None, "note": note})

    def open_round(self, round_index: int, user: str, *, note: str) -> int:
        """Put back what `close_round` has set aside with this note. Returns how many."""
        closed = and_(work_items.c.state == "skipped", work_items.c.note == note)
        return self._move_all(round_index, user, "open", closed, {"state": _WAITING, "note": ""})

    # --- how ---
    def _move_all(self, round_index: int, user: str, action: str, where: ColumnElement[bool], values: dict[str, Any]) -> int:
        here = and_(work_items.c.round == round_index, where)
        with self.database.write() as connection:
            moved = [_item(row) for row in connection.execute(select(work_items).where(here))]
            connection.execute(update(work_items).where(here).values(**values))
            for item in moved:
                self._log(connection, user, action, item, detail=values["note"])
        return len(moved)

    def transition(
        self, item_id: int, user: str, action: str, *, state: State, to: State, values: dict[str, Any], detail: str
    ) -> WorkItem:
        """Move an item that is in `state` on, and log it; for the review stage. Raises LeaseError in any other state."""
        return self._change(item_id, user, action, where=work_items.c.state == state, values={"state": to, **values}, detail=detail)

    def settle(self, round_index: int, case_id: str, user: str, *, reading: int) -> WorkItem:
        """Of a case's two submitted readings take one; for the review stage. Deciding again is allowed.

        Raises:
            LeaseError: the case does not have two submitted readings.
        """
        here = and_(work_items.c.round == round_index, work_items.c.case_id == case_id, work_items.c.state == "submitted")
        taken = work_items.c.reading == reading
        with self.database.write() as connection:
            rows = {row.reading: row for row in connection.execute(select(work_items).where(here))}
            if len(rows) == 2 and reading in rows:
                for where, verdict in ((taken, "accepted"), (~taken, "superseded")):
                    values = {"review": verdict, "reviewer": user}
                    connection.execute(update(work_items).where(here, where).values(**values))
                item = _item(connection.execute(select(work_items).where(here, taken)).one())
                self._log(connection, user, "resolve", item, detail=f"reading {reading}")
                return item
        raise self._refusal(self.readings(round_index, case_id)[0].item_id, user, "resolve")

    def _free_for(self, user: str) -> ColumnElement[bool]:
        expired = and_(work_items.c.state == _LEASED, work_items.c.lease_expires <= self.now())
        return and_(or_(work_items.c.state == _WAITING, _held_by(user), expired), _is_blind(user))

    def _offered(self, round_index: int, user: str) -> Select[Any]:
        """What `next` may give, best first: what the user holds, what was sent back to them, then what nobody has, by rank."""
        mine = work_items.c.user == user
        sent_back = and_(
            work_items.c.state == _WAITING, work_items.c.user.is_not(None), func.coalesce(work_items.c.review, "") == "rejected"
        )
        offered = and_(work_items.c.round == round_index, self._free_for(user), or_(~sent_back, mine))
        turn = case((_held_by(user), 0), (and_(sent_back, mine), 1), else_=2)
        return select(work_items).where(offered).order_by(turn, work_items.c.rank, work_items.c.reading, work_items.c.item_id)

    def _lease_values(self, user: str) -> dict[str, Any]:
        return {"state": _LEASED, "user": user, "lease_expires": self.now() + self.lease}

    def _candidate(self, round_index: int, user: str) -> int | None:
        with self.database.read() as connection:
            row = connection.execute(self._offered(round_index, user).limit(1)).first()
        return None if row is None else int(row.item_id)

    def _take(self, item_id: int, user: str, where: ColumnElement[bool]) -> WorkItem | None:
        """Lease the item if `where` still holds; None where somebody was faster."""
        with self.database.write() as connection:
            lease = update(work_items).where(work_items.c.item_id == item_id, where).values(**self._lease_values(user))
            if not connection.execute(lease).rowcount:
                return None
            item = _item(connection.execute(select(work_items).where(work_items.c.item_id == item_id)).one())
            self._log(connection, user, "lease", item)
        return item

    def _change(
        self, item_id: int, user: str, action: str, *, where: ColumnElement[bool], values: dict[str, Any], detail: str = ""
    ) -> WorkItem:
        with self.database.write() as connection:
            change = update(work_items).where(work_items.c.item_id == item_id, where).values(**values)
            if connection.execute(change).rowcount:
                item = _item(connection.execute(select(work_items).where(work_items.c.item_id == item_id)).one())
                self._log(connection, user, action, item, detail=detail)
                return item
        raise self._refusal(item_id, user, action)

    def _refusal(self, item_id: int, user: str, action: str) -> QueueError:
        item = self.item(item_id)
        holder = f" by {item.user}" if item.user and item.state != _WAITING else ""
        until = f" until {item.lease_expires}" if item.lease_expires else ""
        what = f"case {item.case_id} of round {item.round} is {item.state}{holder}{until}"
        return LeaseError(f"{user} cannot {action} it: {what}", item)

    def _log(
        self,
        connection: Connection,
        user: str,
        action: str,
        item: WorkItem | None = None,
        *,
        round_index: int | None = None,
        detail: str = "",
    ) -> None:
        row: dict[str, Any] = {"created": self.now(), "user": user, "action": action, "round": round_index, "detail": detail}
        if item is not None:
            row |= {"item_id": item.item_id, "round": item.round, "case_id": item.case_id}
        connection.execute(insert(events).values(**row))


def _held_by(user: str) -> ColumnElement[bool]:
    return and_(work_items.c.state == _LEASED, work_items.c.user == user)


def _is_blind(user: str) -> ColumnElement[bool]:
    """Whether the user has neither held nor edited another reading of the item's case.

    Not covered: on a server that runs transactions side by side, one person asking twice at the same instant.
    """
    other = work_items.alias()
    held = exists().where(
        other.c.round == work_items.c.round,
        other.c.case_id == work_items.c.case_id,
        other.c.reading != work_items.c.reading,
        other.c.user == user,
    )
    edited = exists().where(
        revisions.c.round == work_items.c.round,
        revisions.c.case_id == work_items.c.case_id,
        revisions.c.reading != work_items.c.reading,
        revisions.c.user == user,
    )
    return and_(~held, ~edited)


def _matches(key: int | tuple[int, str] | tuple[int, str, int]) -> ColumnElement[bool]:
    if isinstance(key, tuple):
        round_index, case_id, reading = (*key, 1)[:3]
        columns = work_items.c
        return and_(columns.round == round_index, columns.case_id == case_id, columns.reading == reading)
    return work_items.c.item_id == key


def _missing(key: int | tuple[int, str] | tuple[int, str, int]) -> QueueError:
    what = f"case {key[1]!r} in round {key[0]}" if isinstance(key, tuple) else f"item {key}"
    reading = f" as reading {key[2]}" if isinstance(key, tuple) and len(key) == 3 and key[2] != 1 else ""
    return QueueError(f"{what} is not in the annotation queue{reading}")


def _item(row: Row[Any]) -> WorkItem:
    values = dict(row._mapping)
    expires = values["lease_expires"]
    return WorkItem(**{**values, "lease_expires": expires and expires.isoformat()})


def _event(row: Row[Any]) -> Event:
    values = dict(row._mapping)
    return Event(**{**values, "created": values["created"].isoformat()})
