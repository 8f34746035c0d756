"""A remote object as a seekable file that reads ranges."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any, Protocol

_BLOCK_BYTES = 256 << 10
# Blocks cached by an open file (8 MiB), and the most that one request asks for (2 MiB).
_CACHED_BLOCKS = 32
_MOST_BLOCKS = 8


class _Stat(Protocol):
    @property
    def st_size(self) -> int: ...


class Ranged(Protocol):
    """What can be read in ranges: :class:`dynaflip.platform.s3.S3Path`."""

    def stat(self) -> _Stat:
        """Its size."""

    def read_range(self, begin: int, end: int) -> bytes:
        """Bytes from ``begin`` up to ``end``."""


class RangedFile(io.RawIOBase):
    """A seekable file over ranged reads, with a cache of a few blocks.

    Reading on from where the last request ended doubles the size of the next one.
    """

    def __init__(self, path: Ranged) -> None:
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
