"""3D flow of a window: 2D tracking, back-projection, static points, alignment, camera motion.

``track.tracker`` is a name of the tables below, of an installed package's entry point in the groups
``dynaflip.tracker`` (2D) and ``dynaflip.tracker_3d``, or ``class:MODULE:NAME``, which is 3D where
the class says ``dimensions = 3``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from dynaflip.plugins import CLASS_PREFIX, ExtensionPoint, split_argument

if TYPE_CHECKING:
    import numpy as np

    from dynaflip.platform.triplets.clips import Floats, Frames

_HERE = "dynaflip.platform.triplets.flow"
TRACKERS = ExtensionPoint(
    "tracker",
    {
        "lk": f"{_HERE}.tracking:LucasKanade",
        "dis": f"{_HERE}.tracking:DenseInverseSearch",
        "torchscript": f"{_HERE}.learned_tracker:TorchScriptTracker",  # torchscript:FILE
    },
    contract=f"{_HERE}.Tracker",
)
TRACKERS_3D = ExtensionPoint("tracker_3d", {}, contract=f"{_HERE}.tracker_3d.Tracker3D")


def tracker_point(name: str) -> ExtensionPoint:
    """The extension point that resolves a ``track.tracker``; both resolve ``class:MODULE:NAME``."""
    base = split_argument(name)[0]
    # Asked for every window: what is built in or a class needs no look at the packages.
    if base in TRACKERS.table or base.startswith(CLASS_PREFIX) or TRACKERS.knows(base):
        return TRACKERS
    return TRACKERS_3D if TRACKERS_3D.knows(base) else TRACKERS


class Tracker(Protocol):
    """A 2D point tracker. Made without arguments, or with ARGUMENT for ``NAME:ARGUMENT``.

    It is made once in each Ray actor, which has a GPU where the cluster has one. A tracker from
    one image to the next derives from :class:`dynaflip.platform.triplets.flow.tracking.PairTracker`
    instead: it runs in plain tasks, and a forward-backward check is made for it.
    """

    def __call__(self, frames: Frames, points_px: Floats) -> tuple[Floats, np.ndarray]:
        """Track points through all frames of a window.

        Args:
            frames: (N, H, W, 3) uint8 RGB.
            points_px: (P, 2) x, y on the first frame, pixel centres at +0.5.

        Returns:
            (N, P, 2) positions in pixels and (N, P) bool, whether each is visible.
        """
