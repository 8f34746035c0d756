"""Which recordings pretraining never sees.

The split is by recording, so that all cameras and windows of one stay together,
and by hash, so that it holds for recordings that are added later.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any


def split_of(recording_id: str, heldout_share: float) -> str:
    """``"heldout"`` for about ``heldout_share`` of all recordings, else ``"train"``."""
    return "heldout" if _hash(recording_id) < heldout_share * 2**64 else "train"


def split_in(manifest: Mapping[str, Any], recording_id: str) -> str:
    """The split of a recording in a set: by hash, unless near copies moved it."""
    share = float(manifest["settings"]["heldout_share"])
    moved: Mapping[str, str] = manifest.get("moved_recordings", {})
    return moved.get(recording_id) or split_of(recording_id, share)


def share_for_two(recording_ids: Iterable[str]) -> float | None:
    """Least ``heldout_share``, to two digits, that holds out two recordings or more.

    None where it would leave none to train on.
    """
    least: list[float] = []
    last, recordings = 0.0, 0
    for name in recording_ids:
        recordings += 1
        fraction = _hash(name) / 2**64
        least = sorted([*least, fraction])[:2]
        last = max(last, fraction)
    if recordings < 3:
        return None
    share = math.floor(least[1] * 100 + 1) / 100
    return share if share < last else None


def _hash(recording_id: str) -> int:
    """A fixed pseudo-random number of 64 bits."""
    digest = hashlib.sha256(f"split:{recording_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
