"""Checks of settings: one wording for all, with the setting's name in front.

Values that are None are not set, and pass; NaN never does. The same calls tell ``--help`` and
the reference page what a setting may be (:func:`limits_of`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynaflip.plugins import ExtensionPoint


@dataclass(frozen=True)
class Limits:
    """Allowed values of a setting: an interval in words, or a list of choices."""

    text: str = ""
    choices: tuple[str, ...] = ()


# Limits by the class of the settings and the field; a dictionary while they are collected.
_collected: dict[tuple[type, str], Limits] | None = None


@cache
def limits_of(cls: type) -> dict[str, Limits]:
    """Limits of a dataclass's fields, collected from the checks of its ``__post_init__``.

    Empty for a dataclass that cannot be made from its defaults alone.
    """
    global _collected
    outer, _collected = _collected, {}
    try:
        with contextlib.suppress(TypeError, ValueError):
            cls()
        return {name: limits for (owner, name), limits in _collected.items() if owner is cls}
    finally:
        _collected = outer


def _collect(owner: object, names: Sequence[str], limits: Limits) -> None:
    if _collected is not None:
        for name in names:
            before = _collected.get((type(owner), name), Limits()).text
            text = ", ".join(dict.fromkeys(filter(None, (before, limits.text))))
            _collected[type(owner), name] = Limits(text, limits.choices)


def at_least(owner: object, least: float, *names: str) -> None:
    """Attributes must not be below a bound.

    Raises:
        ValueError: names the attribute, the bound and the value.
    """
    _collect(owner, names, Limits(f"at least {least:g}"))
    for name, value in _set(owner, names):
        if not value >= least:
            raise ValueError(f"{name} must be at least {least:g}, not {value:g}")


def above(owner: object, bound: float, *names: str) -> None:
    """Attributes must be above a bound.

    Raises:
        ValueError: names the attribute, the bound and the value.
    """
    _collect(owner, names, Limits(f"above {bound:g}"))
    for name, value in _set(owner, names):
        if not value > bound:
            raise ValueError(f"{name} must be above {bound:g}, not {value:g}")


def within(owner: object, low: float, high: float, *names: str, ends: str = "[]") -> None:
    """Attributes must lie in an interval; ``ends`` are its brackets, round where open.

    Raises:
        ValueError: names the attribute, the interval and the value.
    """
    interval = f"{ends[0]}{low:g}, {high:g}{ends[1]}"
    _collect(owner, names, Limits(_interval_words(low, high, ends)))
    for name, value in _set(owner, names):
        above_low = value >= low if ends[0] == "[" else value > low
        below_high = value <= high if ends[1] == "]" else value < high
        if not (above_low and below_high):
            raise ValueError(f"{name} must be in {interval}, not {value:g}")


def share(owner: object, *names: str) -> None:
    """Attributes must lie in [0, 1].

    Raises:
        ValueError: names the attribute and the value.
    """
    within(owner, 0, 1, *names)


def one_of(owner: object, known: Sequence[str], *names: str) -> None:
    """Attributes must be among what is known.

    Raises:
        ValueError: names the attribute, what is known and the value.
    """
    _collect(owner, names, Limits(choices=tuple(known)))
    for name, value in _set(owner, names):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def extension(owner: object, point: ExtensionPoint, *names: str) -> None:
    """Attributes (a name, or a tuple of names) must be known to an extension point.

    Raises:
        UserError: names the attribute and lists what is known.
    """
    if _collected is not None:
        # Without those of installed packages: the reference page is the same everywhere.
        _collect(owner, names, Limits(choices=(*point.table, "class:MODULE:NAME")))
    for name, value in _set(owner, names):
        for word in value if isinstance(value, tuple) else (value,):
            point.check(word, name)


def _interval_words(low: float, high: float, ends: str) -> str:
    """An interval as help shows it: half-lines in words, others with their brackets."""
    if high == float("inf"):
        return f"{'at least' if ends[0] == '[' else 'above'} {low:g}"
    return f"in {ends[0]}{low:g}, {high:g}{ends[1]}"


def _set(owner: object, names: Sequence[str]) -> list[tuple[str, Any]]:
    found = [(name, getattr(owner, name)) for name in names]
    return [(name, value) for name, value in found if value is not None]
