"""Random numbers as a function of what they are for: no generator whose state would have to travel.

A number belongs to keys (the run's seed, an epoch, an example …), so that it does not matter
which worker draws it, when, or what was drawn before.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)


class Purpose(IntEnum):
    """What numbers are for: equal keys give other numbers for another purpose."""

    EXAMPLE = 1
    ORDER = 2
    BUFFER = 3
    REPETITION = 4
    FAR_FRAME = 5
    CROP = 6
    JITTER = 7
    PATCHES = 8


def bits(purpose: Purpose, *keys: np.ndarray | int) -> np.ndarray:
    """64 random bits for each combination of keys, broadcast against each other: uint64.

    SplitMix64 (Steele et al. 2014), absorbing one key after the other.
    """
    state = np.asarray(int(purpose), np.uint64)
    for key in keys:
        key = np.asarray(key)
        key = key if key.dtype == np.uint64 else key.astype(np.int64).view(np.uint64)
        state = _mixed(state ^ key)
    return state


def uniform(purpose: Purpose, *keys: np.ndarray | int) -> np.ndarray:
    """A number in [0, 1) for each combination of keys: float64."""
    return (bits(purpose, *keys) >> np.uint64(11)) * 2.0**-53


def _mixed(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        x = x + _STEP
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
