"""What a LeRobot data set says of itself: paths that lead out of it are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynaflip.errors import UserError
from dynaflip.platform.lerobot.episode import Episode
from dynaflip.platform.lerobot.metadata import Meta

EPISODE = Episode({"episode_index": 0, "data/chunk_index": 0, "data/file_index": 0})


def meta(folder: Path, **info: str) -> Meta:
    (folder / "meta").mkdir()
    content = {"codebase_version": "v3.0", "features": {}, **info}
    (folder / "meta" / "info.json").write_text(json.dumps(content))
    return Meta(folder)


@pytest.mark.parametrize(
    "path",
    [
        "../other/file-{file_index:03d}.parquet",
        "data/../../other.parquet",
        "/etc/passwd",
        "s3://other/file.parquet",
        "data\\\\..\\\\..\\\\other",
    ],
)
def test_a_path_that_leads_out_of_the_set_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="data_path leads out of the data set"):
        meta(tmp_path, data_path=path).data_path(EPISODE)


def test_a_camera_s_name_cannot_lead_out_of_the_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="video_path leads out of the data set"):
        meta(tmp_path).video_path(EPISODE, "../../elsewhere")


@pytest.mark.parametrize("path", ["{nothing}", "{video_key.nothing}", "{0}", "{file_index:q}"])
def test_a_path_that_is_no_template_of_lerobot_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="not a path of LeRobot"):
        meta(tmp_path, data_path=path).data_path(EPISODE)


def test_paths_within_the_set_are_unchanged(tmp_path: Path) -> None:
    assert meta(tmp_path).data_path(EPISODE) == "data/chunk-000/file-000.parquet"
