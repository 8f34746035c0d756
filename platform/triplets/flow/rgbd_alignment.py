"""Direct RGB-D alignment of surface patches with later frames, by colour and depth.

A point on a uniformly coloured arm slides along it under any tracker of small windows, and
its neighbours slide with it. The shape fixes the motion: the surface patch around a point
(pixels of similar depth, static ones left out) is moved as a rigid body until both the image
and the depth of the later frame agree with it. That is the direct alignment of RGB-D
odometry (Steinbrücker, Sturm and Cremers 2011; Kerl, Sturm and Cremers 2013), for every
patch: Gauss-Newton with robust weights (Geman and McClure 1987).

M patches, S samples of each. Coordinates are metric XYZ in the camera frame of the
first frame; float32, because this is where the time goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Floats
from dynaflip.platform.triplets.flow.config import AlignmentConfig

# Blur of the two levels of an image, standard deviation in pixels.
BLUR_PX = (2.5, 0.8)
# Depths whose 3 × 3 surroundings spread by more than this share lie on an edge.
_EDGE_SHARE = 0.03
# A sample this many scales behind what is seen is covered, and not compared.
_COVERED = 6.0
# Misfit of depth where a frame has an edge or no depth.
_UNSURE_MISFIT = 0.6
# Longest step of an iteration.
_MAX_TURN_RAD = 0.3
_MAX_SHIFT_SHARE = 0.05


@dataclass(frozen=True)
class SurfacePatches:
    """``points_m`` (M, S, 3) in the first frame, ``own`` (M, S) bool: the sample is part of the
    patch, ``grey`` (2, M, S): its brightness by level, ``middle_m`` (M, 3)."""

    points_m: Floats
    own: np.ndarray
    grey: Floats
    middle_m: Floats

    @cached_property
    def local_m(self) -> Floats:
        """(3, M, S): x, y and z of the samples about their patch's middle."""
        return np.ascontiguousarray(np.moveaxis(self.points_m - self.middle_m[:, None], -1, 0))


@dataclass(frozen=True)
class Motion:
    """Rigid motions about the patches' middles: ``rotation`` (M, 3, 3), ``shift_m`` (M, 3)."""

    rotation: Floats
    shift_m: Floats

    @staticmethod
    def none(patches: int) -> Motion:
        """No motion."""
        turn = np.tile(np.eye(3, dtype=np.float32), (patches, 1, 1))
        return Motion(turn, np.zeros((patches, 3), np.float32))

    def of(self, points_m: Floats, middle_m: Floats) -> Floats:
        """(M, S, 3) points after the motion of their patch."""
        turn = self.rotation.transpose(0, 2, 1)[:, None]
        x, y, z = np.moveaxis(points_m - middle_m[:, None], -1, 0)[..., None]
        turned = x * turn[:, :, 0] + y * turn[:, :, 1] + z * turn[:, :, 2]
        return turned + (middle_m + self.shift_m)[:, None]

    def again(self, before: Motion) -> Motion:
        """The step from ``before`` to here made once more."""
        turn = np.matmul(self.rotation, before.rotation.transpose(0, 2, 1))
        return Motion(np.matmul(turn, self.rotation), 2 * self.shift_m - before.shift_m)

    def about(self, middle_m: Floats, other: np.ndarray) -> Motion:
        """The motions of the patches ``other`` (M,), as motions about the own middles (M, 3)."""
        rotation, theirs_m = self.rotation[other], middle_m[other]
        moved_m = np.einsum("mij,mj->mi", rotation, middle_m - theirs_m)
        return Motion(rotation, moved_m + theirs_m + self.shift_m[other] - middle_m)


class View:
    """A later frame, ready to be compared with: brightness and depth with their gradients.

    Args:
        grey: (H, W) float32 by level.
        depth_m: (H, W), NaN where there is none.
        intrinsics_px: (4,) fx, fy, cx, cy.
        from_first: (4, 4), the first camera's frame to this camera's.
    """

    def __init__(
        self, grey: list[Floats], depth_m: Floats, intrinsics_px: Floats, from_first: Floats
    ) -> None:
        self.intrinsics_px, self.from_first = intrinsics_px, from_first
        self.height, self.width = depth_m.shape
        self.grey = [_with_gradient(level) for level in grey]
        known = np.isfinite(depth_m)
        filled = np.where(known, depth_m, 0).astype(np.float32)
        around = np.ones((3, 3), np.uint8)
        spread = cv2.dilate(filled, around) - cv2.erode(filled, around)
        smooth = known & (spread <= _EDGE_SHARE * filled)
        sure = smooth.astype(np.float32)
        self.depth = np.dstack([_with_gradient(filled), sure])
        # Most comparisons need no gradient, and time goes with the channels.
        self.plain_grey, self.plain_depth = grey, np.dstack([filled, sure])


