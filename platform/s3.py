"""Objects in S3 as paths: the part of :class:`pathlib.Path` that sources and triplets use.

Videos are read in ranges, never as a whole unless all of it is needed. An object appears whole
or not at all. A request that fails for reasons of the network or of the server is tried again
with back-off.
Credentials, region and ``AWS_ENDPOINT_URL`` come from the environment, as boto3 has it.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from dynaflip.errors import RefusedError, StoreError, UserError
from dynaflip.platform.passwords import masked
from dynaflip.platform.ranged_file import RangedFile
from dynaflip.platform.s3_errors import (
    ATTEMPTS,
    AccessRefused,
    NetworkError,
    kind_of,
    raise_error,
    try_request,
)

T = TypeVar("T")

_CONNECT_S, _ANSWER_S = 10, 60  # before a request counts as failed
_DELETED_AT_ONCE = 1000  # the most that S3 takes


@dataclass(frozen=True)
class Stat:
    """What is asked of :meth:`pathlib.Path.stat`; ``etag`` changes with an object's content."""

    st_size: int
    etag: str = ""


@dataclass
class Traffic:
    """What was asked of a bucket; counted by several threads."""

    bytes: int = 0
    requests: int = 0
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, size: int) -> None:
        """Count a request and the bytes that came."""
        with self._lock:
            self.bytes += size
            self.requests += 1


