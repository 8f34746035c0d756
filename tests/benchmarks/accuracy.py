"""Tracked flow against the simulator's exact flow: error and recall of every method.

    python tests/benchmarks/accuracy.py [--tasks 12] [--windows 8,16,32,64]

Tasks are recorded at 224 px with a static and with a moving camera by a seed that no
default was tuned on. A point counts as moving when it goes further than a centimetre
in 3D and a pixel in the image and is in sight at the end. Recall is the share of
those that a method keeps; its points are sorted by its own doubt (the check's miss,
or the piece's misfit) over the motion that it found. Errors are medians at the end of
the window: in 2D as a share of the point's motion, in 3D in millimetres.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from simulated import TASKS, Window, recordings, windows

from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow.camera_motion import compensate_camera, fit_camera
from dynaflip.platform.triplets.flow.config import AlignmentConfig, TrackConfig
from dynaflip.platform.triplets.flow.estimate import flow_of_window
from dynaflip.platform.triplets.flow.tracking import (
    grid_px,
    thin_frames,
    track_points,
    tracker_images,
)

RECALLS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
MOVING_M, MOVING_PX = 0.01, 1.0
LOST_PX = 1e6  # the forward-backward check of the plain trackers loses nobody: it only sorts


@dataclass(frozen=True)
class Answer:
    """What a method says of a window's 20 × 20 points at its end: ``tracks_px`` (…, 2),
    ``displacement_m`` (…, 3) or None, ``doubt`` (…), infinite for points that it drops."""

    tracks_px: np.ndarray
    displacement_m: np.ndarray | None
    doubt: np.ndarray


Method = Callable[[Window], Answer]


def plain(tracker: str) -> Method:
    """A tracker with the forward-backward check alone, on grey images."""
    config = TrackConfig(tracker=tracker, use_depth=False, max_backward_error_px=LOST_PX)

    def method(window: Window) -> Answer:
        kept = thin_frames(window.times_s, config.min_frame_gap_s)
        origin_px = grid_px(*window.frames.shape[1:3])
        images = tracker_images(window.frames[kept], None)
        tracks, misses = track_points(images, origin_px.reshape(-1, 2), config)
        end_px = tracks[-1].reshape(origin_px.shape)
        return Answer(end_px, None, doubt_of(misses[-1].reshape(20, 20), end_px - origin_px))

    return method


def ours(config: PreprocessConfig, *, hide_pose: bool = False) -> Method:
    """The pipeline's flow of a window; with its pose hidden, the camera's motion is fitted."""

    def method(window: Window) -> Answer:
        kept = thin_frames(window.times_s, config.track.min_frame_gap_s)
        origin_px = grid_px(*window.frames.shape[1:3])
        rgbd, _ = compensate_camera(window.window(kept, hide_pose=hide_pose), config)
        flow = flow_of_window(rgbd, window.times_s[kept], origin_px, config)
        # Points that were not aligned get the doubt of a middling piece.
        misfit = np.nan_to_num(flow.misfit, nan=0.2)
        doubt = doubt_of(misfit, flow.tracks_px[-1] - flow.origin_px)
        return Answer(
            flow.tracks_px[-1], flow.displacement_m[-1], np.where(flow.visible[-1], doubt, np.inf)
        )

    return method


def doubt_of(check: np.ndarray, motion_px: np.ndarray) -> np.ndarray:
    """A check's value over the motion found, so that it orders relative errors."""
    return (check + 0.05) / (np.linalg.norm(motion_px, axis=-1) + 1)


METHODS: dict[str, Method] = {
    "LK": plain("lk"),
    "DIS": plain("dis"),
    "LK + rejection": ours(PreprocessConfig(rgbd_alignment=AlignmentConfig(enabled=False))),
    "LK + pieces aligned": ours(PreprocessConfig()),
    "the same, pose hidden": ours(PreprocessConfig(), hide_pose=True),
    "DIS + pieces aligned": ours(replace(PreprocessConfig(), track=TrackConfig(tracker="dis"))),
}


