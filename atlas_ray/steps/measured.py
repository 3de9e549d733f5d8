"""What the measurements of `jobs.evaluate` share: which cases, and where their numbers go: the workspace and MLflow.

A measurement leaves `reports/NAME.json`, its tables as CSV and its figures as PNG. MLflow gets the same on the run of the step,
with the round as the step of every metric, so that rounds lie beside each other in its charts.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atlas_ray.cluster.tracking import step_run
from atlas_ray.config import Campaign
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.records import Case, Split
from atlas_ray.schema import Schema
from atlas_ray.storage import write_atomically
from atlas_ray.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of plain values under named columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]

    @classmethod
    def of(cls, records: Sequence[Schema]) -> "Table":
        """The fields of records of one class, in their order."""
        columns = tuple(type(records[0]).model_fields) if records else ()
        return cls(columns, tuple(tuple(record.model_dump(mode="json").values()) for record in records))

    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()


def measured_cases(campaign: Campaign, round_index: int, split: Split) -> list[Case]:
    """Predicted cases of the split that have a reference, in the manifest's order. Raises WorkspaceError where there is none."""
    workspace = campaign.open_workspace()
    predicted = workspace.predicted(round_index)
    cases = [c for c in workspace.cases() if c.split == split and c.case_id in predicted and workspace.truth(c.case_id).exists()]
    if not cases:
        raise WorkspaceError(
            f"round {round_index} has no predicted {split} case with a reference label; run jobs.predict, or set a truth"
        )
    return cases


def components_table(workspace: Workspace, round_index: int, case_ids: Sequence[str]) -> Table:
    """The attention components of these cases, those of the highest score of each case first."""
    columns = ("case", "organ", "component", "error", "reason", "volume_mm3", "voxels", "heat_score", "mean_heat")
    return Table(
        columns,
        tuple(
            (case_id, c.organ, c.index, c.error, c.reason, c.volume_mm3, c.voxels, c.score, c.mean_heat)
            for case_id in case_ids
            for c in workspace.case_components(round_index, case_id)
        ),
    )


def publish(
    campaign: Campaign,
    round_index: int,
    name: str,
    record: Schema,
    *,
    metrics: Mapping[str, float | None],
    tables: Mapping[str, Table],
    plots: Mapping[str, bytes],
) -> None:
    """Write and track a measurement.

    Args:
        name: of the report, such as "attention_holdout".
        metrics: "group/name" -> number.
        tables, plots: by a name of their own.
    """
    workspace = campaign.open_workspace()
    report = workspace.report(round_index, name)
    with step_run(campaign, round_index, name) as run:
        run.metrics(metrics, step=round_index)
        for title, table in tables.items():
            write_atomically(report.with_name(f"{name}_{title}.csv"), table.csv())
            run.table(title, table.columns, table.rows)
        for title, data in plots.items():
            path = workspace.plot(round_index, f"{name}_{title}")
            write_atomically(path, data)
            run.artifact(path, "plots")
        write_atomically(report, record.model_dump_json(indent=2))
        run.artifact(report)
