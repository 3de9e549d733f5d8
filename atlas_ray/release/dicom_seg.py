"""DICOM SEG: one segmentation object per case, beside the series it belongs to.

    segmentations/<case>.dcm    a binary segment per known organ, in channel order

Only cases that come as DICOM have one. Of the source it carries what ties it to its study and grid: the patient id, the UIDs of
study, series, frame of reference and slices, and the geometry. Other attributes of patient and study are empty where the standard
asks for them and absent elsewhere. `pseudonyms` replaces the patient id and the UIDs, too.
"""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from atlas_ray import __version__
from atlas_ray.exceptions import CaseError, GeometryError
from atlas_ray.organs import Code, Organ, Organs
from atlas_ray.records import LabelSource
from atlas_ray.release.deidentify import TYPE_2, Pseudonyms, apply_basic_profile
from atlas_ray.release.plan import Planned
from atlas_ray.schema import Schema
from atlas_ray.storage import place, write_atomically
from atlas_ray.volume import Affine, Volume, corner_distance_mm, dicom_grid

NEEDED = (  # of every slice
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
)
TAKEN = ("PatientID", "SpecificCharacterSet", "SliceThickness", "SpacingBetweenSlices")  # where it is there; nothing else is read
CATEGORY = {
    "anatomical_structure": ("123037004", "Anatomical Structure"),
    "morphologically_altered_structure": ("49755003", "Morphologically Abnormal Structure"),
}
SIDE = {"left": ("7771000", "Left"), "right": ("24028007", "Right")}
# How the source made its original label is not known here; DICOM has no word for that, and a person stands behind it.
ALGORITHM: dict[LabelSource, str] = {
    "original": "MANUAL",
    "revised": "SEMIAUTOMATIC",
    "confirmed": "SEMIAUTOMATIC",
    "pseudo": "AUTOMATIC",
}
SERIES_NUMBER = 900  # beyond what scanners count to
OFF_GRID_MM = 0.1  # label files hold float32, headers round to 0.01 mm


class DicomSeg(Schema):
    """Segmentation objects for cases that come as DICOM series.

    Args:
        pseudonyms: in place of the patient id and the UIDs. None keeps them: an archive shows a segmentation with its series only
            where both have the same ones.
    """

    layout: Literal["dicom_seg"] = "dicom_seg"
    pseudonyms: Pseudonyms | None = None

    def refusal(self, planned: Planned, organs: Organs) -> str:
        """Why a case does not fit this layout; "" for those that do."""
        if not place(planned.case.image).is_dir():
            return "its image is no DICOM series"
        without = [s.organ for s in planned.organs if organs[s.organ].code is None]
        return f"organ set {organs.name!r} has no code for {', '.join(without)}" if without else ""

    def files(self, planned: Planned) -> list[str]:
        """Path of a case's file below the release."""
        return [f"segmentations/{planned.name}.dcm"]

    def write_case(self, out: Path, planned: Planned, label: Volume, organs: Organs, digest: str) -> None:
        """Write a case's file below `out`.

        Raises:
            CaseError: the series cannot be read, or the label does not lie on it.
        """
        import io

        case = planned.case
        files, affine = dicom_grid(case.image, case.series_uid)
        _require_same_grid(label, affine, len(files))
        segmentation = _segmentation(_heads(files), planned, label, organs, digest)
        if self.pseudonyms is not None:
            apply_basic_profile(segmentation, self.pseudonyms)
        buffer = io.BytesIO()
        segmentation.save_as(buffer, enforce_file_format=True)
        (path,) = self.files(planned)
        write_atomically(out / path, buffer.getvalue())

    def texts(self, name: str, case_ids: Sequence[str], organs: Organs) -> dict[str, str]:
        """Files of the whole release: none."""
        del name, case_ids, organs
        return {}


def _require_same_grid(label: Volume, affine: Affine, slices: int) -> None:
    if slices != label.shape[2]:
        raise GeometryError(f"label of {label.shape[2]} slices, series of {slices}")
    if (off := corner_distance_mm(label.affine, affine, label.shape)) > OFF_GRID_MM:
        raise GeometryError(f"label lies {off:.2f} mm off its series; {OFF_GRID_MM:g} mm are allowed")


def _heads(files: Sequence[Path]) -> list[Any]:
    import pydicom

    heads = []
    for path in files:
        with path.open("rb") as stream:
            head = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=[*NEEDED, *TAKEN])
        if missing := [keyword for keyword in NEEDED if keyword not in head]:
            raise CaseError(f"{path} has no {', '.join(missing)}; a segmentation refers to it")
        if "PatientID" not in head:
            head.PatientID = None
        for keyword in TYPE_2:
            setattr(head, keyword, None)
        heads.append(head)
    return heads


def _segmentation(heads: Sequence[Any], planned: Planned, label: Volume, organs: Organs, digest: str) -> Any:
    """The object, one frame per slice and organ that is in it. Its UIDs follow from `digest`: the same label is the same object."""
    from highdicom.seg import Segmentation

    numbers = np.zeros(256, np.uint8)  # label id -> segment number
    for number, source in enumerate(planned.organs, 1):
        numbers[organs.label_id(source.organ)] = number
    frames_ZYX = numbers[np.asarray(label.voxels, np.uint8)].transpose(2, 1, 0)  # a slice's rows run along Y
    return Segmentation(
        source_images=heads,
        pixel_array=frames_ZYX,
        segmentation_type="BINARY",
        segment_descriptions=[_describe(number, s.source, organs[s.organ]) for number, s in enumerate(planned.organs, 1)],
        series_instance_uid=_uid(digest, "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=_uid(digest, "instance"),
        instance_number=1,
        manufacturer="atlas_ray",
        manufacturer_model_name="atlas_ray",
        software_versions=__version__,
        device_serial_number=__version__,
        content_label="ORGANS",
        content_description=f"organs of {organs.name} {organs.version}"[:64],
        omit_empty_frames=bool(frames_ZYX.any()),
    )


def _uid(digest: str, what: str) -> str:
    """Of the UUID kind (2.25), which needs no registration."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{digest} {what}').int}"


def _describe(number: int, source: LabelSource, organ: Organ) -> Any:
    from highdicom.color import CIELabColor
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    code = _code(organ)
    algorithm = ALGORITHM[source]
    red, green, blue = (int(organ.color[i : i + 2], 16) for i in (1, 3, 5))
    made = SegmentDescription(
        segment_number=number,
        segment_label=organ.name[:64],
        segmented_property_category=_concept(CATEGORY[code.category]),
        segmented_property_type=_concept((code.value, code.meaning)),
        algorithm_type=algorithm,
        algorithm_identification=None
        if algorithm == "MANUAL"
        else AlgorithmIdentificationSequence("atlas_ray", codes.cid7162.ArtificialIntelligence, __version__),
        anatomic_regions=[_concept((code.region.value, code.region.meaning))] if code.region else None,
        display_color=CIELabColor.from_rgb(red, green, blue),
    )
    if code.side:
        made.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [_concept(SIDE[code.side])]
    return made


def _code(organ: Organ) -> Code:
    if organ.code is None:
        raise CaseError(f"organ {organ.name!r} has no code; DICOM SEG needs one")
    return organ.code


def _concept(value_and_meaning: tuple[str, str]) -> Any:
    from highdicom.sr.coding import CodedConcept

    value, meaning = value_and_meaning
    return CodedConcept(value=value, meaning=meaning, scheme_designator="SCT")
