"""The parts of Meta-World's scenes that the perturbation factors may touch."""

from __future__ import annotations

from pathlib import Path

from dynaflip.eval.envs.mujoco_appearance import SceneParts


def texture_file(name: str) -> Path:
    """File of a texture of the factors, among Meta-World's assets."""
    import metaworld

    return Path(metaworld.__file__).parent / "assets" / "textures" / name


def _middle_of_the_table(x_m: float, y_m: float) -> bool:
    return x_m < 0.26 and y_m > 0.42


PARTS = SceneParts(
    robot_body="base",
    scene_bodies=("world", "tablelink", "RetainingWall", "mocap"),
    table_materials=("table_wood",),
    floor_materials=("basic_floor",),
    textures={"table_texture": "T_table", "floor": "T_floor"},
    texture_file=texture_file,
    look_at_distance_m=1.1,  # along corner4's axis: a point above the middle of the table
    distractor_area_m=((-0.1, 0.62), (0.24, 0.95)),
    task_area=_middle_of_the_table,
)
