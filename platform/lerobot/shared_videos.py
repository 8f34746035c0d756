"""Which frames of a shared video are an episode's, by the lengths of the episodes in it.

LeRobot v3.0 puts many episodes into one video. Where an episode's frames lie is stated twice: by
``from_timestamp`` and by the lengths of the episodes before it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

_NOT_STATED = -1


@dataclass(frozen=True)
class Place:
    """Place of an episode among the frames of its video.

    Args:
        before: frames of earlier episodes in the file.
        total: frames of all episodes in the file.
        episodes: how many there are.
    """

    before: int
    total: int
    episodes: int


class SharedVideos:
    """The videos of one camera: which episodes lie in each, in some 50 bytes an episode."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._file, self._index, self._length = array("q"), array("q"), array("q")
        self._start_s = array("d")
        self._places: tuple[array[int], array[int], array[int], array[int]] | None = None

    def add(self, index: int, length: int | None, path: str, start_s: float) -> None:
        """Note an episode.

        Args:
            index: its number; all others' differ.
            length: its number of frames, None where that is not stated.
            path: of its video.
            start_s: where it begins there, in seconds.
        """
        self._places = None
        self._file.append(self._files.setdefault(path, len(self._files)))
        self._index.append(index)
        self._length.append(_NOT_STATED if length is None else length)
        self._start_s.append(start_s)

    def place(self, index: int) -> Place | None:
        """Place of an episode; None where it is not noted, or a length in its file not stated."""
        if self._places is None:
            self._places = self._sorted()
        indices, before, total, episodes = self._places
        at = bisect_left(indices, index)
        if at == len(indices) or indices[at] != index or total[at] == _NOT_STATED:
            return None
        return Place(before[at], total[at], episodes[at])

    def _sorted(self) -> tuple[array[int], array[int], array[int], array[int]]:
        """By ascending index: index, frames before, frames of the file, episodes of the file."""
        file, index, length = (
            np.array(v, np.int64) for v in (self._file, self._index, self._length)
        )
        order = np.lexsort((index, np.array(self._start_s), file))
        file, index, length = file[order], index[order], length[order]
        firsts = np.flatnonzero(np.r_[True, file[1:] != file[:-1]]) if len(file) else file
        episodes = np.diff(np.r_[firsts, len(file)])
        ends = np.cumsum(length)
        begins = np.repeat((ends - length)[firsts], episodes)
        total = np.repeat(np.add.reduceat(length, firsts), episodes) if len(file) else file
        lacking = (
            np.repeat(np.minimum.reduceat(length, firsts) < 0, episodes) if len(file) else file
        )
        total = np.where(lacking, _NOT_STATED, total)
        columns = (index, ends - length - begins, total, np.repeat(episodes, episodes))
        by_index = np.argsort(index)
        indices, before, totals, counts = (array("q", c[by_index].tobytes()) for c in columns)
        return indices, before, totals, counts
