"""Perturbation values applied to a MuJoCo model without recompiling, and taken back exactly.

Values are those of :mod:`dynaflip.eval.perturbations`.
"""

from __future__ import annotations

import colorsys
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dynaflip.eval.envs.mujoco_renderer import Shape
from dynaflip.eval.perturbations import physical

LOOK_AT_DISTANCE_M = 1.1  # along corner4's axis: a point above the middle of the table

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
_TEXTURES = {"table_texture": "T_table", "floor": "T_floor"}
_TABLE_MATERIALS = ("table_wood",)
_FLOOR_MATERIALS = ("basic_floor",)
# Bodies that are neither robot nor furniture of the scene are the task's objects.
_SCENE_BODIES = ("world", "tablelink", "RetainingWall", "mocap")


class Factors:
    """The look of one model: what it was, and what perturbation makes of it.

    Args:
        model: MuJoCo's, in its unperturbed look.
        camera_id: the camera that the factor ``camera`` moves.
    """

    def __init__(self, model: Any, camera_id: int) -> None:
        self.model, self.camera_id = model, camera_id
        self._kept = {name: getattr(model, name).copy() for name in _FIELDS}
        self._kept_headlight = {n: getattr(model.vis.headlight, n).copy() for n in _HEADLIGHT}
        self._kept_textures = {
            factor: model.tex_data[_texture_slice(model, name)].copy()
            for factor, name in _TEXTURES.items()
        }
        self._object_geoms, self._object_materials = _object_looks(model)
        self._changed_textures: set[str] = set()

    def restore(self) -> list[int]:
        """Take all perturbation back; returns the textures to upload again."""
        for name, value in self._kept.items():
            getattr(self.model, name)[:] = value
        for name, value in self._kept_headlight.items():
            getattr(self.model.vis.headlight, name)[:] = value
        changed = sorted(self._changed_textures)
        for factor in changed:
            self.model.tex_data[_texture_slice(self.model, _TEXTURES[factor])] = (
                self._kept_textures[factor]
            )
        self._changed_textures.clear()
        return [self.model.texture(_TEXTURES[factor]).id for factor in changed]

    def apply(self, values: dict[str, Any]) -> list[int]:
        """Apply values to the unperturbed model; returns the textures to upload.

        Distractors and shadows are the renderer's: see :func:`distractor_shapes`.
        """
        uploads = []
        for factor, value in values.items():
            amount = physical(factor, value)
            if factor == "light_gain":
                self._scale_lights(np.full(3, amount["gain"]))
            elif factor == "light_tint":
                colour = _hue_rgb(value["hue"])
                tint = 1 + amount["strength"] * (colour - 1)
                self._scale_lights(tint / tint.mean())
            elif factor == "light_direction":
                self._tilt_lights(np.deg2rad(amount["angle_deg"]), value["direction_rad"])
            elif factor == "shadows":
                self._deepen_shadows(amount["strength"])
            elif factor == "table_colour":
                self._tint_materials(_TABLE_MATERIALS, value["hue"], amount["strength"])
            elif factor in _TEXTURES:
                uploads.append(self._blend_texture(factor, value["texture"], amount["mix"]))
                if factor == "floor":
                    self._tint_materials(_FLOOR_MATERIALS, value["hue"], amount["mix"] / 2)
            elif factor == "camera":
                self.move_camera(*_camera_angles(amount["angle_deg"], value))
            elif factor == "object_colour":
                self._colour_objects(value["hue"], amount["strength"])
        return uploads

    def move_camera(self, azimuth_rad: float, elevation_rad: float) -> None:
        """Put the camera on a sphere about the point it looks at.

        Angles are from the unperturbed pose: azimuth counter-clockwise seen from
        above, elevation upwards.
        """
        import mujoco

        kept_pos = self._kept["cam_pos"][self.camera_id]
        kept_quat = self._kept["cam_quat"][self.camera_id]
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, kept_quat)
        right, backward = matrix.reshape(3, 3)[:, 0], matrix.reshape(3, 3)[:, 2]
        look_at = kept_pos - LOOK_AT_DISTANCE_M * backward
        turn, tilt, both = np.empty(4), np.empty(4), np.empty(4)
        mujoco.mju_axisAngle2Quat(turn, np.array([0.0, 0, 1]), azimuth_rad)
        mujoco.mju_axisAngle2Quat(tilt, right, -elevation_rad)
        mujoco.mju_mulQuat(both, turn, tilt)
        arm = np.empty(3)
        mujoco.mju_rotVecQuat(arm, kept_pos - look_at, both)
        quat = np.empty(4)
        mujoco.mju_mulQuat(quat, both, kept_quat)
        self.model.cam_pos[self.camera_id] = look_at + arm
        self.model.cam_quat[self.camera_id] = quat

    def _scale_lights(self, rgb: np.ndarray) -> None:
        for name in ("light_diffuse", "light_ambient", "light_specular"):
            getattr(self.model, name)[:] *= rgb
        for name in _HEADLIGHT:
            getattr(self.model.vis.headlight, name)[:] *= rgb

    def _tilt_lights(self, angle_rad: float, direction_rad: float) -> None:
        import mujoco

        axis = np.array([np.cos(direction_rad), np.sin(direction_rad), 0.0])
        quat, tilted = np.empty(4), np.empty(3)
        mujoco.mju_axisAngle2Quat(quat, axis, angle_rad)
        for index in range(self.model.nlight):
            mujoco.mju_rotVecQuat(tilted, self._kept["light_dir"][index], quat)
            # A light from below the table would light nothing that is seen.
            tilted[2] = min(tilted[2], -0.15)
            self.model.light_dir[index] = tilted / np.linalg.norm(tilted)

    def _deepen_shadows(self, strength: float) -> None:
        headlight = self.model.vis.headlight
        casts = self.model.light_castshadow.astype(bool)
        self.model.light_diffuse[casts] *= 1 + 1.5 * strength
        self.model.light_diffuse[~casts] *= 1 - strength
        headlight.diffuse[:] *= 1 - strength
        headlight.ambient[:] *= 1 - 0.5 * strength

    def _tint_materials(self, names: tuple[str, ...], hue: float, strength: float) -> None:
        tint = 1 + strength * (_hue_rgb(hue) - 1)
        for index in range(self.model.nmat):
            if self.model.mat(index).name in names:
                self.model.mat_rgba[index, :3] *= tint

    def _blend_texture(self, factor: str, file_name: str, mix: float) -> int:
        texture = self.model.texture(_TEXTURES[factor])
        where = _texture_slice(self.model, _TEXTURES[factor])
        height, width = int(texture.height[0]), int(texture.width[0])
        # A cube texture of six faces is stored one below the other.
        side = min(height, width)
        new = np.tile(_texture(file_name, side, width), (height // side, 1, 1)).ravel()
        kept = self._kept_textures[factor].astype(np.float32)
        self.model.tex_data[where] = np.rint(kept + mix * (new - kept)).astype(np.uint8)
        self._changed_textures.add(factor)
        return int(texture.id)

    def _colour_objects(self, hue: float, strength: float) -> None:
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


def camera_path_angles(value: dict[str, Any], time_s: float) -> tuple[float, float]:
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
    value: dict[str, Any], camera_pose: np.ndarray, matrix: np.ndarray
) -> list[Shape]:
    """The bodies that lie about on the table; a smaller count shows the first of them.

    Args:
        value: of the factor ``distractors``.
        camera_pose: camera → world (4, 4) of the unperturbed camera, that has them in view.
        matrix: its camera matrix (3, 3).
    """
    count = int(physical("distractors", value)["count"])
    rng = random.Random(value["seed"])
    shapes: list[Shape] = []
    spacing_m = 0.12
    while len(shapes) < count:
        kind = rng.choice(("mjGEOM_BOX", "mjGEOM_CYLINDER", "mjGEOM_SPHERE", "mjGEOM_ELLIPSOID"))
        half = [rng.uniform(0.022, 0.045) for _ in range(3)]
        height = half[0] if kind == "mjGEOM_SPHERE" else half[2]
        if kind == "mjGEOM_CYLINDER":
            half, height = [half[0], half[1], 0.0], half[1]
        x, y = rng.uniform(-0.1, 0.62), rng.uniform(0.24, 0.95)
        yaw = rng.uniform(0, 2 * np.pi)
        rgba = (*_hue_rgb(rng.random()) * rng.uniform(0.4, 1.0), 1.0)
        spacing_m *= 0.999  # where it gets crowded they may lie closer
        # The middle of the table is where the task happens: it stays free.
        if x < 0.26 and y > 0.42:
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


def _camera_angles(angle_deg: float, value: dict[str, Any]) -> tuple[float, float]:
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
def _texture(file_name: str, height: int, width: int) -> np.ndarray:
    import metaworld
    from PIL import Image

    path = Path(metaworld.__file__).parent / "assets" / "textures" / file_name
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32)


def robot_and_object_geoms(model: Any) -> tuple[list[int], list[int]]:
    """Geoms of the robot, and of the task's objects; the rest is furniture."""
    bodies = {model.body("base").id}
    for body in range(model.nbody):
        if int(model.body_parentid[body]) in bodies:
            bodies.add(body)
    robot: list[int] = []
    objects: list[int] = []
    for geom in range(model.ngeom):
        body = int(model.geom_bodyid[geom])
        if body in bodies:
            robot.append(geom)
        elif model.body(body).name not in _SCENE_BODIES:
            objects.append(geom)
    return robot, objects


def _object_looks(model: Any) -> tuple[list[int], list[int]]:
    """Geoms and materials of the task's objects; a material shared with the scene is left out."""
    _, geoms = robot_and_object_geoms(model)
    materials: set[int] = set()
    others: set[int] = set()
    for geom in range(model.ngeom):
        material = int(model.geom_matid[geom])
        if material >= 0:
            (materials if geom in geoms else others).add(material)
    return geoms, sorted(materials - others)
