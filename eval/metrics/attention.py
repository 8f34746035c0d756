"""Attention of a policy's fitted read-out to an image, and its shares on robot and object.

A read-out that attends over tokens has ``attention(tokens)``, one that reads positions
``positions(tokens)``: see :class:`dynaflip.eval.policies.readouts.base.TokenPooling`. A token's
attention is spread evenly over the pixels of its cell; what the token knows of may lie outside of
it, since its receptive field is larger.
Legend of shapes: B images, H, W size, T tokens of all scales together, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from dynaflip.eval.envs.base import Env
from dynaflip.eval.expert_views import act_as_expert
from dynaflip.eval.metrics.saliency import overlay
from dynaflip.eval.policies.encoder_policy import EncoderPolicy
from dynaflip.eval.policies.readouts.grid import TokenGrid
from dynaflip.eval.rollout import EpisodeStart, see

MOMENT_S = 0.5  # after the beginning: in Meta-World the hand has reached the object, or almost


@dataclass(frozen=True)
class Moments:
    """Images of a task in the middle of the expert's episodes, under some conditions."""

    conditions: tuple[str, ...]  # (B,) names
    images: np.ndarray  # (B, H, W, 3) uint8
    robot: np.ndarray | None  # (B, H, W) bool; None where robot and objects are not told apart
    objects: np.ndarray | None


@dataclass(frozen=True)
class Reading:
    """Attention to B images or positions in them: one of the two."""

    heat: np.ndarray | None = None  # (B, H, W) float32, sums to 1 an image
    points_px: np.ndarray | None = None  # (B, P, 2) float32: x to the right, y down

    def share(self, masks: np.ndarray) -> np.ndarray:
        """(B,) in [0, 1]: how much of it lies on masks (B, H, W) bool."""
        if self.heat is not None:
            return np.asarray((self.heat * masks).sum((1, 2)))
        assert self.points_px is not None
        height, width = masks.shape[1:]
        column, row = np.moveaxis(np.floor(self.points_px).astype(int), 2, 0)
        row, column = row.clip(0, height - 1), column.clip(0, width - 1)
        return np.asarray(masks[np.arange(len(masks))[:, None], row, column].mean(1))

    def drawn(self, index: int, image: np.ndarray) -> np.ndarray:
        """An image (H, W, 3) uint8 at twice its size, with heat or points over it."""
        large = twice(image)
        if self.heat is not None:
            return overlay(large, self.heat[index])
        assert self.points_px is not None
        return _with_points(large, 2 * self.points_px[index])


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of policies at the same moments of a task."""

    moments: Moments
    readings: dict[str, Reading]  # by digest of the policy


def twice(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 at twice its size: lines on it are finer."""
    return cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)


def moments_of(scene: Env, starts: Mapping[str, Sequence[EpisodeStart]]) -> Moments:
    """The same moments under every condition; without an expert they are the initial states.

    Args:
        scene: of a task, unperturbed; unperturbed again afterwards.
        starts: condition → initial states, of equal layouts under all conditions.
    """
    segmented = type(scene).robot_and_object is not Env.robot_and_object
    first, *_ = starts.values()
    views: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in starts}
    for index, start in enumerate(first):
        scene.reset(start.layout_seed)
        if scene.has_expert():
            act_as_expert(scene, MOMENT_S)
        for name, of_condition in starts.items():
            assert of_condition[index].layout_seed == start.layout_seed
            scene.apply(of_condition[index].factors)
            views[name].append((see(scene), *(scene.robot_and_object() if segmented else ())))
        scene.restore()
    names = tuple(name for name, some in views.items() for _ in some)
    columns = [np.stack(c) for c in zip(*(v for some in views.values() for v in some), strict=True)]
    robot, objects = columns[1:] if segmented else (None, None)
    return Moments(names, columns[0], robot, objects)


def reading_of(policy: EncoderPolicy, images: np.ndarray) -> Reading | None:
    """Attention of a fitted policy on images; None where its read-out says nothing of places.

    Args:
        policy: fitted.
        images: (B, H, W, 3) uint8.
    """
    if policy.reader is None:
        return None
    readout: Any = policy.reader.readout
    height, width = images.shape[1:3]
    with torch.no_grad():
        if hasattr(readout, "attention"):
            weights = readout.attention(policy.tokens(images)).mean((1, 2)).numpy()
            return Reading(heat=_spread(weights, policy.reader.grids, height, width))
        if hasattr(readout, "positions"):
            positions = readout.positions(policy.tokens(images)).numpy()
            return Reading(points_px=(positions + 1) / 2 * np.array([width, height], np.float32))
    return None


def _with_points(image: np.ndarray, points_px: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8, greyed, with points (P, 2) drawn on it."""
    drawn = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    for x, y in points_px:
        place = (int(x), int(y))
        cv2.circle(drawn, place, 4, (0, 0, 0), -1, cv2.LINE_AA)
        cv2.circle(drawn, place, 3, (255, 176, 0), -1, cv2.LINE_AA)
    return drawn


def _spread(weights: np.ndarray, grids: Sequence[TokenGrid], height: int, width: int) -> np.ndarray:
    """Tokens' weights (B, T) over the pixels of their cells: (B, H, W) float32."""
    heat = np.zeros((len(weights), height, width), np.float32)
    parts = np.split(weights, np.cumsum([grid.places for grid in grids])[:-1], axis=1)
    for part, grid in zip(parts, grids, strict=True):
        row, column = (
            ((np.arange(size) + 0.5) / size * cells).astype(int)
            for size, cells in ((height, grid.rows), (width, grid.columns))
        )
        pixels = np.bincount(row, minlength=grid.rows)[row][:, None] * np.bincount(column)[column]
        cells = part.reshape(-1, grid.rows, grid.columns)
        heat += cells[:, row[:, None], column] / pixels
    return heat / heat.sum((1, 2), keepdims=True)  # cells smaller than a pixel are not seen
