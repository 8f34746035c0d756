"""A small LeRobot data set of a robot that nobody here knows: 5 actions, 3 readings, one camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.platform.triplets.odd_lerobot import FPS, KEY, OddSet, episode_row

FRAMES = 10
CONSTANT = 2  # entry of the actions that never moves


def own_robot(version: str = "v3.0", episodes: int = 8) -> OddSet:
    """A sound set: entry 1 of the actions follows a reading, the others the image's brightness."""
    odd = OddSet(version=version, tasks=["open it"])
    image = {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "names": None}
    odd.info = {"codebase_version": version, "fps": FPS, "total_episodes": episodes}
    odd.info["features"] = {
        KEY: image,
        "action": {**vector, "shape": [5]},
        "observation.state": {**vector, "shape": [3]},
    }
    odd.videos[KEY] = []
    for n in range(episodes):
        rng = np.random.default_rng(n)
        levels = rng.uniform(30, 220, FRAMES)
        frames = np.empty((FRAMES, 32, 48, 3), np.uint8)
        frames[:] = levels[:, None, None, None]
        odd.videos[KEY].append(frames)
        odd.episodes.append(episode_row(n, FRAMES))
        for k, level in enumerate(levels):
            state = rng.normal(size=3)
            action = [40 * level, state[0], 7.0, 0.01 * level, -level]
            row = {"episode_index": n, "frame_index": k, "timestamp": k / FPS, "task_index": 0}
            odd.rows.append({**row, "action": action, "observation.state": state.tolist()})
    return odd


def write(folder: Path, version: str = "v3.0", episodes: int = 8) -> str:
    """Write the sound set; its path."""
    return str(own_robot(version, episodes).write(folder))
