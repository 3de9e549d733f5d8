"""What the page's tabs say, as table rows and HTML. Knows the store, not Gradio."""

import html
import json
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from itertools import islice
from statistics import median
from typing import Any, Literal, get_args

from atlas_ray.annotation.agreement import TOLERANCE_MM, OrganAgreement
from atlas_ray.annotation.queue import WorkItem
from atlas_ray.prioritization.effort import Budget
from ui.charts import attention_chart, dice_chart
from ui.login import Principal
from ui.store import Record, Store

Row = list[Any]
PAGE = 500  # rows of the queue shown at once
SHORTEST_S = 3  # on an organ: less rounds to 0.0 minutes
Filter = Literal["all", "open", "mine", "submitted", "set aside", "to review"]
FILTERS: tuple[Filter, ...] = get_args(Filter)
QUEUE_COLUMNS = ["#", "Case", "Organs", "Attention (ml)", "State", "Annotator", "Minutes", "Note"]
QUEUE_TYPES = ["number", "str", "str", "number", "str", "str", "number", "str"]
REVIEW_COLUMNS = ["Case", "Why", "Annotator", "Organs", "Minutes", "Note"]
REVIEW_TYPES = ["str", "str", "str", "str", "number", "str"]
AGREEMENT_COLUMNS = ["Organ", "Dice", f"Surface Dice, {TOLERANCE_MM:g} mm", "Reading 1 (ml)", "Reading 2 (ml)"]


def address(item: Record) -> str:
    """How the reading of a case is named everywhere in the app: the case, with @2 for the second."""
    return item["case_id"] if item["reading"] == 1 else f"{item['case_id']}@{item['reading']}"


def session_line(principal: Principal) -> str:
    """Who works here, and the way out; without accounts there is none, and it says so."""
    name = f"<b>{html.escape(principal.user)}</b>"
    if principal.auth == "none":
        return f"<form><span>{name} · <em>no login: everybody on this machine</em></span></form>"
    button = '<button title="On every machine">Log out</button>' if principal.auth == "session" else ""
    return f'<form method="post" action="/logout"><span>{name} · {principal.role}</span>{button}</form>'


# --- queue ------------------------------------------------------------------------------------------------------------


def round_summary(store: Store) -> str:
    """One line: which round, how far it is, and whether the next one waits."""
    counts = store.queue.counts(store.round)
    total = sum(counts.values())
    if not total:
        return f"**Round {store.round}** · the queue is empty; run `python -m jobs.prioritize CONFIG --round {store.round}`"
    done = counts.get("submitted", 0)
    states = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    newest = store.queue.newest_round() or 0
    newer = f" · **round {newest} is queued: start the app again to work on it**" if newest > store.round else ""
    return f"**Round {store.round}** · {done} of {total} cases done · {states} · organ set {store.organs.name}{newer}"


def queue_rows(store: Store, *, chosen: Filter = "all", user: str = "") -> list[Row]:
    """The first `PAGE` items that pass: of a queue of 100,000 nobody reads more, and a browser shows no more at once."""
    to_review = {item["item_id"] for item in store.awaiting()} if chosen == "to review" else set()
    items = store.queue.items(store.round, limit=PAGE if chosen == "all" else None)
    passing = islice((item for item in items if _passes(item, chosen, user, to_review)), PAGE)
    return [
        [
            item["rank"],
            address(item),
            _organ_names(item),
            round(item["attention_mm3"] / 1000, 1) if item["attention_mm3"] is not None else None,
            item["state"] if item["review"] is None else f"{item['state']}, {item['review']}",
            item["user"] or "",
            round(item["seconds"] / 60, 1),
            item["review_note"] or item["note"],
        ]
        for item in map(store.with_attention, passing)
    ]


def _passes(item: WorkItem, chosen: Filter, user: str, to_review: Container[int]) -> bool:
    return {
        "all": True,
        "open": item.state in ("waiting", "leased"),
        "mine": item.user == user,
        "submitted": item.state == "submitted",
        "set aside": item.state in ("skipped", "flagged"),
        "to review": item.item_id in to_review,
    }[chosen]


def _organ_names(item: Record) -> str:
    return ", ".join(name.replace("_", " ") for name in item["organs"])


# --- review -----------------------------------------------------------------------------------------------------------


def review_rows(items: Iterable[Record]) -> list[Row]:
    return [[address(i), i["reason"], i["user"] or "", _organ_names(i), round(i["seconds"] / 60, 1), i["note"]] for i in items]


def agreement_rows(organs: Iterable[OrganAgreement]) -> list[Row]:
    return [[o.organ.replace("_", " "), _rounded(o.dice), _rounded(o.surface_dice), *(round(ml, 1) for ml in o.ml)] for o in organs]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


