"""LeRobot data sets of odd kinds: a small sound one, with one thing changed before it is written.

Frame k of every episode has the brightness 20 + 8 k, so that tests see which frames are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KEY = "observation.images.top"
FRAMES, EPISODES, FPS = 12, 3, 30
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n"


def brightness(frames: int, first: int = 0) -> np.ndarray:
    """(N, 32, 48, 3): frame k has the brightness 20 + 8 k."""
    levels = (20 + 8 * (first + np.arange(frames))).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, 32, 48, 3)).copy()


def number(frame: np.ndarray) -> int:
    """Which frame it is."""
    return round((float(frame.mean()) - 20) / 8)


@dataclass
class OddSet:
    """A data set before it is written; kinds change one of its parts."""

    version: str = "v3.0"
    info: dict[str, Any] = field(default_factory=dict)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[str] = field(default_factory=lambda: ["open it", "close it"])
    videos: dict[str, list[np.ndarray]] = field(default_factory=dict)  # an array an episode
    video_fps: float = FPS
    together: bool = True  # all episodes of a camera in one file, as v3.0 has them
    after: list[Callable[[Path], None]] = field(default_factory=list)  # on the written files

    def write(self, root: Path) -> Path:
        """Write it below ``root``."""
        for key, several in self.videos.items():
            for path, frames in self._files(key, several):
                write_frames(root / path, frames, self.video_fps)
        for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "meta/info.json").write_text(json.dumps(self.info))
        if self.version == "v3.0":
            table = pa.Table.from_pylist(self.episodes)
            pq.write_table(table, root / "meta/episodes/chunk-000/file-000.parquet")
            tasks = pa.table({"task_index": range(len(self.tasks)), "task": self.tasks})
            pq.write_table(tasks, root / "meta/tasks.parquet")
            pq.write_table(
                pa.Table.from_pylist(self.rows), root / "data/chunk-000/file-000.parquet"
            )
        else:
            self._write_lines(root)
        for change in self.after:
            change(root)
        return root

    def _files(self, key: str, several: list[np.ndarray]) -> list[tuple[str, np.ndarray]]:
        if self.version != "v3.0":
            name = f"videos/chunk-000/{key}/episode_{{:06d}}.mp4"
            return [(name.format(n), frames) for n, frames in enumerate(several)]
        if not self.together:
            name = f"videos/{key}/chunk-000/file-{{:03d}}.mp4"
            return [(name.format(n), frames) for n, frames in enumerate(several)]
        return [(f"videos/{key}/chunk-000/file-000.mp4", np.concatenate(several))]

    def _write_lines(self, root: Path) -> None:
        keys = ("episode_index", "tasks", "length")
        lines = [json.dumps({k: e[k] for k in keys if k in e}) for e in self.episodes]
        (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
        tasks = [json.dumps({"task_index": n, "task": t}) for n, t in enumerate(self.tasks)]
        (root / "meta/tasks.jsonl").write_text("\n".join(tasks) + "\n")
        for n in range(len(self.episodes)):
            rows = [row for row in self.rows if row["episode_index"] == n]
            path = root / f"data/chunk-000/episode_{n:06d}.parquet"
            pq.write_table(pa.Table.from_pylist(rows), path)


def episode_row(number: int, frames: int) -> dict[str, Any]:
    """A row of ``meta/episodes``: one of several that follow one another in one video."""
    return {
        "episode_index": number,
        "length": frames,
        "tasks": ["open it"],
        "data/chunk_index": 0,
        "data/file_index": 0,
        "stats/action/mean": [float(number)],
        f"videos/{KEY}/chunk_index": 0,
        f"videos/{KEY}/file_index": 0,
        f"videos/{KEY}/from_timestamp": number * frames / FPS,
        f"videos/{KEY}/to_timestamp": number * frames / FPS + frames / FPS,
    }


def sound(version: str = "v3.0") -> OddSet:
    """A data set with nothing odd about it."""
    odd = OddSet(version=version)
    odd.videos[KEY] = [brightness(FRAMES) + np.uint8(n) for n in range(EPISODES)]
    feature = {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"]}
    odd.info = {"codebase_version": version, "fps": FPS, "total_episodes": EPISODES}
    odd.info |= {"features": {KEY: feature}}
    for n in range(EPISODES):
        odd.episodes.append(episode_row(n, FRAMES))
        for k in range(FRAMES):
            row = {"episode_index": n, "frame_index": k, "timestamp": k / FPS, "task_index": 0}
            odd.rows.append(row)
    return odd


def write_frames(path: Path, frames: np.ndarray, fps: float, pixels: str = "yuv420p") -> None:
    """Write frames to an mp4 with a key frame every six."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(fps))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        stream.options = {"crf": "8", "g": "6"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def png(frame: np.ndarray) -> bytes:
    """An encoded image."""
    return cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes()


