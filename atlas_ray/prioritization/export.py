"""The priority list as files: the paper's CSV for people, and every score for analysis."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from atlas_ray.prioritization.strategies import RankedCase
from atlas_ray.records import CaseScores
from atlas_ray.storage import write_atomically


def priority_csv(ranked: Sequence[RankedCase]) -> str:
    """The paper's file (paper-algorithm a.4): a line per case, `case,organ_1,organ_2,...`, no header, no values, the first case
    and the first organ are revised first. Lines end in a bare newline."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([case.case_id, *case.organs] for case in ranked)
    return text.getvalue()


def scores_table(ranked: Sequence[RankedCase], scores: Sequence[CaseScores]) -> pd.DataFrame:
    """Every score of every organ of every ranked case: one row per case and organ, in the order of the list.

    Columns that start with `case_` repeat over a case's organs; `revision_order` is the organ's place in the list (1 is first),
    missing where it is not to be revised.
    """
    by_id = {case.case_id: case for case in scores}
    rows = [
        {
            "rank": case.rank,
            "case_id": case.case_id,
            "score": case.score,
            "round": by_id[case.case_id].round,
            "attention_mode": by_id[case.case_id].attention_mode,
            "case_attention_voxels": by_id[case.case_id].attention_voxels,
            "case_attention_mm3": by_id[case.case_id].attention_mm3,
            "case_seconds": by_id[case.case_id].seconds,
            "revision_order": case.organs.index(organ.organ) + 1 if organ.organ in case.organs else None,
            **organ.model_dump(),
        }
        for case in ranked
        for organ in by_id[case.case_id].organs
    ]
    return pd.DataFrame(rows).astype({"revision_order": "Int64"}) if rows else pd.DataFrame(columns=["rank", "case_id", "score"])


def write_priority(ranked: Sequence[RankedCase], scores: Sequence[CaseScores], *, csv_path: Path, parquet_path: Path) -> None:
    """Both files, each whole or absent; the CSV last, so that its presence means done."""
    table = io.BytesIO()
    scores_table(ranked, scores).to_parquet(table, index=False)
    write_atomically(parquet_path, table.getvalue())
    write_atomically(csv_path, priority_csv(ranked))
