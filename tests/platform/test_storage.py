"""Folders under a name on a file system: a replacement that is cut short loses nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dynaflip.platform import storage
from dynaflip.platform.storage import LocalStorage


def publish(place: LocalStorage, text: str) -> None:
    staged = place.staging()
    (staged / "done").write_text(text)
    place.publish(staged, "one")


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_killed_replacement_leaves_the_old_or_the_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    place = LocalStorage(tmp_path, "done")
    publish(place, "old")
    done, replace = [], os.replace

    def killed(source: Path, target: Path) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(source)
        replace(source, target)

    def killed_later(*_: object, **__: object) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(storage.os, "replace", killed)
    monkeypatch.setattr(storage.shutil, "rmtree", killed_later)
    with pytest.raises(KeyboardInterrupt):
        publish(place, "new")
    monkeypatch.undo()
    again = LocalStorage(tmp_path, "done")
    again.remove_unfinished()
    assert again.names() == ["one"]
    assert again.read("one", "done") == (b"new" if renames == 2 else b"old")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    publish(again, "newer")
    assert again.read("one", "done") == b"newer"
