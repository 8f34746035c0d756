"""Visual perturbation: factors, their strengths, and three splits that never meet.

A factor (light, camera, texture, …) has a magnitude u in [0, 1], which grows monotonically into a
physical amount, and directions that are free in every split (sign, hue, angle). What separates
the splits pretrain, dev and test:

- magnitudes: pretraining draws u from [0, 0.3]; level l of 1…5 starts at
  c = 0.40 + 0.12 (l − 1), and dev draws [c, c + 0.05], test [c + 0.06, c + 0.11]:
  never the same value, and test half a level further out, so that encoders are compared
  within a split and no split with the other;
- categories (textures), layout seeds and seeds of distractors: each belongs to one split.

Pretraining draws the *seen* factors only. Floor, object colour and distractors are never
randomised in it, so that they stay unseen; shadows are off in it too.

:data:`FACTOR_TABLE` is the one table of factors. An entry, a :class:`Factor`, says how a factor is
drawn, applied and recorded; adding one costs one line here and that object, or neither: settings
take an installed package's factor (entry points of the group ``dynaflip.factor``) and
``class:MODULE:NAME`` too. Each factor has a random stream of its own, so a new one leaves the
draws of the others as they were.

Values are plain JSON, recorded with each episode and triplet and applied by
:meth:`dynaflip.eval.envs.base.Env.apply`; :func:`belongs_to` tells of recorded values which split
they can come from. Nothing here imports a simulator.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynaflip.errors import UserError
from dynaflip.plugins import CLASS_PREFIX, ExtensionPoint

_MUJOCO = "dynaflip.eval.envs.mujoco_factors"
_IMAGES = "dynaflip.eval.envs.image_factors"

# Name → where its Factor stands, in the order of reports: those that change a simulator's scene,
# then those that change its image, for simulators whose scene nothing here can change.
FACTOR_TABLE = ExtensionPoint(
    "factor",
    {
        "light_gain": f"{_MUJOCO}:LIGHT_GAIN",
        "light_tint": f"{_MUJOCO}:LIGHT_TINT",
        "light_direction": f"{_MUJOCO}:LIGHT_DIRECTION",
        "table_colour": f"{_MUJOCO}:TABLE_COLOUR",
        "table_texture": f"{_MUJOCO}:TABLE_TEXTURE",
        "camera": f"{_MUJOCO}:CAMERA",
        "floor": f"{_MUJOCO}:FLOOR",
        "object_colour": f"{_MUJOCO}:OBJECT_COLOUR",
        "distractors": f"{_MUJOCO}:DISTRACTORS",
        "shadows": f"{_MUJOCO}:SHADOWS",
        "crop": f"{_IMAGES}:CROP",
        "occlusion": f"{_IMAGES}:OCCLUSION",
        "light": f"{_IMAGES}:LIGHT",
        "tint": f"{_IMAGES}:TINT",
        "blur": f"{_IMAGES}:BLUR",
        "noise": f"{_IMAGES}:NOISE",
    },
    contract="dynaflip.eval.perturbations.Factor",
)
BUILT_IN_FACTORS = tuple(FACTOR_TABLE.table)
# Of a simulator's scene, and of its image.
FACTORS = tuple(name for name, place in FACTOR_TABLE.table.items() if place.startswith(_MUJOCO))
IMAGE_SPACE_FACTORS = tuple(name for name in BUILT_IN_FACTORS if name not in FACTORS)
# Those that every evaluation had before evaluations recorded their list of factors.
FACTORS_BEFORE_RECORDING = (
    "light_gain",
    "light_tint",
    "light_direction",
    "table_colour",
    "table_texture",
    "camera",
    "floor",
    "object_colour",
    "distractors",
    "shadows",
)

SPLITS = ("pretrain", "dev", "test")
LEVELS = (1, 2, 3, 4, 5)
PRETRAIN_MAX_MAGNITUDE = 0.3
_LEVEL_START, _LEVEL_STEP = 0.40, 0.12
_BAND = {"dev": (0.0, 0.05), "test": (0.06, 0.11)}  # from the start of a level

_SEEDS_A_SPLIT = 1_000_000
LAYOUT_SEEDS = {
    split: range(index * _SEEDS_A_SPLIT, (index + 1) * _SEEDS_A_SPLIT)
    for index, split in enumerate(SPLITS)
}

# What a factor's value means physically: name → number, the first one its strength.
Amount = dict[str, float]


@dataclass(frozen=True)
class Factor:
    """One visual factor: how it is drawn, applied and recorded.

    A value is ``{"u": magnitude, …}`` with, in this order, ``sign``, the directions,
    ``texture``-like categories and ``seed``, as far as the factor has them.
    """

    amount: Callable[[Mapping[str, Any]], Amount]
    """The physical meaning of a value; its first entry is the strength, monotone in u."""

    change: Callable[[Any, Mapping[str, Any], Amount], None]
    """``change(env, value, amount)`` changes what an environment shows, such as its model or
    :attr:`dynaflip.eval.envs.base.Env.image_filters`, and nothing that it simulates."""

    seen: bool = False
    """Whether pretraining may draw it."""

    signed: bool = False
    """Whether a value has a ``sign``, −1 or 1."""

    directions: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Continuous directions: name → range, uniform in every split."""

    categories: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """Categories: name → split → the names that the split may draw; no name in two splits."""

    seeded: bool = False
    """Whether a value has a ``seed`` of the split."""

    def draw(self, split: str, level: int, generator: random.Random) -> dict[str, Any]:
        """A value of a split at a level (pretraining has no levels)."""
        low, high = magnitude_range(split, level)
        value: dict[str, Any] = {"u": generator.uniform(low, high)}
        if self.signed:
            value["sign"] = generator.choice((-1, 1))
        for name, (start, stop) in self.directions.items():
            value[name] = generator.uniform(start, stop)
        for name, by_split in self.categories.items():
            value[name] = generator.choice(by_split[split])
        if self.seeded:
            value["seed"] = generator.choice(LAYOUT_SEEDS[split])
        return value

    def apply(self, env: Any, value: Mapping[str, Any]) -> None:
        """Show a value in an :class:`~dynaflip.eval.envs.base.Env`, on top of what it shows."""
        self.change(env, value, self.amount(value))

    def allows(self, value: Mapping[str, Any], split: str) -> bool:
        """True if a recorded value can have been drawn from a split."""
        if split == "pretrain" and not self.seen:
            return False
        return _common_parts_allow(value, split) and all(
            value[name] in by_split.get(split, ())
            for name, by_split in self.categories.items()
            if name in value
        )


