"""One episode of a LeRobot data set: a row of ``meta/episodes``, in v3.0's form."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

from dynaflip.platform.triplets.clips import ClipRejected

# Where an episode lies, and which number its task has, is no part of its content.
_POSITIONAL_STATS = ("index", "episode_index", "frame_index", "timestamp", "task_index")


@dataclass(frozen=True)
class Episode:
    """A row of ``meta/episodes``; beyond LeRobot's columns it may have those of a simulator.

    ``row`` is the row, in v3.0's form; statistics are ``stats/FEATURE/NAME``.
    """

    row: Mapping[str, Any]

    @classmethod
    def from_json(cls, text: str) -> Episode:
        """The episode that :meth:`to_json` wrote down, without statistics."""
        return cls(json.loads(text))

    def to_json(self, *, statistics: bool = False) -> str:
        """The row as text, equal for equal rows."""
        row = {k: v for k, v in self.row.items() if statistics or "stats/" not in k}
        return _as_text(row)

    @cached_property
    def _pieces(self) -> list[tuple[str, str]]:
        """All of the row as text, in pieces of one kind: each value is written down once."""
        runs = groupby(sorted(self.row), _kind)
        return [(kind, _as_text({k: self.row[k] for k in keys})[1:-1]) for kind, keys in runs]

    @cached_property
    def text(self) -> str:
        """All of the row as text, made once for all cameras."""
        return f"{{{', '.join(piece for _, piece in self._pieces)}}}"

    @cached_property
    def identity(self) -> tuple[bool, str]:
        """Content as text, statistics and length, behind a flag: True if it has statistics."""
        length = _as_text({"length": self.row.get("length")})[1:-1]
        statistics = [piece for kind, piece in self._pieces if kind == _CONTENT]
        return bool(statistics), f"{{{', '.join([length, *statistics])}}}"

    @property
    def index(self) -> int:
        """Number of the episode in its data set."""
        return int(self.row["episode_index"])

    @property
    def length(self) -> int | None:
        """Number of frames, where it is stored; what is no number counts as not stored."""
        return whole_number(self.row.get("length"))

    @property
    def captions(self) -> tuple[str, ...]:
        """Its tasks in words."""
        tasks = self.row.get("tasks") or ()
        # Some writers give the task itself and not a list of one.
        tasks = (tasks,) if isinstance(tasks, str) else tasks
        return tuple(str(t).strip() for t in tasks if t is not None and str(t).strip())

    @property
    def task_id(self) -> str:
        """Equal = same meaning; empty where the data set has none."""
        return str(self.row.get("task_id") or "")

    @property
    def factors(self) -> str:
        """Perturbation values, JSON."""
        return str(self.row.get("factors") or "{}")

    @property
    def layout_seed(self) -> int | None:
        """Seed of a simulator's layout; None: not recorded in a simulator of this project."""
        seed = self.row.get("layout_seed")
        return None if seed is None else int(seed)

    @property
    def environment(self) -> str:
        """Name of the simulator, where it is not the default one."""
        return str(self.row.get("environment") or "")

    @property
    def moving_camera(self) -> bool:
        """True if a simulator's camera moved."""
        return bool(self.row.get("moving_camera", False))

    @property
    def success(self) -> bool:
        """True if the task was solved, as far as that is recorded."""
        return bool(self.row.get("success", False))

    def span_s(self, video_key: str) -> tuple[float, float | None]:
        """Begin and end within the file of a video; None: the file's end.

        Raises:
            ClipRejected: they are no times, or in the wrong order.
        """
        stated = [self.row.get(f"videos/{video_key}/{name}_timestamp") for name in ("from", "to")]
        try:
            start, end = float(stated[0] or 0.0), None if stated[1] is None else float(stated[1])
            good = math.isfinite(start) and start >= 0
            good &= end is None or (math.isfinite(end) and end > start)
        except (TypeError, ValueError):
            good = False
        if not good:
            reason = f"episode {self.index} lies from {stated[0]} to {stated[1]} s of its video"
            raise ClipRejected("list", f"{reason}: no span of time")
        return start, end

    def statistics(self) -> dict[str, Any]:
        """Statistics of its contents: not of where it lies, nor of its task's number."""
        return {name: value for name, value in self.row.items() if _kind(name) == _CONTENT}


# Kinds of columns.
_CONTENT, _POSITION, _OTHER = "statistics", "statistics of its place", "other"


@lru_cache(maxsize=4096)
def _kind(column: str) -> str:
    if not column.startswith("stats/"):
        return _OTHER
    return _POSITION if column.split("/")[1] in _POSITIONAL_STATS else _CONTENT


def _as_text(values: Mapping[str, Any]) -> str:
    """JSON of a row of Parquet, equal for equal rows."""
    return json.dumps(values, default=str, sort_keys=True)


def whole_number(value: Any) -> int | None:
    """A whole number, or None where it is something else."""
    try:
        return int(value) if float(value) == int(value) else None
    except (TypeError, ValueError, OverflowError):
        return None
