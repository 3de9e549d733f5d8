"""The arms of a simulated study: the same campaign once per strategy, annotator and seed, and once with every label.

An arm has a workspace of its own inside the campaign's. What round 0 made (cases, labels, training cache, networks, predictions) is
the campaign's, reached by links, and never written by an arm: names of round 0 are only read, and the cache goes by content.
"""

from pathlib import Path

from atlas_ray.annotation.oracle import OracleAnnotator
from atlas_ray.config import Campaign, Simulation
from atlas_ray.exceptions import ConfigError
from atlas_ray.prioritization.effort import Effort
from atlas_ray.prioritization.strategies import ForegroundAwareRandom, Strategy, seeded
from atlas_ray.schema import Schema
from atlas_ray.storage import write_atomically

FULL_LABEL = "full_label"


class Arm(Schema):
    """One play of the campaign.

    Args:
        minutes: of each round; None is without end: everything is labeled in the first round.
    """

    strategy_name: str
    annotator_name: str
    seed: int
    strategy: Strategy
    annotator: OracleAnnotator
    minutes: float | None

    @property
    def name(self) -> str:
        return "-".join((self.strategy_name, self.annotator_name, f"s{self.seed}"))


def arms_of(study: Simulation) -> list[Arm]:
    """Every arm; the reference first, because nothing can be said without it."""
    perfect = OracleAnnotator(scope="case", minutes_per_case=0)
    full = [
        Arm(
            strategy_name=FULL_LABEL,
            annotator_name="all",
            seed=seed,
            strategy=ForegroundAwareRandom(),
            annotator=perfect,
            minutes=None,
        )
        for seed in study.seeds
    ]
    return full + [
        Arm(
            strategy_name=strategy_name,
            annotator_name=annotator_name,
            seed=seed,
            strategy=seeded(strategy, seed),
            annotator=annotator.model_copy(update={"seed": seed}),
            minutes=study.minutes,
        )
        for annotator_name, annotator in study.annotators.items()
        for strategy_name, strategy in study.strategies.items()
        for seed in study.seeds
    ]


def study_of(campaign: Campaign) -> Simulation:
    """Raises ConfigError where the campaign has none."""
    if campaign.simulation is None:
        raise ConfigError(f"campaign {campaign.name} has no section `simulation`: strategies, annotators, minutes")
    return campaign.simulation


def arm_campaign(campaign: Campaign, arm: Arm) -> Campaign:
    """The campaign as this arm plays it: every case that has an organ to revise is listed, and the minutes cut the list."""
    full = arm.minutes is None
    annotation = campaign.annotation.model_copy(update={"annotator": arm.annotator, "database": None})
    if full:
        annotation = annotation.model_copy(update={"level": "case"})
    return campaign.model_copy(
        update={
            "name": f"{campaign.name}-{arm.name}",
            "workspace": str(campaign.open_workspace().arm(arm.name)),
            "strategy": arm.strategy,
            "effort": Effort(**{**campaign.effort.model_dump(), "rule": "share", "budget_share": 1.0, "max_cases": None}),
            "annotation": annotation,
            "finetuning": campaign.finetuning.model_copy(update={"seed": arm.seed + 1}),
            "cluster": campaign.cluster.model_copy(update={"cpus_per_worker": 1, "cpus_per_actor": 1}),
        }
    )


def link_round_0(campaign: Campaign, arm: Campaign) -> None:
    """Lay the arm's workspace over what the campaign's round 0 has made. Doing it again changes nothing."""
    ours, theirs = campaign.open_workspace(), arm.open_workspace()
    pairs = [(theirs.root / name, ours.root / name) for name in ("labels", "truth", "cache", "synthetic")]
    pairs.append((theirs.checkpoint(0, "any").parent, ours.checkpoint(0, "any").parent))
    pairs.append((theirs.round(0) / "predictions", ours.round(0) / "predictions"))
    for link, target in pairs:
        _link(link, target)
    if not theirs.manifest.exists():
        write_atomically(theirs.manifest, ours.manifest.read_bytes())


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(target, target_is_directory=True)
