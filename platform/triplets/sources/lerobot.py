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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.lerobot.episode import Episode
from dynaflip.platform.lerobot.metadata import Meta
from dynaflip.platform.lerobot.shared_videos import SharedVideos
from dynaflip.platform.triplets.clips import Clip, ClipRejected, content_hash
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources.lerobot_recording import (
    LeRobotImages,
    LeRobotRecording,
    LeRobotVideo,
)
from dynaflip.platform.triplets.sources.listed_files import ListedFiles
from dynaflip.platform.triplets.sources.locations import (
    Fingerprint,
    Location,
    location_of,
    source_name,
)

IMAGES = "observation.images."


# Fingerprints are looked up for so many episodes together, and kept up to a number of files.
_EPISODES_AT_ONCE = 64
_PRINTS_KEPT = 10_000


@dataclass
class _Layout:
    """Where the episodes lie in the videos of each camera, and how many there are."""

    videos: dict[str, SharedVideos]
    episodes: int = 0


class LeRobotSource:
    """One clip for every camera of every episode."""

    format = "lerobot"
    looks_for = "LeRobot's meta/info.json"

    def __init__(self, config: SourceConfig) -> None:
        self.root: Location = location_of(config.path)
        self.files = ListedFiles(config.path)
        self.config = config
        self.name = source_name(config.name, self.root)
        self.meta = Meta(self.root)
        self.info = self.meta.info
        kinds = {k: f.get("dtype") for k, f in self.info["features"].items()}
        seen = sorted(k for k, kind in kinds.items() if kind in ("video", "image"))
        self.image_keys = {k for k in seen if kinds[k] == "image"}
        self.depth_keys = [k for k in seen if _is_depth(k, self.info["features"][k])]
        self.cameras = [k for k in seen if k not in self.depth_keys]

    def list_clips(self) -> Iterator[Clip]:
        """Clips in the order of episodes and cameras; few of them are in memory."""
        if not self.cameras:
            raise UserError(
                f"source.path: {self.root}/meta/info.json lists no camera (a feature of dtype "
                f"video or image that is not depth), so there is nothing to see"
            )
        chosen = self._chosen_cameras()
        self._say_what_is_left_out(chosen)
        layout = self._layout(chosen)
        self._say_what_is_missing(layout.episodes)
        prints = self._first_prints(layout, chosen)
        episodes = self.meta.stream()
        while several := list(islice(episodes, _EPISODES_AT_ONCE)):
            self._look_up(prints, several, chosen)
            for row in (episode.row for episode in several):
                episode = Episode(row)  # whose texts are made once, and forgotten after its cameras
                for key in chosen:
                    yield self._clip(episode, key, prints, layout)

    def _layout(self, chosen: list[str]) -> _Layout:
        """Where episodes lie in the videos, by a look at all of them without their statistics."""
        layout = _Layout({key: SharedVideos() for key in self._video_keys(chosen)})
        for episode in self.meta.stream(statistics=False):
            layout.episodes += 1
            for key, videos in layout.videos.items():
                path = self._video_path(episode, key)
                try:
                    if path:
                        videos.add(episode.index, episode.length, path, episode.span_s(key)[0])
                except ClipRejected:
                    continue  # said of the episode's clips
        return layout

    def _video_keys(self, cameras: list[str]) -> list[str]:
        """Videos that are read for some cameras: theirs, of depth, and the one that ids are of."""
        depths = [self.depth_key(key) for key in cameras]
        keys = [*cameras, *(key for key in depths if key), self._first_camera()]
        return [key for key in dict.fromkeys(keys) if key not in self.image_keys]

    def _first_camera(self) -> str:
        """The camera whose video stands for a recording; images do where there is no video."""
        return next((key for key in self.cameras if key not in self.image_keys), self.cameras[0])

    def _first_prints(self, layout: _Layout, chosen: list[str]) -> dict[str, Fingerprint]:
        """Fingerprint of the table of tasks, and of videos up to the first that is one.

        Raises:
            UserError: no video is there.
        """
        prints = self.files.fingerprints([self.meta.tasks_file()])
        if self.image_keys.intersection(chosen):
            return prints
        names = (
            name
            for episode in self.meta.stream(statistics=False)
            for key in layout.videos
            if (name := self._video_path(episode, key))
        )
        looked = why = ""
        for name in names:
            self._print_video(prints, [name])
            if prints[name].digest or _other_folder(name) in prints:
                return prints
            if not looked:
                looked, why = name, prints[name].problem
        if looked:
            raise UserError(
                f"source.path: no video found in {self.root}, looked for {looked} ({why})"
            )
        return prints

    def _look_up(
        self, prints: dict[str, Fingerprint], episodes: list[Episode], chosen: list[str]
    ) -> None:
        """Add the fingerprints of all files that some episodes' clips are read from."""
        if len(prints) > _PRINTS_KEPT:
            tasks = prints[self.meta.tasks_file()]
            prints.clear()
            prints[self.meta.tasks_file()] = tasks
        keys = self._video_keys(chosen)
        names = (name for e in episodes for key in keys if (name := self._video_path(e, key)))
        self._print_video(prints, names)
        tables = set()
        for episode in episodes:
            try:
                tables.add(self.meta.data_path(episode))
            except ClipRejected:
                continue  # said of the episode's clips
        prints |= self.files.fingerprints(sorted(tables - prints.keys()))

    def _print_video(self, prints: dict[str, Fingerprint], names: Iterable[str]) -> None:
        """Add fingerprints of videos, which some sets have in ``video/``."""
        new = self.files.fingerprints(sorted({*names} - prints.keys()))
        elsewhere = sorted(_other_folder(name) for name, found in new.items() if found.problem)
        others = self.files.fingerprints(name for name in elsewhere if name not in prints)
        prints |= new
        prints |= {name: found for name, found in others.items() if not found.problem}

    def _video_path(self, episode: Episode, key: str) -> str:
        """Path of an episode's video; "" where its row does not say it."""
        try:
            return self.meta.video_path(episode, key)
        except ClipRejected:
            return ""

    def _say_what_is_left_out(self, chosen: list[str]) -> None:
        used = {self.depth_key(key) for key in chosen}
        features = self.info["features"]
        for key in self.depth_keys:
            if key not in used and not _is_flagged(features[key]):
                print(
                    f"note: {self.name}: {key} is left out, since its name says depth; name it in "
                    f"--source.cameras to read it as a camera"
                )

    def _say_what_is_missing(self, episodes: int) -> None:
        stated = self.info.get("total_episodes")
        if isinstance(stated, int) and stated != episodes:
            print(
                f"note: {self.name}: info.json states {stated} episodes, its table of episodes "
                f"lists {episodes}; those are read"
            )

    @classmethod
    def detect(cls, root: Location, names: list[str]) -> bool:
        """``meta/info.json``."""
        return "meta/info.json" in names

    def _chosen_cameras(self) -> list[str]:
        if not self.config.cameras:
            return self.cameras
        unflagged = [k for k in self.depth_keys if not _is_flagged(self.info["features"][k])]
        names = {key.removeprefix(IMAGES): key for key in [*self.cameras, *unflagged]}
        for name in self.config.cameras:
            if name not in names and name not in names.values():
                raise UserError(
                    f"source.cameras: {self.root} has no camera {name}; it has {', '.join(names)}"
                )
        return [names.get(name, name) for name in self.config.cameras]

    def _clip(
        self,
        episode: Episode,
        key: str,
        prints: dict[str, Fingerprint],
        layout: _Layout,
    ) -> Clip:
        try:
            return self._readable_clip(episode, key, prints, layout)
        except ClipRejected as error:  # its row says something impossible
            identity = content_hash("episode", self.name, str(episode.index))
            return self._described(
                episode,
                key,
                clip_id=content_hash("clip", identity, key),
                recording_id=identity,
                path=f"episode {episode.index}",
                problem=(error.stage, error.reason),
            )

    def _readable_clip(
        self,
        episode: Episode,
        key: str,
        prints: dict[str, Fingerprint],
        layout: _Layout,
    ) -> Clip:
        table = self.meta.data_path(episode)
        path, start_s, end_s = table, 0.0, None
        content = [prints[table].digest, prints[table].digest]
        if key not in self.image_keys:
            path = self._found_file(episode, key, prints)
            start_s, end_s = episode.span_s(key)
            content[0] = prints[path].digest
        depth_key = self.depth_key(key)
        content.append(json.dumps(self.info["features"][key], sort_keys=True))
        if depth_key:
            content.append(prints[self._found_file(episode, depth_key, prints)].digest)
            content.append(json.dumps(self.info["features"][depth_key], sort_keys=True))
        # All cameras of an episode are one recording: the first one's video stands for it.
        first = self._first_camera()
        if first in self.image_keys:
            location = f"{prints[table].digest or table} {episode.index}"
        else:
            name, (begin, end) = self._found_file(episode, first, prints), episode.span_s(first)
            location = f"{prints[name].digest or name} {begin} {end}"
        recording = _recording_id(episode, location)
        captions = _checked_captions(episode)
        if len(captions) > 1:
            content.append(prints[self.meta.tasks_file()].digest)  # each frame's is looked up
        factors = _checked_factors(episode)
        placed = {
            f"videos/{one}/place": [place.before, place.total, place.episodes]
            for one in (key, depth_key or key)
            if one in layout.videos and (place := layout.videos[one].place(episode.index))
        }
        return self._described(
            episode,
            key,
            clip_id=content_hash("clip", recording, key),
            recording_id=recording,
            path=path,
            captions=captions,
            factors=factors,
            start_s=start_s,
            end_s=end_s,
            content=content_hash(*content, episode.text),
            extra=Episode({**episode.row, **placed}).to_json(),
            problem=None if captions else ("caption", "the episode has no task"),
        )

    def _described(self, episode: Episode, key: str, **values: Any) -> Clip:
        """A clip with what the episode and the settings say of it."""
        licence = self.info.get("licence") or self.info.get("license") or "unknown"
        about = {
            "source": self.name,
            "camera": key.removeprefix(IMAGES),
            "captions": (),
            "caption_group": episode.task_id,
            "task": episode.task_id,
            "embodiment": self.config.embodiment or "robot",
            "licence": self.config.licence or str(licence),
            "episode_index": episode.index,
        }
        return Clip(**{**about, **values})

    def _found_file(self, episode: Episode, key: str, prints: dict[str, Fingerprint]) -> str:
        """Relative path of an episode's video; third-party sets may call the folder video/."""
        path = self.meta.video_path(episode, key)
        other = prints.get(_other_folder(path))
        return _other_folder(path) if prints[path].problem and other else path

    def video_file(self, episode: Episode, key: str) -> str:
        """The same, looked up on the disk."""
        path = self.meta.video_path(episode, key)
        return path if (self.root / path).is_file() else _other_folder(path)

    @cached_property
    def task_names(self) -> dict[int, str]:
        """Task string by index; see :meth:`~dynaflip.platform.lerobot.metadata.Meta.task_names`."""
        return self.meta.task_names()

    def depth_key(self, key: str) -> str | None:
        """The depth video that belongs to a camera."""
        videos = [depth for depth in self.depth_keys if depth not in self.image_keys]
        for candidate in (f"{key}_depth", key.replace(".images.", ".depth.", 1)):
            if candidate in videos and candidate != key:
                return candidate
        only = len(self.cameras) == 1 and len(videos) == 1 and videos[0] != key
        return videos[0] if only else None

    def open(self, clip: Clip) -> LeRobotRecording:
        """Get ready to read an episode through one camera."""
        key = clip.camera if clip.camera in self.info["features"] else IMAGES + clip.camera
        kind = LeRobotImages if key in self.image_keys else LeRobotVideo
        return kind(self, clip, key, Episode.from_json(clip.extra))


