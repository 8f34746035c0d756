"""Synthetic RGB-D windows with known motion."""

from __future__ import annotations

import cv2
import numpy as np
from triplet_recordings import textured

from dynaflip.platform.triplets.flow.window import RGBDWindow

HEIGHT, WIDTH, FOCAL_PX = 120, 160, 160.0
INTRINSICS_PX = np.array([FOCAL_PX, FOCAL_PX, WIDTH / 2, HEIGHT / 2])


EGG_M = np.array([0.34, 0.2, 0.3])  # half axes
STEP_M = 0.03


def egg(frames: int = 8) -> RGBDWindow:
    """An egg of a single colour goes right before textured ground: only its shape tells."""
    ground = textured(HEIGHT, WIDTH, 4)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    ray = np.stack([(x - WIDTH / 2) / FOCAL_PX, (y - HEIGHT / 2) / FOCAL_PX, 0 * x + 1], -1)
    images, depths = [], []
    for n in range(frames):
        middle = np.array([STEP_M * n - 0.15, 0.0, 1.6])
        # |(s ray - middle) / axes| = 1 at the nearer of its two solutions.
        a, b = ray / EGG_M, middle / EGG_M
        aa, ab = (a * a).sum(-1), a @ b
        root = ab**2 - aa * (b @ b - 1)
        depth_m = np.where(root > 0, (ab - np.sqrt(np.maximum(root, 0))) / aa, 2.0)
        images.append(np.where(root[..., None] > 0, np.uint8(120), ground))
        depths.append(depth_m)
    many = np.tile(INTRINSICS_PX, (frames, 1))
    return RGBDWindow(np.stack(images), np.stack(depths).astype(np.float32), many, None)


def wall(frames: int = 6, shift_m: float = 0.02, seed: int = 5) -> RGBDWindow:
    """A wall 2 m away with a square that moves on its own; the camera goes right."""
    big = textured(HEIGHT, WIDTH + 80, seed)
    images = []
    for n in range(frames):
        at = shift_m * n / 2.0 * FOCAL_PX
        move = np.float32([[1, 0, -at], [0, 1, 0]])
        image = cv2.warpAffine(big, move, (WIDTH, HEIGHT))
        image[20:50, 20 + 4 * n : 50 + 4 * n] = textured(30, 30, 9)
        images.append(image)
    depth_m = np.full((frames, HEIGHT, WIDTH), 2.0, np.float32)
    for n in range(frames):
        depth_m[n, 20:50, 20 + 4 * n : 50 + 4 * n] = 1.5
    return RGBDWindow(np.stack(images), depth_m, np.tile(INTRINSICS_PX, (frames, 1)), None)
