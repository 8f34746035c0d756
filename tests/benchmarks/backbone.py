"""How fast a training step is on a GPU, in plain torch: images/s, MFU, memory, the loss's share.

    python tests/benchmarks/backbone.py                       # ViT-B/14 at 224 px, batch sweep
    python tests/benchmarks/backbone.py --size tiny --device cpu --batches 2 4 --repeats 2

Random weights in DINOv2's architecture. Each line is the training step of the whole model
(three images a sample) with and without torch.compile, beside forward and backward of
transformers' own backbone on the same images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.losses.objective import Objective
from dynaflip.platform.training.config import PretrainConfig, TrainConfig
from dynaflip.platform.training.step import train_step
from dynaflip.platform.training.train_state import TrainingState

# Dense bfloat16 peak in FLOP/s by part of the device's name, from the vendor's data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
SIZES: dict[str, dict[str, int]] = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
}
STEPS, GRID, TEXT_DIM, IMAGES = 7, 20, 384, 3


def config_of(folder: str, px: int, *, compiled: bool, checkpointing: bool) -> PretrainConfig:
    """A full-size model around the backbone of a transformers folder."""
    image = ImageConfig(name=folder, pretrained=False, image_px=px)
    return PretrainConfig(
        model=ModelConfig(image=image, flow=FlowConfig()),
        train=TrainConfig(
            precision="bfloat16", compile=compiled, activation_checkpointing=checkpointing
        ),
    )


def batch_of(size: int, px: int, device: str) -> dict[str, Tensor]:
    """Random numbers in the shapes of a batch."""
    flow = (size, STEPS, GRID, GRID)
    ids = torch.arange(size, device=device)
    images = {
        f"image_{name}": torch.randint(0, 256, (size, 3, px, px), dtype=torch.uint8, device=device)
        for name in ("t", "next", "far")
    }
    return {
        **images,
        "text_features": torch.randn(size, TEXT_DIM, device=device),
        "flow_origin_m": torch.randn(size, GRID, GRID, 3, device=device),
        "flow_displacement_m": 0.05 * torch.randn(*flow, 3, device=device),
        "flow_visible": torch.rand(flow, device=device) < 0.8,
        "median_depth_m": 1 + torch.rand(size, device=device),
        "far_valid": torch.ones(size, dtype=torch.bool, device=device),
        **dict.fromkeys(("group", "clip", "triplet"), ids),
    }


def seconds(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of a call after two warm-up calls."""
    times = []
    for number in range(repeats + 2):
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def loss_seconds(batch: int, dim: int, device: str, repeats: int) -> tuple[float, float]:
    """The objective alone, forward and backward, and three matrix products of its size."""
    config = PretrainConfig()
    objective = Objective(config.objective)
    data = batch_of(batch, 8, device)
    z = {f"z_{n}": torch.randn(batch, 256, device=device) for n in ("image", "language", "flow")}
    outputs = {name: torch.nn.functional.normalize(value) for name, value in z.items()}
    outputs |= {n: torch.randn(batch, dim, device=device) for n in ("d_t", "d_next", "d_far")}
    outputs["flow_prediction"] = torch.randn(batch, STEPS, GRID, GRID, 3, device=device)
    outputs = {name: value.requires_grad_() for name, value in outputs.items()}
    rows = outputs["z_image"].detach()

    def products() -> None:
        for _ in range(3):
            rows @ rows.T

    took = seconds(lambda: objective(outputs, data)["loss"].backward(), device, repeats)
    return took, seconds(products, device, repeats)


def transformers_seconds(
    state: TrainingState, batch: int, px: int, device: str, repeats: int
) -> float:
    """Forward and backward of the bare backbone on as many images."""
    network: Any = state.model.image.backbone.network
    pixels = torch.randn(IMAGES * batch, 3, px, px, device=device)

    def run() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            out = network(pixel_values=pixels).last_hidden_state
        out.float().mean().backward()

    return seconds(run, device, repeats)


def measure(args: argparse.Namespace, folder: str, batch: int, compiled: bool) -> dict[str, Any]:
    """One line of the table."""
    config = config_of(folder, args.px, compiled=compiled, checkpointing=args.checkpointing)
    state = TrainingState(config, args.device, 1000)
    model, objective = state.parallel()
    data = batch_of(batch, args.px, args.device)

    def step() -> None:
        train_step(model, objective, state.optimizer, state.schedule, data, autocast=torch.bfloat16)

    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    took = seconds(step, args.device, args.repeats)
    found = {
        "batch": batch,
        "compile": compiled,
        "step_ms": 1e3 * took,
        "images_per_s": IMAGES * batch / took,
    }
    if args.device == "cuda":
        found["memory_GB"] = torch.cuda.max_memory_allocated() / 1e9
    if not compiled:
        with FlopCounterMode(display=False) as counter:
            step()
        found["TFLOP"] = counter.get_total_flops() / 1e12
        found["loss_ms"], found["three_products_ms"] = (
            1e3 * value
            for value in loss_seconds(batch, state.model.image.dim, args.device, args.repeats)
        )
        found["loss_share"] = found["loss_ms"] / found["step_ms"]
        own = transformers_seconds(state, batch, args.px, args.device, args.repeats)
        found["backbone_alone_ms"] = 1e3 * own
    return found


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure every batch size, print a line each, and return them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--no-compile", action="store_true", help="eager mode alone")
    args = parser.parse_args(argv)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    from transformers import Dinov2Config

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        Dinov2Config(**SIZES[args.size], image_size=args.px, patch_size=14).save_pretrained(folder)
        for batch in args.batches:
            flop = 0.0
            for compiled in (False,) if args.no_compile else (False, True):
                try:
                    line = measure(args, folder, batch, compiled)
                except torch.cuda.OutOfMemoryError:
                    print(f"batch {batch}, compile {compiled}: out of memory")
                    torch.cuda.empty_cache()
                    continue
                flop = line.get("TFLOP", flop)
                if peak is not None and flop:
                    line["MFU"] = 1e12 * flop / (line["step_ms"] / 1e3) / peak
                print(json.dumps({"device": name, **line}))
                lines.append(line)
    return lines


if __name__ == "__main__":
    main()
