"""A few clips to Parquet: what one Ray task does, as a plain function."""

from __future__ import annotations

import json
import os
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.platform.triplets.clip_table import DepthModel, clip_table
from dynaflip.platform.triplets.clips import Clip, ClipError, Source
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.digest import row_digests
from dynaflip.platform.triplets.schema import TRIPLET_SCHEMA

_MAX_FILE_BYTES = 100 << 20
_MAX_ATTEMPTS = 2


@dataclass(frozen=True)
class WorkFolder:
    """Where unfinished work lies; it is renamed when everything is done."""

    path: Path

    @property
    def triplets(self) -> Path:
        """Finished Parquet files."""
        return self.path / "triplets"

    @property
    def done(self) -> Path:
        """One JSON a finished shard, with a summary of each clip."""
        return self.path / "done"

    @property
    def attempts(self) -> Path:
        """One file a clip that is being worked on: it outlives a worker that dies."""
        return self.path / "attempts"


def process_shard(
    number: int,
    clips: list[Clip],
    source: Source,
    config: PreprocessConfig,
    work: WorkFolder,
    depth_model: DepthModel | None = None,
    depth_model_scale: str = "relative",
) -> list[dict[str, Any]]:
    """Make the triplets of some clips, and write them before saying so.

    Returns:
        One summary a clip: what was kept, or stage and reason of its rejection.
    """
    summaries = []
    writer = _Writer(work.triplets, number)
    for clip in clips:
        marker = work.attempts / clip.clip_id
        summary: dict[str, Any] = {"clip_id": clip.clip_id, "recording_id": clip.recording_id}
        summary |= {"source": clip.source, "path": clip.path, "stage": "", "reason": ""}
        summary |= {"split": "", "tasks": [], "rows": [], "visible": 0.0, "moving": 0.0}
        left_out: Counter[str] = Counter()
        try:
            _count_attempt(marker)
            table = clip_table(
                clip, source.open(clip), config, depth_model, depth_model_scale, left_out
            )
            summary["rows"] = row_digests(table)
            summary["split"] = table["split"][0].as_py()
            summary["tasks"] = sorted(set(table["task"].to_pylist()))
            summary["visible"] = sum(table["visible_share"].to_pylist())
            summary["moving"] = sum(table["moving_share"].to_pylist())
            writer.write(table)
        except ClipError as error:
            summary |= {"stage": error.stage, "reason": error.reason}
        except Exception as error:
            # One clip must not stop the job, whatever it holds. Nothing is hidden: the clip
            # is rejected with the place of the error, and counts towards the failing share.
            at = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(at.filename).name}:{at.lineno}"
            reason = f"{type(error).__name__} at {place}: {error}".splitlines()[0]
            summary |= {"stage": "unexpected", "reason": reason}
        summary["left_out"] = dict(left_out)
        marker.unlink(missing_ok=True)
        summaries.append(summary)
    writer.close()
    part = work.done / f"part-{number:05d}.part"
    part.write_text(json.dumps(summaries))
    os.replace(part, work.done / f"part-{number:05d}.json")
    return summaries


def _count_attempt(marker: Path) -> None:
    """Refuse a clip on which worker processes died before (a crash inside a decoder)."""
    attempts = int(marker.read_text()) if marker.exists() else 0
    if attempts >= _MAX_ATTEMPTS:
        raise ClipError("crash", f"the worker process died on this clip {attempts} times")
    marker.write_text(str(attempts + 1))


class _Writer:
    """Parquet files of bounded size, visible under their name only when complete."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.files = 0
        self.bytes = 0
        self.writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append a clip's triplets as one row group."""
        if self.writer is not None and self.bytes + table.nbytes > _MAX_FILE_BYTES:
            self.close()
        if self.writer is None:
            name = f"part-{self.number:05d}-{self.files:02d}"
            self.part = self.folder / f".{name}.part"
            self.path = self.folder / f"{name}.parquet"
            self.writer = pq.ParquetWriter(self.part, TRIPLET_SCHEMA, compression="zstd")
            self.bytes = 0
        self.writer.write_table(table)
        self.bytes += table.nbytes

    def close(self) -> None:
        """Finish the file that is open, if one is."""
        if self.writer is not None:
            self.writer.close()
            os.replace(self.part, self.path)
            self.writer, self.files = None, self.files + 1
