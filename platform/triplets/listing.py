"""Clips as a source lists them, in shards, while the first of them are in work already.

A shard is named by its clips, so a job that was killed and lists again finds what it has finished.
The shards are handed out in waves, and the next wave is listed while one is in work: memory holds
two of them, however many clips there are.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice

from dynaflip.platform.triplets.clips import Clip, Source, content_hash
from dynaflip.platform.triplets.ledger import Ledger

_LEAST_SHARDS = 16  # of a set that has as many clips
_NAME_LETTERS = 20
# A wave ends with the longest of its shards: the more there are, the less do CPUs wait for it.
_WAVE_SHARDS = 512
_WAVE_SHARDS_A_CPU = 64
_WAVE_CLIPS = 2048


@dataclass(frozen=True)
class Shard:
    """The clips of one Ray task."""

    name: str
    clips: tuple[Clip, ...]


class Listing:
    """Lists a source once; what is known of it so far can be asked at any time.

    Args:
        source: whose clips are wanted.
        ledger: of finished clips, which claims those that are listed as they were.
        clips_per_shard: most clips of a shard.
    """

    def __init__(self, source: Source, ledger: Ledger, clips_per_shard: int) -> None:
        self.clips = 0
        self.ended = False
        self.checksum = 0  # of the clips in any order
        self._digest = hashlib.sha256()
        self._source, self._ledger = source, ledger
        self._most = clips_per_shard
        self._claimed: deque[str] = deque()
        self._stopped = threading.Event()

    def digest(self) -> str:
        """Digest of all clips, when they are listed: of their order, too."""
        assert self.ended
        return self._digest.hexdigest()

    def claimed(self) -> list[str]:
        """Stages of clips that the ledger had, "" of those with triplets, since the last call."""
        return [self._claimed.popleft() for _ in range(len(self._claimed))]

    def waves(self, cpus: Callable[[], int] = lambda: 1) -> Generator[list[Shard], None, None]:
        """The shards, many at a time; a thread lists the next ones meanwhile, until it is closed.

        Args:
            cpus: that work on them; more may join.
        """
        waves = self._waves(cpus)
        pool = ThreadPoolExecutor(1, "listing")
        try:
            coming: Future[list[Shard]] = pool.submit(next, waves, [])
            while wave := coming.result():
                coming = pool.submit(next, waves, [])
                yield wave
        finally:
            self._stopped.set()
            pool.shutdown()

    def _waves(self, cpus: Callable[[], int]) -> Iterator[list[Shard]]:
        shards = self.shards()
        while first := list(islice(shards, 1)):
            most = _WAVE_SHARDS_A_CPU * cpus()
            clips = max(_WAVE_CLIPS, most * self._most)
            number = max(1, min(max(_WAVE_SHARDS, most), clips // len(first[0].clips)))
            yield first + list(islice(shards, number - 1))

    def shards(self) -> Iterator[Shard]:
        """Shards of the clips that the ledger has not claimed."""
        left = self._left()
        # Small sets in small shards, so that every CPU has work.
        first = list(islice(left, self._most * _LEAST_SHARDS))
        size = max(1, len(first) // _LEAST_SHARDS)
        clips = chain(first, left)
        number = 0
        while several := list(islice(clips, size)):
            # Clips with a problem may be listed twice, just the same.
            where = [str(number)] if any(clip.problem for clip, _ in several) else []
            name = content_hash(*(digest for _, digest in several), *where)[:_NAME_LETTERS]
            yield Shard(f"part-{name}", tuple(clip for clip, _ in several))
            number += 1
        self.ended = True

    def _left(self) -> Iterator[tuple[Clip, str]]:
        """Clips that are to be made, and their digests."""
        for clip in self._source.list_clips():
            if self._stopped.is_set():
                return
            digest = clip.digest()
            self.clips += 1
            self.checksum += int(digest, 16)
            self._digest.update(digest.encode())
            stage = self._ledger.claim(digest)
            if stage is None:
                yield clip, digest
            else:
                self._claimed.append(stage)
