"""The triangle's area: closed form, invariances, finite gradients, numerics near alignment."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dynaflip.losses.energy import energy, energy_matrix
from dynaflip.losses.simplex import simplex_volume, volume_from_inner_products

NAMES = ("language", "image", "flow")


def unit_triples(
    num: int = 6, dim: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    return unit_points(3, num, dim, seed, dtype)


def unit_points(
    modalities: int, num: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        F.normalize(torch.randn(num, dim, generator=generator, dtype=dtype))
        for _ in range(modalities)
    ]


def named(points: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip(NAMES, points, strict=True))


def triangle_area(language: Tensor, image: Tensor, flow: Tensor) -> Tensor:
    return simplex_volume([language, image, flow])


def textbook_area(language: Tensor, image: Tensor, flow: Tensor) -> Tensor:
    """The paper's formula as printed, on any broadcast (…, D)."""
    u, v = image - language, flow - language
    uu, vv, uv = (u * u).sum(-1), (v * v).sum(-1), (u * v).sum(-1)
    return 0.5 * (uu * vv - uv**2).clamp(min=0).sqrt()


def test_area_of_known_triangles() -> None:
    x, y, z = torch.eye(3, dtype=torch.float64)[:, None]
    assert triangle_area(x, y, z).item() == pytest.approx(math.sqrt(3) / 2)  # side √2
    assert triangle_area(x, -x, y).item() == pytest.approx(1.0)  # right angle, legs √2
    assert triangle_area(x, y, y).item() == 0.0


def test_area_matches_herons_formula() -> None:
    language, image, flow = unit_triples(50)
    a, b, c = (
        (image - language).norm(dim=1),
        (flow - image).norm(dim=1),
        (language - flow).norm(dim=1),
    )
    s = (a + b + c) / 2
    heron = (s * (s - a) * (s - b) * (s - c)).sqrt()
    torch.testing.assert_close(triangle_area(language, image, flow), heron)


def test_area_does_not_depend_on_order_or_rotation() -> None:
    triples = unit_triples(20, 7)
    expected = triangle_area(*triples)
    for order in ((1, 0, 2), (2, 1, 0), (1, 2, 0)):
        torch.testing.assert_close(triangle_area(*(triples[i] for i in order)), expected)
    turned, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))
    torch.testing.assert_close(triangle_area(*(z @ turned for z in triples)), expected)


@pytest.mark.parametrize("anchor", ["language", "image", "flow"])
def test_matrix_equals_the_textbook_formula(anchor: str) -> None:
    triples = named(unit_triples(9, 6))
    mixed = {name: z[:, None] if name == anchor else z[None] for name, z in triples.items()}
    area = textbook_area(mixed["language"], mixed["image"], mixed["flow"])
    cosine = (mixed["language"] * mixed["flow"]).sum(-1)
    matrix = energy_matrix(anchor, triples, triples, 0.7, 1.3).expand(9, 9)
    torch.testing.assert_close(matrix, 0.7 * area - 1.3 * cosine)
    torch.testing.assert_close(matrix.diagonal(), energy(triples, 0.7, 1.3))


def test_gradients_agree_with_finite_differences() -> None:
    triples = tuple(z.requires_grad_() for z in unit_triples(4, 3))
    assert torch.autograd.gradcheck(triangle_area, triples)

    def area_sum(*z: Tensor) -> Tensor:
        unit = named([F.normalize(each) for each in z])
        return energy_matrix("image", unit, unit, 1.0, 1.0).sum()

    assert torch.autograd.gradcheck(area_sum, triples)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case", ["one point", "image = language", "flow = language", "image = flow"]
)
def test_gradient_is_finite_at_degenerate_triangles(case: str, dtype: torch.dtype) -> None:
    a, b = unit_triples(3, 4, dtype=dtype)[:2]
    points = {
        "one point": (a, a, a),
        "image = language": (a, a, b),
        "flow = language": (a, b, a),
        "image = flow": (a, b, b),
    }[case]
    language, image, flow = (z.clone().requires_grad_() for z in points)
    area = triangle_area(language, image, flow)
    corners = (language, image, flow)
    inner = {(b, c): (corners[b] * corners[c]).sum(-1) for b, c in ((0, 1), (0, 2), (1, 2))}
    (area.sum() + volume_from_inner_products(inner, 3).sum()).backward()
    assert (area == 0).all()
    for z in (language, image, flow):
        assert z.grad is not None
        assert z.grad.isfinite().all()


