"""A page about what was ingested: which dataset brings which organs, how large they are, how the scans lie, what was set aside.

Numbers come from the manifest and from what ingest noted of every case; images are read for the few cases that are pictured.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from atlas_ray.data.ingest import STEP, Ingested
from atlas_ray.exceptions import CaseError
from atlas_ray.figures import figure, heading, page, picture, png, table, text
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.records import Case, Quarantined
from atlas_ray.volume import Array, read_volume, reorient
from atlas_ray.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

READERS = 16  # threads over small files: on a network disk the time is latency
PICTURED = 2  # cases per dataset
WINDOW_HU = (-160.0, 240.0)  # soft tissue: level 40, width 400
FAR = 4.0  # robust standard deviations of log volume; a normal distribution has one in 16,000 beyond
FEWEST_FOR_FAR = 8
LISTED = 50  # rows of a list that has no bound
Milliliters = dict[str, dict[str, float]]  # case -> organ -> ml


@dataclass(frozen=True, slots=True)
class Ingestion:
    """What the report speaks of.

    Args:
        cases: the manifest.
        quarantined: what ingest set aside.
        milliliters: of every labeled organ of every case.
    """

    cases: tuple[Case, ...]
    quarantined: tuple[Quarantined, ...]
    milliliters: Milliliters

    @property
    def sources(self) -> tuple[str, ...]:
        """Datasets, in the order of their names."""
        return tuple(sorted({case.source for case in self.cases}))


def read_ingestion(workspace: Workspace) -> Ingestion:
    """From the manifest and each case's own small record; no image is read."""
    cases = workspace.cases()
    with ThreadPoolExecutor(READERS) as readers:
        volumes = readers.map(lambda case: _milliliters(workspace.ingested(case.case_id)), cases)
        milliliters = {case.case_id: found for case, found in zip(cases, volumes, strict=True)}
    quarantined = tuple(workspace.set_aside(STEP).values())
    return Ingestion(tuple(cases), quarantined, milliliters)


def _milliliters(path: Path) -> dict[str, float]:
    try:
        return Ingested.model_validate_json(path.read_bytes()).organ_ml
    except (FileNotFoundError, ValidationError):  # of another version: ingest makes it anew the next time
        return {}


def ingest_page(name: str, found: Ingestion, pictures: Iterable[tuple[Case, bytes | str]], organs: Organs) -> str:
    """The HTML page.

    Args:
        pictures: of each pictured case, its PNG, or why there is none.
    """
    blocks = [
        text(f"{len(found.cases)} cases of {len(found.sources)} datasets, {len(found.quarantined)} set aside."),
        table(("dataset", "license", "train", "pool", "holdout", "labeled", "organs"), _datasets(found)),
        heading("Which dataset labels what"),
        text("Cases in which an organ is labeled, also where the label says that it is not there."),
        table(("organ", *found.sources, "all"), _matrix(found, organs)),
    ]
    if any(found.milliliters.values()):
        blocks += [
            picture(labeled_plot(found, organs), "Labeled cases per organ and dataset"),
            heading("How large the organs are"),
            picture(volume_plot(found, organs), "Volume per organ: quartiles over all cases, and the median of each dataset"),
            *_far(found, organs),
        ]
    if found.cases:
        blocks += [
            heading("How the scans lie"),
            picture(geometry_plot(found.cases), "Voxel edges, numbers of slices and heights of the scans"),
            table(("dataset", "orientations", "median spacing mm", "median shape"), _geometry(found)),
        ]
    blocks += [heading("Set aside"), *_set_aside(found.quarantined), heading("A look at the cases")]
    blocks += [text(f"Level 40 HU, width 400 HU. The patient's right is on the left; head up. {PICTURED} cases of each dataset.")]
    for case, drawn in pictures:
        caption = f"{case.case_id} ({case.source}, {case.orientation}, {_by(case.spacing)} mm)"
        blocks.append(text(f"{caption}: {drawn}") if isinstance(drawn, str) else picture(drawn, caption))
    return page(f"Ingest of {name}", *blocks)


# --- tables ----------------------------------------------------------------------------------------------------------


