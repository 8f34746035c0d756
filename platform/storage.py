"""Folders under a name, on a file system or in an S3 bucket: complete or not there at all.

On a file system a folder is written under a hidden name and renamed. In S3 the file that
marks it complete is uploaded last and deleted first. The S3 endpoint and credentials are
boto3's own settings (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, …).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

from dynaflip.errors import StoreError, UserError
from dynaflip.files import REPLACED, replace_folder, restore_folder, shared_copy
from dynaflip.platform import s3
from dynaflip.platform.s3_errors import store_error

_STAGING = ".partial-"
# How often a request to an object store is made before it counts as failed.
_ATTEMPTS = 5


class Storage(Protocol):
    """A store of folders of files; ``marker`` is the file that makes one complete."""

    def names(self) -> list[str]:
        """Complete folders, sorted by name."""

    def staging(self) -> Path:
        """A new local folder to write into before :meth:`publish`."""

    def publish(self, staged: Path, name: str) -> None:
        """Store a staged folder under a name; one that is there already is replaced."""

    def fetched(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A local folder with the files, for a block: elsewhere than on a disk it is a copy."""

    def read(self, name: str, file: str) -> bytes:
        """One file of a folder."""

    def remove(self, name: str) -> None:
        """Delete a folder."""

    def remove_unfinished(self) -> None:
        """Delete what killed writers left behind; call it only while none is writing."""


def open_storage(uri: str, marker: str) -> Storage:
    """The storage that a path or ``s3://bucket/prefix`` names.

    Args:
        uri: absolute path or S3 URI.
        marker: the file that is written last in every folder.

    Raises:
        UserError: another scheme, or a folder that cannot be made.
    """
    if uri.startswith("s3://"):
        return S3Storage(uri, marker)
    if "://" in uri:
        raise UserError(f"{uri}: only a path or s3://bucket/prefix can be written to")
    return LocalStorage(Path(uri), marker)


class LocalStorage:
    """Folders of a file system."""

    def __init__(self, root: Path, marker: str) -> None:
        self.root, self.marker = root, marker
        with _store_errors(f"make {root}"):
            root.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """Complete folders, sorted by name."""
        found = [path.parent.name for path in self.root.glob(f"*/{self.marker}")]
        return sorted(name for name in found if not name.startswith("."))

    def staging(self) -> Path:
        """A folder beside the others, so that a rename publishes it."""
        with _store_errors(f"write into {self.root}"):
            staged = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.root))
            staged.chmod(0o755)  # mkdtemp makes folders for their owner alone
            return staged

    def publish(self, staged: Path, name: str) -> None:
        """Flush the files to the disk, then rename their folder."""
        with _store_errors(f"write {self.root / name}"):
            for path in staged.iterdir():
                path.chmod(0o644)
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            replace_folder(staged, self.root / name)

    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """The folder itself."""
        yield self.root / name

    def read(self, name: str, file: str) -> bytes:
        """One file of a folder."""
        with _store_errors(f"read {self.root / name / file}"):
            return (self.root / name / file).read_bytes()

    def remove(self, name: str) -> None:
        """Delete a folder, its marker first."""
        with _store_errors(f"delete {self.root / name}"):
            (self.root / name / self.marker).unlink(missing_ok=True)
            shutil.rmtree(self.root / name)

    def remove_unfinished(self) -> None:
        """Delete staged folders, and put back those whose successor never came."""
        for replaced in self.root.glob(f"{REPLACED}*"):
            restore_folder(self.root / replaced.name.removeprefix(REPLACED))
        for staged in self.root.glob(f"{_STAGING}*"):
            shutil.rmtree(staged, ignore_errors=True)


class S3Storage:
    """Folders of an S3 bucket below a prefix."""

    def __init__(self, uri: str, marker: str) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise UserError(f"{uri}: names no bucket; give s3://bucket/prefix")
        self.uri, self.bucket, self.marker = uri.rstrip("/"), bucket, marker
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""

    def names(self) -> list[str]:
        """Complete folders, sorted by name."""
        keys = self._keys(self.prefix)
        parts = [key.removeprefix(self.prefix).split("/") for key in keys]
        return sorted(part[0] for part in parts if part[1:] == [self.marker])

    def staging(self) -> Path:
        """A temporary folder of this machine."""
        with _store_errors("write a temporary folder"):
            return Path(tempfile.mkdtemp(prefix="dynaflip-"))

    def publish(self, staged: Path, name: str) -> None:
        """Upload the files, the marker last."""
        with _store_errors(f"write {self.uri}/{name}"):
            client = s3.client(_ATTEMPTS)
            client.delete_object(Bucket=self.bucket, Key=self._key(name, self.marker))
            files = sorted(staged.iterdir(), key=lambda path: path.name == self.marker)
            for path in files:
                client.upload_file(str(path), self.bucket, self._key(name, path.name))
            shutil.rmtree(staged)

    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """A copy that the processes of this machine download once, deleted after the last block."""
        # Of other content, as its marker tells, it is another copy.
        content = hashlib.blake2b(self.read(name, self.marker), digest_size=8)
        content.update(f"{self.uri}/{name}".encode())
        copies = Path(tempfile.gettempdir()) / f"dynaflip-{os.getuid()}"
        with shared_copy(copies / content.hexdigest(), partial(self._download, name)) as folder:
            yield folder

    def _download(self, name: str, folder: Path) -> None:
        with _store_errors(f"read {self.uri}/{name}"):
            for key in self._keys(self._key(name, "")):
                target = folder / key.rsplit("/", 1)[-1]
                s3.client(_ATTEMPTS).download_file(self.bucket, key, str(target))

    def read(self, name: str, file: str) -> bytes:
        """One file of a folder."""
        with _store_errors(f"read {self.uri}/{name}/{file}"):
            found = s3.client(_ATTEMPTS).get_object(Bucket=self.bucket, Key=self._key(name, file))
            return found["Body"].read()

    def remove(self, name: str) -> None:
        """Delete a folder, its marker first."""
        with _store_errors(f"delete {self.uri}/{name}"):
            keys = self._keys(self._key(name, ""))
            for key in sorted(keys, key=lambda key: not key.endswith("/" + self.marker)):
                s3.client(_ATTEMPTS).delete_object(Bucket=self.bucket, Key=key)

    def remove_unfinished(self) -> None:
        """Delete uploads that were cut short: files without the marker beside them."""
        files = [key.removeprefix(self.prefix).split("/") for key in self._keys(self.prefix)]
        for name in {file[0] for file in files if len(file) == 2} - {*self.names()}:
            self.remove(name)

    def _key(self, name: str, file: str) -> str:
        return f"{self.prefix}{name}/{file}"

    def _keys(self, prefix: str) -> list[str]:
        with _store_errors(f"list {self.uri}"):
            pages = s3.client(_ATTEMPTS).get_paginator("list_objects_v2")
            found = pages.paginate(Bucket=self.bucket, Prefix=prefix)
            return [item["Key"] for page in found for item in page.get("Contents", [])]


@contextlib.contextmanager
def _store_errors(what: str) -> Iterator[None]:
    """Turn errors of the disk or the object store into one line."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {what}: {error.strerror or error}") from None
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise store_error(what, error) from None