# --- round ------------------------------------------------------------------------------------------------------------


def round_report(store: Store) -> str:
    """The round as HTML: how far it is, what the priorities looked like, how the networks did."""
    sections = [
        ("Progress", progress_table(store)),
        ("Attention size", attention_section(store)),
        ("Dice over the rounds", dice_section(store)),
        ("Tracking", tracking_link(store)),
    ]
    parts = "".join(f"<section><h3>{title}</h3>{body}</section>" for title, body in sections)
    return f'<div class="round-report">{parts}</div>'


def progress_table(store: Store) -> str:
    """Cases and minutes, spent and still expected; organs by the time they took, without those that took none."""
    items = store.queue.items(store.round)
    states = Counter(item.state for item in items)
    open_items = states["waiting"] + states["leased"]
    per_case, how = minutes_per_case(items, _budget(store))
    seconds = store.revisions.seconds(store.round)
    minutes_on = sorted(
        ((spent / 60, organ) for organ, spent in seconds.items() if organ is not None and spent >= SHORTEST_S), reverse=True
    )
    verdicts = Counter(verdict.verdict for verdict in store.revisions.verdicts(store.round))
    judged = verdicts["fixed"] + verdicts["not_an_error"]
    rows: list[tuple[str, str]] = [
        ("done", f"{states['submitted']} of {len(items)}"),
        ("open", str(open_items)),
        ("set aside", str(states["skipped"] + states["flagged"])),
        ("waiting for a reviewer", str(len(store.awaiting()))),
        ("minutes spent", f"{sum(item.seconds for item in items) / 60:.0f}"),
        ("minutes per case", f"{per_case:.1f} ({how})" if per_case is not None else "not known yet"),
        ("minutes to go", f"{open_items * per_case:.0f}" if per_case is not None else "not known yet"),
        ("attention that was an error", f"{verdicts['fixed']} of {judged} components judged"),
        *((f"minutes on {organ.replace('_', ' ')}", f"{minutes:.1f}") for minutes, organ in minutes_on),
    ]
    return _table(rows)


def minutes_per_case(items: Sequence[WorkItem], budget: Budget | None) -> tuple[float | None, str]:
    """The median of what submitted cases took, and where nothing is submitted what was planned; with which of them it is."""
    measured = [item.seconds / 60 for item in items if item.state == "submitted" and item.seconds > 0]
    if measured:
        return median(measured), f"median of {len(measured)}"
    if budget is not None and budget.cases:
        return budget.minutes / budget.cases, "planned"
    return None, ""


def attention_section(store: Store) -> str:
    """The curve of scores with the budget's cut."""
    path, budget = store.workspace.priority_parquet(store.round), _budget(store)
    if budget is None or not path.exists():
        return "<p>No priority list was written in this round.</p>"
    import pandas as pd

    scores = pd.read_parquet(path, columns=["rank", "score"]).drop_duplicates("rank").sort_values("rank")["score"]
    asked = f"{budget.cases} of {budget.of_cases} cases ({budget.share:.1%})"
    planned = f"{budget.minutes:.0f} minutes planned, {budget.days:.1f} days"
    return f"{attention_chart(scores.tolist(), cut=budget.cases)}<p>{asked}, {planned}</p>"


def _budget(store: Store) -> Budget | None:
    path = store.workspace.budget(store.round)
    return Budget.model_validate_json(path.read_bytes()) if path.exists() else None


def dice_section(store: Store) -> str:
    """Dice per organ of every round that was evaluated."""
    rounds: dict[int, dict[str, float | None]] = {}
    for number in range(store.round + 2):  # a round ends by evaluating the next one's networks
        path = store.workspace.evaluation(number)
        if path.exists():
            rounds[number] = {row["organ"]: row["dice"] for row in json.loads(path.read_bytes())["organs"]}
    if not rounds:
        return "<p>No round has been evaluated yet.</p>"
    values = {organ.name: [found.get(organ.name) for found in rounds.values()] for organ in store.organs}
    known = {organ: dice for organ, dice in values.items() if any(value is not None for value in dice)}
    return dice_chart(list(rounds), known, {organ.name: organ.color for organ in store.organs})


def tracking_link(store: Store) -> str:
    uri = store.tracking_uri
    if uri is None or not uri.startswith(("http://", "https://")):
        return "<p>Runs are tracked in the workspace; the README's section on rounds says how to look at them.</p>"
    shown = html.escape(uri, quote=True)
    return f'<p><a href="{shown}" target="_blank" rel="noopener">MLflow at {shown}</a></p>'


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"
