"""The losses' matrix products keep float32 where the process allows TF32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.contrastive import contrastive_loss
from dynaflip.losses.examples import Examples
from dynaflip.losses.inner_products import exact_float32, inner_products


@pytest.fixture(autouse=True)
def tf32_allowed() -> Iterator[None]:
    """As where a user allows it; no CPU computes in it, so the flag is what can be seen."""
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


class Products(TorchDispatchMode):
    """The precision that each matrix product would have on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "matmul"):
            self.seen.append(torch.backends.cuda.matmul.fp32_precision)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "config",
    [
        ObjectiveConfig(negatives=("others", "swapped", "shuffled")),
        ObjectiveConfig(alignment="pairwise"),
        ObjectiveConfig(modalities=("image", "language")),
    ],
    ids=["simplex", "pairwise", "two"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_product_of_the_contrastive_loss_is_in_tf32(
    config: ObjectiveConfig, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    points = {
        name: torch.nn.functional.normalize(torch.randn(6, 4), dim=-1).to(dtype).requires_grad_()
        for name in config.modalities
    }
    examples = Examples(points, torch.arange(6), torch.arange(6))
    with Products() as products, torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(config, examples, examples)["loss"]
        forward = len(products.seen)
        loss.backward()
    assert loss.dtype == torch.float32
    assert 0 < forward < len(products.seen)
    assert set(products.seen) == {"ieee"}
    assert torch.backends.cuda.matmul.allow_tf32, "as the process had it"


def test_the_gradient_is_that_of_a_matrix_product() -> None:
    torch.manual_seed(0)
    rows = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    columns = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(inner_products, (rows, columns))
    assert torch.autograd.gradcheck(inner_products, (rows, columns.detach()))
    assert torch.equal(inner_products(rows, columns), rows @ columns.T)


def test_the_process_s_own_choice_comes_back_after_an_error() -> None:
    def fail() -> None:
        with exact_float32():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
