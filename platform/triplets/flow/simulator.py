"""Exact flow of a simulator in place of tracking, for upper-bound experiments only.

No real video has it. Its triplets have the flow source ``simulator``.
"""

from __future__ import annotations

import json

import numpy as np

from dynaflip.platform.lerobot.episode import Episode
from dynaflip.platform.triplets.clips import Clip, ClipRejected, Doubles, Floats
from dynaflip.platform.triplets.flow.estimate import Flow
from dynaflip.platform.triplets.flow.lifting import at_steps
from dynaflip.platform.triplets.schema import GRID


def simulator_flow(
    clip: Clip,
    times_s: Doubles,
    poses: Doubles | None,
    qpos: Doubles | None,
    origin_px: Floats,
    size_px: tuple[int, int],
) -> Flow:
    """Exact flow of a window of a recorded simulation.

    Args:
        clip: with the episode's row in ``extra``.
        times_s: (N,) of these frames.
        poses: (N, 4, 4) camera to world.
        qpos: (N, Q) state of the simulation (``privileged.qpos``).
        origin_px: (G, G, 2) the points on the first frame.
        size_px: (width, height) of the image that they lie on.

    Raises:
        ClipRejected: not a recording of the simulator.
    """
    episode = Episode.from_json(clip.extra) if _is_episode(clip) else Episode({})
    seed = episode.layout_seed
    if poses is None or qpos is None or seed is None or not clip.task:
        raise ClipRejected(
            "flow", "flow_source=simulator needs a recording of jobs/collect.py; use tracked"
        )
    from dynaflip.eval.envs.exact_flow import exact_flow_for_episode

    width, height = size_px
    exact = exact_flow_for_episode(
        task_id=clip.task,
        layout_seed=seed,
        factors=json.loads(clip.factors),
        qpos=qpos,
        camera_poses=poses,
        origins_px=origin_px.reshape(-1, 2).astype(np.float64),
        height_px=height,
        width_px=width,
        camera=clip.camera,
        **({"environment": episode.environment} if episode.environment else {}),
    )
    valid = exact.valid.reshape(GRID, GRID)
    origin_m = _grid(exact.origin_m[None], 3)[0] * valid[..., None]
    moved = np.concatenate([np.zeros((1, GRID, GRID, 3)), _grid(exact.displacement_m, 3)])
    tracks = np.concatenate([origin_px[None], _grid(exact.tracks_px, 2)])
    visible = np.concatenate([valid[None], exact.visible.reshape(-1, GRID, GRID)])
    displacement_m, steps_visible = at_steps(moved * valid[..., None], visible, times_s)
    tracks_px, _ = at_steps(tracks, visible, times_s)
    exact_fit = np.zeros((GRID, GRID), np.float32)
    origin_m = origin_m.astype(np.float32)
    return Flow(origin_m, displacement_m, steps_visible, origin_px, tracks_px, exact_fit)


def _is_episode(clip: Clip) -> bool:
    """True where ``extra`` is an episode of LeRobot: other formats hold other things there."""
    return clip.episode_index is not None and clip.extra.startswith("{")


def _grid(values: np.ndarray, width: int) -> Floats:
    return values.reshape(len(values), GRID, GRID, width).astype(np.float32)
