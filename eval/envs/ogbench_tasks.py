"""OGBench's manipulation (Park et al. 2025, arXiv 2410.20092) as far as it is known without it.

A UR5e with a two-finger gripper before a cube, or before a drawer, a window and two buttons.
OGBench's benchmark is conditioned on images of goals; a policy on one image has none, so each task
here is one goal that its words name, and what varies by seed is where things are. Left and right
are the image's.
"""

from __future__ import annotations

from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.eval.envs.mujoco_variables import worker_variables
from dynaflip.eval.perturbations import FACTORS

CAPTIONS: dict[str, tuple[str, ...]] = {
    "drawer-open": (
        "open the drawer",
        "pull the drawer out by its handle",
        "slide the drawer open",
    ),
    "drawer-close": ("close the drawer", "push the drawer shut", "slide the drawer in"),
    "window-open": (
        "open the window",
        "slide the window open by its handle",
        "push the window aside",
    ),
    "window-close": ("close the window", "slide the window shut", "push the window closed"),
    "button-left": (
        "press the left button",
        "push down the button on the left",
        "press the button next to the drawer",
    ),
    "button-right": (
        "press the right button",
        "push down the button on the right",
        "press the button next to the window",
    ),
    "cube-left": (
        "put the cube down on the left",
        "pick up the cube and carry it to the left side",
        "move the red block to the left",
    ),
    "cube-right": (
        "put the cube down on the right",
        "pick up the cube and carry it to the right side",
        "move the red block to the right",
    ),
}

# ogb3: random actions solve none, behaviour cloning on the state of the simulator nearly all.
TASK_SETS: dict[str, tuple[str, ...]] = {
    "ogb3": ("drawer-open", "window-open", "window-close"),
    "ogb8": tuple(CAPTIONS),
}

ENVIRONMENT = EnvironmentSpec(
    name="ogbench",
    make="dynaflip.eval.envs.ogbench:Scene",
    captions=CAPTIONS,
    action_names=("move_x", "move_y", "move_z", "turn", "close_gripper"),
    proprioception_names=(
        "hand_x_m",
        "hand_y_m",
        "hand_z_m",
        "hand_yaw_cos",
        "hand_yaw_sin",
        "gripper_closed",
        "gripper_contact",
    ),
    control_hz=20.0,  # 25 steps of 2 ms an action
    horizon_steps=200,
    camera="front_pixels",
    factors=FACTORS,
    task_sets=TASK_SETS,
    default_tasks={"collect": ("ogb8",), "evaluate": ("ogb3",), "sweep": ("drawer-open",)},
    default_steps={"collect": 120, "evaluate": 100},
    promotion_tasks=("ogb3",),
    noise_dims=3,  # the hand's translation
    has_depth=True,
    robot="ur5e",
    # Textures of the factors are Meta-World's, the same in both simulators.
    packages=("ogbench", "dm-control", "mujoco", "metaworld"),
    revision=1,
    install_hint="run `pip install 'dynaflip[ogbench]'`",
    worker_variables=worker_variables,
)
