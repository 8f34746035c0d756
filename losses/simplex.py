"""Volume of the simplex that a triple's embeddings span: for three points, a triangle's area.

DynaFLIP (arXiv 2605.30350): with u = z_I − z_L and v = z_F − z_L,

    A(z_L, z_I, z_F) = ½ √(⟨u,u⟩⟨v,v⟩ − ⟨u,v⟩²)

Shapes: N triples, D width, n rows of a matrix of triples. All embeddings have unit norm.
"""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """At least float32: half precision cannot hold the cancellation below."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _half_root(gram_determinant: Tensor, smallest: float) -> Tensor:
    """½√g, and 0 with gradient 0 where g ≤ ``smallest``.

    The root's slope is infinite at a degenerate triangle (g = 0), and infinity times the
    zero slope of g there is NaN. Both branches are finite, so no NaN can pass the selection.
    """
    degenerate = gram_determinant <= smallest
    root = torch.sqrt(torch.where(degenerate, torch.ones_like(gram_determinant), gram_determinant))
    return 0.5 * torch.where(degenerate, torch.zeros_like(root), root)


def triangle_area(z_language: Tensor, z_image: Tensor, z_flow: Tensor) -> Tensor:
    """Area of N triangles from explicit differences: three (N, D) → (N,).

    Exact near alignment, where inner products cancel, and O(N·D): for matched triples.
    The height over u is taken first (one Gram–Schmidt step), because ⟨u,u⟩⟨v,v⟩ − ⟨u,v⟩²
    cancels for flat triangles.
    """
    with torch.autocast(z_image.device.type, enabled=False):
        z_language, z_image, z_flow = map(full_precision, (z_language, z_image, z_flow))
        u = z_image - z_language
        v = z_flow - z_language
        # The longer side as base: dividing by a vanishing side would not be finite.
        swap = (u.square().sum(-1) < v.square().sum(-1)).unsqueeze(-1)
        base, side = torch.where(swap, v, u), torch.where(swap, u, v)
        base_squared = base.square().sum(-1)
        tiny = torch.finfo(base.dtype).tiny
        share = (base * side).sum(-1) / base_squared.clamp(min=tiny)
        height_squared = (side - share.unsqueeze(-1) * base).square().sum(-1)
        # Sides of one rounding step of a unit vector: nothing smaller can be told from a point.
        return _half_root(base_squared * height_squared, torch.finfo(base.dtype).eps ** 4)


def area_from_inner_products(
    image_language: Tensor, flow_language: Tensor, image_flow: Tensor
) -> Tensor:
    """Area of every triple whose three inner products are given; shapes broadcast, e.g. (n, N).

    Needs no (n, N, D) tensor: ⟨u,u⟩ = 2 − 2⟨I,L⟩, ⟨v,v⟩ = 2 − 2⟨F,L⟩,
    ⟨u,v⟩ = 1 − ⟨I,L⟩ − ⟨F,L⟩ + ⟨I,F⟩. Areas that rounding cannot tell from 0 (below 5e-4 in
    float32) are 0 with gradient 0, so this is for shuffled triples; for matched ones see
    :func:`triangle_area`.
    """
    with torch.autocast(image_flow.device.type, enabled=False):
        image_language, flow_language, image_flow = map(
            full_precision, (image_language, flow_language, image_flow)
        )
        uu = 2 - 2 * image_language
        vv = 2 - 2 * flow_language
        uv = 1 - image_language - flow_language + image_flow
        return _half_root(uu * vv - uv.square(), 8 * torch.finfo(uv.dtype).eps)
