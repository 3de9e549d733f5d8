"""The Gradio page: queue, editor, review and round, each in its tab.

Only ids pass through Gradio; voxels and edits go over the REST routes. The editor's DOM is built once and kept: a new value of
its component is a message to it, not a new page.
"""

import gradio as gr

from ui.panels import round_report, session_line
from ui.store import Store
from ui.tabs import QUIET, QueueTab, ReviewTab, who

THEME = gr.themes.Base(primary_hue="sky", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"])
HEAD = '<link rel="stylesheet" href="/static/editor.css">'
# A CT is judged in a dark room, so dark is where everybody starts.
ON_LOAD = "() => document.body.classList.toggle('dark', localStorage.getItem('atlas_ray.theme') !== 'light')"
SWITCH_THEME = "() => localStorage.setItem('atlas_ray.theme', document.body.classList.toggle('dark') ? 'dark' : 'light')"
CSS = """
body.dark { --body-background-fill: #0c1015; background: #0c1015; }
.gradio-container, .gradio-container .main, .gradio-container .wrap, .gradio-container .tabitem { padding: 0 !important; }
.gradio-container { max-width: none !important; }
.gradio-container main.contain, .gradio-container main.fillable { padding: 2px 8px 0 8px !important; }
.gradio-container .tabs, .gradio-container .column { gap: 2px !important; }
.gradio-container .tab-wrapper { height: 34px; padding: 0; margin: 0; }
#editor .html-container { padding: 0 !important; }
#head { position: absolute; top: 1px; right: 10px; z-index: 5; width: auto; align-items: center; gap: 10px; flex-wrap: nowrap; }
#head > * { flex: none; width: auto; min-width: 0; }
#head > *, #head .html-container { padding: 0 !important; }
#head :is(#theme, #session button) { height: 28px; min-height: 0; padding: 0 10px !important; font-size: 13px; font-weight: 400;
  border: 1px solid var(--border-color-primary); border-radius: 6px;
  background: none; color: var(--body-text-color); cursor: pointer; }
#session form { display: flex; align-items: center; gap: 10px; font-size: 13px; margin: 0; color: var(--body-text-color); }
#session em { font-style: normal; color: #b07a1c; }
#queue-bar, #review-bar { align-items: center; padding: 10px 4px 4px; }
#queue-bar button, #review-bar button { white-space: nowrap; font-size: 14px; }
#filter .wrap { flex-wrap: nowrap; gap: 4px; }
#filter label { padding: 4px 8px; font-size: 13px; white-space: nowrap; }
#queue, #review, #agreement { padding: 0 4px; }
:is(#queue, #review) .selection-button { display: none; }
#editor { padding: 0; }
.round-report { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 10px; }
.round-report { color: var(--body-text-color); }
.round-report section { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 8px 14px; }
.round-report h3 { margin: 0 0 4px; font-size: 15px; }
.round-report :is(table, tr, th, td) { border: none !important; font-size: 14px; }
.round-report th { text-align: left; font-weight: 400; padding: 1px 24px 1px 0 !important; opacity: 0.75; }
.round-report td { padding: 1px 0 !important; }
.round-report svg { width: 100%; height: auto; max-height: 260px; }
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


def show_session(request: gr.Request) -> str:
    return session_line(who(request))


def build_page(store: Store) -> gr.Blocks:
    """The four tabs; choosing a case in a list opens it in the editor."""
    with gr.Blocks(title="atlas_ray", fill_width=True, analytics_enabled=False) as page:
        with gr.Row(elem_id="head"):
            session = gr.HTML(elem_id="session")
            gr.Button("Light / dark", size="sm", elem_id="theme").click(None, js=SWITCH_THEME, **QUIET)
        page.load(show_session, outputs=session, **QUIET)
        with gr.Tabs(selected="queue") as tabs:
            with gr.Tab("Queue", id="queue"):
                queue = QueueTab(store)
            with gr.Tab("Editor", id="editor"):
                editor = gr.HTML(
                    html_template='<div class="atlas-editor"></div>', js_on_load=MOUNT_JS, elem_id="editor", apply_default_css=False
                )
            with gr.Tab("Review", id="review") as review_tab:
                review = ReviewTab(store)
            with gr.Tab("Round", id="round") as round_tab:
                report = gr.HTML()
        queue.connect(page, editor, tabs)
        review.connect(review_tab, editor, tabs)
        round_tab.select(lambda: round_report(store), outputs=report, **QUIET)
    return page
