"""The base of every value that crosses a border (YAML, JSON, database, REST, MLflow)."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Schema(BaseModel):
    """Frozen pydantic model that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Millimeters = Annotated[float, Field(gt=0)]
Triple = tuple[float, float, float]  # one value per array axis X, Y, Z
IntTriple = tuple[int, int, int]
Fraction = Annotated[float, Field(ge=0, le=1)]
