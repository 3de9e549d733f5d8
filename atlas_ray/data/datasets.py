"""How a dataset lies on disk and what its labels mean: what one YAML file of configs/datasets/ says.

Everything is declared, so that a dataset is one file. For patterns see `patterns`; those of labels know `{case}`, `{part}`,
`{folder}` (the image's folder) and `{organ}`: with it there is one mask per organ. A pattern that ends in .png means one picture
per slice of a DICOM image.
"""

import difflib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from atlas_ray.data.labels import LabelMapFile, LabelSlices, OrganMasks, Pair
from atlas_ray.data.patterns import only_known
from atlas_ray.exceptions import ConfigError, DatasetError
from atlas_ray.organs import CONFIGS, Organs, load_organs
from atlas_ray.schema import Schema
from atlas_ray.strict_yaml import find_yaml, read_yaml

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Meaning = str | tuple[str, ...]  # an organ, a pair, "" for what is none of ours; of several the first the campaign has
LabelIds = str | dict[int, Meaning]  # or the name of an organ set, "campaign", or a dataset.json of nnU-Net
CAMPAIGN = "campaign"


class LabelRules(Schema):
    """What the ids or masks of label files mean.

    Args:
        ids: what a label map's ids mean: label id -> organ, pair, or several of which the first that the campaign has counts, so
            that a tumor is an organ of its own where it is asked for and a part of its organ where not; "" is none of ours. Or the
            name of an organ set, "campaign" for the campaign's own numbering, or the path of an nnU-Net dataset.json in the root.
            For masks, the organs that have one (default: labeled_organs, or the campaign's).
        mask_names: organ or pair -> what "{organ}" stands for in its file name, where that is not its name; several are its parts.
        organ_names: names in a dataset.json -> ours, where they differ; "" is none of ours.
        pairs: name -> left and right organ of one id or mask, told apart by side.
        unknown_ids: ids that may be a part of any organ; one that touches such a voxel is not labeled in that case.
        absent: what it means that an organ has no voxel: "labeled" that the case has none of it, "unknown" that nobody looked.
    """

    ids: LabelIds | None = None
    mask_names: dict[str, Meaning] = Field(default_factory=dict)
    organ_names: dict[str, str] = Field(default_factory=dict)
    pairs: dict[str, Pair] = Field(default_factory=dict)
    unknown_ids: tuple[int, ...] = ()
    absent: Literal["labeled", "unknown"] = "labeled"

    @field_validator("pairs")
    @classmethod
    def _are_no_organs(cls, value: dict[str, Pair]) -> dict[str, Pair]:
        for name, (left, right) in value.items():
            if left == right or name in (left, right):
                raise ValueError(f"pair {name!r} is [{left}, {right}]; a name of its own, then the left and the right organ")
        return value


