"""Energy of image-language-flow triples: low where the three belong together.

DynaFLIP (arXiv 2605.30350): E = w_volume · A(z_L, z_I, z_F) − w_cosine · ⟨z_L, z_F⟩.
The area alone vanishes also when two of the three points meet and the third is far; the
cosine tells these apart. Shapes: n rows, N columns, D width; embeddings have unit norm.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynaflip.losses.simplex import area_from_inner_products, full_precision, triangle_area


class Triples(NamedTuple):
    """Unit embeddings of N triples, each (N, D)."""

    language: Tensor
    image: Tensor
    flow: Tensor

    def rolled(self, language: int, image: int, flow: int) -> Triples:
        """Triples put together from rows i + shift, another shift for each modality."""
        return Triples(
            self.language.roll(-language, 0), self.image.roll(-image, 0), self.flow.roll(-flow, 0)
        )


def energy(triples: Triples, volume: float, cosine: float) -> Tensor:
    """Energy of N triples, by explicit differences: (N,)."""
    area = triangle_area(triples.language, triples.image, triples.flow)
    with torch.autocast(area.device.type, enabled=False):
        return volume * area - cosine * _paired(triples.language, triples.flow)


def energy_matrix(
    anchor: str, rows: Triples, columns: Triples, volume: float, cosine: float
) -> Tensor:
    """Energy of one modality of each row with the two others of each column: (n, N).

    Entry (i, j) is, with ``anchor`` "language" E(L_i, I_j, F_j), with "image" E(L_j, I_i, F_j),
    with "flow" E(L_j, I_j, F_i). Memory is O(n·N). The entries of matched triples are inexact
    near alignment: use :func:`energy` for those.

    Args:
        anchor: the modality that comes from the rows.
        rows: n triples; only ``anchor`` is read.
        columns: N triples; the two others are read.
        volume, cosine: weights in the energy.
    """
    with torch.autocast(columns.image.device.type, enabled=False):
        if anchor == "language":
            image_language = _crossed(rows.language, columns.image)
            flow_language = _crossed(rows.language, columns.flow)
            image_flow = _paired(columns.image, columns.flow)[None]
        elif anchor == "image":
            image_language = _crossed(rows.image, columns.language)
            flow_language = _paired(columns.flow, columns.language)[None]
            image_flow = _crossed(rows.image, columns.flow)
        else:
            assert anchor == "flow", anchor
            image_language = _paired(columns.image, columns.language)[None]
            flow_language = _crossed(rows.flow, columns.language)
            image_flow = _crossed(rows.flow, columns.image)
        area = area_from_inner_products(image_language, flow_language, image_flow)
        return volume * area - cosine * flow_language


def _paired(a: Tensor, b: Tensor) -> Tensor:
    """Inner product row by row: two (N, D) → (N,)."""
    return (full_precision(a) * full_precision(b)).sum(-1)


def _crossed(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of every row of a with every row of b: (n, D), (N, D) → (n, N)."""
    return full_precision(a) @ full_precision(b).T
