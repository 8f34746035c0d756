"""What of OGBench's scenes the perturbation factors may touch."""

from __future__ import annotations

from dataclasses import replace

from dynaflip.eval.envs.metaworld_factors import texture_file
from dynaflip.eval.envs.mujoco_appearance import SceneParts
from dynaflip.eval.envs.ogbench_layouts import Layout

# Bodies that come with an object, by its name in a layout.
OBJECT_BODIES = {
    "cube": ("object_0",),
    "drawer": (
        "drawer_base",
        "drawer_link_virtual",
        "drawer_link_virtual_handle",
        "drawer_link",
    ),
    "window": ("window", "windowb_a_virtual_handle", "windowb_a", "windowb_b"),
    "button_0": ("buttonbox_0", "button_0"),
    "button_1": ("buttonbox_1", "button_1"),
}
# Where the hand and the objects go: x and y in metres.
_WORKSPACE_M = ((0.24, 0.64), (-0.36, 0.36))
_DRAWER_AND_WINDOW_M = (-0.22, 0.2)  # y beyond which they stand


def _in_workspace(x_m: float, y_m: float) -> bool:
    (x_low, x_high), (y_low, y_high) = _WORKSPACE_M
    return x_low < x_m < x_high and y_low < y_m < y_high


def _in_workspace_or_furniture(x_m: float, y_m: float) -> bool:
    low, high = _DRAWER_AND_WINDOW_M
    return _in_workspace(x_m, y_m) or ((y_m < low or y_m > high) and x_m < 0.62)


_CUBE = SceneParts(
    robot_body="ur5e/base",
    scene_bodies=("world", "object_target_0"),
    table_materials=("table",),
    floor_materials=("grid",),
    textures={"table_texture": "table", "floor": "grid"},
    texture_file=texture_file,
    look_at_distance_m=0.9,  # along the camera's axis: a point above the middle of the workspace
    distractor_area_m=((-0.1, 0.8), (-0.5, 0.5)),
    task_area=_in_workspace,
)


def parts_of(layout: Layout) -> SceneParts:
    """The parts of a task's scene: what the task is not about counts as furniture."""
    if layout.scene == "cube":
        return _CUBE
    others = [
        body for name, bodies in OBJECT_BODIES.items() if name != layout.body for body in bodies
    ]
    return replace(
        _CUBE,
        scene_bodies=(*_CUBE.scene_bodies, *others),
        task_area=_in_workspace_or_furniture,
    )
