"""Perturbations of recorded images, where there is no simulator to perturb: light, lens and view.

:data:`IMAGE_FACTORS` is the one table of them: name → how it is drawn and applied, a
:class:`~dynaflip.eval.perturbations.Factor` whose ``change`` is given a :class:`FrameView`.
Magnitudes and their ranges are those of the simulator's factors: level by level, dev and test draw
from ranges that never meet. What a magnitude means is in :func:`strength_rows`, beside what
pretraining's own augmentation reaches, because an encoder that was pretrained on a change has an
advantage there.

Legend of shapes: N frames of an episode, H, W image size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.perturbations import LEVELS, Amount, Factor, magnitude_range
from dynaflip.plugins import ExtensionPoint

# Name → where its Factor stands. They are applied in this order, which is that of reports.
IMAGE_FACTORS = ExtensionPoint(
    "image_factor",
    {
        "crop": "dynaflip.eval.image_perturbations:CROP",
        "occlusion": "dynaflip.eval.image_perturbations:OCCLUSION",
        "light": "dynaflip.eval.image_perturbations:LIGHT",
        "tint": "dynaflip.eval.image_perturbations:TINT",
        "blur": "dynaflip.eval.image_perturbations:BLUR",
        "noise": "dynaflip.eval.image_perturbations:NOISE",
    },
    contract="dynaflip.eval.perturbations.Factor",
)
IMAGE_FACTOR_NAMES = tuple(IMAGE_FACTORS.table)
# Raised when the same values give other pixels.
IMAGE_VERSION = 1


@dataclass
class FrameView:
    """Frames of one episode through one camera; a factor's ``change`` replaces ``pixels``."""

    pixels: np.ndarray  # (N, H, W, 3) float32 RGB, 0…255; values beyond are cut off at the end
    frames: Sequence[int]  # their numbers in the episode
    camera: int = 0  # number of the camera


def image_factor(name: str) -> Factor:
    """The factor of a name, an installed package's, or ``class:MODULE:NAME``.

    Raises:
        UserError: there is none, or it is no :class:`~dynaflip.eval.perturbations.Factor`.
    """
    resolved = IMAGE_FACTORS.resolve(name, "factors")
    if not isinstance(resolved, Factor):
        raise UserError(f"factors: {name} is a {type(resolved).__name__}, not a Factor")
    return resolved


def check_changes_frames(name: str) -> None:
    """Refuse a factor that changes no pixel: it would be measured as perfect robustness.

    Raises:
        UserError: strong values leave an image of noise as it was, or another shape.
    """
    plain = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    for number in range(3):
        seen = perturb(plain, draw_values("dev", str(number), [name], max(LEVELS)), [0])
        if seen.shape != plain.shape:
            raise UserError(f"factors: {name} makes images of shape {plain.shape} {seen.shape}")
        if (seen != plain).any():
            return
    raise UserError(
        f"factors: {name} changes no pixel at its strongest; its change must replace view.pixels"
    )


def draw_values(split: str, key: str, names: Sequence[str], level: int) -> dict[str, Any]:
    """Draw an episode's values; equal arguments give equal values.

    Args:
        split: ``dev`` or ``test``.
        key: tells this draw from others, such as the episode's id.
        names: of the factors.
        level: 1…5.

    Returns:
        ``{factor: {"u": magnitude, …}}``, JSON-able; each factor has a stream of its own.
    """
    return {
        name: image_factor(name).draw(split, level, random.Random(f"{split}/{key}/{level}/{name}"))
        for name in names
    }


def perturb(
    images: np.ndarray, values: Mapping[str, Any], frames: Sequence[int], camera: int = 0
) -> np.ndarray:
    """Perturb frames of an episode: (N, H, W, 3) uint8 RGB → the same, a copy.

    Args:
        images: (N, H, W, 3) uint8.
        values: of :func:`draw_values`; the same for all frames of an episode.
        frames: (N,) numbers in the episode: noise differs from frame to frame.
        camera: number of the camera: noise differs from camera to camera.
    """
    if not values:
        return images.copy()
    view = FrameView(images.astype(np.float32), frames, camera)
    for name in sorted(values, key=_place):
        factor = image_factor(name)
        factor.change(view, values[name], factor.amount(values[name]))
    return np.rint(view.pixels).clip(0, 255).astype(np.uint8)


def strength_rows(
    names: Sequence[str], levels: Sequence[int], augmentation: Mapping[str, Any] | None = None
) -> list[list[str]]:
    """Ranges of dev and test in physical words: factor, level, dev, test, pretraining's.

    Args:
        names: of the factors.
        levels: 1…5.
        augmentation: settings ``data`` of a pretraining; None where it is not known.
    """
    rows = []
    for name in names:
        said = "unknown" if augmentation is None else augmentation_of(name, augmentation)
        for level in levels:
            ranges = [_range_text(name, magnitude_range(split, level)) for split in ("dev", "test")]
            rows.append([name, str(level), *ranges, said])
    return rows


