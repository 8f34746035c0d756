"""Metadata of a LeRobot data set: the folder ``meta/``, of v3.0 and of v2.1.

v2.1 keeps a video and a Parquet file an episode, and lists episodes, tasks and statistics
in JSON lines; its rows are brought into v3.0's form here, so that one reader serves both.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import ClipRejected
from dynaflip.platform.triplets.sources.locations import (
    Location,
    is_temporary,
    list_files,
    read_rows,
    read_table,
    why_unreadable,
)

# Where an episode lies, and which number its task has, is no part of its content.
_POSITIONAL_STATS = ("index", "episode_index", "frame_index", "timestamp", "task_index")
_PATHS = {
    "v3": {
        "video": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "data": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    },
    "v2": {
        "video": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "data": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    },
}


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
        """Whether it has statistics, and its content as text: those and its length."""
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
        return _whole(self.row.get("length"))

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
        """Whether a simulator's camera moved."""
        return bool(self.row.get("moving_camera", False))

    @property
    def success(self) -> bool:
        """Whether the task was solved, as far as that is recorded."""
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


class Meta:
    """The ``meta`` folder of a data set; ``info`` is ``info.json``."""

    def __init__(self, root: Location) -> None:
        self.root = root
        path = root / "meta" / "info.json"
        try:
            self.info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
            version, _ = str(self.info["codebase_version"]), self.info["features"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            lacks = isinstance(error, KeyError | TypeError | AttributeError)
            why = "lacks codebase_version or features" if lacks else why_unreadable(path, error)
            raise UserError(f"source.path: {path} is not a LeRobot info.json ({why})") from None
        self.version = version[:2]
        if self.version not in _PATHS:
            raise UserError(f"source.path: {root} is LeRobot {version}, this reads v2.1 and v3.0")
        self._check_info(path)

    def _check_info(self, path: Location) -> None:
        """Refuse what is there and cannot be meant."""
        for key, feature in self.info["features"].items():
            if not isinstance(feature, dict):
                raise UserError(f"source.path: {path}: the feature {key} is {feature!r}, no object")
        fps = self.info.get("fps")
        number = isinstance(fps, int | float) and not isinstance(fps, bool)
        if fps is not None and not (number and math.isfinite(fps) and fps > 0):
            raise UserError(f"source.path: {path}: fps is {fps!r}, not frames a second")

    @property
    def fps(self) -> float:
        """Frames a second that ``info.json`` states; 0: none."""
        return float(self.info.get("fps") or 0.0)

    def episodes(self) -> list[Episode]:
        """Rows of ``meta/episodes`` by ascending index."""
        return list(self.stream())

    def stream(self, *, statistics: bool = True) -> Iterator[Episode]:
        """Rows of ``meta/episodes`` by ascending index, one after the other.

        Args:
            statistics: whether to read those of each episode, which are most of a row.

        Raises:
            UserError: there is none, an index is no number, or two episodes have one.
        """
        rows = self._numbered(statistics)
        return map(Episode, rows if self._is_sorted else sorted(rows, key=_number_of))

    @cached_property
    def _is_sorted(self) -> bool:
        """Whether the rows ascend; one that stands out of order costs memory for all of them."""
        numbers = array("q", map(_number_of, self._numbered(statistics=False)))
        if not numbers:
            looked = "episodes.jsonl" if self.version == "v2" else "episodes/**/*.parquet"
            raise UserError(f"source.path: {self.root} has no episodes (looked for meta/{looked})")
        values, counts = np.unique(np.frombuffer(numbers, np.int64), return_counts=True)
        if counts.max() > 1:
            raise UserError(
                f"source.path: {self.root}/meta lists episode {values[counts.argmax()]} twice; "
                f"leave one of the rows in the table of episodes"
            )
        return bool((np.diff(np.frombuffer(numbers, np.int64)) > 0).all())

    def _numbered(self, statistics: bool) -> Iterator[dict[str, Any]]:
        """The rows with ``episode_index`` a whole number."""
        rows = self._lines_of_v2 if self.version == "v2" else self._rows_of_v3
        for place, row in enumerate(rows(statistics)):
            number = _whole(row.get("episode_index"))
            if number is None or not -(2**63) <= number < 2**63:
                raise UserError(
                    f"source.path: {self.root}/meta: episode_index of row {place} of the "
                    f"episodes is {row.get('episode_index')!r}, not a number"
                )
            yield {**row, "episode_index": number}

    def _lines_of_v2(self, statistics: bool) -> Iterator[dict[str, Any]]:
        """Rows of v2.1 in v3.0's form."""
        lines = self._json_lines("episodes_stats.jsonl", True) if statistics else []
        stats = {_whole(line.get("episode_index")): line.get("stats") for line in lines}
        for row in self._json_lines("episodes.jsonl"):
            for feature, values in _items(stats.get(_whole(row.get("episode_index")))):
                row |= {f"stats/{feature}/{name}": value for name, value in _items(values)}
            yield row

    def _rows_of_v3(self, statistics: bool) -> Iterator[dict[str, Any]]:
        folder = self.root / "meta" / "episodes"
        for name in self._episode_files:
            yield from read_meta_rows(folder / name, without="" if statistics else "stats/")

    @cached_property
    def _episode_files(self) -> list[str]:
        names = list_files(self.root / "meta" / "episodes")
        return [name for name in names if name.endswith(".parquet")]

    def video_path(self, episode: Episode, key: str) -> str:
        """Relative path of an episode's video."""
        return self._path("video", episode, key, episode_field=f"videos/{key}")

    def data_path(self, episode: Episode) -> str:
        """Relative path of an episode's Parquet file."""
        return self._path("data", episode, "", episode_field="data")

    def tasks_file(self) -> str:
        """Relative path of the table of tasks."""
        return "meta/tasks.jsonl" if self.version == "v2" else "meta/tasks.parquet"

    def task_names(self) -> dict[int, str]:
        """Task string by index; in v3.0 the string is the pandas index of the table."""
        try:
            if self.version == "v2":
                return {r["task_index"]: r["task"] for r in self._json_lines("tasks.jsonl")}
            table = read_meta(self.root / self.tasks_file())
            text = next(n for n in table.column_names if n != "task_index")
            return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))
        except UserError as error:
            stage = "network" if is_temporary(self.root, error.__cause__) else "caption"
            raise ClipRejected(stage, str(error)) from None
        except (KeyError, StopIteration):
            reason = f"{self.tasks_file()} lacks task_index or the tasks' words"
            raise ClipRejected("caption", reason) from None

    def _path(self, kind: str, episode: Episode, key: str, episode_field: str) -> str:
        row, index = episode.row, episode.index
        template = str(self.info.get(f"{kind}_path") or _PATHS[self.version][kind])
        try:
            path = template.format(
                video_key=key,
                chunk_index=_file_number(row, f"{episode_field}/chunk_index"),
                file_index=_file_number(row, f"{episode_field}/file_index"),
                episode_index=index,
                episode_chunk=index // max(1, int(self.info.get("chunks_size") or 1000)),
            )
        except (KeyError, ValueError, IndexError, AttributeError, TypeError):
            raise UserError(
                f"source.path: {self.root}/meta/info.json: {kind}_path {template!r} is not a "
                f"path of LeRobot"
            ) from None
        # A downloaded set may name only files of its own.
        if path.startswith("/") or "://" in path or ".." in path.replace("\\", "/").split("/"):
            raise UserError(
                f"source.path: {self.root}/meta/info.json: {kind}_path leads out of the data set "
                f"({path!r})"
            )
        return path

    def image_px(self, key: str) -> tuple[int, int]:
        """(width, height) of a camera's images."""
        feature = self.info["features"][key]
        try:
            sides = [int(side) for side in feature["shape"]]
        except (KeyError, TypeError, ValueError):
            sides = []
        names = feature.get("names")
        if isinstance(names, list) and len(names) == len(sides) and {"width", "height"} <= {*names}:
            shape = dict(zip(names, sides, strict=True))
            return shape["width"], shape["height"]
        if len(sides) != 3:
            raise ClipRejected("decode", f"info.json: the shape of {key} is {feature.get('shape')}")
        # PyTorch's order has the channels first.
        first = sides[0] in (1, 3, 4) and sides[2] not in (1, 3, 4)
        height, width = sides[1:] if first else sides[:2]
        return width, height

    def _json_lines(self, name: str, may_lack: bool = False) -> list[dict[str, Any]]:
        path = self.root / "meta" / name
        try:
            # Not splitlines: a string of JSON may hold U+2028 as it is.
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            rows = [json.loads(line) for line in lines if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no object")
        except FileNotFoundError:
            if may_lack:
                return []
            raise UserError(f"source.path: there is no {path}") from None
        except (OSError, ValueError) as error:
            why = why_unreadable(path, error)
            raise UserError(f"source.path: cannot read {path}: {why}") from error
        return rows


def read_meta(path: Location) -> pa.Table:
    """Read a Parquet file of ``meta/``.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return read_table(path)
    except (OSError, pa.ArrowException) as error:
        why = why_unreadable(path, error)
        raise UserError(f"source.path: cannot read {path}: {why}") from error


def read_meta_rows(path: Location, without: str = "") -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file of ``meta/``; few of them are in memory.

    Args:
        path: of the file.
        without: columns that begin so are left out; "" for none.

    Raises:
        UserError: it cannot be read.
    """
    try:
        yield from read_rows(path, without)
    except (OSError, pa.ArrowException) as error:
        why = why_unreadable(path, error)
        raise UserError(f"source.path: cannot read {path}: {why}") from error


def _number_of(row: Mapping[str, Any]) -> int:
    return int(row["episode_index"])


def _items(values: Any) -> list[tuple[str, Any]]:
    """Names and values of an object, none of anything else."""
    return list(values.items()) if isinstance(values, Mapping) else []


def _whole(value: Any) -> int | None:
    """A whole number, or None where it is something else."""
    try:
        return int(value) if float(value) == int(value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _file_number(row: Mapping[str, Any], name: str) -> int:
    """Number of a chunk or file in an episode's row; 0 where the data set has no such column."""
    if name not in row:
        return 0
    number = _whole(row[name])
    if number is None or number < 0:
        reason = f"{name} of episode {row['episode_index']} is {row[name]!r}, not a number"
        raise ClipRejected("list", reason)
    return number
