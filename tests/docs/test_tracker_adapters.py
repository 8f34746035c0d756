"""The documented adapters of 3D trackers, on stand-ins that return the truth as the models do.

What is tested is the conversion: frames, directions of poses, resolutions, units, visibility.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkout import REPOSITORY
from pages import write_files

from dynaflip.platform.triplets.flow.flow_of_tracks import flow_of_tracks
from dynaflip.platform.triplets.flow.tracker_3d import WindowToTrack, track_3d
from dynaflip.platform.triplets.flow.tracking import grid_px

UNIT = 0.37  # of the stand-ins' scenes, in metres


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the exact scene; the documented adapters can be imported, too."""
    write_files(REPOSITORY / "docs" / "extending.md", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(REPOSITORY / "tests" / "platform" / "triplets"))
    yield importlib.import_module("scene_3d")
    for name in [n for n in sys.modules if n.startswith("my_") or n == "scene_3d"]:
        del sys.modules[name]


def give_module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """A module of another's package, with its parents."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    for key, value in content.items():
        setattr(sys.modules[name], key, value)


class StandIn:
    """What all of them have: loading, moving to a device, and the scene as the model sees it."""

    scene: Any

    @classmethod
    def from_pretrained(cls, name: str) -> StandIn:
        return cls()

    def eval(self) -> StandIn:
        return self

    def to(self, device: str) -> StandIn:
        return self

    def numbers(self, images: torch.Tensor) -> np.ndarray:
        """Frame numbers of (T, 3, h, w) images in 0…255, by their first pixel."""
        return images[:, 0, 0, 0].round().int().numpy()

    def matrices(self, count: int, size_px: tuple[int, int]) -> torch.Tensor:
        """(T, 3, 3) of an image of this size."""
        x, y = size_px[0] / self.scene.WIDTH, size_px[1] / self.scene.HEIGHT
        fx, fy, cx, cy = self.scene.INTRINSICS_PX * [x, y, x, y]
        one = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]).float()
        return one.repeat(count, 1, 1)

    def poses(self, numbers: np.ndarray) -> np.ndarray:
        """(T, 4, 4) camera to world, in the stand-in's unit."""
        poses = np.stack([self.scene.pose(n) for n in numbers])
        poses[:, :3, 3] *= UNIT
        return poses

    def truth(self, numbers: np.ndarray, asked_px: np.ndarray, size_px: tuple[int, int]) -> Any:
        """Exact tracks of points that are asked for in an image of this size, centres at +0.5."""
        pixels = asked_px * [self.scene.WIDTH / size_px[0], self.scene.HEIGHT / size_px[1]]
        frames = self.scene.SceneRecording().frames[numbers]
        return self.scene.true_tracks(WindowToTrack(frames, pixels, numbers / 20))

    def pixels(self, tracks: Any, size_px: tuple[int, int]) -> np.ndarray:
        """(T, P, 2) where tracks are in an image of this size, centres at +0.5."""
        scale = [size_px[0] / self.scene.WIDTH, size_px[1] / self.scene.HEIGHT]
        return np.stack([self.scene.pixels_of(p) * scale for p in tracks.points_cam_m])


def window_of(scene: Any) -> WindowToTrack:
    frames = scene.SceneRecording().frames[5:14]
    points_px = grid_px(scene.HEIGHT, scene.WIDTH).reshape(-1, 2)
    return WindowToTrack(frames, points_px, np.arange(9) / 20)


def assert_true(tracker: Any, scene: Any, share: float) -> None:
    """Flow in metres (by recorded depth) is the scene's, to a centimetre for most points."""
    from dynaflip.platform.triplets.config import PreprocessConfig

    window = window_of(scene)
    tracks = track_3d(tracker, "documented", [window])[0]
    hidden = ~scene.true_tracks(window).visible
    assert hidden.any()
    assert not (tracks.visible & hidden).any()
    recorded_m = np.stack([scene.depth_m(n) for n in range(5, 14)])
    grid = window.points_px.reshape(20, 20, 2)
    found = flow_of_tracks(tracks, window, tracker.scale, recorded_m, grid, PreprocessConfig())
    assert (found.depth_scale, found.camera.kind, found.focal_kind) == (
        "aligned",
        "tracker",
        "estimated",
    )
    np.testing.assert_allclose(found.intrinsics_px, np.tile(scene.INTRINSICS_PX, (9, 1)), rtol=1e-3)
    first, last = scene.world_m(window.points_px.astype(float), np.array([5, 13]))
    moved_m = scene.in_camera(last, 5) - scene.in_camera(first, 5)
    seen = found.flow.visible[-1].ravel()
    assert seen.mean() > 0.6
    off_m = np.linalg.norm(found.flow.displacement_m[-1].reshape(-1, 3) - moved_m, axis=-1)[seen]
    assert (off_m < 0.01).mean() >= share
    off_px = np.linalg.norm(
        found.flow.tracks_px[-1].reshape(-1, 2) - scene.pixels_of(scene.in_camera(last, 13)),
        axis=-1,
    )
    assert np.quantile(off_px[seen], 0.95) < 0.1


