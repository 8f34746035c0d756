"""What each task is called in words: several phrasings, one meaning.

The phrasings of a task form one caption group, whose name is the task id.
"""

from __future__ import annotations

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

KNOWN_TASKS = tuple(CAPTIONS)
