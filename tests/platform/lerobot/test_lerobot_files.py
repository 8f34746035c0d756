"""Metadata and per-frame columns of a LeRobot data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynaflip.platform.lerobot.columns import (
    ACTION,
    PROPRIOCEPTION,
    pose_column,
    read_arrays,
    read_columns,
)
from dynaflip.platform.lerobot.episode import Episode
from dynaflip.platform.lerobot.metadata import Meta

CAMERA = "observation.images.top"


def write_set(root: Path, **info: object) -> Meta:
    """Two episodes of 3 and 2 frames, the frames of the second out of order."""
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    feature = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    about = {"codebase_version": "v3.0", "features": {CAMERA: feature}, **info}
    (root / "meta/info.json").write_text(json.dumps(about))
    rows = {
        "episode_index": [1, 0],
        "length": [2, 3],
        "tasks": [["open it "], ["open it", " "]],
        "task_id": ["open", None],
        "success": [True, False],
        "layout_seed": [7, None],
        "stats/action/mean": [[0.5], [0.1]],
        "stats/index/mean": [[4.0], [1.0]],
        f"videos/{CAMERA}/from_timestamp": [0.1, 0.0],
        f"videos/{CAMERA}/to_timestamp": [0.2, None],
    }
    pq.write_table(pa.table(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    frames = {
        "episode_index": [0, 0, 0, 1, 1],
        "frame_index": [0, 1, 2, 1, 0],
        PROPRIOCEPTION: [[float(n), 0.0] for n in range(5)],
        ACTION: [[float(-n)] for n in range(5)],
    }
    pq.write_table(pa.table(frames), root / "data/chunk-000/file-000.parquet")
    return Meta(root)


def test_episodes_are_typed_and_in_order(tmp_path: Path) -> None:
    meta = write_set(tmp_path)
    first, second = meta.episodes()
    assert (first.index, first.length, first.captions, first.task_id) == (0, 3, ("open it",), "")
    assert (first.success, first.layout_seed, first.factors) == (False, None, "{}")
    assert (second.success, second.layout_seed, second.moving_camera) == (True, 7, False)
    assert (first.span_s(CAMERA), second.span_s(CAMERA)) == ((0.0, None), (0.1, 0.2))
    assert list(second.statistics()) == ["stats/action/mean"]
    again = Episode.from_json(second.to_json())
    assert again.layout_seed == 7
    assert not again.statistics()
    assert meta.image_px(CAMERA) == (64, 48)


def test_columns_are_those_of_the_episode_in_the_order_of_its_frames(tmp_path: Path) -> None:
    meta = write_set(tmp_path)
    first, second = meta.episodes()
    state, action = read_arrays(meta, second, (PROPRIOCEPTION, ACTION))
    np.testing.assert_array_equal(state, [[4, 0], [3, 0]])
    np.testing.assert_array_equal(action, [[-4], [-3]])
    names = (ACTION, pose_column("top"))
    assert list(read_columns(meta, first, names, may_lack=True)) == [ACTION]
    with pytest.raises((OSError, pa.ArrowException, ValueError)):
        read_columns(meta, first, names)
