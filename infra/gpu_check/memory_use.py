"""Peak memory of a large batch: in one pass, in micro-batches (GradCache), with recomputation."""

from __future__ import annotations

from typing import Any

import torch
from full_model import IMAGES, batch_of, config_of, dinov2_folder, free, image_px, step_of
from part import Part

from dynaflip.platform.training.train_state import TrainingState


def run(part: Part) -> None:
    """A row for each way to compute the same step; the first that fits is the reference."""
    size, micro = (4, 2) if part.dry else (256, 64)
    ways: dict[str, dict[str, Any]] = {
        "one pass": {},
        "activations recomputed": {"activation_checkpointing": True},
        f"micro-batches of {micro}": {"micro_batch_size": micro},
        "both": {"micro_batch_size": micro, "activation_checkpointing": True},
    }
    plain_rate = None
    plain_peak = None
    with dinov2_folder(part) as folder:
        for name, train in ways.items():
            case = f"batch {size}, {name}"
            if part.left_s() < 8:
                part.add(case, note="no time left")
                continue
            try:
                rate, peak = _measure(part, folder, size, train)
            except torch.OutOfMemoryError:
                part.add(case, note="out of memory")
                continue
            finally:
                free()
            plain_rate, plain_peak = plain_rate or rate, plain_peak or peak
            part.add(
                case,
                value=rate,
                unit="images/s",
                reference=plain_rate,
                reference_name="first row",
                peak_gb=peak,
                note=f"{peak / plain_peak:.2f} x memory" if peak and plain_peak else "",
            )


def _measure(
    part: Part, folder: str, size: int, train: dict[str, Any]
) -> tuple[float, float | None]:
    """Images/s and peak memory in GB of a step."""
    part.forget_peak()
    px = image_px(part)
    state = TrainingState(config_of(folder, px, size, **train), part.device, total_steps=1000)
    step = step_of(state, batch_of(size, px, part.device))
    took = part.seconds(step, 1 if part.dry else 4)
    return IMAGES * size / took, part.peak_gb()
