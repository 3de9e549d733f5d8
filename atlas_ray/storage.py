"""A place on a disk or in a bucket, behind the part of pathlib's interface that this code uses.

`place("s3://bucket/folder")` and `place("gs://...")` give a `BucketPath`, anything else an ordinary `Path`. Credentials, region and
endpoint come from the cloud's own environment variables and files (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL,
GOOGLE_APPLICATION_CREDENTIALS, ...), never from a URL: URLs end up in logs.

A bucket has objects, no folders and no rename. An object appears whole when its upload ends, so writing one is atomic. A folder of
several objects appears piece by piece; what must appear at once is written with a marker last (`new_folder`, `is_whole`).
"""

import contextlib
import errno
import fnmatch
import functools
import hashlib
import io
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from atlas_ray.exceptions import ConfigError

SCHEMES = ("s3", "gs")
MARKER = ".whole"  # in a bucket's folder that was written as one, uploaded last
PARTIAL = ".partial"  # ends the name of what is being written
PARTIALS = f".*{PARTIAL}"  # matches the names that `hidden` gives
CHUNK = 8 * 2**20


def is_url(where: str | Path) -> bool:
    return "://" in str(where)


def place(where: "str | Path | BucketPath") -> Path:
    """The path of a folder or file, on disk or in a bucket. A BucketPath is typed as the Path it stands in for.

    Raises:
        ConfigError: a URL of another kind, or one that carries credentials or options.
    """
    if isinstance(where, Path | BucketPath):
        return cast(Path, where)
    if not is_url(where):
        return Path(where)
    scheme, _, key = where.partition("://")
    if scheme not in SCHEMES:
        raise ConfigError(
            f"{where}: {scheme}:// is not a place this reads; allowed are a path, s3://bucket/... and gs://bucket/..."
        )
    if "@" in key.partition("/")[0] or "?" in key:
        bucket = key.partition("/")[0].rpartition("@")[2].partition("?")[0]
        raise ConfigError(f"{scheme}://{bucket}/...: no credentials or options in a URL; use the cloud's environment variables")
    if not key.strip("/"):
        raise ConfigError(f"{where}: names no bucket; write {scheme}://bucket/folder")
    return cast(Path, BucketPath(scheme, posixpath.normpath(key.strip("/"))))


def absolute(where: str) -> str:
    """A path from the root of this machine's disk; a URL is that already."""
    return str(place(where).expanduser().absolute())


@functools.cache
def _file_system(scheme: str) -> Any:
    """One client per process; it retries what is worth retrying."""
    from pyarrow import fs

    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return fs.S3FileSystem(
            endpoint_override=endpoint,
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=6),
            connect_timeout=10,
            request_timeout=60,
        )
    return fs.GcsFileSystem()


@dataclass(frozen=True, slots=True)
class Stat:
    """What a bucket knows of an object."""

    st_size: int
    st_mtime_ns: int

    @property
    def st_mtime(self) -> float:
        return self.st_mtime_ns / 1e9