def factor(name: str, *, trusted: bool = True) -> Factor:
    """The factor of a name.

    Args:
        name: a built-in's, an installed package's, or ``class:MODULE:NAME``.
        trusted: False for a name that was read from a data set: see :mod:`dynaflip.plugins`.

    Raises:
        UserError: there is none, or it is no :class:`Factor`.
    """
    resolved = FACTOR_TABLE.resolve(name, "factors", trusted=trusted)
    if not isinstance(resolved, Factor):
        raise UserError(f"factors: {name} is a {type(resolved).__name__}, not a Factor")
    return resolved


def seen_factors(names: Iterable[str] = FACTORS) -> tuple[str, ...]:
    """Of some factors those that pretraining may draw."""
    return tuple(name for name in names if factor(name).seen)


def unseen_factors(names: Iterable[str] = FACTORS) -> tuple[str, ...]:
    """Of some factors those that pretraining never draws."""
    return tuple(name for name in names if not factor(name).seen)


def factors_to_record(names: Sequence[str] = FACTORS) -> str:
    """The list of factors that exist, as it is recorded with an evaluation."""
    return ",".join(names)


def recorded_factors(text: str | None) -> tuple[str, ...]:
    """Factors that existed when an evaluation ran: what must be covered to rest on it.

    Args:
        text: as :func:`factors_to_record` made it; None or empty for evaluations of before.
    """
    return tuple(text.split(",")) if text else FACTORS_BEFORE_RECORDING


def sample(
    split: str, seed: int, factors: Sequence[str] | None = None, level: int = 3
) -> dict[str, Any]:
    """Draw perturbation values; the same arguments give the same values.

    Args:
        split: ``pretrain``, ``dev`` or ``test``.
        seed: any integer.
        factors: which factors to perturb; by default all of a scene that the split may draw.
        level: 1 (mild) to 5 (strong) of dev and test; pretraining has no levels.

    Returns:
        ``{factor: {"u": magnitude, …directions, categories}}``, JSON-able.

    Raises:
        ValueError: an unknown split or level, or a factor that pretraining never draws.
        UserError: an unknown factor.
    """
    _check_split(split)
    if level not in LEVELS:
        raise ValueError(f"level must be one of {LEVELS}, got {level}")
    if factors is None:
        factors = seen_factors() if split == "pretrain" else FACTORS
    values: dict[str, Any] = {}
    for name in factors:
        drawn = factor(name)
        if split == "pretrain" and not drawn.seen:
            raise ValueError(f"{name} is an unseen factor: pretraining never draws it")
        # A generator a factor: adding a factor leaves the others' values as they were.
        generator = random.Random(f"{split}/{seed}/{level}/{name}")
        values[name] = drawn.draw(split, level, generator)
    return values


