"""What prediction says of the cases of a round, in columns: a hundred thousand cases are a few arrays, not a million objects.

Axes: N cases, K organs. A column of cases ends in _N, one of cases and organs in _NK; the rest of its name is the field of
`CaseScores` or `OrganScores` that it holds, so that a field added there needs one line here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from atlas_ray.records import CaseScores, OrganScores

Column = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
WORD = "U32"  # of an organ's column: a longer name would be cut off


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Columns over cases, and over cases and organs.

    Args:
        organs: names of the K organs.
        case_id_N: str.
        has_NK: whether the case was scored for the organ; where it was not, the other columns are 0.
    """

    organs: tuple[str, ...]
    case_id_N: npt.NDArray[np.str_]
    round_N: Integers
    attention_mode_N: npt.NDArray[np.str_]
    attention_voxels_N: Integers
    attention_mm3_N: Floats
    seconds_N: Floats
    has_NK: npt.NDArray[np.bool_]
    attention_voxels_NK: Integers
    attention_mm3_NK: Floats
    heat_sum_NK: Floats
    predicted_ml_NK: Floats
    components_NK: Integers
    entropy_NK: Floats
    mutual_information_NK: Floats
    error_NK: npt.NDArray[np.str_]

    @classmethod
    def of(cls, cases: Sequence[CaseScores]) -> "Scores":
        """Of records; the organs in the order in which they first appear."""
        organs = tuple(dict.fromkeys(organ.organ for case in cases for organ in case.organs))
        place = {name: k for k, name in enumerate(organs)}
        of_cases = {name: np.array([getattr(case, name) for case in cases], dtype) for name, dtype in CASE_COLUMNS.items()}
        shape = len(cases), len(organs)
        of_organs = {n: np.zeros(shape, WORD if dtype is np.str_ else dtype) for n, dtype in ORGAN_COLUMNS.items()}
        has_NK = np.zeros((len(cases), len(organs)), np.bool_)
        for n, case in enumerate(cases):
            for organ in case.organs:
                k = place[organ.organ]
                has_NK[n, k] = True
                for name, column_NK in of_organs.items():
                    column_NK[n, k] = getattr(organ, name)
        return cls.joined(organs, has_NK, of_cases, of_organs)

    @classmethod
    def joined(
        cls, organs: tuple[str, ...], has_NK: npt.NDArray[np.bool_], of_cases: dict[str, Column], of_organs: dict[str, Column]
    ) -> "Scores":
        """Of columns by the names of the records' fields."""
        named_N = {f"{name}_N": column for name, column in of_cases.items()}
        named_NK = {f"{name}_NK": column for name, column in of_organs.items()}
        return cls(organs=organs, has_NK=has_NK, **named_N, **named_NK)

    def __len__(self) -> int:
        return len(self.case_id_N)

    def take(self, rows: npt.ArrayLike) -> "Scores":
        """Some of the cases: a mask over them, or their places in any order."""
        places = np.asarray(rows)
        chosen = places if places.dtype == np.bool_ else places.astype(np.int64)
        columns = {f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name != "organs"}
        return Scores(organs=self.organs, **columns)

    def of_round(self) -> int:
        """The round; 0 where there is no case. Raises ValueError where cases of several rounds are mixed."""
        rounds = set(self.round_N.tolist())
        if len(rounds) > 1:
            raise ValueError(f"scores of rounds {sorted(rounds)} do not belong into one list")
        return int(rounds.pop()) if rounds else 0


def _dtypes(suffix: str, record: type[CaseScores] | type[OrganScores]) -> dict[str, Any]:
    """Fields of a record that have a column, with the column's type."""
    kinds = {int: np.int64, float: np.float64, str: np.str_}
    names = [f.name.removesuffix(suffix) for f in fields(Scores) if f.name.endswith(suffix)]
    return {name: kinds[record.model_fields[name].annotation] for name in names if name != "has"}  # type: ignore[index]


CASE_COLUMNS = _dtypes("_N", CaseScores)
ORGAN_COLUMNS = _dtypes("_NK", OrganScores)
