"""The built-in perturbation factors: how each is drawn and applied to a MuJoCo environment.

Every factor changes the environment's ``appearance``, see
:mod:`dynaflip.eval.envs.mujoco_appearance`. The table of their names is in
:mod:`dynaflip.eval.perturbations`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from dynaflip.eval.envs.mujoco_appearance import SceneParts, hue_rgb
from dynaflip.eval.envs.mujoco_renderer import Shape
from dynaflip.eval.perturbations import Amount, Factor, level_of, physical

# Distractors come in whole numbers, so their level and not their magnitude counts.
DISTRACTORS_AT_LEVEL = {1: 1, 2: 2, 3: 3, 4: 6, 5: 9}


def camera_path_angles(value: Mapping[str, Any], time_s: float) -> tuple[float, float]:
    """Place of a moving camera on its sphere: (azimuth, elevation) in radians.

    ``value`` is that of the factor ``camera`` with a ``path``: periods in seconds and
    phases of two sines, whose sum stays within the angle of the magnitude.
    """
    angle_rad = np.deg2rad(physical("camera", value)["angle_deg"])
    path = value["path"]
    waves = [
        np.sin(2 * np.pi * (time_s / path["period_s"][axis] + path["phase"][axis]))
        for axis in (0, 1)
    ]
    return angle_rad * waves[0] / np.sqrt(2), 0.5 * angle_rad * waves[1] / np.sqrt(2)


def distractor_shapes(
    value: Mapping[str, Any], camera_pose: np.ndarray, matrix: np.ndarray, parts: SceneParts
) -> list[Shape]:
    """The bodies that lie about on the table; a smaller count shows the first of them.

    Args:
        value: of the factor ``distractors``.
        camera_pose: camera → world (4, 4) of the unperturbed camera, that has them in view.
        matrix: its camera matrix (3, 3).
        parts: where on the table there is room.
    """
    count = int(physical("distractors", value)["count"])
    rng = random.Random(value["seed"])
    shapes: list[Shape] = []
    x_range, y_range = parts.distractor_area_m
    spacing_m = 0.12
    while len(shapes) < count:
        kind = rng.choice(("mjGEOM_BOX", "mjGEOM_CYLINDER", "mjGEOM_SPHERE", "mjGEOM_ELLIPSOID"))
        half = [rng.uniform(0.022, 0.045) for _ in range(3)]
        height = half[0] if kind == "mjGEOM_SPHERE" else half[2]
        if kind == "mjGEOM_CYLINDER":
            half, height = [half[0], half[1], 0.0], half[1]
        x, y = rng.uniform(*x_range), rng.uniform(*y_range)
        yaw = rng.uniform(0, 2 * np.pi)
        rgba = (*hue_rgb(rng.random()) * rng.uniform(0.4, 1.0), 1.0)
        spacing_m *= 0.999  # where it gets crowded they may lie closer
        if parts.task_area(x, y):
            continue
        if not _well_in_view(np.array([x, y, height]), camera_pose, matrix):
            continue
        if any(np.hypot(x - s.position_m[0], y - s.position_m[1]) < spacing_m for s in shapes):
            continue
        cos, sin = float(np.cos(yaw)), float(np.sin(yaw))
        rotation = (cos, -sin, 0.0, sin, cos, 0.0, 0.0, 0.0, 1.0)
        shapes.append(Shape(kind, tuple(half), (x, y, height), rotation, rgba))
    return shapes


def _well_in_view(point_m: np.ndarray, pose: np.ndarray, matrix: np.ndarray) -> bool:
    x, y, z = (point_m - pose[:3, 3]) @ pose[:3, :3]
    half_px = matrix[:2, 2]
    offset = np.abs([x, y]) / z * np.diag(matrix)[:2]
    return bool(z > 0.3 and (offset < 0.93 * half_px).all())


def _camera_angles(angle_deg: float, value: Mapping[str, Any]) -> tuple[float, float]:
    if "path" in value:
        return camera_path_angles(value, 0.0)
    angle_rad, direction_rad = np.deg2rad(angle_deg), value["direction_rad"]
    # Half as far up and down as around: lower, and the table's edge hides the task.
    return angle_rad * np.cos(direction_rad), 0.5 * angle_rad * np.sin(direction_rad)


# How each factor is applied ---------------------------------------------------------------

Value = Mapping[str, Any]


def _light_gain(env: Any, value: Value, amount: Amount) -> None:
    env.appearance.scale_lights(np.full(3, amount["gain"]))


def _light_tint(env: Any, value: Value, amount: Amount) -> None:
    tint = 1 + amount["strength"] * (hue_rgb(value["hue"]) - 1)
    env.appearance.scale_lights(tint / tint.mean())


def _light_direction(env: Any, value: Value, amount: Amount) -> None:
    env.appearance.tilt_lights(np.deg2rad(amount["angle_deg"]), value["direction_rad"])


def _shadows(env: Any, value: Value, amount: Amount) -> None:
    env.appearance.deepen_shadows(amount["strength"])


def _table_colour(env: Any, value: Value, amount: Amount) -> None:
    appearance = env.appearance
    appearance.tint_materials(appearance.parts.table_materials, value["hue"], amount["strength"])


def _table_texture(env: Any, value: Value, amount: Amount) -> None:
    env.appearance.blend_texture("table_texture", value["texture"], amount["mix"])


def _floor(env: Any, value: Value, amount: Amount) -> None:
    appearance = env.appearance
    appearance.blend_texture("floor", value["texture"], amount["mix"])
    appearance.tint_materials(appearance.parts.floor_materials, value["hue"], amount["mix"] / 2)


def _camera(env: Any, value: Value, amount: Amount) -> None:
    env.appearance.move_camera(*_camera_angles(amount["angle_deg"], value))


def _object_colour(env: Any, value: Value, amount: Amount) -> None:
    env.appearance.colour_objects(value["hue"], amount["strength"])


def _distractors(env: Any, value: Value, amount: Amount) -> None:
    env.appearance.shapes = distractor_shapes(
        value, env.unperturbed_camera_pose, env.intrinsics(), env.appearance.parts
    )


# The factors ------------------------------------------------------------------------------

_HUE = {"hue": (0.0, 1.0)}
_DIRECTION = {"direction_rad": (0.0, 2 * math.pi)}

# Textures that look alike are in one split; the unperturbed ones of the table (wood2), the floor
# (floor2) and the walls (metal) are in none.
TEXTURES = {
    "pretrain": (
        "light_wood.png",
        "light_wood_v2.png",
        "light_wood_v3.jpeg",
        "light_wood_v3.png",
        "wood_light.png",
        "wood1.png",
        "metal1.png",
        "metal2.png",
        "plaster1.png",
    ),
    "dev": ("marble.png", "brick1.png", "wood.png", "navy_blue.png", "floor1.png"),
    "test": (
        "granite.png",
        "tennis.png",
        "darkwood.png",
        "wood3.png",
        "wood4.png",
        "real_door.png",
    ),
}

LIGHT_GAIN = Factor(  # all lights times this
    amount=lambda value: {"gain": math.exp(value["sign"] * 1.15 * value["u"])},
    change=_light_gain,
    seen=True,
    signed=True,
)
LIGHT_TINT = Factor(  # share of the hue in the lights' colour
    amount=lambda value: {"strength": 0.85 * value["u"]},
    change=_light_tint,
    seen=True,
    directions=_HUE,
)
LIGHT_DIRECTION = Factor(  # lights tilted together about a horizontal axis
    amount=lambda value: {"angle_deg": 110.0 * value["u"]},
    change=_light_direction,
    seen=True,
    directions=_DIRECTION,
)
TABLE_COLOUR = Factor(  # share of the hue that multiplies the texture
    amount=lambda value: {"strength": 0.9 * value["u"]},
    change=_table_colour,
    seen=True,
    directions=_HUE,
)
TABLE_TEXTURE = Factor(  # share of the new texture; steep at first
    amount=lambda value: {"mix": value["u"] ** 0.4},
    change=_table_texture,
    seen=True,
    categories={"texture": TEXTURES},
)
CAMERA = Factor(  # arc about the point that is looked at
    amount=lambda value: {"angle_deg": 35.0 * value["u"]},
    change=_camera,
    seen=True,
    directions=_DIRECTION,
)
FLOOR = Factor(  # share of the new texture, and half as much of the hue
    amount=lambda value: {"mix": value["u"] ** 0.4},
    change=_floor,
    directions=_HUE,
    categories={"texture": TEXTURES},
)
OBJECT_COLOUR = Factor(  # share of the hue in the objects' colour
    amount=lambda value: {"strength": value["u"]},
    change=_object_colour,
    directions=_HUE,
)
DISTRACTORS = Factor(
    amount=lambda value: {"count": float(DISTRACTORS_AT_LEVEL.get(level_of(value["u"]), 0))},
    change=_distractors,
    seeded=True,
)
SHADOWS = Factor(  # share of the lights' energy moved into the one that casts
    amount=lambda value: {"strength": value["u"]},
    change=_shadows,
)
