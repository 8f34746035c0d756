"""Which recordings pretraining never sees.

The split is by recording, so that all cameras and windows of one stay together,
and by hash, so that it holds for recordings that are added later.
"""

from __future__ import annotations

import hashlib


def split_of(recording_id: str, heldout_share: float) -> str:
    """``"heldout"`` for about ``heldout_share`` of all recordings, else ``"train"``."""
    value = int.from_bytes(hashlib.sha256(f"split:{recording_id}".encode()).digest()[:8], "big")
    return "heldout" if value < heldout_share * 2**64 else "train"