@dataclass(frozen=True, slots=True, order=True)
class BucketPath:
    """Where an object lies, or the objects below a prefix. Behaves as a Path does; makes no folders.

    Args:
        scheme: "s3" or "gs".
        key: "bucket/folder/name".
    """

    scheme: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, other: str) -> "BucketPath":
        return BucketPath(self.scheme, posixpath.normpath(f"{self.key}/{other}"))

    # --- names ---
    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> "BucketPath":
        return BucketPath(self.scheme, self.key.rpartition("/")[0] or self.key)

    def with_name(self, name: str) -> "BucketPath":
        return self.parent / name

    def with_suffix(self, suffix: str) -> "BucketPath":
        return self.parent / f"{self.stem}{suffix}"

    def relative_to(self, other: "BucketPath") -> Path:
        if other.scheme != self.scheme or not f"{self.key}/".startswith(f"{other.key}/"):
            raise ValueError(f"{self} does not lie below {other}")
        return Path(self.key[len(other.key) :].strip("/"))

    def absolute(self) -> "BucketPath":
        return self

    def expanduser(self) -> "BucketPath":
        return self

    # --- questions ---
    def _info(self) -> Any:
        return self._ask(lambda files: files.get_file_info(self.key))

    def exists(self) -> bool:
        return bool(self._info().type.name != "NotFound")

    def is_file(self) -> bool:
        return bool(self._info().type.name == "File")

    def is_dir(self) -> bool:
        return bool(self._info().type.name == "Directory")

    def stat(self) -> Stat:
        info = self._info()
        if info.type.name == "NotFound":
            raise FileNotFoundError(str(self))
        return Stat(st_size=info.size or 0, st_mtime_ns=info.mtime_ns or 0)

    def iterdir(self) -> Iterator["BucketPath"]:
        yield from self._below(recursive=False)

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """As Path.glob for patterns of names, * and **."""
        wanted = pattern.split("/")
        for path in self._below(recursive=len(wanted) > 1 or "**" in pattern):
            if _matches(path.key[len(self.key) :].strip("/").split("/"), wanted):
                yield path

    def rglob(self, pattern: str) -> Iterator["BucketPath"]:
        yield from self.glob(f"**/{pattern}")

    def _below(self, *, recursive: bool) -> list["BucketPath"]:
        return sorted(path for path, _ in self.stats(recursive=recursive))

    def stats(self, *, recursive: bool = True) -> list[tuple["BucketPath", Stat]]:
        """Everything below, with size and time, in one listing."""
        from pyarrow.fs import FileSelector

        infos = self._ask(lambda files: files.get_file_info(FileSelector(self.key, allow_not_found=True, recursive=recursive)))
        return [(BucketPath(self.scheme, i.path.rstrip("/")), Stat(i.size or 0, i.mtime_ns or 0)) for i in infos]

    # --- bytes ---
    def open(self, mode: str = "r", **text: Any) -> IO[Any]:
        """For reading: streams, and seeks. For writing: the object appears when the block has ended without an error."""
        if "r" in mode:
            stream = self._ask(lambda files: files.open_input_file(self.key))
            raw = io.BufferedReader(_Reader(stream), CHUNK)
            return cast(IO[Any], raw if "b" in mode else io.TextIOWrapper(raw, encoding="utf-8", **text))
        if mode not in ("w", "wb"):
            raise ValueError(f"{self}: an object is read or written whole, not opened with {mode!r}")
        return cast(IO[Any], _Upload(self) if "b" in mode else io.TextIOWrapper(cast(Any, _Upload(self)), encoding="utf-8"))

    def read_bytes(self) -> bytes:
        def read(files: Any) -> bytes:
            with files.open_input_file(self.key) as stream:
                return bytes(stream.read())

        return cast(bytes, self._ask(read))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> int:
        def write(files: Any) -> None:
            with files.open_output_stream(self.key, compression=None) as stream:
                stream.write(data)

        self._ask(write)
        return len(data)

    def write_text(self, data: str, encoding: str = "utf-8") -> int:
        return self.write_bytes(data.encode(encoding))

    def upload(self, file: Path) -> None:
        """The object with a local file's bytes, streamed."""

        def write(files: Any) -> None:
            with file.open("rb") as source, files.open_output_stream(self.key, compression=None) as stream:
                while chunk := source.read(CHUNK):
                    stream.write(chunk)

        self._ask(write)

    def download(self, file: Path) -> None:
        with self.open("rb") as source, file.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)

    # --- changes ---
    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a bucket has no folders."""

    def touch(self, exist_ok: bool = True) -> None:
        """An empty object. With exist_ok=False two at the same moment may both succeed: a bucket cannot say who was first."""
        if self.exists():
            if not exist_ok:
                raise FileExistsError(str(self))
            return
        self.write_bytes(b"")

    def unlink(self, missing_ok: bool = False) -> None:
        if not self.is_file():
            if missing_ok:
                return
            raise FileNotFoundError(str(self))
        self._ask(lambda files: files.delete_file(self.key))

    def replace(self, target: "BucketPath") -> "BucketPath":
        self._ask(lambda files: files.move(self.key, target.key))
        return target

    def _ask(self, question: Any) -> Any:
        try:
            return question(_file_system(self.scheme))
        except FileNotFoundError:
            raise FileNotFoundError(str(self)) from None
        except OSError as error:
            raise ConnectionError(f"{self}: {str(error).splitlines()[0][:300]}") from error


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[n:], pattern[1:]) for n in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


class _Reader(io.RawIOBase):
    """An Arrow stream as Python's own, for whatever wants a file."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.stream.read(len(buffer))
        except OSError as error:
            raise ConnectionError(str(error).splitlines()[0][:300]) from error
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self.stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self.stream.tell())

    def close(self) -> None:
        if not self.closed:
            self.stream.close()
        super().close()


