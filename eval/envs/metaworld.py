"""Meta-World as a scene that can be rendered, measured, perturbed and restored.

Legend of shapes: H, W image height and width in pixels, Q length of ``qpos``.

World frame: Meta-World's own, metres, z up, the table's top at z = 0. Camera
frame: OpenCV axes (x right, y down, z forward). Pixel centres lie at +0.5.

Rendering follows what was measured to be fast and exact in software: no shadow
map, no multisampling and no reflections unless shadows are asked for. The same
settings serve demonstrations and evaluation.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import Env, StepResult
from dynaflip.eval.envs.metaworld_factors import PARTS
from dynaflip.eval.envs.metaworld_tasks import ENVIRONMENT
from dynaflip.eval.envs.mujoco_appearance import MujocoAppearance, robot_and_object_geoms
from dynaflip.eval.envs.mujoco_factors import camera_path_angles
from dynaflip.eval.envs.mujoco_renderer import SceneRenderer, load_mujoco

# Mujoco and PyOpenGL choose their backend when they are imported.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])

SIM_HINT = f"simulator: Meta-World is not installed; {ENVIRONMENT.install_hint}"
# Long enough for every task; shorter states are padded with zeros.
QPOS_LENGTH = 20
QVEL_LENGTH = 20


@dataclass(frozen=True)
class State:
    """Physical state of a scene; restoring it gives the same image.

    ``qpos`` (Q,), ``qvel`` (V,), ``mocap_pos_m`` (3,) and ``mocap_quat`` (4,), float64.
    """

    qpos: np.ndarray
    qvel: np.ndarray
    mocap_pos_m: np.ndarray
    mocap_quat: np.ndarray


class Scene(Env):
    """One Meta-World task under one camera.

    Args:
        task: Meta-World name, such as ``drawer-open-v3``.
        height_px, width_px: size of every image.
        camera: name of the camera; ``corner*`` cameras are rolled the right way up.
        shadows: render shadows from the beginning (slow; normally a perturbation).

    Raises:
        UserError: no such task, Meta-World is not installed, or no display to render with.
    """

    spec = ENVIRONMENT

    def __init__(
        self,
        task: str,
        *,
        height_px: int = 160,
        width_px: int = 160,
        camera: str = ENVIRONMENT.camera,
        shadows: bool = False,
    ) -> None:
        super().__init__(task, height_px=height_px, width_px=width_px, camera=camera)
        load_mujoco(SIM_HINT)
        import mujoco

        self.env = make_environment(task)
        self.expert = make_expert(task)
        self.model, self.data = self.env.model, self.env.data
        self.camera_id = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if self.camera_id < 0:
            known = ", ".join(self.model.camera(i).name for i in range(self.model.ncam))
            raise UserError(f"simulator: there is no camera {camera}; known: {known}")
        if camera.startswith("corner"):
            # Meta-World's corner cameras are upside down. Half a turn about the viewing
            # axis keeps pose and intrinsics true, which flipping the image would not.
            quat = np.empty(4)
            mujoco.mju_mulQuat(quat, self.model.cam_quat[self.camera_id], np.array([0.0, 0, 0, 1]))
            self.model.cam_quat[self.camera_id] = quat
        self.model.mat_reflectance[:] = 0
        self._pristine = {name: getattr(self.model, name).copy() for name in _LAYOUT_FIELDS}
        self.appearance = MujocoAppearance(self.model, self.camera_id, PARTS)
        mujoco.mj_forward(self.model, self.data)
        self.unperturbed_camera_pose = self.camera_pose()
        self._observation = np.zeros(0)
        self._shadows = shadows
        self._renderers: dict[bool, SceneRenderer] = {}
        self._use_renderer(shadows)

    # Moving -----------------------------------------------------------------------------

    def reset(self, seed: int) -> np.ndarray:
        """Lay the objects out by a seed; the same seed gives the same scene. Returns (39,)."""
        import mujoco

        # Tasks place objects by writing into the model: start from the file's values, so
        # that a layout does not depend on the ones before it.
        for name, value in self._pristine.items():
            getattr(self.model, name)[:] = value
        mujoco.mj_resetData(self.model, self.data)
        self.env.seed(seed)
        self._observation, _ = self.env.reset()
        # The last step of a reset leaves poses one step behind the state.
        mujoco.mj_forward(self.model, self.data)
        return self._observation

    def step(self, action: np.ndarray) -> StepResult:
        """Act for 1/80 s: (4,) hand velocity xyz and gripper effort, each in [-1, 1]."""
        self._observation, reward, terminated, truncated, info = self.env.step(
            np.clip(action, -1.0, 1.0).astype(np.float32)
        )
        return StepResult(
            self._observation,
            float(reward),
            success=bool(info["success"]),
            ended=bool(terminated or truncated),
        )

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action (4,) float32 after the last reset or step."""
        action = self.expert.get_action(self._observation)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def proprioception(self) -> np.ndarray:
        """Proprioception: hand position (m, world frame) and gripper, (4,) float32.

        The gripper is 0 closed, 1 open.
        """
        return self.env._get_curr_obs_combined_no_goal()[:4].astype(np.float32)

    def privileged(self) -> dict[str, np.ndarray]:
        """What only a simulator knows; policies and encoders must never read it.

        ``object_position_m`` (3,), ``goal_position_m`` (3,) in the world frame and
        ``joint_angles`` (7,) of the arm in radians, float32.
        """
        return {
            "object_position_m": np.asarray(self.env._get_pos_objects()[:3], np.float32),
            "goal_position_m": np.asarray(self.env._target_pos, np.float32).reshape(-1)[:3],
            "joint_angles": self.data.qpos[:7].astype(np.float32),
        }

    def recorded_state(self) -> dict[str, np.ndarray]:
        """``qpos``, ``qvel`` and ``mocap_pose``, padded to one length for all tasks."""
        state = self.state()
        return {
            "qpos": _padded(state.qpos, QPOS_LENGTH),
            "qvel": _padded(state.qvel, QVEL_LENGTH),
            "mocap_pose": np.concatenate([state.mocap_pos_m, state.mocap_quat]),
        }

    def state_at(self, qpos: np.ndarray) -> State:
        """The present state with other coordinates, at rest: (≥ Q,), padding is left out."""
        now = self.state()
        return State(
            np.asarray(qpos)[: len(now.qpos)].astype(np.float64),
            np.zeros_like(now.qvel),
            now.mocap_pos_m,
            now.mocap_quat,
        )

    def state(self) -> State:
        """A copy of all that moves."""
        return State(
            self.data.qpos.copy(),
            self.data.qvel.copy(),
            self.data.mocap_pos[0].copy(),
            self.data.mocap_quat[0].copy(),
        )

    def set_state(self, state: State) -> None:
        """Put everything where a state of the same task and layout has it."""
        import mujoco

        self.data.qpos[:], self.data.qvel[:] = state.qpos, state.qvel
        self.data.mocap_pos[0], self.data.mocap_quat[0] = state.mocap_pos_m, state.mocap_quat
        mujoco.mj_forward(self.model, self.data)

    def geom_poses(self) -> tuple[np.ndarray, np.ndarray]:
        """World poses of all geoms: positions (N, 3) in metres and rotations (N, 3, 3)."""
        return self.data.geom_xpos.copy(), self.data.geom_xmat.reshape(-1, 3, 3).copy()

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
        """Which pixels show the robot, and which the task's objects: two (H, W) bool."""
        geoms = self.segmentation()
        robot, objects = robot_and_object_geoms(self.model, PARTS)
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


