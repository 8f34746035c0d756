"""Compaction: the last step of preprocessing, from many small shards to few large Parquet files.

A finished folder holds *parts* of about ``part_mb``, a row group a clip. A part's clips are of one
split, and placed by a hash: training ones of their id, so that a part mixes the sources; held-out
ones of their recording, so that the gallery, the first of them, lies together. A part is named by
the clips it holds and by what made them, and its summaries are written after it: a compaction that
was killed makes only what is missing. Parts of an earlier folder stay as they are; only clips that
none of them holds go into new parts.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.platform.free_memory import give_back
from dynaflip.platform.s3 import S3Path, Traffic
from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.bucket_parquet import BucketParquet
from dynaflip.platform.triplets.clips import content_hash
from dynaflip.platform.triplets.folder_index import FileIndex, index_file, name_hash
from dynaflip.platform.triplets.place import Place, place_of
from dynaflip.platform.triplets.ray_tasks import cluster_cpus, dataset_of
from dynaflip.platform.triplets.work_folder import ClipFile, StoredClip, WorkFolder

_NAME_LETTERS = 16
_CLIPS_COMING = 8  # from a bucket
# Parts in work together: their clips are in the driver's memory.
_CLIPS_AT_ONCE = 4096
_PARTS_A_CPU = 4


@dataclass(frozen=True)
class Part:
    """A Parquet file of a finished folder, before it is written."""

    name: str  # without suffix
    clips: tuple[StoredClip, ...]  # in the order of its row groups


def plan_parts(clips: Iterable[StoredClip], part_bytes: float, made_by: str = "") -> list[Part]:
    """Distribute stored clips among parts; the same clips give the same parts.

    Args:
        clips: which to place, whatever their order; rejected ones have no place.
        part_bytes: size of a part on disk; a clip more than that makes the next one begin.
        made_by: changes with settings, which make other triplets of the same clips.
    """
    kept = [clip for clip in clips if clip.file is not None]
    ordered = sorted(kept, key=lambda clip: (clip.summary["split"], *_place(clip)))
    return list(parts_of(ordered, part_bytes, made_by))


def parts_of(clips: Iterable[StoredClip], part_bytes: float, made_by: str = "") -> Iterator[Part]:
    """The same of clips that come in the order of their places: one part is in memory."""
    part: list[StoredClip] = []
    filled, split = 0.0, ""
    for clip in clips:
        full = filled + clip.bytes > part_bytes or clip.summary["split"] != split
        if part and full:
            yield Part(_name(part, made_by), tuple(part))
            part, filled = [], 0.0
        part.append(clip)
        filled, split = filled + clip.bytes, clip.summary["split"]
    if part:
        yield Part(_name(part, made_by), tuple(part))


def compact(
    parts: Iterable[Part],
    work: WorkFolder,
    summary_of: Callable[[StoredClip], Mapping[str, Any]] = lambda clip: clip.summary,
) -> list[str]:
    """Write the parts that are missing: on Ray where there are several.

    Args:
        parts: to write, or already there.
        work: folder of the work.
        summary_of: the whole summary of a part's clip.

    Returns:
        The names of all parts.
    """
    done = set(place.names(work.done))
    names: list[str] = []

    def missing() -> Iterator[Part]:
        for part in parts:
            names.append(part.name)
            if _done(work, part.name).name not in done:
                yield part

    for several in _batches(missing()):
        items = [{"part": _description(part, work)} for part in several.values()]
        if len(items) > 1:
            clips = sum(len(part.clips) for part in several.values())
            print(f"writing {clips} clips to {len(items)} Parquet files", flush=True)
        for written in _write_all(items):
            part = several[written["name"]]
            summaries = [
                {**summary_of(clip), "at": at}
                for clip, at in zip(part.clips, written["positions"], strict=True)
            ]
            text = json.dumps({"clips": summaries, "index": written["index"]})
            place.write(_done(work, part.name), text)
        give_back()
    return names


def _batches(parts: Iterator[Part]) -> Iterator[dict[str, Part]]:
    """Parts by name, some at a time."""
    batch: dict[str, Part] = {}
    clips = 0
    for part in parts:
        batch[part.name] = part
        clips += len(part.clips)
        if clips >= _CLIPS_AT_ONCE and len(batch) >= _PARTS_A_CPU * cluster_cpus():
            yield batch
            batch, clips = {}, 0
    if batch:
        yield batch


def read_indexes(
    work: WorkFolder, known: Callable[[str], dict[str, Any] | None] = lambda part: None
) -> Iterator[FileIndex]:
    """The indexes of all parts that a folder holds, one after the other.

    Args:
        work: that folder.
        known: the index of a part that was read before, or None.
    """
    unread = []
    for name in place.names(work.done):
        if not name.startswith("part-"):
            continue
        index = known(name.removesuffix(".json"))
        if index is None:
            unread.append(work.done / name)
        else:
            yield FileIndex.from_json(index)
    for text in place.read_texts(unread):
        yield FileIndex.from_json(json.loads(text)["index"])


def write_part(description: dict[str, Any]) -> dict[str, Any]:
    """Copy clips to one Parquet file, one after the other: memory holds a few of them.

    Args:
        description: ``path`` of the file; for each clip ``file``, ``row_group``, ``clip_id`` and
            ``rows``.

    Returns:
        ``name`` of the part, ``positions`` (each clip's ``at``), ``index`` of the file.

    Raises:
        RuntimeError: a row group does not hold its clip.
    """
    path = place_of(description["path"])
    index: list[FileIndex] = []
    with ClipFile(path) as target:
        for clip, table in _clips_of(description["clips"]):
            found = set(table["clip_id"].to_pylist()), table.num_rows
            if found != ({clip["clip_id"]}, clip["rows"]):
                raise RuntimeError(
                    f"row group {clip['row_group']} of {clip['file']} holds {found[1]} triplets of "
                    f"{', '.join(sorted(found[0]))} instead of {clip['rows']} of "
                    f"{clip['clip_id']}; delete {path.parent.parent} and run again"
                )
            target.write(table)
        positions = target.close(lambda file: index.append(index_file(file, path.name)))
    return {"name": path.stem, "positions": positions, "index": index[0].to_json()}


def _clips_of(clips: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """Clips and their triplets; in a bucket several are on their way."""
    if not clips or not isinstance(place_of(clips[0]["file"]), S3Path):
        for clip in clips:
            with pq.ParquetFile(clip["file"]) as source:
                yield clip, source.read_row_group(clip["row_group"], use_threads=False)
        return
    bucket, traffic = BucketParquet(), Traffic()
    coming: deque[tuple[dict[str, Any], Future[pa.Table]]] = deque()
    with ThreadPoolExecutor(_CLIPS_COMING) as pool:
        for clip in clips:
            task = pool.submit(bucket.read, clip["file"], clip["row_group"], traffic)
            coming.append((clip, task))
            if len(coming) == _CLIPS_COMING:
                first, table = coming.popleft()
                yield first, table.result()
        for first, table in coming:
            yield first, table.result()


def _write_all(items: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    if len(items) < 2:
        yield from (write_part(json.loads(item["part"])) for item in items)
        return
    dataset = dataset_of(items).map(_write_task, num_cpus=1)
    for row in dataset.iter_rows():
        yield json.loads(row["written"])


def _write_task(row: dict[str, Any]) -> dict[str, str]:
    return {"written": json.dumps(write_part(json.loads(row["part"])))}


def _description(part: Part, work: WorkFolder) -> str:
    clips = [
        {
            "file": str(clip.file),
            "row_group": clip.row_group,
            "clip_id": clip.summary["clip_id"],
            "rows": clip.rows,
        }
        for clip in part.clips
    ]
    return json.dumps({"path": str(work.triplets / f"{part.name}.parquet"), "clips": clips})


def _done(work: WorkFolder, name: str) -> Place:
    return work.done / f"{name}.json"


def _name(clips: list[StoredClip], made_by: str) -> str:
    texts = [str(text) for clip in clips for text in _origin(clip)]
    return f"part-{content_hash(made_by, *texts)[:_NAME_LETTERS]}"


def _place(clip: StoredClip) -> tuple[str, ...]:
    summary = clip.summary
    first = "recording_id" if summary["split"] == "heldout" else "clip_id"
    return name_hash(summary[first]), summary["clip_id"], *map(str, _origin(clip))


def _origin(clip: StoredClip) -> tuple[str, str, int]:
    """Values that tell stored clips apart, even those that are listed twice."""
    assert clip.file is not None
    return clip.summary["clip_digest"], clip.file.name, clip.row_group
