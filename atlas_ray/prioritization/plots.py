"""The curve from which the paper reads its budget (figure 3a), drawn."""

from collections.abc import Sequence

from atlas_ray.figures import figure, png
from atlas_ray.prioritization.effort import Budget
from atlas_ray.prioritization.strategies import RankedCase

POINTS = 2000  # drawn beside the line; more are not told apart
BLUE, ORANGE, GRAY = "#3f7fd9", "#e0873e", "#666666"


def attention_curve(ranked: Sequence[RankedCase], budget: Budget, *, score_label: str = "Attention size (voxels)") -> bytes:
    """Cases by descending score, the cases of the budget filled and the knee marked; a PNG file's bytes.

    Args:
        score_label: the strategy's score and its unit, for the vertical axis.
    """
    with figure(7, 4) as (drawn, axes):
        places = range(1, len(ranked) + 1)
        values = [case.score for case in ranked]
        revised = set(budget.case_ids)
        colors = [ORANGE if case.case_id in revised else BLUE for case in ranked]
        axes.plot(places, values, color=GRAY, linewidth=1, zorder=1)
        shown = slice(None, None, max(1, len(ranked) // POINTS))
        axes.scatter(places[shown], values[shown], c=colors[shown], s=14, zorder=2)
        text = f"{budget.cases} of {budget.of_cases} cases ({budget.share:.1%}), {budget.minutes:g} min"
        axes.axvline(budget.cases + 0.5, color=ORANGE, linestyle="--", label=f"to revise: {text}")
        if budget.knee:
            axes.axvline(budget.knee + 0.5, color=GRAY, linestyle=":", label=f"knee after {budget.knee}")
        axes.set_xlabel("Case, in order of priority")
        axes.set_ylabel(score_label)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    return png(drawn)
