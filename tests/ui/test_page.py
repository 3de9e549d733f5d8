"""The page: what its tables and reports say, and what the review tab's buttons do."""

import gc
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from ui_workspace import ORGANS

from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.queue import QueueEntry
from atlas_ray.annotation.review import Role
from atlas_ray.annotation.revisions import TimeSpent
from atlas_ray.prioritization.effort import Budget
from atlas_ray.storage import write_atomically
from atlas_ray.workspace import Workspace
from ui.app import create_app
from ui.charts import INK, attention_chart, dice_chart
from ui.panels import minutes_per_case, progress_table, queue_rows, round_report, round_summary
from ui.store import Store

# gradio 6.31 makes an event loop per app and never closes it, and its imports use names that others have deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(starlette|gradio|fastapi|pandas|websockets).*"),
]


@pytest.fixture(autouse=True)
def collect_gradios_loops() -> Iterator[None]:
    """Here, where they are allowed for, and not in some later test."""
    yield
    gc.collect()


@pytest.fixture
def store(workspace: Workspace) -> Iterator[Store]:
    store = Store(workspace, round_index=0, organs=ORGANS, database=open_database(sqlite_url(workspace.annotation_db)))
    yield store
    store.close()


def submit(store: Store, case_id: str, user: str, *, minutes: float = 0.0, reading: int = 1, **more: Any) -> None:
    item = store.queue.claim(store.round, case_id, user, reading=reading)
    store.queue.submit(item.item_id, user, seconds=60 * minutes, **more)


def read_case_0_twice(store: Store) -> None:
    again = QueueEntry(case_id="case_0", reading=2, organs=("ball",), rank=1, score=3.0)
    kept = [QueueEntry(case_id=i.case_id, organs=i.organs, rank=i.rank, score=i.score) for i in store.queue.items(0)]
    store.queue.fill(0, [*kept, again])
    for reading, user in ((1, "anna"), (2, "ben")):
        submit(store, "case_0", user, minutes=reading, reading=reading)


# --- queue ---


def test_the_whole_page_is_built(workspace: Workspace) -> None:
    app = create_app(workspace.root, round=0, organs=ORGANS, user="anna")
    assert "0 of 3 cases done" in round_summary(app.state.store)
    app.state.store.close()


def test_the_summary_tells_when_the_next_round_waits(store: Store) -> None:
    assert "start the app again" not in round_summary(store)
    store.queue.fill(1, [QueueEntry(case_id="case_0", organs=("ball",), rank=1)])
    assert round_summary(store).endswith("**round 1 is queued: start the app again to work on it**")


def test_queue_table(store: Store) -> None:
    store.queue.claim(0, "case_1", "bob")
    assert [row[:2] + row[4:6] for row in queue_rows(store)] == [
        [1, "case_0", "waiting", ""],
        [2, "case_1", "leased", "bob"],
        [3, "case_2", "waiting", ""],
    ]
    read_case_0_twice(store)
    assert [row[1:2] + row[4:7] for row in queue_rows(store)] == [
        ["case_0", "submitted", "anna", 1.0],
        ["case_0@2", "submitted", "ben", 2.0],
        ["case_1", "leased", "bob", 0.0],
        ["case_2", "waiting", "", 0.0],
    ]


@pytest.mark.parametrize(
    ("chosen", "cases"),
    [
        ("all", ["case_0", "case_1", "case_2"]),
        ("open", ["case_2"]),
        ("mine", ["case_0"]),
        ("submitted", ["case_0"]),
        ("set aside", ["case_1"]),
        ("to review", ["case_0", "case_1"]),
    ],
)
def test_filters(store: Store, chosen: str, cases: list[str]) -> None:
    submit(store, "case_0", "anna", verdict="unsure")
    store.queue.skip(store.queue.claim(0, "case_1", "bob").item_id, "bob")
    store.queue.flag(store.queue.claim(0, "case_1", "bob").item_id, "bob", note="odd")
    assert [row[1] for row in queue_rows(store, chosen=chosen, user="anna")] == cases


# --- round ---


def test_minutes_to_go_are_measured_as_soon_as_there_is_something_to_measure(store: Store) -> None:
    budget = Budget(case_ids=("case_0",), cases=2, of_cases=9, share=0.2, minutes=30, days=0.1, knee=0, rule="share")
    assert minutes_per_case(store.queue.items(0), None) == (None, "")
    assert minutes_per_case(store.queue.items(0), budget) == (15, "planned")
    submit(store, "case_0", "anna", minutes=4)
    submit(store, "case_1", "anna", minutes=10)
    assert minutes_per_case(store.queue.items(0), budget) == (7, "median of 2")
    store.log_time(
        store.shown("case_0", "anna", "annotator"),
        [TimeSpent(organ="ball", seconds=90), TimeSpent(organ="cube", seconds=2)],
        user="anna",
    )
    store.revisions.judge(0, "case_0", "ball", 1, "fixed", user="anna")
    store.revisions.judge(0, "case_0", "cube", 1, "not_an_error", user="anna")
    table = progress_table(store)
    for name, value in (
        ("done", "2 of 3"), ("minutes spent", "14"), ("minutes per case", "7.0 (median of 2)"), ("minutes to go", "7"),
        ("attention that was an error", "1 of 2 components judged"), ("minutes on ball", "1.5"),
    ):  # fmt: skip
        assert f"<tr><th>{name}</th><td>{value}</td></tr>" in table
    assert "minutes on cube" not in table  # two seconds: somebody passed by