def check_changes_pixels(env: Any, name: str) -> None:
    """Refuse a factor that changes no pixel: it would be measured as perfect robustness.

    Draws the strongest ``dev`` values; the scene is as it was, without perturbation, afterwards.

    Args:
        env: an :class:`~dynaflip.eval.envs.base.Env`.
        name: of the factor.

    Raises:
        UserError: every image is the unperturbed one.
    """
    env.restore()
    plain = env.rgb()
    try:
        for seed in range(3):
            value = sample("dev", seed, [name], max(LEVELS))[name]
            env.restore()
            factor(name).apply(env, value)
            env.appearance_changed()
            if (env.rgb() != plain).any():
                return
    finally:
        env.restore()
    raise UserError(
        f"factors: {name} changes no pixel of {env.spec.name}'s task {env.task} at its strongest; "
        f"its apply must change the environment it is given"
    )


def belongs_to(values: dict[str, Any], split: str) -> bool:
    """True if recorded values could have been drawn from a split.

    ``values`` are those of :func:`sample`, and may hold ``layout_seed`` beside
    them. Nothing perturbed (``{}``) fits every split.
    """
    _check_split(split)
    for name, value in values.items():
        if name == "layout_seed":
            if value not in LAYOUT_SEEDS[split]:
                return False
        elif name.startswith(CLASS_PREFIX):
            # Its code is not run for a name in a file; the magnitude still tells the split.
            if not _common_parts_allow(value, split):
                return False
        elif not FACTOR_TABLE.knows(name) or not factor(name, trusted=False).allows(value, split):
            return False
    return True


def magnitude_ranges(split: str) -> list[tuple[float, float]]:
    """The closed ranges of magnitudes that a split draws from."""
    _check_split(split)
    if split == "pretrain":
        return [(0.0, PRETRAIN_MAX_MAGNITUDE)]
    return [magnitude_range(split, level) for level in LEVELS]


def layout_seed(split: str, index: int) -> int:
    """The seed of a split's ``index``-th layout; indices wrap around after a million."""
    _check_split(split)
    seeds = LAYOUT_SEEDS[split]
    return seeds[index % len(seeds)]


def texture_names(split: str, name: str) -> tuple[str, ...]:
    """Textures that a split may draw for a factor.

    Raises:
        ValueError: an unknown split, or a factor without textures.
    """
    _check_split(split)
    textured = factor(name)
    if "texture" not in textured.categories:
        raise ValueError(f"{name} has no textures")
    return (
        () if split == "pretrain" and not textured.seen else textured.categories["texture"][split]
    )


def physical(name: str, value: Mapping[str, Any]) -> Amount:
    """The physical meaning of a factor's value; each entry is monotone in the magnitude u."""
    return factor(name).amount(value)


def magnitude_range(split: str, level: int) -> tuple[float, float]:
    """The closed range of magnitudes of a split at a level."""
    if split == "pretrain":
        return 0.0, PRETRAIN_MAX_MAGNITUDE
    start = _LEVEL_START + _LEVEL_STEP * (level - 1)
    low, high = _BAND[split]
    # Rounded, so that a magnitude at a range's end is not lost to the last bit.
    return round(start + low, 6), round(start + high, 6)


def level_of(u: float) -> int:
    """The level that a magnitude of dev or test belongs to; below 1 for pretraining's."""
    return math.floor((u - _LEVEL_START) / _LEVEL_STEP + 1e-9) + 1


def _common_parts_allow(value: Mapping[str, Any], split: str) -> bool:
    """True if magnitude, and seed if it has one, are a split's: by these every factor's differ."""
    if not any(low <= value["u"] <= high for low, high in magnitude_ranges(split)):
        return False
    return "seed" not in value or value["seed"] in LAYOUT_SEEDS[split]


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"there is no split {split}; known: {', '.join(SPLITS)}")
