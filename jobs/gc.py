"""Remove what old rounds no longer need: heat, attention, each architecture's labels, training states, unused cache, leftovers.

python -m jobs.gc CONFIG [--set key=value] [--dry-run]
"""

from collections import defaultdict

from atlas_ray.garbage import collect, find_garbage
from atlas_ray.job import ConfigArgument, DryRunOption, SetOption, open_campaign, out, print_table, run
from atlas_ray.lock import locked

KEPT = (
    "kept: images, labels, annotations, the database, every network; of every prediction pseudo-label, components, scores; "
    "the newest queued round whole, and every round that is not merged"
)


def main(config: ConfigArgument, set_: SetOption = None, dry_run: DryRunOption = False) -> None:
    """Free disk. What is removed can be made again by predicting or training that round again, and by nothing else."""
    campaign = open_campaign(config, set_, dry_run=True)
    if dry_run:
        found = find_garbage(campaign)
    else:
        with locked(campaign.open_workspace(), "jobs.gc"):
            found = find_garbage(campaign)
            collect(campaign, found)
    sizes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for item in found:
        sizes["-" if item.round is None else str(item.round), item.kind].append(item.bytes)
    rows = [(*key, len(one), f"{sum(one) / 1e6:.1f}") for key, one in sorted(sizes.items())]
    total = sum(item.bytes for item in found) / 1e6
    print_table(f"{'would free' if dry_run else 'freed'} {total:.1f} MB", ("round", "what", "files or folders", "MB"), rows)
    out.print(KEPT, markup=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
