"""What a release says of itself: a row per case, statistics per organ, licenses, checksums."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import get_args

from atlas_ray.organs import Organs
from atlas_ray.records import LabelSource
from atlas_ray.release.layouts import Layout
from atlas_ray.release.plan import OrganSource
from atlas_ray.schema import IntTriple, Schema, Triple
from atlas_ray.storage import write_atomically


class ReleasedOrgan(OrganSource):
    """An organ of a released label."""

    volume_ml: float


class ReleasedCase(Schema):
    """A case of a release.

    Args:
        label_map: name and version of the organ set its label ids belong to.
        fingerprint: of everything its files were made of; the same fingerprint means nothing has to be done again.
            "" is a void record: of a case that is being written, or whose writing ended in the middle.
        files: path below the release -> sha256; of a void record every file that may be there, without a sum.
    """

    case_id: str
    source: str
    license: str
    image_sha256: str
    shape: IntTriple
    spacing: Triple
    orientation: str
    label_map: str
    organs: tuple[ReleasedOrgan, ...]
    fingerprint: str
    files: dict[str, str]


def write_tables(out: Path, name: str, cases: Sequence[ReleasedCase], organs: Organs, layout: Layout) -> None:
    """The sums come last: with them the release is complete."""
    texts = {
        "dataset.csv": dataset_csv(cases, organs),
        "statistics.csv": statistics_csv(cases, organs),
        "LICENSES.md": licenses(name, cases),
        **layout.texts(name, [c.case_id for c in cases], organs),
    }
    for file, text in texts.items():
        write_atomically(out / file, text)
    sums = {file: digest for case in cases for file, digest in case.files.items()}
    sums |= {file: hashlib.sha256(text.encode()).hexdigest() for file, text in texts.items()}
    write_atomically(out / "SHA256SUMS", "".join(f"{digest}  {file}\n" for file, digest in sorted(sums.items())))


def dataset_csv(cases: Sequence[ReleasedCase], organs: Organs) -> str:
    """One row per case; an organ nothing is known of has empty cells."""
    fixed = ("case", "image_sha256", "source", "license", "label_map", "spacing_mm", "shape", "orientation")
    rows: list[Sequence[object]] = [[*fixed, *(f"{n}_{what}" for n in organs.names for what in ("source", "round", "ml"))]]
    for case in cases:
        known = {o.organ: o for o in case.organs}
        spacing, shape = (" ".join(f"{value:g}" for value in values) for values in (case.spacing, case.shape))
        row = [case.case_id, case.image_sha256, case.source, case.license, case.label_map, spacing, shape, case.orientation]
        for name in organs.names:
            entry = known.get(name)
            row += ["", "", ""] if entry is None else [entry.source, _or_empty(entry.round), f"{entry.volume_ml:g}"]
        rows.append(row)
    return _csv(rows)


def statistics_csv(cases: Sequence[ReleasedCase], organs: Organs) -> str:
    """One row per organ: how many cases know it, who says so, and its volumes. A volume of 0 is an organ that is not there."""
    kinds = get_args(LabelSource)
    rows: list[Sequence[object]] = [("organ", "cases", *kinds, "absent", "ml_min", "ml_median", "ml_mean", "ml_max")]
    for name in organs.names:
        known = [o for case in cases for o in case.organs if o.organ == name]
        counts = Counter(o.source for o in known)
        volumes = [o.volume_ml for o in known if o.volume_ml > 0]
        summary = [f"{f(volumes):.3f}" if volumes else "" for f in (min, median, mean, max)]
        rows.append((name, len(known), *(counts[kind] for kind in kinds), len(known) - len(volumes), *summary))
    return _csv(rows)


def licenses(name: str, cases: Sequence[ReleasedCase]) -> str:
    """A table of sources and their terms, in Markdown."""
    counts = Counter((c.source, c.license) for c in cases)
    rows = "".join(f"| {source} | {license_} | {n} |\n" for (source, license_), n in sorted(counts.items()))
    return (
        f"# Licenses of {name}\n\nThe labels derive from images under these terms; the strictest binds the whole.\n\n"
        f"| source | license | cases |\n|---|---|---|\n{rows}"
    )


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _or_empty(value: int | None) -> str:
    return "" if value is None else str(value)
