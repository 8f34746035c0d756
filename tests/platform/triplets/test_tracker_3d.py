"""3D trackers: exact tracks give exact flow, and every wrong adapter is refused with its reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import scene_3d
import torch
from scene_3d import INTRINSICS_PX, RATE_HZ, SceneRecording, Truth, true_tracks
from stage_outputs import CLIP

from dynaflip.errors import UserError
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.triplets.build import clip_table
from dynaflip.platform.triplets.clips import ClipRejected
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow.config import (
    CameraConfig,
    RigidSmoothingConfig,
    TrackConfig,
)
from dynaflip.platform.triplets.flow.learned_tracker import load_tracker, track_windows
from dynaflip.platform.triplets.flow.lifting import project
from dynaflip.platform.triplets.flow.tracker_3d import (
    WindowToTrack,
    WindowTracks3D,
    points_from_depth,
    track_3d,
)
from dynaflip.platform.triplets.flow.tracker_3d_checks import (
    AdapterWatch,
    pose_contradiction,
)
from dynaflip.platform.triplets.flow.tracking import grid_px
from dynaflip.platform.triplets.models.loading import check_models, digests_of_models

CONFIG = PreprocessConfig(draws_per_clip=1, image_px=64)


def settings(tracker: str, **more: Any) -> PreprocessConfig:
    return replace(CONFIG, track=TrackConfig(tracker=tracker), **more)


def tensor(table: pa.Table, name: str) -> np.ndarray:
    return table[name].combine_chunks().to_numpy_ndarray()


def truth_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(R, G, G, 3) and (R, K, G, G, 3) of a table's windows, in metres in the camera frame of t."""
    origins, displacements = [], []
    stored_px = np.array([table["width_px"][0].as_py(), table["height_px"][0].as_py()])
    scale = stored_px / (scene_3d.WIDTH, scene_3d.HEIGHT)
    for row in table.to_pylist():
        start = round(row["t_s"] * RATE_HZ)
        count = round(row["window_s"] * RATE_HZ)
        pixels = np.array(row["origin_px"]).reshape(-1, 2) / scale
        world = scene_3d.world_m(pixels, np.array([start, start + count]))
        first, last = (scene_3d.in_camera(points, start) for points in world)
        steps = np.arange(1, 8)[:, None, None] / 7
        origins.append(first.reshape(20, 20, 3))
        displacements.append((steps * (last - first)).reshape(7, 20, 20, 3))
    return np.stack(origins), np.stack(displacements)


def errors_m(table: pa.Table) -> tuple[float, float]:
    """Largest error of origins and of visible displacements, over all windows."""
    origin, displacement = truth_of(table)
    seen = tensor(table, "flow_visible").astype(bool)
    assert seen[:, -1].mean() > 0.5
    moving = np.linalg.norm(displacement[:, -1], axis=-1) > 0.02
    assert (moving & seen[:, -1]).sum() > 20, "some of it moves"
    shown = seen.any(1)
    off_origin = np.linalg.norm(tensor(table, "flow_origin_m") - origin, axis=-1)[shown]
    off = np.linalg.norm(tensor(table, "flow_displacement_m") - displacement, axis=-1)[seen]
    return float(off_origin.max()), float(off.max())


def ways(table: pa.Table) -> set[tuple[str, ...]]:
    """How the windows came about: flow, depth, its scale, camera, focal length."""
    names = ("flow_source", "depth_kind", "depth_scale", "camera_motion", "focal_kind")
    return set(zip(*(table[name].to_pylist() for name in names), strict=True))


