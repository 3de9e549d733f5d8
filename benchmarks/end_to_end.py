"""The real prediction stream (Ray Data) over two real CT with networks of the paper's sizes: where the time goes.

The networks are not trained; their output biases are set so that no byte is zero and attention lies here and there, which makes
everything around them (packing, inverse, attention) work harder than trained networks would. Spacing is 3 mm, so it ends within
minutes here: windows and voxels shrink alike, so the shares are much as they would be at 1.5 mm.

python benchmarks/end_to_end.py [--data FOLDER] [--spacing MM]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
import yaml
from measure import show_rows

from atlas_ray.cluster.prediction import predict_cases
from atlas_ray.cluster.session import ray_session
from atlas_ray.config import Campaign, load_config
from atlas_ray.organs import CONFIGS
from atlas_ray.segmentation.architectures import start_from_prior
from atlas_ray.segmentation.checkpoints import CheckpointHeader, Provenance, save_checkpoint
from atlas_ray.steps.ingest import ingest_step

SOURCES = [
    {
        "source": "files",
        "name": "acrin",
        "root": "acrin_flt_001",
        "images": "ct.nii.gz",
        "case_id": "acrin_flt_001",
        "split": "pool",
    },
    {"source": "files", "name": "cptac", "root": "cptac_pda_189", "images": "dicom/", "case_id": "cptac_pda_189", "split": "pool"},
]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def campaign_in(folder: Path, data: Path, spacing_mm: float) -> Campaign:
    """The paper's set-up over the two scans."""
    content = yaml.safe_load((CONFIGS / "abdomen8.yaml").read_text())
    content |= {"name": "end_to_end", "workspace": str(folder / "workspace"), "data_root": str(data), "datasets": SOURCES}
    content["preprocessing"]["spacing"] = [spacing_mm] * 3
    content["inference"] = {"window": [96, 96, 96], "overlap": 0.5}
    content["cluster"] = {"use_gpu": torch.cuda.is_available(), "cpus_per_actor": os.cpu_count() or 1}
    path = folder / "end_to_end.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_config(path)


def save_untrained_networks(campaign: Campaign) -> None:
    organs = campaign.load_organs()
    for architecture in campaign.architectures:
        torch.manual_seed(0)
        network = architecture.build(len(organs))
        start_from_prior(network, architecture, prior=0.005)
        header = CheckpointHeader(
            architecture=architecture,
            organs=organs.names,
            spacing=campaign.preprocessing.spacing,
            window_hu=campaign.preprocessing.window_hu,
            provenance=Provenance(round=0, cases=0, data_key="none", steps=0, seed=0, created="2026-01-01T00:00:00Z"),
        )
        save_checkpoint(campaign.open_workspace().checkpoint(0, architecture.architecture), header, network.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--spacing", type=float, default=3.0)
    args = parser.parse_args()
    if not (args.data / "acrin_flt_001").exists():
        print(f"{args.data} does not exist; this benchmark needs two real CT, see --data")
        return
    with tempfile.TemporaryDirectory() as folder:
        campaign = campaign_in(Path(folder), args.data, args.spacing)
        save_untrained_networks(campaign)
        with ray_session():
            ingest_step(campaign)
            cases = campaign.open_workspace().cases()
            began = time.perf_counter()
            summary = predict_cases(campaign, 0, cases)
            seconds = time.perf_counter() - began
    if summary.failed:
        raise SystemExit(f"failed: {summary.failed}")
    stages = summary.times.seconds
    rows = [(name, f"{value:.1f} s", f"{value / sum(stages.values()):.1%}") for name, value in stages.items()]
    about = ", ".join(f"{case.case_id} {'x'.join(map(str, case.shape))}" for case in cases)
    show_rows(
        "Where the stream's time goes",
        ("stage", "seconds of all workers", "share"),
        rows,
        note=f"{about} at {args.spacing:g} mm; {seconds:.0f} s in all, Ray's start of the actor included. The actor is in its "
        f"networks {summary.times.busy('networks'):.1%} of the time from its first window to its last; its peak memory is "
        f"{summary.actor_peak_mb / 1024:.2f} GiB, that of the tasks after it {summary.finish_peak_mb / 1024:.2f} GiB.",
    )


if __name__ == "__main__":
    main()
