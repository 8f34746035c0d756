"""A random policy: the lower bound in every table."""

from __future__ import annotations

import zlib

import numpy as np

from dynaflip.eval.rollout import Observation


class RandomPolicy:
    """Actions evenly from [-1, 1], drawn anew for every image.

    What seeds a draw is the image, so an episode does not depend on those beside it.
    """

    def __init__(self, seed: int, action_dim: int) -> None:
        self.seed, self.action_dim = seed, action_dim

    def act(self, observation: Observation) -> np.ndarray:
        """(B, 1, A) float32."""
        draws = [
            np.random.default_rng([self.seed, zlib.crc32(image.tobytes())]).uniform(
                -1, 1, (1, self.action_dim)
            )
            for image in observation.images
        ]
        return np.stack(draws).astype(np.float32)

    def check_features(self) -> None:
        """It has none."""
