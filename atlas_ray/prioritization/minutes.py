"""How long an organ takes, learned from the times people (or the oracle) logged."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat, PositiveFloat

from atlas_ray.schema import Schema


class TimedOrgan(Schema):
    """One organ of one case that somebody has worked on, what was known of it before, and how long it took."""

    components: int
    attention_ml: float
    minutes: float


class MinutesModel(Schema):
    """Minutes of an organ = per_organ + per_component * its components + per_ml * its attention in ml; a case adds per_case once.

    The defaults are guesses that stand until times are logged; `learned` moves them toward what was measured.

    Args:
        weight: how many measured organs the given numbers count as.
    """

    per_case: NonNegativeFloat = 1.0
    per_organ: PositiveFloat = 1.0
    per_component: NonNegativeFloat = 0.5
    per_ml: NonNegativeFloat = 0.2
    weight: PositiveFloat = 5.0

    def organ_minutes(
        self, components_NK: npt.NDArray[np.int64], attention_mm3_NK: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """[N, K], of every organ of every case."""
        return np.asarray(self.per_organ + self.per_component * components_NK + self.per_ml * attention_mm3_NK / 1000)

    def learned(self, organs: Sequence[TimedOrgan], case_minutes: Sequence[float] = ()) -> "MinutesModel":
        """This model after what was logged: least squares without negative rates (Lawson and Hanson 1974), drawn toward the
        present rates as if `weight` organs had said so.

        Args:
            case_minutes: per case, what was spent on no organ in particular.
        """
        from scipy.optimize import nnls

        found = {}
        if organs:
            rates = np.array([self.per_organ, self.per_component, self.per_ml])
            rows = np.array([[1.0, organ.components, organ.attention_ml] for organ in organs])
            typical = np.maximum(np.sqrt(np.mean(rows**2, axis=0)), 1e-6)  # each rate is held in the unit it is felt in
            pull = np.sqrt(self.weight) * np.diag(typical)
            wanted = np.concatenate([[organ.minutes for organ in organs], pull @ rates])
            solved, _ = nnls(np.vstack([rows, pull]), wanted)
            found = {"per_organ": max(float(solved[0]), 1e-3), "per_component": float(solved[1]), "per_ml": float(solved[2])}
        if case_minutes:
            total = self.weight * self.per_case + sum(case_minutes)
            found["per_case"] = total / (self.weight + len(case_minutes))
        return self.model_copy(update=found)
