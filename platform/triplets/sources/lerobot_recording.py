"""Recordings of LeRobot data sets: an episode through one camera, from a video or from images."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from dynaflip.platform.lerobot.columns import (
    SIMULATOR_STATE,
    intrinsics_column,
    pose_column,
    read_columns,
)
from dynaflip.platform.lerobot.depth_codec import check_depth_info, decode_depth_m
from dynaflip.platform.lerobot.episode import Episode
from dynaflip.platform.lerobot.metadata import Meta
from dynaflip.platform.lerobot.shared_videos import Place
from dynaflip.platform.s3_errors import NetworkError
from dynaflip.platform.triplets.clips import (
    Cameras,
    Clip,
    ClipRejected,
    Doubles,
    Floats,
    Frames,
    UnknownDepthUnit,
    normalise_caption,
)
from dynaflip.platform.triplets.flow.lifting import assumed_intrinsics_px
from dynaflip.platform.triplets.sources import video
from dynaflip.platform.triplets.sources.encoded_images import read_images
from dynaflip.platform.triplets.sources.episode_times import (
    Span,
    agreed_times_s,
    episode_timeline,
)
from dynaflip.platform.triplets.sources.locations import (
    Location,
    is_temporary,
    is_within,
    why_unreadable,
)

# A rotation's product with its transpose may differ from 1 by this much, through rounding.
_ROTATION_TOLERANCE = 0.02


class LeRobotSet(Protocol):
    """The data set of a recording."""

    root: Location
    meta: Meta
    info: dict[str, Any]  # info.json

    @property
    def task_names(self) -> dict[int, str]:
        """Task string by index, read once."""

    def depth_key(self, key: str) -> str | None:
        """The depth video that belongs to a camera."""

    def video_file(self, episode: Episode, key: str) -> str:
        """Relative path of an episode's video."""


