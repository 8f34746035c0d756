"""Files and folders that appear whole or not at all, and locks between processes.

The package's only atomic write: a file or folder is written under a hidden name beside the final
one, and takes that in one rename.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dynaflip.errors import UserError

# Ends the hidden names of unfinished files.
UNFINISHED = ".part"
# Begins the hidden names of folders that another is replacing.
REPLACED = ".replaced-"


def unfinished_path(path: Path) -> Path:
    """A hidden name beside a file or folder that no other process and no other call uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(3).hex()}{UNFINISHED}")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Write a file through the path that this yields; it takes its name when the block ends.

    Args:
        path: the file, which may exist; its folder is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_path(path)
    try:
        yield unfinished
        move(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_file(path: Path, data: bytes | str, *, mode: int | None = None) -> None:
    """Write a file, whole or not at all.

    Args:
        path: the file, which may exist; its folder is made if it is missing.
        data: its content; text is written as UTF-8.
        mode: permissions that the file has from its beginning; None: those of the umask.
    """
    with new_file(path) as unfinished:
        if mode is not None:
            unfinished.touch(mode)
        unfinished.write_bytes(data.encode() if isinstance(data, str) else data)


def takes_files(folder: Path) -> bool:
    """True if a file can be made in a folder; rights alone do not tell."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def move(source: Path, target: Path) -> None:
    """Rename a file or folder on its file system; a file that is there already is replaced."""
    os.replace(source, target)


def replace_folder(fresh: Path, folder: Path) -> None:
    """Rename a folder into the place of another, which may exist.

    A reader sees the old folder, for a moment none, or the new one, and never a mixture. After a
    process was killed in between, :func:`restore_folder` brings the old one back.
    """
    old = replaced_path(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        move(folder, old)
    move(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Finish a replacement that was cut short: the old folder comes back if no new one is there."""
    old = replaced_path(folder)
    if not old.exists():
        return
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        move(old, folder)


def replaced_path(folder: Path) -> Path:
    """Path of a folder while another one is moved into its place."""
    return folder.with_name(f"{REPLACED}{folder.name}")


@contextlib.contextmanager
def file_lock(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file while the block runs; the kernel frees it when a process dies.

    Args:
        path: the file; made if it is missing.
        busy: the error's text where another process holds it; None waits for it.

    Raises:
        UserError: another process holds it, and ``busy`` is given.
    """
    import fcntl  # not on Windows, where encoders load, too

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise UserError(str(busy)) from None
        yield


def is_locked(path: Path) -> bool:
    """True if another holder has a lock file of :func:`file_lock`; makes no file."""
    import fcntl

    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def shared_copy(folder: Path, fill: Callable[[Path], None]) -> Iterator[Path]:
    """A folder that the processes of a machine make once and read together.

    The first one fills it while the others wait; the last one to leave its block deletes it. What
    killed processes left unread beside it goes, too.

    Args:
        folder: its path, which names its content; its parent holds nothing else.
        fill: writes the files into a new folder.
    """
    import fcntl

    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock_of(folder).open("a") as lock:
        while True:
            fcntl.flock(lock, fcntl.LOCK_SH)  # waits while another fills it
            if folder.exists():
                break
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # others found nothing either: one of them fills it
                time.sleep(random.uniform(0.01, 0.1))
                continue
            if not folder.exists():
                _drop_unread(folder)
                fresh = unfinished_path(folder)
                fresh.mkdir()
                try:
                    fill(fresh)
                    move(fresh, folder)
                finally:
                    shutil.rmtree(fresh, ignore_errors=True)
        try:
            yield folder
        finally:
            with contextlib.suppress(BlockingIOError):  # others still read it
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _drop_unread(mine: Path) -> None:
    """Delete the folders beside one that nobody has locked: their processes were killed."""
    import fcntl

    for path in mine.parent.glob(f".{mine.name}.*{UNFINISHED}"):
        shutil.rmtree(path, ignore_errors=True)
    for path in mine.parent.iterdir():
        if not path.is_dir() or path.name.startswith("."):
            continue
        with _lock_of(path).open("a") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