class _Upload(io.BufferedIOBase):
    """Collects in a local file and uploads when it is closed in good order: a block that raises leaves no object."""

    def __init__(self, target: BucketPath) -> None:
        self.target = target
        self.file = tempfile.NamedTemporaryFile("wb", prefix="atlas_ray_upload_")  # noqa: SIM115 - lives as long as this object
        self.failed = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self.file.write(data)

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        self.failed = kind is not None
        self.close()

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        try:
            self.file.flush()
            if not self.failed:
                self.target.upload(Path(self.file.name))
        finally:
            self.file.close()


# --- whole or not at all ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Opened for writing; there when the block has ended without an error. On a disk: temporary file, fsync, rename; in a folder
    that `new_folder` makes, the fsync comes with the folder's."""
    if not isinstance(path, Path):
        with path.open("wb") as upload:
            yield upload
        return
    _make_folder(path.parent)
    partial = hidden(path)
    is_in_new_folder = any(folder.suffix == PARTIAL for folder in path.parents)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            if not is_in_new_folder:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes | str) -> None:
    """A reader sees the old file or the new one, never half of one."""
    with new_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def append_line(path: Path, line: str) -> None:
    """One more line of a small log. In a bucket the object is written anew, so one writer at a time."""
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{line}\n")
        return
    write_atomically(path, (path.read_text() if path.exists() else "") + f"{line}\n")


def create(path: Path, text: str) -> None:
    """A small file that was not there. Raises FileExistsError where it is; on a disk, of several at once, for all but one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(path, Path):
        with path.open("x") as file:
            try:
                file.write(text)
                file.flush()
            except OSError:  # a full disk has room for the name of a file, and none for what is in it
                path.unlink(missing_ok=True)
                raise
    else:
        cast(BucketPath, path).touch(exist_ok=False)
        cast(BucketPath, path).write_text(text)


def settle_s(path: Path) -> float:
    """How long after `create` its outcome is the same for everybody: a bucket keeps what was written last."""
    return 0.0 if isinstance(path, Path) else 2.0


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block has ended without an error; twins lose harmlessly.

    Yields a folder on this machine's disk. In a bucket the files are uploaded afterwards and the marker last: `is_whole`
    says whether all of it is there, also while another one takes its place.
    """
    if isinstance(final, Path):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = hidden(final)
        partial.mkdir()
        try:
            yield partial
            _sync(partial)
            _take_place(partial, final)
        finally:
            remove(partial)
        return
    with tempfile.TemporaryDirectory(prefix="atlas_ray_") as local:
        yield Path(local)
        remove(final / MARKER)
        new = {file.relative_to(local).as_posix(): file for file in sorted(Path(local).rglob("*")) if file.is_file()}
        for name, file in new.items():
            cast(BucketPath, final / name).upload(file)
        for old in final.rglob("*"):
            if old.is_file() and old.relative_to(final).as_posix() not in new:
                old.unlink(missing_ok=True)
        (final / MARKER).write_bytes(b"")


def hidden(path: Path) -> Path:
    """A name beside a file or folder for what is not whole."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


def _make_folder(folder: Path) -> None:
    """A folder and those above it. Where `new_folder`'s own is gone, it stays gone: whoever still writes into it was given up."""
    if folder.suffix == PARTIAL:
        return
    if any(above.suffix == PARTIAL for above in folder.parents):
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
    else:
        folder.mkdir(parents=True, exist_ok=True)


def _take_place(partial: Path, final: Path) -> None:
    """Rename a folder, over one that may be there. That one steps aside first: emptied in its place, it would look whole to whoever
    comes when this process is killed."""
    while True:
        aside = hidden(final)
        with contextlib.suppress(FileNotFoundError):
            final.rename(aside)
        try:
            partial.rename(final)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # a twin was faster, and steps aside in its turn
                shutil.rmtree(aside, ignore_errors=True)
                continue
            with contextlib.suppress(OSError):
                aside.rename(final)
            raise
        shutil.rmtree(aside, ignore_errors=True)
        return


