"""The device of a run: precision of its computation, its name, and its peak.

Needs torch alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

# Peak of dense matrix products in 1e12 operations a second: bfloat16, TF32, float32, by a part of
# the name that CUDA gives; the first that fits counts. From NVIDIA's data sheets, without sparsity.
PEAKS: tuple[tuple[str, tuple[float, float, float]], ...] = (
    ("B200", (2250, 1100, 75)),
    ("GH200", (989, 494, 67)),
    ("H200 NVL", (835, 417, 60)),
    ("H200", (989, 494, 67)),
    ("H100 PCIe", (756, 378, 51)),
    ("H100 NVL", (835, 417, 60)),
    ("H100", (989, 494, 67)),
    ("A100", (312, 156, 19.5)),
    ("A800", (312, 156, 19.5)),
    ("A30", (165, 82, 10.3)),
    ("A40", (150, 75, 37.4)),
    ("A10G", (70, 35, 31.5)),
    ("A10", (125, 62.5, 31.2)),
    ("L40S", (362, 183, 91.6)),
    ("L40", (181, 90.5, 90.5)),
    ("L4", (121, 60, 30.3)),
    ("RTX A6000", (155, 77.4, 38.7)),
    ("RTX 6000 Ada", (364, 182, 91.1)),
    ("RTX 4090", (165, 82.6, 82.6)),
    ("RTX 3090", (71, 35.6, 35.6)),
)


def precision_of(precision: str, device: str) -> str:
    """``bfloat16`` or ``float32``: the setting ``train.precision`` on a device."""
    if precision != "auto":
        return precision
    if torch.device(device).type != "cuda":
        return "float32"
    # Older GPUs emulate it, slower than float32.
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def autocast_dtype(precision: str, device: str) -> torch.dtype | None:
    """Dtype that the model is cast to in a run; None = its weights' own."""
    return torch.bfloat16 if precision_of(precision, device) == "bfloat16" else None


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let the process's float32 products and convolutions on a GPU use TF32, or not, for a block.

    Torch lets convolutions unless it is told otherwise. The losses decide for themselves
    (:mod:`dynaflip.losses.inner_products`).
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # By the older names, which torch.compile reads too.
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Full float32 and repeatable convolutions on a GPU, for a block."""
    cudnn = torch.backends.cudnn
    before, cudnn.deterministic = cudnn.deterministic, True
    try:
        with tf32(False):
            yield
    finally:
        cudnn.deterministic = before


def device_name(device: str) -> str:
    """The GPU's name, or ``CPU (4 threads)``."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"


def peak_flops(name: str, precision: str, *, tf32: bool) -> float | None:
    """Peak of dense matrix products in operations a second; None where it is not known.

    Args:
        name: of :func:`device_name`.
        precision: of :func:`precision_of`.
        tf32: whether float32 products use it.
    """
    kind = 0 if precision == "bfloat16" else 1 if tf32 else 2
    return next((1e12 * peaks[kind] for part, peaks in PEAKS if part in name), None)


def first_line(
    name: str, workers: int, precision: str, batch_size: int, *, tf32: bool = False
) -> str:
    """The hardware of a run: ``NVIDIA H100 x 8 workers, bfloat16, batch 8 x 32 = 256``."""
    exact = precision + (" with TF32" if tf32 and precision == "float32" else "")
    return (
        f"device {name}, {workers} worker(s), {exact}, batch {batch_size} a worker, "
        f"{workers * batch_size} in all"
    )
