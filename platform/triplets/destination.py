"""Destinations of preprocessing: a folder that takes its name, or a prefix whose manifest switches.

A folder is made beside the old one and renamed. A bucket knows no renaming: ``triplets/`` there
holds the Parquet files of all sets, each named by the clips it holds, and ``sets/NAME/`` all else
of a set. ``manifest.json`` names the set; it is written last, and what the set before had alone is
deleted after that. So readers find one whole set, or none.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from dynaflip.errors import StoreError, UserError
from dynaflip.files import replace_folder, restore_folder
from dynaflip.platform.paths import is_uri
from dynaflip.platform.s3 import S3Path, check_bucket
from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.folder_index import INDEX, TRIPLETS
from dynaflip.platform.triplets.place import Place
from dynaflip.platform.triplets.reuse import finished_work, read_finished, write_manifest
from dynaflip.platform.triplets.work_folder import WorkFolder

KEY_LETTERS = 12  # of a work folder's name
_SETS = "sets"
_MANIFEST = "manifest.json"
_FAILED = "failed"
# What a set from elsewhere, copied to a bucket, has outside `sets/`.
_COPIED = (INDEX, "done", "pictures")
_REJECTED = "rejected.parquet"


class Destination(Protocol):
    """Where a set of triplets goes."""

    @property
    def folder(self) -> Place:
        """Folder or prefix of the set."""

    def restore(self) -> None:
        """Finish a publication that was cut short."""

    def work(self, key: str) -> WorkFolder:
        """The unfinished work of a key, which may not be there yet."""

    def recover(self, key: str) -> bool:
        """Publish work that was whole when its process was killed; whether there was some."""

    def publish(self, work: WorkFolder, manifest: dict[str, Any], parts: Iterable[str]) -> None:
        """Make finished work the folder's set.

        Args:
            work: whose files are all there.
            manifest: of the set.
            parts: names of its Parquet files.
        """

    def tidy(self) -> None:
        """Delete what the finished set needs no more."""

    def for_failures(self) -> Place:
        """Where the list of rejected clips goes if there is no set."""


def destination_of(output: str) -> Destination:
    """The destination that ``--output`` names.

    Args:
        output: an absolute path, or ``s3://bucket/prefix``.

    Raises:
        UserError: it holds something else than triplets, or cannot be reached.
    """
    if output.startswith("s3://"):
        return BucketDestination(S3Path.parse(output))
    if is_uri(output):
        raise UserError(f"--output: {output}: give a folder or s3://bucket/prefix")
    return FolderDestination(Path(output))


class FolderDestination:
    """A folder of a file system."""

    def __init__(self, folder: Path) -> None:
        # Where a link leads: the link itself must not be replaced by a folder.
        self.folder = Path(os.path.realpath(folder))
        if self.folder.is_file():
            raise UserError(f"--output: {self.folder} is a file")
        if self.folder.is_dir() and not _is_ours(self.folder):
            others = [p.name for p in self.folder.iterdir() if p.name != _REJECTED]
            _refuse_others(self.folder, others)

    def restore(self) -> None:
        """Finish a replacement that was cut short."""
        restore_folder(self.folder)

    def work(self, key: str) -> WorkFolder:
        """A hidden folder beside the final one."""
        return WorkFolder(self.folder.parent / f".{self.folder.name}.{key[:KEY_LETTERS]}")

    def recover(self, key: str) -> bool:
        """Rename a work folder that has its manifest, which is written last."""
        work = self.work(key).path
        assert isinstance(work, Path)
        if not _is_ours(work):
            return False
        replace_folder(work, self.folder)
        return True

    def publish(self, work: WorkFolder, manifest: dict[str, Any], parts: Iterable[str]) -> None:
        """Write the manifest, and rename the folder."""
        assert isinstance(work.path, Path)
        write_manifest(work.path, manifest)
        replace_folder(work.path, self.folder)
        self.tidy()
        # Unfinished work for other settings, or for this folder as it was, has nowhere to go.
        name = f".{glob.escape(self.folder.name)}.{'[0-9a-f]' * KEY_LETTERS}"
        for left in self.folder.parent.glob(name):
            place.remove(left)

    def tidy(self) -> None:
        """Remove shards.

        After the folder has its name: a kill before leaves the manifest, and nothing is made again.
        """
        finished = WorkFolder(self.folder)
        for part in (finished.attempts, finished.shards):
            place.remove(part)

    def for_failures(self) -> Place:
        """The folder, or one beside it where it holds a set."""
        if not (self.folder / _MANIFEST).exists():
            return self.folder
        return self.folder.with_name(f"{self.folder.name}.{_FAILED}")


class BucketDestination:
    """A prefix of an S3 bucket."""

    def __init__(self, folder: S3Path) -> None:
        self.folder = folder
        check_bucket(folder, "--output")
        if not folder.key:
            raise UserError(f"--output: {folder}: give a prefix in the bucket, s3://bucket/prefix")
        self._before = self._stamp()
        if not _is_ours(folder):
            ours = (TRIPLETS, _SETS, _FAILED, _REJECTED)
            others = {name.split("/")[0] for name in folder.walk()} - {*ours}
            _refuse_others(folder, others)

    def restore(self) -> None:
        """Nothing: a manifest is there or not."""

    def work(self, key: str) -> WorkFolder:
        """The folder of the set that the work will become."""
        return WorkFolder(self.folder / _SETS / key[:KEY_LETTERS], self.folder / TRIPLETS)

    def recover(self, key: str) -> bool:
        """Nothing: the manifest makes the set."""
        return False

    def publish(self, work: WorkFolder, manifest: dict[str, Any], parts: Iterable[str]) -> None:
        """Write the manifest, and delete the set before it.

        Raises:
            StoreError: another process has published meanwhile, or a Parquet file is gone.
        """
        missing = set(parts) - set(place.names(self.folder / TRIPLETS))
        if missing or self._stamp() != self._before:
            raise StoreError(
                f"--output: another process has made {self.folder} meanwhile; run again to see "
                "whether anything is left to do"
            )
        write_manifest(self.folder, {**manifest, "files": f"{_SETS}/{work.path.name}"})
        self.tidy()

    def tidy(self) -> None:
        """Delete shards, other sets and the Parquet files that only they have."""
        finished = finished_work(self.folder)
        assert isinstance(finished.path, S3Path)
        self.folder.delete_below(self._not_of(finished.path))

    def _not_of(self, finished: S3Path) -> Iterator[str]:
        """Names of objects that a finished set does not need."""
        mine = f"{_SETS}/{finished.name}/"
        keep = {f"{TRIPLETS}/{name.removesuffix('.json')}.parquet" for name in _done(finished)}
        for name in self.folder.walk():
            top = name.split("/")[0]
            if finished == self.folder:  # a copied set
                gone = top in (_SETS, "shards", "attempts")
            elif top == TRIPLETS:
                gone = name not in keep
            elif name.startswith(mine):
                gone = name.removeprefix(mine).split("/")[0] in ("shards", "attempts")
            else:
                gone = top in (_SETS, _FAILED, *_COPIED) or name == _REJECTED
            if gone:
                yield name

    def for_failures(self) -> Place:
        """Below the prefix."""
        return self.folder / _FAILED

    def _stamp(self) -> str:
        try:
            return (self.folder / _MANIFEST).stat().etag
        except FileNotFoundError:
            return ""


def _done(folder: Place) -> list[str]:
    return [name for name in place.names(WorkFolder(folder).done) if name.startswith("part-")]


def _is_ours(folder: Place) -> bool:
    """True where the manifest is one of triplets: other programs have a manifest.json, too."""
    return {"work_key", "digest"} <= read_finished(folder).keys()


def _refuse_others(folder: Place, others: Iterable[str]) -> None:
    if first := next(iter(sorted(others)), ""):
        raise UserError(
            f"--output: {folder} holds something else than triplets ({first}); give a new folder"
        )
