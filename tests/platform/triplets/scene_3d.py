"""A scene whose 3D tracks are known exactly, and trackers that know them, as an outsider's module.

A wall and a board that slides and comes nearer, before a camera that turns and moves. Images hold
the number of their frame in the first pixel, by which the trackers find their place.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from triplet_recordings import textured

from dynaflip.platform.triplets.clips import Cameras
from dynaflip.platform.triplets.flow.tracker_3d import WindowToTrack, WindowTracks3D

FRAMES, RATE_HZ = 40, 20.0
HEIGHT, WIDTH = 96, 128
INTRINSICS_PX = np.array([110.0, 115.0, 63.0, 49.0])
WALL_M = 2.0  # z of the wall in the world
BOARD_M = np.array([-0.55, -0.4, 0.05, 0.3])  # left, top, right, bottom in the world at time 0
BOARD_SPEED_M_S = np.array([0.25, 0.05, -0.15])


def pose(n: int) -> np.ndarray:
    """(4, 4) camera to world of a frame; the first camera is not the world's frame."""
    s = n / RATE_HZ
    out = np.eye(4)
    out[:3, :3] = cv2.Rodrigues(np.array([0.02 - 0.05 * s, 0.1 - 0.12 * s, 0.03 * s]))[0]
    out[:3, 3] = [0.1 + 0.12 * s, -0.05, 0.1 + 0.05 * s]
    return out


def _hit(pixels: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(P, 3) world points that frame n shows at (P, 2) pixels, and whether on the board."""
    fx, fy, cx, cy = INTRINSICS_PX
    rays = np.c_[(pixels[:, 0] - cx) / fx, (pixels[:, 1] - cy) / fy, np.ones(len(pixels))]
    rays, at = rays @ pose(n)[:3, :3].T, pose(n)[:3, 3]
    moved = BOARD_SPEED_M_S * n / RATE_HZ
    on_board = at + rays * ((1.5 + moved[2] - at[2]) / rays[:, 2])[:, None]
    inside = (on_board[:, :2] > BOARD_M[:2] + moved[:2]) & (
        on_board[:, :2] < BOARD_M[2:] + moved[:2]
    )
    board = inside.all(1)
    on_wall = at + rays * ((WALL_M - at[2]) / rays[:, 2])[:, None]
    return np.where(board[:, None], on_board, on_wall), board


def world_m(pixels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(N, P, 3) world positions, at frames of these numbers, of what the first shows at pixels."""
    first, board = _hit(pixels, numbers[0])
    steps = (numbers - numbers[0])[:, None, None] / RATE_HZ
    return first + steps * BOARD_SPEED_M_S * board[:, None]


def in_camera(points: np.ndarray, n: int) -> np.ndarray:
    """(P, 3) world points in the camera of frame n."""
    return (points - pose(n)[:3, 3]) @ pose(n)[:3, :3]


def pixels_of(points_cam: np.ndarray) -> np.ndarray:
    fx, fy, cx, cy = INTRINSICS_PX
    x, y, z = points_cam.T
    return np.c_[x / z * fx + cx, y / z * fy + cy]


def depth_m(n: int, size_px: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """(h, w) z-depth of a frame, as an image of (width, height) pixels shows it."""
    x = (np.arange(size_px[0]) + 0.5) * WIDTH / size_px[0]
    y = (np.arange(size_px[1]) + 0.5) * HEIGHT / size_px[1]
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    return in_camera(_hit(grid, n)[0], n)[:, 2].reshape(len(y), len(x)).astype(np.float32)


def true_tracks(window: WindowToTrack) -> WindowTracks3D:
    """The exact tracks of a window, with poses and intrinsics."""
    numbers = window.frames[:, 0, 0, 0].astype(int)
    pixels = window.points_px.astype(np.float64)
    world = world_m(pixels, numbers)
    points = np.stack([in_camera(p, n) for p, n in zip(world, numbers, strict=True)])
    visible = np.ones(points.shape[:2], bool)
    for k, n in enumerate(numbers):
        at_px = pixels_of(points[k])
        shown = in_camera(_hit(at_px, n)[0], n)[:, 2]
        visible[k] = (at_px > 0).all(1) & (at_px < (WIDTH, HEIGHT)).all(1)
        visible[k] &= points[k][:, 2] < shown + 0.01
    return WindowTracks3D(
        points.astype(np.float32),
        visible,
        np.stack([pose(n) for n in numbers]),
        np.tile(INTRINSICS_PX, (len(numbers), 1)),
    )


class Truth:
    """The exact tracks, in metres."""

    dimensions = 3
    scale = "metric"

    def __call__(self, window: WindowToTrack) -> WindowTracks3D:
        return true_tracks(window)


class UnknownScale:
    """The exact tracks in an unknown unit, with the poses in the same."""

    dimensions = 3
    scale = "relative"

    def __call__(self, window: WindowToTrack) -> WindowTracks3D:
        tracks = true_tracks(window)
        poses = tracks.poses.copy()
        poses[:, :3, 3] *= 0.37
        return replace(tracks, points_cam_m=tracks.points_cam_m * np.float32(0.37), poses=poses)


class SceneRecording:
    """A recording of the scene; what is not asked for was not recorded."""

    def __init__(
        self, *, depth: bool = False, cameras: np.ndarray | None = None, poses: bool = False
    ) -> None:
        self.depth, self.intrinsics_px, self.poses = depth, cameras, poses
        image = textured(HEIGHT, WIDTH, 3)
        self.frames = np.stack([image] * FRAMES)
        self.frames[:, 0, 0] = np.arange(FRAMES)[:, None]

    def times_s(self) -> np.ndarray:
        return np.arange(FRAMES) / RATE_HZ

    def read_frames(self, indices: list[int], short_side_px: int) -> np.ndarray:
        return self.frames[indices]

    def read_depth_m(self, indices: list[int]) -> np.ndarray | None:
        return np.stack([depth_m(n) for n in indices]) if self.depth else None

    def cameras(self, indices: list[int]) -> Cameras | None:
        if self.intrinsics_px is None:
            return None
        poses = np.stack([pose(n) for n in indices]) if self.poses else None
        many = np.tile(self.intrinsics_px, (len(indices), 1))
        return Cameras(many, (WIDTH, HEIGHT), poses, assumed=False)

    def simulator_state(self, indices: list[int]) -> None:
        return None

    def caption_at(self, index: int, draw: int) -> str:
        return "slide the board"
