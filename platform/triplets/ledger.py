"""Which clips are wanted and which are done, on disk: memory does not grow with their number.

SQLite keeps it in a temporary file of its own (in ``SQLITE_TMPDIR``, ``TMPDIR`` or ``/var/tmp``),
about 2 kB a clip, which goes with the process. It holds nothing that the work folder does not.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.clips import TEMPORARY_STAGES
from dynaflip.platform.triplets.folder_index import name_hash
from dynaflip.platform.triplets.work_folder import StoredClip, WorkFolder, stored_clips

_CACHE_KIB = 2 << 10
_TABLES = """
create table clips (
    number integer primary key,
    digest blob, wanted integer, part text, file text, row_group integer, bytes integer,
    rows integer, split text, place text, clip_id text, recording text,
    stage text, reason text, temporary integer, summary text);
create table tasks (task text primary key) without rowid;
create table shards (name text primary key) without rowid;
create table indexes (part text primary key, content text) without rowid;
"""
_PLACED = "select number, part, file, row_group, bytes, rows, split, clip_id, recording, digest"


class Ledger:
    """Clips that are done, and which of them a listing asks for; threads may share it.

    Args:
        shards: folder of the Parquet files that shards' summaries name.
        finished: the set that clips are adopted from, or None.
    """

    def __init__(self, shards: place.Place, finished: WorkFolder | None = None) -> None:
        self._lock = threading.Lock()
        self._shards, self._finished = shards, finished
        self._kept_parts: list[str] = []
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.execute(f"pragma cache_size = -{_CACHE_KIB}")
        self._database.executescript(_TABLES)
        if finished is not None:
            self._read(finished)

    def close(self) -> None:
        """Give the disk space back."""
        self._database.close()

    def _read(self, finished: WorkFolder) -> None:
        """Take up the clips of a finished set: none of them is wanted yet."""
        files = [finished.done / name for name in place.names(finished.done)]
        for file, text in zip(files, place.read_texts(files), strict=True):
            known = json.loads(text)
            self._insert(stored_clips(known, finished.triplets), part=file.stem)
            if "index" in known:
                self.note_index(file.stem, known["index"])
        self._database.execute("create index by_digest on clips (digest, wanted, temporary)")

    def claim(self, digest: str) -> str | None:
        """Want a clip of the finished set.

        Returns:
            The stage that rejected it, "" where it has triplets; None where there is none that
            would be made again just the same, or not so many.
        """
        if self._finished is None:
            return None
        with self._lock:
            found = self._database.execute(
                "select number, stage from clips "
                "where digest = ? and wanted = 0 and temporary = 0 limit 1",
                (bytes.fromhex(digest),),
            ).fetchone()
            if found is None:
                return None
            self._database.execute("update clips set wanted = 1 where number = ?", found[:1])
        return str(found[1])

    def add(self, clips: Iterable[StoredClip]) -> None:
        """Note clips that were listed and are done."""
        self._insert(clips, part=None)

    def _insert(self, clips: Iterable[StoredClip], part: str | None) -> None:
        rows = [_row(clip, part) for clip in clips]
        with self._lock:
            self._database.execute("begin")
            marks = ", ".join("?" * 15)
            self._database.executemany(f"insert into clips values (null, {marks})", rows)
            self._database.execute("commit")

    def note_shards(self, names: Iterable[str]) -> None:
        """Keep the names of shards that an earlier run has finished."""
        with self._lock:
            self._database.execute("begin")
            self._database.executemany(
                "insert or ignore into shards values (?)", ((name,) for name in names)
            )
            self._database.execute("commit")

    def has_shard(self, name: str) -> bool:
        """True where :meth:`note_shards` was given a name."""
        ((found,),) = self._select("select exists(select * from shards where name = ?)", (name,))
        return bool(found)

    def forget_others(self) -> None:
        """Drop clips of the finished set that nothing has claimed."""
        with self._lock:
            self._kept_parts = self._whole_parts()
            self._database.execute("delete from clips where wanted = 0")

    def has_adopted(self) -> bool:
        """True where some clip is of the finished set."""
        ((found,),) = self._select("select exists(select * from clips where part is not null)")
        return bool(found)

    def replace(self, clip: StoredClip, other: StoredClip) -> None:
        """Take other triplets of a clip that :meth:`to_place` gave, in a file among the shards."""
        values = _row(other, None)
        with self._lock:
            self._database.execute("delete from clips where number = ?", (clip.number,))
            marks = ", ".join("?" * len(values))
            self._database.execute(f"insert into clips values (null, {marks})", values)

    def note_index(self, part: str, index: Mapping[str, Any]) -> None:
        """Keep the index of a part: :meth:`.FileIndex.to_json`."""
        with self._lock:
            self._database.execute(
                "insert or replace into indexes values (?, ?)", (part, json.dumps(index))
            )

    def index_of(self, part: str) -> dict[str, Any] | None:
        """The index of a part; None where it is not known."""
        for (content,) in self._select("select content from indexes where part = ?", (part,)):
            return dict(json.loads(content))
        return None

    def whole_parts(self) -> list[str]:
        """Parquet files of the finished set, without suffix, whose clips are all wanted."""
        return self._kept_parts

    def _whole_parts(self) -> list[str]:
        query = (
            "select part from clips where part is not null group by part "
            "having min(wanted) = 1 and min(file is not null) = 1 order by part"
        )
        return [name for (name,) in self._database.execute(query)]

    def checksum(self) -> tuple[int, int]:
        """Number of clips, and the sum of their digests: equal to the listing's if all are done."""
        number = total = 0
        for (digest,) in self._select("select digest from clips where wanted = 1"):
            number += 1
            total += int.from_bytes(digest, "big")
        return number, total

    def summaries(self, *, rejected_only: bool = False) -> Iterator[dict[str, Any]]:
        """Summaries of all clips, or of those without triplets, by path and id."""
        chosen = "where stage != '' order by place, clip_id, digest" if rejected_only else ""
        for (text,) in self._select(f"select summary from clips {chosen}"):
            yield json.loads(text)

    def summary_of(self, clip: StoredClip) -> dict[str, Any]:
        """All of the summary of a clip that :meth:`to_place` gave."""
        query = "select summary from clips where number = ?"
        ((text,),) = self._select(query, (clip.number,))
        return dict(json.loads(text))

    def to_place(self) -> Iterator[StoredClip]:
        """Clips with triplets that no whole part of the finished set holds, part after part.

        They come with what tells them apart instead of their whole summary.
        """
        whole = set(self.whole_parts())
        query = (
            f"{_PLACED} from clips where file is not null "
            "order by split, place, clip_id, digest, file, row_group"
        )
        for (
            number,
            part,
            file,
            group,
            size,
            rows,
            split,
            clip_id,
            recording,
            digest,
        ) in self._select(query):
            if part in whole:
                continue
            summary = {
                "clip_id": clip_id,
                "recording_id": recording,
                "clip_digest": digest.hex(),
                "split": split,
            }
            folder = self._shards if part is None else self._adopted_from()
            yield StoredClip(summary, folder / file, group, size, rows, number)

    def recordings(self, split: str = "") -> Iterator[str]:
        """Distinct ids of recordings that have triplets, of one split or of all."""
        query = "select distinct recording from clips where stage = '' and (? in ('', split))"
        return (name for (name,) in self._select(query, (split,)))

    def reasons(self, most: int) -> Iterator[tuple[str, int]]:
        """The commonest reasons of rejections, and how many clips each has."""
        query = (
            "select stage || ': ' || reason, count(*) from clips where stage != '' "
            "group by 1 order by 2 desc, 1 limit ?"
        )
        return iter(self._select(query, (most,)))

    def count_tasks(self) -> int:
        """Number of distinct tasks."""
        ((count,),) = self._select("select count(*) from tasks")
        return int(count)

    def note_tasks(self, tasks: Iterable[str]) -> None:
        """Count tasks as seen."""
        with self._lock:
            self._database.executemany(
                "insert or ignore into tasks values (?)", [(task,) for task in tasks]
            )

    def _select(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[Any]:
        return self._database.cursor().execute(query, values)

    def _adopted_from(self) -> place.Place:
        assert self._finished is not None
        return self._finished.triplets


def _row(clip: StoredClip, part: str | None) -> tuple[Any, ...]:
    """A row of the table, without its number."""
    summary: Mapping[str, Any] = clip.summary
    stage, split = summary["stage"], summary["split"]
    # Parts are filled in the order of a hash: see `compaction`.
    sorted_by = summary["recording_id" if split == "heldout" else "clip_id"]
    where = summary["path"] if stage else name_hash(sorted_by)
    return (
        bytes.fromhex(summary["clip_digest"]),
        part is None,
        part,
        None if clip.file is None else clip.file.name,
        clip.row_group,
        clip.bytes,
        clip.rows,
        split,
        where,
        summary["clip_id"],
        summary["recording_id"],
        stage,
        summary["reason"],
        stage in TEMPORARY_STAGES,
        json.dumps(summary),
    )
