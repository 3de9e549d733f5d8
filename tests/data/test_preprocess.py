"""The training cache: the same extent in RAS at the networks' spacing, found again only as long as nothing it holds has changed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_ray.data.patches import open_cached
from atlas_ray.data.preprocess import (
    FOREGROUND_VOXELS,
    Preprocessing,
    cache_key,
    label_to_network_grid,
    to_network_grid,
    write_cache,
)
from atlas_ray.exceptions import CaseError
from atlas_ray.organs import Organs
from atlas_ray.records import Case
from atlas_ray.volume import Volume, write_volume

LPS = np.array([[-2.0, 0, 0, 30], [0, -3, 0, 40], [0, 0, 5, -50], [0, 0, 0, 1]])  # 2 x 3 x 5 mm, x grows to the left
SHAPE = (12, 10, 6)
AT_2_MM = Preprocessing(spacing=(2, 2, 2))


def organs(**changes: Any) -> Organs:
    liver = {"name": "liver", "label_id": 6, "color": "#c8604f"}
    return Organs.model_validate(
        {"name": "two", "organs": [liver, {"name": "spleen", "label_id": 2, "color": "#9b6bd6"}], **changes}
    )


def case(**changes: Any) -> Case:
    known = {"case_id": "a", "image": "/nowhere", "sha256": "0" * 64, "shape": SHAPE, "spacing": (2, 3, 5), "orientation": "LPS"}
    return Case.model_validate({**known, "source": "here", "license": "CC0-1.0", "split": "train", **changes})


def corner_positions(volume: Volume) -> np.ndarray:
    """Outer corners of the first and the last voxel in mm."""
    ends = np.array([[-0.5, -0.5, -0.5, 1], [*(np.array(volume.shape) - 0.5), 1]])
    positions: np.ndarray = (ends @ volume.affine.T)[:, :3]
    return positions


# --- the networks' grid ---------------------------------------------------------------------------------------------


def test_the_networks_grid_is_ras_at_their_spacing_over_the_same_extent() -> None:
    image = to_network_grid(Volume(np.zeros(SHAPE, np.int16), LPS), AT_2_MM)
    assert image.orientation == "RAS"
    assert image.spacing == pytest.approx((2, 2, 2))
    assert image.shape == (12, 15, 15)  # 24 x 30 x 30 mm
    # LPS outer corners: x 31 down to 7, y 41.5 down to 11.5, z -52.5 up to -22.5
    np.testing.assert_allclose(corner_positions(image), [[7, 11.5, -52.5], [31, 41.5, -22.5]])


def test_what_lay_on_the_left_front_top_still_does() -> None:
    """In LPS the last x is leftmost and the first y foremost; in RAS the first x is leftmost and the last y foremost."""
    voxels = np.zeros(SHAPE, np.int16)
    voxels[-2:, :2, -2:] = 1000
    image = to_network_grid(Volume(voxels, LPS), AT_2_MM)
    bright = np.argwhere(image.voxels > 500)
    assert bright[:, 0].max() <= 1
    assert bright[:, 1].min() >= 12
    assert bright[:, 2].min() >= 10
    np.testing.assert_array_equal(
        label_to_network_grid(Volume((voxels > 0).astype(np.uint8) * 6, LPS), AT_2_MM) == 6, image.voxels > 500
    )


def test_hu_are_brought_to_12_bits_and_become_whole_numbers() -> None:
    voxels = np.array([-3024, -1024, 40.4, 3071, 20000], np.float32).reshape(5, 1, 1)
    image = to_network_grid(Volume(voxels, np.eye(4)), Preprocessing(spacing=(1, 1, 1)))
    assert image.voxels.dtype == np.int16
    assert image.voxels.ravel().tolist() == [-1024, -1024, 40, 3071, 3071]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32])
def test_any_type_a_file_may_hold_is_accepted(dtype: type) -> None:
    image = to_network_grid(Volume(np.full((2, 2, 2), 100, dtype), np.eye(4)), Preprocessing(spacing=(1, 1, 1)))
    assert (image.voxels == 100).all()


def test_padding_does_not_bleed_into_the_body() -> None:
    """Padding of -3024 is clipped before it is mixed with its neighbors: halfway to 1024 HU is 0, not -1000."""
    voxels = np.array([-3024, 1024], np.int16).reshape(2, 1, 1)
    image = to_network_grid(Volume(voxels, np.diag([2.0, 1, 1, 1])), Preprocessing(spacing=(1, 1, 1)))
    assert image.voxels.ravel().tolist() == [-1024, -512, 512, 1024]


def test_labels_are_picked_never_mixed() -> None:
    labels = np.array([2, 6], np.uint8).reshape(2, 1, 1)
    fine = label_to_network_grid(Volume(labels, np.diag([3.0, 1, 1, 1])), Preprocessing(spacing=(1, 1, 1)))
    assert fine.ravel().tolist() == [2, 2, 2, 6, 6, 6]


@pytest.mark.parametrize("wrong", [{"window_hu": (250, -175)}, {"window_hu": (0, 0)}, {"spacing": (1.5, 0, 1.5)}])
def test_a_window_that_falls_and_a_spacing_of_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must rise"):
        Preprocessing.model_validate(wrong)


# --- the key --------------------------------------------------------------------------------------------------------


@pytest.fixture
def label(tmp_path: Path) -> Path:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[1, 2, 3] = 6
    path = tmp_path / "label.nii.gz"
    write_volume(path, Volume(voxels, LPS))
    return path


def test_the_key_is_the_same_for_the_same_content_wherever_it_lies(tmp_path: Path, label: Path) -> None:
    key = cache_key(case(), label, AT_2_MM, organs())
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(label.read_bytes())
    assert cache_key(case(case_id="b", image="/moved"), copy, AT_2_MM, organs()) == key
    assert cache_key(case(), label, Preprocessing(spacing=(2, 2, 2), window_hu=(-100, 200)), organs()) == key  # windowed when read


def test_the_key_changes_with_everything_the_entry_depends_on(tmp_path: Path, label: Path) -> None:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[1, 2, 4] = 6
    other_label = tmp_path / "other.nii.gz"
    write_volume(other_label, Volume(voxels, LPS))
    renumbered = organs(organs=[{"name": "liver", "label_id": 7, "color": "#c8604f"}])
    keys = [
        cache_key(case(), label, AT_2_MM, organs()),
        cache_key(case(sha256="1" * 64), label, AT_2_MM, organs()),
        cache_key(case(), other_label, AT_2_MM, organs()),
        cache_key(case(), label, Preprocessing(spacing=(2, 2, 2.5)), organs()),
        cache_key(case(), label, AT_2_MM, renumbered),
        cache_key(case(), label, AT_2_MM, organs(), focus=[label]),
        cache_key(case(), label, AT_2_MM, organs(), focus=[other_label]),
    ]
    assert len(set(keys)) == len(keys)


# --- the entry ------------------------------------------------------------------------------------------------------


def saved_case(folder: Path) -> Case:
    image = folder / "ct.nii.gz"
    write_volume(image, Volume(np.full(SHAPE, 40, np.int16), LPS))
    return case(image=str(image))


def test_an_entry_holds_image_label_and_where_the_organs_are(tmp_path: Path, label: Path) -> None:
    folder = tmp_path / "cache" / "a"
    write_cache(folder, saved_case(tmp_path), label, Preprocessing(spacing=(2, 3, 5)), organs())
    assert sorted(path.name for path in folder.iterdir()) == ["foreground.npy", "image.b2nd", "label.b2nd"]
    entry = open_cached(folder, np.ones(2, np.float32))
    image, labels, foreground = entry.image[:], entry.label[:], entry.foreground
    assert (image.shape, image.dtype, int(image[0, 0, 0])) == (SHAPE, np.int16, 40)
    assert np.argwhere(labels == 6).tolist() == [[10, 7, 3]]  # (1, 2, 3) in LPS is 12 - 1 - 1, 10 - 2 - 1, 3 in RAS
    assert foreground.shape == (2, FOREGROUND_VOXELS, 3)
    assert foreground[0, 0].tolist() == [10, 7, 3]
    assert (foreground[0, 1:] == -1).all()
    assert (foreground[1] == -1).all()  # there is no spleen


def test_focus_is_where_any_of_the_maps_shows_something(tmp_path: Path, label: Path) -> None:
    maps = [np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)]
    maps[0][0, 0, 0], maps[1][1, 2, 3] = 7, 255
    paths = [tmp_path / f"{n}.nii.gz" for n in range(2)]
    for path, one in zip(paths, maps, strict=True):
        write_volume(path, Volume(one, LPS))
    write_cache(tmp_path / "a", saved_case(tmp_path), label, Preprocessing(spacing=(2, 3, 5)), organs(), focus=paths)
    entry = open_cached(tmp_path / "a", np.ones(2, np.float32))
    assert entry.focus is not None
    assert np.argwhere(entry.focus[:]).tolist() == [[10, 7, 3], [11, 9, 0]]  # in RAS
    assert entry.focus[:].max() == 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 130, 3), (100, 97, 33), (40, 50, 200)])
def test_every_patch_of_an_entry_is_what_the_arrays_hold(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    ct, labels = rng.integers(-1024, 3072, shape).astype(np.int16), rng.choice(np.array([0, 2, 6], np.uint8), shape)
    write_volume(tmp_path / "ct.nii.gz", Volume(ct, np.eye(4)))
    write_volume(tmp_path / "label.nii.gz", Volume(labels, np.eye(4)))
    known = case(image=str(tmp_path / "ct.nii.gz"), shape=shape, spacing=(1, 1, 1), orientation="RAS")
    write_cache(tmp_path / "a", known, tmp_path / "label.nii.gz", Preprocessing(spacing=(1, 1, 1)), organs())
    entry = open_cached(tmp_path / "a", np.ones(2, np.float32))
    for _ in range(20):
        low = [int(rng.integers(n)) for n in shape]
        patch = tuple(slice(start, start + int(rng.integers(1, 97))) for start in low)
        np.testing.assert_array_equal(entry.image[patch], ct[patch], strict=True)
        np.testing.assert_array_equal(entry.label[patch], labels[patch], strict=True)


def test_of_a_large_organ_voxels_are_taken_from_end_to_end(tmp_path: Path) -> None:
    big = np.zeros((30, 30, 30), np.uint8)
    big[2:28, 2:28, 2:28] = 6
    write_volume(tmp_path / "label.nii.gz", Volume(big, np.eye(4)))
    write_volume(tmp_path / "ct.nii.gz", Volume(np.zeros((30, 30, 30), np.int16), np.eye(4)))
    write_cache(
        tmp_path / "a",
        case(image=str(tmp_path / "ct.nii.gz")),
        tmp_path / "label.nii.gz",
        Preprocessing(spacing=(1, 1, 1)),
        organs(),
    )
    liver = np.load(tmp_path / "a" / "foreground.npy")[0]
    assert len(np.unique(liver, axis=0)) == FOREGROUND_VOXELS
    assert liver.min(axis=0).tolist() == [2, 2, 2]
    assert liver.max(axis=0).tolist() == [27, 27, 27]


def test_an_entry_appears_whole_or_not_at_all(tmp_path: Path, label: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "a"

    def full_disk(labels: np.ndarray, organ_set: Organs) -> np.ndarray:
        assert not folder.exists()
        raise OSError("No space left on device")

    monkeypatch.setattr("atlas_ray.data.preprocess._foreground", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_cache(folder, saved_case(tmp_path), label, AT_2_MM, organs())
    assert list(folder.parent.iterdir()) == []


def test_a_case_that_cannot_be_read_leaves_nothing(tmp_path: Path, label: Path) -> None:
    (tmp_path / "ct.nii.gz").write_bytes(b"no image")
    with pytest.raises(CaseError, match=r"ct\.nii\.gz"):
        write_cache(tmp_path / "cache" / "a", case(image=str(tmp_path / "ct.nii.gz")), label, AT_2_MM, organs())
    assert not (tmp_path / "cache" / "a").exists()