def augmentation_of(name: str, settings: Mapping[str, Any]) -> str:
    """A pretraining's augmentation of the same kind, in words.

    Args:
        name: of a factor.
        settings: its settings ``data``.
    """
    if name == "crop":
        side = float(settings.get("crop_min_share", 1.0))
        return "none" if side >= 1 else f"side {100 * side:.0f} to 100 %"
    if name == "occlusion":
        return f"up to {settings['patches']} patches" if settings.get("patches") else "none"
    if name == "light":
        width = float(settings.get("jitter_brightness", 0.0))
        return f"x {1 - width:.2f} to {1 + width:.2f}" if width else "none"
    if name == "tint":
        turns = float(settings.get("jitter_hue", 0.0))
        return f"hue turned by up to {turns:g}" if turns else "none"
    return "none" if name in IMAGE_FACTOR_NAMES else "unknown"


def _place(name: str) -> tuple[int, str]:
    known = name in IMAGE_FACTOR_NAMES
    return (IMAGE_FACTOR_NAMES.index(name) if known else len(IMAGE_FACTOR_NAMES), name)


def _range_text(name: str, magnitudes: tuple[float, float]) -> str:
    """``channel_gain 1.67 to 1.74`` of a range of magnitudes."""
    factor = image_factor(name)
    value = factor.draw("dev", 3, random.Random(0))
    ends = [factor.amount({**value, "u": u}) for u in magnitudes]
    strength = next(iter(ends[0]))
    return f"{strength} {ends[0][strength]:.3g} to {ends[1][strength]:.3g}"


def _crop(view: FrameView, value: Mapping[str, Any], amount: Amount) -> None:
    """Show a window of the image in its whole size, by bilinear interpolation."""
    height, width = view.pixels.shape[1:3]
    side = 1 - amount["cut_off"]
    left, top = value["x"] * (1 - side) * width, value["y"] * (1 - side) * height
    # Pixel centres of the result in the coordinates of the image.
    shift = [left + 0.5 * side - 0.5, top + 0.5 * side - 0.5]
    matrix = np.array([[side, 0, shift[0]], [0, side, shift[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for number, image in enumerate(view.pixels):
        view.pixels[number] = cv2.warpAffine(
            image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )


def _occlude(view: FrameView, value: Mapping[str, Any], amount: Amount) -> None:
    """Lay an opaque rectangle of one colour over the image, the same in all frames."""
    height, width = view.pixels.shape[1:3]
    high, wide = (max(1, round(amount["side_share"] * side)) for side in (height, width))
    top, left = (round(value["y"] * (height - high)), round(value["x"] * (width - wide)))
    colour = 255 * value["tone"] * _channel_gains(value["hue"], 0.4)
    view.pixels[:, top : top + high, left : left + wide] = colour.clip(0, 255)


def _light(view: FrameView, value: Mapping[str, Any], amount: Amount) -> None:
    view.pixels *= np.float32(amount["gain"] if value["sign"] > 0 else 1 / amount["gain"])


def _tint(view: FrameView, value: Mapping[str, Any], amount: Amount) -> None:
    view.pixels *= _channel_gains(value["hue"], math.log(amount["channel_gain"]))


def _blur(view: FrameView, value: Mapping[str, Any], amount: Amount) -> None:
    sigma_px = amount["sigma_percent"] / 100 * min(view.pixels.shape[1:3])
    for number, image in enumerate(view.pixels):
        view.pixels[number] = cv2.GaussianBlur(image, (0, 0), sigma_px)


def _noise(view: FrameView, value: Mapping[str, Any], amount: Amount) -> None:
    """Add normal noise, independent from pixel to pixel and from frame to frame."""
    for number, frame in enumerate(view.frames):
        generator = np.random.default_rng([value["seed"], view.camera, frame])
        drawn = generator.standard_normal(view.pixels.shape[1:], np.float32)
        view.pixels[number] += np.float32(amount["std_levels"]) * drawn


def _channel_gains(hue: float, strength: float) -> np.ndarray:
    """(3,) float32 gains of red, green and blue: the strongest of a hue is exp(strength)."""
    angles = 2 * math.pi * (hue - np.arange(3) / 3)
    return np.exp(strength * np.cos(angles)).astype(np.float32)


_WHERE = {"x": (0.0, 1.0), "y": (0.0, 1.0)}

CROP = Factor(lambda value: {"cut_off": 0.35 * value["u"]}, _crop, directions=_WHERE)
"""A window of the image, as if the camera stood closer and looked aside."""

OCCLUSION = Factor(
    lambda value: {"side_share": 0.5 * value["u"]},
    _occlude,
    directions={**_WHERE, "hue": (0.0, 1.0), "tone": (0.1, 0.9)},
)
"""Something opaque that stands before the lens."""

LIGHT = Factor(lambda value: {"gain": math.exp(value["u"])}, _light, signed=True)
"""Brighter or darker light, or exposure."""

TINT = Factor(
    lambda value: {"channel_gain": math.exp(0.8 * value["u"])},
    _tint,
    directions={"hue": (0.0, 1.0)},
)
"""Light of another colour, or another white balance."""

BLUR = Factor(lambda value: {"sigma_percent": 2.0 * value["u"]}, _blur)
"""A lens out of focus: a Gaussian whose sigma is a percentage of the image's short side."""

NOISE = Factor(lambda value: {"std_levels": 40.0 * value["u"]}, _noise, seeded=True)
"""A sensor's noise, in levels of 255."""
