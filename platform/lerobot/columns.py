"""Per-frame columns of one episode of a LeRobot data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dynaflip.platform.lerobot.episode import Episode
from dynaflip.platform.lerobot.metadata import Meta
from dynaflip.platform.triplets.sources.locations import read_schema, read_table

# Of every data set that is collected here; all that a policy may read of a frame beside its image.
PROPRIOCEPTION, ACTION = "observation.state", "action"
# Labels and state of a simulator, for probes and exact flow alone.
SIMULATOR_STATE = "privileged.qpos"
OBJECT_POSITION = "privileged.object_position_m"
JOINT_ANGLES = "privileged.joint_angles"


def intrinsics_column(camera: str) -> str:
    """Column of a camera's fx, fy, cx, cy in pixels."""
    return f"observation.intrinsics.{camera}"


def pose_column(camera: str) -> str:
    """Column of a camera's pose: (16,) camera to world, row-major, metres, OpenCV axes."""
    return f"observation.camera_pose.{camera}"


def read_columns(
    meta: Meta, episode: Episode, names: Sequence[str], *, may_lack: bool = False
) -> dict[str, pa.ChunkedArray]:
    """Columns of an episode's frames, in the order of the frames.

    Args:
        meta: of the data set.
        episode: whose frames.
        names: of the columns.
        may_lack: leave out columns that the data set does not have.

    Raises:
        OSError, pyarrow.ArrowException: the file cannot be read, or lacks a column.
    """
    path = meta.root / meta.data_path(episode)
    there = set(read_schema(path).names)
    if "episode_index" not in there and meta.version != "v2":  # in v2.1 a file is one episode
        raise pa.ArrowInvalid("it has no column episode_index")
    wanted = [name for name in names if name in there or not may_lack]
    ordered = [*wanted, "frame_index"] if "frame_index" in there else wanted
    only = [("episode_index", "=", episode.index)] if "episode_index" in there else None
    table = read_table(path, columns=list(dict.fromkeys(ordered)), filters=only)
    if "frame_index" in there:
        table = table.sort_by("frame_index")
    return {name: table[name] for name in wanted}


def read_arrays(meta: Meta, episode: Episode, names: Sequence[str]) -> list[np.ndarray]:
    """Vector columns of an episode's frames as (N, D) float64 each.

    Raises:
        OSError, pyarrow.ArrowException: the file cannot be read, or lacks a column.
    """
    columns = read_columns(meta, episode, names)
    return [np.array(columns[name].to_pylist(), np.float64) for name in names]
