"""OGBench's manipulation as a scene that can be rendered, measured, perturbed and restored.

Legend of shapes: H, W image height and width in pixels, Q length of ``qpos``, V of ``qvel``.

World frame: OGBench's own, metres, z up, the robot's base at the origin, the floor at z = 0. Camera
frame: OpenCV axes (x right, y down, z forward). Pixel centres lie at +0.5.

OGBench makes the arm transparent in its own images. Here it is opaque, because a transparent
surface has no depth, no segmentation and no flow. For the same reason the window has no panes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaflip.eval.envs.base import StepResult
from dynaflip.eval.envs.mujoco_renderer import load_mujoco
from dynaflip.eval.envs.mujoco_scene import MujocoScene, padded
from dynaflip.eval.envs.ogbench_factors import parts_of
from dynaflip.eval.envs.ogbench_layouts import (
    SIM_HINT,
    lay_out,
    layout_of,
    make_environment,
    make_expert,
    reset_expert,
)
from dynaflip.eval.envs.ogbench_tasks import ENVIRONMENT

# Long enough for every task; shorter states are padded with zeros.
QPOS_LENGTH = 28
QVEL_LENGTH = 28


@dataclass(frozen=True)
class State:
    """Physical state of a scene; restoring it gives the same image.

    ``qpos`` (Q,), ``qvel`` (V,) and ``buttons`` (0 or 2 states) as arrays, and the ``contact`` that
    the gripper feels, in [0, 1].
    """

    qpos: np.ndarray
    qvel: np.ndarray
    buttons: np.ndarray
    contact: float


class Scene(MujocoScene):
    """One OGBench task under one camera.

    Args:
        task: its id, such as ``drawer-open``.
        height_px, width_px: size of every image.
        camera: name of the camera.
        shadows: render shadows from the beginning (slow; normally a perturbation).

    Raises:
        UserError: no such task, OGBench is not installed, or no display to render with.
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
        self.layout = layout_of(task)
        load_mujoco(SIM_HINT)
        self.env = make_environment(self.layout)
        self.expert = make_expert(self.env, self.layout)
        lay_out(self.env, self.layout, 0)
        # OGBench recolours its model as it steps; what is rendered is a copy of it.
        shown = copy.copy(self.env.model)
        _remove_panes(shown)
        self._recoloured = _recoloured_parts(shown)
        self.show(shown, self.env.data, parts_of(self.layout), shadows=shadows)
        self._info: dict[str, Any] = {}
        self._contact = 0.0
        self._look()

    # Moving -----------------------------------------------------------------------------

    def reset(self, seed: int) -> np.ndarray:
        """Lay the objects out by a seed; the same seed gives the same scene. Returns (16,)."""
        lay_out(self.env, self.layout, seed)
        reset_expert(self.expert, seed)
        self._look()
        return self._observation()

    def step(self, action: np.ndarray) -> StepResult:
        """Act for 1/20 s: (5,) move by x, y, z, turn, close the gripper, each in [-1, 1].

        1 is 5 cm, 0.3 rad (about the vertical) and the gripper's whole way.
        """
        self.env.step(np.clip(action, -1.0, 1.0).astype(np.float64))
        self._look()
        success = bool(self.env._success)
        return StepResult(self._observation(), float(success), success=success)

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action (5,) float32 in the present state."""
        return np.asarray(self.expert.select_action(None, self._info), np.float32)

    def proprioception(self) -> np.ndarray:
        """Proprioception, (7,) float32: hand position, its yaw, and what the gripper feels.

        The hand's position (m, world frame), cosine and sine of its turn about the vertical, the
        gripper (0 open, 1 closed) and its contact with something between the fingers in [0, 1].
        """
        yaw = self._info["proprio/effector_yaw"][0]
        return np.array(
            [
                *self._info["proprio/effector_pos"],
                np.cos(yaw),
                np.sin(yaw),
                self._info["proprio/gripper_opening"][0],
                self._contact,
            ],
            np.float32,
        )

    def privileged(self) -> dict[str, np.ndarray]:
        """Labels that only a simulator knows; policies and encoders must never read them.

        ``object_position_m`` (3,), ``goal_position_m`` (3,) in the world frame (of the cube, of a
        handle, of a button's top) and ``joint_angles`` (6,) of the arm in radians, float32.
        """
        positions = {name: values[:3] for name, values in self._object().items()}
        joints = self._info["proprio/joint_pos"]
        return {
            name: np.asarray(value, np.float32)
            for name, value in {**positions, "joint_angles": joints}.items()
        }

    def goal_distance_m(self) -> float:
        """From the object (cube, handle, button) to its goal, metres."""
        return float(np.linalg.norm(np.subtract(*self._object().values())))

    def recorded_state(self) -> dict[str, np.ndarray]:
        """``qpos`` and ``qvel``, padded to one length for all tasks."""
        return {
            "qpos": padded(self.data.qpos, QPOS_LENGTH),
            "qvel": padded(self.data.qvel, QVEL_LENGTH),
        }

    def state_at(self, qpos: np.ndarray) -> State:
        """The present state with other coordinates, at rest: (≥ Q,), padding is left out."""
        now = self.state()
        return State(
            np.asarray(qpos)[: len(now.qpos)].astype(np.float64),
            np.zeros_like(now.qvel),
            now.buttons,
            0.0,
        )

    def state(self) -> State:
        """A copy of all that moves."""
        buttons = getattr(self.env, "_cur_button_states", np.zeros(0, int))
        return State(self.data.qpos.copy(), self.data.qvel.copy(), buttons.copy(), self._contact)

    def set_state(self, state: State) -> None:
        """Put everything where a state of the same task and layout has it."""
        import mujoco

        self.data.qpos[:], self.data.qvel[:] = state.qpos, state.qvel
        if len(state.buttons):
            self.env._cur_button_states = state.buttons.copy()
            self.env._apply_button_states()
        mujoco.mj_forward(self.env.model, self.data)
        self._look()
        self._contact = state.contact

    # Inside -----------------------------------------------------------------------------

    def _look(self) -> None:
        """Read what is known of the present state, and take over the colours that go with it."""
        self._info = self.env.compute_ob_info()
        self._contact = float(self._info["proprio/gripper_contact"][0])
        for field, index in self._recoloured:
            self.appearance.recolour(field, index, getattr(self.env.model, field)[index])

    def _object(self) -> dict[str, np.ndarray]:
        """The object's and the goal's position in the world frame."""
        info, layout = self._info, self.layout
        match layout.target:
            case "cube":
                now, goal = info["privileged/block_0_pos"], info["privileged/target_block_pos"]
            case "button":
                top = info["privileged/target_button_top_pos"]
                pressed = info[f"privileged/button_{layout.button}_pos"][0]
                now, goal = np.add(top, (0, 0, pressed)), np.add(top, (0, 0, -0.022))
            case kind:
                now = info[f"privileged/{kind}_handle_pos"]
                goal = info[f"privileged/target_{kind}_handle_pos"]
        return {"object_position_m": np.asarray(now), "goal_position_m": np.asarray(goal)}

    def _observation(self) -> np.ndarray:
        """Proprioception (7,), object and goal (6,), cosine and sine of the cube's quarter turn,
        and the gripper's speed: (16,) float64, privileged."""
        yaw = 4 * self._info["privileged/block_0_yaw"][0]
        turn = (np.cos(yaw), np.sin(yaw)) if self.layout.target == "cube" else (1.0, 0.0)
        speed = self._info["proprio/gripper_vel"]
        return np.concatenate([self.proprioception(), *self._object().values(), turn, speed])


def _remove_panes(model: Any) -> None:
    """Make the window's glass invisible."""
    for index in range(model.ngeom):
        material = model.geom_matid[index]
        if material >= 0 and model.mat(material).name == "window_glass":
            model.geom_rgba[index] = 0


def _recoloured_parts(model: Any) -> list[tuple[str, int]]:
    """Parts that OGBench recolours when a button is pressed: (field of the model, index)."""
    geoms = [i for i in range(model.ngeom) if model.geom(i).name.startswith("btngeom")]
    handles = [i for i in range(model.nmat) if model.mat(i).name.endswith("_handle")]
    return [("geom_rgba", i) for i in geoms] + [("mat_rgba", i) for i in handles]
