"""Every visual factor of Meta-World, with three disjoint ranges: pretrain, dev, test.

A factor has a magnitude u in [0, 1], which grows monotonically into a physical
value (:func:`physical`), and directions that are free in every split (sign, hue,
angle). What separates the splits:

- magnitudes: pretraining draws u from [0, 0.3]; level l of 1…5 starts at
  c = 0.40 + 0.12 (l − 1), and dev draws [c, c + 0.05], test [c + 0.06, c + 0.11]:
  never the same value, and test half a level further out, so that encoders are compared
  within a split and no split with the other;
- textures, layout seeds and seeds of distractors: each belongs to one split.

Pretraining draws :data:`SEEN_FACTORS` only. Floor, object colour and distractors are
never randomised in it, so that they stay unseen kinds; shadows are off in it too.

Values are plain JSON, recorded with each episode and triplet and applied by
``dynaflip.eval.envs.metaworld.Scene.apply``; :func:`belongs_to` says of recorded values
which split they can come from.
"""

from __future__ import annotations

import math
import random
from typing import Any

SPLITS = ("pretrain", "dev", "test")

SEEN_FACTORS = (
    "light_gain",
    "light_tint",
    "light_direction",
    "table_colour",
    "table_texture",
    "camera",
)
UNSEEN_FACTORS = ("floor", "object_colour", "distractors", "shadows")
FACTORS = SEEN_FACTORS + UNSEEN_FACTORS

LEVELS = (1, 2, 3, 4, 5)
PRETRAIN_MAX_MAGNITUDE = 0.3
_LEVEL_START, _LEVEL_STEP = 0.40, 0.12
_BAND = {"dev": (0.0, 0.05), "test": (0.06, 0.11)}  # from the start of a level

# Distractors come in whole numbers, so their level and not their magnitude counts.
DISTRACTORS_AT_LEVEL = {1: 1, 2: 2, 3: 3, 4: 6, 5: 9}

