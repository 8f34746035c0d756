"""Energy of image-language-flow triples: low where the three belong together.

DynaFLIP (arXiv 2605.30350): E = w_volume · A(z_L, z_I, z_F) − w_cosine · ⟨z_L, z_F⟩.
The area alone vanishes also when two of the three points meet and the third is far; the
cosine tells these apart. Any two or more modalities have an energy: the volume is of their
simplex, and the cosine that of language and flow, or where one of them is missing that of
the first two (the paper does not say).
Shapes: n rows, N columns, D width; embeddings have unit norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from dynaflip.losses.inner_products import inner_products
from dynaflip.losses.simplex import full_precision, simplex_volume, volume_from_inner_products

# Unit embeddings of N examples by modality ("image", "language", "flow", …), each (N, D).
Points = Mapping[str, Tensor]


def rolled(points: Points, shifts: Mapping[str, int]) -> dict[str, Tensor]:
    """Examples put together from rows i + shift, another shift for each modality."""
    return {name: z.roll(-shifts[name], 0) for name, z in points.items()}


def energy(points: Points, volume: float, cosine: float) -> Tensor:
    """Energy of N examples, by explicit differences: (N,)."""
    first, second = _regularized(points)
    with torch.autocast(points[first].device.type, enabled=False):
        similarity = _paired(points[first], points[second])
        return volume * simplex_volume(list(points.values())) - cosine * similarity


def energy_matrix(
    anchor: str, rows: Points, columns: Points, volume: float, cosine: float
) -> Tensor:
    """Energy of one modality of each row with the others of each column: (n, N).

    Entry (i, j) is, with ``anchor`` "language" E(L_i, I_j, F_j), with "image" E(L_j, I_i, F_j),
    with "flow" E(L_j, I_j, F_i). Memory is O(n·N). The entries of matched examples are inexact
    near alignment: use :func:`energy` for those.

    Args:
        anchor: the modality that comes from the rows.
        rows: n examples; only ``anchor`` is read.
        columns: N examples; the others are read.
        volume, cosine: weights in the energy.
    """
    names = list(columns)
    with torch.autocast(columns[anchor].device.type, enabled=False):
        products = {}
        for (b, one), (c, other) in combinations(enumerate(names), 2):
            if anchor in (one, other):
                rest = other if anchor == one else one
                products[b, c] = inner_products(rows[anchor], columns[rest])
            else:
                products[b, c] = _paired(columns[one], columns[other])[None]
        first, second = sorted(names.index(name) for name in _regularized(columns))
        area = volume_from_inner_products(products, len(names))
        return volume * area - cosine * products[first, second]


def _regularized(points: Points) -> tuple[str, str]:
    """The two modalities whose cosine is in the energy: language and flow where they are."""
    first, second = sorted(points, key=lambda name: name not in ("language", "flow"))[:2]
    return first, second


def _paired(a: Tensor, b: Tensor) -> Tensor:
    """Inner product row by row: two (N, D) → (N,)."""
    return (full_precision(a) * full_precision(b)).sum(-1)
