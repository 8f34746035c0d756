"""Several processes: the whole batch's gradient, the same curve, no sample lost or doubled."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.losses.base import LossTerm, TermSetup
from dynaflip.losses.config import ObjectiveConfig
from dynaflip.platform.cluster import free_port
from dynaflip.platform.training.backends.in_process import train_in_process
from dynaflip.platform.training.config import (
    DataConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
)
from dynaflip.platform.training.context import Context
from dynaflip.platform.training.curve_file import METRICS, CurveFile
from dynaflip.platform.training.data.collate import Batch
from dynaflip.platform.training.data.sampling import Position
from dynaflip.platform.training.job import TrainJob, build_job
from dynaflip.platform.training.loop import Pretraining

pytestmark = [pytest.mark.ddp, pytest.mark.integration]


class Offset(LossTerm):
    """An outsider's term with a parameter: distance of the image embeddings to a learned point."""

    frames = ("t", "next")

    def __init__(self, setup: TermSetup) -> None:
        super().__init__(setup)
        assert setup.embedding_dim is not None
        self.point = torch.nn.Parameter(torch.full((setup.embedding_dim,), 0.1))

    def forward(
        self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        return (outputs["z_image"] - self.point).square().mean()


def config_of(folder: Path, **train: object) -> PretrainConfig:
    settings = {"steps": 4, "report_every_steps": 1, "checkpoint_every_steps": 2, "threads": 1}
    settings |= {"eval_every_steps": 0, "diagnostics_every_steps": 0, "num_workers": 2}
    return PretrainConfig(
        triplets=str(folder),
        model=ModelConfig(
            image=ImageConfig(image_px=32, frozen_blocks=14),
            flow=FlowConfig(width=16, layers=1, heads=2, channels=4, cnn_layers=2),
            embedding_dim=8,
            hidden_dim=16,
        ),
        # Everything that processes must agree on; the queue forgets whole batches, because the
        # order within one differs with the number of processes.
        objective=ObjectiveConfig(
            learn_temperature=True,
            queue_size=16,
            temporal_negatives=8,
            extra_terms={f"class:{__name__}:Offset": 0.5},
        ),
        data=DataConfig(batch_size=4, shuffle_buffer_mb=0.01),
        optimizer=OptimizerConfig(lr=1e-3, warmup_share=0),
        train=TrainConfig(**{**settings, **train}),  # type: ignore[arg-type]
    )


def work(rank: int, world: int, port: int, config: PretrainConfig, output: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = train_in_process(config, Path(output))
    torch.save(dict(done.state.model.state_dict()), f"{output}/{rank}.pt")


def spawn(config: PretrainConfig, output: Path, world: int) -> None:
    output.mkdir(parents=True, exist_ok=True)
    mp.spawn(work, args=(world, free_port(), config, str(output)), nprocs=world, join=True)


class BothRanks:
    """The batches of two ranks side by side: what one process with the whole batch trains on."""

    def __init__(self, job: TrainJob) -> None:
        self.feeds = [job.feed(rank=rank, workers=2) for rank in (0, 1)]

    def __call__(self, position: Position) -> Iterator[Batch]:
        for first, second in zip(*(feed(position) for feed in self.feeds), strict=True):
            yield {
                name: torch.cat([value, second[name]])
                if isinstance(value, torch.Tensor)
                else value + second[name]
                for name, value in first.items()
            }

    def close(self) -> None:
        for feed in self.feeds:
            feed.close()


def train_whole(config: PretrainConfig, output: Path) -> None:
    """One process with the whole batch of two."""
    one = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=2 * config.data.batch_size),
        train=dataclasses.replace(config.train, num_workers=1),
    )
    output.mkdir(parents=True)
    curves = CurveFile(output)
    context = Context(report=lambda metrics: curves.append(int(metrics["step"]), metrics))
    feed = BothRanks(build_job(config, str(output / "none")))
    with contextlib.closing(feed):
        Pretraining(one, context, build_job(one, str(output / "none")).length).run(feed)


def reports(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / METRICS).read_text().splitlines()]


