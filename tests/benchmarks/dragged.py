"""Points that are dragged along beside a moving object, against the simulator's truth.

    python tests/benchmarks/dragged.py [--tasks 6] [--frames 40] [--seeds 11,23]

Of each window's 20 × 20 points: how many that rest in truth (moved by less than 0.1 mm) are
trusted and reported as moving, how many that truly move (by more than a centimetre and a
pixel, in sight at the end) are trusted and reported as moving, precision and recall of that, and
the median error of those in the image, as a share of their motion. "before" is without
:class:`DraggedPointsConfig`, and without depth also without the fit of the background in the
image; "after" is the default, but that windows whose camera cannot be fitted are kept. "shaken" is
a static camera's recording without depth as a trembling hand sees it. Moving is what the
pipeline counts as moving: more than a hundredth of the median depth.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass, replace

import cv2
import numpy as np
from simulated import TASKS, Window, recordings, windows

from dynaflip.platform.triplets.build import MOVING_SHARE_OF_DEPTH
from dynaflip.platform.triplets.clips import WindowRejected
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow.camera_motion import compensate_camera
from dynaflip.platform.triplets.flow.config import CameraConfig, DraggedPointsConfig
from dynaflip.platform.triplets.flow.estimate import flow_of_window
from dynaflip.platform.triplets.flow.lifting import project
from dynaflip.platform.triplets.flow.tracking import grid_px, thin_frames
from dynaflip.platform.triplets.flow.window import RGBDWindow

MOVING_M, MOVING_PX, STATIC_M = 0.01, 1.0, 1e-4
CROP_PX = 20


@dataclass(frozen=True)
class Score:
    """Of one window: points, and ``error`` of those that truly move and are reported."""

    dragged: int
    truly_moving: int
    reported: int  # of those that truly move
    error: np.ndarray
    kind: str


def shaken(window: RGBDWindow, seed: int) -> RGBDWindow:
    """The middle of the images, as a camera sees it that is held in a trembling hand.

    It turns by about a degree and a half, which moves every pixel as a homography does,
    whatever its depth. The first frame is as it was.
    """
    rng = np.random.default_rng(seed)
    fx, fy, cx, cy = window.intrinsics_px[0]
    matrix = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
    count, (height, width) = len(window.frames), window.frames.shape[1:3]
    far = np.linspace(0, 1, count)[:, None]
    turns = np.radians(2.0) * (
        rng.normal(0, 0.6, 3) * far + rng.normal(0, 0.25, 3) * np.sin(9 * far)
    )
    frames = []
    for frame, turn in zip(window.frames, turns, strict=True):
        homography = matrix @ cv2.Rodrigues(turn)[0] @ np.linalg.inv(matrix)
        image = cv2.warpPerspective(frame, homography, (width, height), flags=cv2.INTER_CUBIC)
        frames.append(image[CROP_PX:-CROP_PX, CROP_PX:-CROP_PX])
    intrinsics_px = window.intrinsics_px - np.array([0, 0, CROP_PX, CROP_PX])
    return replace(
        window, frames=np.stack(frames), depth_m=None, intrinsics_px=intrinsics_px, poses=None
    )


def score(window: Window, config: PreprocessConfig, way: str) -> Score | None:
    """One window; None where it is rejected."""
    kept = thin_frames(window.times_s, config.track.min_frame_gap_s)
    origin_px = grid_px(*window.frames.shape[1:3])
    rgbd = window.window(kept, hide_pose=way != "depth and pose")
    plane = way in ("plane", "shaken")
    if plane:
        rgbd = replace(rgbd, depth_m=None, depth_scale="relative")
    seen = np.ones(origin_px.shape[:2], bool)
    if way == "shaken":
        rgbd = shaken(rgbd, seed=len(window.name) + int(1e3 * window.times_s[0]))
        moved_px = origin_px - CROP_PX
        height, width = rgbd.frames.shape[1:3]
        origin_px = moved_px.clip(1, (width - 1, height - 1)).astype(np.float32)
        seen = (origin_px == moved_px).all(-1)
    try:
        rgbd, camera = compensate_camera(rgbd, config)
    except WindowRejected:
        return None
    flow = flow_of_window(rgbd, window.times_s[kept], origin_px, config)
    truth = window.truth
    exists = seen & (np.linalg.norm(truth.origin_m, axis=-1) > 0)
    length_m = np.linalg.norm(truth.displacement_m[-1], axis=-1)
    intrinsics_px = rgbd.intrinsics_px[0]
    origin_m = np.where(exists[..., None], truth.origin_m, [0, 0, 1])
    motion_px = project(origin_m + truth.displacement_m[-1], intrinsics_px) - project(
        origin_m, intrinsics_px
    )
    length_px = np.linalg.norm(motion_px, axis=-1)
    median_m = 1.0 if plane else float(np.nanmedian(window.depth_m[0]))
    moves = np.linalg.norm(flow.displacement_m[-1], axis=-1) > MOVING_SHARE_OF_DEPTH * median_m
    moves &= flow.visible[-1]
    found_px = project(flow.origin_m + flow.displacement_m[-1], intrinsics_px) - flow.origin_px
    true = exists & truth.visible[-1] & (length_m > MOVING_M) & (length_px > MOVING_PX)
    error = np.linalg.norm(found_px - motion_px, axis=-1) / length_px.clip(1e-9)
    return Score(
        int((exists & (length_m < STATIC_M) & moves).sum()),
        int(true.sum()),
        int((true & moves).sum()),
        error[true & moves],
        camera.kind,
    )


def row(name: str, scores: list[Score | None]) -> str:
    """One line of the table."""
    kept = [s for s in scores if s is not None]
    if not kept:
        return f"{name:<26} every window is rejected"
    dragged = np.array([s.dragged for s in kept])
    true, reported = (sum(getattr(s, part) for s in kept) for part in ("truly_moving", "reported"))
    error = np.concatenate([s.error for s in kept])
    kinds = {kind: sum(s.kind == kind for s in kept) for kind in sorted({s.kind for s in kept})}
    return (
        f"{name:<26}{len(kept):>4}{dragged.mean():>9.1f}{np.percentile(dragged, 90):>7.0f}"
        f"{reported / max(1, reported + dragged.sum()):>11.1%}{reported / max(1, true):>8.1%}"
        f"{np.median(error) if len(error) else np.nan:>8.1%}  "
        + ", ".join(f"{kind} {count}" for kind, count in kinds.items())
    )


def settings(way: str) -> dict[str, PreprocessConfig]:
    """The two that are compared."""
    after = PreprocessConfig(camera=CameraConfig(on_failure="uncompensated"))
    before = replace(after, dragged_points=DraggedPointsConfig(enabled=False))
    if way in ("plane", "shaken"):
        before = replace(before, camera=CameraConfig(motion="none"))
    return {"before": before, "after": after}


def verdict(name: str, before: list[Score | None], after: list[Score | None]) -> str:
    """Dragged points and recall, before and after."""
    dragged, recall = [], []
    for scores in (before, after):
        kept = [s for s in scores if s is not None]
        dragged.append(sum(s.dragged for s in kept))
        recall.append(sum(s.reported for s in kept) / max(1, sum(s.truly_moving for s in kept)))
    return (
        f"{name}: dragged points {dragged[0]} to {dragged[1]}, recall of moving points "
        f"{recall[0]:.1%} to {recall[1]:.1%}"
    )


def main() -> None:
    """Print a table for each camera and kind of depth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--per-clip", type=int, default=2)
    parser.add_argument("--seeds", default="11,23")
    args = parser.parse_args()
    verdicts: list[str] = []
    for moving_camera in (False, True):
        many: list[Window] = []
        for number, seed in enumerate(int(part) for part in args.seeds.split(",")):
            tasks = TASKS[args.tasks * number :][: args.tasks] or TASKS[: args.tasks]
            root = recordings(tasks, moving_camera=moving_camera, seed=seed)
            many += windows(root, args.frames, per_clip=args.per_clip)
        print(f"\n{'moving' if moving_camera else 'static'} camera, {len(many)} windows")
        heads = f"{'dragged':>9}{'p90':>7}{'precision':>11}{'recall':>8}{'error':>8}"
        print(f"{'':<26}{'n':>4}{heads}  camera_motion")
        ways = ["depth and pose", "depth, no pose", "plane"]
        # A recording by a static camera can be shaken by a known amount.
        for way in ways if moving_camera else [*ways, "shaken"]:
            found = {}
            for name, config in settings(way).items():
                found[name] = [score(w, config, way) for w in many]
                print(row(f"{way}, {name}", found[name]), flush=True)
            camera = "moving" if moving_camera else "static"
            verdicts.append(verdict(f"{camera} camera, {way}", found["before"], found["after"]))
    print("\n" + "\n".join(verdicts))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "Constant", UserWarning)  # Meta-World's own experts
    main()
