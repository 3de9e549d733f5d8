"""Release the campaign's current truth as a dataset, in the layout of AbdomenAtlas, of nnU-Net, or as DICOM SEG.

python -m jobs.export CONFIG [--layout NAME] [--deidentify] [--round N] [--out FOLDER] [--set key=value] [--dry-run]
"""

from pathlib import Path
from typing import Annotated

import typer

from atlas_ray.cluster.session import ray_session
from atlas_ray.job import ConfigArgument, DryRunOption, SetOption, open_campaign, print_table, progress, run
from atlas_ray.release.deidentify import load_pseudonyms
from atlas_ray.release.export import release
from atlas_ray.release.layouts import LAYOUTS, choose_layout
from atlas_ray.release.plan import plan_release
from atlas_ray.workspace import Workspace

LayoutOption = Annotated[str, typer.Option("--layout", help=f"One of {', '.join(LAYOUTS)}.")]
ImagesOption = Annotated[
    str | None, typer.Option("--images", help="link, copy (without the text of their headers) or none; link where none is said.")
]
DeidentifyOption = Annotated[
    bool, typer.Option("--deidentify", help="Pseudonyms for case ids and, in DICOM, for patients and UIDs; dates and names go.")
]
KnownRoundOption = Annotated[
    int | None, typer.Option("--round", min=0, help="What is known from rounds 0 to this one; default: the newest there is.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="Where the release goes; without it, the round's folder.")
]


def main(
    config: ConfigArgument,
    layout: LayoutOption = LAYOUTS[0],
    images: ImagesOption = None,
    deidentify: DeidentifyOption = False,
    round_: KnownRoundOption = None,
    out: OutOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write labels and tables of every case but the holdout, as known after a round."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    pseudonyms = load_pseudonyms(campaign.open_workspace().pseudonym_key, keep=not dry_run) if deidentify else None
    chosen = choose_layout(layout, images, pseudonyms)
    known = newest_known_round(campaign.open_workspace()) if round_ is None else round_
    organs = campaign.load_organs()
    planned, unknown = plan_release(campaign, known, pseudonyms)
    left_out = [(p.case.case_id, why) for p in planned if (why := chosen.refusal(p, organs))]
    left_out += [(c.case_id, "nothing is known of it yet") for c in unknown]
    planned = [p for p in planned if not chosen.refusal(p, organs)]
    folder = (out or campaign.open_workspace().release(known, layout)).absolute()
    if dry_run:
        print_table(f"would release to {folder}", ("case", "from", "round"), [(p.case.case_id, p.basis, p.round) for p in planned])
        print_table("would leave out", ("case", "reason"), left_out)
        return
    with ray_session(), progress("export", len(planned)) as advance:
        report = release(campaign, planned, folder, layout=chosen, progress=advance)
    left_out += [(q.case_id, q.reason) for q in report.failed]
    print_table(f"{len(report.cases)} cases in {folder}, {report.skipped} unchanged", ("left out", "reason"), left_out)


def newest_known_round(workspace: Workspace) -> int:
    """The last one that something was written of and that was not given up; 0 before the first."""
    return max((r for r in workspace.rounds() if not workspace.round_state(r).abandoned), default=0)


if __name__ == "__main__":
    run(main)
