"""The files of a source by one listing, and what an earlier run found in those that are the same.

A file is the same while its path, its size, and its ETag (in a bucket) or the time of its last
change (on a file system) are. So a second run opens only what is new.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

from dynaflip.platform.paths import cache_folder
from dynaflip.platform.triplets.sources.locations import (
    Fingerprint,
    Location,
    Stamp,
    fingerprints,
    is_visible,
    list_stamps,
    location_of,
)

_CACHE = "recordings.db"
_TABLE = """create table if not exists files
(path blob, kind text, stamp text, found text, primary key (path, kind)) without rowid"""
_BUSY_S = 10
T = TypeVar("T")


class ListedFiles:
    """Files below a source's path, or the single one there; pickled without the listing."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listed: tuple[Location, dict[str, Stamp]] | None = None
        # Whether clips follow from the listing: all files were in it, and each could be read.
        self.complete = True
        self._is_single = False

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_listed": None, "complete": self.complete, "_is_single": False}

    @property
    def root(self) -> Location:
        """The folder that names are relative to."""
        return self._list()[0]

    @property
    def stamps(self) -> Mapping[str, Stamp]:
        """Size and stamp of each file by name, names sorted; hidden ones are left out."""
        return self._list()[1]

    def _list(self) -> tuple[Location, dict[str, Stamp]]:
        if self._listed is None:
            location = location_of(self.path)
            if location.is_file():
                self._is_single = True
                self._listed = location.parent, list_stamps(location.parent, [location.name])
            else:
                self._listed = location, list_stamps(location)
        return self._listed

    def digest(self) -> str:
        """Changes when a file is added, removed, or written to."""
        digest = hashlib.sha256(str(self.root).encode(errors="surrogatepass"))
        for name, stamp in self.stamps.items():
            line = f"{name}\0{stamp.text}\n"
            digest.update(line.encode(errors="surrogatepass"))
        return digest.hexdigest()

    def fingerprints(self, names: Iterable[str]) -> dict[str, Fingerprint]:
        """Fingerprints by name; a file that did not change is not opened again."""
        wanted = list(dict.fromkeys(names))
        known = self.remembered("fingerprint", wanted)
        found = {name: _fingerprint_of(text) for name, text in known.items()}
        new = [name for name in wanted if name not in found]
        fresh = fingerprints(self.root, new, self.stamps)
        read = {name: one for name, one in fresh.items() if one.read}
        self.remember("fingerprint", {n: f"{one.digest}\0{one.problem}" for n, one in read.items()})
        for name in new:
            # What could not be read may be readable the next time, with the same stamp; what is
            # not listed may be there all the same.
            seen = name in read if name in self.stamps else is_visible(name) and name not in read
            self.complete &= seen and (name in self.stamps or not self._is_single)
        found |= fresh
        return {name: found[name] for name in wanted}

    def remembered(self, kind: str, names: Iterable[str]) -> dict[str, str]:
        """Findings of an earlier run in files that are the same since, by name."""
        wanted = [name for name in names if name in self.stamps]

        def look_up(database: sqlite3.Connection) -> dict[str, str]:
            found = {}
            for name in wanted:
                row = database.execute(
                    "select found from files where path = ? and kind = ? and stamp = ?",
                    (self._key(name), kind, self.stamps[name].text),
                ).fetchone()
                if row:
                    found[name] = row[0]
            return found

        return (_with_cache(look_up) if wanted else None) or {}

    def remember(self, kind: str, found: Mapping[str, str]) -> None:
        """Keep what was found in files for later runs."""
        rows = [
            (self._key(name), kind, self.stamps[name].text, text)
            for name, text in found.items()
            if name in self.stamps
        ]

        def write(database: sqlite3.Connection) -> None:
            database.executemany("insert or replace into files values (?, ?, ?, ?)", rows)

        if rows:
            _with_cache(write)

    def _key(self, name: str) -> bytes:
        return str(self.root / name).encode(errors="surrogatepass")


def _fingerprint_of(text: str) -> Fingerprint:
    digest, _, problem = text.partition("\0")
    return Fingerprint(digest, problem)


def _with_cache(use: Callable[[sqlite3.Connection], T]) -> T | None:
    """Use the cache in a transaction; None where it cannot be: a run does without it."""
    path = cache_folder() / _CACHE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_BUSY_S)) as database, database:
            database.execute(_TABLE)
            return use(database)
    except sqlite3.OperationalError:  # another process is writing, or the disk is full
        return None
    except (sqlite3.DatabaseError, OSError):
        _forget(path)
        return None


def _forget(path: Path) -> None:
    """Delete a damaged cache."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
