"""Pseudonyms in place of what names a patient, and DICOM's Basic Application Level Confidentiality Profile for what a SEG carries.

A pseudonym is an HMAC-SHA256 under a key of the campaign: the same UID, patient or case has the same one in every export, so that
series still belong together, and nobody without the key gets back or can try out who it was. UIDs are of the UUID kind (2.25), of
the HMAC's first 16 bytes as a version 5 UUID; whoever de-identifies the images with the same key gets the same UIDs.

PS3.15 table E.1-1 of what is there: emptied (Z) are the names, dates and numbers of patient and study; removed (X) is when and why
which equipment contributed; replaced (D, U) are the content's date and time and every UID that DICOM itself does not define. The
serial number of the device is this software's version and stays.

Not covered: pixel data, of which a segmentation shows organs' outlines and, of a head, a face.
"""

import hmac
import secrets
import uuid
from pathlib import Path
from typing import Any

from pydantic import SecretBytes

from atlas_ray.exceptions import WorkspaceError
from atlas_ray.schema import Schema
from atlas_ray.storage import create

KEY_BYTES = 32
TYPE_2 = (  # of patient and study (PS3.3 C.7.1.1 and C.7.2.1): must be there, may be empty
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
EMPTIED = (*TYPE_2, "ContentCreatorName")
REMOVED = (
    "InstanceCreationDate",
    "InstanceCreationTime",
    "ContributionDateTime",
    "ContributionDescription",
    "SeriesDate",
    "SeriesTime",
)
DUMMIES = {"ContentDate": "19000101", "ContentTime": "000000"}  # type 1: must be there and say something
DICOM_ROOT = "1.2.840.10008."  # what the standard defines: SOP classes, transfer syntaxes
METHOD = "DICOM PS3.15 Basic Application Level Confidentiality Profile"


class Pseudonyms(Schema):
    """Other names and UIDs for those of the source, always the same under one key."""

    key: SecretBytes

    def case(self, case_id: str) -> str:
        return f"case_{self._hash('case', case_id).hex()[:16]}"

    def patient(self, patient_id: str) -> str:
        """ "" stays "": patients whose id is not known are not one and the same."""
        return self._hash("patient", patient_id).hex()[:16] if patient_id else ""

    def uid(self, uid: str) -> str:
        return f"2.25.{uuid.UUID(bytes=self._hash('uid', uid)[:16], version=5).int}"

    def _hash(self, kind: str, name: str) -> bytes:
        return hmac.digest(self.key.get_secret_value(), f"{kind} {name}".encode(), "sha256")


def load_pseudonyms(path: Path, *, keep: bool = True) -> Pseudonyms:
    """Of the key in a file, which is made on first use: 64 hexadecimal digits, for its owner alone where it lies on a disk.

    Args:
        keep: write a key that was not there.

    Raises:
        WorkspaceError: the file holds something else.
    """
    if not path.exists():
        made = secrets.token_bytes(KEY_BYTES)
        if keep:
            create(path, made.hex() + "\n")
            if isinstance(path, Path):
                path.chmod(0o600)
        return Pseudonyms(key=SecretBytes(made))
    try:
        key = bytes.fromhex(path.read_text())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise WorkspaceError(f"{path} holds no key of {2 * KEY_BYTES} hexadecimal digits; nothing is released under another one")
    return Pseudonyms(key=SecretBytes(key))


def apply_basic_profile(segmentation: Any, pseudonyms: Pseudonyms) -> None:
    """Take from a segmentation, in place and at every depth, what the profile takes, and say so in it."""
    from pydicom.sr.codedict import codes

    replaced: set[str] = set()
    for dataset in (segmentation.file_meta, segmentation):
        dataset.walk(lambda level, element: _clean(level, element, pseudonyms, replaced))
    segmentation.PatientID = pseudonyms.patient(str(segmentation.PatientID or ""))
    segmentation.PatientIdentityRemoved = "YES"
    segmentation.DeidentificationMethod = METHOD
    segmentation.DeidentificationMethodCodeSequence = [_item(codes.DCM.BasicApplicationConfidentialityProfile)]
    segmentation.LongitudinalTemporalInformationModified = "REMOVED"


def _clean(level: Any, element: Any, pseudonyms: Pseudonyms, replaced: set[str]) -> None:
    """
    Args:
        replaced: pseudonyms given so far; frames share items in memory, which must not get a pseudonym's pseudonym.
    """
    if element.keyword in REMOVED:
        del level[element.tag]
    elif element.keyword in EMPTIED:
        element.value = None
    elif element.keyword in DUMMIES:
        element.value = DUMMIES[element.keyword]
    elif element.VR == "UI" and element.keyword != "ImplementationClassUID":
        uid = str(element.value)
        if not uid.startswith(DICOM_ROOT) and uid not in replaced:
            element.value = pseudonyms.uid(uid)
            replaced.add(element.value)


def _item(code: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item
