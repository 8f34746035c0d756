"""Windows without depth from a hand-held camera, whose motion is known."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from triplet_recordings import textured

from dynaflip.platform.triplets.flow.lifting import assumed_intrinsics_px
from dynaflip.platform.triplets.flow.window import RGBDWindow

HEIGHT, WIDTH = 168, 224
STEP_PX = 2.0  # of the square, a frame, to the right


@dataclass(frozen=True)
class Shaken:
    """``frames`` (N, H, W, 3); ``homographies`` (N, 3, 3): still ground of the first frame to
    frame n; ``box`` (4,) left, top, right, bottom of the square on the first frame."""

    frames: np.ndarray
    homographies: np.ndarray
    box: tuple[int, int, int, int]

    def window(self) -> RGBDWindow:
        """Without depth and pose."""
        intrinsics_px = np.tile(assumed_intrinsics_px(HEIGHT, WIDTH), (len(self.frames), 1))
        return RGBDWindow(self.frames, None, intrinsics_px, None, "relative")

    def on_square(self, points_px: np.ndarray, inside_px: float = 0.0) -> np.ndarray:
        """(…) bool: the (…, 2) points lie on the square, so far from its edges at least."""
        left, top, right, bottom = self.box
        x, y = points_px[..., 0], points_px[..., 1]
        d = inside_px
        return (x > left + d) & (x < right - d) & (y > top + d) & (y < bottom - d)


def hand(frames: int, turn_deg: float = 1.5, shift_px: float = 4.0, seed: int = 3) -> np.ndarray:
    """(N, 3, 3) homographies of a camera that turns and shakes; the first is none."""
    rng = np.random.default_rng(seed)
    focal, _, cx, cy = assumed_intrinsics_px(HEIGHT, WIDTH)
    camera = np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]])
    far = np.linspace(0, 1, frames)
    wobble = np.sin(far[:, None] * rng.uniform(4, 9, 3)) * 0.3
    turns = np.radians(turn_deg) * (far[:, None] * rng.uniform(0.5, 1, 3) + wobble)
    out = []
    for n, turn in enumerate(turns):
        move = np.eye(3)
        move[:2, 2] = shift_px * far[n]
        out.append(move @ camera @ cv2.Rodrigues(turn)[0] @ np.linalg.inv(camera))
    return np.stack(out)


def shaken_square(
    frames: int = 12,
    homographies: np.ndarray | None = None,
    side_px: int = 56,
    noise: float = 1.0,
    step_px: float = STEP_PX,
) -> Shaken:
    """A textured square that goes right over textured ground, as a hand-held camera sees it.

    Args:
        frames: how many.
        homographies: (N, 3, 3) of the camera; None: of :func:`hand`.
        side_px: of the square.
        noise: standard deviation of a frame's noise, grey levels.
        step_px: motion of the square from frame to frame.
    """
    motions = hand(frames) if homographies is None else homographies
    rng, rim = np.random.default_rng(0), 60
    ground, square = textured(HEIGHT + 2 * rim, WIDTH + 2 * rim, 1), textured(side_px, side_px, 2)
    left, top = (WIDTH - side_px) // 2 - round(step_px * frames / 2), (HEIGHT - side_px) // 2
    outward = np.array([[1, 0, -rim], [0, 1, -rim], [0, 0, 1.0]])
    images = []
    for n, motion in enumerate(motions):
        scene = ground.copy()
        x, y = rim + left + round(n * step_px), rim + top
        scene[y : y + side_px, x : x + side_px] = square
        seen = cv2.warpPerspective(scene, _at_centres(motion) @ outward, (WIDTH, HEIGHT))
        noisy = seen + rng.normal(0, noise, seen.shape)
        images.append(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    return Shaken(np.stack(images), motions, (left, top, left + side_px, top + side_px))


def _at_centres(homography: np.ndarray) -> np.ndarray:
    """The same for OpenCV, which has the centre of the first pixel at 0."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    return np.linalg.inv(half) @ homography @ half


def boxes_at_depths(frames: int = 12, shift_px: float = 6.0) -> RGBDWindow:
    """A wall with many boxes in front, nearer and further; the camera goes right.

    Args:
        frames: how many.
        shift_px: motion of the wall to the left; boxes go one and a half to three times as far.
    """
    rng, rim = np.random.default_rng(5), 60
    wall = textured(HEIGHT + 2 * rim, WIDTH + 2 * rim, 1)
    boxes = []
    for left in range(4, WIDTH - 20, 31):
        for top in range(4, HEIGHT - 20, 31):
            boxes.append((left, top, rng.uniform(1.5, 3.0), textured(18, 18, left * 7 + top)))
    images = []
    for n in range(frames):
        far = shift_px * n / (frames - 1)
        move = np.array([[1, 0, -far], [0, 1, 0]])
        image = cv2.warpAffine(wall, move, (WIDTH, HEIGHT))
        for left, top, near, texture in boxes:
            moved = np.array([[1, 0, left - far * near], [0, 1, top]], float)
            mask = cv2.warpAffine(np.ones((18, 18), np.float32), moved, (WIDTH, HEIGHT))[..., None]
            image = np.where(mask > 0.5, cv2.warpAffine(texture, moved, (WIDTH, HEIGHT)), image)
        images.append(image)
    intrinsics_px = np.tile(assumed_intrinsics_px(HEIGHT, WIDTH), (frames, 1))
    return RGBDWindow(np.stack(images), None, intrinsics_px, None, "relative")
