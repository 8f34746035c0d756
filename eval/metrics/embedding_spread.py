"""How far embeddings are spread out: effective rank and mean squared distance.

Both fall when a model collapses. Shapes: N embeddings, E embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(points: Tensor) -> float:
    """Effective rank: exp of the entropy of the normalised singular values of centred embeddings.

    Roy and Vetterli 2007, "The effective rank".

    Args:
        points: (N, E) embeddings.

    Returns:
        A value from 1 (one direction, or one point) to min(N − 1, E).
    """
    centred = points.double() - points.double().mean(0)
    values = torch.linalg.svdvals(centred)
    # Below this a cloud is one point up to rounding, whose noise would look full-rank.
    if values.sum() <= 1e-6 * max(1.0, points.double().norm().item()):
        return 1.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def mean_squared_distance(points: Tensor) -> float:
    """Mean squared distance of unit vectors from their mean: 0 for one point, 1 for all directions.

    Args:
        points: (N, E), unit vectors.
    """
    points = points.double()
    return float((points - points.mean(0)).square().sum(-1).mean())
