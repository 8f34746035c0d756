"""Perturbation factors of MuJoCo environments: applied without recompiling, taken back exactly.

The factors at the end are the built-in ones of :mod:`dynaflip.eval.perturbations`. They change a
:class:`MujocoAppearance`, which an environment has as ``appearance`` together with what of its
model they may touch (:class:`SceneParts`); a second MuJoCo simulator gives its own parts and has
all of them.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dynaflip.eval.envs.mujoco_renderer import Shape
from dynaflip.eval.perturbations import Amount, Factor, level_of, physical

_FIELDS = (
    "light_diffuse",
    "light_ambient",
    "light_specular",
    "light_dir",
    "mat_rgba",
    "geom_rgba",
    "cam_pos",
    "cam_quat",
)
_HEADLIGHT = ("ambient", "diffuse", "specular")

# Distractors come in whole numbers, so their level and not their magnitude counts.
DISTRACTORS_AT_LEVEL = {1: 1, 2: 2, 3: 3, 4: 6, 5: 9}


@dataclass(frozen=True)
class SceneParts:
    """What of a MuJoCo model the factors may touch; names are the model's, lengths in metres."""

    robot_body: str
    """Root of the robot's bodies."""

    scene_bodies: tuple[str, ...]
    """Bodies that are neither robot nor object: the rest are the task's objects."""

    table_materials: tuple[str, ...]
    """Materials that ``table_colour`` tints."""

    floor_materials: tuple[str, ...]
    """Materials that ``floor`` tints."""

    textures: Mapping[str, str]
    """``table_texture`` and ``floor`` → the model's texture that they replace."""

    texture_file: Callable[[str], Path]
    """Where a texture of :data:`TEXTURES` lies."""

    look_at_distance_m: float
    """From the camera to the point that it is moved about."""

    distractor_area_m: tuple[tuple[float, float], tuple[float, float]]
    """Where on the table, at height 0, distractors lie: (low, high) of x and of y, world frame."""

    task_area: Callable[[float, float], bool]
    """Whether a point of the table (x, y in metres) must stay free, because the task is there."""