Change = Callable[[OddSet], None]


def own_files(odd: OddSet) -> None:
    """A video an episode."""
    odd.together = False
    for n, episode in enumerate(odd.episodes):
        episode[f"videos/{KEY}/file_index"] = n
        episode[f"videos/{KEY}/from_timestamp"] = 0.0
        episode[f"videos/{KEY}/to_timestamp"] = FRAMES / FPS


def moved_times(each_s: float) -> Change:
    """Stated times that run ahead of the video by so much an episode."""

    def change(odd: OddSet) -> None:
        for n, episode in enumerate(odd.episodes):
            for name in ("from", "to"):
                episode[f"videos/{KEY}/{name}_timestamp"] += n * each_s

    return change


def in_rows(name: str, value: Callable[[dict[str, Any]], Any]) -> Change:
    """Another value of a column in all rows."""

    def change(odd: OddSet) -> None:
        for row in odd.rows:
            row[name] = value(row)

    return change


def in_episodes(name: str, value: Any, which: tuple[int, ...] = (0, 1, 2)) -> Change:
    """Another value in the table of episodes."""

    def change(odd: OddSet) -> None:
        for n in which:
            odd.episodes[n][name] = value

    return change


def in_info(**values: Any) -> Change:
    """Other values in info.json; None leaves one out."""

    def change(odd: OddSet) -> None:
        odd.info |= values
        odd.info = {name: value for name, value in odd.info.items() if value is not None}

    return change


def on_disk(change: Callable[[Path], object]) -> Change:
    """A change of the written files."""
    return lambda odd: odd.after.append(lambda root: (change(root), None)[1])


def each(*changes: Change) -> Change:
    """Several changes."""

    def change(odd: OddSet) -> None:
        for one in changes:
            one(odd)

    return change


def other_video(frames: int, fps: float = FPS) -> Change:
    """All episodes' file has other frames than the episodes together."""

    def change(odd: OddSet) -> None:
        odd.videos[KEY] = [brightness(frames)]
        odd.video_fps = fps

    return change


def own_frames(frames: int) -> Change:
    """Each episode's video has so many frames."""

    def change(odd: OddSet) -> None:
        odd.videos[KEY] = [brightness(frames) + np.uint8(n) for n in range(EPISODES)]

    return change


def camera_of_images(cell: Callable[[np.ndarray], Any], key: str = KEY) -> Change:
    """A camera whose images are in the rows, encoded."""

    def change(odd: OddSet) -> None:
        frames = brightness(FRAMES)
        for row in odd.rows:
            row[key] = cell(frames[row["frame_index"]])
        feature = {"dtype": "image", "shape": [32, 48, 3], "names": ["height", "width", "channels"]}
        odd.info["features"] = {**odd.info["features"], key: feature}
        if key == KEY:
            odd.videos.clear()

    return change


def as_struct(frame: np.ndarray) -> dict[str, Any]:
    """An image as Hugging Face's datasets store it."""
    return {"bytes": png(frame), "path": "frame.png"}


