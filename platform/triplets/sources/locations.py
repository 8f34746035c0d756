"""Locations of a source's files: a local folder or a prefix in S3, read the same way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.platform.s3 import S3Path, arrow_filesystem
from dynaflip.platform.s3_errors import NetworkError
from dynaflip.platform.triplets.sources.contents import HEAD_BYTES, other_kind

Location = Path | S3Path

_FINGERPRINT_BYTES = 256 << 10
# A pointer of Git LFS or git-annex, or an error message, is shorter than any recording.
_POINTER_BYTES = 1024
_PARALLEL_REQUESTS = 16
_ROWS_AT_ONCE = 256
_COLUMN_BUFFER_BYTES = 64 << 10


def location_of(text: str) -> Location:
    """A path or an ``s3://`` URI."""
    return S3Path.parse(text) if text.startswith("s3://") else Path(text)


def is_within(name: str) -> bool:
    """True where a relative name stays below the folder that it is relative to."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def list_files(root: Location) -> list[str]:
    """Every file below ``root`` by its relative path, sorted; hidden ones left out.

    Links to folders are followed, each folder once, so that a loop of them ends.
    """
    found = root.walk() if isinstance(root, S3Path) else _walk(root)
    return sorted(filter(is_visible, found))


class Stamp(NamedTuple):
    """Size in bytes, and what changes with a file's content: its ETag, or when it was changed."""

    size: int
    changed: str

    @property
    def text(self) -> str:
        """Both in one line."""
        return f"{self.size} {self.changed}"


_GONE = Stamp(-1, "")


def list_stamps(root: Location, names: Sequence[str] = ()) -> dict[str, Stamp]:
    """Files as :func:`list_files` lists them, with their stamps: one listing of a bucket.

    Args:
        root: folder or prefix.
        names: look at these alone.
    """
    if isinstance(root, S3Path):
        listed = ((name, root / name) for name in names)
        found = ((n, path.stat()) for n, path in listed) if names else root.entries()
        stamps = {name: Stamp(stat.st_size, stat.etag) for name, stat in found}
    else:
        stamps = {name: _stamp(root, name) for name in names or _walk(root)}
    chosen = sorted(stamps) if names else sorted(filter(is_visible, stamps))
    return {name: stamps[name] for name in chosen}


def _stamp(root: Path, name: str) -> Stamp:
    try:
        about = os.stat(root / name)
    except OSError:  # a link that leads nowhere; said where the file is read
        return _GONE
    return Stamp(about.st_size, str(about.st_mtime_ns))


def is_visible(name: str) -> bool:
    """True where a file is listed: those with a leading dot, and below such folders, are not."""
    return not any(part[:1] == "." for part in name.split("/"))


def root_and_files(text: str) -> tuple[Location, list[str]]:
    """Root folder of a source's path and the files below it; of a single file only that one."""
    location = location_of(text)
    if location.is_file():
        return location.parent, [location.name]
    return location, list_files(location)


def _walk(root: Path) -> Iterator[str]:
    about = os.stat(root)
    seen = {(about.st_dev, about.st_ino)}

    def fail(error: OSError) -> None:  # clips of a folder that cannot be read are not passed over
        raise error

    for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
        chosen = []
        for name in sorted(folders):
            about = os.stat(os.path.join(folder, name))
            if (about.st_dev, about.st_ino) not in seen:
                seen.add((about.st_dev, about.st_ino))
                chosen.append(name)
        folders[:] = chosen
        for name in files:
            yield (Path(folder) / name).relative_to(root).as_posix()


def fingerprint(path: Location) -> str:
    """Hash of a file's length and of 256 KiB at its beginning, middle and end.

    Enough to tell recordings apart without reading terabytes twice.
    """
    return _fingerprint(path).digest