class LeRobotRecording:
    """One episode through one camera; what its table holds."""

    def __init__(self, source: LeRobotSet, clip: Clip, key: str, episode: Episode) -> None:
        self.source, self.clip, self.key, self.episode = source, clip, key, episode

    @cached_property
    def shown_s(self) -> Doubles:
        """(N,) times of the frames, before the table's are asked."""
        raise NotImplementedError

    @cached_property
    def _times_s(self) -> Doubles:
        rows = self._columns.get("timestamp")
        try:
            rows_s = None if rows is None else np.array(rows.to_pylist(), np.float64).reshape(-1)
        except (TypeError, ValueError):
            raise ClipRejected("decode", "the rows' timestamp is no number") from None
        self._check_rows(len(self.shown_s))
        return agreed_times_s(self.shown_s, rows_s, self.source.meta.fps)

    def read_frames(self, indices: list[int], short_side_px: int) -> Frames:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        raise NotImplementedError

    def times_s(self) -> Doubles:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        return self._times_s

    def read_depth_m(self, indices: list[int]) -> Floats | None:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        key = self.source.depth_key(self.key)
        if key is None:
            return None
        info = self.source.info["features"][key].get("info") or {}
        try:
            check_depth_info(info)
        except ValueError as error:
            reason = f"info.json, {key}: {error}; use --depth plane or model:…"
            raise UnknownDepthUnit("depth", reason) from None
        try:
            path, timeline = self._depth_video
            frames = len(self.shown_s)
            if len(timeline.pts) != frames:
                reason = f"{len(timeline.pts)} frames of depth, {frames} of video"
                raise ClipRejected("depth", reason)
            codes = video.read_gray12(path, timeline, indices)
        except UnknownDepthUnit:
            raise
        except ClipRejected as error:
            stage = error.stage if error.stage == "network" else "depth"
            raise ClipRejected(stage, f"depth: {error.reason}") from None
        except NetworkError as error:
            raise ClipRejected("network", str(error)) from None
        return decode_depth_m(codes, info)

    @cached_property
    def _depth_video(self) -> tuple[Location, video.Timeline]:
        """The video of depth and the episode's frames in it, looked up once."""
        key = self.source.depth_key(self.key)
        assert key is not None
        path = self.source.root / self.source.video_file(self.episode, key)
        return path, episode_timeline(path, self._span(key))

    def _span(self, key: str) -> Span:
        """Statements of the data set about the episode's frames in one of its videos."""
        start_s, end_s = self.episode.span_s(key)
        stated = self.episode.row.get(f"videos/{key}/place")
        place = None if stated is None else Place(*stated)
        return Span(start_s, end_s, self.episode.length, self.source.meta.fps, place)

    def cameras(self, indices: list[int]) -> Cameras | None:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        intrinsics = self._column(intrinsics_column(self.clip.camera), 4)
        poses = self._column(pose_column(self.clip.camera), 16)
        if intrinsics is None and poses is None:
            return None
        size_px = self.source.meta.image_px(self.key)
        assumed = intrinsics is None
        if intrinsics is None:  # the camera's motion is known without its focal length
            guess = assumed_intrinsics_px(size_px[1], size_px[0])
            intrinsics = np.tile(guess, (len(self.shown_s), 1))
        _check_intrinsics(intrinsics, size_px)
        if poses is not None:
            poses = poses.reshape(-1, 4, 4)
            _check_poses(poses)
            poses = poses[indices]
        return Cameras(intrinsics[indices], size_px, poses, assumed)

    def simulator_state(self, indices: list[int]) -> Doubles | None:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        column = self._columns.get(SIMULATOR_STATE)
        return None if column is None else np.array(column.to_pylist(), np.float64)[indices]

    def caption_at(self, index: int, draw: int) -> str:
        """The task of the frame; an episode may go from one task to the next."""
        if len(self.clip.captions) == 1:
            return self.clip.captions[0]
        column = self._columns.get("task_index")
        if column is None:
            return self.clip.captions[draw % len(self.clip.captions)]
        return self._task_of(column[index].as_py())

    def _task_of(self, number: Any) -> str:
        task = self.source.task_names.get(number)
        if not isinstance(task, str) or not task.strip():
            name = self.source.meta.tasks_file()
            raise ClipRejected("caption", f"{name} has no task of task_index {number}")
        return task

    def _check_tasks(self, columns: dict[str, pa.ChunkedArray]) -> None:
        """Reject rows that show a task which the episode is not said to have."""
        if self.clip.caption_kind != "source" or "task_index" not in columns:
            return
        said = {normalise_caption(caption) for caption in self.clip.captions}
        numbers = columns["task_index"].unique().to_pylist()
        try:
            found = [self.source.task_names.get(number) for number in numbers]
        except ClipRejected as error:
            if error.stage == "network" or len(said) > 1:
                raise
            return  # the episode's own words are all there is
        shown = [str(task) for task in found if task]
        others = [task for task in shown if normalise_caption(task) not in said]
        if others:
            raise ClipRejected(
                "caption",
                f"the episode's task is {' and '.join(map(repr, self.clip.captions))} by "
                f"meta/episodes, but {others[0]!r} by its rows' task_index",
            )
        if shown and len(shown) < len(found):
            number = next(n for n, task in zip(numbers, found, strict=True) if not task)
            self._task_of(number)

    def _column(self, name: str, width: int) -> Doubles | None:
        column = self._columns.get(name)
        if column is None:
            return None
        try:
            values = np.array(column.to_pylist(), dtype=np.float64)
        except (TypeError, ValueError):  # None among the numbers, or rows of other lengths
            raise ClipRejected("depth", f"{name}: expected {width} numbers a frame") from None
        if values.shape != (len(self.shown_s), width) or not np.isfinite(values).all():
            raise ClipRejected(
                "depth", f"{name} of shape {values.shape} or not finite; expected {width} a frame"
            )
        return values

    def _column_names(self) -> tuple[str, ...]:
        camera = self.clip.camera
        state = ("task_index", "timestamp", "episode_index", SIMULATOR_STATE)
        return (intrinsics_column(camera), pose_column(camera), *state)

    @cached_property
    def _columns(self) -> dict[str, pa.ChunkedArray]:
        """The columns that this camera needs, of this episode."""
        meta = self.source.meta
        name = meta.data_path(self.episode)
        try:
            columns = read_columns(meta, self.episode, self._column_names(), may_lack=True)
        except (OSError, pa.ArrowException) as error:
            stage = "network" if is_temporary(meta.root / name, error) else "decode"
            why = why_unreadable(meta.root / name, error)
            raise ClipRejected(stage, f"cannot read {name}: {why}") from None
        rows = max((len(column) for column in columns.values()), default=None)
        if rows == 0:
            reason = f"{name} holds no row of episode {self.episode.index}"
            raise ClipRejected("decode", f"{reason}, although meta/episodes names that file")
        self._check_tasks(columns)
        return columns

    def _check_rows(self, frames: int) -> None:
        rows = next((len(column) for column in self._columns.values()), frames)
        if rows != frames:
            name = self.source.meta.data_path(self.episode)
            raise ClipRejected("decode", f"{rows} rows in {name}, but {frames} frames")


