"""What makes a run larger must not change what it computes; what may go wrong must show."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_golden_curve import batch_of, tiny_model
from torch import Tensor

from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.encoders.image import build_image_encoder
from dynaflip.encoders.model import FRAMES
from dynaflip.losses.base import LossTerm, TermSetup
from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.objective import Objective
from dynaflip.platform.training import diagnostics
from dynaflip.platform.training.ablations import apply_variant
from dynaflip.platform.training.config import (
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
)
from dynaflip.platform.training.diagnostics import Collapsed, CollapseGuard, diagnose
from dynaflip.platform.training.grad_cache import forward
from dynaflip.platform.training.optimizer import build_optimizer, build_schedule
from dynaflip.platform.training.step import train_step
from dynaflip.platform.training.train_state import TrainingState

OBJECTIVE = ObjectiveConfig(negatives=("others", "shuffled"), shuffles=3)


def batch(seed: int = 1) -> dict[str, Tensor]:
    return batch_of(np.random.default_rng(seed))


@pytest.mark.parametrize("parts", [1, 3, 8, 100])
def test_a_batch_in_parts_has_the_whole_batch_s_loss_and_gradient(parts: int) -> None:
    whole, split = tiny_model(), tiny_model()
    losses = []
    for model, size in ((whole, None), (split, parts)):
        outputs, backward = forward(model, batch(), size)
        loss = Objective(OBJECTIVE)(outputs, batch())["loss"]
        backward(loss)
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    for (name, a), b in zip(whole.named_parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_the_second_pass_sees_the_first_one_s_dropout() -> None:
    model = tiny_model()
    model.flow.config = dataclasses.replace(model.flow.config, condition_dropout=0.5)
    seen: list[Tensor] = []
    model.register_forward_hook(lambda module, args, out: seen.append(out["z_flow"].detach()))
    outputs, backward = forward(model, batch(), 3)
    backward(outputs["z_flow"].sum())
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first, second)
    again, _ = forward(model, batch(), 3)
    assert not torch.equal(again["z_flow"], first), "chance is at work at all"


@pytest.mark.parametrize("kind", ["efficientnet", "vit"])
def test_recomputed_activations_give_the_same_gradient(kind: str, tmp_path: Path) -> None:
    config = ImageConfig(image_px=32, pretrained=False, frozen_blocks=1)
    if kind == "vit":
        from transformers import ViTConfig

        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        ViTConfig(**sizes, intermediate_size=16, image_size=32, patch_size=8).save_pretrained(
            tmp_path
        )
        config = dataclasses.replace(config, name=str(tmp_path))
    plain = build_image_encoder(config).train()
    thrifty = copy.deepcopy(plain)
    thrifty.recompute_activations()
    kept = [0, 0]
    for number, encoder in enumerate((plain, thrifty)):

        def count(tensor: Tensor, number: int = number) -> Tensor:
            kept[number] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            out = encoder(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        out.square().sum().backward()
    assert kept[1] < kept[0]
    for (name, a), b in zip(plain.named_parameters(), thrifty.named_parameters(), strict=True):
        torch.testing.assert_close(b[1].grad, a.grad, msg=name)


def state_of(**train: object) -> TrainingState:
    flow = FlowConfig(width=16, layers=1, heads=2, channels=4, cnn_layers=2)
    image = ImageConfig(image_px=32, pretrained=False, frozen_blocks=15)
    model = ModelConfig(image=image, flow=flow, embedding_dim=8, hidden_dim=8)
    return TrainingState(PretrainConfig(model=model, train=TrainConfig(**train)), "cpu", 10)  # type: ignore[arg-type]


def test_the_average_of_the_weights_is_the_one_that_is_kept() -> None:
    state = state_of(ema_decay=0.75)
    weight = state.model.fuse[1].weight
    expected = torch.zeros_like(weight)
    for step in range(3):
        with torch.no_grad():
            weight.add_(1.0)
        state.advance(torch.arange(4))
        now = weight.detach().clone()
        expected = now if step == 0 else 0.75 * expected + 0.25 * now
    torch.testing.assert_close(state.evaluated_model().fuse[1].weight, expected)
    assert state_of().evaluated_model() is not None
    assert state.evaluated_model() is not state.model
    snapshot = state.snapshot([])
    assert torch.equal(snapshot.tensors["average"]["fuse.1.weight"], expected)


@pytest.mark.slow
def test_a_compiled_model_computes_the_same() -> None:
    plain, compiled = state_of(), state_of(compile=True)
    model, _ = compiled.parallel()
    data = {k: v.float() if v.is_floating_point() else v for k, v in batch().items()}
    data["text_features"] = torch.randn(8, 384)
    with torch.no_grad():
        for name, value in plain.model(data).items():
            torch.testing.assert_close(model(data)[name], value, rtol=1e-3, atol=1e-4)
    assert set(plain.model.state_dict()) == set(compiled.model.state_dict())


def test_evaluation_goes_through_the_bare_model() -> None:
    state = state_of(compile=True)
    model, _ = state.parallel()
    assert isinstance(model, torch._dynamo.OptimizedModule)
    assert state.evaluated_model() is state.model
    assert state.model._compiled_call_impl is None


def test_other_ranks_leave_the_diagnostics_to_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    model, objective = tiny_model(), Objective(OBJECTIVE, 8).double()
    monkeypatch.setattr(diagnostics, "rank", lambda: 1)
    names = diagnose(model, objective, batch())
    assert set(names) == {f"diagnostics/gradient_norm/{name}" for name in objective.weights}


@pytest.mark.parametrize(
    ("workers", "memory", "rows"), [(1, None, 1024), (4, None, 256), (1, 32, 32), (4096, None, 1)]
)
def test_diagnostics_take_few_rows_of_large_batches(
    monkeypatch: pytest.MonkeyPatch, workers: int, memory: int | None, rows: int
) -> None:
    monkeypatch.setattr(diagnostics, "world_size", lambda: workers)
    large = {"image_t": torch.zeros(2000, 1), "triplet_id": ["a"] * 2000}
    assert {k: len(v) for k, v in diagnostics.some_rows(large, memory).items()} == {"image_t": rows}


def test_diagnostics_of_a_batch_change_nothing() -> None:
    model = tiny_model().train()
    objective = Objective(dataclasses.replace(OBJECTIVE, temporal=0.0, queue_size=8), 8).double()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    actual = diagnose(model, objective, batch())
    assert model.training
    assert objective.training
    assert all(torch.equal(v, before[k]) for k, v in objective.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert actual["diagnostics/gradient_norm/temporal"] == 0
    assert actual["diagnostics/gradient_norm/contrastive"] > 0
    for name in ("image", "language", "flow"):
        assert 1 <= actual[f"diagnostics/effective_rank/{name}"] <= 7
        assert 0 <= actual[f"diagnostics/spread/{name}"] <= 1
        assert -4 <= actual[f"diagnostics/uniformity/{name}"] <= 0
    for pair in ("image_language", "image_flow", "language_flow"):
        assert 0 <= actual[f"diagnostics/retrieval/{pair}"] <= 1
        assert actual[f"diagnostics/alignment/{pair}"] >= 0


@pytest.mark.parametrize(("negatives", "collapses"), [((), True), (("others",), False)])
def test_a_collapse_is_found_where_there_is_one(
    negatives: tuple[str, ...], collapses: bool
) -> None:
    model = tiny_model()
    aligned = ObjectiveConfig(negatives=negatives, modalities=("image", "language"), flow=0.0)
    objective = Objective(aligned)
    config = OptimizerConfig(lr=5e-3, warmup_share=0)
    optimizer = build_optimizer(model, objective, config)
    schedule = build_schedule(optimizer, config, 60)
    guard = CollapseGuard(0.05, 3, "warn")
    logged = []
    for step in range(60):
        train_step(model, objective, optimizer, schedule, batch(step % 4))
        if step % 20 == 19:
            logged.append(guard.check(step + 1, diagnose(model, objective, batch(step % 4))))
    lines = [line for line in logged if line]
    assert len(lines) == collapses, logged
    if collapses:
        assert "embeddings collapsed in 3 checks in a row" in lines[0]
        assert "effective rank" in lines[0]


def test_the_guard_stops_where_it_is_asked_to_and_forgets_a_single_find() -> None:
    flat = {"diagnostics/spread/image": 0.01, "diagnostics/effective_rank/image": 1.2}
    fine = {"diagnostics/spread/image": 0.5, "diagnostics/effective_rank/image": 5.0}
    guard = CollapseGuard(0.05, 2, "stop")
    assert guard.check(1, flat) is None
    assert guard.check(2, fine) is None
    assert guard.check(3, flat) is None
    with pytest.raises(Collapsed, match=r"step 4: .*image \(spread 0.01, effective rank 1.2\)"):
        guard.check(4, flat)


@pytest.mark.parametrize("variant", ["full", "no_temporal", "flow_prediction_only"])
def test_frames_that_no_term_reads_get_no_gradient_and_change_none(variant: str) -> None:
    config = apply_variant(PretrainConfig(), variant).objective
    read = {"full": FRAMES, "no_temporal": ("t", "next"), "flow_prediction_only": ("t",)}
    narrowed = Objective(config).frames()
    assert narrowed == read[variant]
    gradients = []
    for frames, parts in ((FRAMES, None), (narrowed, None), (narrowed, 3)):
        model = tiny_model()
        model.learnt_frames = frames
        outputs, backward = forward(model, batch(), parts)
        if parts is None:
            assert outputs["d_far"].requires_grad == ("far" in frames)
        backward(Objective(config)(outputs, batch())["loss"])
        gradients.append([p.grad for p in model.parameters()])
    for narrow in gradients[1:]:
        for expected, actual in zip(gradients[0], narrow, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_without_a_far_frame_a_term_of_weight_0_that_reads_it_is_left_out() -> None:
    config = apply_variant(PretrainConfig(), "no_temporal").objective
    objective, model = Objective(config), tiny_model()
    assert objective.frames() == ("t", "next")
    model.learnt_frames = objective.frames()
    fewer = {name: value for name, value in batch().items() if name != "image_far"}
    for part in (None, 3):
        outputs, backward = forward(model, fewer, part)
        assert "d_far" not in outputs
        terms = objective(outputs, fewer)
        assert "temporal" not in terms
        backward(terms["loss"])
    whole = objective(forward(model, batch(), None)[0], batch())
    assert whole["loss"].item() == pytest.approx(terms["loss"].item(), rel=1e-12)
    assert whole["temporal"] > 0
    actual = diagnose(model, objective, fewer)
    assert "diagnostics/gradient_norm/temporal" not in actual
    assert actual["diagnostics/gradient_norm/contrastive"] > 0


def test_a_term_that_reads_the_far_frame_must_name_it() -> None:
    class Forgetful(LossTerm):
        frames = ("t",)

        def forward(self, outputs, batch):  # type: ignore[no-untyped-def]
            return (outputs["d_t"] - outputs["d_far"]).square().mean()

    objective = Objective(ObjectiveConfig())
    objective.terms["Forgetful"] = Forgetful(TermSetup(ObjectiveConfig()))
    objective.weights["Forgetful"] = 1.0
    fewer = {name: value for name, value in batch().items() if name != "image_far"}
    objective.weights["temporal"] = 0.0
    with pytest.raises(ValueError, match="Forgetful: reads d_far, but `frames` does not name far"):
        objective(tiny_model_outputs(fewer), fewer)


def tiny_model_outputs(data: dict[str, Tensor]) -> dict[str, Tensor]:
    model = tiny_model()
    model.learnt_frames = ("t", "next")
    return model(data)


def test_a_run_learns_from_the_frames_that_its_objective_reads() -> None:
    config = dataclasses.replace(
        apply_variant(PretrainConfig(), "language_image_only"),
        model=ModelConfig(image=ImageConfig(image_px=32)),
    )
    assert TrainingState(config, "cpu", 10).model.learnt_frames == ("t", "next")