def _fingerprint(path: Location, listed: Stamp | None = None) -> Fingerprint:
    """The fingerprint, or what the file is instead of a recording, as far as its length tells.

    A bucket's listing tells the size without another request.
    """
    far = isinstance(path, S3Path) and listed is not None
    size = listed.size if far and listed is not None else path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    offsets = sorted({0, max(0, size // 2), max(0, size - _FINGERPRINT_BYTES)})
    head = b""
    if isinstance(path, S3Path):
        for offset in offsets:
            data = path.read_range(offset, min(size, offset + _FINGERPRINT_BYTES))
            head = head or data[:HEAD_BYTES]
            digest.update(data)
    else:
        with path.open("rb") as file:
            for offset in offsets:
                file.seek(offset)
                data = file.read(_FINGERPRINT_BYTES)
                head = head or data[:HEAD_BYTES]
                digest.update(data)
    problem = other_kind(head) if size <= _POINTER_BYTES and any(head) else ""
    return Fingerprint(digest.hexdigest()[:32], problem)


def is_temporary(location: Location, error: BaseException | None) -> bool:
    """True where reading failed for a temporary reason; pyarrow raises OSError for any of S3's."""
    failed = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    return failed and isinstance(location, S3Path)


class Fingerprint(NamedTuple):
    """A fingerprint, or "" and why there is none; whether the file could be read."""

    digest: str
    problem: str = ""
    read: bool = True


def fingerprints(
    root: Location, names: list[str], listed: Mapping[str, Stamp] = MappingProxyType({})
) -> dict[str, Fingerprint]:
    """Fingerprints of files by name, many at a time where the network is slow.

    Args:
        root: folder that names are relative to.
        names: of the files.
        listed: stamps of those that a listing tells.
    """

    def attempt(name: str) -> Fingerprint:
        try:
            found = _fingerprint(root / name, listed.get(name))
        except OSError as error:
            return Fingerprint("", error.strerror or str(error), read=False)
        except ValueError as error:  # a name that no file can have
            return Fingerprint("", str(error), read=False)
        return Fingerprint("", found.problem) if found.problem else found

    with ThreadPoolExecutor(_PARALLEL_REQUESTS if isinstance(root, S3Path) else 1) as pool:
        return dict(zip(names, pool.map(attempt, names), strict=True))


def source_name(chosen: str, root: Location) -> str:
    """Name of a source in the triplets: the chosen one, or that of its folder as any text."""
    # Names on disk need not be UTF-8.
    return chosen or root.resolve().name.encode("utf-8", "backslashreplace").decode()


def other_kind_of(path: Location) -> str:
    """The kind of the file at a path instead of the expected one, "" where that is not known."""
    try:
        with path.open("rb") as file:
            return other_kind(file.read(HEAD_BYTES))
    except (OSError, ValueError):
        return ""


def why_unreadable(path: Location, error: BaseException) -> str:
    """Why a file cannot be read: what it is instead of its kind, or the error's first line."""
    kind = "" if isinstance(error, NetworkError) else other_kind_of(path)
    if kind:
        return kind
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0] if text else type(error).__name__


def read_table(path: Location, columns: list[str] | None = None, filters: Any = None) -> pa.Table:
    """Read a Parquet file, or some columns and rows of it."""
    with _arrow(path) as (source, options):
        return pq.read_table(source, columns=columns, filters=filters, **options)


def read_rows(path: Location, without: str = "") -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file; columns that begin with ``without`` are left out.

    Memory holds some rows, or in a bucket a row group.
    """
    with _arrow(path) as (source, options):
        far = isinstance(path, S3Path)
        options |= {"pre_buffer": far, "buffer_size": 0 if far else _COLUMN_BUFFER_BYTES}
        with pq.ParquetFile(source, **options) as file:
            names = [n for n in file.schema_arrow.names if not (without and n.startswith(without))]
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=names, use_threads=False):
                yield from batch.to_pylist()


def read_schema(path: Location) -> pa.Schema:
    """The schema of a Parquet file, without its rows."""
    with _arrow(path) as (source, options):
        return pq.read_schema(source, **options)


@contextmanager
def _arrow(path: Location) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The argument that pyarrow opens: a name, or a file where its name is not UTF-8."""
    if isinstance(path, S3Path):
        yield f"{path.bucket}/{path.key}", {"filesystem": arrow_filesystem()}
        return
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield file, {}
    else:
        yield str(path), {}