class MujocoAppearance:
    """The appearance of one model: the original one, and the perturbed one.

    Args:
        model: MuJoCo's, unperturbed.
        camera_id: the camera that the factor ``camera`` moves.
        parts: what of the model the factors may touch.

    Attributes:
        shadows: whether a factor wants shadows rendered.
        shapes: bodies that a factor has put into the draw list.
    """

    def __init__(self, model: Any, camera_id: int, parts: SceneParts) -> None:
        self.model, self.camera_id, self.parts = model, camera_id, parts
        self.shadows = False
        self.shapes: list[Shape] = []
        self._original = {name: getattr(model, name).copy() for name in _FIELDS}
        self._original_headlight = {n: getattr(model.vis.headlight, n).copy() for n in _HEADLIGHT}
        self._original_textures = {
            factor: model.tex_data[_texture_slice(model, name)].copy()
            for factor, name in parts.textures.items()
        }
        self._object_geoms, self._object_materials = _object_materials(model, parts)
        self._changed_textures: set[str] = set()

    def changed_textures(self) -> list[int]:
        """Ids of the textures that a renderer must upload to show them."""
        names = self.parts.textures
        return [int(self.model.texture(names[f]).id) for f in sorted(self._changed_textures)]

    def restore(self) -> list[int]:
        """Take all perturbation back; returns the textures to upload again."""
        for name, value in self._original.items():
            getattr(self.model, name)[:] = value
        for name, value in self._original_headlight.items():
            getattr(self.model.vis.headlight, name)[:] = value
        for factor in self._changed_textures:
            where = _texture_slice(self.model, self.parts.textures[factor])
            self.model.tex_data[where] = self._original_textures[factor]
        uploads = self.changed_textures()
        self._changed_textures.clear()
        self.shadows, self.shapes = False, []
        return uploads

    def move_camera(self, azimuth_rad: float, elevation_rad: float) -> None:
        """Put the camera on a sphere about the point it looks at.

        Angles are from the unperturbed pose: azimuth counter-clockwise seen from
        above, elevation upwards.
        """
        import mujoco

        original_pos = self._original["cam_pos"][self.camera_id]
        original_quat = self._original["cam_quat"][self.camera_id]
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, original_quat)
        right, backward = matrix.reshape(3, 3)[:, 0], matrix.reshape(3, 3)[:, 2]
        look_at = original_pos - self.parts.look_at_distance_m * backward
        turn, tilt, both = np.empty(4), np.empty(4), np.empty(4)
        mujoco.mju_axisAngle2Quat(turn, np.array([0.0, 0, 1]), azimuth_rad)
        mujoco.mju_axisAngle2Quat(tilt, right, -elevation_rad)
        mujoco.mju_mulQuat(both, turn, tilt)
        offset = np.empty(3)
        mujoco.mju_rotVecQuat(offset, original_pos - look_at, both)
        quat = np.empty(4)
        mujoco.mju_mulQuat(quat, both, original_quat)
        self.model.cam_pos[self.camera_id] = look_at + offset
        self.model.cam_quat[self.camera_id] = quat

    def scale_lights(self, rgb: np.ndarray) -> None:
        """Multiply all lights by a colour (3,)."""
        for name in ("light_diffuse", "light_ambient", "light_specular"):
            getattr(self.model, name)[:] *= rgb
        for name in _HEADLIGHT:
            getattr(self.model.vis.headlight, name)[:] *= rgb

    def tilt_lights(self, angle_rad: float, direction_rad: float) -> None:
        """Tilt all lights together about a horizontal axis."""
        import mujoco

        axis = np.array([np.cos(direction_rad), np.sin(direction_rad), 0.0])
        quat, tilted = np.empty(4), np.empty(3)
        mujoco.mju_axisAngle2Quat(quat, axis, angle_rad)
        for index in range(self.model.nlight):
            mujoco.mju_rotVecQuat(tilted, self._original["light_dir"][index], quat)
            # A light from below the table would light nothing that is seen.
            tilted[2] = min(tilted[2], -0.15)
            self.model.light_dir[index] = tilted / np.linalg.norm(tilted)

    def deepen_shadows(self, strength: float) -> None:
        """Move light into the lamps that cast shadows, and have shadows rendered."""
        self.shadows = True
        headlight = self.model.vis.headlight
        casts = self.model.light_castshadow.astype(bool)
        self.model.light_diffuse[casts] *= 1 + 1.5 * strength
        self.model.light_diffuse[~casts] *= 1 - strength
        headlight.diffuse[:] *= 1 - strength
        headlight.ambient[:] *= 1 - 0.5 * strength

    def tint_materials(self, names: tuple[str, ...], hue: float, strength: float) -> None:
        """Multiply materials by a share of a hue in [0, 1]."""
        tint = 1 + strength * (_hue_rgb(hue) - 1)
        for index in range(self.model.nmat):
            if self.model.mat(index).name in names:
                self.model.mat_rgba[index, :3] *= tint

    def blend_texture(self, factor: str, file_name: str, mix: float) -> None:
        """Mix a texture's image, by a share in [0, 1], into the one that a factor replaces."""
        name = self.parts.textures[factor]
        texture = self.model.texture(name)
        height, width = int(texture.height[0]), int(texture.width[0])
        # A cube texture of six faces is stored one below the other.
        side = min(height, width)
        image = _texture(self.parts.texture_file(file_name), side, width)
        new = np.tile(image, (height // side, 1, 1)).ravel()
        original = self._original_textures[factor].astype(np.float32)
        blended = np.rint(original + mix * (new - original)).astype(np.uint8)
        self.model.tex_data[_texture_slice(self.model, name)] = blended
        self._changed_textures.add(factor)

    def colour_objects(self, hue: float, strength: float) -> None:
        """Mix a hue in [0, 1] into the colours of the task's objects."""
        rng = random.Random(hue)
        for field, indices in (
            ("geom_rgba", self._object_geoms),
            ("mat_rgba", self._object_materials),
        ):
            for index in indices:
                # Parts of an object keep colours of their own, about the hue that was drawn.
                target = _hue_rgb(hue + rng.uniform(-0.08, 0.08)) * rng.uniform(0.6, 1.0)
                rgba = getattr(self.model, field)[index]
                rgba[:3] += strength * (target - rgba[:3])


def camera_path_angles(value: Mapping[str, Any], time_s: float) -> tuple[float, float]:
    """Where a moving camera is on its sphere: (azimuth, elevation) in radians.

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
        rgba = (*_hue_rgb(rng.random()) * rng.uniform(0.4, 1.0), 1.0)
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


def _hue_rgb(hue: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, 1.0, 1.0))


def _texture_slice(model: Any, name: str) -> slice:
    texture = model.texture(name)
    size = int(texture.height[0]) * int(texture.width[0]) * int(texture.nchannel[0])
    start = int(texture.adr[0])
    return slice(start, start + size)


@lru_cache(maxsize=32)
def _texture(path: Path, height: int, width: int) -> np.ndarray:
    """(height, width, 3) float32 of an image file."""
    from PIL import Image

    with Image.open(path) as image:
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32)


def robot_and_object_geoms(model: Any, parts: SceneParts) -> tuple[list[int], list[int]]:
    """Geoms of the robot, and of the task's objects; the rest is furniture."""
    bodies = {model.body(parts.robot_body).id}
    for body in range(model.nbody):
        if int(model.body_parentid[body]) in bodies:
            bodies.add(body)
    robot: list[int] = []
    objects: list[int] = []
    for geom in range(model.ngeom):
        body = int(model.geom_bodyid[geom])
        if body in bodies:
            robot.append(geom)
        elif model.body(body).name not in parts.scene_bodies:
            objects.append(geom)
    return robot, objects


def _object_materials(model: Any, parts: SceneParts) -> tuple[list[int], list[int]]:
    """Geoms and materials of the task's objects; a material shared with the scene is left out."""
    _, geoms = robot_and_object_geoms(model, parts)
    materials: set[int] = set()
    others: set[int] = set()
    for geom in range(model.ngeom):
        material = int(model.geom_matid[geom])
        if material >= 0:
            (materials if geom in geoms else others).add(material)
    return geoms, sorted(materials - others)


# How each factor is applied ---------------------------------------------------------------

Value = Mapping[str, Any]


def _light_gain(env: Any, value: Value, amount: Amount) -> None:
    env.appearance.scale_lights(np.full(3, amount["gain"]))


def _light_tint(env: Any, value: Value, amount: Amount) -> None:
    tint = 1 + amount["strength"] * (_hue_rgb(value["hue"]) - 1)
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
