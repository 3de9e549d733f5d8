"""What the paper reports, beside which our numbers stand. The numbers are in configs/evaluation/paper.yaml: code names no organ."""

from functools import cache

from pydantic import Field

from atlas_ray.organs import CONFIGS
from atlas_ray.schema import Schema
from atlas_ray.strict_yaml import read_yaml


class DetectionFigures(Schema):
    """Table 1, by organ; `mean` as printed."""

    sensitivity: dict[str, float]
    precision: dict[str, float]
    mean_sensitivity: float
    mean_precision: float


class FalsePositiveFigures(Schema):
    """Section 4: kidney tumors on tumor-free CT."""

    cases: int
    cases_with_any: int
    components: int


class PaperFigures(Schema):
    """Numbers of the paper that the reports repeat."""

    citation: str
    attention: DetectionFigures
    false_positives: FalsePositiveFigures
    revised_share: float = Field(ge=0, le=1)


@cache
def paper_figures() -> PaperFigures:
    """Read configs/evaluation/paper.yaml."""
    return PaperFigures.model_validate(read_yaml(CONFIGS / "evaluation" / "paper.yaml"))