@pytest.mark.parametrize(
    ("tracker", "recording", "expected"),
    [
        ("Truth", {}, ("tracker", "metric", "tracker", "estimated")),
        ("UnknownScale", {"depth": True}, ("tracker", "aligned", "tracker", "estimated")),
        (
            "UnknownScale",
            {"depth": True, "cameras": INTRINSICS_PX, "poses": True},
            ("tracker", "aligned", "pose", "recorded"),
        ),
    ],
)
def test_exact_tracks_give_exact_flow(
    tracker: str, recording: dict[str, Any], expected: tuple[str, ...]
) -> None:
    name = f"class:scene_3d:{tracker}"
    table = clip_table(CLIP, SceneRecording(**recording), settings(name))
    assert ways(table) == {(name, *expected)}
    # Recorded depth is read between pixels: it scales to a thousandth of the distance.
    off_origin_m, off_m = errors_m(table)
    assert off_origin_m < (0.004 if recording else 1e-5)
    assert off_m < (0.001 if recording else 1e-5)
    assert set(table["depth_kind"].to_pylist()) == {"tracker"}
    assert 1.2 < table["median_depth_m"][0].as_py() < 2
    tracked = tensor(table, "tracks_px")[:, -1]
    assert np.abs(tracked - tensor(table, "origin_px")).max() > 3, "with the camera's motion"


def test_a_relative_scale_stays_relative_without_recorded_depth() -> None:
    recording = SceneRecording(cameras=INTRINSICS_PX, poses=True)
    table = clip_table(CLIP, recording, settings("class:scene_3d:UnknownScale"))
    assert {row[2:4] for row in ways(table)} == {("relative", "tracker")}, (
        "poses in metres do not fit"
    )
    displacement = truth_of(table)[1]
    seen = tensor(table, "flow_visible").astype(bool)
    np.testing.assert_allclose(
        tensor(table, "flow_displacement_m")[seen], 0.37 * displacement[seen], atol=1e-5
    )
    off = replace(settings("class:scene_3d:UnknownScale"), align_depth=False)
    table = clip_table(CLIP, SceneRecording(depth=True), off)
    assert set(table["depth_scale"].to_pylist()) == {"relative"}


class WithoutPoses(Truth):
    """The exact tracks alone; the camera is for others to find."""

    def __call__(self, window: WindowToTrack) -> WindowTracks3D:
        return replace(true_tracks(window), poses=None)


def test_the_camera_is_fitted_to_tracks_without_poses() -> None:
    name = f"class:{__name__}:WithoutPoses"
    table = clip_table(CLIP, SceneRecording(), settings(name))
    assert {row[3] for row in ways(table)} == {"fit"}
    assert min(table["camera_inlier_share"].to_pylist()) > 0.5
    assert errors_m(table)[1] < 1e-3
    still = settings(name, camera=CameraConfig(motion="none"))
    table = clip_table(CLIP, SceneRecording(), still)
    assert {row[3] for row in ways(table)} == {"none"}
    assert errors_m(table)[1] > 0.02
    recorded = settings(name, camera=CameraConfig(motion="recorded"))
    with pytest.raises(ClipRejected, match=r"no pose recorded \(camera\.motion=recorded\)"):
        clip_table(CLIP, SceneRecording(), recorded)


def test_a_camera_that_stood_still_is_called_static() -> None:
    Wrong.change = staticmethod(
        lambda t: replace(t, points_cam_m=in_world(t, np.linalg.inv(t.poses[0])), poses=None)
    )
    table = clip_table(CLIP, SceneRecording(), settings(f"class:{__name__}:Wrong"))
    assert {row[3] for row in ways(table)} == {"static"}
    assert errors_m(table)[1] < 1e-5


Change = Callable[[WindowTracks3D], Any]


def scaled(factor: float) -> Change:
    """Points and poses in another unit."""

    def change(tracks: WindowTracks3D) -> WindowTracks3D:
        poses = np.array(tracks.poses)
        poses[:, :3, 3] *= factor
        return replace(tracks, points_cam_m=tracks.points_cam_m * factor, poses=poses)

    return change


def in_world(tracks: WindowTracks3D, into: np.ndarray) -> np.ndarray:
    """(N, P, 3) points moved from each camera to the world and then by ``into``."""
    moves = into @ tracks.poses
    turned = np.einsum("nij,npj->npi", moves[:, :3, :3], tracks.points_cam_m)
    return turned + moves[:, None, :3, 3]


def lost(tracks: WindowTracks3D) -> WindowTracks3D:
    points = tracks.points_cam_m.copy()
    points[:, ::2] = np.nan
    return replace(tracks, points_cam_m=points)


