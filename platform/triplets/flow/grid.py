"""Grid of 20 × 20 points on frame t: even, or denser where things move.

The paper names motion unrelated to the task as a limitation, and a uniform grid spends most
of its points on static background. The motion-focused grid
keeps rows and columns (the flow encoder is a CNN over them) and moves the lines: their
density is a mixture of an even one and of the share of that row or column that moves.

G = 20 grid points a side.
"""

from __future__ import annotations

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow.static_points import compare_with_static_scene
from dynaflip.platform.triplets.flow.tracking import grid_px
from dynaflip.platform.triplets.flow.window import RGBDWindow
from dynaflip.platform.triplets.schema import GRID

_LATTICE = 40  # points a side for the motion test


def grid_on_first_frame(window: RGBDWindow, config: PreprocessConfig) -> Floats:
    """(G, G, 2) x, y of the grid's points on the first frame, pixel centres at +0.5.

    Args:
        window: N frames.
        config: settings ``grid`` and ``grid_focus``.
    """
    height, width = window.frames.shape[1:3]
    even = grid_px(height, width)
    if config.grid == "uniform":
        return even
    moving = _moving(window, config)
    if not moving.any():
        return even
    x = _lines(moving.mean(0), config.grid_focus) * width
    y = _lines(moving.mean(1), config.grid_focus) * height
    return np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)


def _moving(window: RGBDWindow, config: PreprocessConfig) -> np.ndarray:
    """(40, 40) bool: what is not static, without specks."""
    height, width = window.frames.shape[1:3]
    centres = (np.arange(_LATTICE) + 0.5) / _LATTICE
    lattice = np.stack(np.meshgrid(centres * width, centres * height), -1).reshape(-1, 2)
    static = compare_with_static_scene(
        window, lattice.astype(np.float32), config.static_points, config.lifting.search_px
    )
    moving = (~static.is_static()).reshape(_LATTICE, _LATTICE).astype(np.uint8)
    return cv2.morphologyEx(moving, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)) > 0


def _lines(moving: Doubles, focus: float) -> Doubles:
    """(G,) positions in [0, 1] of lines whose density follows (L,) shares that move."""
    density = (1 - focus) + focus * moving / max(moving.mean(), 1e-9)
    reached = np.concatenate([[0.0], np.cumsum(density)])
    wanted = (np.arange(GRID) + 0.5) / GRID * reached[-1]
    return np.interp(wanted, reached, np.linspace(0, 1, len(reached)))
