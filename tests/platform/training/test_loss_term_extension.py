"""A loss term from outside: one module of the user's, no line anywhere else."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkout import REPOSITORY
from safetensors.torch import load_file
from test_golden_curve import batch_of, tiny_model

import dynaflip
from dynaflip.errors import UserError
from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.objective import Objective
from dynaflip.losses.terms import TERMS
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.training.config import OptimizerConfig, PretrainConfig
from dynaflip.platform.training.optimizer import build_optimizer, build_schedule
from dynaflip.platform.training.plots import curves_figure
from dynaflip.platform.training.progress import progress_line
from dynaflip.platform.training.step import NonFiniteLoss, train_step

MODULE = '''
import torch

from dynaflip.losses.base import LossTerm


class Smoothness(LossTerm):
    """Squared change of the predicted flow from step to step."""

    frames = ("t",)

    def forward(self, outputs, batch):
        return outputs["flow_prediction"].diff(dim=1).square().mean()


class Centre(LossTerm):
    """Distance of the image embeddings to a learned point beyond a margin."""

    frames = ("t", "next")
    metrics = ("centre_norm",)

    def __init__(self, setup, margin=0.0):
        super().__init__(setup)
        self.margin = margin
        self.point = torch.nn.Parameter(torch.full((setup.embedding_dim,), 0.1))

    def forward(self, outputs, batch):
        far = (outputs["z_image"] - self.point).square().sum(-1).sub(self.margin).relu()
        return far.mean(), {"centre_norm": self.point.norm()}


class Unnamed(LossTerm):
    def forward(self, outputs, batch):
        return outputs["d_t"].mean(), {"unnamed": outputs["d_t"].mean()}


class Rows(LossTerm):
    def forward(self, outputs, batch):
        return outputs["d_t"].mean(1)


class Spoilt(Centre):
    metrics = ()

    def forward(self, outputs, batch):
        return (self.point * 0).sum().sqrt() + outputs["d_t"].mean()


class NoTerm:
    pass
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The outsider's module, as `class:` names it; another name for each test."""
    name = f"terms_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return f"class:{name}"


def batch() -> dict[str, torch.Tensor]:
    return batch_of(np.random.default_rng(1))


def step(objective: Objective, steps: int = 1) -> dict[str, torch.Tensor]:
    model = tiny_model()
    model.learnt_frames = objective.frames()
    config = OptimizerConfig(lr=1e-2, warmup_share=0)
    optimizer = build_optimizer(model, objective, config)
    schedule = build_schedule(optimizer, config, 10)
    for _ in range(steps):
        terms = train_step(model, objective, optimizer, schedule, batch())
    return terms


def test_a_term_is_named_by_the_settings_weighed_and_shown(mine: str) -> None:
    name = f"{mine}:Smoothness"
    given = {"objective.extra_terms": f"{{{name}: 0.5}}"}
    config = load_config(PretrainConfig, None, given).objective
    objective = Objective(config, 8)
    terms = step(objective, steps=2)
    total = sum(weight * terms[term] for term, weight in objective.weights.items())
    torch.testing.assert_close(terms["loss"].float(), total, rtol=1e-5, atol=1e-6)
    assert terms["Smoothness"] > 0
    curves = {f"train/{key}": float(value) for key, value in terms.items()}
    line = progress_line({"step": 1, **curves}, 10, config.weighted())
    assert f"Smoothness {curves['train/Smoothness']:.3f}" in line
    figure = curves_figure({key: [(1, v)] for key, v in curves.items()}, config.weighted())
    assert "Smoothness" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_a_term_s_parameters_and_arguments_and_metrics(mine: str) -> None:
    spec = {"weight": 2.0, "margin": 0.25}
    config = ObjectiveConfig(extra_terms={f"{mine}:Centre": spec})
    objective = Objective(config, 8)
    first = objective(tiny_model()(batch()), batch())
    wider = {f"{mine}:Centre": {**spec, "margin": 0.0}}
    without = Objective(ObjectiveConfig(extra_terms=wider), 8)(tiny_model()(batch()), batch())
    assert without["Centre"] - first["Centre"] == pytest.approx(0.25, abs=0.1)
    terms = step(objective, steps=2)
    point = objective.state_dict()["terms.Centre.point"]
    assert (point != 0.1).any(), "trained"
    assert terms["centre_norm"] != pytest.approx(0.1 * math.sqrt(8), abs=1e-6)
    again = Objective(config, 8)
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.state_dict()["terms.Centre.point"], point)


