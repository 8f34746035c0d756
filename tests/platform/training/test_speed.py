"""Where a run's time goes: the meter's parts, and what a step waits for."""

from __future__ import annotations

import dataclasses
import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import CONFIG, Trial
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.errors import UserError
from dynaflip.losses.config import ObjectiveConfig
from dynaflip.platform.training.config import OptimizerConfig, PretrainConfig, TrainConfig
from dynaflip.platform.training.curve_file import CurveFile
from dynaflip.platform.training.flops import flops_per_example
from dynaflip.platform.training.meter import STEP_PARTS, Meter
from dynaflip.platform.training.profiler import TABLE, TRACE, collect, profile_uri
from dynaflip.platform.training.reports import ReportWriter
from dynaflip.platform.training.step import NonFiniteLoss, train_step
from dynaflip.platform.training.time_use import limit_line, limited_by, time_shares
from dynaflip.platform.training.train_state import TrainingState

SIZE = 6


def state_of(objective: ObjectiveConfig | None = None, **train: Any) -> TrainingState:
    """A tiny model's whole state."""
    model = ModelConfig(
        image=ImageConfig(image_px=32, pretrained=False, frozen_blocks=15),
        flow=FlowConfig(width=16, layers=1, heads=2, channels=4, cnn_layers=2),
        embedding_dim=8,
        hidden_dim=8,
    )
    config = PretrainConfig(
        model=model,
        objective=objective or ObjectiveConfig(),
        train=TrainConfig(**train),
        optimizer=OptimizerConfig(warmup_share=0),
    )
    return TrainingState(config, "cpu", 10)


def batch_of(size: int = SIZE, seed: int = 0) -> dict[str, Tensor]:
    """Random examples, each of its own clip and caption."""
    random = torch.Generator().manual_seed(seed)
    number = torch.arange(size)
    images = {
        f"image_{name}": torch.randint(
            0, 256, (size, 3, 32, 32), generator=random, dtype=torch.uint8
        )
        for name in ("t", "next", "far")
    }
    return images | {
        "text_features": torch.randn(size, 384, generator=random),
        "flow_origin_m": torch.rand(size, 20, 20, 3, generator=random) + 1,
        "flow_displacement_m": torch.randn(size, 7, 20, 20, 3, generator=random) * 0.02,
        "flow_visible": torch.rand(size, 7, 20, 20, generator=random) < 0.8,
        "median_depth_m": torch.rand(size, generator=random) + 1,
        "window_start_s": torch.zeros(size, dtype=torch.float64),
        "window_end_s": torch.full((size,), 0.5, dtype=torch.float64),
        "far_valid": torch.ones(size, dtype=torch.bool),
        **dict.fromkeys(("group", "triplet", "example", "clip", "task", "recording"), number),
        "source": torch.zeros(size, dtype=torch.int64),
    }


class Waits(TorchDispatchMode):
    """Records what makes the host wait for the device, and constants that are copied to it."""

    # `lift_fresh` is what `torch.tensor(number)` begins with.
    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or any(name.startswith(waiting) for waiting in self.WAITING):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "objective",
    [
        ObjectiveConfig(),
        ObjectiveConfig(queue_size=16, negatives=("others", "swapped", "shuffled"), direct=1.0),
        ObjectiveConfig(alignment="pairwise", learn_temperature=True),
        ObjectiveConfig(negatives=()),
    ],
    ids=["default", "queue", "pairwise", "no_negatives"],
)
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_a_step_waits_for_its_device_once(
    objective: ObjectiveConfig, micro_batch_size: int | None
) -> None:
    state = state_of(objective)
    data = batch_of()
    step = (state.model, state.objective, state.optimizer, state.schedule, data)
    train_step(*step, micro_batch_size=micro_batch_size)
    with Waits() as waits:
        train_step(*step, micro_batch_size=micro_batch_size)
    # Whether loss and gradient are finite: `bool()` of one tensor.
    assert waits.seen == ["_local_scalar_dense"]


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_touches_no_weight(bad: str) -> None:
    state = state_of()
    data = batch_of()
    if bad == "loss":
        data["flow_displacement_m"] = data["flow_displacement_m"] * float("nan")
    else:
        state.model.fuse[1].weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    named = "flow" if bad == "loss" else "^gradient_norm not finite"
    with pytest.raises(NonFiniteLoss, match=named):
        train_step(state.model, state.objective, state.optimizer, state.schedule, data)
    assert all(torch.equal(v, before[name]) for name, v in state.model.state_dict().items())
    assert state.schedule.last_epoch == 0
    assert not state.optimizer.state


def test_the_meter_divides_a_run() -> None:
    meter = Meter(2 * SIZE)

    def slow() -> Any:
        for seed in range(2):
            time.sleep(0.02)
            yield batch_of(seed=seed)

    for batch in meter.waiting(slow()):
        meter.timer.start()
        time.sleep(0.03)
        meter.timer.mark("forward_backward")
        time.sleep(0.01)
        meter.timer.mark("optimizer")
        meter.add({"loss": torch.tensor(2.0)}, batch)
    with meter.time("report"):
        time.sleep(0.05)
    metrics = meter.flush()
    assert metrics["train/loss"] == 2
    parts = [metrics[f"speed/{part}_s"] for part in STEP_PARTS]
    assert metrics["speed/data_s"] >= 0.02
    assert metrics["speed/forward_backward_s"] >= 0.03
    assert metrics["speed/optimizer_s"] >= 0.01
    assert sum(parts) == pytest.approx(1 / metrics["speed/steps_per_s"])
    assert metrics["speed/images_per_s"] == pytest.approx(3 * metrics["speed/samples_per_s"])
    assert metrics["speed/report_wait_s"] == meter.totals_s["report"] >= 0.05
    assert metrics["speed/checkpoint_wait_s"] == 0
    assert sum(meter.totals_s.values()) <= meter.elapsed_s()


