"""Meta-World (Yu et al. 2019) as far as it is known without importing it: tasks, sets, sizes.

The phrasings of a task form one caption group, whose name is the task id.
"""

from __future__ import annotations

from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.eval.envs.mujoco_variables import worker_variables
from dynaflip.eval.perturbations import FACTORS

CAPTIONS: dict[str, tuple[str, ...]] = {
    "assembly-v3": (
        "put the ring onto the peg",
        "pick up the wrench and slip its ring over the peg",
        "assemble the nut on the post",
    ),
    "bin-picking-v3": (
        "move the block from the red bin to the blue bin",
        "pick the cube out of one bin and drop it into the other",
        "transfer the block into the blue box",
    ),
    "button-press-topdown-v3": (
        "press the button from above",
        "push the button down",
        "push down the button on the box",
    ),
    "button-press-v3": (
        "press the button on the front of the box",
        "push the button in",
        "push the button away from you",
    ),
    "coffee-button-v3": (
        "push the button of the coffee machine",
        "start the coffee machine",
        "press the coffee maker's button",
    ),
    "door-close-v3": ("close the door", "push the door shut", "shut the safe's door"),
    "door-open-v3": (
        "open the door",
        "pull the door open by its handle",
        "swing the safe's door open",
    ),
    "drawer-close-v3": ("close the drawer", "push the drawer shut", "slide the drawer in"),
    "drawer-open-v3": (
        "open the drawer",
        "pull the drawer out by its handle",
        "slide the drawer open",
    ),
    "faucet-close-v3": (
        "close the faucet",
        "turn the tap clockwise",
        "rotate the faucet's handle to shut it",
    ),
    "faucet-open-v3": (
        "open the faucet",
        "turn the tap counter-clockwise",
        "rotate the faucet's handle to open it",
    ),
    "hammer-v3": (
        "hammer the nail into the block",
        "pick up the hammer and hit the nail",
        "drive the nail in with the hammer",
    ),
    "handle-press-v3": ("press the handle down", "push the lever down", "push down the handle"),
    "peg-insert-side-v3": (
        "insert the peg into the hole",
        "put the stick into the hole of the block",
        "slide the peg sideways into the block",
    ),
    "pick-place-v3": (
        "pick up the puck and hold it at the target",
        "lift the puck to the goal",
        "carry the red cylinder to the target",
    ),
    "plate-slide-v3": (
        "slide the plate into the goal",
        "push the puck into the net",
        "shove the disc forward into the cabinet",
    ),
    "push-v3": (
        "push the puck to the target",
        "slide the puck over the table to the goal",
        "shove the red cylinder to the target",
    ),
    "reach-v3": (
        "reach the target with the gripper",
        "move the hand to the goal",
        "bring the gripper to the red point",
    ),
    "sweep-into-v3": (
        "sweep the block into the hole",
        "push the cube into the square hole",
        "move the block along the table into the hole",
    ),
    "window-close-v3": ("close the window", "slide the window shut", "push the window closed"),
    "window-open-v3": ("open the window", "slide the window open", "push the window aside"),
}

# r3m5: the five tasks of R3M's evaluation (Nair et al. 2022). mt10: Meta-World's own multi-task
# set. mw15: fifteen tasks of this project's choice, because the paper (arXiv 2605.30350)
# evaluates on fifteen and does not list them.
TASK_SETS: dict[str, tuple[str, ...]] = {
    "r3m5": (
        "assembly-v3",
        "bin-picking-v3",
        "button-press-topdown-v3",
        "drawer-open-v3",
        "hammer-v3",
    ),
    "mt10": (
        "reach-v3",
        "push-v3",
        "pick-place-v3",
        "door-open-v3",
        "drawer-open-v3",
        "drawer-close-v3",
        "button-press-topdown-v3",
        "peg-insert-side-v3",
        "window-open-v3",
        "window-close-v3",
    ),
    "mw15": (
        "assembly-v3",
        "bin-picking-v3",
        "button-press-topdown-v3",
        "drawer-open-v3",
        "hammer-v3",
        "button-press-v3",
        "coffee-button-v3",
        "door-open-v3",
        "drawer-close-v3",
        "faucet-open-v3",
        "handle-press-v3",
        "plate-slide-v3",
        "sweep-into-v3",
        "window-close-v3",
        "window-open-v3",
    ),
}


# Scripted experts that solve nearly every layout, with motion that the camera sees.
_COLLECTED = (
    "assembly-v3",
    "bin-picking-v3",
    "button-press-topdown-v3",
    "drawer-open-v3",
    "hammer-v3",
    "button-press-v3",
    "door-open-v3",
    "drawer-close-v3",
    "faucet-open-v3",
    "plate-slide-v3",
    "window-close-v3",
    "window-open-v3",
)


ENVIRONMENT = EnvironmentSpec(
    name="metaworld",
    make="dynaflip.eval.envs.metaworld:Scene",
    captions=CAPTIONS,
    action_names=("velocity_x", "velocity_y", "velocity_z", "gripper_effort"),
    proprioception_names=("hand_x_m", "hand_y_m", "hand_z_m", "gripper"),
    control_hz=80.0,  # 5 steps of 2.5 ms an action
    horizon_steps=500,  # further steps are refused
    camera="corner4",
    factors=FACTORS,
    task_sets=TASK_SETS,
    default_tasks={
        "collect": _COLLECTED,
        "evaluate": ("r3m5",),
        "sweep": ("button-press-topdown-v3", "drawer-open-v3"),
        "ablate": ("drawer-open-v3", "button-press-topdown-v3", "hammer-v3"),
    },
    default_steps={"collect": 200, "evaluate": 150},
    promotion_tasks=("r3m5",),
    task_suffix="-v3",
    noise_dims=3,  # the hand's velocity; the gripper's effort is left alone
    has_depth=True,
    robot="sawyer",
    packages=("metaworld", "mujoco"),
    install_hint="run `pip install 'dynaflip[sim]'`",
    worker_variables=worker_variables,
    default=True,
)
