"""What the steps hand to each other on disk: small frozen records, no arrays."""

from typing import Literal

from pydantic import Field

from atlas_ray.schema import Fraction, IntTriple, Schema, Triple

Split = Literal["train", "pool", "holdout"]
LabelSource = Literal["original", "revised", "confirmed", "pseudo"]
RevisionKind = Literal["edit", "undo", "redo", "revert"]


class OrganOrigin(Schema):
    """Where a case's label of one organ comes from.

    Args:
        dataset: whose label it is.
        file: its file, relative to the dataset's root.
        source: "original" as the dataset has it, or "revised" by somebody since.
        rule: what was done to it besides renumbering; "" for nothing.
    """

    dataset: str
    file: str
    source: LabelSource = "original"
    rule: str = ""


class Case(Schema):
    """One CT study and all that is known about it before a network has seen it.

    Args:
        case_id: unique in the campaign, safe as a folder name.
        image: absolute path of the NIfTI file or DICOM folder, where it lies; never copied.
        series_uid: the DICOM series meant, where `image` is a folder.
        sha256: of the image file (of the sorted slices' bytes for DICOM).
        shape, spacing, orientation: of the image's own grid; spacing in mm, array-axis order.
        source, license: the dataset it came from.
        split: "train" has labels, "pool" waits for pseudo-labels, "holdout" is never queried and never trained on.
        labeled_organs: organs this case has ground truth for; for any other organ nothing is known.
        origins: where each of these comes from.
        not_labeled: organs that the dataset labels, but not for certain in this case, and why.
        truth: path of a reference label map only the oracle annotator and the evaluation may open; None outside simulation.
        label_sha256, truth_sha256: of the files that ingest wrote; None where there is none, or an earlier version wrote it.
    """

    case_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    image: str
    series_uid: str | None = None
    sha256: str
    shape: IntTriple
    spacing: Triple
    orientation: str
    source: str
    license: str
    split: Split
    labeled_organs: tuple[str, ...] = ()
    origins: dict[str, OrganOrigin] = Field(default_factory=dict)
    not_labeled: dict[str, str] = Field(default_factory=dict)
    truth: str | None = None
    label_sha256: str | None = None
    truth_sha256: str | None = None

    @property
    def voxel_volume_mm3(self) -> float:
        return self.spacing[0] * self.spacing[1] * self.spacing[2]


class Quarantined(Schema):
    """A case that was set aside, by which step and why.

    Args:
        key: of the result that could not be made (CaseScores.key); another image or other weights deserve another try.
    """

    case_id: str
    step: str
    reason: str
    path: str = ""
    key: str = ""


class RoundState(Schema):
    """How far a round is: step -> when it was last started, and when it finished (ISO 8601, UTC).

    Args:
        abandoned: when somebody decided that the round does not go on; None where it does.
    """

    started: dict[str, str] = Field(default_factory=dict)
    finished: dict[str, str] = Field(default_factory=dict)
    abandoned: str | None = None


class AttentionComponent(Schema):
    """One connected region of an organ's attention map: a place where an error is likely.

    Args:
        organ: whose attention it is.
        index: 1 for the highest score in its case.
        box: start and stop voxel per axis in the image's own grid, stop excluded.
        peak: the voxel of the highest heat, in the image's own grid.
        voxels, volume_mm3: its size.
        reason: the criterion that fired on most of its voxels.
        criteria: every criterion that fired in it.
        score: what it is sorted by: its summed heat in mm3 (mean heat x volume).
        mean_heat: before any normalization; 0..1 in physical mode, up to 1.84 in faithful mode (a sum of three criteria).
        error: type of the error it points at, a guess (prioritization/error_types.py); "" where a version before them wrote it.
    """

    organ: str
    index: int
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    peak: IntTriple
    voxels: int
    volume_mm3: float
    reason: str
    criteria: tuple[str, ...]
    score: float
    mean_heat: float
    error: str = ""


class OrganScores(Schema):
    """Attention of one organ of one case.

    Args:
        error: type of the error its largest component (by score) points at; "" where it has none.
    """

    organ: str
    attention_voxels: int
    attention_mm3: float
    heat_sum: float  # the paper's CSV sorts a case's organs by the sum of the stored uint8 heat
    predicted_ml: float
    components: int
    entropy: float = 0.0  # mean predictive entropy (nats) over the organ's predicted voxels and its attention
    mutual_information: float = 0.0  # of prediction and architecture (nats), over the same voxels
    error: str = ""


class CaseScores(Schema):
    """What prediction says of one case; written last, so its presence means the case is predicted.

    Args:
        checkpoints: architecture or member -> sha256 of the weights that made it.
        absent: member -> organs that it does not know; their label is the others' alone.
        attention_voxels: voxels with attention, counted once per organ (the paper's attention size).
        attention_mm3: the same in mm3.
        criteria: the attention's criteria in bit order; none where a version before them wrote it.
        key: of all it was made from: image, weights, parameters, code; "" where a version before keys wrote it.
        bytes: what the prediction's other files take.
    """

    case_id: str
    round: int
    checkpoints: dict[str, str]
    attention_mode: str
    attention_voxels: int
    attention_mm3: float
    criteria: tuple[str, ...] = ()
    absent: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    organs: tuple[OrganScores, ...]
    seconds: float
    peak_memory_mb: float = 0.0
    key: str = ""
    bytes: int = 0


class Revision(Schema):
    """One saved edit of one organ of one case: an entry of the append-only store.

    Args:
        reading: 1, or 2 where a second person annotates the same case without seeing the first.
        revision_id: grows by one per (case, reading, organ) within a round; 0 is the label before any edit.
        parent_id: the revision it was made on.
        voxels: how many voxels it changed.
        seconds: active annotation time since the parent.
        name: what the step is called: "brush", "take from nnunet".
        kind: an undo or redo is a step like any other, so that nothing ever leaves the history.
        component: the attention component that was looked at.
    """

    round: int
    case_id: str
    reading: int = 1
    organ: str
    revision_id: int
    parent_id: int
    user: str
    created: str  # ISO 8601, UTC
    voxels: int
    seconds: float
    name: str = ""
    kind: RevisionKind = "edit"
    component: int | None = None


class OrganDice(Schema):
    """Dice of one organ over the holdout; None where no case has it. Surface Dice is of the ensemble only, None elsewhere."""

    organ: str
    dice: float | None
    cases: int
    surface_dice: float | None = None


class RoundRecord(Schema):
    """One line of the campaign's story."""

    round: int
    dice: dict[str, float] = Field(default_factory=dict)
    mean_dice: float | None = None
    dice_by_architecture: dict[str, float] = Field(default_factory=dict)
    mean_attention_mm3: float | None = None
    mean_attention_voxels: float | None = None
    cases_revised: int = 0
    organs_revised: int = 0
    voxels_revised: int = 0
    minutes: float = 0.0
    queried_share: Fraction | None = None
