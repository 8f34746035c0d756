"""The work of one Ray task as a plain function: a few clips to Parquet."""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.attempt_notes import Notes
from dynaflip.platform.triplets.build import LeftOut, clip_table
from dynaflip.platform.triplets.clips import Clip, ClipRejected, Source, out_of_resources
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.digest import row_digests
from dynaflip.platform.triplets.models import Captioner, DepthModel
from dynaflip.platform.triplets.models.captioner import needs_caption, with_caption
from dynaflip.platform.triplets.place import Place
from dynaflip.platform.triplets.report.cautions import mostly_moving
from dynaflip.platform.triplets.schema import interpolated_steps
from dynaflip.platform.triplets.work_folder import ClipFile, WorkFolder

_MAX_FILE_BYTES = 100 << 20
_STARTED = "started"
_FAULT = "Fatal Python error"  # what faulthandler writes
_MAX_FAULTS = 2
_MAX_STARTS = 8


@dataclass(frozen=True)
class LoadedCaptioner:
    """A captioner and the digest that its cached captions are found by."""

    model: Captioner
    digest: str


# By the caption_kind of the clips that they are for.
Captioners = Mapping[str, LoadedCaptioner]


def process_shard(
    name: str,
    clips: list[Clip],
    source: Source,
    config: PreprocessConfig,
    work: WorkFolder,
    depth_models: Mapping[str, DepthModel] = MappingProxyType({}),
    captioners: Captioners = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Make the triplets of some clips, and write them before their summaries.

    Clips that came without caption are first given one by the captioner of their
    ``caption_kind``.

    Args:
        name: of the shard: other clips have another.
        clips: its clips.
        source: that opens them.
        config: settings.
        work: folder of the work.
        depth_models: by the setting that names them.
        captioners: by the ``caption_kind`` of the clips that they are for.

    Returns:
        One summary for each clip: its triplets, or stage and reason of its rejection.
    """
    summaries = []
    writer = _ShardWriter(work.shards, name)
    for clip in clips:
        with _counted(work.attempts, clip) as rejection:
            summary, table = _summary(clip, source, config, rejection, depth_models, captioners)
        # Outside: what cannot be written is the job's problem and not the clip's.
        if table is not None:
            writer.write(table)
        summaries.append(summary)
    positions = iter(writer.close())
    for summary in summaries:
        summary["at"] = None if summary["stage"] else next(positions)
    place.write(work.shard_summaries(name), json.dumps({"clips": summaries}))
    return summaries


def _summary(
    clip: Clip,
    source: Source,
    config: PreprocessConfig,
    rejection: ClipRejected | None,
    depth_models: Mapping[str, DepthModel],
    captioners: Captioners,
) -> tuple[dict[str, Any], pa.Table | None]:
    """Summary of a clip and its triplets, None where it is rejected."""
    summary: dict[str, Any] = {"clip_id": clip.clip_id, "recording_id": clip.recording_id}
    summary |= {"clip_digest": clip.digest()}  # before its caption is made
    summary |= {"source": clip.source, "path": _printable(clip.path), "stage": "", "reason": ""}
    summary |= {"split": "", "tasks": [], "rows": [], "visible": 0.0, "moving": 0.0}
    summary |= {"assumed_focal": 0, "short_side_px": 0, "interpolated": 0.0}
    left_out: LeftOut = {}
    table = None
    try:
        if rejection is not None:
            raise rejection
        recording = source.open(clip)
        if needs_caption(clip):
            captioner = captioners[clip.caption_kind]
            clip = with_caption(clip, recording, captioner.model, captioner.digest)
        table = clip_table(clip, recording, config, depth_models, left_out)
        summary["rows"] = row_digests(table)
        summary["split"] = table["split"][0].as_py()
        summary["tasks"] = sorted(set(table["task"].to_pylist()))
        summary["visible"] = sum(table["visible_share"].to_pylist())
        summary["moving"] = sum(table["moving_share"].to_pylist())
        summary["short_side_px"] = min(table["width_px"][0].as_py(), table["height_px"][0].as_py())
        summary["interpolated"] = interpolated_steps(table)
        summary["mostly_moving"] = mostly_moving(table)
        summary["camera_motion"] = dict(Counter(table["camera_motion"].to_pylist()))
        summary["assumed_focal"] = table["focal_kind"].to_pylist().count("assumed")
    except ClipRejected as error:
        summary |= {"stage": error.stage, "reason": _printable(error.reason)}
    except Exception as error:
        # One clip must not stop the job, whatever it holds. Nothing is hidden: the clip is
        # rejected with the line of the error, and counts towards max_rejected_share.
        at = traceback.extract_tb(error.__traceback__)[-1]
        line = f"{Path(at.filename).name}:{at.lineno}"
        reason = f"{type(error).__name__} at {line}: {error}".splitlines()[0]
        stage = "machine" if out_of_resources(error) else "unexpected"
        summary |= {"stage": stage, "reason": _printable(reason)}
        table = None
    summary["left_out"] = {reason: len(windows) for reason, windows in left_out.items()}
    # Of each reason the first window: [t in the file, length], seconds.
    summary["left_out_at"] = {
        reason: [clip.start_s + windows[0][0], windows[0][1]]
        for reason, windows in left_out.items()
    }
    return summary, table


@contextmanager
def _counted(attempts: Place, clip: Clip) -> Iterator[ClipRejected | None]:
    """Note that a clip is in work; yield its rejection if workers died of it before.

    A crash inside a decoder leaves its trace in the note and is the clip's fault. A worker
    that was killed leaves none (out of memory, or the machine was stopped), and the clip gets
    more attempts.
    """
    notes = Notes(attempts, clip.clip_id)
    known = notes.read()
    starts, faults = known.count(_STARTED), known.count(_FAULT)
    if faults >= _MAX_FAULTS or starts >= _MAX_STARTS:
        if faults >= _MAX_FAULTS:
            stage, died = "crash", f"{faults} times of a fault in native code"
        else:
            stage, died = "machine", f"{starts} times, killed from outside"
        yield ClipRejected(stage, f"the worker process died on this clip {died}")
        return
    traced = faulthandler.is_enabled()
    with notes.begun(known + f"{_STARTED}\n") as file:
        faulthandler.enable(file)
        try:
            yield None
        finally:
            faulthandler.disable()
            if traced and sys.__stderr__ is not None:
                faulthandler.enable(sys.__stderr__)
    notes.remove()


def _printable(text: str) -> str:
    """Text that any table can hold: names on disk need not be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class _ShardWriter:
    """Parquet files of bounded size."""

    def __init__(self, folder: Place, name: str) -> None:
        self.folder, self.name = folder, name
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
            self.file, self.files, self.bytes = ClipFile(path), self.files + 1, 0
        self.file.write(table)
        self.bytes += table.nbytes

    def close(self) -> list[dict[str, Any]]:
        """Finish the file that is open, if one is; positions of all clips so far, in order."""
        if self.file is not None:
            self.positions += self.file.close()
        self.file = None
        return self.positions