class LabelFiles(LabelRules):
    """One label file of every case, where a dataset has several of them.

    Args:
        path: pattern, as `labels` of a dataset.
        source: "revised" by somebody since the dataset was published: goes before the original.
    """

    path: str
    source: Literal["original", "revised"] = "original"

    @field_validator("path")
    @classmethod
    def _known(cls, value: str) -> str:
        return _label_pattern(value)

    @model_validator(mode="after")
    def _mean_something(self) -> "LabelFiles":
        if "{organ}" not in self.path and self.ids is None:
            raise ValueError(f"labels {self.path!r} need `ids`: the name of an organ set, or label id -> organ")
        return self

    def meanings(self, name: str, root: Path, organs: Organs) -> dict[int, tuple[str, ...]]:
        """Label id -> what it may be. Raises DatasetError: an organ nobody knows, or a dataset.json that cannot be used."""
        ids = self.ids
        if ids is None or ids == CAMPAIGN:
            given: dict[int, Meaning] = {organ.label_id: organ.name for organ in organs}
        elif isinstance(ids, str) and ids.endswith(".json"):
            given = _ids_of_nnunet(name, root / ids, self.organ_names)
        elif isinstance(ids, str):
            given = {organ.label_id: organ.name for organ in load_organs(ids)}
        else:
            given = ids
        meanings = {label_id: (named,) if isinstance(named, str) else named for label_id, named in given.items()}
        meanings |= dict.fromkeys(self.unknown_ids, ("",))
        self._require_known(name, meanings, organs)
        return meanings

    def _require_known(self, name: str, meanings: dict[int, tuple[str, ...]], organs: Organs) -> None:
        known = {*known_organs(), *organs.names}
        if both := sorted(known & set(self.pairs)):
            raise DatasetError(f"{name}: pairs {both} are organs; a pair needs a name of its own")
        named = {n for several in meanings.values() for n in several} | set(self.mask_names)
        named |= {organ for sides in self.pairs.values() for organ in sides}
        if unknown := sorted(named - known - set(self.pairs) - {""}):
            near = difflib.get_close_matches(unknown[0], sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DatasetError(f'{name}: no organ set knows {unknown}; write "" for what is none of ours{hint}')

    def organs_of(self, meanings: dict[int, tuple[str, ...]]) -> set[str]:
        """Every organ its labels can name."""
        named = {n for several in meanings.values() for n in several} | set(self.mask_names)
        return {organ for n in named - {""} for organ in self.pairs.get(n, (n,))}

    def of_case(
        self, root: Path, pattern: str, meanings: dict[int, tuple[str, ...]], complete: set[str], organs: Organs, dataset: str
    ) -> LabelMapFile | LabelSlices | OrganMasks:
        """The label files of one case.

        Args:
            pattern: `path` with everything filled in but "{organ}".
            meanings: as `meanings` gives them.
            complete: organs the dataset labels completely.
        """
        ours = tuple(name for name in organs.names if name in self.organs_of(meanings) and name in complete)
        pairs = {name: sides for name, sides in self.pairs.items() if set(sides) & set(organs.names)}
        known = {*organs.names, *pairs}
        said = {"organs": ours, "pairs": pairs, "absent": self.absent, "source": self.source, "dataset": dataset, "name": pattern}
        if "{organ}" in pattern:
            named = {n for several in meanings.values() for n in several} | set(self.mask_names)
            masks = sorted(n for n in named if n in pairs or n in ours)
            masks = [n for n in masks if not any(n in pairs[other] for other in masks if other in pairs)]
            parts = {n: self.mask_names.get(n, n) for n in masks}
            paths = {
                n: tuple(str(root / pattern.replace("{organ}", p)) for p in ((part,) if isinstance(part, str) else part))
                for n, part in parts.items()
            }
            return OrganMasks(paths=paths, **said)
        ids = {label_id: next((n for n in several if n in known), "") for label_id, several in meanings.items()}
        if pattern.endswith(".png"):
            folder, _, files = pattern.rpartition("/")
            return LabelSlices(folder=str(root / folder), pattern=files, ids=ids, **said)
        return LabelMapFile(path=str(root / pattern), ids=ids, unknown_ids=self.unknown_ids, **said)


class DatasetFile(LabelRules):
    """One dataset.

    Args:
        name: the dataset's, as every case records it.
        title, url, citation, note: for people.
        license: as every case records it.
        images: pattern of NIfTI files or DICOM folders ("{case}/ct.nii.gz", "scans/{case}/dicom/").
        case_id: template of the case id from "{case}" and "{name}"; characters a case id cannot have become "-".
        labels: pattern of a label map per case, or with "{organ}" of one mask per organ; or several files, each with its own ids;
            None without labels. Of several, one that is not there means: its organs are not labeled in that case.
        labeled_organs: organs that are labeled completely wherever they are seen; None: all that the labels name.
    """

    name: Name
    title: str = ""
    url: str = ""
    license: str = "unspecified"
    citation: str = ""
    note: str = ""
    images: str
    case_id: str = "{case}"
    labels: str | tuple[LabelFiles, ...] | None = None
    labeled_organs: tuple[str, ...] | None = None

    @field_validator("images")
    @classmethod
    def _names_the_case(cls, value: str) -> str:
        if ("**" in value or "{part" in value) and "{case" not in value:
            raise ValueError(f"{value!r}: with ** or {{part}} say by {{case}} which part names the case")
        return only_known(value, "case", "part")

    @field_validator("case_id")
    @classmethod
    def _known_in_id(cls, value: str) -> str:
        return only_known(value, "case", "name")

    @field_validator("labels")
    @classmethod
    def _known_in_labels(cls, value: str | tuple[LabelFiles, ...] | None) -> str | tuple[LabelFiles, ...] | None:
        return _label_pattern(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _labels_have_a_meaning(self) -> "DatasetFile":
        if isinstance(self.labels, str) and "{organ}" not in self.labels and self.ids is None:
            raise ValueError(f"labels {self.labels!r} need `ids`: the name of an organ set, or label id -> organ")
        if not self.labels and (self.labeled_organs or self.ids is not None):
            raise ValueError("`ids` and `labeled_organs` need `labels`: where the label files lie")
        given = (
            sorted(set(LabelRules.model_fields) & self.model_fields_set - {"absent"}) if not isinstance(self.labels, str) else []
        )
        if self.labels and (given := [key for key in given if getattr(self, key)]):
            raise ValueError(f"of several label files each has its own {', '.join(given)}; write it there")
        return self

    @property
    def label_files(self) -> tuple[LabelFiles, ...]:
        """Every label file of a case, the last one going before the others."""
        if isinstance(self.labels, str):
            rules = {key: getattr(self, key) for key in LabelRules.model_fields}
            if "{organ}" in self.labels and self.ids is None and self.labeled_organs:
                rules["ids"] = dict(enumerate(self.labeled_organs, 1))
            return (LabelFiles(path=self.labels, **rules),)
        return self.labels or ()


def load_dataset(name_or_path: str | Path) -> DatasetFile:
    """Read a dataset's description: the name of a file in configs/datasets, or a path to a YAML file.

    Raises:
        ConfigError: no such file, or a file that does not describe a dataset.
    """
    path = find_yaml(name_or_path, CONFIGS / "datasets", "dataset")
    try:
        return DatasetFile.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path} does not describe a dataset: {first_of(error)}") from error


def known_organs() -> set[str]:
    """Every organ name in configs/organs/."""
    return {name for path in (CONFIGS / "organs").glob("*.yaml") for name in load_organs(path).names}


def first_of(error: ValidationError) -> str:
    detail = error.errors()[0]
    where = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _label_pattern(value: str) -> str:
    only_known(value, "case", "part", "folder", "organ")
    if value.endswith(".png") and "{organ}" in value:
        raise ValueError(f"{value!r}: pictures of slices hold ids; masks per organ are NIfTI files")
    return value


def _ids_of_nnunet(name: str, path: Path, organ_names: dict[str, str]) -> dict[int, Meaning]:
    """What an nnU-Net dataset.json says its ids are. Raises DatasetError."""
    try:
        labels = json.loads(path.read_text())["labels"]
        regions = [theirs for theirs, value in labels.items() if isinstance(value, list)]
        if regions:
            raise DatasetError(f"{name}: {path} has regions ({', '.join(regions)}); say by `ids` what each label id is")
        return {int(value): organ_names.get(theirs, theirs) for theirs, value in labels.items() if int(value)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{name}: {path} is no nnU-Net dataset.json with `labels`: {error}") from error
