"""The Gradio page: the queue, the round, and the place where the editor lives.

Only ids pass through Gradio; voxels and edits go over the REST routes. The editor's DOM is built once and kept: a new value of
its component is a message to it, not a new page.
"""

import json
import time
from typing import Any

import gradio as gr

from atlas_ray.annotation.queue import QueueError
from ui.store import Store

COLUMNS = ["#", "Case", "Organs", "Attention (ml)", "State", "Annotator", "Minutes"]
TYPES = ["number", "str", "str", "number", "str", "str", "number"]
THEME = gr.themes.Base(primary_hue="sky", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"])
HEAD = '<link rel="stylesheet" href="/static/editor.css">'
ON_LOAD = "() => document.body.classList.add('dark')"  # a CT is judged in a dark room
CSS = """
body.dark { --body-background-fill: #0c1015; background: #0c1015; }
.gradio-container, .gradio-container .main, .gradio-container .wrap, .gradio-container .tabitem { padding: 0 !important; }
.gradio-container { max-width: none !important; }
.gradio-container main.contain, .gradio-container main.fillable { padding: 2px 8px 0 8px !important; }
.gradio-container .tabs, .gradio-container .column { gap: 2px !important; }
.gradio-container .tab-wrapper { height: 34px; padding: 0; margin: 0; }
#editor .html-container { padding: 0 !important; }
#queue-bar { align-items: center; padding: 10px 4px 4px; }
#queue { padding: 0 4px; }
#editor { padding: 0; }
"""

MOUNT = """
const { mount } = await import('/static/editor.js');
const editor = mount(element.querySelector('.atlas-editor'), {
  emit: (name, detail) => {
    if (name === 'opened') history.replaceState(null, '', `?case=${encodeURIComponent(detail.case_id)}`);
    if (name === 'submitted') history.replaceState(null, '', location.pathname);
    trigger(name, detail);
  },
});
const follow = () => { if (props.value) editor.open(JSON.parse(props.value).case_id); };
watch('value', follow);
follow();
"""
# js_on_load is not an async function, so the statements go into one.
MOUNT_JS = f"(async () => {{ {MOUNT} }})();"


def build_page(store: Store) -> gr.Blocks:
    """Queue and editor, each in its tab; choosing a case in one opens it in the other."""
    with gr.Blocks(title="atlas_ray", fill_width=True, analytics_enabled=False) as page:
        with gr.Tabs(selected="queue") as tabs:
            with gr.Tab("Queue", id="queue"):
                with gr.Row(elem_id="queue-bar"):
                    summary = gr.Markdown(elem_id="round")
                    next_case = gr.Button("Next case", variant="primary", scale=0, min_width=140, elem_id="next-case")
                    refresh = gr.Button("Refresh", scale=0, min_width=110)
                table = gr.Dataframe(
                    headers=COLUMNS, datatype=TYPES, interactive=False, elem_id="queue", max_height=820, show_search="filter"
                )
            with gr.Tab("Editor", id="editor"):
                editor = gr.HTML(
                    html_template='<div class="atlas-editor"></div>', js_on_load=MOUNT_JS, elem_id="editor", apply_default_css=False
                )
        shown = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

        def show_queue() -> tuple[str, list[list[Any]]]:
            return round_summary(store), queue_rows(store)

        def enter(request: gr.Request) -> tuple[Any, ...]:
            case_id = request.query_params.get("case")
            return (*show_queue(), *open_case(case_id))

        def choose(chosen: gr.SelectData) -> tuple[Any, ...]:
            return open_case(chosen.row_value[COLUMNS.index("Case")])

        def take_next(request: gr.Request) -> tuple[Any, ...]:
            item = store.queue.next(request.username, round_index=store.round)
            if item is None:
                gr.Info("Nothing is left in this round's queue.")
            return open_case(item and item.case_id)

        def open_case(case_id: str | None) -> tuple[Any, ...]:
            if not case_id or not is_queued(store, case_id):
                return gr.skip(), gr.skip()
            # The time makes choosing the same case again a new message.
            return json.dumps({"case_id": case_id, "asked": time.time()}), gr.Tabs(selected="editor")

        page.load(enter, outputs=[summary, table, editor, tabs], **shown)
        refresh.click(show_queue, outputs=[summary, table], **shown)
        # Queued, because gr.Info reaches the page only from a queued event.
        next_case.click(take_next, outputs=[editor, tabs], **{**shown, "queue": True})
        table.select(choose, outputs=[editor, tabs], **shown)
        editor.opened(show_queue, outputs=[summary, table], **shown)
        editor.submitted(show_queue, outputs=[summary, table], **shown)
    return page


def is_queued(store: Store, case_id: str) -> bool:
    try:
        store.queue.readings(store.round, case_id)
    except QueueError:
        return False
    return True


def round_summary(store: Store) -> str:
    """One line: which round, how far it is."""
    counts = store.queue.counts(store.round)
    total = sum(counts.values())
    if not total:
        return f"**Round {store.round}** · the queue is empty; run `python -m jobs.prioritize CONFIG --round {store.round}`"
    done = counts.get("submitted", 0)
    states = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    return f"**Round {store.round}** · {done} of {total} cases done · {states} · organ set {store.organs.name}"


def queue_rows(store: Store) -> list[list[Any]]:
    return [
        [
            item["rank"],
            item["case_id"],
            ", ".join(name.replace("_", " ") for name in item["organs"]),
            round(item["attention_mm3"] / 1000, 1) if item["attention_mm3"] is not None else None,
            item["state"],
            item["user"] or "",
            round(item["seconds"] / 60, 1),
        ]
        for item in store.items()
    ]
