"""What settings refuse: one wording for all, with the setting's name in front.

Values that are None are not set, and pass; NaN never does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def at_least(owner: object, least: float, *names: str) -> None:
    """Attributes must not be below a bound.

    Raises:
        ValueError: names the attribute, the bound and the value.
    """
    for name, value in _set(owner, names):
        if not value >= least:
            raise ValueError(f"{name} must be at least {least:g}, not {value:g}")


def above(owner: object, bound: float, *names: str) -> None:
    """Attributes must be above a bound.

    Raises:
        ValueError: names the attribute, the bound and the value.
    """
    for name, value in _set(owner, names):
        if not value > bound:
            raise ValueError(f"{name} must be above {bound:g}, not {value:g}")


def within(owner: object, low: float, high: float, *names: str, ends: str = "[]") -> None:
    """Attributes must lie in an interval; ``ends`` are its brackets, round where open.

    Raises:
        ValueError: names the attribute, the interval and the value.
    """
    for name, value in _set(owner, names):
        above_low = value >= low if ends[0] == "[" else value > low
        below_high = value <= high if ends[1] == "]" else value < high
        if not (above_low and below_high):
            interval = f"{ends[0]}{low:g}, {high:g}{ends[1]}"
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
    for name, value in _set(owner, names):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def _set(owner: object, names: Sequence[str]) -> list[tuple[str, Any]]:
    found = [(name, getattr(owner, name)) for name in names]
    return [(name, value) for name, value in found if value is not None]
