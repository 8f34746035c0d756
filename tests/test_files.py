"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from dynaflip.files import (
    move,
    new_file,
    replace_folder,
    replaced_path,
    restore_folder,
    shared_copy,
    write_file,
)


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_a_file_is_written_whole_with_its_folder(tmp_path: Path) -> None:
    write_file(tmp_path / "new" / "file.txt", "ä")
    assert (tmp_path / "new" / "file.txt").read_bytes() == "ä".encode()
    write_file(tmp_path / "new" / "file.txt", b"again", mode=0o600)
    assert (tmp_path / "new" / "file.txt").read_bytes() == b"again"
    assert (tmp_path / "new" / "file.txt").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file.txt"]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def fail_halfway() -> None:
        with new_file(path) as unfinished:
            unfinished.write_text("half")
            assert path.read_text() == "before"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for text in ("first", "second"):
        replace_folder(folder_with(tmp_path / "fresh", text), folder)
        assert (folder / "file").read_text() == text
        assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_replacement_that_was_cut_short_is_undone_or_finished(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "folder", "old")
    move(folder, replaced_path(folder))
    restore_folder(folder)
    assert (folder / "file").read_text() == "old"
    folder_with(replaced_path(folder), "older")
    restore_folder(folder)
    assert (folder / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_shared_copy_is_made_once_and_goes_with_its_last_reader(tmp_path: Path) -> None:
    made: list[Path] = []

    def fill(folder: Path) -> None:
        time.sleep(0.05)  # long enough for the others to come
        made.append(folder)
        (folder / "file").write_text("content")

    copies = tmp_path / "copies"
    (copies / "unread").mkdir(parents=True)  # of processes that were killed
    (copies / ".one.7-aa.part").mkdir()
    inside = threading.Barrier(3)

    def read() -> None:
        with shared_copy(copies / "one", fill) as folder:
            inside.wait(10)
            assert (folder / "file").read_text() == "content"

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(made) == 1
    assert [path.name for path in copies.iterdir() if path.is_dir()] == []
    with pytest.raises(OSError, match="gone"), shared_copy(copies / "one", _fail):
        pass
    with shared_copy(copies / "one", fill) as folder:
        assert folder.is_dir(), "a failed one is made again"


def _fail(folder: Path) -> None:
    raise OSError("gone")
