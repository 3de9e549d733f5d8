"""The paper's figures, drawn from our numbers; each a PNG file's bytes."""

from collections.abc import Mapping, Sequence

import numpy as np

from atlas_ray.evaluation.bootstrap import Interval
from atlas_ray.evaluation.raters import PairMean
from atlas_ray.figures import figure, png

BLUE, ORANGE, GRAY = "#3f7fd9", "#e0873e", "#8a919a"


def detection_bars(
    rows: Sequence[tuple[str, Interval, Interval]], paper: Mapping[str, tuple[float, float]], *, title: str
) -> bytes:
    """Table 1 as bars: sensitivity and precision per organ with their intervals; the paper's numbers as ticks.

    Args:
        rows: organ, sensitivity, precision.
        paper: organ -> its sensitivity and precision.
    """
    with figure(9, 3.8) as (drawn, axes):
        places = np.arange(len(rows))
        for side, (name, color) in enumerate((("sensitivity", BLUE), ("precision", ORANGE))):
            found = [(sensitivity, precision)[side] for _, sensitivity, precision in rows]
            at = places + (side - 0.5) * 0.38
            heights = [interval.value or 0.0 for interval in found]
            axes.bar(at, heights, width=0.36, color=color, label=name)
            for x, interval in zip(at, found, strict=True):
                if interval.low is not None and interval.high is not None:
                    axes.plot([x, x], [interval.low, interval.high], color="#222222", linewidth=1)
            known = [(x, paper[row[0]][side]) for x, row in zip(at, rows, strict=True) if row[0] in paper]
            if known:
                label = "paper" if side == 0 else None
                axes.scatter([x for x, _ in known], [y for _, y in known], marker="_", s=120, color="#222222", label=label)
        axes.set_xticks(places, [row[0].replace("_", " ") for row in rows], rotation=30, ha="right")
        axes.set_ylim(0, 1.05)
        axes.set_ylabel("Share of regions")
        axes.set_title(title)
        axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.28))
    return png(drawn)


def error_summary(counts: Mapping[str, Mapping[str, int]], colors: Mapping[str, str], *, title: str) -> bytes:
    """Figure 3b: errors per type, stacked by organ.

    Args:
        counts: type -> organ -> how many.
        colors: of the organs, in the order in which they are stacked.
    """
    organs = [organ for organ in colors if any(by_organ.get(organ) for by_organ in counts.values())]
    with figure(8, 3.8) as (drawn, axes):
        left = np.zeros(len(counts))
        for organ in organs:
            widths = np.array([by_organ.get(organ, 0) for by_organ in counts.values()])
            axes.barh(range(len(counts)), widths, left=left, color=colors[organ], label=organ.replace("_", " "))
            left += widths
        axes.set_yticks(range(len(counts)), [name.replace("_", " ") for name in counts])
        axes.invert_yaxis()
        axes.set_xlabel("Errors")
        axes.set_title(title)
        for row, total in enumerate(left):
            axes.annotate(f"{total:.0f}", (total, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
        if organs:
            drawn.legend(frameon=False, fontsize=8, loc="outside right center")
    return png(drawn)


def maker_matrix(pairs: Sequence[PairMean], *, title: str) -> bytes:
    """Figure 6: the score of every two label makers; Dice below the diagonal, surface Dice above it."""
    makers = list(dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)))
    values = np.full((len(makers), len(makers)), np.nan)
    for pair in pairs:
        i, j = makers.index(pair.first), makers.index(pair.second)
        low, high = sorted((i, j))
        values[high, low] = np.nan if pair.dice.value is None else pair.dice.value
        values[low, high] = np.nan if pair.surface_dice.value is None else pair.surface_dice.value
    with figure(2.2 + 0.95 * len(makers), 1.1 + 0.8 * len(makers)) as (drawn, axes):
        shades = axes.imshow(values, cmap="Blues", vmin=0, vmax=1)
        drawn.colorbar(shades, ax=axes, shrink=0.8, label="Dice, surface Dice")
        for row, column in np.argwhere(~np.isnan(values)):
            value = values[row, column]
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "#222222")
        words = [name.replace("_", " ") for name in makers]
        axes.set_xticks(range(len(makers)), words, rotation=30, ha="right")
        axes.set_yticks(range(len(makers)), words)
        axes.set_title(title)
    return png(drawn)


def organ_volumes(volumes_ml: Mapping[str, Sequence[float]], *, title: str) -> bytes:
    """Figure 1b: how large each organ is over the cases that have it, as boxes on a logarithmic axis.

    Args:
        volumes_ml: organ -> volume in each case that has it, above 0.
    """
    there = {organ: list(values) for organ, values in volumes_ml.items() if values}
    with figure(8, 3.8) as (drawn, axes):
        if there:
            axes.boxplot(list(there.values()), widths=0.6, flierprops={"markersize": 3, "markeredgecolor": GRAY})
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda volume, _: f"{volume:g}")
            axes.grid(axis="y", color="#e4e7eb", linewidth=0.7)
        words = [f"{organ.replace('_', ' ')} ({len(values)})" for organ, values in there.items()]
        axes.set_xticks(range(1, len(there) + 1), words, rotation=30, ha="right")
        axes.set_xlabel("Organ (cases that have it)")
        axes.set_ylabel("Volume (ml)")
        axes.set_title(title)
    return png(drawn)
