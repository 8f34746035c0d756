"""Images and instructions of an RLDS episode's steps, from the flat lists that TFDS stores.

TensorFlow Datasets writes the values of all steps one after the other. A feature that holds several
a step (a stack of past images, several phrasings) is as flat, or ragged: ``…/ragged_flat_values``
with ``…/ragged_row_lengths_0``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from dynaflip.platform.triplets.clips import ClipRejected
from dynaflip.platform.triplets.sources.tfrecord import Unread

Value = TypeVar("Value")

STEPS = "steps/"
RAGGED_VALUES = "/ragged_flat_values"
_ROW_LENGTHS = "/ragged_row_lengths_"
# Features of RLDS that hold one number a step.
_COUNTED = ("is_first", "is_last", "is_terminal", "reward", "discount")


def base_name(key: str) -> str:
    """Name of a feature, without what a ragged one has behind it."""
    return key.removesuffix(RAGGED_VALUES)


def count_steps(features: Mapping[str, Any]) -> int | None:
    """Number of steps by the features of RLDS that have one value a step; None: it has none.

    Raises:
        ClipRejected: two of them disagree.
    """
    counts = {
        name: len(values)
        for name in _COUNTED
        if isinstance(values := features.get(STEPS + name), np.ndarray) and len(values)
    }
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ClipRejected("decode", f"the number of steps is not known: values of {text}")
    return next(iter(counts.values()), None)


def step_images(features: Mapping[str, Any], key: str) -> list[bytes]:
    """Encoded images of a camera, one a step: of a stack of past images the newest one.

    Raises:
        ClipRejected: there are none, or it is not clear which one is a step's.
    """
    values = features.get(key)
    name = base_name(key)
    if not isinstance(values, list) or not values:
        raise ClipRejected("decode", f"the episode holds no images in {name}")
    steps = count_steps(features) or _steps_by_instructions(features, len(values))
    if key.endswith(RAGGED_VALUES):
        rows = _ragged_rows(features, name, values, "decode")
        if steps is not None and len(rows) != steps:
            reason = f"{len(rows)} rows of images in {name}, but {steps} steps"
            raise ClipRejected("decode", reason)
    elif steps is None or len(values) == steps:
        return values
    elif len(values) % steps == 0:
        size = len(values) // steps
        rows = [values[i : i + size] for i in range(0, len(values), size)]
    else:
        raise ClipRejected("decode", f"{len(values)} images in {name}, but {steps} steps")
    return _newest(rows, name)


def _steps_by_instructions(features: Mapping[str, Any], images: int) -> int | None:
    """Number of steps by their instructions, where each step has equally many images."""
    counts = [
        len(_rows(features, key, texts))
        for key, texts in instructions(features)
        if key.startswith(STEPS)
    ]
    return max((n for n in counts if n > 1 and images % n == 0), default=None)


def _rows(features: Mapping[str, Any], key: str, texts: list[str]) -> list[list[str]]:
    """The texts of each step of a ragged feature; of any other feature each text is a row."""
    if not key.endswith(RAGGED_VALUES):
        return [[text] for text in texts]
    return _ragged_rows(features, base_name(key), texts, "caption")


def _ragged_rows(
    features: Mapping[str, Any], name: str, values: list[Value], stage: str
) -> list[list[Value]]:
    """The values of each step; ``stage`` is that of the rejection where they are not known."""
    lengths = features.get(f"{name}{_ROW_LENGTHS}0")
    if not isinstance(lengths, np.ndarray) or f"{name}{_ROW_LENGTHS}1" in features:
        raise ClipRejected(stage, f"{name} is ragged, without one length a step")
    if (lengths < 0).any() or lengths.sum() != len(values):
        reason = f"{len(values)} values in {name}, but the lengths of its steps add up to"
        raise ClipRejected(stage, f"{reason} {lengths.sum()}")
    ends = np.cumsum(lengths)
    return [values[end - n : end] for n, end in zip(lengths, ends, strict=True)]


def _newest(rows: list[list[bytes]], name: str) -> list[bytes]:
    """The image that is new in each step's stack, where the stacks are a window over time."""
    for step, row in enumerate(rows):
        if not row:
            raise ClipRejected("decode", f"there is no image in {name} at step {step}")
    if all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    pairs = list(itertools.pairwise(rows))
    if pairs and all(_moves_on(before, after) for before, after in pairs):
        return [row[-1] for row in rows]
    if pairs and all(_moves_on(before[::-1], after[::-1]) for before, after in pairs):
        return [row[0] for row in rows]
    raise ClipRejected(
        "decode",
        f"each step holds up to {max(map(len, rows))} images in {name}, which are no window over "
        f"time: which one is the step's is not known",
    )


def _moves_on(before: list[bytes], after: list[bytes]) -> bool:
    """True where a stack is the one before and a new image behind it."""
    shared = len(after) - 1
    return shared <= len(before) and after[:shared] == before[len(before) - shared :]


def instructions(features: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Name and texts of every feature that holds instructions, phrasing by phrasing."""
    for key in sorted(features):
        name, values = base_name(key).rsplit("/", 1)[-1], features[key]
        if "instruction" not in name or "embedding" in name or isinstance(values, Unread):
            continue
        if isinstance(values, np.ndarray):
            # Language-Table: letters as 512 numbers a step, zeros after the end.
            if values.dtype != np.int64 or len(values) % 512:
                continue
            rows = values.reshape(-1, 512)
            values = [bytes(int(n) & 0xFF for n in row if n) for row in rows]
        texts = [_utf8(value) for value in values]
        if any(texts):
            yield key, texts


def instructions_of_step(features: Mapping[str, Any], index: int, steps: int) -> list[str]:
    """Instructions of one step, phrasing by phrasing.

    Returns:
        None of them where the step has none and all others of the episode are one.

    Raises:
        ClipRejected: their number is not that of the steps, or the step has none and the others
            differ.
    """
    found: list[str] = []
    varies = False
    for key, texts in instructions(features):
        varies |= len({text for text in texts if text}) > 1
        rows = _rows(features, key, texts)
        if len(rows) == steps:
            found += rows[index]
        elif key.endswith(RAGGED_VALUES):
            reason = f"{len(rows)} rows of instructions in {base_name(key)}, but {steps} steps"
            raise ClipRejected("caption", reason)
        elif not key.startswith(STEPS) or len(set(texts)) == 1:
            found += texts if len(set(texts)) > 1 else texts[:1]  # of the whole episode
        elif len(texts) % steps == 0:
            size = len(texts) // steps
            found += texts[index * size : (index + 1) * size]
        else:
            reason = f"{len(texts)} instructions in {base_name(key)}, but {steps} steps"
            raise ClipRejected("caption", reason)
    said = [text for text in found if text]
    if varies and not said:
        # Any other instruction of the episode may be that of another step.
        reason = f"step {index} has no instruction, and those of other steps differ"
        raise ClipRejected("caption", reason)
    return said


def _utf8(value: bytes) -> str:
    """Text, or "" for what is not UTF-8."""
    try:
        return value.decode("utf-8").strip()
    except UnicodeDecodeError:
        return ""
