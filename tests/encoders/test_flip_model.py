"""The three towers: shapes, stop-gradient, visibility, and the way to a folder and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dynaflip.encoders.checkpoint import load_image_encoder, load_model, save_folder
from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.encoders.model import DynaFLIP
from dynaflip.errors import UserError
from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.objective import Objective

SMALL = ModelConfig(
    image=ImageConfig(image_px=32),
    flow=FlowConfig(width=32, layers=1, channels=8),
    embedding_dim=16,
    hidden_dim=32,
)
NUM, STEPS, GRID = 3, 7, 20


def batch_of(size_px: int = 32, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def image() -> Tensor:
        return torch.randint(0, 256, (NUM, 3, size_px, size_px), dtype=torch.uint8, generator=g)

    return {
        "image_t": image(),
        "image_next": image(),
        "image_far": image(),
        "text_features": torch.randn(NUM, 384, generator=g),
        "flow_origin_m": torch.randn(NUM, GRID, GRID, 3, generator=g),
        "flow_displacement_m": 0.1 * torch.randn(NUM, STEPS, GRID, GRID, 3, generator=g),
        "flow_visible": torch.rand(NUM, STEPS, GRID, GRID, generator=g) < 0.7,
        "median_depth_m": 0.5 + torch.rand(NUM, generator=g),
        "group": torch.arange(NUM),
        "triplet": torch.arange(NUM),
        "window_start_s": torch.arange(NUM).double(),
        "window_end_s": torch.arange(NUM) + 0.5,
        "clip": torch.arange(NUM),
        "far_valid": torch.ones(NUM, dtype=torch.bool),
    }


@pytest.fixture(scope="module")
def model() -> DynaFLIP:
    torch.manual_seed(0)
    return DynaFLIP(SMALL)


def test_outputs_and_gradients_reach_every_parameter(model: DynaFLIP) -> None:
    batch = batch_of()
    out = model(batch)
    for name in ("z_image", "z_language", "z_flow"):
        assert out[name].shape == (NUM, 16)
        torch.testing.assert_close(out[name].norm(dim=1), torch.ones(NUM))
    for name in ("d_t", "d_next", "d_far"):
        assert out[name].shape == (NUM, model.image.dim)
    assert out["flow_prediction"].shape == (NUM, STEPS, GRID, GRID, 3)
    assert (out["flow_prediction"] == 0).all()  # starts from predicting no motion
    terms = Objective(ObjectiveConfig())(out, batch)
    assert terms["flow"].item() == pytest.approx(1.0)
    terms["loss"].backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    model.zero_grad()


def test_embeddings_do_not_depend_on_the_rest_of_the_batch(model: DynaFLIP) -> None:
    batch = batch_of()
    whole, single = model(batch), model({k: v[:1] for k, v in batch.items()})
    for name, value in single.items():
        torch.testing.assert_close(value, whole[name][:1], atol=1e-4, rtol=1e-4)


def test_condition_informs_the_flow_but_takes_no_gradient(model: DynaFLIP) -> None:
    batch = batch_of()
    flow = batch["flow_origin_m"], batch["flow_displacement_m"], batch["flow_visible"]
    condition = torch.randn(NUM, model.image.dim, requires_grad=True)
    z = model.encode_flow(*flow, condition)
    z.sum().backward()
    assert condition.grad is None
    assert not torch.allclose(z, model.encode_flow(*flow, condition.flip(0)))
    model.zero_grad()


def test_invisible_points_are_not_read(model: DynaFLIP) -> None:
    batch = batch_of()
    hidden = dict(batch)
    unseen = ~batch["flow_visible"].unsqueeze(-1)
    hidden["flow_displacement_m"] = batch["flow_displacement_m"].masked_fill(unseen, torch.nan)
    assert torch.equal(model(batch)["z_flow"], model(hidden)["z_flow"])
    never = ~batch["flow_visible"].any(1).unsqueeze(-1)
    hidden["flow_origin_m"] = batch["flow_origin_m"].masked_fill(never, torch.nan)
    assert torch.equal(model(batch)["z_flow"], model(hidden)["z_flow"])


def test_scale_of_the_scene_does_not_show(model: DynaFLIP) -> None:
    batch = batch_of()
    larger = {k: v * 4 if k.endswith("_m") else v for k, v in batch.items()}
    torch.testing.assert_close(model(larger)["z_flow"], model(batch)["z_flow"])
    objective = Objective(ObjectiveConfig())
    torch.testing.assert_close(
        objective(model(larger), larger)["flow"], objective(model(batch), batch)["flow"]
    )


@pytest.mark.parametrize("inputs", ["positions", "displacements"])
def test_flow_inputs_and_language_head_are_settings(inputs: str) -> None:
    flow = FlowConfig(width=32, layers=1, channels=8, inputs=inputs, condition=False)
    other = DynaFLIP(
        ModelConfig(
            image=ImageConfig(image_px=32),
            flow=flow,
            embedding_dim=16,
            hidden_dim=32,
            flow_head_language=True,
        )
    )
    batch = batch_of()
    assert other(batch)["z_flow"].shape == (NUM, 16)
    z = other.encode_flow(
        batch["flow_origin_m"], batch["flow_displacement_m"], batch["flow_visible"],
        torch.zeros(NUM, other.image.dim),
    )  # fmt: skip
    w = other.encode_flow(
        batch["flow_origin_m"], batch["flow_displacement_m"], batch["flow_visible"],
        torch.randn(NUM, other.image.dim),
    )  # fmt: skip
    assert torch.equal(z, w)  # no condition token


def test_folder_round_trip_is_bit_equal(model: DynaFLIP, tmp_path: Path) -> None:
    batch = batch_of()
    folder = save_folder(tmp_path / "deep" / "model", model, {"git_commit": "abc", "loss": 1.5})
    save_folder(folder, model, {"git_commit": "def"})  # replaces
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "encoder.safetensors",
        "towers.safetensors",
    ]
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    loaded = load_model(folder)
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    model.eval()
    with torch.no_grad():
        for name, value in model(batch).items():
            assert torch.equal(value, loaded(batch)[name]), name
        encoder = load_image_encoder(folder)
        assert torch.equal(encoder(batch["image_t"]), loaded.image(batch["image_t"]))
    assert encoder.info == {"git_commit": "def"}


def test_bad_folders_give_one_clear_line(model: DynaFLIP, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no encoder here"):
        load_image_encoder(tmp_path / "nowhere")
    folder = save_folder(tmp_path / "model", model, {})
    (folder / "encoder.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"encoder\.safetensors: cannot be read"):
        load_image_encoder(folder)
    (folder / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match="incomplete"):
        load_image_encoder(folder)
    described = json.loads((folder / "config.json").read_text())
    for name in ("model", "preprocessing", "image_architecture", "info"):
        rest = {key: value for key, value in described.items() if key != name}
        (folder / "config.json").write_text(json.dumps(rest))
        with pytest.raises(UserError, match=f"config.json: {name} missing"):
            load_image_encoder(folder)
    (folder / "config.json").write_text(json.dumps({**described, "format_version": 99}))
    with pytest.raises(UserError, match="format 99"):
        load_model(folder)


def test_a_flow_encoder_without_condition_leaves_no_weight_without_gradient() -> None:
    """DDP waits for the gradient of every weight that is to be trained."""
    flow = dataclasses.replace(SMALL.flow, condition=False)
    model = DynaFLIP(dataclasses.replace(SMALL, flow=flow)).train()
    outputs = model(batch_of())
    sum(value.sum() for value in outputs.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
