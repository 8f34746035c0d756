"""Near-duplicates on one side of the split (``join_near_duplicates``), when a set is made anew.

The split is drawn by hash, recording by recording, while clips are made; that two are alike is
known when all are there. So the clips of recordings that change sides are written again, with
another value of one column. Later runs that add recordings keep every side as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa

from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.digest import row_digests
from dynaflip.platform.triplets.folder_index import name_hash
from dynaflip.platform.triplets.ledger import Ledger
from dynaflip.platform.triplets.near_duplicates import MOST_CLIPS, Look, near_duplicates
from dynaflip.platform.triplets.split import split_of
from dynaflip.platform.triplets.work_folder import ClipFile, StoredClip, WorkFolder

_HASHES = 16**8
_READ_AT_ONCE = 16
_LOOK_COLUMNS = ["recording_id", "source", "split", "clip_thumbnails"]


def join_near_duplicates(
    work: WorkFolder, ledger: Ledger, config: PreprocessConfig, before: Mapping[str, str]
) -> dict[str, str]:
    """Move recordings with near copies to one side; the ledger has their clips' new files.

    Args:
        work: takes these files.
        ledger: of all clips.
        config: settings; without ``join_near_duplicates`` nothing is moved.
        before: sides of moved recordings in the finished set whose clips are adopted.

    Returns:
        The sides of all moved recordings, for the manifest.
    """
    if not config.join_near_duplicates:
        return {}
    moved = dict(before)
    if not ledger.has_adopted():
        moved = _sides(_looks(ledger), config.heldout_share)
    clips = [
        clip
        for clip in ledger.to_place()
        if clip.summary["split"] != moved.get(clip.summary["recording_id"], clip.summary["split"])
    ]
    for clip in clips:
        ledger.replace(clip, _moved(clip, ledger, work, moved[clip.summary["recording_id"]]))
    if moved and not ledger.has_adopted():
        print(
            f"join_near_duplicates: {len(moved)} recordings ({len(clips)} clips) go to the side of "
            f"those that they are near copies of",
            flush=True,
        )
    return moved


def _looks(ledger: Ledger) -> list[Look]:
    """The clips of the sample; no more than :data:`.near_duplicates.MOST_CLIPS`."""
    clips = sum(1 for _ in ledger.to_place())
    most = _HASHES * MOST_CLIPS / max(clips, MOST_CLIPS)
    sample = (
        clip for clip in ledger.to_place() if int(name_hash(clip.summary["clip_id"])[:8], 16) < most
    )
    # Of a bucket each answer takes its time: many are asked for at once.
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        return list(pool.map(_look, islice(sample, MOST_CLIPS)))


def _look(clip: StoredClip) -> Look:
    (row,) = _read(clip, _LOOK_COLUMNS).slice(0, 1).to_pylist()
    return Look(*(row[name] for name in _LOOK_COLUMNS))


def _sides(looks: list[Look], heldout_share: float) -> dict[str, str]:
    """Sides of the recordings that change theirs: that of the first of all their near copies.

    The first by its id, so that about ``heldout_share`` of all recordings stay held out, and the
    same ones in any order.
    """
    groups = _Groups()
    for a, b in near_duplicates(looks):
        groups.join(looks[a].recording_id, looks[b].recording_id)
    own = {look.recording_id: look.split for look in looks}
    sides = {name: split_of(groups.first(name), heldout_share) for name in sorted(own)}
    return {name: side for name, side in sides.items() if side != own[name]}


class _Groups:
    """Groups of names, each known by its first."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}

    def first(self, name: str) -> str:
        """The least name of the group that a name is in."""
        while name in self._before:
            name = self._before[name]
        return name

    def join(self, a: str, b: str) -> None:
        """Make two groups one."""
        first, second = sorted((self.first(a), self.first(b)))
        if first != second:
            self._before[second] = first


def _read(clip: StoredClip, columns: Iterable[str] | None = None) -> pa.Table:
    assert clip.file is not None
    wanted = None if columns is None else list(columns)
    with place.open_parquet(clip.file) as file:
        return file.read_row_group(clip.row_group, wanted, use_threads=False)


def _moved(clip: StoredClip, ledger: Ledger, work: WorkFolder, side: str) -> StoredClip:
    """The clip in a file of its own, on the other side."""
    table = _read(clip)
    at = table.schema.get_field_index("split")
    column = pa.array([side] * len(table), pa.string())
    table = table.set_column(at, table.schema.field(at), column)
    name = f"moved-{name_hash(clip.summary['clip_digest'])[:16]}.parquet"
    with ClipFile(work.shards / name) as file:
        file.write(table)
        (position,) = file.close()
    summary = ledger.summary_of(clip)
    summary |= {"split": side, "rows": row_digests(table), "at": position}
    return StoredClip(summary, work.shards / name, 0, position["bytes"], len(table))
