"""A thousand malformed inputs of every kind: none crashes, none hangs, none is accepted as something else than was written."""

import logging
import resource
from pathlib import Path

import numpy as np
import pytest
from malformed import SLOWEST_S, Tally, dicom_inputs, run_all

from atlas_ray.exceptions import CaseError
from atlas_ray.volume import read_volume

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom"),  # what it is made to read
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # nibabel's arithmetic on NaN headers, and the hand-made reader's
]
COUNTS = {"nifti": 620, "dicom": 130, "configs": 130, "requests": 130}
MOST_MEMORY_MB = 700  # more than before; one bomb of each kind unfolds to 64 MB, others promise terabytes


@pytest.fixture(scope="module")
def tallies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tally]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    logging.disable(logging.CRITICAL)  # nibabel tells everything it puts right
    try:
        found = run_all(tmp_path_factory.mktemp("malformed"), seed=20260101, **COUNTS)
    finally:
        logging.disable(logging.NOTSET)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < MOST_MEMORY_MB
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["NIfTI", "DICOM", "YAML", "REST"])
def test_no_crash_no_hang_nothing_accepted_wrongly(name: str, tallies: dict[str, Tally]) -> None:
    tally = tallies[name]
    assert not tally.violations, "\n".join(tally.violations)
    assert tally.slowest_s < SLOWEST_S
    assert tally.refused.total() > 0
    assert tally.accepted.total() > 0, "the damage leaves some of them right: otherwise nothing is compared"
    assert all(reason.strip() and "\n" not in reason for reason in tally.reasons.values())


def test_there_were_a_thousand(tallies: dict[str, Tally]) -> None:
    assert sum(tally.count() for tally in tallies.values()) == sum(COUNTS.values()) >= 1000


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("NIfTI", "gzip bomb", "unfolds to more than"),
        ("NIfTI", "singular affine", "no grid in mm"),
        ("NIfTI", "negative or zero spacing", "positive edges are allowed"),
        ("NIfTI", "no nifti", "ct.nii.gz"),
        ("DICOM", "deflate bomb", "larger than one slice can be|holds no DICOM image"),
        ("DICOM", "orientation", "right angle"),
        ("YAML", "twice", "given twice"),
        ("YAML", "aliases", "once its aliases are written out|an alias of what it stands in"),
        ("YAML", "depth", "nested too deeply"),
    ],
)
def test_reasons_name_what_was_found(name: str, kind: str, says: str, tallies: dict[str, Tally]) -> None:
    reason = tallies[name].reasons[kind]
    assert any(part in reason for part in says.split("|")), reason


def test_valid_inputs_are_accepted(tallies: dict[str, Tally]) -> None:
    for name in ("NIfTI", "DICOM", "YAML"):
        assert tallies[name].accepted["valid"] > 0
        assert "valid" not in tallies[name].refused


@pytest.mark.parametrize("keep", [140, 250, 400])
def test_a_damaged_slice_is_not_left_out(keep: int, tmp_path: Path) -> None:
    """At an end of the volume it would leave no gap: a shorter CT would be read."""
    drawn = dicom_inputs(np.random.default_rng(3), 40)
    *others, last = next(files for kind, files in drawn if kind == "valid" and len(files) > 3)
    for index, data in enumerate([*others, last[:keep]]):
        (tmp_path / f"{index}.dcm").write_bytes(data)
    (tmp_path / "readme.txt").write_text("no DICOM")
    with pytest.raises(CaseError):
        read_volume(tmp_path)
