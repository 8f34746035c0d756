"""A home that was copied or moved: how it is noticed, and how it is put right.

MLflow's store and the files of runs and sweeps hold absolute paths: a copied home would read and
write the old place. ``home.json`` in the home records where it was made;
:func:`dynaflip.platform.paths.home` refuses a home that is not there, and :func:`move_home`
rewrites the stored paths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

MARKER = "home.json"
# Files that hold paths. Checkpoints are not among them: each carries a digest of its bytes, and the
# settings within are not read back. Reports stay as they were written.
_FILES = (
    "runs/*/run.json",
    "runs/*/config.yaml",
    "runs/*/encoder/config.json",
    "sweeps/*/sweep.json",
    "sweeps/*/config.yaml",
    "triplets/**/manifest.json",
    "mlflow/artifacts/*/*/artifacts/config.yaml",
    "mlflow/artifacts/*/models/*/artifacts/MLmodel",
    "mlflow/artifacts/*/models/*/artifacts/**/config.json",
)
_DATABASES = ("mlflow/mlflow.db", "sweeps/studies.db")


def recorded_home(folder: Path) -> str | None:
    """The absolute path at which a home was made, or None where nothing in it tells.

    A home of version 0.1 has no ``home.json``: MLflow's artifact locations tell then.
    """
    try:
        return str(json.loads((folder / MARKER).read_text())["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return _home_of_store(folder / "mlflow" / "mlflow.db")


def is_same_place(recorded: str, folder: Path) -> bool:
    """True if two paths are one folder, through links and mounts."""
    if recorded == str(folder):
        return True
    try:
        return Path(recorded).samefile(folder)
    except OSError:
        return False


def record_home(folder: Path) -> None:
    """Write ``home.json``; a home that cannot be written stays without.

    Beside it a list that keeps a home within a checkout out of Git and of what Ray uploads.
    """
    text = json.dumps({"path": str(folder)}) + "\n"
    try:
        # One short write: who reads at this moment sees all of it or an empty file, which tells
        # nothing yet. Processes that start together write the same.
        (folder / MARKER).write_text(text)
        (folder / ".gitignore").write_text("*\n")
    except OSError:
        return


@dataclass(frozen=True)
class Moved:
    """What :func:`move_home` rewrote."""

    old: str
    new: str
    files: int
    rows: int  # of MLflow's and Optuna's databases


def move_home(folder: Path, old: str) -> Moved:
    """Rewrite the absolute paths stored in a home, then record where it is now.

    Safe to repeat: a move that was interrupted goes on. The old place is not touched.

    Args:
        folder: the home as it lies now, absolute.
        old: the absolute path that it stores.
    """
    rename = _Rename(old, str(folder))
    rows = sum(_rewrite_database(folder / name, rename) for name in _DATABASES)
    files = sum(_rewrite_file(path, rename) for path in _files(folder))
    record_home(folder)
    return Moved(old, str(folder), files, rows)


class _Rename:
    """Replaces a home's path in text: plain, in a ``file://`` URI, and escaped in JSON."""

    def __init__(self, old: str, new: str) -> None:
        # The plain form comes last: it wins where an old path is written alike in all three.
        pairs = {
            quote(old): quote(new),
            json.dumps(old)[1:-1]: json.dumps(new)[1:-1],
            old: new,
        }
        self.uri, self.plain = {quote(old): quote(new)}, pairs
        known = "|".join(re.escape(form) for form in sorted(pairs, key=len, reverse=True))
        # The path as a whole: neither /mnt/OLD nor OLD-2; and not what is renamed already.
        end = r"(?=[/\"'\s,;\]})<&?#]|$)"
        done = "".join(rf"(?!{re.escape(form)}{end})" for form in set(pairs.values()))
        self.pattern = re.compile(rf"(file://)?(?<![\w.\-]){done}({known}){end}")
        self.forms = set(pairs)

    def __call__(self, text: str) -> str:
        return self.pattern.sub(self._replace, text)

    def _replace(self, match: re.Match[str]) -> str:
        scheme, form = match.group(1) or "", match.group(2)
        return scheme + ((self.uri if scheme else self.plain).get(form) or self.plain[form])


def _files(folder: Path) -> Iterator[Path]:
    for pattern in _FILES:
        yield from (path for path in folder.glob(pattern) if path.is_file())


def _rewrite_file(path: Path, rename: _Rename) -> bool:
    from dynaflip.files import write_file

    text = path.read_text()
    fresh = rename(text) if path.suffix == ".json" else _renamed_yaml(text, rename)
    if fresh == text:
        return False
    write_file(path, fresh)
    return True


def _renamed_yaml(text: str, rename: _Rename) -> str:
    """YAML breaks and escapes long text in ways of its own: read, rename, write."""
    import yaml

    values = yaml.safe_load(text)
    fresh = _renamed(values, rename)
    return text if fresh == values else yaml.safe_dump(fresh, sort_keys=False)


def _renamed(value: Any, rename: _Rename) -> Any:
    if isinstance(value, str):
        return rename(value)
    if isinstance(value, list):
        return [_renamed(item, rename) for item in value]
    if isinstance(value, dict):
        return {key: _renamed(item, rename) for key, item in value.items()}
    return value


def _rewrite_database(path: Path, rename: _Rename) -> int:
    """Rename in every text of an SQLite file, in one transaction; returns the changed values."""
    import sqlite3

    if not path.is_file():
        return 0
    changed = 0
    with closing(sqlite3.connect(path)) as store, store:
        tables = store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for column in [row[1] for row in store.execute(f'PRAGMA table_info("{table}")')]:
                likely = " OR ".join([f'instr("{column}", ?)'] * len(rename.forms))
                rows = store.execute(
                    f'SELECT rowid, "{column}" FROM "{table}" '
                    f"WHERE typeof(\"{column}\") = 'text' AND ({likely})",
                    sorted(rename.forms),
                ).fetchall()
                fresh = [(rename(text), row) for row, text in rows if rename(text) != text]
                store.executemany(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', fresh)
                changed += len(fresh)
    return changed


def _home_of_store(database: Path) -> str | None:
    """The home in an MLflow store's artifact locations (``file://HOME/mlflow/artifacts/NAME``)."""
    if not database.is_file():
        return None
    import sqlite3

    try:
        uri = f"file:{quote(str(database))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as store:
            rows = store.execute("SELECT name, artifact_location FROM experiments").fetchall()
    except sqlite3.Error:
        return None
    for name, location in rows:
        text = unquote(str(location))
        end = f"/mlflow/artifacts/{name}"
        if text.startswith("file:///") and text.endswith(end):
            return text.removeprefix("file://").removesuffix(end)
    return None