@dataclass(frozen=True)
class _Comparison:
    """A view's pixels where the samples of moved patches would be; all (M, S) or (M, S, C).

    ``seen_m`` (3, M, S) in this camera's frame; ``grey`` and ``depth`` with their gradients
    if asked for; ``colour`` and ``behind`` are the residuals in units of their scale;
    ``inside`` the image and ``sure`` of depth, bool.
    """

    seen_m: Floats
    grey: Floats
    depth: Floats
    colour: Floats
    behind: Floats
    inside: np.ndarray
    sure: np.ndarray


def misfit(
    patches: SurfacePatches, motion: Motion, view: View, level: int, config: AlignmentConfig
) -> Floats:
    """(M,) mean robust misfit of each patch's samples in [0, 1]: 0 fits everywhere."""
    seen = _compare(patches, motion, view, level, config)
    colour = seen.colour**2 / (1 + seen.colour**2)
    depth = np.where(seen.sure, seen.behind**2 / (1 + seen.behind**2), _UNSURE_MISFIT)
    each = np.where(seen.inside, (colour + depth) / 2, 1.0) * patches.own
    return each.sum(-1) / np.maximum(patches.own.sum(-1), 1)


def agreeing(
    patches: SurfacePatches,
    motion: Motion,
    view: View,
    config: AlignmentConfig,
    *,
    grey: float,
    depth_share: float,
) -> Floats:
    """(M,) share of each patch's samples in view that the view shows where they would be.

    Args:
        grey: difference of brightness (of 255), and
        depth_share: of depth, as a share of it, that are still the same.
    """
    seen = _compare(patches, motion, view, 1, config)
    same = seen.sure & (np.abs(seen.colour) * config.grey_scale <= grey)
    same &= np.abs(seen.behind) * config.depth_scale_share <= depth_share
    return (same.sum(-1) / np.maximum(seen.inside.sum(-1), 1)).astype(np.float32)


def refine(
    patches: SurfacePatches,
    motion: Motion,
    view: View,
    level: int,
    iterations: int,
    config: AlignmentConfig,
) -> Motion:
    """Gauss-Newton steps from a motion, each patch on its own.

    A residual r with the slope J over (turn, shift) is lowered by solving
    (Σ w J Jᵀ + damping) step = −Σ w J r, where w falls with the residual.
    """
    for _ in range(iterations):
        seen = _compare(patches, motion, view, level, config, gradients=True)
        slopes = _slopes(patches, motion, seen, view, config)
        # An occluder tells nothing about the colour behind it.
        bare = seen.inside & ~(seen.sure & (seen.behind < -_COVERED))
        weights = np.concatenate(
            [bare / (1 + seen.colour**2) ** 2, seen.sure / (1 + seen.behind**2) ** 2], -1
        ).astype(np.float32)
        values = np.concatenate([seen.colour, seen.behind], -1)
        weighted = (slopes * weights[..., None]).transpose(0, 2, 1)
        normal = np.matmul(weighted, slopes)
        step = _solve(normal, np.matmul(weighted, values[..., None]), patches, config)
        most_m = _MAX_SHIFT_SHARE * patches.middle_m[:, 2:]
        turn = _rotations(np.clip(step[:, :3], -_MAX_TURN_RAD, _MAX_TURN_RAD))
        shift_m = motion.shift_m + np.clip(step[:, 3:], -most_m, most_m)
        motion = Motion(np.matmul(turn, motion.rotation), shift_m)
    return motion