def test_only_the_frames_that_weighted_terms_read_get_gradient(mine: str) -> None:
    alone = ObjectiveConfig(contrastive=0, temporal=0, flow=0)
    assert Objective(alone).frames() == ("t",)
    weighted = dataclasses.replace(alone, extra_terms={f"{mine}:Centre": 1.0})
    assert Objective(weighted, 8).frames() == ("t", "next")
    assert weighted.weighted() == ("Centre",)
    unweighted = dataclasses.replace(alone, extra_terms={f"{mine}:Centre": 0.0})
    objective = Objective(unweighted, 8)
    assert objective.frames() == ("t",)
    objective(tiny_model()(batch()), batch())["loss"].backward()
    assert all(p.grad is not None for p in objective.parameters()), "DDP waits for each of them"


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (
            {"smoothness": 1.0},
            "extra_terms.smoothness: there is no loss term 'smoothness'; known: ",
        ),
        ({"flow": 1.0}, "extra_terms.flow: the setting objective.flow is its weight"),
        ({"class:a:flow": 1.0}, "another term is named flow"),
        ({"class:a:B": -1.0}, "extra_terms.class:a:B: the weight must be in"),
        ({"class:a:B": {"weight": False}}, "extra_terms.class:a:B: the weight must be in"),
        ({"class:B": 1.0}, "must be class:MODULE:NAME"),
    ],
)
def test_a_setting_that_names_no_term_is_refused(terms: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(extra_terms=terms)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("NoTerm", {}, "must be a subclass of dynaflip.losses.base.LossTerm"),
        ("Missing", {}, "cannot import"),
        ("Centre", {"edge": 1.0}, "unexpected keyword argument 'edge'"),
    ],
)
def test_a_class_that_is_no_term_is_one_line(
    mine: str, name: str, arguments: dict[str, float], message: str
) -> None:
    config = ObjectiveConfig(extra_terms={f"{mine}:{name}": {"weight": 1.0, **arguments}})
    with pytest.raises(UserError, match=message):
        Objective(config, 8)


def test_a_term_that_breaks_its_contract_is_named(mine: str) -> None:
    for name, message in (("Unnamed", r"Unnamed: returned the metrics \['unnamed'\]"),
                          ("Rows", r"Rows: returned shape \(8,\)")):  # fmt: skip
        objective = Objective(ObjectiveConfig(extra_terms={f"{mine}:{name}": 1.0}), 8)
        with pytest.raises(ValueError, match=message):
            objective(tiny_model()(batch()), batch())


def test_a_term_whose_own_gradient_is_not_finite_stops_the_run(mine: str) -> None:
    objective = Objective(ObjectiveConfig(extra_terms={f"{mine}:Spoilt": 1.0}), 8)
    with pytest.raises(NonFiniteLoss):
        step(objective)
    assert objective.state_dict()["terms.Spoilt.point"].isfinite().all()


def test_checkpoints_of_before_the_table_load() -> None:
    config = ObjectiveConfig(learn_temperature=True, queue_size=4)
    objective = Objective(config, 8)
    now = {name: torch.ones_like(value) for name, value in objective.state_dict().items()}
    names = {"terms.contrastive.memory_bank.": "queue.", "terms.contrastive.": ""}
    earlier = {}
    for name, value in now.items():
        if name.endswith((".clip", ".window_s")):
            continue  # a bank had no windows
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        earlier[names[prefix] + name.removeprefix(prefix)] = value
    assert sorted(earlier) == [
        "log_temperature", "queue.example", "queue.group", "queue.written",
        "queue.z_flow", "queue.z_image", "queue.z_language",
    ]  # fmt: skip
    objective.load_state_dict(earlier)
    loaded = objective.state_dict()
    assert (loaded.pop("terms.contrastive.memory_bank.clip") == -1).all(), "of no clip"
    assert (loaded.pop("terms.contrastive.memory_bank.window_s") == 0).all()
    assert all(torch.equal(v, torch.ones_like(v)) for v in loaded.values())


