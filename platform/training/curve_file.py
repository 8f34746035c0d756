"""A run's curves on disk: one line a report, and how far MLflow has had them.

``metrics.jsonl`` is only ever appended to, and is complete whether or not MLflow answers; its size
is bounded by the run's length (about 2 kB a report). ``metrics.sent`` holds how many of its bytes
MLflow has confirmed. Each line carries the time of its report: MLflow takes a point with the same
name, step, time and value once, so a batch that is sent again after a crash leaves no trace.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dynaflip.errors import StoreError
from dynaflip.files import write_file

Metrics = dict[str, float]
METRICS, SENT = "metrics.jsonl", "metrics.sent"
# A process that is killed loses nothing of what it has written; a machine that loses its power, at
# most what came in these seconds, which a resumed run reports again.
_SYNC_S = 5.0
_TIME = "time_ms"


@dataclass(frozen=True)
class Point:
    """The values of all curves at one step."""

    step: int
    time_ms: int  # when it was reported
    values: Metrics


class CurveFile:
    """The curves of a run, in its folder."""

    def __init__(self, folder: Path) -> None:
        self.path, self.mark = folder / METRICS, folder / SENT
        self._file: IO[bytes] | None = None
        self._synced_s = 0.0

    def last_step(self) -> int:
        """The last step on disk, -1 without one. Cuts off half a line that a kill left."""
        if not self.path.exists():
            return -1
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        return max((point.step for point, _ in _points(data[:whole])), default=-1)

    def adopt(self, read: Callable[[], dict[str, list[tuple[int, float]]]]) -> None:
        """Begin with the curves of a run that was started before there were such files."""
        if self.path.exists():
            return
        steps: dict[int, Metrics] = {}
        for name, points in read().items():
            for step, value in points:
                steps.setdefault(step, {})[name] = value
        lines = [
            json.dumps({"step": step, _TIME: 0, **steps[step]}) + "\n" for step in sorted(steps)
        ]
        write_file(self.path, "".join(lines))
        self.mark_sent(self.path.stat().st_size)

    def append(self, step: int, values: Metrics) -> None:
        """Append a point; values that are not finite are left out, as MLflow takes none.

        Raises:
            StoreError: the disk refuses.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line = json.dumps({"step": step, _TIME: time.time_ns() // 1_000_000, **finite}) + "\n"
        try:
            if self._file is None:
                self._file = self.path.open("ab")
            self._file.write(line.encode())
            self._file.flush()
            if time.monotonic() - self._synced_s > _SYNC_S:
                self.sync()
        except OSError as error:
            raise StoreError(
                f"curves: cannot write {self.path}: {error.strerror}; make room, then go on "
                "with --resume"
            ) from None

    def sync(self) -> None:
        """Bring what is written to the disk itself."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._synced_s = time.monotonic()

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Every curve as (step, value), in order."""
        found: dict[str, list[tuple[int, float]]] = {}
        for point, _ in _points(self.path.read_bytes() if self.path.exists() else b""):
            for name, value in point.values.items():
                found.setdefault(name, []).append((point.step, value))
        return found

    def unsent(self, most_values: int) -> tuple[list[Point], int]:
        """The next points for MLflow, and how many bytes are sent once it has them.

        Args:
            most_values: of all curves together; one point may have more.
        """
        points: list[Point] = []
        end = self._sent()
        if not self.path.exists():
            return points, end
        with self.path.open("rb") as file:
            file.seek(end)
            values = 0
            for line in file:  # and no further than a batch: what waits may be long
                if not line.endswith(b"\n"):
                    break  # it is being written
                point, size = next(_points(line))
                values += len(point.values)
                if points and values > most_values:
                    break
                points.append(point)
                end += size
        return points, end

    def mark_sent(self, count: int) -> None:
        """Record that MLflow has the first bytes of the file."""
        write_file(self.mark, json.dumps({"bytes": count}))

    def all_sent(self) -> bool:
        """True if MLflow has every point."""
        return not self.path.exists() or self._sent() >= self.path.stat().st_size

    def _sent(self) -> int:
        try:
            return int(json.loads(self.mark.read_text())["bytes"])
        except (OSError, ValueError, KeyError):
            return 0


def _points(data: bytes) -> Iterator[tuple[Point, int]]:
    """Points of whole lines, each with the bytes of its line."""
    for line in data.splitlines(keepends=True):
        values: dict[str, Any] = json.loads(line)
        step, time_ms = int(values.pop("step")), int(values.pop(_TIME, 0))
        yield Point(step, time_ms, values), len(line)
