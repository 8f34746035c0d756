"""The base of all MuJoCo simulators: seeing, measuring and perturbing one model from one camera.

A simulator is a subclass that calls :meth:`MujocoScene.show` once its model is compiled, and adds
how it moves. The model that is shown may be a copy of the one that is simulated: poses come from
``data``, so that perturbing the copy cannot change the physics.

Legend of shapes: H, W image height and width in pixels.

Camera frame: OpenCV axes (x right, y down, z forward). Pixel centres lie at +0.5. Rendering follows
what was measured to be fast and exact in software: no shadow map, no multisampling and no
reflections unless shadows are asked for. The same settings serve demonstrations and evaluation.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import Env
from dynaflip.eval.envs.mujoco_appearance import (
    MujocoAppearance,
    SceneParts,
    robot_and_object_geoms,
)
from dynaflip.eval.envs.mujoco_factors import camera_path_angles
from dynaflip.eval.envs.mujoco_renderer import SceneRenderer

# MuJoCo and PyOpenGL choose their backend when they are imported.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])


class MujocoScene(Env):
    """A scene that can be rendered, measured, perturbed and restored.

    Attributes:
        model: MuJoCo's model that is rendered and whose appearance is perturbed.
        data: MuJoCo's data, the poses of everything.
        camera_id: index of the camera in the model.
        appearance: what perturbation changes of the model.
        unperturbed_camera_pose: camera → world (4, 4).
    """

    def show(self, model: Any, data: Any, parts: SceneParts, *, shadows: bool = False) -> None:
        """Make the renderer of a compiled model; its look as it is now is the unperturbed one.

        Args:
            model, data: MuJoCo's.
            parts: what of the model the factors may touch.
            shadows: render shadows from the beginning (slow; normally a perturbation).

        Raises:
            UserError: the model has no such camera, or there is no display to render with.
        """
        import mujoco

        self.model, self.data = model, data
        self.camera_id = find_camera(model, self.camera)
        model.mat_reflectance[:] = 0
        self.appearance = MujocoAppearance(model, self.camera_id, parts)
        mujoco.mj_forward(model, data)
        self.unperturbed_camera_pose = self.camera_pose()
        self._shadows = shadows
        self._renderers: dict[bool, SceneRenderer] = {}
        self._use_renderer(shadows)

    # Seeing -----------------------------------------------------------------------------

    def render(self) -> np.ndarray:
        """The image: (H, W, 3) uint8."""
        return self._renderer.rgb()

    def depth_m(self) -> np.ndarray:
        """Distance along the viewing axis, not along the ray: (H, W) float32 metres."""
        return self._renderer.rgb_and_depth()[1]

    def rgb_and_depth(self) -> tuple[np.ndarray, np.ndarray]:
        """Both of one pass, which is much faster than one after the other."""
        rgb, depth_m = self._renderer.rgb_and_depth()
        return self.filtered(rgb), depth_m

    def segmentation(self) -> np.ndarray:
        """Geom id at each pixel: (H, W) int32; −1 sky and sites, −2 − i the i-th distractor."""
        import mujoco

        ids, kinds = self._renderer.object_ids()
        geoms = np.where(kinds == mujoco.mjtObj.mjOBJ_GEOM, ids, -1)
        return np.where(kinds == mujoco.mjtObj.mjOBJ_UNKNOWN, -2 - ids, geoms).astype(np.int32)

    def robot_and_object(self) -> tuple[np.ndarray, np.ndarray]:
        """Masks of the robot and of the task's objects: two (H, W) bool."""
        geoms = self.segmentation()
        robot, objects = robot_and_object_geoms(self.model, self.appearance.parts)
        return np.isin(geoms, robot), np.isin(geoms, objects)

    def bodies(self) -> np.ndarray:
        """Body id at each pixel: (H, W) int32; 0, the world, for sky and distractors."""
        import mujoco

        ids, kinds = self._renderer.object_ids()
        bodies = np.zeros_like(ids)
        for kind, owner in (
            (mujoco.mjtObj.mjOBJ_GEOM, self.model.geom_bodyid),
            (mujoco.mjtObj.mjOBJ_SITE, self.model.site_bodyid),
        ):
            chosen = kinds == kind
            bodies[chosen] = owner[ids[chosen]]
        return bodies

    def body_poses(self) -> tuple[np.ndarray, np.ndarray]:
        """World poses of all bodies: positions (N, 3) in metres and rotations (N, 3, 3)."""
        return self.data.xpos.copy(), self.data.xmat.reshape(-1, 3, 3).copy()

    def geom_poses(self) -> tuple[np.ndarray, np.ndarray]:
        """World poses of all geoms: positions (N, 3) in metres and rotations (N, 3, 3)."""
        return self.data.geom_xpos.copy(), self.data.geom_xmat.reshape(-1, 3, 3).copy()

    # Camera -----------------------------------------------------------------------------

    def follow_camera_path(self, camera: dict[str, Any], time_s: float) -> None:
        """Move the camera to where a moving camera's value has it at a time."""
        self.appearance.move_camera(*camera_path_angles(camera, time_s))

    def intrinsics(self) -> np.ndarray:
        """Camera matrix (3, 3) float64 in pixels."""
        fovy = np.deg2rad(self.model.cam_fovy[self.camera_id])
        focal_px = self.height_px / 2 / np.tan(fovy / 2)
        return np.array(
            [[focal_px, 0, self.width_px / 2], [0, focal_px, self.height_px / 2], [0, 0, 1.0]]
        )

    def camera_pose(self) -> np.ndarray:
        """Camera → world, (4, 4) float64, OpenCV axes, metres."""
        import mujoco

        mujoco.mj_camlight(self.model, self.data)
        pose = np.eye(4)
        # MuJoCo's cameras look along −z with y up.
        pose[:3, :3] = self.data.cam_xmat[self.camera_id].reshape(3, 3) * np.array([1.0, -1, -1])
        pose[:3, 3] = self.data.cam_xpos[self.camera_id]
        return pose

    def set_camera_pose(self, pose: np.ndarray) -> None:
        """Move the camera: (4, 4) camera → world, OpenCV axes, metres."""
        import mujoco

        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, (pose[:3, :3] * np.array([1.0, -1, -1])).ravel())
        self.model.cam_pos[self.camera_id] = pose[:3, 3]
        self.model.cam_quat[self.camera_id] = quat

    # Perturbing -------------------------------------------------------------------------

    def restore_appearance(self) -> None:
        """Undo what factors changed in the model and in what is drawn."""
        self._upload(self.appearance.restore())
        self._use_renderer(self._shadows)
        for renderer in self._renderers.values():
            renderer.shapes = []

    def appearance_changed(self) -> None:
        """Upload textures, and show shadows and bodies that factors asked for."""
        self._upload(self.appearance.changed_textures())
        self._use_renderer(self._shadows or self.appearance.shadows)
        self._renderer.shapes = self.appearance.shapes

    def close(self) -> None:
        """Free the renderers; the scene cannot be seen afterwards."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    # Inside -----------------------------------------------------------------------------

    def _use_renderer(self, shadows: bool) -> None:
        # One with shadows takes a second to make, and stays beside the one without.
        if shadows not in self._renderers:
            self._renderers[shadows] = SceneRenderer(
                self.model,
                self.data,
                height_px=self.height_px,
                width_px=self.width_px,
                camera_id=self.camera_id,
                shadows=shadows,
            )
        self._renderer = self._renderers[shadows]

    def _upload(self, texture_ids: list[int]) -> None:
        for renderer in self._renderers.values():
            for texture_id in texture_ids:
                renderer.upload_texture(texture_id)


def find_camera(model: Any, name: str) -> int:
    """Index of a camera in a model.

    Raises:
        UserError: there is none of that name.
    """
    import mujoco

    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if index < 0:
        known = ", ".join(model.camera(i).name for i in range(model.ncam))
        raise UserError(f"simulator: there is no camera {name}; known: {known}")
    return int(index)


def padded(values: np.ndarray, length: int) -> np.ndarray:
    """Coordinates (Q,) with zeros behind them: (length,), as wide for every task."""
    assert len(values) <= length, f"{len(values)} coordinates do not fit {length}"
    return np.pad(values, (0, length - len(values)))
