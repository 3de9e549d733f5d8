"""A place in a bucket behaves as a place on a disk: the same questions, whole files, folders that appear at once.

The bucket is a real S3 server on the loopback interface (moto), spoken to over HTTP.
"""

import gzip
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_ray import storage
from atlas_ray.exceptions import ConfigError
from atlas_ray.storage import BucketPath, as_local, is_whole, kept_local, new_folder, place, remove, stamps, write_atomically


@pytest.fixture(params=["disk", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty folder on a disk, and one in a bucket: every test here holds for both."""
    if request.param == "disk":
        yield tmp_path
        return
    yield request.getfixturevalue("bucket") / tmp_path.name


def stop_in_the_middle(final: Path) -> None:
    with new_folder(final) as folder:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("in the middle")


def stop_in_the_middle_of_a_file(file: BucketPath) -> None:
    with file.open("wb") as stream:
        stream.write(b"half")
        raise RuntimeError("in the middle")


def write_two_files(final: BucketPath) -> None:
    with new_folder(final) as folder:  # type: ignore[arg-type]
        for name in "ab":
            (folder / name).write_bytes(b"new")


def test_what_was_written_is_read(root: Path) -> None:
    file = root / "a" / "b.json"
    assert not file.exists()
    write_atomically(file, "{}")
    assert (file.exists(), file.is_file(), file.is_dir()) == (True, True, False)
    assert (file.parent.exists(), file.parent.is_file(), file.parent.is_dir()) == (True, False, True)
    assert file.read_text() == "{}"
    assert file.read_bytes() == b"{}"
    assert file.stat().st_size == 2
    write_atomically(file, b"newer")
    assert file.read_bytes() == b"newer"
    file.unlink()
    assert not file.exists()
    file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        file.read_bytes()


def test_a_compressed_file_is_stored_as_it_is(root: Path) -> None:
    """Arrow would compress what is called .gz once more."""
    data = gzip.compress(b"voxels")
    write_atomically(root / "ct.nii.gz", data)
    with (root / "streamed.nii.gz").open("wb") as stream:
        stream.write(data)
    assert (root / "ct.nii.gz").read_bytes() == (root / "streamed.nii.gz").read_bytes() == data


def test_a_stream_is_read_in_pieces_and_from_anywhere(root: Path) -> None:
    file = root / "numbers.bin"
    write_atomically(file, bytes(range(256)))
    with file.open("rb") as stream:
        assert stream.read(3) == bytes([0, 1, 2])
        assert stream.read(2) == bytes([3, 4])
        stream.seek(250)
        assert stream.read() == bytes(range(250, 256))
    with file.open("rb") as stream:
        assert len(stream.read(1000)) == 256


def test_a_file_of_lines_is_text(root: Path) -> None:
    write_atomically(root / "lines.txt", "ä\nb\n")
    with (root / "lines.txt").open() as stream:
        assert list(stream) == ["ä\n", "b\n"]


def test_a_folder_lists_what_is_in_it(root: Path) -> None:
    for name in ("x/1.nii.gz", "x/2.nii.gz", "x/deep/3.nii.gz", "y.json"):
        write_atomically(root / name, "")
    assert sorted(path.name for path in root.iterdir()) == ["x", "y.json"]
    assert sorted(path.name for path in (root / "x").glob("*.nii.gz")) == ["1.nii.gz", "2.nii.gz"]
    assert sorted(path.name for path in root.glob("**/*.nii.gz")) == ["1.nii.gz", "2.nii.gz", "3.nii.gz"]
    assert sorted(path.name for path in root.glob("x/*.nii.gz")) == ["1.nii.gz", "2.nii.gz"]
    assert [path.relative_to(root).as_posix() for path in root.rglob("3*")] == ["x/deep/3.nii.gz"]


def test_names_are_taken_apart_as_pathlib_does(root: Path) -> None:
    file = root / "rounds" / "000" / "label.nii.gz"
    assert (file.name, file.stem, file.suffix) == ("label.nii.gz", "label.nii", ".gz")
    assert file.parent.name == "000"
    assert file.with_name("heat.nii.gz") == root / "rounds" / "000" / "heat.nii.gz"
    assert file.with_suffix(".last.pt").name == "label.nii.last.pt"
    assert place(str(file)) == file
    assert pickle.loads(pickle.dumps(file)) == file


def test_a_new_folder_is_there_whole_or_not_at_all(root: Path) -> None:
    final = root / "predictions" / "case"
    with pytest.raises(RuntimeError, match="in the middle"):
        stop_in_the_middle(final)
    assert not is_whole(final)
    assert not (final / "half.txt").exists()
    with new_folder(final) as folder:
        (folder / "attention").mkdir()
        (folder / "attention" / "organ.bin").write_bytes(b"1")
        (folder / "old.txt").write_text("old")
        assert not is_whole(final)
    assert is_whole(final)
    assert (final / "attention" / "organ.bin").read_bytes() == b"1"
    with new_folder(final) as folder:
        (folder / "new.txt").write_text("new")
    assert is_whole(final)
    assert sorted(path.name for path in final.rglob("*") if path.is_file() and path.name != storage.MARKER) == ["new.txt"]


def test_a_folder_is_removed_with_all_that_is_in_it(root: Path) -> None:
    with new_folder(root / "cache" / "case") as folder:
        (folder / "image.b2nd").write_bytes(b"1")
    remove(root / "cache" / "case")
    assert not is_whole(root / "cache" / "case")
    assert not (root / "cache" / "case" / "image.b2nd").exists()
    remove(root / "cache" / "case")


def test_a_library_gets_a_file_on_this_disk(root: Path, tmp_path: Path) -> None:
    with new_folder(root / "dicom") as folder:
        (folder / "1.dcm").write_bytes(b"1")
    with as_local(root / "dicom") as local:
        assert isinstance(local, Path)
        assert (local / "1.dcm").read_bytes() == b"1"
    kept = kept_local(root / "dicom", tmp_path / "cache")
    assert isinstance(kept, Path)
    assert (kept / "1.dcm").read_bytes() == b"1"


def test_an_upload_that_is_cut_short_leaves_no_object(bucket: BucketPath) -> None:
    with pytest.raises(RuntimeError, match="in the middle"):
        stop_in_the_middle_of_a_file(bucket / "cut.bin")
    assert not (bucket / "cut.bin").exists()
    with (bucket / "whole.bin").open("wb") as stream:
        stream.write(b"whole")
    assert (bucket / "whole.bin").read_bytes() == b"whole"


def test_folder_whose_upload_was_killed_does_not_look_finished(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two objects fails; a reader must not take the first for the folder."""
    sent: list[str] = []

    def upload(self: BucketPath, file: Path) -> None:
        if sent:
            raise OSError("the connection is gone")
        sent.append(self.name)
        self.write_bytes(file.read_bytes())

    final = bucket / "case"
    with new_folder(final) as folder:  # type: ignore[arg-type]
        (folder / "a").write_bytes(b"old")
    assert set(stamps(bucket, "a")) == {"case"}  # type: ignore[arg-type]
    monkeypatch.setattr(BucketPath, "upload", upload)
    with pytest.raises(OSError, match="gone"):
        write_two_files(final)
    assert sent == ["a"]
    assert not is_whole(final)  # type: ignore[arg-type]
    assert stamps(bucket, "a") == {}  # type: ignore[arg-type]


def test_a_url_says_what_is_wrong_with_it_and_shows_no_secret() -> None:
    with pytest.raises(ConfigError, match=r"https:// is not a place.*s3://bucket"):
        place("https://example.org/x")
    with pytest.raises(ConfigError, match="names no bucket"):
        place("s3://")
    with pytest.raises(ConfigError, match="no credentials") as caught:
        place("s3://key:hunter2@bucket/x?region=eu")
    assert "hunter2" not in str(caught.value)


def test_a_missing_bucket_is_named(bucket: BucketPath) -> None:
    with pytest.raises(OSError, match="s3://no-such-bucket"):
        place("s3://no-such-bucket/file").read_bytes()
