"""The training step around ViT-B/14 at 224 px, beside transformers' own forward and backward.

Both take the same images in bfloat16 with random weights. Our step is everything of a step but
reading data: three images a sample through the encoder, language and flow towers, all heads, the
objective, clipping and AdamW.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from full_model import IMAGES, batch_of, config_of, dinov2_folder, free, image_px, step_of
from part import Part
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dynaflip.platform.training.flops import flops_per_example
from dynaflip.platform.training.train_state import TrainingState

COMPILE_S = 60.0  # that a first compilation may take


def run(part: Part) -> None:
    """Rows of a sweep over batch sizes, first as written, then compiled as far as time allows."""
    sizes = (2, 3) if part.dry else (32, 64, 128, 256, 512)
    # Most of a compiled sweep would be compiling.
    compiled_sizes = () if part.dry else (128, 256, 64)
    longest_s = COMPILE_S
    with dinov2_folder(part) as folder:
        for size in sizes:
            if part.left_s() > longest_s:
                _row(part, folder, size, compiled=False)
            else:
                part.add(f"batch {size}", note="no time left")
        for size in compiled_sizes:
            if part.left_s() < longest_s:
                part.add(f"batch {size}, compiled", note="no time left to compile")
                continue
            began = time.perf_counter()
            _row(part, folder, size, compiled=True)
            longest_s = max(30.0, time.perf_counter() - began)


def _row(part: Part, folder: str, size: int, *, compiled: bool) -> None:
    """Add the row of one batch size."""
    case = f"batch {size} ({IMAGES * size} images){', compiled' if compiled else ''}"
    # Compiled code would be kept otherwise, and made anew for sizes that may change.
    torch.compiler.reset()
    try:
        found = _measure(part, folder, size, compiled)
    except torch.OutOfMemoryError:
        part.add(case, note="out of memory: use train.micro_batch_size")
        return
    finally:
        free()
    note = f"step {1e3 * found.step_s:.0f} ms, {1e-12 * found.flop:.3g} TFLOP"
    if top := part.peak_flops():
        note += f"; transformers' MFU {100 * found.own_flop / found.own_s / top:.0f} %"
    part.add(
        case,
        value=IMAGES * size / found.step_s,
        unit="images/s",
        reference=IMAGES * size / found.own_s,
        reference_name="transformers",
        mfu=found.flop / found.step_s / top if top else None,
        peak_gb=found.peak_gb,
        note=note,
    )


@dataclass(frozen=True)
class Measured:
    """Our step, and transformers' forward and backward (``own``)."""

    step_s: float
    flop: float
    peak_gb: float | None
    own_s: float
    own_flop: float


def _measure(part: Part, folder: str, size: int, compiled: bool) -> Measured:
    px, repeats = image_px(part), 1 if part.dry else 6
    config = config_of(folder, px, size, compile=compiled)
    state = TrainingState(config, part.device, total_steps=1000)
    flop = float(size * flops_per_example(state.model))
    network: Any = state.model.image.backbone.network
    own_flop = IMAGES * size * _flop(network, torch.zeros(1, 3, px, px, device=part.device))
    network.zero_grad(set_to_none=True)
    part.forget_peak()
    step = step_of(state, batch_of(size, px, part.device))
    step_s, peak = part.seconds(step, repeats), part.peak_gb()
    del step
    state.optimizer.zero_grad(set_to_none=True)
    once = _transformers(part, network, size, compiled)
    return Measured(step_s, flop, peak, part.seconds(once, repeats), own_flop)


def _flop(network: nn.Module, pixels: Tensor) -> float:
    """Operations of a forward and backward pass, counted as :func:`flops_per_example` does."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(pixel_values=pixels).last_hidden_state.mean().backward()
    return float(counter.get_total_flops())


def _transformers(part: Part, network: Any, size: int, compiled: bool) -> Callable[[], None]:
    """Forward and backward of the bare network on as many images as a step has."""
    px = image_px(part)
    pixels = torch.randn(IMAGES * size, 3, px, px, device=part.device)
    forward = torch.compile(network.forward) if compiled else network.forward

    def once() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(part.device, dtype=torch.bfloat16):
            out = forward(pixel_values=pixels).last_hidden_state
        out.float().mean().backward()

    return once