def further_away(poses: np.ndarray) -> np.ndarray:
    """Poses in millimetres."""
    out = poses.copy()
    out[:, :3, 3] *= 1000
    return out


AXES = np.diag([1.0, -1.0, -1.0, 1.0])
WRONG: dict[str, tuple[Change, str]] = {
    "tuple": (lambda t: (t.points_cam_m, t.visible), "gave a tuple, not a WindowTracks3D"),
    "points first": (
        lambda t: replace(t, points_cam_m=t.points_cam_m.swapaxes(0, 1)),
        r"points_cam_m of shape \(400, \d+, 3\), not \(\d+, 400, 3\)",
    ),
    "with gradients": (
        lambda t: replace(t, poses=torch.zeros(4, requires_grad=True)),
        "gave poses as a Tensor that NumPy cannot read",
    ),
    "words": (
        lambda t: replace(t, points_cam_m=t.points_cam_m.astype(str)),
        "points_cam_m of type <U",
    ),
    "a batch of one": (lambda t: replace(t, visible=t.visible[None]), "visible of shape"),
    "3 x 4": (lambda t: replace(t, poses=t.poses[:, :3]), r"poses of shape \(\d+, 3, 4\), not"),
    "probabilities": (
        lambda t: replace(
            t, visible=np.linspace(0.1, 0.9, t.visible.size).reshape(t.visible.shape)
        ),
        r"visibility of type float64 from 0\.1 to 0\.9, not bool",
    ),
    "nothing visible": (
        lambda t: replace(t, visible=np.zeros_like(t.visible)),
        "calls 0% of the points visible",
    ),
    "occlusion": (lambda t: replace(t, visible=~t.visible), "is it occlusion"),
    "no numbers": (lost, "no finite position for 50%"),
    "poses without numbers": (
        lambda t: replace(t, poses=np.full_like(t.poses, np.nan)),
        "poses that are not finite",
    ),
    "the world's frame": (
        lambda t: replace(t, points_cam_m=in_world(t, np.eye(4))),
        "miss the pixel asked for in frame 0.*in the world's frame",
    ),
    "the first camera's frame": (
        lambda t: replace(t, points_cam_m=in_world(t, np.linalg.inv(t.poses[0]))),
        "contradict its tracks.*taken to stand still",
    ),
    "world to camera": (
        lambda t: replace(t, poses=np.linalg.inv(t.poses)),
        "contradict its tracks.*taken as world-to-camera",
    ),
    "OpenGL's poses": (
        lambda t: replace(t, poses=t.poses @ AXES),
        "contradict its tracks.*y and z the other way round",
    ),
    "OpenGL's points": (
        lambda t: replace(t, points_cam_m=t.points_cam_m @ AXES[:3, :3]),
        "puts 100% of the visible points behind the camera",
    ),
    "poses in millimetres": (
        lambda t: replace(t, poses=further_away(t.poses)),
        "contradict its tracks.*in the poses' unit",
    ),
    "no rotation": (
        lambda t: replace(t, poses=t.poses * [[[1.1, 1.1, 1.1, 1.0]]]),
        "no rigid motion: rows of the rotation",
    ),
    "a mirror": (lambda t: replace(t, poses=np.diag([-1.0, 1, 1, 1]) @ t.poses), "one mirrors"),
    "transposed": (
        lambda t: replace(t, poses=t.poses.swapaxes(1, 2)),
        "last row is not 0 0 0 1",
    ),
    "the model's resolution": (
        lambda t: replace(t, intrinsics_px=t.intrinsics_px * 518 / 128),
        r"miss the pixel.*of an image 4\.05 times as large",
    ),
    "an unknown focal length": (
        lambda t: replace(
            t, points_cam_m=t.points_cam_m * [128 / 90, 128 / 90, 1], intrinsics_px=None
        ),
        r"miss the pixel.*focal length of 7\d\.\d+ px in place of 128 px: return intrinsics_px",
    ),
    "reverse": (
        lambda t: replace(
            t,
            points_cam_m=t.points_cam_m[::-1],
            visible=t.visible[::-1],
            poses=t.poses[::-1],
        ),
        "seem to be in reverse order",
    ),
    "millimetres": (scaled(1000), r"in metres, but their median depth is 1\d\d\d"),
    "no focal length": (
        lambda t: replace(t, intrinsics_px=0 * t.intrinsics_px),
        "a focal length of 0 px",
    ),
}


