"""Where a run's time goes: the meter's parts, and what a step waits for."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.losses.config import ObjectiveConfig
from dynaflip.platform.training.config import OptimizerConfig, PretrainConfig, TrainConfig
from dynaflip.platform.training.meter import STEP_PARTS, Meter
from dynaflip.platform.training.step import NonFiniteLoss, train_step
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