# The textures that ship with Meta-World. Those that look alike are in one split; wood2 (the
# table), floor2 (the floor) and metal (the walls) are the unperturbed ones and in none.
_TEXTURES = {
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

_SEEDS_A_SPLIT = 1_000_000
LAYOUT_SEEDS = {
    split: range(index * _SEEDS_A_SPLIT, (index + 1) * _SEEDS_A_SPLIT)
    for index, split in enumerate(SPLITS)
}
_TURN = 2 * math.pi

# What a factor carries beside its magnitude: continuous directions, uniform in a range.
_DIRECTIONS: dict[str, dict[str, tuple[float, float]]] = {
    "light_tint": {"hue": (0.0, 1.0)},
    "light_direction": {"direction_rad": (0.0, _TURN)},
    "table_colour": {"hue": (0.0, 1.0)},
    "camera": {"direction_rad": (0.0, _TURN)},
    "floor": {"hue": (0.0, 1.0)},
    "object_colour": {"hue": (0.0, 1.0)},
}
_SIGNED = ("light_gain",)
_TEXTURED = ("table_texture", "floor")


def sample(
    split: str, seed: int, factors: list[str] | tuple[str, ...] | None = None, level: int = 3
) -> dict[str, Any]:
    """Draw perturbation values; the same arguments give the same values.

    Args:
        split: ``pretrain``, ``dev`` or ``test``.
        seed: any integer.
        factors: which factors to perturb; by default all that the split may draw.
        level: 1 (mild) to 5 (strong) of dev and test; pretraining has no levels.

    Returns:
        ``{factor: {"u": magnitude, …directions, categories}}``, JSON-able.

    Raises:
        ValueError: an unknown split, factor or level, or a factor that
            pretraining never draws.
    """
    _check_split(split)
    allowed = SEEN_FACTORS if split == "pretrain" else FACTORS
    chosen = tuple(allowed) if factors is None else tuple(factors)
    for factor in chosen:
        if factor not in FACTORS:
            raise ValueError(f"there is no factor {factor}; known: {', '.join(FACTORS)}")
        if factor not in allowed:
            raise ValueError(f"{factor} is an unseen kind: pretraining never draws it")
    if level not in LEVELS:
        raise ValueError(f"level must be one of {LEVELS}, got {level}")
    values: dict[str, Any] = {}
    for factor in chosen:
        # A generator a factor: adding a factor leaves the others' values as they were.
        generator = random.Random(f"{split}/{seed}/{level}/{factor}")
        values[factor] = _draw(split, factor, level, generator)
    return values


def belongs_to(values: dict[str, Any], split: str) -> bool:
    """Whether recorded values could have been drawn from a split.

    ``values`` are those of :func:`sample`, and may hold ``layout_seed`` beside
    them. Nothing perturbed (``{}``) fits every split.
    """
    _check_split(split)
    for factor, value in values.items():
        if factor == "layout_seed":
            if value not in LAYOUT_SEEDS[split]:
                return False
            continue
        if factor not in FACTORS or (split == "pretrain" and factor in UNSEEN_FACTORS):
            return False
        if not any(low <= value["u"] <= high for low, high in magnitude_ranges(split)):
            return False
        if "texture" in value and value["texture"] not in texture_names(split, factor):
            return False
        if "seed" in value and value["seed"] not in LAYOUT_SEEDS[split]:
            return False
    return True


def magnitude_ranges(split: str) -> list[tuple[float, float]]:
    """The closed ranges of magnitudes that a split draws from."""
    _check_split(split)
    if split == "pretrain":
        return [(0.0, PRETRAIN_MAX_MAGNITUDE)]
    return [_level_range(split, level) for level in LEVELS]


def layout_seed(split: str, index: int) -> int:
    """The seed of a split's ``index``-th layout; indices wrap around after a million."""
    _check_split(split)
    seeds = LAYOUT_SEEDS[split]
    return seeds[index % len(seeds)]


def texture_names(split: str, factor: str) -> tuple[str, ...]:
    """Files of Meta-World's ``assets/textures`` that a split may show on table or floor."""
    _check_split(split)
    if factor not in _TEXTURED:
        raise ValueError(f"{factor} has no textures; those with: {', '.join(_TEXTURED)}")
    if split == "pretrain" and factor in UNSEEN_FACTORS:
        return ()
    return _TEXTURES[split]


def physical(factor: str, value: dict[str, Any]) -> dict[str, float]:
    """What a factor's value means for the scene, in physical terms.

    Each entry is monotone in the magnitude u.
    """
    u = float(value["u"])
    if factor == "light_gain":  # all lights times this
        return {"gain": math.exp(value["sign"] * 1.15 * u)}
    if factor == "light_tint":  # share of the hue in the lights' colour
        return {"strength": 0.85 * u}
    if factor == "light_direction":  # lights tilted together about a horizontal axis
        return {"angle_deg": 110.0 * u}
    if factor == "shadows":  # share of the lights' energy moved into the one that casts
        return {"strength": u}
    if factor == "table_colour":  # share of the hue that multiplies the texture
        return {"strength": 0.9 * u}
    if factor in ("table_texture", "floor"):  # share of the new texture; steep at first
        return {"mix": u**0.4}
    if factor == "camera":  # arc about the point that is looked at
        return {"angle_deg": 35.0 * u}
    if factor == "object_colour":  # share of the hue in the objects' colour
        return {"strength": u}
    if factor == "distractors":
        return {"count": float(DISTRACTORS_AT_LEVEL.get(_level_of(u), 0))}
    raise ValueError(f"there is no factor {factor}; known: {', '.join(FACTORS)}")


def _draw(split: str, factor: str, level: int, generator: random.Random) -> dict[str, Any]:
    low, high = (0.0, PRETRAIN_MAX_MAGNITUDE) if split == "pretrain" else _level_range(split, level)
    value: dict[str, Any] = {"u": generator.uniform(low, high)}
    if factor in _SIGNED:
        value["sign"] = generator.choice((-1, 1))
    for name, (start, stop) in _DIRECTIONS.get(factor, {}).items():
        value[name] = generator.uniform(start, stop)
    if factor in _TEXTURED:
        value["texture"] = generator.choice(texture_names(split, factor))
    if factor == "distractors":
        value["seed"] = generator.choice(LAYOUT_SEEDS[split])
    return value


def _level_range(split: str, level: int) -> tuple[float, float]:
    start = _LEVEL_START + _LEVEL_STEP * (level - 1)
    low, high = _BAND[split]
    # Rounded, so that a magnitude at a range's end is not lost to the last bit.
    return round(start + low, 6), round(start + high, 6)


def _level_of(u: float) -> int:
    return math.floor((u - _LEVEL_START) / _LEVEL_STEP + 1e-9) + 1


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"there is no split {split}; known: {', '.join(SPLITS)}")