def test_the_report_says_what_is_not_there_yet(store: Store) -> None:
    report = round_report(store)
    assert "No priority list" in report
    assert "No round has been evaluated" in report
    assert "<a " not in report


def test_the_report_shows_the_cut_and_the_rounds(store: Store) -> None:
    budget = Budget(case_ids=("case_0",), cases=1, of_cases=3, share=1 / 3, minutes=15, days=0.03, knee=1, rule="share")
    write_atomically(store.workspace.budget(0), budget.model_dump_json())
    scores = pd.DataFrame({"rank": [1, 1, 2, 3], "case_id": ["a", "a", "b", "c"], "score": [9.0, 9.0, 2.0, 1.0]})
    scores.to_parquet(store.workspace.priority_parquet(0))  # a row per organ
    for number, dice in ((0, 0.5), (1, 0.75)):
        organs = [{"organ": "ball", "dice": dice, "cases": 2}, {"organ": "cube", "dice": None, "cases": 0}]
        write_atomically(store.workspace.evaluation(number), json.dumps({"organs": organs}))
    store.tracking_uri = "https://mlflow.example/?a=1&b=2"
    report = round_report(store)
    assert report.count("<svg") == 2
    assert "1 of 3 cases (33.3%), 15 minutes planned" in report
    assert '<a href="https://mlflow.example/?a=1&amp;b=2"' in report
    store.tracking_uri = "javascript:alert(1)"
    assert "javascript" not in round_report(store)


def test_charts_take_the_pages_color() -> None:
    for chart in (attention_chart([3.0, 2.0, 1.0], cut=1), dice_chart([0, 1], {"ball": [0.5, None]}, {"ball": "#e0383e"})):
        assert chart.startswith("<svg")
        assert "currentColor" in chart
        assert INK not in chart
        assert "http://www.w3.org" in chart
        assert "<script" not in chart
    assert "#e0383e" in dice_chart([0, 1], {"ball": [0.5, 0.6]}, {"ball": "#e0383e"})


# --- review ---


def request(user: str, role: Role) -> Any:
    """What a handler gets from Gradio, as far as it looks."""
    state = SimpleNamespace(user=user, role=role, auth="session")
    return SimpleNamespace(username=user, request=SimpleNamespace(state=state))


@pytest.fixture
def tab(store: Store) -> Any:
    import gradio as gr

    from ui.tabs import ReviewTab

    with gr.Blocks():
        return ReviewTab(store)


def test_a_reviewer_takes_one_of_two_readings(store: Store, tab: Any) -> None:
    read_case_0_twice(store)
    rita = request("rita", "reviewer")
    rows, *_, said = tab.show(rita)[:4]
    assert [row[:3] for row in rows] == [
        ["case_0", "two readings to decide between", "anna"],
        ["case_0@2", "two readings to decide between", "ben"],
    ]
    assert said == "Choose a case in the list."
    address, title, accept, take, agreement = tab.choose(SimpleNamespace(row_value=rows[1]), rita)
    assert (address, title) == ("case_0@2", "**case_0@2** · two readings to decide between")
    assert (accept["visible"], take["visible"], agreement["visible"]) == (False, True, True)
    assert [row[:3] for row in agreement["value"]] == [["ball", 1.0, 1.0], ["cube", 1.0, 1.0]]
    after = tab._after(tab._take)(address, "", rita)
    assert (after[0], after[3]) == ([], "**case_0@2** is accepted")
    assert [i.review for i in store.queue.readings(0, "case_0")] == ["superseded", "accepted"]


def test_sending_back_needs_a_reason(store: Store, tab: Any) -> None:
    submit(store, "case_1", "anna", verdict="unsure")
    rita, reject = request("rita", "reviewer"), tab._after(tab._reject)
    assert "needs a reason" in reject("case_1", " ", rita)[3]
    assert reject("case_1", "the dome is cut", rita)[3] == "**case_1** is rejected"
    assert [row[-1] for row in queue_rows(store)] == ["", "the dome is cut", ""]
    assert reject(None, "nothing is chosen", rita)[0] == []


def test_annotators_are_told_that_they_do_not_review(store: Store, tab: Any) -> None:
    submit(store, "case_1", "anna", verdict="unsure")
    shown = tab.show(request("anna", "annotator"))
    assert (shown[0], shown[3]) == ([], "anna is an annotator; reviewers and admins may review")
    assert "annotator" in tab._after(tab._accept)("case_1", "", request("anna", "annotator"))[3]
    assert store.queue.item((0, "case_1")).review is None
