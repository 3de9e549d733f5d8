"""Ingest: describe and check every case of every dataset."""

from atlas_ray.cluster.tasks import map_cases
from atlas_ray.config import Campaign
from atlas_ray.data.ingest import IngestReport, ingest


def ingest_step(campaign: Campaign) -> IngestReport:
    """Describe and check every case of every dataset; write manifest, labels and quarantine list."""
    return ingest(
        campaign.datasets,
        campaign.load_organs(),
        campaign.open_workspace(),
        campaign.checks,
        data_root=campaign.data_root,
        map_cases=map_cases,
    )
