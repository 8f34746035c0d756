"""A task's demonstrations on disk, and what policies read of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, environment


@dataclass(frozen=True)
class OwnRecordings:
    """The recordings of a user's own data set that are the demonstrations of a task."""

    camera: str  # key of info.json
    episodes: tuple[int, ...]  # their numbers in the data set
    frames: int  # of all of them
    image_px: int  # side to which images are resized
    own_units: bool  # whether actions are in the simulator's own units; else in [-1, 1]
    notes: tuple[str, ...] = ()  # what a reader of the results must know


@dataclass(frozen=True)
class DemonstrationSet:
    """A task's demonstrations on disk."""

    task: str
    folder: str
    digest: str
    number: int  # of solved episodes in it that may be shown, the first ones
    environment: str = DEFAULT_ENVIRONMENT
    first: int | None = None  # policies are trained on the first so many alone; None: on all
    own: OwnRecordings | None = None  # None: collected here with the environment's expert

    @property
    def shown(self) -> int:
        """Episodes that policies are trained on."""
        return self.number if self.first is None else self.first

    @property
    def shown_digest(self) -> str:
        """Equal where policies are trained on equal episodes; ``digest`` is of the whole set."""
        return self.digest if self.first is None else f"{self.digest}/first {self.first}"

    @property
    def caption(self) -> str:
        """The task in words."""
        return environment(self.environment).caption(self.task)


@dataclass(frozen=True)
class DemonstrationFrames:
    """N frames of a task's solved demonstrations: all that a policy may read of them."""

    images: np.ndarray  # (N, H, W, 3) uint8
    proprioception: np.ndarray  # (N, P) float32
    actions: np.ndarray  # (N, A) float32
    episode: np.ndarray  # (N,) int