class LeRobotVideo(LeRobotRecording):
    """One episode through a camera that is stored as video."""

    def __init__(self, source: LeRobotSet, clip: Clip, key: str, episode: Episode) -> None:
        super().__init__(source, clip, key, episode)
        self.path = source.root / clip.path

    @cached_property
    def timeline(self) -> video.Timeline:
        """The episode's frames in the video, looked up once."""
        return episode_timeline(self.path, self._span(self.key))

    @cached_property
    def shown_s(self) -> Doubles:
        """(N,) times at which the video shows the frames."""
        return self.timeline.times_s()

    def read_frames(self, indices: list[int], short_side_px: int) -> Frames:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        return video.read_frames(self.path, self.timeline, indices, short_side_px)


class LeRobotImages(LeRobotRecording):
    """One episode through a camera whose images are encoded in the rows of its table."""

    def _column_names(self) -> tuple[str, ...]:
        return (*super()._column_names(), self.key)

    @cached_property
    def _images(self) -> pa.ChunkedArray:
        column = self._columns.get(self.key)
        name = self.source.meta.data_path(self.episode)
        if column is None:
            raise ClipRejected("decode", f"{name} has no column {self.key}")
        if not (pa.types.is_struct(column.type) or _is_bytes(column.type)):
            raise ClipRejected("decode", f"{name}: {self.key} holds {column.type}, no image files")
        length = self.episode.length
        if length is not None and len(column) != length:
            raise ClipRejected(
                "decode", f"the episode has {length} frames, but {name} {len(column)} rows of it"
            )
        return column

    @cached_property
    def shown_s(self) -> Doubles:
        """(N,) times by the stated rate, or the rows' own where none is stated."""
        frames, fps = len(self._images), self.source.meta.fps
        if fps:
            return np.arange(frames) / fps
        rows = self._columns.get("timestamp")
        if rows is None:
            raise ClipRejected("decode", "neither info.json (fps) nor the rows state a time")
        rows_s = np.array(rows.to_pylist(), np.float64)
        return rows_s - rows_s[0]

    def _encoded(self, index: int) -> bytes | None:
        value = self._images[index].as_py()
        if not isinstance(value, dict):
            return value
        data, name = value.get("bytes"), value.get("path")
        if data or not name:
            return data
        # Older writers leave the files beside the table.
        if not is_within(str(name)):
            raise ClipRejected("decode", f"the image {name} lies outside the data set")
        try:
            return (self.source.root / str(name)).read_bytes()
        except NetworkError as error:
            raise ClipRejected("network", str(error)) from None
        except (OSError, ValueError):
            raise ClipRejected("decode", f"there is no image {name} in the data set") from None

    def read_frames(self, indices: list[int], short_side_px: int) -> Frames:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        return read_images(indices, self._encoded, short_side_px, "frame")


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _check_intrinsics(intrinsics_px: Doubles, size_px: tuple[int, int]) -> None:
    """Reject intrinsics of another image size, or in other units than pixels."""
    (width, height), (fx, fy, cx, cy) = size_px, intrinsics_px.T
    centred = (cx > 0) & (cx < width) & (cy > 0) & (cy < height)
    # A lens between fisheye (143°) and 20 times the image's side.
    sensible = (fx > width / 6) & (fx < 20 * width) & (fy > height / 6) & (fy < 20 * height)
    wrong = ~(centred & sensible)
    if wrong.any():
        at = int(wrong.argmax())
        text = ", ".join(f"{value:g}" for value in intrinsics_px[at])
        raise ClipRejected(
            "depth",
            f"the intrinsics {text} (fx, fy, cx, cy) of frame {at} are not those of an image of "
            f"{width} x {height} pixels",
        )


def _check_poses(poses: Doubles) -> None:
    """Reject what is no camera to world matrix."""
    turns = poses[:, :3, :3]
    off = np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    last = np.abs(poses[:, 3] - np.array([0.0, 0.0, 0.0, 1.0])).max(axis=1)
    wrong = (off > _ROTATION_TOLERANCE) | (last > 1e-6) | (np.linalg.det(turns) < 0)
    if wrong.any():
        at = int(wrong.argmax())
        raise ClipRejected(
            "depth", f"the camera's pose at frame {at} is no rotation and translation (row-major)"
        )
