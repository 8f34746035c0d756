"""How much a model is asked at once: less, and for good, where memory runs out.

A batch that does not fit is halved until it does, and the size that fits stays for all that the
actor does later. Actors of the same stage leave it to each other beside the notes of attempts, so
that one which starts later, or again, does not fail as often as the first. The driver says it once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.place import Place


class BatchSize:
    """The most questions at once.

    Args:
        most: to begin with; 0: however many there are.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._note: Place | None = None
        self._halved: dict[str, Any] = {}

    def of(self, waiting: int) -> int:
        """How many of the questions that wait are asked at once."""
        return min(waiting, self.most) if self.most else waiting

    def share(self, note: Place) -> None:
        """Take the size that others have left in a file, and leave smaller ones there."""
        self._note = note
        self._learn()

    def halve(self, tried: int, error: Exception) -> None:
        """So many at once did not fit: half of them, or what others found to fit, is the most."""
        said = (str(error).splitlines() or [type(error).__name__])[0]
        first = self._halved.get("tried", tried)
        self.most = max(1, tried // 2)
        self._halved = {"tried": first, "fits": self.most, "error": said}
        self._learn()
        if self._note is not None:
            place.write(self._note, json.dumps(self._halved))

    def news(self) -> dict[str, Any]:
        """Changes since the last call, for :class:`BatchNews`; {} where there are none."""
        news, self._halved = self._halved, {}
        return news

    def _learn(self) -> None:
        """Take over what others found; it is told again, since they may have died before."""
        if self._note is None:
            return
        try:
            left = json.loads(self._note.read_text())
        except FileNotFoundError:
            return
        if not self.most or left["fits"] <= self.most:
            self.most, self._halved = left["fits"], left


class BatchNews:
    """Lines about batches that did not fit: one for each size, however many actors met it."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}

    def lines(self, news: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
        """Lines for what is new in the news of stages, as :meth:`BatchSize.news` gives it."""
        lines = []
        for stage, one in news:
            if one and one["fits"] < self._said.get(stage, one["fits"] + 1):
                self._said[stage] = one["fits"]
                lines.append(
                    f"{stage}: memory ran out with {one['tried']} at once; {one['fits']} at once "
                    f"from now on ({one['error']})"
                )
        return lines


def note_of(attempts: Place, stage: str) -> Place:
    """The file by which the actors of a stage tell each other how much fits."""
    return attempts / f"batch-of-{stage}"


def forget(attempts: Place, stages: Iterable[str]) -> None:
    """Forget what fitted in an earlier run, whose machines may have had less memory."""
    for stage in stages:
        note_of(attempts, stage).unlink(missing_ok=True)
