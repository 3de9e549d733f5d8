"""The app without the page around the editor: `python bare_app.py WORKSPACE PORT USER`.

It starts in a second where the page's library takes ten, so a test can afford to kill it.
"""

import sys

import uvicorn
from fastapi.responses import HTMLResponse

from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.workspace import Workspace
from ui.app import create_api
from ui.login import Login
from ui.settings import read_settings
from ui.store import Store

PAGE = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="/static/editor.css"><link rel="icon" href="data:,">
<style>body { margin: 0 }</style><body class="dark"><div id="editor"></div><script type="module">
import { mount } from "/static/editor.js";
const editor = mount(document.getElementById("editor"));
const asked = new URLSearchParams(location.search).get("case");
if (asked) editor.open(asked);
</script>"""


def main(root: str, port: str, user: str) -> None:
    workspace = Workspace(root)
    organs = read_settings(workspace.config).load_organs()
    database = open_database(sqlite_url(workspace.annotation_db))
    store = Store(workspace, round_index=0, organs=organs, database=database)
    app = create_api(store, login=Login(default_user=user))
    app.add_api_route("/ui/", lambda: HTMLResponse(PAGE))
    uvicorn.run(app, port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
