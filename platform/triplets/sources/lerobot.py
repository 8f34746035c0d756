"""LeRobot data sets, v3.0 and v2.1, read with pyarrow and PyAV alone.

Written after the format's source (huggingface/lerobot 0.6.1, ``datasets/``): several
episodes share a Parquet file and a video; an episode's frames are those of the
video between its ``from_timestamp`` and ``to_timestamp``. In v2.1 each has its own.

Beyond the format, these columns are used where they exist: per frame
``observation.camera_pose.CAMERA`` (16, camera to world, row-major, metres, OpenCV
axes) and ``observation.intrinsics.CAMERA`` (fx, fy, cx, cy in pixels); per episode
``task_id`` (equal = same meaning) and ``factors`` (JSON).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from dynaflip.errors import UserError
from dynaflip.platform.lerobot.columns import (
    SIMULATOR_STATE,
    intrinsics_column,
    pose_column,
    read_columns,
)
from dynaflip.platform.lerobot.depth_codec import decode_depth_m
from dynaflip.platform.lerobot.metadata import Episode, Meta, first_line
from dynaflip.platform.s3 import NetworkError
from dynaflip.platform.triplets.clips import (
    Cameras,
    Clip,
    ClipRejected,
    Doubles,
    Floats,
    Frames,
    content_hash,
)
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources import video
from dynaflip.platform.triplets.sources.locations import (
    Fingerprint,
    Location,
    fingerprints,
    is_temporary,
    location_of,
)

IMAGES = "observation.images."


class LeRobotSource:
    """One clip for every camera of every episode."""

    format = "lerobot"
    looks_for = "LeRobot's meta/info.json"

    def __init__(self, config: SourceConfig) -> None:
        self.root: Location = location_of(config.path)
        self.config = config
        self.name = config.name or self.root.resolve().name
        self.meta = Meta(self.root)
        self.info = self.meta.info
        features = self.info["features"]
        videos = {k: f for k, f in features.items() if f.get("dtype") == "video"}
        self.depth_keys = sorted(k for k, f in videos.items() if _is_depth(f))
        self.cameras = sorted(k for k in videos if k not in self.depth_keys)

    def list_clips(self) -> list[Clip]:
        """Clips in the order of episodes and cameras."""
        if not self.cameras:
            raise UserError(
                f"source.path: {self.root}/meta/info.json lists no camera (a feature of dtype "
                f"video that is not a depth map), so there is no video to read"
            )
        chosen = self._chosen_cameras()
        episodes = self.meta.episodes()
        used = {key: self._depth_key(key) for key in chosen}
        keys = [*chosen, *(depth for depth in used.values() if depth), self.cameras[0]]
        names = {self.meta.video_path(episode, key) for episode in episodes for key in keys}
        prints = fingerprints(self.root, sorted(names))
        missing = {name: _other_folder(name) for name, found in prints.items() if found.problem}
        prints |= {
            name: found
            for name, found in fingerprints(self.root, sorted(missing.values())).items()
            if not found.problem
        }
        if not any(found.digest for found in prints.values()):
            looked = self.meta.video_path(episodes[0], chosen[0])
            raise UserError(f"source.path: no video found in {self.root}, looked for {looked}")
        tables = {self.meta.tasks_file(), *(self.meta.data_path(episode) for episode in episodes)}
        prints |= fingerprints(self.root, sorted(tables))
        return [self._clip(episode, key, prints) for episode in episodes for key in chosen]

    @classmethod
    def detect(cls, root: Location, names: list[str]) -> bool:
        """``meta/info.json``."""
        return "meta/info.json" in names

    def _chosen_cameras(self) -> list[str]:
        if not self.config.cameras:
            return self.cameras
        names = {key.removeprefix(IMAGES): key for key in self.cameras}
        for name in self.config.cameras:
            if name not in names and name not in self.cameras:
                raise UserError(
                    f"source.cameras: {self.root} has no camera {name}; it has {', '.join(names)}"
                )
        return [names.get(name, name) for name in self.config.cameras]

    def _clip(self, episode: Episode, key: str, prints: dict[str, Fingerprint]) -> Clip:
        path = self._video_file(episode, key, prints)
        start_s, end_s = episode.span_s(key)
        depth_key = self._depth_key(key)
        content = [prints[path].digest, prints[self.meta.data_path(episode)].digest]
        content.append(json.dumps(self.info["features"][key], sort_keys=True))
        if depth_key:
            content.append(prints[self._video_file(episode, depth_key, prints)].digest)
            content.append(json.dumps(self.info["features"][depth_key], sort_keys=True))
        # All cameras of an episode are one recording: the first one's video stands for it.
        first = self._video_file(episode, self.cameras[0], prints)
        begin, end = episode.span_s(self.cameras[0])
        recording = _recording_id(episode, f"{prints[first].digest or first} {begin} {end}")
        captions = episode.captions
        if len(captions) > 1:
            content.append(prints[self.meta.tasks_file()].digest)  # each frame's is looked up
        licence = self.info.get("licence") or self.info.get("license") or "unknown"
        return Clip(
            clip_id=content_hash("clip", recording, key),
            recording_id=recording,
            source=self.name,
            path=path,
            camera=key.removeprefix(IMAGES),
            captions=captions,
            caption_group=episode.task_id,
            task=episode.task_id,
            embodiment=self.config.embodiment or "robot",
            licence=self.config.licence or str(licence),
            factors=episode.factors,
            episode_index=episode.index,
            start_s=start_s,
            end_s=end_s,
            content=content_hash(*content, episode.to_json(statistics=True)),
            extra=episode.to_json(),
            problem=None if captions else ("caption", "the episode has no task"),
        )

    def _video_file(self, episode: Episode, key: str, prints: dict[str, Fingerprint]) -> str:
        """Relative path of an episode's video; third-party sets may call the folder video/."""
        path = self.meta.video_path(episode, key)
        other = prints.get(_other_folder(path))
        return _other_folder(path) if prints[path].problem and other else path

    def _depth_key(self, key: str) -> str | None:
        """The depth video that belongs to a camera."""
        for candidate in (f"{key}_depth", key.replace(".images.", ".depth.", 1)):
            if candidate in self.depth_keys:
                return candidate
        only = len(self.cameras) == 1 and len(self.depth_keys) == 1
        return self.depth_keys[0] if only else None

    def open(self, clip: Clip) -> LeRobotRecording:
        """Get ready to read an episode through one camera."""
        key = clip.camera if clip.camera in self.info["features"] else IMAGES + clip.camera
        return LeRobotRecording(self, clip, key, Episode.from_json(clip.extra))