def depth_beside(pixels: str = "gray12le", codec: str = "libx265", **info: Any) -> Change:
    """A video of depth codes beside the camera, 2 m by linear codes from 0 to 4 m."""
    stated = {"video.depth_min": 0.0, "video.depth_max": 4.0, "video.shift": 0.0}
    stated |= {"video.use_log": False, "video.is_depth_map": True, **info}
    key = f"{KEY}_depth"

    def write(root: Path) -> None:
        path = root / f"videos/{key}/chunk-000/file-000.mp4"
        path.parent.mkdir(parents=True)
        container_format = "mp4" if codec.startswith("libx26") else "matroska"
        with av.open(str(path), "w", format=container_format) as container:
            stream = container.add_stream(codec, rate=FPS)
            stream.width, stream.height, stream.pix_fmt = 48, 32, pixels
            if codec == "libx265":
                stream.options = {"x265-params": "lossless=1:log-level=none"}
            deep = pixels.startswith("gray1")
            image = np.full((32, 48) if deep else (32, 48, 3), 2048, np.uint16)
            frame = image if deep else np.full((32, 48, 3), 51, np.uint8)
            for _ in range(FRAMES * EPISODES):
                encoded = av.VideoFrame.from_ndarray(frame, format=pixels if deep else "rgb24")
                container.mux(stream.encode(encoded))
            container.mux(stream.encode())

    def change(odd: OddSet) -> None:
        feature = {"dtype": "video", "shape": [32, 48, 1], "info": stated}
        odd.info["features"] = {**odd.info["features"], key: feature}
        for episode in odd.episodes:
            for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp"):
                episode[f"videos/{key}/{name}"] = episode[f"videos/{KEY}/{name}"]
        odd.after.append(write)

    return change


def renamed_feature(name: str) -> Change:
    """The camera under another key."""

    def change(odd: OddSet) -> None:
        odd.info["features"] = {name: odd.info["features"][KEY]}
        odd.videos = {name: odd.videos[KEY]}
        for episode in odd.episodes:
            for old in [key for key in episode if key.startswith(f"videos/{KEY}/")]:
                episode[old.replace(KEY, name)] = episode.pop(old)

    return change


def split_rows(root: Path) -> None:
    """The rows of episode 1 and 2 lie in another file than the table of episodes says."""
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, FRAMES), path)
    pq.write_table(table.slice(FRAMES), path.with_name("file-001.parquet"))


def intrinsics(*values: float) -> Change:
    """Intrinsics in every row."""
    return in_rows("observation.intrinsics.top", lambda row: list(values))


def pose(matrix: np.ndarray) -> Change:
    """Good intrinsics and this pose in every row."""
    flat = [float(value) for value in matrix.ravel()]
    poses = in_rows("observation.camera_pose.top", lambda row: flat)
    return each(intrinsics(40, 40, 24, 16), poses)


