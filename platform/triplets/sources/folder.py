"""A folder of videos with captions in a table beside them.

The table is ``captions.csv``, ``.jsonl`` or ``.parquet``, see
:mod:`~dynaflip.platform.triplets.sources.captions`. Its column ``depth`` names a ``.npy``
file with (N, H, W) z-depth, metres if floating point, millimetres if integer, one
image a frame of the video.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import (
    Cameras,
    Clip,
    ClipRejected,
    Doubles,
    Floats,
    Frames,
    content_hash,
    normalise_caption,
)
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources import video
from dynaflip.platform.triplets.sources.caption_segments import merged, segments_of, span_of
from dynaflip.platform.triplets.sources.captions import CAPTION_FILES, CaptionRow, read_captions
from dynaflip.platform.triplets.sources.depth_file import read_depth_file_m
from dynaflip.platform.triplets.sources.listed_files import ListedFiles
from dynaflip.platform.triplets.sources.locations import (
    Fingerprint,
    Location,
    is_within,
    location_of,
    source_name,
)

# A file of another ending is read where a caption names it.
VIDEO_ENDINGS = (
    *(".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".gif"),
    *(".mts", ".m2ts", ".ts", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".vob"),
)
# What a program in TypeScript does not begin with.
_TS_SYNC = b"G"
# How far a caption's segment may go on after its video, as times rounded to seconds do.
_BEYOND_S = 1.0
_FILES_AT_ONCE = 256


class FolderSource:
    """Videos below a folder, captions beside them."""

    format = "folder"
    looks_for = f"video files ({', '.join(VIDEO_ENDINGS)})"
    takes_captions = True
    # Of every recording of this format, unless a setting or a caption's row has another value.
    embodiment = "unknown"
    licence = "unknown"
    # Whether a caption's segment must end within its video.
    ends_within = True

    def __init__(self, config: SourceConfig) -> None:
        self.root: Location = location_of(config.path)
        self.config = config
        self.name = source_name(config.name, self.root)
        self.files = ListedFiles(config.path)
        if self.root.is_file():
            self.root = self.root.parent

    @classmethod
    def detect(cls, root: Location, names: list[str]) -> bool:
        """Detect any folder that holds a video."""
        return any(name.lower().endswith(VIDEO_ENDINGS) for name in names)

    def read_rows(self, names: list[str]) -> list[CaptionRow]:
        """Captions of the source; ``names`` are its files.

        Raises:
            UserError: there is no caption at all.
        """
        if self.config.captions:
            return read_captions(location_of(self.config.captions))
        found = [name for name in CAPTION_FILES if name in names]
        if len(found) > 1:
            raise UserError(f"{self.root}: has {' and '.join(found)}; leave one")
        if found:
            return read_captions(self.root / found[0])
        if self.config.caption_template or self.config.captioner:
            return []
        raise UserError(
            f"{self.root}: there are videos but no {' or '.join(CAPTION_FILES)}; write one with "
            f"the columns file,caption (one row a video, paths relative to the folder), or give "
            f"--source.caption_template or --source.captioner"
        )

    def list_clips(self) -> Iterator[Clip]:
        """One clip for each video or captioned segment; ``problem`` is what is wrong with it."""
        names = list(self.files.stamps)
        if not any(name.lower().endswith(VIDEO_ENDINGS) for name in names):
            raise UserError(
                f"source.path: no video found in {self.root} (looked for {FolderSource.looks_for})"
            )
        rows: dict[str, list[CaptionRow]] = defaultdict(list)
        there = _spellings(names)
        for row in self.read_rows(names):
            rows[self._found(row.file, there)].append(row)
        other = self._other_ts([name for name in names if name not in rows])
        videos = [n for n in names if n in rows or (n not in other and _is_video(n))]
        present = set(videos)
        missing = [several[0] for name, several in rows.items() if name not in present]
        strays = self._strays(missing, names) if missing else []
        if strays and len(strays) == len(rows):
            assert strays[0].problem
            raise UserError(
                f"{self.root}: none of the {len(strays)} files that the captions name is there, "
                f"such as {strays[0].path} ({strays[0].problem[1]})"
            )
        self._check_cameras(videos, rows, strays)
        clips = chain(self._clips(videos, rows), strays)
        return (c for c in clips if not self.config.cameras or c.camera in self.config.cameras)

    def _clips(self, videos: list[str], rows: dict[str, list[CaptionRow]]) -> Iterator[Clip]:
        """Clips of videos; the files of some are looked at together."""
        named = self._named_recordings(videos, rows)
        for begin in range(0, len(videos), _FILES_AT_ONCE):
            several = videos[begin : begin + _FILES_AT_ONCE]
            # Not listed files alone: a hidden folder's depth is read, and that beside one file.
            depths = {row.depth for name in several for row in rows.get(name, []) if row.depth}
            prints = self.files.fingerprints([*several, *sorted(filter(is_within, depths))])
            for name in several:
                footage = _footage(name, prints)
                recording = named.get(footage) or content_hash("recording", footage)
                for segment in segments_of(rows.get(name, [])):
                    yield self._clip(name, segment, prints, recording)
                for number, row in enumerate(rows.get(name, [])):
                    if row.problem:
                        yield self._set_aside(name, number, row, recording)

    def _named_recordings(
        self, videos: list[str], rows: dict[str, list[CaptionRow]]
    ) -> dict[str, str]:
        """Ids of recordings by footage: cameras that are named as one recording share it.

        So does a copy of one of them that nobody names: it must not cross the splits.
        """
        named = {}
        for name in videos:
            if recording := next((r.recording for r in rows.get(name, []) if r.recording), ""):
                named[name] = recording
        prints = self.files.fingerprints(named)
        by_footage: dict[str, str] = {}
        for name, recording in named.items():
            by_footage.setdefault(_footage(name, prints), recording)
        groups: dict[str, list[str]] = defaultdict(list)
        for footage, recording in by_footage.items():
            groups[recording].append(footage)
        ids = {name: content_hash("recording", *sorted(all_)) for name, all_ in groups.items()}
        return {footage: ids[recording] for footage, recording in by_footage.items()}

    def _check_cameras(
        self, videos: list[str], rows: dict[str, list[CaptionRow]], strays: list[Clip]
    ) -> None:
        """Refuse settings that name a camera which no caption does."""
        if not self.config.cameras:
            return
        segments = (segment for name in videos for segment in segments_of(rows.get(name, [])))
        has = {merged(segment).camera or "main" for segment in segments}
        has |= {clip.camera for clip in strays}
        for name in self.config.cameras:
            if name not in has:
                raise UserError(
                    f"source.cameras: {self.root} has no camera {name}; it has "
                    f"{', '.join(sorted(has))}"
                )

    def _strays(self, missing: list[CaptionRow], names: list[str]) -> list[Clip]:
        """Rejections of rows, one a file, whose files are not there."""
        lower: dict[str, str] = {}
        for name in names:
            lower.setdefault(name.lower(), name)
        ordered = sorted(names)
        return [self._stray(row, lower, ordered) for row in missing]

    def _other_ts(self, names: list[str]) -> set[str]:
        """Files ending in .ts that are no video: programs in TypeScript do, too."""
        names = [name for name in names if name.lower().endswith(".ts")]
        known = self.files.remembered("is video", names)
        found = {}
        for name in names:
            if name not in known:
                try:
                    with (self.root / name).open("rb") as file:
                        found[name] = "yes" if file.read(1) == _TS_SYNC else ""
                except OSError:
                    continue  # what it is is said where it is read
        self.files.remember("is video", found)
        return {name for name, is_video in {**known, **found}.items() if not is_video}

    def _found(self, name: str, there: dict[str, str]) -> str:
        """The file that a caption names, where it spells the name otherwise than the disk."""
        if there.get(_spelling(name)) == name:
            return name
        if isinstance(self.root, Path) and Path(name).is_absolute():
            root = self.root.resolve()
            name = Path(name).relative_to(root).as_posix() if root in Path(name).parents else name
        return there.get(_spelling(name), name)

    def _stray(self, row: CaptionRow, lower: dict[str, str], ordered: list[str]) -> Clip:
        reason = "a caption names it, but there is no such video"
        meant = lower.get(row.file.lower()) or _first_with(f"{row.file}.", ordered)
        if meant:
            reason += f"; is {meant} meant?"
        elif _first_with(f"{row.file}/", ordered):
            reason = "a folder and no video: make a video of its images (ffmpeg), or leave it out"
        if not is_within(row.file):
            reason = "a caption names it, but it lies outside the folder"
        identity = content_hash("missing", self.name, row.file)
        return self._described(row, identity, identity, problem=("list", reason))

    def _set_aside(self, name: str, number: int, row: CaptionRow, recording: str) -> Clip:
        """The rejection of a row that cannot be used; other rows of its video are not its loss."""
        identity = content_hash("row", self.name, name, str(number), row.problem)
        row = replace(row, file=name)
        return self._described(row, identity, recording, problem=("list", row.problem))

    def _described(self, row: CaptionRow, clip_id: str, recording: str, **values: object) -> Clip:
        """A clip described by a caption's row and the settings."""
        about = {
            "clip_id": clip_id,
            "recording_id": recording,
            "source": self.name,
            "path": row.file,
            "camera": row.camera or "main",
            "captions": (),
            "caption_group": "",
            "task": "",
            "embodiment": row.embodiment or self.config.embodiment or self.embodiment,
            "licence": row.licence or self.config.licence or self.licence,
        }
        return Clip(**{**about, **values})  # type: ignore[arg-type]

    def _clip(
        self, name: str, rows: list[CaptionRow], prints: dict[str, Fingerprint], recording: str
    ) -> Clip:
        first = merged(rows)
        captions = tuple(row.caption for row in rows if row.caption)
        group = normalise_caption(captions[0]) if captions else ""
        footage = _footage(name, prints)
        content = prints[name].digest
        problem = ("caption", f"no caption in {self.config.captions or 'the captions file'}")
        if first.depth:
            if not is_within(first.depth):
                problem, captions = ("depth", f"{first.depth} lies outside the folder"), ()
            elif not first.depth.lower().endswith(".npy"):
                reason = f"depth is {first.depth!r} and no .npy file; does a caption hold a comma?"
                problem, captions = ("depth", reason), ()
            content += prints[first.depth].digest if first.depth in prints else ""
        if first.problem:
            problem, captions = ("list", first.problem), ()
        if prints[name].problem:
            problem, captions = ("list", f"cannot be read: {prints[name].problem}"), ()
        span = () if not first.start_s and first.end_s is None else (span_of(first),)
        return self._described(
            CaptionRow(**{**vars(first), "file": name}),
            # Whatever its captions, the same footage is the same clip.
            content_hash("clip", footage, *span),
            recording,
            captions=captions,
            caption_group=first.group or first.task or group,
            task=first.task or first.group or group,
            start_s=first.start_s or 0.0,
            end_s=first.end_s,
            content=content,
            extra=first.depth,
            problem=None if captions else problem,
        )

    def open(self, clip: Clip) -> FolderRecording:
        """Get ready to read a video of this folder."""
        depth_path = self.root / clip.extra if clip.extra else None
        return FolderRecording(self.root / clip.path, depth_path, clip, self.ends_within)


