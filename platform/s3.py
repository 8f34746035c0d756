"""Objects in S3 as paths: the part of :class:`pathlib.Path` that sources and triplets use.

Videos are read in ranges, never as a whole unless all of it is needed. An object appears whole
or not at all. A request that fails for reasons of the network or of the server is tried again
with back-off.
Credentials, region and ``AWS_ENDPOINT_URL`` come from the environment, as boto3 has it.
"""

from __future__ import annotations

import io
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from dynaflip.errors import StoreError, UserError

T = TypeVar("T")

_ATTEMPTS = 6
_FIRST_WAIT_S = 0.2
_BLOCK_BYTES = 256 << 10
# Blocks cached by an open file (8 MiB), and the most that one request asks for (2 MiB).
_CACHED_BLOCKS = 32
_MOST_BLOCKS = 8
_CONNECT_S, _ANSWER_S = 10, 60  # before a request counts as failed
_DELETED_AT_ONCE = 1000  # the most that S3 takes
_MISSING = ("404", "NoSuchKey", "NoSuchBucket", "NotFound")
# The credentials' fault and not the object's: with others it can be read. The answer to HEAD has
# no body that names an expired token, and is a bare 400.
_NO_ENTRY = ("400", "AccessDenied", "ExpiredToken", "InvalidToken", "RequestExpired")


class NetworkError(OSError):
    """The object store did not answer or broke off more often than we try, or did not let us in.

    What was listed was open to us then, so this may pass too.
    """


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
        """Whether an object or a prefix of this name exists."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        try:
            return bool(self.key) and self.stat().st_size >= 0
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        """Whether there is anything below this name."""
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
        answer = _try(self, lambda s3: s3.head_object(Bucket=self.bucket, Key=self.key))
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
            run(client(_ATTEMPTS))
        except (Boto3Error, BotoCoreError, ClientError) as error:
            reason = " ".join(str(error).split())
            raise NetworkError(f"cannot {what} {self}: {reason}") from None

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

    def delete_below(self, names: list[str]) -> None:
        """Delete objects by their keys relative to this one."""
        for begin in range(0, len(names), _DELETED_AT_ONCE):
            some = names[begin : begin + _DELETED_AT_ONCE]
            keys = [{"Key": (self / name).key} for name in some]
            _try(self, partial(_delete, bucket=self.bucket, keys=keys))

    def open(self, mode: str = "rb") -> io.BufferedIOBase | RangedFile:
        """A seekable file that reads ranges."""
        assert mode == "rb"
        return RangedFile(self)


class RangedFile(io.RawIOBase):
    """A seekable file over ranged reads, with a cache of a few blocks.

    Reading on from where the last request ended doubles the size of the next one.
    """

    def __init__(self, path: S3Path) -> None:
        self.path = path
        self.name = str(path)
        self.size = path.stat().st_size
        self.position = 0
        self.bytes_asked = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next, self._ahead = -1, 1

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position of the next byte."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; nothing is read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self.position = base + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as one block goes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Exactly ``size`` bytes, or what is left."""
        end = self.size if size is None or size < 0 else min(self.size, self.position + size)
        out = []
        while self.position < end:
            number, within = divmod(self.position, _BLOCK_BYTES)
            part = self._block(number, end)[within : within + end - self.position]
            out.append(part)
            self.position += len(part)
        return b"".join(out)

    def _block(self, number: int, end: int) -> bytes:
        if number not in self._blocks:
            self._ahead = min(_MOST_BLOCKS, 2 * self._ahead) if number == self._next else 1
            wanted = -(-end // _BLOCK_BYTES) - number
            count = min(_MOST_BLOCKS, max(self._ahead, wanted))
            begin = number * _BLOCK_BYTES
            data = self.path.read_range(begin, min(self.size, begin + count * _BLOCK_BYTES))
            self.bytes_asked += len(data)
            for n in range(-(-len(data) // _BLOCK_BYTES)):
                self._blocks[number + n] = data[n * _BLOCK_BYTES : (n + 1) * _BLOCK_BYTES]
            self._next = number + count
        self._blocks.move_to_end(number)
        while len(self._blocks) > _CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return self._blocks[number]


def arrow_filesystem() -> Any:
    """pyarrow's S3 file system, for Parquet, at the endpoint that boto3 would use."""
    return _arrow_filesystem(os.getpid(), _endpoint())


@lru_cache(maxsize=4)
def _arrow_filesystem(process: int, endpoint: str) -> Any:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    options: dict[str, Any] = {
        "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
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
        StoreError: the credentials are refused, or nothing answers at the endpoint.
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
    except OSError as error:
        raise StoreError(
            f"{setting}: {where} does not let us read {error}; check AWS_ENDPOINT_URL and the "
            f"credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
        ) from None


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


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
    """Make a request, again with growing waits while the failure may pass."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        ParamValidationError,
    )
    from urllib3.exceptions import HTTPError

    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            # Spread out, so that many readers do not come back at the same moment.
            time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
        try:
            return request(client())
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code in _MISSING:
                raise FileNotFoundError(f"there is no {path}") from None
            if status in (401, 403) or code in _NO_ENTRY:
                raise NetworkError(f"{path}: {code or status}") from None
            if status < 500 and status != 429 and code not in ("SlowDown", "RequestTimeout"):
                raise PermissionError(f"{path}: {code or status}") from None
            reason = code or str(status)
        except ParamValidationError as error:
            raise FileNotFoundError(f"{path}: {' '.join(str(error).split())}") from None
        except NoCredentialsError:
            raise NetworkError(f"{path}: no AWS credentials found") from None
        except (BotoCoreError, HTTPError, NetworkError, ConnectionError, TimeoutError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise NetworkError(f"{path}: gave up after {_ATTEMPTS} attempts ({reason})")
