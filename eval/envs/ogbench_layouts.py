"""Where things are at the beginning of each OGBench task, and what its goal is.

OGBench sets its own evaluation goals up with actions from an unseeded generator, so equal seeds do
not give equal episodes. Its mode for collecting data is seeded; a :class:`Layout` starts from that
and puts everything where the task wants it. OGBench's drawer, window and buttons never move: here
they stand elsewhere in every layout, so that a policy has to look.

World frame: OGBench's own, metres, z up, the robot's base at the origin, the floor at z = 0.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.envs.ogbench_tasks import ENVIRONMENT

SIM_HINT = f"simulator: OGBench is not installed; {ENVIRONMENT.install_hint}"

# The hand at the beginning: OGBench's own box, and within 45° of straight ahead.
HAND_M = ((0.25, -0.2, 0.20), (0.6, 0.2, 0.35))
HAND_YAW_RAD = np.pi / 4
# How far furniture stands from where OGBench has it: (low, high) of x and of y.
SHIFT_M = {
    "drawer_base": ((-0.05, 0.08), (-0.03, 0.03)),
    "window": ((0.0, 0.1), (-0.03, 0.03)),
    "buttons": ((-0.05, 0.0), (-0.06, 0.06)),
}
# Where the cube lies: beside the furniture, or alone.
CUBE_M = {"scene": ((0.30, -0.02), (0.44, 0.16)), "cube": ((0.30, -0.3), (0.55, 0.3))}
CUBE_HEIGHT_M = 0.02  # of its middle, lying
FROM_GOAL_M = 0.1  # the cube begins at least this far from its goal
DRAWER_CLOSED, DRAWER_OPEN = 0.0, -0.16
WINDOW_CLOSED, WINDOW_OPEN = 0.0, 0.2
LOCKED, UNLOCKED = 0, 1


@dataclass(frozen=True)
class Layout:
    """A task: which of OGBench's scenes, what is moved, from where to where."""

    scene: str
    """``cube`` (one cube, nothing else) or ``scene`` (drawer, window, two buttons and a cube)."""

    target: str
    """OGBench's kind of the object: ``cube``, ``drawer``, ``window`` or ``button``."""

    button: int = 0
    """Which of the two buttons is pressed."""

    drawer: float = DRAWER_CLOSED
    """The drawer's coordinate at the beginning, metres."""

    window: float = WINDOW_CLOSED
    """The window's coordinate at the beginning, metres."""

    goal: tuple[float, ...] = ()
    """The coordinate that drawer or window must reach, or the cube's (x, y)."""

    @property
    def body(self) -> str:
        """The object's name among the bodies."""
        return f"button_{self.button}" if self.target == "button" else self.target


LAYOUTS = {
    "drawer-open": Layout("scene", "drawer", goal=(DRAWER_OPEN,)),
    "drawer-close": Layout("scene", "drawer", drawer=DRAWER_OPEN, goal=(DRAWER_CLOSED,)),
    "window-open": Layout("scene", "window", goal=(WINDOW_OPEN,)),
    "window-close": Layout("scene", "window", window=WINDOW_OPEN, goal=(WINDOW_CLOSED,)),
    "button-left": Layout("scene", "button", button=0),
    "button-right": Layout("scene", "button", button=1),
    "cube-left": Layout("cube", "cube", goal=(0.425, -0.2)),
    "cube-right": Layout("cube", "cube", goal=(0.425, 0.2)),
}
assert LAYOUTS.keys() == ENVIRONMENT.captions.keys()


def layout_of(task: str) -> Layout:
    """A task's layout.

    Raises:
        UserError: there is no such task.
    """
    if task not in LAYOUTS:
        near = difflib.get_close_matches(task, LAYOUTS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"simulator: OGBench has no task {task}{hint}")
    return LAYOUTS[task]


def make_environment(layout: Layout) -> Any:
    """OGBench's environment of a layout, not yet laid out.

    Raises:
        UserError: OGBench is not installed.
    """
    try:
        from ogbench.manipspace.envs.cube_env import CubeEnv
        from ogbench.manipspace.envs.scene_env import SceneEnv
    except ImportError as error:
        raise UserError(f"{SIM_HINT} [{error}]") from None
    stock, kind = (CubeEnv, "single") if layout.scene == "cube" else (SceneEnv, "scene")

    class WithTable(stock):  # type: ignore[misc, valid-type]
        """A light table top on OGBench's dark floor: factors change either."""

        def add_objects(self, arena_mjcf: Any) -> None:
            super().add_objects(arena_mjcf)
            _add_table(arena_mjcf)

    # visualize_info shows goals and recolours what has reached them: it would tell a policy.
    return WithTable(
        kind,
        mode="data_collection",
        terminate_at_goal=False,
        visualize_info=False,
        ob_type="states",
    )