def test_spatial_tracker_v2(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn.scene = scene

    class Front(StandIn):
        def __call__(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
            images = 255 * video[0]
            numbers, size = self.numbers(images), (images.shape[3], images.shape[2])
            depth = np.stack([UNIT * scene.depth_m(n, size) for n in numbers])
            return {
                "points_map": torch.from_numpy(depth)[None, ..., None].repeat(1, 1, 1, 1, 3),
                "poses_pred": torch.from_numpy(self.poses(numbers))[None],
                "intrs": self.matrices(len(numbers), size)[None],
                "unc_metric": torch.ones(depth.shape)[None],
            }

    class Predictor(StandIn):
        def forward(self, video: torch.Tensor, **given: Any) -> tuple[torch.Tensor, ...]:
            numbers, size = self.numbers(video), (video.shape[3], video.shape[2])
            assert given["depth"].shape == (len(numbers), size[1], size[0])
            np.testing.assert_allclose(given["extrs"], self.poses(numbers))
            assert given["intrs"].shape == (len(numbers), 3, 3)
            assert (given["queries"][:, 0] == 0).all()
            tracks = self.truth(numbers, given["queries"][:, 1:] + 0.5, size)
            score = torch.from_numpy(tracks.visible)[..., None].float() * 0.8 + 0.1
            points = torch.from_numpy(UNIT * tracks.points_cam_m)
            more = torch.zeros(1)
            return (
                torch.from_numpy(self.poses(numbers)),
                self.matrices(len(numbers), size),
                more,
                more,
                torch.cat([points, points[..., :1]], -1),
                more,
                score,
                score,
                video,
            )

    give_module(monkeypatch, "models.SpaTrackV2.models.predictor", Predictor=Predictor)
    vggt4track = "models.SpaTrackV2.models.vggt4track.models.vggt_moe"
    monkeypatch.setitem(sys.modules, vggt4track, SimpleNamespace(VGGT4Track=Front))
    assert_true(importlib.import_module("my_spatial_tracker").SpatialTracker(), scene, 1.0)


def test_vggt(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn.scene = scene

    class Model(StandIn):
        def __call__(
            self, video: torch.Tensor, query_points: torch.Tensor
        ) -> dict[str, torch.Tensor]:
            images = 255 * video[0]
            numbers, size = self.numbers(images), (images.shape[3], images.shape[2])
            tracks = self.truth(numbers, query_points[0].numpy() + 0.5, size)
            depth = np.stack([UNIT * scene.depth_m(n, size) for n in numbers])
            return {
                "pose_enc": torch.from_numpy(numbers)[None],
                "track": torch.from_numpy(self.pixels(tracks, size) - 0.5)[None],
                "depth": torch.from_numpy(depth)[None, ..., None],
                "vis": torch.from_numpy(tracks.visible).float()[None] * 0.8 + 0.1,
            }

    def decode(encoded: torch.Tensor, size_hw: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        numbers = encoded[0].int().numpy()
        from_world = torch.from_numpy(np.linalg.inv(Model().poses(numbers))[:, :3])
        return from_world[None], Model().matrices(len(numbers), size_hw[::-1])[None]

    give_module(monkeypatch, "vggt.models.vggt", VGGT=Model)
    poses = SimpleNamespace(pose_encoding_to_extri_intri=decode)
    monkeypatch.setitem(sys.modules, "vggt.utils.pose_enc", poses)
    assert_true(importlib.import_module("my_vggt").Vggt(), scene, 0.97)


def test_depth_anything_3(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn.scene = scene
    size = (504, 378)

    class Model(StandIn):
        def inference(self, image: list[np.ndarray], **given: Any) -> SimpleNamespace:
            numbers = np.array([one[0, 0, 0] for one in image], int)
            return SimpleNamespace(
                depth=np.stack([UNIT * scene.depth_m(n, size) for n in numbers]),
                extrinsics=np.linalg.inv(self.poses(numbers))[:, :3].astype(np.float32),
                intrinsics=self.matrices(len(numbers), size).numpy(),
            )

    give_module(monkeypatch, "depth_anything_3.api", DepthAnything3=Model)
    module = importlib.import_module("my_depth_anything")
    window = window_of(scene)

    def pixel_tracks(images: list[np.ndarray], points_px: np.ndarray, config: Any) -> Any:
        tracks = scene.true_tracks(window)
        found_px = np.stack([scene.pixels_of(p) for p in tracks.points_cam_m])
        return found_px, np.where(tracks.visible, 0, np.inf)

    monkeypatch.setattr(module, "track_points", pixel_tracks)  # its images show no motion
    assert_true(module.AnyView(), scene, 0.97)
    depth = module.NestedDepth()(window.frames)
    np.testing.assert_allclose(np.median(depth[3]), UNIT * np.median(scene.depth_m(8)), rtol=0.01)
    assert depth.shape == window.frames.shape[:3]
