"""The work on a shard, a few clips, as plain functions: read them, make triplets, write Parquet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.build import LeftOut, read_clip, triplets_of
from dynaflip.platform.triplets.clip_in_work import (
    ClipInWork,
    ModelStage,
    ask_about,
    noted,
    rejecting,
)
from dynaflip.platform.triplets.clips import Clip, Source, printable
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.digest import row_digests
from dynaflip.platform.triplets.models.captioner import needs_caption, side_by_side
from dynaflip.platform.triplets.place import Place
from dynaflip.platform.triplets.report.cautions import mostly_moving
from dynaflip.platform.triplets.schema import interpolated_steps
from dynaflip.platform.triplets.work_folder import ClipFile, WorkFolder

_MAX_FILE_BYTES = 100 << 20


# A clip's summary, and its triplets: None where it is rejected.
Made = tuple[dict[str, Any], pa.Table | None]


def process_shard(
    name: str,
    clips: list[Clip],
    source: Source,
    config: PreprocessConfig,
    work: WorkFolder,
    stages: Sequence[ModelStage] = (),
) -> list[dict[str, Any]]:
    """Make the triplets of some clips, and write them before their summaries.

    Args:
        name: of the shard: other clips have another.
        clips: its clips.
        source: that opens them.
        config: settings.
        work: folder of the work.
        stages: that ask models, in their order.

    Returns:
        One summary for each clip: its triplets, or stage and reason of its rejection.
    """
    return write_shard(name, (_made(clip, source, config, work, stages) for clip in clips), work)


def _made(
    clip: Clip,
    source: Source,
    config: PreprocessConfig,
    work: WorkFolder,
    stages: Sequence[ModelStage],
) -> Made:
    """All stages of one clip."""
    item = ClipInWork(clip)
    with noted(item, work.attempts):
        read_item(item, source, config)
        for stage in stages:
            ask_about([item], stage)
        return make_triplets(item)


def read_item(item: ClipInWork, source: Source, config: PreprocessConfig) -> None:
    """Read all of a clip that later stages need."""
    if item.rejection is not None:
        return
    with rejecting(item):
        recording = source.open(item.clip)
        if needs_caption(item.clip):
            item.shown = side_by_side(recording)
        item.reader = read_clip(item.clip, recording, config)


def make_triplets(item: ClipInWork) -> Made:
    """The summary of a clip, and its triplets."""
    left_out: LeftOut = {}
    table = None
    with rejecting(item):
        if item.reader is not None:
            table = triplets_of(item.clip, item.reader, item.tracker, left_out)
            summary = _summary(item, left_out) | _about(table)
    if item.rejection is not None:
        stage, reason = item.rejection
        return _summary(item, left_out) | {"stage": stage, "reason": reason}, None
    return summary, table


def _summary(item: ClipInWork, left_out: LeftOut) -> dict[str, Any]:
    """Summary of a clip without triplets."""
    clip = item.listed
    return {
        "clip_id": clip.clip_id,
        "recording_id": clip.recording_id,
        "clip_digest": clip.digest(),  # before its caption is made
        "source": clip.source,
        "path": printable(clip.path),
        "stage": "",
        "reason": "",
        "split": "",
        "tasks": [],
        "rows": [],
        "visible": 0.0,
        "moving": 0.0,
        "assumed_focal": 0,
        "short_side_px": 0,
        "interpolated": 0.0,
        "left_out": {reason: len(windows) for reason, windows in left_out.items()},
        # Of each reason the first window: [t in the file, length], seconds.
        "left_out_at": {
            reason: [clip.start_s + windows[0][0], windows[0][1]]
            for reason, windows in left_out.items()
        },
    }


def _about(table: pa.Table) -> dict[str, Any]:
    """The parts of a summary that tell of triplets."""
    return {
        "rows": row_digests(table),
        "split": table["split"][0].as_py(),
        "tasks": sorted(set(table["task"].to_pylist())),
        "visible": sum(table["visible_share"].to_pylist()),
        "moving": sum(table["moving_share"].to_pylist()),
        "short_side_px": min(table["width_px"][0].as_py(), table["height_px"][0].as_py()),
        "interpolated": interpolated_steps(table),
        "mostly_moving": mostly_moving(table),
        "camera_motion": dict(Counter(table["camera_motion"].to_pylist())),
        "assumed_focal": table["focal_kind"].to_pylist().count("assumed"),
    }


def write_shard(name: str, made: Iterable[Made], work: WorkFolder) -> list[dict[str, Any]]:
    """Write the triplets of a shard's clips, and then their summaries, which are returned."""
    summaries = []
    with ExitStack() as files:
        writer = _ShardWriter(work.shards, name, files)
        for summary, table in made:
            if table is not None:
                writer.write(table)
            summaries.append(summary)
        positions = iter(writer.close())
    for summary in summaries:
        summary["at"] = None if summary["stage"] else next(positions)
    place.write(work.shard_summaries(name), json.dumps({"clips": summaries}))
    return summaries


class _ShardWriter:
    """Parquet files of bounded size; ``files`` lets go of those that are not finished."""

    def __init__(self, folder: Place, name: str, files: ExitStack) -> None:
        self.folder, self.name, self.open_files = folder, name, files
        self.file: ClipFile | None = None
        self.files = 0
        self.bytes = 0
        self.positions: list[dict[str, Any]] = []

    def write(self, table: pa.Table) -> None:
        """Append a clip's triplets as one row group."""
        if self.bytes + table.nbytes > _MAX_FILE_BYTES:
            self.close()
        if self.file is None:
            path = self.folder / f"{self.name}-{self.files:02d}.parquet"
            self.file = self.open_files.enter_context(ClipFile(path))
            self.files, self.bytes = self.files + 1, 0
        self.file.write(table)
        self.bytes += table.nbytes

    def close(self) -> list[dict[str, Any]]:
        """Finish the file that is open, if one is; positions of all clips so far, in order."""
        if self.file is not None:
            self.positions += self.file.close()
        self.file = None
        return self.positions
