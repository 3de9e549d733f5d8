"""Everything atlas_ray raises on purpose.

    AtlasError                  exit 1
    ├── ConfigError             exit 2   a key, value or file of the configuration
    ├── DatasetError                     a whole source dataset (missing folder, empty, unknown layout)
    ├── CaseError(case_id)               one case; never ends a stream, becomes a quarantine row
    │   ├── GeometryError                affine, spacing, orientation, grid
    │   └── LabelError                   label ids, organs, masks
    ├── CheckpointError                  weights that do not fit or do not load
    ├── RevisionError                    an edit that cannot be applied
    │   └── RevisionConflict             the organ has moved on since        (annotation/revisions.py)
    ├── AccountError                     a user or token that cannot be as asked  (annotation/accounts.py)
    ├── QueueError                       no such work item                   (annotation/queue.py)
    │   └── LeaseError                   somebody else holds it
    └── WorkspaceError                   a file of the workspace is missing, locked or altered

A message says what was found, where, and what is allowed.
"""


class AtlasError(Exception):
    """Root of the tree; a job that ends with one prints its message and exits with `exit_code`."""

    exit_code = 1


class ConfigError(AtlasError):
    """The configuration cannot be used as written."""

    exit_code = 2


class DatasetError(AtlasError):
    """A source dataset cannot be read as described."""


class CaseError(AtlasError):
    """One case cannot be used; carries the case's id so that the stream can go on without it."""

    def __init__(self, message: str, *, case_id: str = "") -> None:
        super().__init__(message)
        self.case_id = case_id

    def __str__(self) -> str:
        message = super().__str__()
        return f"case {self.case_id}: {message}" if self.case_id else message


class GeometryError(CaseError):
    """The grid of an image or label is missing, contradictory or different from what it must match."""


class LabelError(CaseError):
    """A label holds ids or organs that its dataset does not declare."""


class CheckpointError(AtlasError):
    """A checkpoint does not load, or does not fit the architecture it is loaded into."""


class RevisionError(AtlasError):
    """An annotator's edit cannot be applied: out of range, stale or malformed."""


class WorkspaceError(AtlasError):
    """A file of the workspace is missing, locked or not what it should be."""
