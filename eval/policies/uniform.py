"""A policy that knows nothing: the floor of every table."""

from __future__ import annotations

import numpy as np

from dynaflip.eval.policies.head import ACTION_DIM
from dynaflip.eval.rollout import Observation


class UniformPolicy:
    """Actions drawn evenly from [-1, 1]."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def act(self, observation: Observation) -> np.ndarray:
        """(B, 1, A) float32."""
        shape = (len(observation.images), 1, ACTION_DIM)
        return self._generator.uniform(-1, 1, shape).astype(np.float32)

    def check_features(self) -> None:
        """It has none."""
