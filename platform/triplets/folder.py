"""A folder of videos with ``captions.csv``.

Columns: ``file`` and ``caption``; a file may have several rows, one a phrasing.
Optional: ``task`` (rows of equal task mean the same), ``recording`` (files of
equal name are cameras of one recording and stay in one split), ``camera``,
``licence``, ``embodiment``, and ``depth``: a ``.npy`` file with (N, H, W) z-depth,
metres if floating point, millimetres if integer, one picture a frame.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from dynaflip.errors import UserError
from dynaflip.platform.triplets import video
from dynaflip.platform.triplets.clips import (
    Cameras,
    Clip,
    ClipError,
    Doubles,
    Floats,
    Frames,
    content_hash,
    file_fingerprint,
    normalise_caption,
)
from dynaflip.platform.triplets.config import SourceConfig

CAPTIONS = "captions.csv"
VIDEO_ENDINGS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".gif")
_COLUMNS = ("file", "caption", "task", "recording", "camera", "licence", "embodiment", "depth")


def find_videos(root: Path) -> list[str]:
    """Every video below ``root`` by its relative path, sorted; hidden files left out."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in files:
            if name.lower().endswith(VIDEO_ENDINGS) and not name.startswith("."):
                found.append((Path(folder) / name).relative_to(root).as_posix())
    return sorted(found)


class FolderSource:
    """Videos below a folder, captions beside them."""

    def __init__(self, config: SourceConfig) -> None:
        self.root = Path(config.path)
        self.config = config
        self.name = config.name or self.root.resolve().name

    def list_clips(self) -> list[Clip]:
        """One clip a video; a video without caption has that as its problem."""
        videos = find_videos(self.root)
        if not videos:
            raise UserError(
                f"source.path: no video found in {self.root} "
                f"(looked for {', '.join(VIDEO_ENDINGS)}, and for LeRobot's meta/info.json)"
            )
        rows = _read_captions(self.root / CAPTIONS)
        missing = [name for name in rows if name not in set(videos)]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"{self.root / CAPTIONS}: names {missing[0]}{more}, but there is no such video "
                f"below {self.root}"
            )
        prints = {name: file_fingerprint(self.root / name) for name in videos}
        groups: dict[str, list[str]] = defaultdict(list)
        for name in videos:
            recording = next((row["recording"] for row in rows.get(name, [])), "")
            groups[recording or f"file {name}"].append(name)
        recordings = {
            name: content_hash("recording", *sorted(prints[other] for other in members))
            for members in groups.values()
            for name in members
        }
        clips = [
            self._clip(name, rows.get(name, []), prints[name], recordings[name]) for name in videos
        ]
        return _mark_duplicates(clips)

    def _clip(self, name: str, rows: list[dict[str, str]], content: str, recording: str) -> Clip:
        first: dict[str, str] = rows[0] if rows else {}
        camera = first.get("camera") or "main"
        captions = tuple(row["caption"] for row in rows if row["caption"])
        group = first.get("task") or (normalise_caption(captions[0]) if captions else "")
        depth = first.get("depth", "")
        if depth and (self.root / depth).is_file():
            content += file_fingerprint(self.root / depth)
        return Clip(
            clip_id=content_hash("clip", recording, camera, content),
            recording_id=recording,
            source=self.name,
            path=name,
            camera=camera,
            captions=captions,
            caption_group=group,
            task=group,
            embodiment=first.get("embodiment") or self.config.embodiment or "unknown",
            licence=first.get("licence") or self.config.licence or "unknown",
            content=content,
            extra=depth,
            problem=None if captions else ("caption", f"no caption in {CAPTIONS}"),
        )

    def open(self, clip: Clip) -> FolderRecording:
        """Get ready to read a video of this folder."""
        depth_path = self.root / clip.extra if clip.extra else None
        return FolderRecording(self.root / clip.path, depth_path, clip)


class FolderRecording:
    """A video file, with depth beside it or without."""

    def __init__(self, path: Path, depth_path: Path | None, clip: Clip) -> None:
        self.path = path
        self.depth_path = depth_path
        self.clip = clip
        self._timeline: video.Timeline | None = None

    @property
    def timeline(self) -> video.Timeline:
        """Times of the frames, read once."""
        if self._timeline is None:
            self._timeline = video.read_timeline(self.path)
        return self._timeline

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
        if not self.depth_path.is_file():
            raise ClipError("depth", f"there is no file {self.clip.extra}")
        try:
            depth = np.load(self.depth_path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise ClipError("depth", f"cannot read {self.depth_path.name} as .npy") from None
        frames = len(self.timeline.pts)
        if depth.ndim != 3 or len(depth) != frames:
            raise ClipError(
                "depth",
                f"depth of shape {tuple(depth.shape)} does not go with {frames} frames of video",
            )
        metres = np.float32(0.001 if np.issubdtype(depth.dtype, np.integer) else 1.0)
        picked = depth[indices].astype(np.float32) * metres
        picked[~np.isfinite(picked) | (picked <= 0)] = np.nan
        return picked

    def cameras(self, indices: list[int]) -> Cameras | None:
        """Nothing is known of the camera of a plain video."""
        return None

    def simulator_state(self, indices: list[int]) -> Doubles | None:
        """A plain video is no simulation."""
        return None

    def caption_at(self, index: int, draw: int) -> str:
        """Phrasings take turns over draws."""
        return self.clip.captions[draw % len(self.clip.captions)]


def _read_captions(path: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of captions.csv by file, every known column present."""
    if not path.is_file():
        raise UserError(
            f"{path.parent}: there are videos but no {CAPTIONS}; write one with the columns "
            f"file,caption (one row a video, paths relative to the folder)"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = names
            lines = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    if "file" not in names or "caption" not in names:
        raise UserError(
            f"{path}: needs the columns file and caption, has {', '.join(names) or 'none'}"
        )
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    for number, line in enumerate(lines, start=2):
        row = {column: (line.get(column) or "").strip() for column in _COLUMNS}
        if not row["file"]:
            if any(row.values()):
                raise UserError(f"{path}: row {number} names no file")
            continue
        rows[Path(row["file"]).as_posix()].append(row)
    return dict(rows)


def _mark_duplicates(clips: list[Clip]) -> list[Clip]:
    """Equal content under a second name would count twice, and cross the splits unseen."""
    seen: dict[str, str] = {}
    out = []
    for clip in clips:
        if clip.clip_id in seen and clip.problem is None:
            clip = replace(clip, problem=("list", f"same content as {seen[clip.clip_id]}"))
        seen.setdefault(clip.clip_id, clip.path)
        out.append(clip)
    return out
