"""Metadata of a LeRobot data set: the folder ``meta/``, of v3.0 and of v2.1.

v2.1 keeps a video and a Parquet file an episode, and lists episodes, tasks and statistics
in JSON lines; its rows are brought into v3.0's form here, so that one reader serves both.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from dynaflip.errors import UserError
from dynaflip.platform.lerobot.episode import Episode, whole_number
from dynaflip.platform.triplets.clips import ClipRejected
from dynaflip.platform.triplets.sources.locations import (
    Location,
    is_temporary,
    list_files,
    read_rows,
    read_table,
    why_unreadable,
)

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


class Meta:
    """The ``meta`` folder of a data set; ``info`` is ``info.json``."""

    def __init__(self, root: Location) -> None:
        self.root = root
        path = root / "meta" / "info.json"
        try:
            self.info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
            version, _ = str(self.info["codebase_version"]), self.info["features"].items()
        except FileNotFoundError:
            raise UserError(
                f"source.path: {root} is not a LeRobot data set: there is no {path}"
            ) from None
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
        """True if the rows ascend; one that stands out of order costs memory for all of them."""
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
            number = whole_number(row.get("episode_index"))
            if number is None or not -(2**63) <= number < 2**63:
                raise UserError(
                    f"source.path: {self.root}/meta: episode_index of row {place} of the "
                    f"episodes is {row.get('episode_index')!r}, not a number"
                )
            yield {**row, "episode_index": number}

    def _lines_of_v2(self, statistics: bool) -> Iterator[dict[str, Any]]:
        """Rows of v2.1 in v3.0's form."""
        lines = self._json_lines("episodes_stats.jsonl", True) if statistics else []
        stats = {whole_number(line.get("episode_index")): line.get("stats") for line in lines}
        for row in self._json_lines("episodes.jsonl"):
            for feature, values in _items(stats.get(whole_number(row.get("episode_index")))):
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


def _file_number(row: Mapping[str, Any], name: str) -> int:
    """Number of a chunk or file in an episode's row; 0 where the data set has no such column."""
    if name not in row:
        return 0
    number = whole_number(row[name])
    if number is None or number < 0:
        reason = f"{name} of episode {row['episode_index']} is {row[name]!r}, not a number"
        raise ClipRejected("list", reason)
    return number
