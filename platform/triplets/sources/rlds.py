"""RLDS episodes in TFRecord files (Open X-Embodiment, BridgeData, DROID), without TensorFlow.

A record is an episode: a ``tf.train.Example`` whose features ``steps/…`` hold a value for
every step (RLDS, arXiv 2111.02767, as TensorFlow Datasets stores it). Images are encoded
JPEG or PNG; ``features.json`` beside the records lists which features are images; without it their
first bytes decide.

Depth is not used, because the format has no unit of it. Nor has it the time between steps: see
``source.fps``.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import (
    Clip,
    content_hash,
    normalise_caption,
)
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources import tfrecord
from dynaflip.platform.triplets.sources.contents import HEAD_BYTES, other_kind
from dynaflip.platform.triplets.sources.encoded_images import is_deep_grey
from dynaflip.platform.triplets.sources.listed_files import ListedFiles
from dynaflip.platform.triplets.sources.locations import (
    Location,
    location_of,
    source_name,
    why_unreadable,
)
from dynaflip.platform.triplets.sources.rlds_recording import RLDSRecording, StoredEpisode
from dynaflip.platform.triplets.sources.rlds_steps import (
    STEPS,
    base_name,
    instructions,
)
from dynaflip.platform.triplets.sources.tfrecord import DamagedRecord, Record, Unread, Values
from dynaflip.platform.triplets.versions import STAGE_VERSIONS

# Steps a second, after the overview table of Open X-Embodiment (arXiv 2310.08864).
_RATES_HZ = {
    "bridge": 5.0,
    "droid": 15.0,
    "fractal": 3.0,
    "kuka": 10.0,
    "taco_play": 15.0,
    "jaco_play": 10.0,
    "language_table": 10.0,
    "bc_z": 10.0,
    "berkeley_autolab_ur5": 5.0,
    "toto": 30.0,
    "viola": 20.0,
}
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG")
# Of longer features listing reads no more than the beginning.
_OUTLINE_BYTES = 256 << 10
_PARALLEL_FILES = 8
# What other tools leave beside records: indexes, checksums, unfinished downloads.
_BESIDE = (".idx", ".index", ".json", ".md5", ".sha256", ".crc", ".txt", ".lock", ".tmp")
_UNFINISHED = (".part", ".crdownload", ".incomplete", ".aria2")
_SHARD = re.compile(r"-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class _About:
    """Properties of a data set: ``images`` are the features that hold some, empty where no
    ``features.json`` says so."""

    fps: float
    licence: str
    images: tuple[str, ...]


class RLDSSource:
    """One clip for every camera of every episode."""

    format = "rlds"
    looks_for = "*.tfrecord"

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.files = ListedFiles(config.path)
        self.root: Location = location_of(config.path)
        if self.root.is_file():
            self.root = self.root.parent
        self.name = source_name(config.name, location_of(config.path))

    @classmethod
    def detect(cls, root: Location, names: list[str]) -> bool:
        """Files of TFRecords."""
        return any(_is_records(name) for name in names)

    def list_clips(self) -> Iterator[Clip]:
        """Clips in the order of files, records and cameras; a few files are read at a time."""
        names = list(self.files.stamps)
        files = [name for name in names if _is_records(name)]
        folders = {PurePosixPath(name).parent for name in files}
        described = {folder: self._described(folder, set(names)) for folder in folders}
        if not files:
            raise UserError(f"source.path: no records in {self.root} (looked for *.tfrecord)")
        self._say_what_is_missing(names, files)
        about = {n: _About(self._rate_hz(n), *described[PurePosixPath(n).parent]) for n in files}
        chosen = self.config.cameras
        found = False
        for several in self._several(files, about):
            found |= any(clip.camera in chosen for clip in several)
            yield from several
        if chosen and not found:
            raise UserError(f"source.cameras: {self.root} has no camera {', '.join(chosen)}")

    def _several(self, files: list[str], about: dict[str, _About]) -> Iterator[list[Clip]]:
        """The clips of each file, several files on their way."""
        coming: deque[Future[list[Clip]]] = deque()
        with ThreadPoolExecutor(_PARALLEL_FILES) as pool:
            for name in files:
                coming.append(pool.submit(self._file_clips, name, about[name]))
                if len(coming) > _PARALLEL_FILES:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def _file_clips(self, name: str, about: _About) -> list[Clip]:
        """The clips of a file, which is read again only if it was changed."""
        decides = [about, self.name, self.config.cameras, self.config.embodiment]
        decides += [self.config.licence, STAGE_VERSIONS["sources"]]
        kind = f"clips of RLDS {content_hash(*map(repr, decides))}"
        if name in (known := self.files.remembered(kind, [name])):
            return [Clip.from_json(line) for line in known[name].splitlines()]
        clips = list(self._clips(name, about))
        if not any(clip.problem for clip in clips):  # those may be gone the next time
            self.files.remember(kind, {name: "\n".join(clip.to_json() for clip in clips)})
        return clips

    def _say_what_is_missing(self, names: list[str], files: list[str]) -> None:
        """A note where shards of a data set are not there."""
        unfinished = [n for n in names if ".tfrecord" in n and n.endswith(_UNFINISHED)]
        if unfinished:
            print(f"note: {self.name}: {unfinished[0]} is an unfinished download and left out")
        shards: dict[tuple[str, int], set[int]] = defaultdict(set)
        for name in files:
            if found := _SHARD.search(name):
                shards[name[: found.start()], int(found[2])].add(int(found[1]))
        for (name, total), there in shards.items():
            if len(there) < total:
                print(f"note: {self.name}: {len(there)} of {total} shards of {name} are there")

    def _rate_hz(self, file: str) -> float:
        """Steps a second: several data sets may lie below one path."""
        fps = self.config.fps or _known_rate_hz(f"{self.root.resolve().name}/{file}")
        if not fps:
            raise UserError(
                f"source.fps: {self.root / file} does not state its steps per second; give "
                f"--source.fps (BridgeData 5, DROID 15), or each data set as a source of its own"
            )
        return fps

    def _described(self, folder: PurePosixPath, names: set[str]) -> tuple[str, tuple[str, ...]]:
        """Licence and image features of a folder's data set, by what lies there or above."""

        def nearest(wanted: str) -> dict[str, Any]:
            paths = [(above / wanted).as_posix() for above in (folder, *folder.parents)]
            found = next((name for name in paths if name in names), None)
            return _read_json(self.root / found) if found else {}

        images = _image_paths(nearest("features.json"), "")
        stated = (nearest("dataset_info.json").get("redistributionInfo") or {}).get("license")
        licence = self.config.licence or str(stated or "unknown")
        return licence, tuple(key for key in images if "depth" not in key)

    def _clips(self, name: str, about: _About) -> Iterator[Clip]:
        path = self.root / name
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                head = file.read(HEAD_BYTES)
                if not size:
                    yield self._problem(name, 0, "the file is empty (zero bytes)")
                for number, record in enumerate(tfrecord.scan_records(file, size)):
                    if isinstance(record, DamagedRecord):
                        kind = "" if number else other_kind(head)
                        yield self._problem(name, number, kind or str(record))
                        continue
                    try:
                        outline = tfrecord.read_outline(file, record, _OUTLINE_BYTES)
                    except DamagedRecord as error:
                        yield self._problem(name, number, str(error))
                        continue
                    yield from self._cameras_of(name, number, record, outline, about)
        except OSError as error:
            self.files.complete = False
            yield self._problem(name, 0, f"cannot be read: {error.strerror or error}")

    def _cameras_of(
        self,
        name: str,
        number: int,
        record: Record,
        outline: dict[str, Values | Unread],
        about: _About,
    ) -> Iterator[Clip]:
        recording = content_hash("record", str(record.size), str(record.checksum))
        found = [texts for _, texts in instructions(outline)]
        captions = tuple(dict.fromkeys(text for texts in found for text in texts if text))
        varies = any(len({text for text in texts if text}) > 1 for texts in found)
        group = normalise_caption(captions[0]) if captions and not varies else ""
        keys = [key for key in sorted(outline) if _is_camera(key, outline[key], about.images)]
        if not keys:
            has = ", ".join(sorted({base_name(key) for key in outline})[:8]) or "none"
            reason = f"no camera: no feature of steps/ holds JPEG or PNG images (it has {has})"
            yield self._problem(name, number, reason)
        for key in keys:
            camera = base_name(key).removeprefix(STEPS).removeprefix("observation/")
            if self.config.cameras and camera not in self.config.cameras:
                continue
            yield Clip(
                clip_id=content_hash("clip", recording, key),
                recording_id=recording,
                source=self.name,
                path=f"{name}#{number}",
                camera=camera,
                captions=captions,
                caption_group=group,
                task=group,
                embodiment=self.config.embodiment or "robot",
                licence=about.licence,
                episode_index=number,
                content=f"{recording} {about.fps!r}",
                extra=StoredEpisode(name, record, key, about.fps).to_json(),
                problem=None if captions else ("caption", "the episode has no instruction"),
            )

    def _problem(self, name: str, number: int, reason: str) -> Clip:
        identity = content_hash("damaged", self.name, name, str(number))
        return Clip(
            clip_id=identity,
            recording_id=identity,
            source=self.name,
            path=f"{name}#{number}",
            camera="",
            captions=(),
            caption_group="",
            task="",
            embodiment=self.config.embodiment or "robot",
            licence=self.config.licence or "unknown",
            problem=("decode", reason),
        )

    def open(self, clip: Clip) -> RLDSRecording:
        """Get ready to read an episode through one camera."""
        return RLDSRecording(self.root, clip)