def _datasets(found: Ingestion) -> Sequence[Sequence[object]]:
    rows = []
    for source in found.sources:
        cases = [c for c in found.cases if c.source == source]
        splits = Counter(c.split for c in cases)
        licenses = ", ".join(sorted({c.license for c in cases}))
        labeled = [c for c in cases if c.labeled_organs]
        organs = {name for c in labeled for name in c.labeled_organs}
        counts = (splits[split] or None for split in ("train", "pool", "holdout"))
        rows.append((source, licenses, *counts, len(labeled) or None, len(organs) or None))
    return rows


def labeled_cases(cases: Sequence[Case]) -> Counter[tuple[str, str]]:
    """(organ, dataset) -> cases in which it is labeled."""
    return Counter((name, case.source) for case in cases for name in case.labeled_organs)


def _matrix(found: Ingestion, organs: Organs) -> Sequence[Sequence[object]]:
    counts = labeled_cases(found.cases)
    rows = []
    for name in organs.names:
        row = [counts[name, source] for source in found.sources]
        rows.append((name, *(n or None for n in row), sum(row)))
    return rows


def far_volumes(found: Ingestion, organs: Organs) -> list[tuple[float, str, str, float, float]]:
    """(robust deviation, case, organ, ml, median ml), the farthest first: volumes that a wrong label, a cut organ or a wrong unit
    may explain. Of organs with too few volumes to tell there is none."""
    rows = []
    for name in organs.names:
        ml = {case_id: of[name] for case_id, of in found.milliliters.items() if of.get(name, 0) > 0}
        if len(ml) < FEWEST_FOR_FAR:
            continue
        logs = np.log(list(ml.values()))
        median = float(np.median(logs))
        spread = max(1.4826 * float(np.median(np.abs(logs - median))), 1e-3)  # MAD of a normal distribution
        for (case_id, value), log in zip(ml.items(), logs, strict=True):
            if (deviation := abs(float(log) - median) / spread) > FAR:
                rows.append((deviation, case_id, name, value, float(np.exp(median))))
    return sorted(rows, key=lambda row: (-row[0], row[1], row[2]))


def _far(found: Ingestion, organs: Organs) -> list[str]:
    far = far_volumes(found, organs)
    absent = Counter(name for of in found.milliliters.values() for name, ml in of.items() if ml == 0)
    blocks = (
        [text("Labeled as not there: " + ", ".join(f"{name} in {n}" for name, n in absent.most_common()) + ".")] if absent else []
    )
    if not far:
        return [*blocks, text("No volume lies far from those of its organ.")]
    words = f"{len(far)} volumes lie far from those of their organ (more than {FAR:g} robust standard deviations of the logarithm)."
    rows = [
        (case_id, name, f"{ml:.1f}", f"{median:.1f}", f"{deviation:.1f}") for deviation, case_id, name, ml, median in far[:LISTED]
    ]
    return [*blocks, text(words), table(("case", "organ", "ml", "median ml", "deviation"), rows)]


def _geometry(found: Ingestion) -> Sequence[Sequence[object]]:
    rows = []
    for source in found.sources:
        cases = [c for c in found.cases if c.source == source]
        orientations = ", ".join(f"{o} {n}" for o, n in Counter(c.orientation for c in cases).most_common())
        spacing = np.median([c.spacing for c in cases], axis=0)
        shape = np.median([c.shape for c in cases], axis=0)
        rows.append((source, orientations, _by(spacing), _by(shape)))
    return rows


def reason_kind(reason: str) -> str:
    """A reason without what differs from case to case: paths and numbers."""
    return re.sub(r"-?\d+(\.\d+)?(e[-+]?\d+)?", "#", re.sub(r"\S*/\S+", "FILE", reason))


def _set_aside(quarantined: Sequence[Quarantined]) -> list[str]:
    if not quarantined:
        return [text("No case.")]
    kinds: dict[str, list[Quarantined]] = defaultdict(list)
    for entry in quarantined:
        kinds[reason_kind(entry.reason)].append(entry)
    groups = sorted(kinds.values(), key=len, reverse=True)
    rows = [(entries[0].reason, len(entries), ", ".join(e.case_id for e in entries[:5])) for entries in groups[:LISTED]]
    return [table(("reason (of the first)", "cases", "such as"), rows)]


