"""The tabs with lists in them: their components, and what happens when one is used.

Every handler asks who is there again: a tab is open for hours, and a role may have changed.
"""

import json
import time
from typing import Any

import gradio as gr

from atlas_ray.annotation.queue import QueueError, WorkItem
from atlas_ray.annotation.review import RoleError
from ui.login import Principal, current_principal
from ui.panels import (
    AGREEMENT_COLUMNS,
    FILTERS,
    QUEUE_COLUMNS,
    QUEUE_TYPES,
    REVIEW_COLUMNS,
    REVIEW_TYPES,
    Filter,
    Row,
    agreement_rows,
    queue_rows,
    review_rows,
    round_summary,
)
from ui.store import Store

QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
TABLE_HEIGHT = 820


def who(request: gr.Request) -> Principal:
    return current_principal(request.request)


def open_case(store: Store, address: str | None) -> tuple[Any, Any]:
    """A message to the editor and the switch to its tab; nothing where the case is not in the queue."""
    try:
        store.queue.readings(store.round, (address or "").partition("@")[0])
    except QueueError:
        return gr.skip(), gr.skip()
    # The time makes choosing the same case again a new message.
    return json.dumps({"case_id": address, "asked": time.time()}), gr.Tabs(selected="editor")


class QueueTab:
    """The round's cases, filtered, and the way into them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        with gr.Row(elem_id="queue-bar"):
            self.summary = gr.Markdown(elem_id="round")
            self.filter = gr.Radio(list(FILTERS), value="all", show_label=False, container=False, elem_id="filter", min_width=470)
            self.next_case = gr.Button("Next case", variant="primary", scale=0, min_width=140, elem_id="next-case")
            self.refresh = gr.Button("Refresh", scale=0, min_width=110)
        self.table = gr.Dataframe(
            headers=QUEUE_COLUMNS,
            datatype=QUEUE_TYPES,
            interactive=False,
            elem_id="queue",
            max_height=TABLE_HEIGHT,
            show_search="filter",
        )

    def connect(self, page: gr.Blocks, editor: gr.HTML, tabs: gr.Tabs) -> None:
        shown, opened = [self.summary, self.table], [editor, tabs]
        page.load(self.enter, outputs=[*shown, *opened], **QUIET)
        for event in (self.refresh.click, self.filter.change, editor.opened, editor.submitted):
            event(self.show, inputs=self.filter, outputs=shown, **QUIET)
        # Queued, because gr.Info reaches the page only from a queued event.
        self.next_case.click(self.take_next, outputs=opened, **{**QUIET, "queue": True})
        self.table.select(self.choose, outputs=opened, **QUIET)

    def show(self, chosen: Filter, request: gr.Request) -> tuple[str, list[Row]]:
        return round_summary(self.store), queue_rows(self.store, chosen=chosen, user=who(request).user)

    def enter(self, request: gr.Request) -> tuple[Any, ...]:
        return (*self.show("all", request), *open_case(self.store, request.query_params.get("case")))

    def choose(self, chosen: gr.SelectData) -> tuple[Any, ...]:
        return open_case(self.store, chosen.row_value[QUEUE_COLUMNS.index("Case")])

    def take_next(self, request: gr.Request) -> tuple[Any, ...]:
        item = self.store.queue.next(request.username, round_index=self.store.round)
        if item is None:
            gr.Info("Nothing is left in this round's queue.")
        return open_case(self.store, item and item.case_id)


class ReviewTab:
    """What waits for a reviewer, and the decision."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.table = gr.Dataframe(
            headers=REVIEW_COLUMNS, datatype=REVIEW_TYPES, interactive=False, elem_id="review", max_height=360
        )
        self.chosen = gr.State(None)
        with gr.Row(elem_id="review-bar"):
            self.said = gr.Markdown(elem_id="review-said")
            self.reason = gr.Textbox(
                placeholder="Reason; the annotator reads it", show_label=False, container=False, elem_id="reason", max_length=2000
            )
            self.open = gr.Button("Open", scale=0, min_width=90, elem_id="review-open")
            self.accept = gr.Button("Accept", variant="primary", scale=0, min_width=90, elem_id="accept")
            self.reject = gr.Button("Send back", variant="stop", scale=0, min_width=110, elem_id="reject")
            self.take = gr.Button("Take this reading", scale=0, min_width=150, elem_id="take", visible=False)
        self.agreement = gr.Dataframe(headers=AGREEMENT_COLUMNS, interactive=False, elem_id="agreement", visible=False)

    def connect(self, tab: gr.Tab, editor: gr.HTML, tabs: gr.Tabs) -> None:
        detail = [self.chosen, self.said, self.accept, self.take, self.agreement]
        everything = [self.table, self.reason, *detail]
        tab.select(self.show, outputs=everything, **QUIET)
        self.table.select(self.choose, outputs=detail, **QUIET)
        self.open.click(lambda address: open_case(self.store, address), inputs=self.chosen, outputs=[editor, tabs], **QUIET)
        for button, decide in ((self.accept, self._accept), (self.reject, self._reject), (self.take, self._take)):
            button.click(self._after(decide), inputs=[self.chosen, self.reason], outputs=everything, **QUIET)

    def show(self, request: gr.Request, said: str = "") -> tuple[Any, ...]:
        """The list, and nothing chosen."""
        user, role = who(request).user, who(request).role
        try:
            items = self.store.to_review(user, role)
        except RoleError as error:
            items, said = [], str(error)
        hint = said or ("Choose a case in the list." if items else "Nothing waits for a reviewer.")
        hidden = gr.update(visible=False)
        return review_rows(items), "", None, hint, gr.update(visible=True), hidden, hidden

    def choose(self, chosen: gr.SelectData, request: gr.Request) -> tuple[Any, ...]:
        """What can be decided about one case; where it was read twice, how the readings agree."""
        address, why = chosen.row_value[:2]
        case_id = address.partition("@")[0]
        is_double = len(self.store.queue.readings(self.store.round, case_id)) == 2
        rows = agreement_rows(self.store.agreement(case_id, *self._who(request))) if is_double else []
        return (
            address,
            f"**{address}** · {why}",
            gr.update(visible=not is_double),
            gr.update(visible=is_double),
            gr.update(value=rows, visible=is_double),
        )

    def _after(self, decide: Any) -> Any:
        """Decide about the chosen case, then show the list with what came of it."""

        def handle(address: str | None, reason: str, request: gr.Request) -> tuple[Any, ...]:
            if not address:
                return self.show(request)
            try:
                item: WorkItem = decide(address, reason, *self._who(request))
            except QueueError as error:
                return self.show(request, f"**{address}**: {error}")
            return self.show(request, f"**{address}** is {item.review}")

        return handle

    def _who(self, request: gr.Request) -> tuple[str, Any]:
        principal = who(request)
        return principal.user, principal.role

    def _accept(self, address: str, reason: str, user: str, role: Any) -> WorkItem:
        return self.store.accept(self.store.shown(address, user, role), user, role, note=reason)

    def _reject(self, address: str, reason: str, user: str, role: Any) -> WorkItem:
        return self.store.reject(self.store.shown(address, user, role), user, role, reason=reason)

    def _take(self, address: str, reason: str, user: str, role: Any) -> WorkItem:
        item = self.store.shown(address, user, role)
        return self.store.resolve(item.case_id, user, role, reading=item.reading)