def _is_records(name: str) -> bool:
    last = name.rsplit("/", 1)[-1].lower()
    return ".tfrecord" in last and not last.endswith((*_BESIDE, *_UNFINISHED))


def _is_camera(key: str, values: Values | Unread, images: tuple[str, ...]) -> bool:
    """Images, and not the same one at every step, which stands for a missing camera."""
    if isinstance(values, np.ndarray) or not key.startswith(STEPS) or "depth" in key:
        return False
    first = values.first if isinstance(values, Unread) else next(iter(values), None)
    if first is None or is_deep_grey(first):
        return False
    if images:
        if base_name(key) not in images:
            return False
    elif not first.startswith(_IMAGES):
        return False
    return isinstance(values, Unread) or len(set(values)) > 1 or len(values) == 1


def _known_rate_hz(path: str) -> float:
    """Steps a second of a data set of Open X-Embodiment, by a file's path below the source and
    the source's own folder; 0: not known."""
    for part in reversed(path.lower().split("/")):
        for name, rate in _RATES_HZ.items():
            if part.startswith(name):
                return rate
    return 0.0


def _read_json(path: Location) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        why = why_unreadable(path, error)
        raise UserError(f"source.path: {path} cannot be read as JSON ({why})") from None
    if not isinstance(content, dict):
        raise UserError(f"source.path: {path} is not a JSON object")
    return content


def _image_paths(feature: dict[str, Any], path: str) -> list[str]:
    """Names of the images below a feature of ``features.json``."""
    if "image" in feature or str(feature.get("pythonClassName", "")).endswith("Image"):
        about = feature.get("image")
        deep = isinstance(about, dict) and about.get("dtype") in ("uint16", "float32", "float64")
        return [] if deep else [path]  # what is deeper than 8 bits is depth
    inner = feature.get("sequence", {}).get("feature")
    if isinstance(inner, dict):
        return _image_paths(inner, path)
    children = feature.get("featuresDict", {}).get("features", {})
    return [
        found
        for name, child in children.items()
        for found in _image_paths(child, f"{path}/{name}".strip("/"))
    ]
