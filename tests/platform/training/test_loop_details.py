"""Details of the loop that no curve shows: seeds of steps, what stops a run, exact resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import SETTINGS, batches_of, config_of, equal, train
from torch import nn

from dynaflip.encoders.model import DynaFLIP
from dynaflip.platform.training.context import Context
from dynaflip.platform.training.data.index import ClipTable, read_index
from dynaflip.platform.training.data.order import epoch_rows, rank_batches
from dynaflip.platform.training.data.sampling import Position, Sampling
from dynaflip.platform.training.length import Plan
from dynaflip.platform.training.loop import Pretraining
from dynaflip.platform.training.step import NonFiniteLoss, train_step
from dynaflip.platform.training.train_state import TrainingState

QUIET = {"train.eval_every_steps": 0, "train.diagnostics_every_steps": 0}


def state_of(**settings: Any) -> TrainingState:
    changed = {name.replace("__", "."): value for name, value in settings.items()}
    return TrainingState(config_of({**SETTINGS, **changed}), "cpu", 4)


def seeds_of(rank: int, seed: int = 0) -> list[int]:
    """What torch's generator was seeded with when each step of a rank computed its model."""
    config = config_of({**SETTINGS, **QUIET, "train.seed": seed})
    context = Context(rank=rank, log=lambda line: None)
    training = Pretraining(config, context, Plan(16, 4, 4))
    seeds: list[int] = []

    def before(module: nn.Module, arguments: object) -> None:
        if isinstance(module, DynaFLIP):
            seeds.append(torch.initial_seed())

    hook = nn.modules.module.register_module_forward_pre_hook(before)
    try:
        training.run(lambda position: iter(batches_of(4)))
    finally:
        hook.remove()
    return seeds


def test_a_step_s_random_numbers_are_those_of_seed_step_and_rank() -> None:
    first, again, other_rank, other_seed = seeds_of(0), seeds_of(0), seeds_of(1), seeds_of(0, 1)
    assert len(set(first)) == 4, "each step draws others"
    assert first == again
    assert not set(first) & set(other_rank)
    assert not set(first) & set(other_seed)


def test_a_resumed_run_draws_averages_and_remembers_as_the_uninterrupted_one(
    triplet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random numbers in the step, a moving average, a memory bank, a learned temperature."""
    settings = {
        "train__ema_decay": 0.5,
        "objective__queue_size": 12,
        "objective__learn_temperature": True,
    }
    whole = train(triplet_folder, tmp_path / "whole", monkeypatch, **settings)
    assert not whole.error
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "whole", half)
    shutil.rmtree(half / "checkpoints" / "step-00000004")
    shutil.rmtree(half / "encoder")
    torch.manual_seed(1)  # another process has drawn other numbers
    rest = train(triplet_folder, half, monkeypatch, **settings)
    assert equal(whole.weights, rest.weights)
    assert equal(whole.evaluated, rest.evaluated)
    last = "step-00000004/objective.safetensors"
    one, two = (tmp_path / name / "checkpoints" / last for name in ("whole", "half"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("where", ["model", "objective"])
def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(where: str) -> None:
    state = state_of(objective__learn_temperature=True)
    module = state.model.fuse if where == "model" else state.objective
    next(module.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    (batch,) = batches_of(1)
    with pytest.raises(NonFiniteLoss, match="gradient_norm not finite"):
        train_step(state.model, state.objective, state.optimizer, state.schedule, batch)
    assert equal(before, dict(state.model.state_dict()))


def test_weights_that_nothing_reads_are_not_trained() -> None:
    """DDP would wait for their gradient for ever."""
    unread = [n for n, p in state_of().model.named_parameters() if not p.requires_grad]
    assert unread == ["image.backbone.unread"]


def test_batches_come_from_where_the_run_is() -> None:
    config = config_of({**SETTINGS, **QUIET, "train.steps": 7})
    asked: list[tuple[int, int]] = []
    training = Pretraining(config, Context(log=lambda line: None), Plan(16, 4, 7))

    def batches(position: Position) -> Any:
        asked.append((position.epoch, position.steps))
        return iter(batches_of(4))

    training.run(batches)
    assert asked == [(0, 0), (1, 0)]


def test_ranks_mix_their_rows_differently(triplet_folder: Path) -> None:
    """The same places of two ranks' rows in every batch would share batches in every epoch."""
    clips = read_index(str(triplet_folder)).train
    orders = [shuffle_places(clips, rank) for rank in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(orders[0])))


def shuffle_places(clips: ClipTable, rank: int) -> list[int]:
    """Which of a rank's rows come first, second …, with a buffer that holds all of them."""
    rows = epoch_rows(clips, Sampling({}, 0), Position())
    share = len(rows) // 2
    mine = rows.example[rank * share : (rank + 1) * share].tolist()
    batches = rank_batches(
        clips, Sampling({}, 0), Position(), rank=rank, workers=2, batch_size=1, buffer_mb=100
    )
    return [mine.index(example) for example in batches.example[:, 0].tolist()]