def test_the_table_names_classes_that_keep_the_contract() -> None:
    objective = Objective(ObjectiveConfig())
    assert list(objective.weights) == list(TERMS.table)
    with pytest.raises(UserError, match="was read from a file"):
        TERMS.resolve("class:os:getcwd", trusted=False)


def test_one_weight_has_a_key_of_its_own_on_the_command_line_and_in_a_sweep(mine: str) -> None:
    from dynaflip.platform.cli import config_parser, parse_config
    from dynaflip.platform.sweep.space import paper_values, parse_space, with_values

    key = f"objective.extra_terms.{mine}:Centre"
    parser = config_parser("", PretrainConfig)
    words = [f"--{key}", "0.5", "--data.source_weights.sim=2"]
    _, config = parse_config(parser, PretrainConfig, words, {})
    assert config.objective.weights()["Centre"] == 0.5
    assert config.data.source_weights == {"sim": 2.0}

    (dimension,) = space = parse_space([f"{key}=uniform(0,1)"])
    assert paper_values(space, config) == {key: 0.0}, "the paper has no such term"
    with pytest.raises(UserError, match=r"trial 0 has the paper's 0, which has no logarithm; use"):
        paper_values(parse_space([f"{key}=log(0.01,1)"]), config)
    changed = with_values(config, {dimension.key: 0.25})
    assert changed.objective.extra_terms == {f"{mine}:Centre": 0.25}
    section = {f"{mine}:Centre": {"weight": 0.5, "margin": 0.1}}
    objective = dataclasses.replace(config.objective, extra_terms=section)
    changed = with_values(dataclasses.replace(config, objective=objective), {key: 0.25})
    assert changed.objective.extra_terms == {f"{mine}:Centre": {"weight": 0.25, "margin": 0.1}}
    for bad in (f"{key}=int(1,2.5)", f"{key}=log(0,1)", f"{key}=uniform(-1,1)"):
        with pytest.raises(UserError, match="--search"):
            parse_space([bad])


def test_settings_without_extra_terms_keep_the_digest_of_before() -> None:
    from dynaflip.renames import first_settings

    assert "extra_terms" not in first_settings(ObjectiveConfig())
    given = ObjectiveConfig(extra_terms={"class:a:B": 1.0})
    assert first_settings(given)["extra_terms"] == {"class:a:B": 1.0}


@pytest.mark.integration
@pytest.mark.parametrize(
    "backend", ["in_process", pytest.param("ray_train", marks=pytest.mark.ray)]
)
def test_a_term_goes_through_the_whole_job(
    mine: str, tmp_path: Path, triplet_folder: Path, backend: str
) -> None:
    """Trained, checkpointed, logged and resumed by `jobs/pretrain.py`, and no line elsewhere."""
    words = ["--config", "tests/tiny.yaml", "--triplets", str(triplet_folder)]
    words += ["--backend", backend, f"--objective.extra_terms.{mine}:Centre", "0.5"]
    words += ["--output", str(tmp_path / "run")] if backend == "in_process" else []
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "jobs/pretrain.py", *words],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path, "DYNAFLIP_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Centre " in done.stdout, "in the progress line"
    (run,) = tmp_path.glob("run" if backend == "in_process" else "home/runs/*")
    saved = load_file(next(run.glob("checkpoints/step-00000003/objective.safetensors")))
    assert (saved["terms.Centre.point"] != 0.1).any(), "trained and saved"
    info = dynaflip.load_encoder(str(run / "encoder")).info
    assert info["metrics"]["train/centre_norm"] > 0
