"""Metadata of a LeRobot data set: the folder ``meta/``, of v3.0 and of v2.1.

v2.1 keeps a video and a Parquet file an episode, and lists episodes, tasks and statistics
in JSON lines; its rows are brought into v3.0's form here, so that one reader serves both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import ClipRejected
from dynaflip.platform.triplets.sources.locations import (
    Location,
    is_temporary,
    list_files,
    read_table,
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
        return json.dumps(_plain(row), sort_keys=True)

    @property
    def index(self) -> int:
        """Number of the episode in its data set."""
        return int(self.row["episode_index"])

    @property
    def length(self) -> int | None:
        """Number of frames, where it is stored."""
        return None if self.row.get("length") is None else int(self.row["length"])

    @property
    def captions(self) -> tuple[str, ...]:
        """Its tasks in words."""
        return tuple(str(t).strip() for t in self.row.get("tasks") or () if str(t).strip())

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
        """Begin and end within the file of a video; None: the file's end."""
        end = self.row.get(f"videos/{video_key}/to_timestamp")
        start = float(self.row.get(f"videos/{video_key}/from_timestamp") or 0.0)
        return start, None if end is None else float(end)

    def statistics(self) -> dict[str, Any]:
        """Statistics of its contents: not of where it lies, nor of its task's number."""
        return {
            name: value
            for name, value in self.row.items()
            if name.startswith("stats/") and name.split("/")[1] not in _POSITIONAL_STATS
        }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values of a row of Parquet."""
    return json.loads(json.dumps(dict(values), default=str, sort_keys=True))


class Meta:
    """The ``meta`` folder of a data set; ``info`` is ``info.json``."""

    def __init__(self, root: Location) -> None:
        self.root = root
        path = root / "meta" / "info.json"
        try:
            self.info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version, _ = str(self.info["codebase_version"]), self.info["features"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"source.path: {path} is not a LeRobot info.json") from None
        self.version = version[:2]
        if self.version not in _PATHS:
            raise UserError(f"source.path: {root} is LeRobot {version}, this reads v2.1 and v3.0")

    def episodes(self) -> list[Episode]:
        """Rows of ``meta/episodes`` by ascending index."""
        if self.version == "v2":
            rows = self._json_lines("episodes.jsonl")
            stats = {r["episode_index"]: r for r in self._json_lines("episodes_stats.jsonl", True)}
            for row in rows:
                for feature, values in stats.get(row["episode_index"], {}).get("stats", {}).items():
                    row |= {f"stats/{feature}/{name}": value for name, value in values.items()}
        else:
            folder = self.root / "meta" / "episodes"
            files = [n for n in list_files(folder) if n.endswith(".parquet")]
            rows = [row for name in files for row in read_meta(folder / name).to_pylist()]
        if not rows:
            looked = "episodes.jsonl" if self.version == "v2" else "episodes/**/*.parquet"
            raise UserError(f"source.path: {self.root} has no episodes (looked for meta/{looked})")
        return [Episode(row) for row in sorted(rows, key=lambda row: row["episode_index"])]

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
        except UserError as error:
            stage = "network" if is_temporary(self.root, error.__cause__) else "caption"
            raise ClipRejected(stage, str(error)) from None
        text = next(n for n in table.column_names if n != "task_index")
        return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))

    def _path(self, kind: str, episode: Episode, key: str, episode_field: str) -> str:
        row, index = episode.row, episode.index
        template = str(self.info.get(f"{kind}_path") or _PATHS[self.version][kind])
        try:
            path = template.format(
                video_key=key,
                chunk_index=row.get(f"{episode_field}/chunk_index", 0),
                file_index=row.get(f"{episode_field}/file_index", 0),
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
        names = feature.get("names") or ["height", "width", "channels"]
        shape = dict(zip(names, feature["shape"], strict=False))
        return int(shape["width"]), int(shape["height"])

    def _json_lines(self, name: str, may_lack: bool = False) -> list[dict[str, Any]]:
        path = self.root / "meta" / name
        try:
            # Not splitlines: a string of JSON may hold U+2028 as it is.
            lines = path.read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no object")
        except FileNotFoundError:
            if may_lack:
                return []
            raise UserError(f"source.path: there is no {path}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"source.path: cannot read {path}: {first_line(error)}") from error
        return rows


def read_meta(path: Location) -> pa.Table:
    """Read a Parquet file of ``meta/``.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"source.path: cannot read {path}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """First line of an error's message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