_LAYOUT_FIELDS = ("body_pos", "body_quat", "geom_pos", "geom_quat", "site_pos", "site_quat")


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    assert len(values) <= length, f"{len(values)} coordinates do not fit {length}"
    return np.pad(values, (0, length - len(values)))


def make_environment(task: str) -> Any:
    """The Meta-World environment of a task, with the full observation and seeded layouts."""
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise UserError(f"{SIM_HINT} [{error}]") from None
    if task not in ALL_V3_ENVIRONMENTS:
        import difflib

        near = difflib.get_close_matches(task, ALL_V3_ENVIRONMENTS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"simulator: Meta-World has no task {task}{hint}")
    environment = ALL_V3_ENVIRONMENTS[task]()
    # The expert reads the goal, which the default observation hides.
    environment._partially_observable = False
    del environment.sawyer_observation_space
    environment._set_task_called = True
    environment._freeze_rand_vec = False
    environment.seeded_rand_vec = True
    return environment


def make_expert(task: str) -> Any:
    """The scripted policy that Meta-World ships for a task."""
    from metaworld import policies

    special = {"peg-insert-side-v3": "SawyerPegInsertionSideV3Policy"}
    words = task.removesuffix("-v3").split("-")
    name = "Sawyer" + "".join(word.capitalize() for word in words) + "V3Policy"
    return getattr(policies, special.get(task, name))()
