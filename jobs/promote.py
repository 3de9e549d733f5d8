"""The promotion gate: measure the networks that were fine-tuned for a round, and go on with the old ones where an organ got worse.

python -m jobs.promote CONFIG --round N [--set key=value] [--dry-run]
"""

from atlas_ray.cluster.session import ray_session
from atlas_ray.exceptions import ConfigError
from atlas_ray.job import ConfigArgument, DryRunOption, RoundOption, SetOption, open_campaign, print_table, run
from atlas_ray.lock import locked
from atlas_ray.steps.promote import promote_step


def main(config: ConfigArgument, round_: RoundOption = 1, set_: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Promote the fine-tuned networks of a round, or put them aside."""
    campaign = open_campaign(config, set_, dry_run=dry_run)
    if round_ < 1:
        raise ConfigError("round 0 is trained from scratch and replaces nothing; --round 1 is the first with a gate")
    workspace = campaign.open_workspace()
    if dry_run:
        drop = "gate off" if campaign.gate is None else f"{campaign.gate.max_drop:g} of Dice"
        rows = [(name, workspace.checkpoint(round_, name).exists(), drop) for name in campaign.architecture_names]
        print_table(f"would judge round {round_} on the holdout", ("architecture", "is fine-tuned", "largest drop"), rows)
        return
    with locked(workspace, "jobs.promote"), ray_session():
        promotions = promote_step(campaign, round_)
    rows = [(one.architecture, one.champion_round, one.judgment.reason) for one in promotions.architectures]
    print_table(f"round {round_}", ("architecture", "goes on with the network of round", "why"), rows)


if __name__ == "__main__":
    run(main)