class Wrong(Truth):
    """The exact tracks, changed."""

    change: Change

    def __call__(self, window: WindowToTrack) -> WindowTracks3D:
        return Wrong.change(true_tracks(window))


def refused(change: Change, recording: SceneRecording, **more: Any) -> ClipRejected:
    Wrong.change = staticmethod(change)
    with pytest.raises(ClipRejected) as caught:
        clip_table(CLIP, recording, settings(f"class:{__name__}:Wrong", **more))
    assert "\n" not in caught.value.reason
    assert f"class:{__name__}:Wrong" in caught.value.reason
    return caught.value


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_adapter_is_refused_with_its_reason(kind: str) -> None:
    change, words = WRONG[kind]
    caught = refused(change, SceneRecording())
    assert caught.stage == "tracker" or "no window is left: tracker: " in caught.reason
    assert re.search(words, caught.reason), caught.reason


def test_contradictions_with_what_was_recorded_name_both_figures() -> None:
    caught = refused(scaled(0.1), SceneRecording(depth=True))
    assert "median depth is 0.1" in caught.reason
    assert "m where the recording has 1." in caught.reason
    other = INTRINSICS_PX * [1.5, 1.5, 1, 1]
    caught = refused(lambda tracks: tracks, SceneRecording(cameras=other))
    assert "focal length is 110 px, the recording says 165 px" in caught.reason
    backwards = SceneRecording(cameras=INTRINSICS_PX, poses=True)
    cameras = backwards.cameras
    backwards.cameras = lambda indices: replace(  # type: ignore[method-assign]
        cameras(indices), poses=np.linalg.inv(cameras(indices).poses)
    )
    caught = refused(lambda tracks: tracks, backwards)
    assert "camera: the recorded poses contradict" in caught.reason
    assert "as world-to-camera" in caught.reason
    # Small differences are the tracker's: points lie on the recorded rays.
    near = SceneRecording(cameras=INTRINSICS_PX)
    Wrong.change = staticmethod(
        lambda t: replace(
            t,
            intrinsics_px=t.intrinsics_px * [1.05, 1.05, 1, 1],
            points_cam_m=t.points_cam_m / np.float32([1.05, 1.05, 1]),
            poses=None,
        )
    )
    table = clip_table(CLIP, near, settings(f"class:{__name__}:Wrong"))
    assert errors_m(table)[0] < 1e-5


def test_right_tracks_with_noise_are_kept() -> None:
    """A twentieth of lost points, jitter of a pixel and of 1 % in depth: what a good model does."""
    rng = np.random.default_rng(0)

    def noisy(tracks: WindowTracks3D) -> WindowTracks3D:
        points = tracks.points_cam_m * (1 + 0.01 * rng.normal(size=(*tracks.visible.shape, 1)))
        points[..., :2] += rng.normal(size=(*tracks.visible.shape, 2)) * points[..., 2:] / 110
        points[:, rng.random(400) < 0.05] = np.nan
        return replace(tracks, points_cam_m=points)

    Wrong.change = staticmethod(noisy)
    left_out: Counter[str] = Counter()
    clip_table(CLIP, SceneRecording(), settings(f"class:{__name__}:Wrong"), left_out=left_out)
    assert not [reason for reason in left_out if reason.startswith("tracker")]


def shaken(window: WindowToTrack, rng: np.random.Generator) -> WindowTracks3D:
    """Right tracks with the noise of a good model, poses included (5 mm a frame)."""
    tracks = true_tracks(window)
    size = tracks.visible.shape
    points = tracks.points_cam_m * (1 + 0.01 * rng.normal(size=(*size, 1)))
    points[..., :2] += 0.5 * rng.normal(size=(*size, 2)) * points[..., 2:] / INTRINSICS_PX[0]
    poses = np.array(tracks.poses)
    poses[1:, :3, 3] += 0.005 * rng.normal(size=(len(poses) - 1, 3))
    return replace(tracks, points_cam_m=points, poses=poses)