def _add_table(arena: Any) -> None:
    arena.asset.add(
        "texture",
        name="table",
        type="2d",
        builtin="checker",
        rgb1=(0.62, 0.6, 0.57),
        rgb2=(0.54, 0.52, 0.5),
        width=512,
        height=512,
    )
    arena.asset.add("material", name="table", texture="table", texrepeat=(4, 4), texuniform=True)
    # A millimetre above the floor, seen and not touched: the physics is OGBench's.
    arena.worldbody.add(
        "geom",
        name="table",
        type="plane",
        size=(0.34, 0.5, 0.01),
        pos=(0.42, 0, 0.001),
        material="table",
        contype=0,
        conaffinity=0,
        group=1,
    )


def lay_out(env: Any, layout: Layout, seed: int) -> None:
    """Put everything where a seed has it; equal seeds give equal states, bit for bit."""
    import mujoco

    if env._model is not None:
        for name, position in _STOCK[layout.scene].items():
            env.model.body(name).pos[:] = position
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    # Drawn for every task alike, so that all of a seed's tasks show the same scene.
    _place_hand(env, rng)
    _place_cube(env, layout, rng)
    if layout.scene == "scene":
        _place_furniture(env, layout, rng)
    env._target_task = layout.target
    mujoco.mj_forward(env.model, env.data)
    env.pre_step()
    env.post_step()
    env._success = False


# Where OGBench has what a layout moves.
_STOCK: dict[str, dict[str, tuple[float, float, float]]] = {
    "cube": {},
    "scene": {
        "drawer_base": (0.33, -0.42, 0.084),
        "window": (0.3, 0.3, 0.202),
        "buttonbox_0": (0.58, -0.05, 0.048),
        "buttonbox_1": (0.58, 0.05, 0.048),
    },
}


def _place_hand(env: Any, rng: np.random.Generator) -> None:
    from ogbench.manipspace import lie

    position_m = rng.uniform(*HAND_M)
    turn = lie.SO3.from_z_radians(rng.uniform(-HAND_YAW_RAD, HAND_YAW_RAD))
    pinch = lie.SE3.from_rotation_and_translation(turn @ env._effector_down_rotation, position_m)
    flange = pinch @ env._T_pa
    env.data.qpos[env._arm_joint_ids] = env._ik.solve(
        pos=flange.translation(), quat=flange.rotation().wxyz, curr_qpos=env._home_qpos
    )


def _place_cube(env: Any, layout: Layout, rng: np.random.Generator) -> None:
    goal = np.array(layout.goal) if layout.target == "cube" else None
    while True:
        place = rng.uniform(*CUBE_M[layout.scene])
        if goal is None or np.linalg.norm(place - goal) > FROM_GOAL_M:
            break
    yaw = rng.uniform(0, 2 * np.pi)
    cube = env.data.joint("object_joint_0").qpos
    cube[:3] = *place, CUBE_HEIGHT_M
    cube[3:] = np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
    env._target_block = 0
    target = env._cube_target_mocap_ids[0]
    env.data.mocap_pos[target] = (*(place if goal is None else goal), CUBE_HEIGHT_M)
    env.data.mocap_quat[target] = 1, 0, 0, 0


def _place_furniture(env: Any, layout: Layout, rng: np.random.Generator) -> None:
    model, stock = env.model, _STOCK["scene"]
    shift = {name: rng.uniform(*np.transpose(bounds)) for name, bounds in SHIFT_M.items()}
    for name in stock:
        group = "buttons" if name.startswith("button") else name
        model.body(name).pos[:] = np.add(stock[name], (*shift[group], 0))
    env.data.joint("drawer_slide").qpos[0] = layout.drawer
    env.data.joint("window_slide").qpos[0] = layout.window
    # Drawer and window can move; a button that is to be pressed is still up and red.
    env._cur_button_states = np.array([UNLOCKED, UNLOCKED])
    if layout.target == "button":
        env._cur_button_states[layout.button] = LOCKED
    env._target_button = layout.button
    env._target_button_states = np.array([UNLOCKED, UNLOCKED])
    if layout.target == "drawer":
        env._target_drawer_pos = layout.goal[0]
        model.site("drawer_handle_center_target").pos[1] = layout.goal[0]
    if layout.target == "window":
        env._target_window_pos = layout.goal[0]
        model.site("window_handle_center_target").pos[0] = layout.goal[0]
    env._apply_button_states()


def make_expert(env: Any, layout: Layout) -> Any:
    """The scripted expert that OGBench ships for a kind of object."""
    from ogbench.manipspace.oracles.markov import (
        button_markov,
        cube_markov,
        drawer_markov,
        window_markov,
    )

    experts = {
        "cube": cube_markov.CubeMarkovOracle,
        "drawer": drawer_markov.DrawerMarkovOracle,
        "window": window_markov.WindowMarkovOracle,
        "button": button_markov.ButtonMarkovOracle,
    }
    return experts[layout.target](env=env)


def reset_expert(expert: Any, seed: int) -> None:
    """Begin an episode: where the hand rests afterwards is drawn from numpy's global generator."""
    before = np.random.get_state()
    np.random.seed(seed)
    expert.reset(None, None)
    np.random.set_state(before)
