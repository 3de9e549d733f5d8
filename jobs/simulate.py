"""A whole campaign with the oracle annotator: rounds until the stop rule is met, or a study that compares query strategies.

python -m jobs.simulate CONFIG [--rounds N] [--set key=value] [--dry-run]

With a section `simulation` the campaign is played once per strategy, annotator and seed, all from the same round 0 and for the same
minutes, and once with every label; the report is simulation.html in the workspace. Started again it goes on where it was.
"""

from typing import Annotated

import typer

from atlas_ray.cluster.session import ray_cpus, ray_session
from atlas_ray.config import Campaign
from atlas_ray.job import ConfigArgument, DryRunOption, SetOption, open_campaign, out, print_table, progress, run
from atlas_ray.report import round_rows
from atlas_ray.rounds import simulate
from atlas_ray.simulation.arms import arms_of
from atlas_ray.simulation.modes import compare_modes
from atlas_ray.simulation.play import play
from atlas_ray.simulation.report import write_report

RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="Most rounds to run; a study's are in its configuration.")]


def main(config: ConfigArgument, rounds: RoundsOption = 3, set_: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Play a campaign with known ground truth in place of the annotator, and print its story."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    if dry_run:
        _plan(campaign, rounds)
        return
    with ray_session():
        if campaign.simulation is not None:
            _study(campaign)
            return
        results = simulate(campaign, rounds, bar=progress)
    columns, rows = round_rows(campaign, results)
    print_table("campaign (Dice on the holdout)", columns, rows)
    if results[-1].stop:
        out.print(results[-1].stop.reason)


def _study(campaign: Campaign) -> None:
    curves = play(campaign, cpus=ray_cpus(), bar=progress)
    result = write_report(campaign, curves, compare_modes(campaign, bar=progress))
    for annotator, found in result.annotators.items():
        rows = [
            (name, f"{s.minutes:.1f}", s.final["networks"].value, s.final["labels"].value, f"{s.cases:.1%}", f"{s.voxels:.2%}")
            for name, s in found.standings.items()
        ]
        columns = ("strategy", "minutes", "Dice of networks", "Dice of labels", "cases looked at", "voxels by hand")
        print_table(f"annotator {annotator}; every case labeled: {result.full_label['networks']:.3f}", columns, rows)
    rows = [(m.mode, m.sensitivity.text, m.precision.text) for m in result.modes]
    print_table("attention on the holdout", ("mode", "sensitivity", "precision"), rows)
    out.print(f"report: {campaign.open_workspace().simulation_report}", highlight=False)


def _plan(campaign: Campaign, rounds: int) -> None:
    workspace = campaign.open_workspace()
    if campaign.simulation is None:
        rows = [(str(r), ", ".join(workspace.finished_steps(r)) or "to do") for r in range(rounds)]
        print_table(f"would simulate in {campaign.workspace}", ("round", "finished steps"), rows)
        return
    points = range(campaign.simulation.rounds + 1)
    arms = [
        (a.name, f"{sum((workspace.arm(a.name) / 'rounds' / f'{p:03d}' / 'point.json').exists() for p in points)} of {len(points)}")
        for a in arms_of(campaign.simulation)
    ]
    print_table(f"would simulate in {campaign.workspace}", ("arm", "points reached"), arms)


if __name__ == "__main__":
    run(main)