def test_the_end_of_a_run_says_what_limited_it(triplet_folder: Path, tmp_path: Path) -> None:
    train = dataclasses.replace(CONFIG.train, steps=4)
    trial = Trial(triplet_folder, dataclasses.replace(CONFIG, train=train), tmp_path)
    trial.pretraining().run(trial.batches)
    last = trial.reports[-1]
    lines: list[str] = []
    writer = ReportWriter(CurveFile(tmp_path), lines.extend, total_steps=4)
    for report in trial.reports:
        writer(report)
    writer.flush()
    assert lines[-2].startswith("step 4/4")
    assert lines[-1].startswith("limited by ")
    assert sum("limited by" in line for line in lines) == 1
    shares = {name: value for name, value in last.items() if name.startswith("speed/share/")}
    assert sum(shares.values()) == pytest.approx(1)
    assert not any(name.startswith("speed/share/") for r in trial.reports[:-1] for name in r)


def test_the_largest_share_is_the_limit() -> None:
    totals_s = {"data": 2.0, "forward_backward": 70.0, "optimizer": 5.0, "rest": 3.0}
    totals_s |= {"report": 0.0, "checkpoint": 1.0, "evaluation": 8.0, "diagnostics": 1.0}
    metrics = time_shares(totals_s, 100.0, [2.0, 2.0])
    assert limited_by(metrics) == "forward_backward"
    assert metrics["speed/share/start"] == pytest.approx(0.1)
    line = limit_line(metrics)
    assert line.startswith("limited by forward and backward pass: 70 % of the time (")
    assert "evaluation 8 %" in line
    assert "reports" not in line
    # Another rank waits for its data, and this one for that rank inside its backward pass.
    behind = time_shares(totals_s, 100.0, [2.0, 52.0])
    assert behind["speed/share/data"] == pytest.approx(0.52)
    assert behind["speed/share/forward_backward"] == pytest.approx(0.2)
    assert limited_by(behind) == "data"
    assert limited_by({"train/loss": 1.0}) is None


def test_steps_are_profiled_on_request(triplet_folder: Path, tmp_path: Path) -> None:
    train = dataclasses.replace(CONFIG.train, steps=4, eval_every_steps=0, profile_steps="1-3")
    config = dataclasses.replace(CONFIG, train=train)
    checkpoints = tmp_path / "run" / "checkpoints"
    trial = Trial(triplet_folder, config, checkpoints)
    trial.pretraining().run(trial.batches)
    (line,) = (text for text in trial.logged if text.startswith("profile of steps 1 to 3"))
    assert "https://ui.perfetto.dev" in line
    (folder,) = collect(profile_uri(str(checkpoints)), tmp_path / "copy")
    assert folder == tmp_path / "copy" / "steps-1-3"
    events = json.loads(gzip.decompress((folder / TRACE).read_bytes()))["traceEvents"]
    steps = [e for e in events if str(e.get("name", "")).startswith("Optimizer.step#AdamW")]
    assert len(steps) == 2
    assert "aten::convolution" in (folder / TABLE).read_text()
    late = dataclasses.replace(config, train=dataclasses.replace(train, profile_steps="3-9"))
    with pytest.raises(UserError, match=r"train\.profile_steps 3-9: the run has 4 steps"):
        Trial(triplet_folder, late, tmp_path / "late").pretraining()
    for wrong in ("5-5", "9", "a-b", "10:15"):
        with pytest.raises(ValueError, match="profile_steps: give START-STOP"):
            TrainConfig(profile_steps=wrong)
    assert profile_uri("s3://bucket/prefix/run-1") == "s3://bucket/prefix/run-1-profile"


def test_the_model_s_operations_are_those_of_its_products(tmp_path: Path) -> None:
    from transformers import ViTConfig

    width, layers, tokens, patch = 16, 2, 17, 8
    ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=4 * width,
        image_size=32,
        patch_size=patch,
    ).save_pretrained(tmp_path)
    state = state_of()
    image = dataclasses.replace(
        state.config.model.image, name=str(tmp_path), pretrained=False, frozen_blocks=0
    )

    def count(**more: Any) -> int:
        settings = dataclasses.replace(image, **more)
        config = dataclasses.replace(state.config.model, image=settings)
        run = TrainingState(dataclasses.replace(state.config, model=config), "cpu", 10)
        whole = flops_per_example(run.model)
        assert all(parameter.grad is None for parameter in run.model.parameters())
        # The backbone's share: what is left when it is another one that computes nothing.
        run.model.image.backbone = Nothing(run.model.image.dim)
        return whole - flops_per_example(run.model)

    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    patches = (tokens - 1) * 3 * patch**2 * width
    pooler = width**2  # runs, but no loss reads it
    # Three frames, two operations a product; backward twice forward, but for the pixels' gradient.
    assert count() == 3 * 2 * (3 * layers * block + 2 * patches + pooler)
    # What is frozen runs forward alone, and gives the first trained block nothing to go on with.
    assert count(frozen_blocks=layers) == 3 * 2 * (layers * block + patches + pooler)
    assert count(frozen_blocks=1) == 3 * 2 * ((1 + 3) * block + patches + pooler)


class Nothing(nn.Module):
    """A backbone without a product."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.ones(dim))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.constant.expand(len(pixels), -1)
        return embedding, embedding[:, None]
