"""Train the networks of a round: from scratch in round 0, fine-tuned on the annotations of earlier rounds after that.

python -m jobs.train CONFIG [--round N] [--set key=value] [--dry-run]
"""

from atlas_ray.cluster.session import ray_session
from atlas_ray.job import ConfigArgument, DryRunOption, RoundOption, SetOption, open_campaign, print_table, progress, run
from atlas_ray.lock import locked
from atlas_ray.steps.train import labeled_cases, train_step


def main(config: ConfigArgument, round_: RoundOption = 0, set_: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Train or fine-tune every architecture that has no checkpoint in this round yet."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    if dry_run:
        section = campaign.training if round_ == 0 else campaign.finetuning
        cases, where = len(labeled_cases(campaign, round_)), campaign.cluster
        rows = [(a.architecture, section.of(a.architecture).steps, cases, where.train_workers) for a in campaign.architectures]
        device = "GPU" if where.use_gpu else "CPU"
        print_table(f"would train round {round_} on {device}s", ("architecture", "steps", "cases", "workers"), rows)
        return
    with (
        locked(campaign.open_workspace(), "jobs.train"),
        ray_session(),
        progress(f"round {round_}", len(campaign.architectures)) as advance,
    ):
        paths = train_step(campaign, round_, progress=advance)
    print_table(f"round {round_}", ("checkpoint",), [(path,) for path in paths])


if __name__ == "__main__":
    run(main)
