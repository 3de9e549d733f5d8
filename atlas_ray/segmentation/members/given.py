"""What every kind of member is told in the campaign's YAML."""

from pathlib import Path

from pydantic import Field

from atlas_ray.exceptions import CheckpointError
from atlas_ray.schema import Schema
from atlas_ray.segmentation.members.labels import LabelOrgans
from atlas_ray.storage import is_url, kept_local, place


class GivenMember(Schema):
    """The keys that all kinds have.

    Args:
        name: in predictions, records and the app.
        path: of its file or folder, on disk or in a bucket; relative to `data_root`.
        sha256: what `identity` must be, to pin the weights; None takes whatever lies there.
        organs: label of the member -> organ of the campaign, where the names differ; several labels may be one organ, null takes a
            label away. By default a label is the organ of the same name. What is left out the member does not know.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    path: str
    sha256: str | None = None
    organs: LabelOrgans = Field(default_factory=dict)

    def located(self, data_root: str | None) -> Path:
        """Where it lies; from a bucket it is fetched once, and again when it has changed. Raises CheckpointError where nothing lies
        there in a bucket."""
        whole = is_url(self.path) or Path(self.path).expanduser().is_absolute()
        path = place(self.path if whole else f"{data_root or '.'}/{self.path}").expanduser()
        try:
            return kept_local(path, may_change=True)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.title}: nothing lies at {path}") from error

    @property
    def title(self) -> str:
        """For messages."""
        return f"member {self.name!r} ({self.path})"

    def require(self, identity: str) -> str:
        """The identity, if it is the one that was asked for. Raises CheckpointError."""
        if self.sha256 not in (None, identity):
            raise CheckpointError(f"{self.title} has sha256 {identity}; {self.sha256} is asked for")
        return identity
