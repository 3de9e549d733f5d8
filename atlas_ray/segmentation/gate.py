"""Whether fine-tuned weights may take the place of those they come from."""

from collections.abc import Sequence

from atlas_ray.records import OrganDice
from atlas_ray.schema import Fraction, Schema


class Judgment(Schema):
    """What the gate says of one architecture.

    Args:
        worst_organ, worst_drop: the organ whose Dice fell most, and by how much (negative where even it rose).
    """

    promoted: bool
    reason: str
    worst_organ: str | None = None
    worst_drop: float | None = None


class Gate(Schema):
    """The promotion gate: fine-tuning on a few cases may forget what they do not show.

    Args:
        max_drop: largest fall of the Dice of any organ on the holdout.
    """

    max_drop: Fraction = 0.02

    def judge(self, before: Sequence[OrganDice], after: Sequence[OrganDice]) -> Judgment:
        """Compare two networks organ by organ, on the same cases. Organs without a reference say nothing."""
        now = {row.organ: row.dice for row in after}
        drops = {row.organ: row.dice - dice for row in before if row.dice is not None and (dice := now.get(row.organ)) is not None}
        if not drops:
            return Judgment(promoted=True, reason="promoted: no organ has a reference on the holdout")
        worst = max(drops, key=lambda organ: drops[organ])
        drop = drops[worst]
        was, is_ = (next(row.dice for row in rows if row.organ == worst) for rows in (before, after))
        change = f"{worst} went from {was:.3f} to {is_:.3f}"
        promoted = drop <= self.max_drop
        verdict = "promoted: of all organs" if promoted else f"refused, {self.max_drop:g} is allowed: of all organs"
        return Judgment(promoted=promoted, reason=f"{verdict} {change} at worst", worst_organ=worst, worst_drop=drop)