# Kind → change, and what is said of the last episode: "" where it is read.
KINDS: dict[str, tuple[Change, str]] = {
    # Where two statements about time disagree.
    "nothing odd": (lambda odd: None, ""),
    "own files": (own_files, ""),
    "times 0.6 ms an episode ahead": (moved_times(0.0006), ""),
    "times 6 ms an episode ahead": (moved_times(0.006), ""),
    "times 6 ms an episode behind": (
        each(moved_times(-0.006), in_episodes(f"videos/{KEY}/from_timestamp", 0.0, (0,))),
        "",
    ),
    "times a whole frame an episode ahead": (moved_times(1 / FPS), ""),
    "times three frames an episode ahead": (moved_times(3 / FPS), ""),
    "video at three times the rate": (lambda odd: setattr(odd, "video_fps", 90), ""),
    "video at half the rate": (lambda odd: setattr(odd, "video_fps", 15), ""),
    "own files at three times the rate": (
        each(own_files, lambda odd: setattr(odd, "video_fps", 90)),
        "",
    ),
    "rows in milliseconds": (
        in_rows("timestamp", lambda row: 1000 * row["timestamp"]),
        r"last 0\.367 s by its video, 366\.667 s by the rows' timestamp, 0\.367 s by info\.json",
    ),
    "info.json at another rate": (in_info(fps=10), "0.367 s by its video.*fps 10"),
    "rows of the clock of the day": (
        in_rows("timestamp", lambda row: 1.7e9 + row["timestamp"]),
        "",
    ),
    "rows whose time goes back": (
        in_rows("timestamp", lambda row: 0.1 if row["frame_index"] == 7 else row["timestamp"]),
        "does not rise: 0.1 s at frame 7",
    ),
    "rows without a time": (
        in_rows("timestamp", lambda row: None if row["frame_index"] == 3 else row["timestamp"]),
        "does not rise: nan s at frame 3",
    ),
    "rows whose time is text": (in_rows("timestamp", lambda row: "later"), "is no number"),
    "no time in the rows": (lambda odd: [row.pop("timestamp") for row in odd.rows] and None, ""),
    "a span that ends before it begins": (
        in_episodes(f"videos/{KEY}/to_timestamp", 0.1, (2,)),
        "no span of time",
    ),
    "a span of NaN": (in_episodes(f"videos/{KEY}/from_timestamp", float("nan")), "no span of time"),
    "a span beyond the video": (
        in_episodes(f"videos/{KEY}/from_timestamp", 50.0, (2,)),
        "no span of time",
    ),
    # … about counts.
    "a frame too few in the video": (
        other_video(EPISODES * FRAMES - 1),
        "35 frames, the 3 episodes in it together 36",
    ),
    "a frame too many in the video": (
        other_video(EPISODES * FRAMES + 1),
        "37 frames, the 3 episodes in it together 36",
    ),
    "a frame too few in files of their own": (
        each(own_files, own_frames(FRAMES - 1)),
        "its video has 11 frames, the episode 12",
    ),
    "a frame too many in files of their own": (
        each(own_files, own_frames(FRAMES + 1)),
        "its video has 13 frames, the episode 12",
    ),
    "v2.1 with a frame too many": (
        each(
            lambda odd: setattr(odd, "version", "v2.1"),
            in_info(codebase_version="v2.1"),
            own_frames(FRAMES + 1),
        ),
        "its video has 13 frames, the episode 12",
    ),
    "episodes left out of the table": (lambda odd: odd.episodes.pop(1) and None, ""),
    "a row too few": (lambda odd: odd.rows.pop() and None, "11 rows in data/.*12 frames"),
    "a row twice": (
        lambda odd: odd.rows.append(dict(odd.rows[-1])),
        "13 rows in data/.*12 frames",
    ),
    "no rows where the table of episodes says": (
        on_disk(split_rows),
        "holds no row of episode [12]",
    ),
    "a length of 0": (in_episodes("length", 0, (2,)), "has 0 frames by meta/episodes"),
    "no lengths": (in_episodes("length", None), ""),
    # … about types, shapes and units.
    "tasks as one text": (in_episodes("tasks", "open it"), ""),
    "tasks of the rows are others": (
        in_rows("task_index", lambda row: 1),
        "'open it' by meta/episodes, but 'close it' by its rows",
    ),
    "tasks of some rows are others": (
        in_rows("task_index", lambda row: int(row["frame_index"] > 6)),
        "'open it' by meta/episodes, but 'close it' by its rows",
    ),
    "one of two tasks of the rows is another": (
        each(
            lambda odd: odd.tasks.append("lock it"),
            in_episodes("tasks", ["open it", "close it"]),
            in_rows("task_index", lambda row: 2 * int(row["frame_index"] > 6)),
        ),
        "'open it' and 'close it' by meta/episodes, but 'lock it' by its rows",
    ),
    "a task of some rows that no table has": (
        in_rows("task_index", lambda row: 9 * int(row["frame_index"] > 6)),
        "no task of task_index 9",
    ),
    "a task that no table has": (
        each(
            in_episodes("tasks", ["open it", "close it"]),
            in_rows("task_index", lambda row: 0 if row["frame_index"] else 9),
        ),
        "no task of task_index 9",
    ),
    "tasks without words": (in_episodes("tasks", ["…"]), "holds no word"),
    "no task": (in_episodes("tasks", [""]), "has no task"),
    "tasks by their numbers": (in_episodes("tasks", [0]), r"tasks are \[0\] and no words"),
    "a task that is a number": (in_episodes("tasks", 7), "tasks are 7 and no words"),
    "half a character in a task": (
        each(
            lambda odd: setattr(odd, "version", "v2.1"),
            in_info(codebase_version="v2.1"),
            in_episodes("tasks", ["open it \ud83d"]),
        ),
        "half characters",
    ),
    "intrinsics of another size": (intrinsics(400, 400, 240, 160), "not those of an image of 48"),
    "intrinsics as shares": (intrinsics(0.9, 0.9, 0.5, 0.5), "not those of an image of 48 x 32"),
    "three intrinsics": (intrinsics(40, 24, 16), "expected 4 a frame"),
    "no intrinsics in a row": (
        in_rows(
            "observation.intrinsics.top",
            lambda row: [40.0, 40.0, 24.0, 16.0] if row["frame_index"] else None,
        ),
        "expected 4 numbers a frame",
    ),
    "a pose by columns": (pose(np.eye(4)[:, [0, 1, 3, 2]]), "no rotation and translation"),
    "a pose that scales": (pose(np.diag([2.0, 2.0, 2.0, 1.0])), "no rotation and translation"),
    "a mirrored pose": (pose(np.diag([1.0, 1.0, -1.0, 1.0])), "no rotation and translation"),
    "a file number of none": (
        in_episodes(f"videos/{KEY}/file_index", None, (2,)),
        "file_index of episode 2 is None",
    ),
    "factors that are no JSON": (in_episodes("factors", "light: 3"), "no JSON object"),
    # Depth.
    "depth as LeRobot 0.6": (depth_beside(), ""),
    "depth without its range": (
        depth_beside(**{"video.depth_min": None, "video.depth_max": None}),
        "unit of depth is not known",
    ),
    "depth without its curve": (
        depth_beside(**{"video.use_log": None}),
        "video.use_log not stated",
    ),
    "depth with its range turned": (depth_beside(**{"video.depth_min": 9.0}), "no range of depth"),
    "depth with a range in words": (depth_beside(**{"video.depth_max": "far"}), "must be metres"),
    "depth in millimetres of 16 bits": (
        depth_beside("gray16le", "ffv1"),
        "stored as gray16le and not in LeRobot's 12 bits",
    ),
    "depth of 8 bits": (depth_beside("yuv420p", "libx264"), "stored as yuv420p"),
    # Images in Parquet.
    "images in the rows": (camera_of_images(as_struct), ""),
    "images as bare bytes": (camera_of_images(png), ""),
    "images as lists of numbers": (
        camera_of_images(lambda frame: frame[0, 0].tolist()),
        "no image files",
    ),
    "images that are missing": (
        camera_of_images(lambda frame: {"bytes": None, "path": None}),
        "there is no image at frame 0",
    ),
    "images in files that are missing": (
        camera_of_images(lambda frame: {"bytes": None, "path": "images/0.png"}),
        "there is no image images/0.png",
    ),
    "images outside the set": (
        camera_of_images(lambda frame: {"bytes": None, "path": "../../0.png"}),
        "lies outside the data set",
    ),
    "images that are pointers": (camera_of_images(lambda frame: LFS.encode()), "Git LFS pointer"),
    "images of 16-bit grey": (
        camera_of_images(
            lambda f: cv2.imencode(".png", f[..., 0].astype(np.uint16) * 99)[1].tobytes()
        ),
        "16-bit grey: depth",
    ),
    # Files that are not what they are called.
    "tables that are pointers": (
        on_disk(lambda root: (root / "data/chunk-000/file-000.parquet").write_text(LFS)),
        "Git LFS pointer",
    ),
    "tables that are empty": (
        on_disk(lambda root: (root / "data/chunk-000/file-000.parquet").write_bytes(b"")),
        "cannot read data/",
    ),
    "no table": (
        on_disk(lambda root: (root / "data/chunk-000/file-000.parquet").unlink()),
        "cannot read data/",
    ),
    "v2.1": (
        each(lambda odd: setattr(odd, "version", "v2.1"), in_info(codebase_version="v2.1")),
        "",
    ),
    "v2.1 at three times the rate": (
        each(
            lambda odd: setattr(odd, "version", "v2.1"),
            in_info(codebase_version="v2.1"),
            lambda odd: setattr(odd, "video_fps", 90),
        ),
        "",
    ),
    "v2.1 without the numbers of episodes": (
        each(
            lambda odd: setattr(odd, "version", "v2.1"),
            in_info(codebase_version="v2.1"),
            on_disk(
                lambda root: [
                    pq.write_table(pq.read_table(p).drop_columns(["episode_index"]), p)
                    for p in sorted((root / "data").rglob("*.parquet"))
                ]
            ),
        ),
        "",
    ),
}