def test_the_direction_of_poses_shows_through_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cameras that turn by 0.1 rad and go 15 cm in half a second, each another way."""
    rng = np.random.default_rng(0)
    frames = SceneRecording().frames[5:16]
    points_px = grid_px(scene_3d.HEIGHT, scene_3d.WIDTH).reshape(-1, 2)
    window = WindowToTrack(frames, points_px, np.arange(11) / RATE_HZ)
    refused, start = Counter[str](), scene_3d.pose(5)
    for _ in range(12):
        axis, way = (one / np.linalg.norm(one) for one in rng.normal(size=(2, 3)))

        def pose(n: int, axis: np.ndarray = axis, way: np.ndarray = way) -> np.ndarray:
            moved = np.eye(4)
            moved[:3, :3] = cv2.Rodrigues(0.1 * (n - 5) / 10 * axis)[0]
            moved[:3, 3] = 0.15 * (n - 5) / 10 * way
            return start @ moved

        monkeypatch.setattr(scene_3d, "pose", pose)
        right = shaken(window, rng)
        assert right.poses is not None
        for name, poses in (("right", right.poses), ("inverse", np.linalg.inv(right.poses))):
            tracks = replace(right, poses=poses)
            refused[name] += bool(pose_contradiction(tracks, poses))
    assert refused["right"] == 0
    assert refused["inverse"] >= 11


class Raises(Truth):
    def __call__(self, window: WindowToTrack) -> WindowTracks3D:
        raise ValueError("no\nmore")


class RaisesMemory(Truth):
    def __call__(self, window: WindowToTrack) -> WindowTracks3D:
        raise MemoryError


def test_an_error_in_an_adapter_names_its_line() -> None:
    window = WindowToTrack(
        np.zeros((2, 8, 8, 3), np.uint8), np.ones((3, 2), np.float32), np.arange(2.0)
    )
    with pytest.raises(
        ClipRejected, match=r"mine failed: ValueError at test_tracker_3d\.py:\d+: no'"
    ):
        track_3d(Raises(), "mine", [window])
    with pytest.raises(MemoryError):  # the machine's, and tried again
        track_3d(RaisesMemory(), "mine", [window])
    with pytest.raises(ClipRejected, match=r"class:scene_3d:Truth failed: TypeError"):
        track_windows(window.frames, window.points_px, "class:scene_3d:Truth")


class Batches(Truth):
    def track_batch(self, windows: list[WindowToTrack]) -> list[WindowTracks3D]:
        return [true_tracks(window) for window in windows[:1]]


def test_several_windows_at_once() -> None:
    frames = SceneRecording().frames
    points = np.full((3, 2), 40.0, np.float32)
    windows = [WindowToTrack(frames[n : n + 4], points, np.arange(4) / 20) for n in range(2)]
    one, two = track_3d(Batches(), "mine", windows[:1]), track_3d(Truth(), "mine", windows)
    np.testing.assert_array_equal(one[0].points_cam_m, two[0].points_cam_m)
    with pytest.raises(ClipRejected, match=r"track_batch gave 1 results where a list of 2"):
        track_3d(Batches(), "mine", windows)


class NoScale:
    dimensions = 3


def test_settings_that_cannot_be_are_errors_before_any_work() -> None:
    with pytest.raises(UserError, match=r"scale None; .*scale = 'metric' or 'relative'"):
        load_tracker(f"class:{__name__}:NoScale")
    name = "class:scene_3d:Truth"
    check_models(settings(name))
    with pytest.raises(UserError, match=r"depth: plane contradicts track\.tracker class:scene_3d"):
        check_models(settings(name, depth="plane"))
    with pytest.raises(UserError, match=r"rigid_smoothing: has no effect with track\.tracker"):
        check_models(settings(name, rigid_smoothing=RigidSmoothingConfig(enabled=False)))
    with pytest.raises(UserError, match=r"track\.use_depth: has no effect"):
        check_models(replace(CONFIG, track=TrackConfig(tracker=name, use_depth=False)))
    check_models(settings(name, depth="plane", flow_source="simulator"))
    assert list(digests_of_models(settings(name))) == [name]
    with pytest.raises(UserError, match="there is no tracker 'unheard'"):
        load_config(PreprocessConfig, None, {"track.tracker": "unheard"})


def test_a_job_stops_where_the_adapter_is_at_fault() -> None:
    watch = AdapterWatch("mine")
    for _ in range(7):
        watch.see("tracker", "mine: poses")
    with pytest.raises(
        UserError, match=r"the first 8 clips were all rejected because of mine: .*po"
    ):
        watch.see("filter", "no window is left: tracker: mine: poses, 3 of 3")
    served = AdapterWatch("mine")
    served.see("", "")
    for _ in range(20):  # clips beyond a tracker that serves others
        served.see("tracker", "mine: poses")


def test_pixels_and_depth_make_points() -> None:
    numbers = np.arange(4)
    window = WindowToTrack(
        SceneRecording().frames[:4],
        np.random.default_rng(0).uniform(5, 90, (50, 2)).astype(np.float32),
        numbers / RATE_HZ,
    )
    truth = true_tracks(window)
    many = np.tile(INTRINSICS_PX, (4, 1))
    tracks_px = np.stack([project(p, INTRINSICS_PX) for p in truth.points_cam_m])
    tracks_px[2, 3] = [-5, 10]
    points, known = points_from_depth(
        tracks_px, np.stack([scene_3d.depth_m(n) for n in numbers]), many
    )
    assert not known[2, 3]
    assert np.isnan(points[2, 3]).all()
    good = known & truth.visible
    assert good.mean() > 0.9
    off = np.linalg.norm(points - truth.points_cam_m, axis=-1)[good]
    assert np.quantile(off, 0.95) < 0.01


class TrueDepth:
    """The scene's exact depth, by the number in the first pixel."""

    scale = "metric"
    factor = 1.0

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([self.factor * scene_3d.depth_m(n) for n in frames[:, 0, 0, 0]])