def score(method: Method, many: list[Window]) -> dict[str, np.ndarray]:
    """Errors, doubts and kinds of all points of all windows, flat."""
    out: dict[str, list[np.ndarray]] = {}
    began_s = time.process_time()
    for window in many:
        answer, truth = method(window), window.truth
        exists = np.linalg.norm(truth.origin_m, axis=-1) > 0
        length_m = np.linalg.norm(truth.displacement_m[-1], axis=-1)
        length_px = np.linalg.norm(truth.tracks_px[-1] - truth.origin_px, axis=-1)
        found_m = answer.displacement_m
        far = np.zeros(exists.shape) if found_m is None else np.linalg.norm(found_m, axis=-1)
        miss_m = np.full(exists.shape, np.nan)
        if found_m is not None:
            miss_m = np.linalg.norm(found_m - truth.displacement_m[-1], axis=-1)
        moving = exists & truth.visible[-1] & (length_m > MOVING_M) & (length_px > MOVING_PX)
        for name, values in (
            ("moving", moving),
            ("moved", exists & (length_m > MOVING_M)),
            ("still", exists & (length_m < 1e-4)),
            ("seems", exists & (far > MOVING_M)),
            ("doubt", answer.doubt),
            (
                "share",
                np.linalg.norm(answer.tracks_px - truth.tracks_px[-1], axis=-1)
                / length_px.clip(1e-9),
            ),
            ("miss_m", miss_m),
        ):
            out.setdefault(name, []).append(values.ravel())
    found = {name: np.concatenate(values) for name, values in out.items()}
    return found | {"seconds": np.array((time.process_time() - began_s) / max(1, len(many)))}


def row(name: str, found: dict[str, np.ndarray]) -> str:
    """One line of the table."""
    moving = found["moving"]
    doubt, share, miss_m = (found[key][moving] for key in ("doubt", "share", "miss_m"))
    order, kept = np.argsort(doubt, kind="stable"), int(np.isfinite(doubt).sum())
    cells = []
    for recall in (*RECALLS, kept / max(1, len(doubt))):
        count = round(recall * len(doubt))
        some = order[:count]
        cells.append(f"{np.median(share[some]):5.1%}" if 0 < count <= kept else "    -")
    text = f"{name:<22}{'  '.join(cells)} @{kept / max(1, len(doubt)):4.0%}"
    sees = np.isfinite(found["doubt"])
    still = found["miss_m"][found["still"] & sees] * 1e3
    if np.isfinite(miss_m).any():
        seems = found["seems"] & sees
        text += f"  {np.median(miss_m[order[:kept]]) * 1e3:5.1f}"
        text += f"  {np.median(still):5.2f} {np.percentile(still, 90):5.2f}"
        text += f"  {found['moved'][seems].mean():4.0%}"
    else:
        text += f"{'':7}{'':13}{'':6}"
    return f"{text}  {float(found['seconds']) * 1e3:5.0f}"


def camera_row(many: list[Window]) -> str:
    """How well the camera's motion is found when its pose is hidden, and the flow with it."""
    off_mm, off_deg, shares, moved_mm = [], [], [], []
    config = PreprocessConfig()
    for window in many:
        kept = thin_frames(window.times_s, config.track.min_frame_gap_s)
        assert window.cameras.poses is not None
        poses = window.cameras.poses[kept]
        truth = np.linalg.inv(poses[0]) @ poses
        fit = fit_camera(window.window(kept, hide_pose=True), config)
        moved_mm.append(np.linalg.norm(truth[:, :3, 3], axis=1).max() * 1e3)
        shares.append(fit.inlier_share if fit else 0.0)
        if fit is None or fit.inlier_share < config.camera.min_inlier_share:
            continue
        apart = np.linalg.inv(truth) @ fit.poses
        off_mm.append(np.linalg.norm(apart[:, :3, 3], axis=1).max() * 1e3)
        cosine = (np.trace(apart[:, :3, :3], axis1=1, axis2=2) - 1) / 2
        off_deg.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))).max())
    return (
        f"camera, pose hidden: moves {np.median(moved_mm):.0f} mm (most {max(moved_mm):.0f}); "
        f"found in {len(off_mm)} of {len(many)} within {np.median(off_mm):.2f} mm (worst "
        f"{max(off_mm):.2f}) and {np.median(off_deg):.3f}° (worst {max(off_deg):.3f}); "
        f"agreeing points {np.median(shares):.0%} (least {min(shares):.0%})"
    )


def main() -> None:
    """Print a table for each camera and length of window."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=len(TASKS))
    parser.add_argument("--windows", default="8,16,32,64")
    parser.add_argument("--per-clip", type=int, default=2)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    heads = "  ".join(f"{recall:5.0%}" for recall in RECALLS)
    for moving_camera in (False, True):
        root = recordings(TASKS[: args.tasks], moving_camera=moving_camera, seed=args.seed)
        for length in (int(part) for part in args.windows.split(",")):
            many = list(windows(root, length, per_clip=args.per_clip))
            print(
                f"\n{args.tasks} tasks, {'moving' if moving_camera else 'static'} camera, "
                f"{len(many)} windows of {length} frames: 2D error at recall …, all kept; "
                f"3D mm; still points mm median, p90; truly moving of those that seem to; ms"
            )
            print(f"{'':<22}{heads}    all")
            for name, method in METHODS.items():
                print(row(name, score(method, many)), flush=True)
            print(camera_row(many), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "Constant", UserWarning)  # Meta-World's own experts
    main()
