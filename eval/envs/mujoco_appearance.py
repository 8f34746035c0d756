"""A MuJoCo model's appearance as perturbations change it, without recompiling it.

A MuJoCo simulator gives its :class:`SceneParts`, has a :class:`MujocoAppearance` as ``appearance``
and the camera's pose without perturbation as ``unperturbed_camera_pose``, and brings changes to its
renderer in ``appearance_changed`` and ``restore_appearance``. It then has every factor of
:mod:`dynaflip.eval.envs.mujoco_factors`, and all that they changed is taken back exactly.
"""

from __future__ import annotations

import colorsys
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dynaflip.eval.envs.mujoco_renderer import Shape

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


@dataclass(frozen=True)
class SceneParts:
    """Parts of a MuJoCo model that factors may touch; names are the model's, lengths in metres."""

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
        # (field, index) → (strength, colour) that is mixed into an object's part.
        self._object_colours: dict[tuple[str, int], tuple[float, np.ndarray]] = {}

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
        self._object_colours.clear()
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
        tint = 1 + strength * (hue_rgb(hue) - 1)
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
                target = hue_rgb(hue + rng.uniform(-0.08, 0.08)) * rng.uniform(0.6, 1.0)
                self._object_colours[field, index] = strength, target
                rgba = getattr(self.model, field)[index]
                rgba[:3] += strength * (target - rgba[:3])

    def recolour(self, field: str, index: int, rgba: np.ndarray) -> None:
        """Give a part another unperturbed colour (4,), under what factors show now.

        Args:
            field: ``geom_rgba`` or ``mat_rgba``.
            index: of the geom or material.
            rgba: as the simulator has it, such as of a button that was pressed.
        """
        self._original[field][index] = rgba
        shown = getattr(self.model, field)[index]
        shown[:] = rgba
        if (field, index) in self._object_colours:
            strength, target = self._object_colours[field, index]
            shown[:3] += strength * (target - shown[:3])


def hue_rgb(hue: float) -> np.ndarray:
    """A fully saturated colour (3,) of a hue in [0, 1]."""
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
