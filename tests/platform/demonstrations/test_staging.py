"""What an unfinished collection left behind is finished or refused, and never deleted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from dynaflip.errors import UserError
from dynaflip.files import file_lock
from dynaflip.platform.demonstrations import collect as collecting
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.paths import home
from dynaflip.platform.triplets.clips import content_hash

CONFIG = CollectConfig(tasks=("drawer-open-v3",), episodes_per_task=2, image_px=64)


@pytest.fixture(autouse=True)
def no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may come as far as recording."""

    def record(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(collecting, "_record_missing", record)


def interrupted(output: Path) -> Path:
    """An episode that is done, and one that is not."""
    episodes = output.with_name(f"{output.name}.partial") / "episodes"
    (episodes / "episode-000000").mkdir(parents=True)
    (episodes / "episode-000001.tmp").mkdir()
    recipe = {"recipe_version": collecting.RECIPE_VERSION, "settings": CONFIG.recipe()}
    (episodes.parent / "settings.json").write_text(json.dumps(recipe))
    return episodes


def test_finished_episodes_of_other_settings_are_not_deleted(tmp_path: Path) -> None:
    episodes = interrupted(tmp_path / "set")
    other = dataclasses.replace(CONFIG, image_px=96)
    with pytest.raises(UserError, match=r"unfinished collection .*image_px 64, now 96"):
        collecting.collect(other, str(tmp_path / "set"))
    assert (episodes / "episode-000000").is_dir()
    with pytest.raises(InterruptedError):  # with the same settings it goes on
        collecting.collect(CONFIG, str(tmp_path / "set"))
    assert [path.name for path in episodes.iterdir()] == ["episode-000000"]


def test_where_nothing_is_finished_other_settings_begin_anew(tmp_path: Path) -> None:
    episodes = interrupted(tmp_path / "set")
    (episodes / "episode-000000").rmdir()
    with pytest.raises(InterruptedError):
        collecting.collect(dataclasses.replace(CONFIG, image_px=96), str(tmp_path / "set"))
    assert "96" in (episodes.parent / "settings.json").read_text()
    assert not list(episodes.iterdir())


def test_a_folder_that_is_called_like_the_unfinished_one_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "set.partial"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not written by jobs/collect\.py \(notes\.txt\)"):
        collecting.collect(CONFIG, str(tmp_path / "set"))
    assert (mine / "notes.txt").read_text() == "mine"


def test_one_output_is_collected_by_one_process_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "set"
    lock = home() / "locks" / f"{content_hash(str(output))}.lock"
    with file_lock(lock), pytest.raises(UserError, match="another process is making"):
        collecting.collect(CONFIG, str(output))
