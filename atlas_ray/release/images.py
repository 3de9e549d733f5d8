"""The CT of a release: a link to where it lies, or a copy without the text of its header."""

from pathlib import Path
from typing import Literal

from atlas_ray.records import Case
from atlas_ray.storage import hidden, is_url
from atlas_ray.volume import read_volume, without_text, write_volume

Images = Literal["link", "copy", "none"]


def place_image(case: Case, target: Path, images: Literal["link", "copy"]) -> None:
    """Put a case's CT at `target`, a .nii.gz, in one step in place of what may be there.

    What is no .nii.gz (a DICOM series, a plain .nii), or lies in a bucket, cannot be linked and is written. A link carries the
    header of the source as it is.

    Raises:
        CaseError: the image cannot be read.
    """
    on_disk = isinstance(target, Path) and not is_url(case.image)
    if images == "link" and on_disk and case.image.endswith(".nii.gz"):
        target.parent.mkdir(parents=True, exist_ok=True)
        link = hidden(target)
        link.symlink_to(case.image)
        link.replace(target)
    else:
        write_volume(target, without_text(read_volume(case.image, series_uid=case.series_uid)))
