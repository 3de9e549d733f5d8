"""The priority list as files: the paper's CSV for people, and every score for analysis."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from atlas_ray.prioritization.strategies import RankedCase
from atlas_ray.scores import ORGAN_COLUMNS, Scores
from atlas_ray.storage import write_atomically


def priority_csv(ranked: Sequence[RankedCase]) -> str:
    """The paper's file (paper-algorithm a.4): a line per case, `case,organ_1,organ_2,...`, no header, no values, the first case
    and the first organ are revised first. Lines end in a bare newline."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([case.case_id, *case.organs] for case in ranked)
    return text.getvalue()


def scores_table(ranked: Sequence[RankedCase], scores: Scores) -> pd.DataFrame:
    """Every score of every organ of every ranked case: one row per case and organ, in the order of the list.

    Columns that start with `case_` repeat over a case's organs; `revision_order` is the organ's place in the list (1 is first),
    missing where it is not to be revised.
    """
    if not ranked:
        return pd.DataFrame(columns=["rank", "case_id", "score"])
    place = {case_id: n for n, case_id in enumerate(scores.case_id_N.tolist())}
    listed = scores.take([place[case.case_id] for case in ranked])
    row_R, organ_R = np.nonzero(listed.has_NK)
    order_NK = np.zeros(listed.has_NK.shape, np.int64)
    channel = {name: k for k, name in enumerate(scores.organs)}
    for n, case in enumerate(ranked):
        for revised, name in enumerate(case.organs, 1):
            order_NK[n, channel[name]] = revised
    order_R = order_NK[row_R, organ_R]
    return pd.DataFrame(
        {
            "rank": np.array([case.rank for case in ranked])[row_R],
            "case_id": listed.case_id_N[row_R].astype(np.object_),
            "score": np.array([case.score for case in ranked])[row_R],
            "round": listed.round_N[row_R],
            "attention_mode": listed.attention_mode_N[row_R].astype(np.object_),
            "case_attention_voxels": listed.attention_voxels_N[row_R],
            "case_attention_mm3": listed.attention_mm3_N[row_R],
            "case_seconds": listed.seconds_N[row_R],
            "revision_order": pd.arrays.IntegerArray(order_R, mask=order_R == 0),
            "organ": np.array(listed.organs, np.object_)[organ_R],
            **{name: getattr(listed, f"{name}_NK")[row_R, organ_R] for name in ORGAN_COLUMNS},
        }
    ).astype({"case_id": "str", "attention_mode": "str", "organ": "str"})


def write_priority(ranked: Sequence[RankedCase], scores: Scores, *, csv_path: Path, parquet_path: Path) -> None:
    """Both files, each whole or absent; the CSV last, so that its presence means done."""
    table = io.BytesIO()
    scores_table(ranked, scores).to_parquet(table, index=False)
    write_atomically(parquet_path, table.getvalue())
    write_atomically(csv_path, priority_csv(ranked))