@dataclass(frozen=True)
class S3Path:
    """``s3://bucket/key``; ``key`` has no slash at either end."""

    bucket: str
    key: str

    @staticmethod
    def parse(uri: str) -> S3Path:
        """From ``s3://bucket/key``."""
        parts = urlparse(uri, allow_fragments=False)
        # A key may hold a question mark, which a URL parser takes for a query.
        key = parts.path + (f"?{parts.query}" if parts.query else "")
        return S3Path(parts.netloc, key.strip("/"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def __truediv__(self, other: str) -> S3Path:
        return S3Path(self.bucket, f"{self.key}/{other}".strip("/"))

    @property
    def name(self) -> str:
        """The last part of the key, or the bucket."""
        return self.key.rsplit("/", 1)[-1] or self.bucket

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return Path(self.name).stem

    @property
    def parent(self) -> S3Path:
        """One level up."""
        return S3Path(self.bucket, self.key.rpartition("/")[0])

    def resolve(self) -> S3Path:
        """The path itself: there are no links in S3."""
        return self

    def exists(self) -> bool:
        """True if an object or a prefix of this name exists."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """True if there is an object of this name."""
        try:
            return bool(self.key) and self.stat().st_size >= 0
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        """True if there is anything below this name."""
        prefix = f"{self.key}/" if self.key else ""
        answer = _try(
            self, lambda s3: s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=1)
        )
        return bool(answer.get("KeyCount"))

    def stat(self) -> Stat:
        """Size in bytes.

        Raises:
            FileNotFoundError: no such object.
        """
        try:
            answer = _try(self, lambda s3: s3.head_object(Bucket=self.bucket, Key=self.key))
        except AccessRefused:
            # The answer to HEAD has no body to say why; to GET it has.
            self.read_range(0, 1)
            raise
        return Stat(int(answer["ContentLength"]), answer["ETag"])

    def walk(self) -> Iterator[str]:
        """Keys below this one, relative to it."""
        yield from (name for name, _ in self.entries())

    def entries(self) -> Iterator[tuple[str, Stat]]:
        """Keys below this one, relative to it, and their sizes: a request a thousand of them."""
        prefix = f"{self.key}/" if self.key else ""
        token: dict[str, str] = {}
        while True:
            wanted = {"Bucket": self.bucket, "Prefix": prefix, **token}
            page = _try(self, partial(_list_page, wanted=wanted))
            for item in page.get("Contents", []):
                yield item["Key"][len(prefix) :], Stat(int(item["Size"]), item["ETag"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def read_range(self, begin: int, end: int) -> bytes:
        """Bytes from ``begin`` up to ``end``, which is not part of them."""

        def get(s3: Any) -> bytes:
            wanted = {"Bucket": self.bucket, "Key": self.key, "Range": f"bytes={begin}-{end - 1}"}
            data = s3.get_object(**wanted)["Body"].read()
            if len(data) != end - begin:
                raise NetworkError(f"{len(data)} of {end - begin} bytes came")
            return data

        return _try(self, get) if end > begin else b""

    def read_bytes(self) -> bytes:
        """All of it."""
        return self.read_range(0, self.stat().st_size)

    def read_text(self, encoding: str = "utf-8") -> str:
        """All of it as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Write the object; one that is there is replaced in one moment."""
        _try(self, lambda s3: s3.put_object(Bucket=self.bucket, Key=self.key, Body=data))

    def upload(self, file: Path) -> None:
        """Write the object from a local file, in parts where it is large."""
        self._transfer("write", lambda s3: s3.upload_file(str(file), self.bucket, self.key))

    def download(self, file: Path) -> None:
        """Copy the object to a local file, with several requests at a time."""
        self._transfer("read", lambda s3: s3.download_file(self.bucket, self.key, str(file)))

    def _transfer(self, what: str, run: Callable[[Any], None]) -> None:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            run(client(ATTEMPTS))
        except (Boto3Error, BotoCoreError, ClientError) as error:
            kind, reason = kind_of(error)
            raise_error(f"cannot {what} {self}", kind, reason)
            raise NetworkError(f"cannot {what} {self}: {' '.join(str(error).split())}") from None

    def copy_to(self, other: S3Path) -> None:
        """Copy the object within the store; of at most 5 GB."""
        source = {"Bucket": self.bucket, "Key": self.key}
        _try(
            self,
            lambda s3: s3.copy_object(Bucket=other.bucket, Key=other.key, CopySource=source),
        )

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Delete the object; S3 does not say whether there was one."""
        _try(self, lambda s3: s3.delete_object(Bucket=self.bucket, Key=self.key))

    def delete_below(self, names: Iterable[str]) -> None:
        """Delete objects by their keys relative to this one, while they are listed."""
        waiting = iter(names)
        while some := list(islice(waiting, _DELETED_AT_ONCE)):
            keys = [{"Key": (self / name).key} for name in some]
            _try(self, partial(_delete, bucket=self.bucket, keys=keys))

    def open(self, mode: str = "rb") -> io.BufferedIOBase | RangedFile:
        """A seekable file that reads ranges."""
        assert mode == "rb"
        return RangedFile(self)


def arrow_filesystem() -> Any:
    """pyarrow's S3 file system, for Parquet, at the endpoint that boto3 would use."""
    return _arrow_filesystem(os.getpid(), _endpoint())


@lru_cache(maxsize=4)
def _arrow_filesystem(process: int, endpoint: str) -> Any:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    options: dict[str, Any] = {
        "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        "connect_timeout": _CONNECT_S,
        "request_timeout": _ANSWER_S,
    }
    if endpoint:
        parts = urlparse(endpoint)
        options |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
        options["region"] = client().meta.region_name
    return S3FileSystem(**options)


def check_bucket(path: S3Path, setting: str) -> None:
    """Refuse a path whose bucket cannot be listed; one request.

    Raises:
        UserError: there is no such bucket.
        RefusedError: the credentials are refused.
        StoreError: nothing answers at the endpoint.
    """
    if not path.bucket:
        raise UserError(f"{setting}: {path} names no bucket; give s3://bucket/prefix")
    where = _endpoint() or "AWS"
    try:
        path.is_dir()
    except FileNotFoundError:
        raise UserError(
            f"{setting}: there is no bucket {path.bucket} at {where}; make it, or correct "
            f"{path} or AWS_ENDPOINT_URL"
        ) from None
    except AccessRefused as error:
        raise RefusedError(f"{setting}: {where} does not let us read {error}") from None
    except OSError as error:
        raise StoreError(
            f"{setting}: {where} does not let us read {error}; check AWS_ENDPOINT_URL and the "
            f"network"
        ) from None


def _endpoint() -> str:
    stated = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    parts = urlparse(stated)
    if stated and not (parts.scheme in ("http", "https") and parts.netloc):
        raise UserError(f"AWS_ENDPOINT_URL={masked(stated)}: give http://HOST:PORT or https://HOST")
    return stated


def client(attempts: int = 1) -> Any:
    """The boto3 client of this process, for the endpoint of the environment.

    Args:
        attempts: how often boto3 makes a request; the paths of this module try again themselves.
    """
    return _client(os.getpid(), _endpoint(), attempts)


@lru_cache(maxsize=4)
def _client(process: int, endpoint: str, attempts: int) -> Any:
    import boto3
    from botocore.config import Config

    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    retries = {"total_max_attempts": attempts, "mode": "standard"}
    config = Config(
        retries=retries,
        connect_timeout=_CONNECT_S,
        read_timeout=_ANSWER_S,
        max_pool_connections=32,
    )
    return boto3.client("s3", region_name=region, endpoint_url=endpoint or None, config=config)


def _list_page(s3: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    return s3.list_objects_v2(**wanted)


def _delete(s3: Any, bucket: str, keys: list[dict[str, str]]) -> None:
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
    if failed := answer.get("Errors"):
        raise NetworkError(f"{failed[0].get('Key')} was not deleted: {failed[0].get('Code')}")


def _try(path: S3Path, request: Callable[[Any], T]) -> T:
    """Make a request with this process's client, again while its failure may pass."""
    return try_request(path, lambda: request(client()))
