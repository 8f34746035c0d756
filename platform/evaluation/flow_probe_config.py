"""Settings of the flow probe. Imports neither torch nor Ray: ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass

from dynaflip.checks import at_least


@dataclass(frozen=True)
class FlowProbeConfig:
    """A fresh ridge from frozen features of a frame to the 3D flow that follows, on held-out
    recordings of the triplets."""

    clips: int = 128
    """Most training clips that the ridge is fitted on, in a fixed random order of recordings."""

    heldout_clips: int = 64
    """Most held-out clips that it is tested on."""

    windows_per_clip: int = 6
    """Most windows of a clip, evenly spaced."""

    folds: int = 5
    """Folds of the cross-validation over recordings that chooses the ridge's penalty."""

    def __post_init__(self) -> None:
        at_least(self, 5, "clips", "heldout_clips")
        at_least(self, 1, "windows_per_clip")
        at_least(self, 2, "folds")