def _other_folder(path: str) -> str:
    return path.replace("videos/", "video/", 1)


def _is_flagged(feature: Mapping[str, Any]) -> bool:
    """True where a feature is said to be depth."""
    info = feature.get("info") or {}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))


def _is_depth(key: str, feature: Mapping[str, Any]) -> bool:
    """True where a feature is depth by its flag, or by its name where it has none."""
    return _is_flagged(feature) or "depth" in key.rsplit(".", 1)[-1].lower().split("_")


def _checked_captions(episode: Episode) -> tuple[str, ...]:
    """The episode's tasks in words.

    Raises:
        ClipRejected: they are something else, such as the tasks' numbers.
    """
    tasks = episode.row.get("tasks") or ()
    if isinstance(tasks, str | list | tuple):
        tasks = (tasks,) if isinstance(tasks, str) else tasks
        if all(task is None or isinstance(task, str) for task in tasks):
            return episode.captions
    raise ClipRejected("caption", f"the episode's tasks are {tasks!r:.100} and no words")


def _checked_factors(episode: Episode) -> str:
    """Perturbation values as JSON.

    Raises:
        ClipRejected: they are something else.
    """
    try:
        good = isinstance(json.loads(episode.factors), dict)
    except ValueError:
        good = False
    if not good:
        raise ClipRejected("list", f"factors of the episode are no JSON object: {episode.factors}")
    return episode.factors


def _recording_id(episode: Episode, location: str) -> str:
    """Content of an episode: its statistics, or where its video lies if there are none.

    Its captions are no part of it: the same episode with another caption is the same recording.
    """
    has_statistics, text = episode.identity
    return content_hash("episode", text, "" if has_statistics else location)
