"""Calls into models of the user's own: their errors become rejections that name the line."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import ClipRejected, out_of_resources

Answer = TypeVar("Answer")


def asked(stage: str, name: str, question: Callable[[], Answer]) -> Answer:
    """The answer of a user's model; an error in its code is a rejection that names its line.

    Raises:
        ClipRejected: it raised an error, but not for want of memory, which is the machine's.
    """
    try:
        return question()
    except (UserError, ClipRejected):
        raise
    except Exception as error:
        if out_of_resources(error):
            raise
        raise ClipRejected(stage, f"{name} failed: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """Kind, place and first line of an error in a user's code."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).strip().splitlines()
    first = f": {text[0]}" if text else ""
    return f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}{first}"