class LeRobotRecording:
    """One episode through one camera."""

    def __init__(self, source: LeRobotSource, clip: Clip, key: str, episode: Episode) -> None:
        self.source, self.clip, self.key, self.episode = source, clip, key, episode
        self.path = source.root / clip.path
        self._timeline: video.Timeline | None = None
        self._columns: dict[str, pa.ChunkedArray] | None = None

    @property
    def timeline(self) -> video.Timeline:
        """Times of the episode's frames, read once."""
        if self._timeline is None:
            found = video.read_timeline(self.path, self.clip.start_s, self.clip.end_s)
            length = self.episode.length
            if length is not None and len(found.pts) != length:
                raise ClipRejected(
                    "decode",
                    f"the episode has {length} frames, but its video {len(found.pts)} "
                    f"({self.clip.start_s:.3f} to {self.clip.end_s:.3f} s)",
                )
            self._timeline = found
        return self._timeline

    def times_s(self) -> Doubles:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        return self.timeline.times_s()

    def read_frames(self, indices: list[int], short_side_px: int) -> Frames:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        return video.read_frames(self.path, self.timeline, indices, short_side_px)

    def read_depth_m(self, indices: list[int]) -> Floats | None:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        key = self.source._depth_key(self.key)
        if key is None:
            return None
        name = self.source.meta.video_path(self.episode, key)
        try:
            if not (self.source.root / name).is_file():
                name = _other_folder(name)
            timeline = video.read_timeline(self.source.root / name, *self.episode.span_s(key))
            if len(timeline.pts) != len(self.timeline.pts):
                raise ClipRejected(
                    "depth",
                    f"{len(timeline.pts)} frames of depth, {len(self.timeline.pts)} of video",
                )
            codes = video.read_gray12(self.source.root / name, timeline, indices)
        except ClipRejected as error:
            stage = error.stage if error.stage == "network" else "depth"
            raise ClipRejected(stage, error.reason) from None
        except NetworkError as error:
            raise ClipRejected("network", str(error)) from None
        return decode_depth_m(codes, self.source.info["features"][key].get("info") or {})

    def cameras(self, indices: list[int]) -> Cameras | None:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        intrinsics = self._column(intrinsics_column(self.clip.camera), 4)
        poses = self._column(pose_column(self.clip.camera), 16)
        if intrinsics is None:
            return None
        return Cameras(
            intrinsics[indices],
            self.source.meta.image_px(self.key),
            None if poses is None else poses[indices].reshape(-1, 4, 4),
            assumed=False,
        )

    def simulator_state(self, indices: list[int]) -> Doubles | None:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        column = self._read_columns().get(SIMULATOR_STATE)
        return None if column is None else np.array(column.to_pylist(), np.float64)[indices]

    def caption_at(self, index: int, draw: int) -> str:
        """The task of the frame; an episode may go from one task to the next."""
        if len(self.clip.captions) == 1:
            return self.clip.captions[0]
        column = self._read_columns().get("task_index")
        if column is None:
            return self.clip.captions[draw % len(self.clip.captions)]
        return self.source.meta.task_names()[int(column[index].as_py())]

    def _column(self, name: str, width: int) -> Doubles | None:
        column = self._read_columns().get(name)
        if column is None:
            return None
        values = np.array(column.to_pylist(), dtype=np.float64)
        if values.shape != (len(self.timeline.pts), width) or not np.isfinite(values).all():
            raise ClipRejected(
                "depth", f"{name} of shape {values.shape} or not finite; expected {width} a frame"
            )
        return values

    def _read_columns(self) -> dict[str, pa.ChunkedArray]:
        """The columns beyond the images that this camera needs, of this episode."""
        if self._columns is None:
            camera = self.clip.camera
            names = (intrinsics_column(camera), pose_column(camera), "task_index", SIMULATOR_STATE)
            meta = self.source.meta
            try:
                self._columns = read_columns(meta, self.episode, names, may_lack=True)
            except (OSError, pa.ArrowException) as error:
                name = meta.data_path(self.episode)
                stage = "network" if is_temporary(meta.root / name, error) else "decode"
                raise ClipRejected(stage, f"cannot read {name}: {first_line(error)}") from None
        return self._columns


def _other_folder(path: str) -> str:
    return path.replace("videos/", "video/", 1)


def _is_depth(feature: dict[str, Any]) -> bool:
    info = feature.get("info") or {}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))


def _recording_id(episode: Episode, location: str) -> str:
    """Content of an episode: its statistics, or where its video lies if there are none.

    Its captions are no part of it: the same episode with another caption is the same recording.
    """
    statistics = episode.statistics()
    text = Episode({**statistics, "length": episode.row.get("length")}).to_json(statistics=True)
    return content_hash("episode", text, "" if statistics else location)
