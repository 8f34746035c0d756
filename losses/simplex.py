"""Volume of the simplex whose corners are the embeddings of m modalities of one example.

DynaFLIP (arXiv 2605.30350) takes three, and the volume is a triangle's area: with
u = z_I − z_L and v = z_F − z_L,

    A(z_L, z_I, z_F) = ½ √(⟨u,u⟩⟨v,v⟩ − ⟨u,v⟩²)

For m points with edges e_b = z_b − z_0 it is V = √det⟨e_b, e_c⟩ / (m−1)!, the Gram
determinant (GRAM, arXiv 2412.11959, uses the parallelotope from the origin instead); for two
points, their distance. It does not depend on which point is z_0.
Shapes: m points, N examples, D width, n rows of a matrix of examples. Unit norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """At least float32: half precision cannot hold the cancellation below."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _volume(gram_determinant: Tensor, smallest: float, edges: int) -> Tensor:
    """√g / edges!, and 0 with gradient 0 where g ≤ ``smallest``.

    The root's slope is infinite at a degenerate simplex (g = 0), and infinity times the
    zero slope of g there is NaN. Both branches are finite, so no NaN can pass the selection.
    """
    degenerate = gram_determinant <= smallest
    root = torch.sqrt(torch.where(degenerate, torch.ones_like(gram_determinant), gram_determinant))
    return torch.where(degenerate, torch.zeros_like(root), root) / math.factorial(edges)


def simplex_volume(points: Sequence[Tensor]) -> Tensor:
    """Volume of N simplices from explicit differences: m × (N, D) → (N,).

    Exact near alignment, where inner products cancel, and O(N·D·m²): for matched examples.
    The determinant is the product of squared heights (Gram–Schmidt, longest edge first),
    because the sum of products cancels for flat simplices.
    """
    with torch.autocast(points[0].device.type, enabled=False):
        corners = torch.stack([full_precision(point) for point in points], 1)
        edges = corners[:, 1:] - corners[:, :1]
        number = edges.shape[1]
        epsilon, tiny = torch.finfo(edges.dtype).eps, torch.finfo(edges.dtype).tiny
        determinant = edges.new_ones(len(edges))
        while edges.shape[1]:
            # The longest edge as base: dividing by a vanishing one would not be finite.
            order = edges.square().sum(-1).argsort(dim=1, descending=True, stable=True)
            edges = edges.take_along_dim(order.unsqueeze(-1), 1)
            base, edges = edges[:, :1], edges[:, 1:]
            height_squared = base.square().sum(-1)
            determinant = determinant * height_squared.squeeze(1)
            share = (base * edges).sum(-1) / height_squared.clamp(min=tiny)
            edges = edges - share.unsqueeze(-1) * base
        # Edges of one rounding step of a unit vector cannot be told from a point.
        return _volume(determinant, epsilon ** (2 * number), number)


def volume_from_inner_products(products: Mapping[tuple[int, int], Tensor], points: int) -> Tensor:
    """Volume of every simplex whose inner products are given; shapes broadcast, e.g. (n, N).

    Needs no (n, N, D) tensor: ⟨e_b,e_c⟩ = ⟨z_b,z_c⟩ − ⟨z_b,z_0⟩ − ⟨z_c,z_0⟩ + 1. Volumes that
    rounding cannot tell from 0 (for triangles below 5e-4 in float32) are 0 with gradient 0,
    so this is for shuffled examples; for matched ones see :func:`simplex_volume`.

    Args:
        products: (b, c) with b < c to ⟨z_b, z_c⟩.
        points: m.
    """
    some = next(iter(products.values()))
    with torch.autocast(some.device.type, enabled=False):
        inner = {pair: full_precision(value) for pair, value in products.items()}

        def gram(b: int, c: int) -> Tensor:
            if b == c:
                return 2 - 2 * inner[0, b]
            return inner[min(b, c), max(b, c)] - inner[0, b] - inner[0, c] + 1

        others = range(1, points)
        determinant = _determinant([[gram(b, c) for c in others] for b in others])
        epsilon = torch.finfo(determinant.dtype).eps
        return _volume(determinant, 8 * epsilon, points - 1)


def _determinant(rows: list[list[Tensor]]) -> Tensor:
    """By cofactors of the first row: a polynomial, so its gradient is finite everywhere.

    The entries are matrices of their own, and there are few modalities.
    """
    if len(rows) == 1:
        return rows[0][0]
    terms = []
    for column, entry in enumerate(rows[0]):
        minor = [row[:column] + row[column + 1 :] for row in rows[1:]]
        terms.append((-1) ** column * entry * _determinant(minor))
    return sum(terms[1:], terms[0])
