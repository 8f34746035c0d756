"""A training of a few steps through the in-process backend, and everything it leaves."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from dynaflip.encoders.backbones.base import Backbone
from dynaflip.encoders.config import ImageConfig
from dynaflip.encoders.model import DynaFLIP
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.training.backends.in_process import train_in_process
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.data import loader

SETTINGS: dict[str, Any] = {
    "model.image.name": f"class:{__name__}:CountedBlocks",
    "model.image.image_px": 32,
    "model.flow.width": 16,
    "model.flow.layers": 1,
    "model.flow.heads": 2,
    "model.flow.channels": 4,
    "model.flow.cnn_layers": 2,
    # Random numbers in every step.
    "model.flow.condition_dropout": 0.5,
    "model.embedding_dim": 8,
    "model.hidden_dim": 16,
    "data.batch_size": 4,
    "optimizer.lr": 1e-2,
    "train.steps": 4,
    "train.threads": 1,
    "train.report_every_steps": 1,
    "train.checkpoint_every_steps": 2,
    "train.eval_every_steps": 2,
    "train.diagnostics_every_steps": 2,
    "train.gallery_size": 4,
    "train.keep_checkpoints": 10,
}


class CountedBlocks(Backbone):
    """Two linear blocks over patches; counts how often a block is computed."""

    computed: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.layers = nn.ModuleList([_Block(), _Block()])
        # As a mask token of other libraries' models: no embedding depends on it.
        self.unread = nn.Parameter(torch.zeros(8))

    @classmethod
    def from_settings(cls, config: ImageConfig) -> CountedBlocks:
        """Random weights; frozen blocks count with the patches' embedding."""
        backbone = cls()
        for module in [backbone.embed, *backbone.layers][: config.frozen_blocks]:
            module.requires_grad_(False)
        return backbone

    def blocks(self) -> nn.ModuleList:
        """Both."""
        return self.layers

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, px, px) → (B, 8) and (B, P, 8)."""
        tokens = self.embed(pixels).flatten(2).transpose(1, 2)
        for block in self.layers:
            tokens = block(tokens)
        return tokens.mean(1), tokens


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        CountedBlocks.computed += 1
        return tokens + self.mix(tokens).tanh()


@dataclass
class Found:
    """What a run left: weights, curves, lines, files, and how it computed."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    evaluated: dict[str, Tensor] = field(default_factory=dict)  # the encoder's
    curves: list[dict[str, float]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # of the output folder, relative
    rows: int = 0  # most examples of one call of the model in training
    blocks: int = 0  # computed
    compiled: int = 0  # calls of torch.compile
    threads: int = 0  # torch's, in a step
    bfloat16: bool = False  # autocast in a step
    tf32: bool = False  # allowed to a GPU, in a step
    decode_threads: int = 0
    batches_ahead: int = 0
    error: str = ""

    def curve(self, name: str) -> list[float]:
        """Values of one curve."""
        return [point[name] for point in self.curves if name in point]


def train(triplets: Path, output: Path, patch: pytest.MonkeyPatch, **settings: Any) -> Found:
    """Train with some settings changed (dots as two underscores); never raises."""
    changed = {name.replace("__", "."): value for name, value in settings.items()}
    values = {**SETTINGS, **changed, "triplets": str(triplets)}
    found = Found()
    try:
        config = config_of(values)
        with _observed(found, patch):
            pretraining = train_in_process(config, output, found.lines.append)
    except (RuntimeError, ValueError) as error:
        found.error = f"{type(error).__name__}: {error}"
        return found
    state = pretraining.state
    found.weights = {k: v.clone() for k, v in state.model.state_dict().items()}
    found.evaluated = dict(state.evaluated_model().state_dict())
    lines = (output / "metrics.jsonl").read_text().splitlines()
    found.curves = [json.loads(line) for line in lines]
    found.files = sorted(str(p.relative_to(output)) for p in output.rglob("*"))
    return found


def config_of(values: dict[str, Any]) -> PretrainConfig:
    """Settings by dotted name, checked as those of a job are."""
    return load_config(PretrainConfig, None, {k: v for k, v in values.items() if v is not None})


def batches_of(number: int, size: int = 4) -> Iterator[dict[str, Any]]:
    """Batches of random numbers in the shapes that this model takes."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=generator)

    for step in range(number):
        ids = step * size + torch.arange(size)
        images = {
            f"image_{name}": torch.randint(
                0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator
            )
            for name in ("t", "next", "far")
        }
        yield {
            **images,
            "text_features": normal(384),
            "flow_origin_m": normal(20, 20, 3),
            "flow_displacement_m": 0.05 * normal(7, 20, 20, 3),
            "flow_visible": normal(7, 20, 20) < 1,
            "median_depth_m": 1 + normal().abs(),
            "window_start_s": torch.zeros(size, dtype=torch.float64),
            "window_end_s": torch.full((size,), 0.5, dtype=torch.float64),
            "far_valid": torch.ones(size, dtype=torch.bool),
            **dict.fromkeys(("group", "task", "clip", "recording", "triplet", "example"), ids),
            "source": torch.zeros(size, dtype=torch.int64),
            "triplet_id": [f"triplet-{number}" for number in ids.tolist()],
        }


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are equal bit by bit."""
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@contextlib.contextmanager
def _observed(found: Found, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Note how the run computes; nothing is replaced but the compilation, which takes a minute."""

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, DynaFLIP) and module.training:
            found.rows = max(found.rows, len(arguments[0]["image_t"]))
            found.threads = torch.get_num_threads()
            found.bfloat16 = torch.is_autocast_enabled("cpu")
            found.tf32 = torch.backends.cuda.matmul.allow_tf32

    def compiled(module: nn.Module, *words: object, **more: object) -> nn.Module:
        found.compiled += 1
        return module

    class Pool(ThreadPoolExecutor):
        def __init__(self, threads: int, name: str) -> None:
            super().__init__(threads, name)
            found.decode_threads = threads if name == "decode" else found.decode_threads

    class Ahead(loader.Prefetched):  # type: ignore[type-arg]
        def __init__(self, items: Iterable[Any], depth: int) -> None:
            super().__init__(items, depth)
            found.batches_ahead = depth

    threads, computed = torch.get_num_threads(), CountedBlocks.computed
    hook = nn.modules.module.register_module_forward_pre_hook(before)
    with patch.context() as inner:
        inner.setattr(torch, "compile", compiled)
        inner.setattr(loader, "ThreadPoolExecutor", Pool)
        inner.setattr(loader, "Prefetched", Ahead)
        try:
            yield
        finally:
            hook.remove()
            torch.set_num_threads(threads)
            found.blocks = CountedBlocks.computed - computed
