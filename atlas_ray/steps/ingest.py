"""Ingest: describe and check every case of every dataset, and a page about what was found."""

from functools import partial
from pathlib import Path

from atlas_ray.cluster.tasks import map_cases
from atlas_ray.config import Campaign
from atlas_ray.data.ingest import IngestReport, ingest
from atlas_ray.data.ingest_report import draw_case, ingest_page, pictured_cases, read_ingestion
from atlas_ray.storage import write_atomically


def ingest_step(campaign: Campaign) -> IngestReport:
    """Describe and check every case of every dataset; write manifest, labels and quarantine list."""
    return ingest(
        campaign.datasets,
        campaign.load_organs(),
        campaign.open_workspace(),
        campaign.checks,
        data_root=campaign.data_root,
        map_cases=map_cases,
        patience_s=campaign.cluster.patience_s,
    )


def report_step(campaign: Campaign) -> Path:
    """Write the page about everything ingested so far. Returns its path."""
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    found = read_ingestion(workspace)
    one = partial(draw_case, workspace=workspace, organs=organs)
    content = ingest_page(campaign.name, found, map_cases(one, pictured_cases(found.cases)), organs)
    write_atomically(workspace.ingest_page, content)
    return workspace.ingest_page
