"""A window that makes no triplet."""

from __future__ import annotations

from dynaflip.platform.triplets.clips import ClipRejected


class WindowRejected(ClipRejected):
    """A window without a triplet; its clip is rejected only if no window is left."""
