"""Curves as SVG that takes the page's text color, so that one drawing is legible in the light and in the dark theme."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

INK = "#010203"  # drawn in this color, then replaced by the page's own
BLUE, ORANGE = "#3f7fd9", "#e0873e"


def attention_chart(scores: Sequence[float], *, cut: int) -> str:
    """Scores of the ranked cases, the first `cut` of which the annotator gets."""
    figure, axes = _figure()
    places = range(1, len(scores) + 1)
    axes.plot(places, scores, color=INK, linewidth=0.8, alpha=0.5)
    axes.scatter(places, scores, c=[ORANGE if place <= cut else BLUE for place in places], s=12, zorder=2)
    axes.axvline(cut + 0.5, color=ORANGE, linestyle="--", label=f"to revise: {cut} of {len(scores)}")
    axes.set(xlabel="case, in order of priority", ylabel="score", ylim=(0, None))
    return _svg(figure, axes)


def dice_chart(rounds: Sequence[int], dice: Mapping[str, Sequence[float | None]], colors: Mapping[str, str]) -> str:
    """Dice of each organ over the rounds; a round that lacks an organ leaves a gap."""
    figure, axes = _figure()
    for organ, values in dice.items():
        shown = [float("nan") if value is None else value for value in values]
        axes.plot(rounds, shown, color=colors.get(organ, INK), marker="o", markersize=3, label=organ.replace("_", " "))
    axes.set(xlabel="round", ylabel="Dice on the holdout", ylim=(0, 1.02), xticks=list(rounds))
    return _svg(figure, axes)


def _figure() -> tuple[Any, Any]:
    # No pyplot: it keeps every figure alive and picks a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 3.3), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def _svg(figure: Any, axes: Any) -> str:
    axes.legend(frameon=False, labelcolor=INK, fontsize="small", loc="best")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :].replace(INK, "currentColor")
