"""Meta-World as a scene that can be rendered, measured, perturbed and restored.

Legend of shapes: H, W image height and width in pixels, Q length of ``qpos``.

World frame: Meta-World's own, metres, z up, the table's top at z = 0. Camera
frame: OpenCV axes (x right, y down, z forward). Pixel centres lie at +0.5.

What it shares with other MuJoCo simulators is in :mod:`dynaflip.eval.envs.mujoco_scene`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import StepResult
from dynaflip.eval.envs.metaworld_factors import PARTS
from dynaflip.eval.envs.metaworld_tasks import ENVIRONMENT
from dynaflip.eval.envs.mujoco_renderer import load_mujoco
from dynaflip.eval.envs.mujoco_scene import MujocoScene, find_camera, padded

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


class Scene(MujocoScene):
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
        model = self.env.model
        if camera.startswith("corner"):
            # Meta-World's corner cameras are upside down. Half a turn about the viewing
            # axis keeps pose and intrinsics true, which flipping the image would not.
            index, quat = find_camera(model, camera), np.empty(4)
            mujoco.mju_mulQuat(quat, model.cam_quat[index], np.array([0.0, 0, 0, 1]))
            model.cam_quat[index] = quat
        self._pristine = {name: getattr(model, name).copy() for name in _LAYOUT_FIELDS}
        self._observation = np.zeros(0)
        self._goal_distance_m: float | None = None
        self.show(model, self.env.data, PARTS, shadows=shadows)

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
        self._goal_distance_m = None
        # The last step of a reset leaves poses one step behind the state.
        mujoco.mj_forward(self.model, self.data)
        return self._observation

    def step(self, action: np.ndarray) -> StepResult:
        """Act for 1/80 s: (4,) hand velocity xyz and gripper effort, each in [-1, 1]."""
        self._observation, reward, terminated, truncated, info = self.env.step(
            np.clip(action, -1.0, 1.0).astype(np.float32)
        )
        self._goal_distance_m = float(info["obj_to_target"])
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
        """Labels that only a simulator knows; policies and encoders must never read them.

        ``object_position_m`` (3,), ``goal_position_m`` (3,) in the world frame and
        ``joint_angles`` (7,) of the arm in radians, float32.
        """
        return {
            "object_position_m": np.asarray(self.env._get_pos_objects()[:3], np.float32),
            "goal_position_m": np.asarray(self.env._target_pos, np.float32).reshape(-1)[:3],
            "joint_angles": self.data.qpos[:7].astype(np.float32),
        }

    def goal_distance_m(self) -> float | None:
        """From the object to its goal, metres, as Meta-World measures it, which knows after a step.

        It says 0 of some tasks whatever happens, and of one the hand's distance: theirs is measured
        here.
        """
        if self._goal_distance_m is None or self.task not in _OWN_DISTANCE:
            return self._goal_distance_m
        known = self.privileged()
        moved, goal = known["object_position_m"], known["goal_position_m"]
        match self.task:
            case "assembly-v3":  # the position is that of the nut's handle
                moved = self.env._get_site_pos("RoundNut")
            case "disassemble-v3":  # lifted so high is enough
                return max(0.0, float(goal[2] - moved[2]))
            case "hammer-v3":
                driven_m = float(self.data.joint("NailSlideJoint").qpos[0])
                moved = self.env._get_site_pos("nailHead") + np.array([0, driven_m, 0])
        return float(np.linalg.norm(moved - goal))

    def recorded_state(self) -> dict[str, np.ndarray]:
        """``qpos``, ``qvel`` and ``mocap_pose``, padded to one length for all tasks."""
        state = self.state()
        return {
            "qpos": padded(state.qpos, QPOS_LENGTH),
            "qvel": padded(state.qvel, QVEL_LENGTH),
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


# Tasks whose obj_to_target is not the object's distance from its goal.
_OWN_DISTANCE = frozenset(
    f"{task}-v3"
    for task in ("assembly", "box-close", "disassemble", "door-open", "hammer", "lever-pull")
)
_LAYOUT_FIELDS = ("body_pos", "body_quat", "geom_pos", "geom_quat", "site_pos", "site_quat")


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