def _rewrite_info(root: Path, change: Callable[[bytes], bytes]) -> None:
    path = root / "meta/info.json"
    path.write_bytes(change(path.read_bytes()))


# Kind → change, and what the refusal of the whole set says.
REFUSED: dict[str, tuple[Change, str]] = {
    "info.json is a pointer": (
        on_disk(lambda root: (root / "meta/info.json").write_text(LFS)),
        "Git LFS pointer",
    ),
    "info.json is a web page": (
        on_disk(lambda root: (root / "meta/info.json").write_text("<!DOCTYPE html><p>404")),
        "a web page",
    ),
    "info.json is in UTF-16": (
        on_disk(lambda root: _rewrite_info(root, lambda b: b.decode().encode("utf-16"))),
        "not a LeRobot info.json",
    ),
    "no features": (in_info(features=None), "lacks codebase_version or features"),
    "a feature of null": (
        lambda odd: odd.info.update(features={KEY: None}),
        "feature observation.images.top is None",
    ),
    "no camera": (
        lambda odd: odd.info.update(features={"action": {"dtype": "float32", "shape": [2]}}),
        "lists no camera",
    ),
    "fps of 0": (in_info(fps=0), "fps is 0"),
    "fps as text": (in_info(fps="30"), "fps is '30'"),
    "another version": (in_info(codebase_version="v1.6"), "this reads v2.1 and v3.0"),
    "episodes are a pointer": (
        on_disk(lambda root: (root / "meta/episodes/chunk-000/file-000.parquet").write_text(LFS)),
        "Git LFS pointer",
    ),
    "an episode twice": (
        lambda odd: odd.episodes.append(dict(odd.episodes[0])),
        "lists episode 0 twice",
    ),
    "an episode without its number": (
        in_episodes("episode_index", None, (1,)),
        "episode_index of row 1 of the episodes is None",
    ),
    "no episode": (
        on_disk(lambda root: (root / "meta/episodes/chunk-000/file-000.parquet").unlink()),
        "has no episodes",
    ),
    "no video": (
        on_disk(lambda root: next(root.rglob("*.mp4")).unlink()),
        "no video found",
    ),
    "videos are pointers": (
        on_disk(lambda root: next(root.rglob("*.mp4")).write_text(LFS)),
        "Git LFS pointer",
    ),
    "a path out of the set": (in_info(data_path="../{episode_index}"), "leads out of the data set"),
}
