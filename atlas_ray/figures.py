"""Matplotlib figures as PNG bytes, without a display, and self-contained HTML pages of them. All that draws comes through here."""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
h1, h2 { line-height: 1.2 } figure { margin: 1rem 0 } img { max-width: 100% } figcaption { color: #57606a }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d0d7de; text-align: right }
th:first-child, td:first-child { text-align: left } th { position: sticky; top: 0; background: #f6f8fa }
"""


OURS = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "figure.dpi": 120}


@contextmanager
def figure(width_in: float = 8.0, height_in: float = 4.5, **subplots: Any) -> Iterator[tuple["Figure", Any]]:
    """A figure and its axes in the house's style, whatever the process has set in matplotlib; which is left as it was."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(OURS, after_reset=True):
        made = Figure(figsize=(width_in, height_in), layout="constrained")
        yield made, made.subplots(**subplots)


def png(made: "Figure") -> bytes:
    """The figure as a PNG file."""
    from matplotlib import style

    buffer = io.BytesIO()
    with style.context(OURS, after_reset=True):  # ticks and legends are made when they are drawn
        made.savefig(buffer, format="png")
    return buffer.getvalue()


def page(title: str, *blocks: str) -> str:
    """One HTML file that needs nothing else. Blocks are HTML: from `heading`, `text`, `table`, `picture`."""
    body = "\n".join(blocks)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>"
    )


def heading(words: str) -> str:
    return f"<h2>{html.escape(words)}</h2>"


def text(words: str) -> str:
    return f"<p>{html.escape(words)}</p>"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Cells are escaped; None is an empty cell, floats have three digits."""
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(_cell(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def picture(data: bytes, caption: str) -> str:
    """A PNG inside the page."""
    encoded = base64.b64encode(data).decode()
    words = html.escape(caption)
    return f'<figure><img alt="{words}" src="data:image/png;base64,{encoded}"><figcaption>{words}</figcaption></figure>'


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