def test_gradient_is_finite_on_the_way_to_collapse() -> None:
    center = unit_triples(64, 32, dtype=torch.float32)[0][:1]
    for noise in (1e-1, 1e-3, 1e-5, 1e-7, 0.0):
        raw = [(center + noise * torch.randn(64, 32)).requires_grad_() for _ in range(3)]
        unit = named([F.normalize(z) for z in raw])
        total = energy(unit, 1.0, 1.0).sum()
        for anchor in ("language", "image", "flow"):
            total = total + energy_matrix(anchor, unit, unit, 1.0, 1.0).sum()
        total.backward()
        for z in raw:
            assert z.grad is not None
            assert z.grad.isfinite().all(), noise


@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3, 1e-4])
def test_matched_area_is_exact_near_alignment(noise: float) -> None:
    """Inner products are 17 % off at noise 1e-3 in float32; explicit differences are not."""
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(200, 256, generator=generator, dtype=torch.float64)
    near = [
        F.normalize(center + noise * torch.randn(200, 256, generator=generator).double()).float()
        for _ in range(3)
    ]
    truth = textbook_area(*(z.double() for z in near))
    error = (triangle_area(*near).double() - truth).abs() / truth
    assert error.max() < 1e-4


def test_half_precision_is_computed_in_full() -> None:
    triples = named([z.bfloat16() for z in unit_triples(8, 16, dtype=torch.float32)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        area = triangle_area(*triples.values())
        matrix = energy_matrix("language", triples, triples, 1.0, 1.0)
    assert area.dtype == matrix.dtype == torch.float32
    full = {name: z.double() for name, z in triples.items()}
    torch.testing.assert_close(
        matrix.double(), energy_matrix("language", full, full, 1.0, 1.0), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("modalities", [2, 3, 4, 5])
def test_volume_of_any_number_of_modalities_is_the_gram_determinant(modalities: int) -> None:
    points = unit_points(modalities, 10, 7)
    edges = torch.stack([z - points[0] for z in points[1:]], 1)
    gram = edges @ edges.mT
    expected = torch.linalg.det(gram).sqrt() / math.factorial(modalities - 1)
    torch.testing.assert_close(simplex_volume(points), expected)
    torch.testing.assert_close(simplex_volume(points[::-1]), expected)
    inner = {
        (b, c): (points[b] * points[c]).sum(-1)
        for b in range(modalities)
        for c in range(b + 1, modalities)
    }
    torch.testing.assert_close(volume_from_inner_products(inner, modalities), expected)


def test_volume_of_known_simplices() -> None:
    corners = list(torch.eye(5, dtype=torch.float64)[:, None])
    assert simplex_volume(corners[:2]).item() == pytest.approx(math.sqrt(2))  # a segment's length
    assert simplex_volume(corners[:4]).item() == pytest.approx(1 / 3)  # tetrahedron of side √2


def test_a_fourth_modality_has_energies_and_finite_gradients() -> None:
    raw = [z.requires_grad_() for z in unit_points(4, 6, 8, dtype=torch.float32)]
    points = dict(zip((*NAMES, "touch"), raw, strict=True))
    total = energy(points, 1.0, 1.0).sum()
    for anchor in points:
        matrix = energy_matrix(anchor, points, points, 1.0, 1.0)
        assert matrix.shape == (6, 6)
        torch.testing.assert_close(matrix.diagonal(), energy(points, 1.0, 1.0))
        total = total + matrix.sum()
    total.backward()
    assert all(z.grad is not None and z.grad.isfinite().all() for z in raw)
