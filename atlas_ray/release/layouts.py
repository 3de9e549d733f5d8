"""The layouts a release can have."""

from typing import Annotated, get_args

from pydantic import Field, TypeAdapter, ValidationError

from atlas_ray.exceptions import ConfigError
from atlas_ray.release.abdomenatlas import AbdomenAtlas
from atlas_ray.release.deidentify import Pseudonyms
from atlas_ray.release.dicom_seg import DicomSeg
from atlas_ray.release.nnunet import NNUNetRaw

Layout = Annotated[AbdomenAtlas | NNUNetRaw | DicomSeg, Field(discriminator="layout")]
LAYOUTS = tuple(kind.model_fields["layout"].default for kind in get_args(get_args(Layout)[0]))


def choose_layout(name: str, images: str | None = None, pseudonyms: Pseudonyms | None = None) -> Layout:
    """The layout of that name, with its own default for images unless told otherwise.

    Raises:
        ConfigError: no such layout, one that has no such images, or links where there are pseudonyms: a link says where it points.
            Names what is allowed.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"no layout {name!r}; allowed are {', '.join(LAYOUTS)}")
    fields = {"layout": name} | ({} if images is None else {"images": images})
    try:
        made: Layout = TypeAdapter(Layout).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        why = "it holds no images" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigError(f"layout {name} with images {images!r}: {why}") from error
    if pseudonyms is None:
        return made
    if isinstance(made, DicomSeg):
        return made.model_copy(update={"pseudonyms": pseudonyms})
    if made.images == "link":
        raise ConfigError(f"layout {name}: a link to an image names its source; de-identify with --images copy, or none")
    return made