class FolderRecording:
    """A video file or a segment of one, with depth beside it or without."""

    def __init__(
        self, path: Location, depth_path: Location | None, clip: Clip, ends_within: bool = True
    ) -> None:
        self.path = path
        self.depth_path = depth_path
        self.clip = clip
        self.ends_within = ends_within
        self._timeline: video.Timeline | None = None

    @property
    def timeline(self) -> video.Timeline:
        """Times of the frames, read once."""
        if self._timeline is None:
            # A caption's times count from the video's beginning, wherever its own time starts.
            self._timeline = video.read_timeline(
                self.path, self.clip.start_s, self.clip.end_s, from_beginning=True
            )
            self._check_end(self._timeline)
        return self._timeline

    def _check_end(self, timeline: video.Timeline) -> None:
        """Reject a segment that goes on after the video has ended."""
        times_s, end_s = timeline.times_s(), self.clip.end_s
        if not self.ends_within or end_s is None or len(times_s) < 2:
            return
        last_s = self.clip.start_s + float(times_s[-1] + 2 * np.diff(times_s).max())
        if last_s + _BEYOND_S < end_s:
            raise ClipRejected(
                "decode",
                f"its caption's segment ends at {end_s:g} s, but the last frame is shown at "
                f"{self.clip.start_s + float(times_s[-1]):.2f} s",
            )

    def times_s(self) -> Doubles:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        return self.timeline.times_s()

    def read_frames(self, indices: list[int], short_side_px: int) -> Frames:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        return video.read_frames(self.path, self.timeline, indices, short_side_px)

    def read_depth_m(self, indices: list[int]) -> Floats | None:
        """See :class:`~dynaflip.platform.triplets.clips.Recording`."""
        if self.depth_path is None:
            return None
        if self.clip.start_s or self.clip.end_s is not None:
            raise ClipRejected("depth", "a depth file is for whole videos, not for segments")
        return read_depth_file_m(self.depth_path, indices, len(self.timeline.pts))

    def cameras(self, indices: list[int]) -> Cameras | None:
        """Nothing is known of the camera of a plain video."""
        return None

    def simulator_state(self, indices: list[int]) -> Doubles | None:
        """A plain video is no simulation."""
        return None

    def caption_at(self, index: int, draw: int) -> str:
        """Phrasings take turns over draws."""
        return self.clip.captions[draw % len(self.clip.captions)]


def _spelling(name: str) -> str:
    """A name however it is composed (macOS takes é apart) and with Windows' strokes turned."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def _spellings(names: Iterable[str]) -> dict[str, str]:
    """Files by their spelling, where only one is spelt so."""
    found: dict[str, str] = {}
    twice = set()
    for name in names:
        if found.setdefault(_spelling(name), name) != name:
            twice.add(_spelling(name))
    return {spelling: name for spelling, name in found.items() if spelling not in twice}


def _first_with(beginning: str, ordered: list[str]) -> str:
    """The first of sorted names that begins so, or ""."""
    at = bisect_left(ordered, beginning)
    return ordered[at] if at < len(ordered) and ordered[at].startswith(beginning) else ""


def _is_video(name: str) -> bool:
    """True where a file is a video by its ending."""
    return name.lower().endswith(VIDEO_ENDINGS)


def _footage(name: str, prints: dict[str, Fingerprint]) -> str:
    """The identity of a video; what cannot be read has no content: its name must do."""
    return prints[name].digest or name