def _compare(
    patches: SurfacePatches,
    motion: Motion,
    view: View,
    level: int,
    config: AlignmentConfig,
    *,
    gradients: bool = False,
) -> _Comparison:
    camera = view.from_first[:3, :3]
    middle_m = (patches.middle_m + motion.shift_m) @ camera.T + view.from_first[:3, 3]
    seen_m = _turned(camera @ motion.rotation, patches.local_m)
    seen_m += middle_m.T[..., None]
    fx, fy, cx, cy = view.intrinsics_px
    half = np.float32(0.5)  # OpenCV has the centre of the first pixel at 0
    z = np.maximum(seen_m[2], np.float32(1e-3))
    x, y = seen_m[0] / z * fx + (cx - half), seen_m[1] / z * fy + (cy - half)
    inside = patches.own & (x > 0) & (y > 0) & (x < view.width - 1) & (y < view.height - 1)
    images = (
        (view.grey[level], view.depth) if gradients else (view.plain_grey[level], view.plain_depth)
    )
    grey, depth = (np.asarray(cv2.remap(p, x, y, cv2.INTER_LINEAR), np.float32) for p in images)
    bright = grey[..., 0] if gradients else grey
    colour = (bright - patches.grey[level]) * np.float32(1 / config.grey_scale)
    behind = (depth[..., 0] / z - 1) * np.float32(1 / config.depth_scale_share)
    sure = inside & (depth[..., -1] > np.float32(0.999))
    return _Comparison(seen_m, grey, depth, colour, behind, inside, sure)


def _turned(rotation: Floats, local_m: Floats) -> Floats:
    """(M, 3, 3) rotations of (3, M, S) points; by planes, which is several times faster."""
    r = rotation.transpose(1, 2, 0)[..., None]
    return np.stack(
        [r[k, 0] * local_m[0] + r[k, 1] * local_m[1] + r[k, 2] * local_m[2] for k in range(3)]
    )


def _slopes(
    patches: SurfacePatches, motion: Motion, seen: _Comparison, view: View, config: AlignmentConfig
) -> Floats:
    """(M, 2 S, 6) slopes of colour, then of depth, over turn and shift."""
    fx, fy = view.intrinsics_px[:2]
    x, y, z = seen.seen_m[..., None]
    z = np.maximum(z, np.float32(1e-3))
    right, down = x / z, y / z
    parts = []
    arm_m = np.moveaxis(_turned(motion.rotation, patches.local_m), 0, -1)
    for image, scale in (
        (seen.grey, np.float32(config.grey_scale)),
        (seen.depth, np.float32(config.depth_scale_share) * z),
    ):
        by_x, by_y = image[..., 1:2] * fx / z, image[..., 2:3] * fy / z
        by_z = -(by_x * right + by_y * down)
        if image is seen.depth:
            by_z = by_z - 1  # the sample itself goes further away
        toward = np.concatenate([by_x, by_y, by_z], -1) / scale @ view.from_first[:3, :3]
        parts.append(np.concatenate([np.cross(arm_m, toward), toward], -1))
    return np.concatenate(parts, 1)


def _solve(
    normal: Floats, slope: Floats, patches: SurfacePatches, config: AlignmentConfig
) -> Floats:
    """(M, 6) steps; turning is held back as much as shifting is at the patch's own size."""
    apart = ((patches.points_m - patches.middle_m[:, None]) ** 2).sum(-1) * patches.own
    reach_m = np.sqrt(apart.sum(-1) / np.maximum(patches.own.sum(-1), 1))
    unit = np.ones((len(reach_m), 6))
    unit[:, :3] = reach_m[:, None]
    # A hundredth of the distance is the step that the damping is stated for.
    unit /= 0.01 * patches.middle_m[:, 2:]
    normal = normal.astype(np.float64)
    normal[:, np.arange(6), np.arange(6)] += config.damping * unit**2 + 1e-9
    return -np.linalg.solve(normal, slope.astype(np.float64))[..., 0].astype(np.float32)


def _with_gradient(image: Floats) -> Floats:
    right = cv2.Scharr(image, cv2.CV_32F, 1, 0, scale=1 / 32)
    down = cv2.Scharr(image, cv2.CV_32F, 0, 1, scale=1 / 32)
    return np.dstack([image, right, down])


def _rotations(vectors: Floats) -> Floats:
    """(M, 3) rotation vectors to (M, 3, 3) (Rodrigues' formula)."""
    angle = np.linalg.norm(vectors, axis=-1)[:, None, None] + 1e-12
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    k = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3) / angle
    turned = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * np.matmul(k, k)
    return turned.astype(np.float32)