def _sync(folder: Path) -> None:
    """Everything in a folder on the disk. One file after the other while they are written would cost a file system's journal as
    many commits; all of them at the end cost about one."""
    for path, _, names in os.walk(folder):
        for name in names:
            file = os.open(f"{path}/{name}", os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)


def is_whole(folder: Path) -> bool:
    """Whether `new_folder` has finished it."""
    return folder.is_dir() if isinstance(folder, Path) else (folder / MARKER).exists()


def remove(path: Path) -> None:
    """A file or a folder with all that is in it; nothing where there is nothing. A folder is gone at once, and whoever still writes
    into it fails; in a bucket its marker goes first."""
    if isinstance(path, Path):
        if path.is_dir() and not path.is_symlink():
            aside = hidden(path)
            try:
                path.rename(aside)
            except FileNotFoundError:  # somebody else was faster
                return
            except OSError:  # a full disk may not even have room for another name
                aside = path
            shutil.rmtree(aside, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        return
    where: BucketPath = path
    if where.is_dir():
        (where / MARKER).unlink(missing_ok=True)
        where._ask(lambda files: files.delete_dir(where.key))
    else:
        where.unlink(missing_ok=True)


# --- many at once ----------------------------------------------------------------------------------------------------


def stamps(folder: Path, name: str) -> dict[str, int]:
    """Of the folders in a folder that `new_folder` has finished and that hold a file `name`: when that was written, in nanoseconds;
    {} where there is no folder.

    On a disk one question a folder, 100,000 in a second. A bucket lists every object below, a thousand with each answer.
    """
    if not isinstance(folder, Path):
        listed = cast(BucketPath, folder).stats()
        whole = {path.parent.key for path, _ in listed if path.name == MARKER}
        return {p.parent.name: stat.st_mtime_ns for p, stat in listed if p.name == name and p.parent.key in whole}
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(PARTIAL):
                continue
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found[entry.name] = os.stat(f"{entry.path}/{name}").st_mtime_ns  # noqa: PTH116 - a Path each takes twice as long
    return found


def for_arrow(where: str) -> tuple[Any, str]:
    """(pyarrow file system, path in it) of a place; None is this machine's disk. For Ray, which brings its own way to buckets."""
    path = place(where)
    return (None, str(path)) if isinstance(path, Path) else (_file_system(path.scheme), path.key)


# --- for libraries that need files -----------------------------------------------------------------------------------


@contextlib.contextmanager
def as_local(path: Path) -> Iterator[Path]:
    """The file or folder itself on a disk; from a bucket a temporary copy, gone after the block."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="atlas_ray_") as local:
        yield _fetched(path, Path(local) / path.name)


def kept_local(path: Path, cache: Path | None = None, *, may_change: bool = False) -> Path:
    """The same, with a copy that stays on this machine for the next process. The copy appears whole.

    Args:
        cache: where copies are kept; None is ~/.cache/atlas_ray/buckets (or $XDG_CACHE_HOME).
        may_change: whether the bucket is asked each time if something else lies under the name by now. Not of what never does, such
            as the training cache.
    """
    if isinstance(path, Path):
        return path
    seen = [str(path)]
    if may_change:
        seen += [f"{file} {stat}" for file, stat in sorted([(path, path.stat()), *path.stats()])]
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atlas_ray" / "buckets"
    kept = folder / hashlib.sha256("\n".join(seen).encode()).hexdigest()[:24] / path.name
    if not kept.exists():
        with new_folder(kept.parent) as partial:
            _fetched(path, partial / kept.name)
    return kept


def _fetched(path: Any, target: Path) -> Path:
    if path.is_file():
        path.download(target)
        return target
    found = [file for file in path.rglob("*") if file.is_file() and file.name != MARKER]
    if not found:
        raise FileNotFoundError(str(path))
    for file in found:
        inside = target / file.relative_to(path)
        inside.parent.mkdir(parents=True, exist_ok=True)
        file.download(inside)
    return target