class FromDepth(Truth):
    """The exact tracks, where the depth that it is given is exact as well."""

    def __call__(self, window: WindowToTrack) -> WindowTracks3D:
        assert window.depth_m is not None
        numbers = window.frames[:, 0, 0, 0]
        exact = np.stack([scene_3d.depth_m(n) for n in numbers])
        np.testing.assert_allclose(window.depth_m, exact, rtol=1e-4)
        return true_tracks(window)


def test_a_3d_tracker_is_given_the_depth_of_a_model() -> None:
    config = settings(f"class:{__name__}:FromDepth", depth=f"class:{__name__}:TrueDepth")
    models = {config.depth: TrueDepth()}
    table = clip_table(CLIP, SceneRecording(depth=True), config, models)
    assert set(table["depth_kind"].to_pylist()) == {f"tracker+class:{__name__}:TrueDepth"}
    assert errors_m(table)[1] < 1e-5


@pytest.mark.parametrize(
    ("factor", "scale", "depth", "words"),
    [
        (1000, "metric", False, r"in metres, but its median is 1\d\d\d"),
        (0.1, "metric", True, r"median is 0\.1\d+ m where the recording has 1\.\d+ m"),
        (-1, "metric", False, "in metres, but none is above 0"),
        (1, "feet", False, "has scale 'feet', not one of 'metric', 'relative', 'inverse'"),
        (np.nan, "metric", False, "hold no depth"),
    ],
)
def test_a_wrong_depth_model_is_refused(factor: float, scale: str, depth: bool, words: str) -> None:
    model = TrueDepth()
    model.factor, model.scale = factor, scale
    config = replace(CONFIG, depth=f"class:{__name__}:TrueDepth")
    with pytest.raises(ClipRejected) as caught:
        clip_table(CLIP, SceneRecording(depth=depth), config, {config.depth: model})
    assert caught.value.stage in ("depth", "filter")
    assert re.search(words, caught.value.reason), caught.value.reason
