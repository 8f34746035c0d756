"""Depth as LeRobot stores it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dynaflip.platform.demonstrations.lerobot_episode import (
    depth_errors,
    read_depth_codes,
    write_depth_video,
)
from dynaflip.platform.lerobot.depth_codec import (
    CODE_MAX,
    DEPTH_MAX_M,
    DEPTH_MIN_M,
    decode_depth,
    encode_depth,
)


def test_codes_follow_the_published_rule() -> None:
    """norm = (log(d + shift) − log(min + shift)) / (log(max + shift) − log(min + shift))."""
    depth_m = np.linspace(DEPTH_MIN_M, DEPTH_MAX_M, 1001)
    norm = np.log(depth_m / DEPTH_MIN_M) / np.log(DEPTH_MAX_M / DEPTH_MIN_M)
    # Within the rounding of float32 at the border between two codes.
    assert np.abs(encode_depth(depth_m) - norm * CODE_MAX).max() < 0.51
    assert encode_depth(np.array([0.0, 100.0])).tolist() == [0, CODE_MAX]


def test_the_error_is_half_a_millimetre_where_the_scene_is() -> None:
    depth_m = np.linspace(0.3, 3.0, 100_001)
    error_mm = 1000 * np.abs(decode_depth(encode_depth(depth_m)) - depth_m)
    assert error_mm[depth_m < 1.2].max() < 0.5
    assert error_mm.max() < 1.3


def test_the_video_is_lossless(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODE_MAX + 1, (20, 48, 64)).astype(np.uint16)
    write_depth_video(tmp_path / "depth.mp4", codes, 80)
    np.testing.assert_array_equal(read_depth_codes(tmp_path / "depth.mp4"), codes)


def test_depth_errors_exclude_the_sky_and_count_it() -> None:
    rendered = np.array([[[1.0, 80.0]]])
    errors = depth_errors(rendered, np.array([[[1.002, 7.0]]]))
    assert (errors["pixels"], errors["clipped"]) == (2, 1)
    assert np.isclose(errors["max_mm"], 2.0)
    assert sum(errors["counts"]) == 1
