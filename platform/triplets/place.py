"""Files of a triplet folder, on a file system or in a bucket: whole or not there at all.

On a file system a file is written under a hidden name and renamed; for a bucket it is written on
this machine and uploaded, and an object appears when the last of it has come.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip import files
from dynaflip.errors import RefusedError, StoreError
from dynaflip.platform.s3 import S3Path, arrow_filesystem
from dynaflip.platform.s3_errors import AccessRefused, NetworkError

# Both have `/`, name, stem, parent, exists, is_file, is_dir, stat, read_bytes and read_text.
Place = Path | S3Path

_REQUESTS = 16  # at a time


def place_of(text: str) -> Place:
    """A path or an ``s3://`` URI."""
    return S3Path.parse(text) if text.startswith("s3://") else Path(text)


def names(folder: Place) -> list[str]:
    """The complete files in a folder, sorted; none where there is no such folder."""
    return sorted(each_name(folder))


def each_name(folder: Place) -> Iterator[str]:
    """The same in any order, one after the other: there may be millions."""
    if isinstance(folder, S3Path):
        yield from (name for name in folder.walk() if "/" not in name)
    elif folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file() and not entry.name.endswith(files.UNFINISHED):
                    yield entry.name


def stamps(folder: Place) -> dict[str, tuple[int, str]]:
    """Size in bytes of each complete file in a folder, and what changes with its content.

    One listing of a bucket, whatever the number of files.
    """
    if isinstance(folder, S3Path):
        found = ((name, (stat.st_size, stat.etag)) for name, stat in folder.entries())
        return {name: stamp for name, stamp in found if "/" not in name}
    if not folder.is_dir():
        return {}
    return {
        path.name: (path.stat().st_size, str(path.stat().st_mtime_ns))
        for path in folder.iterdir()
        if path.is_file() and not path.name.endswith(files.UNFINISHED)
    }


def write(path: Place, data: bytes | str) -> None:
    """Write a file; text is written as UTF-8."""
    if isinstance(path, S3Path):
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    else:
        files.write_file(path, data)


def staged(path: Place) -> Path:
    """A local path that no other process uses, to write a file to before :func:`publish`."""
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return files.unfinished_path(path)
    folder = Path(tempfile.gettempdir()) / f"dynaflip-uploads-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return files.unfinished_path(folder / path.name)


def publish(written: Path, path: Place) -> None:
    """Give a file of :func:`staged` its name; of one for a bucket nothing stays here."""
    if isinstance(path, Path):
        files.move(written, path)
        return
    try:
        path.upload(written)
    finally:
        written.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: Place) -> Iterator[Path]:
    """Write a file through the local path that this yields; published when the block ends."""
    written = staged(path)
    try:
        yield written
        publish(written, path)
    finally:
        written.unlink(missing_ok=True)


@contextlib.contextmanager
def local_copy(path: Place) -> Iterator[Path]:
    """A local path of a whole file, for a block: of a bucket's it is a copy."""
    if isinstance(path, Path):
        yield path
        return
    copy = staged(path)
    try:
        path.download(copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def read_texts(paths: Iterable[Place]) -> Iterator[str]:
    """The texts of files in their order, many requests at a time; few of them are in memory."""
    coming: deque[Future[str]] = deque()
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for path in paths:
            coming.append(pool.submit(path.read_text))
            if len(coming) == _REQUESTS:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def read_table(path: Place, columns: list[str] | None = None) -> pa.Table:
    """Read a small Parquet file, or some columns of it."""
    source = pa.BufferReader(path.read_bytes()) if isinstance(path, S3Path) else path
    return pq.read_table(source, columns=columns)


@contextlib.contextmanager
def open_parquet(path: Place) -> Iterator[pq.ParquetFile]:
    """A Parquet file to read row groups of; in a bucket only these are asked for."""
    if isinstance(path, S3Path):
        with pq.ParquetFile(
            f"{path.bucket}/{path.key}", filesystem=arrow_filesystem(), pre_buffer=True
        ) as file:
            yield file
    else:
        with pq.ParquetFile(path) as file:
            yield file


def copy(path: Place, to: Place) -> None:
    """Copy a file beside others of its kind of place; one that is there already stays."""
    if isinstance(path, S3Path):
        assert isinstance(to, S3Path)
        path.copy_to(to)
        return
    assert isinstance(to, Path)
    if not to.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, to)
        except OSError:  # a file system without hard links
            with files.new_file(to) as unfinished:
                shutil.copy2(path, unfinished)


def copy_all(pairs: Sequence[tuple[Place, Place]]) -> None:
    """Copy files, many requests at a time."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        list(pool.map(lambda pair: copy(*pair), pairs))


def remove(folder: Place) -> None:
    """Delete a folder and all that is in it, where it is there."""
    if isinstance(folder, S3Path):
        folder.delete_below(folder.walk())
        return
    # One after the other: `rmtree` holds a list of a folder's entries, of which there are millions.
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def one_line_errors(setting: str) -> Iterator[None]:
    """Raise what a bucket refuses as one line.

    Raises:
        StoreError: the bucket does not answer.
        RefusedError: it lets us in no more.
    """
    try:
        yield
    except AccessRefused as error:
        raise RefusedError(
            f"{setting}: {error}; then run the same command again to go on"
        ) from None
    except NetworkError as error:
        raise StoreError(f"{setting}: {error}; run the same command again to go on") from None