def test_two_processes_in_parts_have_one_process_s_curve_and_it_can_go_on_alone(
    triplet_folder: Path, tmp_path: Path
) -> None:
    config = config_of(triplet_folder, min_workers=1, micro_batch_size=3)
    spawn(config, tmp_path / "run", 2)
    one, two = (torch.load(tmp_path / "run" / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    found = reports(tmp_path / "run")
    assert [r["step"] for r in found] == [1, 2, 3, 4]
    assert found[-1]["train/temperature"] != pytest.approx(config.objective.temperature, abs=1e-6)

    train_whole(config_of(triplet_folder), tmp_path / "whole")
    terms = ("contrastive", "temporal", "flow", "temperature", "Offset", "loss")
    expected = reports(tmp_path / "whole")
    for mine, theirs in zip(found, expected, strict=True):
        for term in terms:
            found_one, expected_one = (r[f"train/{term}"] for r in (mine, theirs))
            assert found_one == pytest.approx(expected_one, rel=1e-3, abs=1e-4), term
    # Later ones drift apart: AdamW's first steps follow the sign of gradients that are rounding.
    norms = [curve[0]["train/gradient_norm"] for curve in (found, expected)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)

    # 36 triplets: 4 steps of 2 x 4 leave 4. Go back to step 2 and lose a worker there.
    checkpoints = tmp_path / "run" / "checkpoints"
    saved = load_file(checkpoints / "step-00000004" / "objective.safetensors")
    assert (saved["terms.Offset.point"] != 0.1).all(), "trained and saved"
    had = load_file(checkpoints / "step-00000002" / "position.safetensors")["had"]
    assert len(set(had.tolist())) == len(had) == 16
    for path in (checkpoints / "step-00000004").iterdir():
        path.unlink()
    rest = train_in_process(config, tmp_path / "run")
    assert rest.step == 4
    assert rest.batch_size == 8, "the same whole batch, by one process"
    later = load_file(checkpoints / "step-00000004" / "position.safetensors")
    assert set(later["seen"].tolist()) == set(had.tolist())
    assert len(later["had"]) == 16
    assert not set(later["had"].tolist()) & set(had.tolist()), "no sample twice in the epoch"
    assert (rest.state.position.epoch, rest.state.position.steps) == (0, 2)


def test_two_processes_measure_what_one_does_and_half_a_line_of_curves_is_no_end(
    triplet_folder: Path, tmp_path: Path
) -> None:
    settings = {"steps": 1, "diagnostics_every_steps": 1}
    config = config_of(triplet_folder, **settings)
    spawn(config, tmp_path / "two", 2)
    train_whole(config, tmp_path / "whole")
    (two,), (one,) = reports(tmp_path / "two"), reports(tmp_path / "whole")
    for term in ("contrastive", "temporal", "flow"):
        name = f"diagnostics/gradient_norm/{term}"
        assert two[name] == pytest.approx(one[name], rel=0.05), term
    alone = config_of(triplet_folder, num_workers=1, **settings)
    train_in_process(alone, tmp_path / "one")
    (before,) = reports(tmp_path / "one")
    with (tmp_path / "one" / METRICS).open("a") as curves:
        curves.write('{"step": 2, "train/lo')
    train_in_process(alone, tmp_path / "one")
    assert reports(tmp_path / "one") == [before], "nothing twice, and nothing in halves"


@pytest.mark.parametrize("backbone", ["efficientnet-lite0", "dinov2"])
def test_weights_that_nothing_reads_hold_no_process_up(
    triplet_folder: Path, tmp_path: Path, backbone: str
) -> None:
    """The headline's flow encoder reads no frame, and DINOv2 has a mask token of its own."""
    config = config_of(triplet_folder, steps=3)
    model = dataclasses.replace(
        config.model, flow=dataclasses.replace(config.model.flow, condition=False)
    )
    if backbone == "dinov2":
        from transformers import Dinov2Config, Dinov2Model

        tiny = Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28
        )
        Dinov2Model(tiny).save_pretrained(tmp_path / "dinov2")
        image = ImageConfig(name=str(tmp_path / "dinov2"), image_px=28)
        model = dataclasses.replace(model, image=image)
    spawn(dataclasses.replace(config, model=model), tmp_path / "run", 2)
    one, two = (torch.load(tmp_path / "run" / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [r["step"] for r in reports(tmp_path / "run")] == [1, 2, 3]