def _by(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in values)


# --- plots -----------------------------------------------------------------------------------------------------------


def _dataset_colors(sources: Sequence[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    palette = [*colormaps["tab20"].colors, *colormaps["tab20b"].colors]  # type: ignore[attr-defined]
    return {source: palette[i % len(palette)] for i, source in enumerate(sources)}


def _known(found: Ingestion, organs: Organs) -> list[str]:
    """Organs that are labeled somewhere, the first at the top of a plot."""
    somewhere = {name for case in found.cases for name in case.labeled_organs}
    return [name for name in organs.names if name in somewhere][::-1]


def labeled_plot(found: Ingestion, organs: Organs) -> bytes:
    """Stacked bars: cases in which an organ is labeled, by dataset."""
    counts, names, colors = labeled_cases(found.cases), _known(found, organs), _dataset_colors(found.sources)
    with figure(10, 1.5 + 0.32 * len(names)) as (made, axes):
        left = np.zeros(len(names))
        for source in found.sources:
            widths = [counts[name, source] for name in names]
            if any(widths):
                axes.barh(names, widths, left=left, color=colors[source], label=source)
                left += widths
        for y, total in enumerate(left):
            axes.text(total, y, f" {total:.0f}", va="center")
        axes.set_xlabel("labeled cases")
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
        return png(made)


def volume_plot(found: Ingestion, organs: Organs) -> bytes:
    """A box per organ over all cases, a dot per dataset at its median; ml on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    names, colors = _known(found, organs), _dataset_colors(found.sources)
    source_of = {case.case_id: case.source for case in found.cases}
    ml: dict[tuple[str, str], list[float]] = defaultdict(list)
    for case_id, volumes in found.milliliters.items():
        for name, value in volumes.items():
            if value > 0:
                ml[name, source_of[case_id]].append(value)
    with figure(10, 1.5 + 0.32 * len(names)) as (made, axes):
        boxes = [[v for s in found.sources for v in ml[name, s]] for name in names]
        axes.boxplot(boxes, orientation="horizontal", showfliers=False, medianprops={"color": "black"})
        axes.set_yticks(range(1, len(names) + 1), names)
        for source, (y, name) in product(found.sources, enumerate(names, 1)):
            if values := ml[name, source]:
                axes.plot(np.median(values), y, "o", color=colors[source], alpha=0.9, label=source)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("ml")
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
        return png(made)


def geometry_plot(cases: Sequence[Case]) -> bytes:
    """Histograms in RAS axes: edges in the slice, distance of slices, number of slices, height of the scan."""
    axis = [next(i for i in range(3) if case.orientation[i] in "SI") for case in cases]
    along = np.array([case.spacing[z] for case, z in zip(cases, axis, strict=True)])
    slices = np.array([case.shape[z] for case, z in zip(cases, axis, strict=True)])
    within = np.array([case.spacing[i] for case, z in zip(cases, axis, strict=True) for i in range(3) if i != z])
    plotted = (("edge in the slice, mm", within), ("slice distance, mm", along), ("slices", slices), ("height, mm", along * slices))
    with figure(10, 2.6, ncols=len(plotted)) as (made, axes):
        for one, (label, values) in zip(axes, plotted, strict=True):
            one.hist(values, bins=30, color="#57606a")
            one.set_xlabel(label)
        axes[0].set_ylabel("cases (edges: two each)")
        return png(made)


# --- pictures --------------------------------------------------------------------------------------------------------


def pictured_cases(cases: Sequence[Case]) -> list[Case]:
    """A few of every dataset: labeled ones where there are, evenly spread over their ids, so that a rerun shows the same."""
    by_source: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_source[case.source].append(case)
    picked = []
    for _, of in sorted(by_source.items()):
        usable = sorted([c for c in of if c.labeled_organs] or of, key=lambda c: c.case_id)
        count = min(PICTURED, len(usable))
        picked += [usable[(2 * i + 1) * len(usable) // (2 * count)] for i in range(count)]
    return picked


def draw_case(case: Case, *, workspace: Workspace, organs: Organs) -> tuple[Case, bytes | str]:
    """An axial and a coronal slice with the labels training may see, as PNG; or why there is none."""
    try:
        image = reorient(read_volume(case.image, series_uid=case.series_uid), "LPS")
        labels = np.zeros(image.shape, np.uint8)
        if case.labeled_organs:
            drawn = read_volume(workspace.label(case.case_id))
            labels = np.asarray(reorient(drawn, "LPS").voxels, np.uint8)
    except (CaseError, OSError) as error:
        return case, str(error)
    return case, case_picture(image.voxels, labels, image.spacing, organs)


def case_picture(image_LPS: Array, labels_LPS: LabelMap, spacing: Sequence[float], organs: Organs) -> bytes:
    """PNG of an axial and a coronal slice where most organs are.

    Args:
        image_LPS: HU, first axis toward the patient's left, second toward the back, third toward the head.
        labels_LPS: of the same shape.
    """
    sx, sy, sz = spacing
    z, y = (fullest_slice(labels_LPS, axis) for axis in (2, 1))
    width, depth, height = (n * s for n, s in zip(image_LPS.shape, spacing, strict=True))
    panel_in = 4.1 if labels_LPS.any() else 4.9  # beside a legend, or alone
    with figure(10, min(8, panel_in * max(depth, height) / width), ncols=2) as (made, axes):
        # Rows of an image run down: toward the back, and toward the feet.
        _show(axes[0], image_LPS[:, :, z].T, labels_LPS[:, :, z].T, (sx, sy), organs)
        _show(axes[1], image_LPS[:, y, ::-1].T, labels_LPS[:, y, ::-1].T, (sx, sz), organs)
        present = [organs[name] for name in organs.present(labels_LPS)]
        handles = [_patch(organ.color, organ.name) for organ in present]
        if handles:
            made.legend(handles=handles, loc="outside right center", frameon=False)
        return png(made)


def fullest_slice(labels: LabelMap, axis: int) -> int:
    """The slice with the most organs, of those the one nearest the middle of them; the middle one without labels."""
    flat = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    organs_of = np.array([np.count_nonzero(np.bincount(row, minlength=256)[1:]) for row in flat])
    if not organs_of.any():
        return len(flat) // 2
    fullest = np.flatnonzero(organs_of == organs_of.max())
    return int(fullest[len(fullest) // 2])


def _show(axes: "Axes", image: Array, labels: LabelMap, edges: tuple[float, float], organs: Organs) -> None:
    """One slice in mm, as rows and columns of a picture; the patient's right is on the left."""
    rows, columns = image.shape
    extent = (0, columns * edges[0], rows * edges[1], 0)
    low, high = WINDOW_HU
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
    axes.imshow(_tinted(labels, organs, 0.3), extent=extent, interpolation="nearest")
    x, y = ((np.arange(n) + 0.5) * edge for n, edge in ((columns, edges[0]), (rows, edges[1])))
    for organ in organs:
        mask = labels == organ.label_id
        if mask.any() and min(mask.shape) > 1:
            axes.contour(x, y, mask, levels=[0.5], colors=organ.color, linewidths=1.2)
    for where, side in ((0.02, "R"), (0.98, "L")):
        placed: dict[str, Any] = {"transform": axes.transAxes, "ha": "left" if side == "R" else "right", "va": "center"}
        axes.text(where, 0.5, side, color="white", weight="bold", bbox={"facecolor": "black", "alpha": 0.6, "pad": 2}, **placed)
    axes.set_axis_off()


def _tinted(labels: LabelMap, organs: Organs, alpha: float) -> npt.NDArray[np.float32]:
    """Labels as colors, [rows, columns, RGBA]; transparent where there is none."""
    from matplotlib.colors import to_rgba

    table = np.zeros((256, 4), np.float32)
    for organ in organs:
        table[organ.label_id] = to_rgba(organ.color, alpha)
    colored: npt.NDArray[np.float32] = table[labels]
    return colored


def _patch(color: str, name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, label=name)
