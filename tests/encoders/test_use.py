"""What users do with an encoder: export, half precision, fine-tuning, the model card."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from dynaflip.encoders.checkpoint import load_image_encoder, save_folder
from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.encoders.export import export_onnx, export_program, save_transformers
from dynaflip.encoders.finetune import fold, prepare
from dynaflip.encoders.image import ImageEncoder, build_image_encoder
from dynaflip.encoders.model import DynaFLIP
from dynaflip.errors import UserError
from tests.encoders.test_transformers_models import vision_folder

PX = 32
LITE = ImageConfig(image_px=PX)
KINDS = ["efficientnet", "vit"]


def vit_folder(tmp_path: Path) -> str:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=PX, patch_size=8
    )
    Dinov2Model(config).save_pretrained(tmp_path / "vit")
    return str(tmp_path / "vit")


def model_of(kind: str, tmp_path: Path) -> DynaFLIP:
    torch.manual_seed(0)
    image = LITE if kind == "efficientnet" else ImageConfig(name=vit_folder(tmp_path), image_px=PX)
    flow = FlowConfig(width=16, layers=1, heads=2, channels=4, cnn_layers=2)
    return DynaFLIP(ModelConfig(image=image, flow=flow, embedding_dim=8, hidden_dim=8))


def encoder_of(kind: str, tmp_path: Path) -> ImageEncoder:
    return model_of(kind, tmp_path).image.eval()


def random_images(number: int) -> torch.Tensor:
    return torch.rand(number, 3, PX, PX, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_program_gives_the_encoder_s_own_output(kind: str, tmp_path: Path) -> None:
    encoder = encoder_of(kind, tmp_path)
    export_program(encoder, tmp_path / "encoder.pt2")
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    for number in (1, 5):
        images = random_images(number)
        with torch.no_grad():
            embedding, tokens = program(images)
            torch.testing.assert_close(embedding, encoder(images), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(tokens, encoder.tokens(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_onnx_file_gives_the_encoder_s_own_output(kind: str, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the extra `export`")
    import onnxruntime

    encoder = encoder_of(kind, tmp_path)
    path = export_onnx(encoder, tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for number in (1, 5):
        images = random_images(number)
        embedding, tokens = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(embedding, encoder(images).numpy(), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(tokens, encoder.tokens(images), rtol=1e-3, atol=1e-4)


def test_onnx_without_its_packages_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dynaflip.encoders.export as export

    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx and onnxscript: pip install 'dynaf"):
        export_onnx(encoder_of("efficientnet", tmp_path), tmp_path / "encoder.onnx")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_just_work(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    encoder = encoder_of(kind, tmp_path)
    with torch.no_grad():
        full = encoder(random_images(2))
        other = copy.deepcopy(encoder).to(dtype)(random_images(2))
    assert other.dtype == dtype
    torch.testing.assert_close(other.float(), full, rtol=0.1, atol=0.1 * full.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_low_rank_additions_train_alone_and_fold_into_an_ordinary_encoder(
    kind: str, tmp_path: Path
) -> None:
    encoder = encoder_of(kind, tmp_path)
    images = random_images(4)
    with torch.no_grad():
        before = encoder(images)
    keys = set(encoder.state_dict())
    trained = prepare(encoder, "lora", rank=2)
    everything = sum(p.numel() for p in encoder.parameters())
    assert 0 < sum(p.numel() for p in trained) < 0.4 * everything
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), before)  # nothing is added at first
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        encoder(images).square().mean().backward()
        optimizer.step()
    assert all(p.grad is None for p in encoder.parameters() if not p.requires_grad)
    with torch.no_grad():
        after = encoder(images)
        assert (after - before).abs().max() > 1e-4
        fold(encoder)
        torch.testing.assert_close(encoder(images), after, rtol=1e-4, atol=1e-5)
    assert set(encoder.state_dict()) == keys


def test_frozen_and_full_and_an_unknown_mode(tmp_path: Path) -> None:
    encoder = encoder_of("efficientnet", tmp_path)
    assert prepare(encoder, "frozen") == []
    assert len(prepare(encoder, "full")) == len(list(encoder.parameters()))
    with pytest.raises(UserError, match="mode 'half' is not one of frozen, lora, full"):
        prepare(encoder, "half")


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_blocks_that_pretraining_froze_learn_downstream(mode: str) -> None:
    encoder = build_image_encoder(ImageConfig(image_px=PX, frozen_blocks=5))
    trained = prepare(encoder, mode, rank=2)
    encoder(random_images(2)).sum().backward()
    assert all(parameter.grad is not None for parameter in trained)


def test_the_folder_has_a_card_with_data_metrics_and_licence(tmp_path: Path) -> None:
    info = {
        "data_digest": "abc",
        "steps": 12,
        "sources": {"sim": 10, "ego": 5},
        "licences": ["MIT"],
        "metrics": {"heldout/retrieval/all/top1": 0.25, "train/loss": 1.5},
        "git_commit": "123",
    }
    model = model_of("efficientnet", tmp_path)
    folder = save_folder(tmp_path / "encoder", model, info)
    card = (folder / "README.md").read_text()
    for part in ("efficientnet-lite0", "abc", "sim: 10", "MIT", "0.25", "load_encoder", f"{PX} px"):
        assert part in card, part
    assert load_image_encoder(folder).info == info


@pytest.mark.parametrize("kind", KINDS)
def test_exporting_leaves_the_encoder_as_it_was(kind: str, tmp_path: Path) -> None:
    encoder = encoder_of(kind, tmp_path).half().train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    export_program(encoder)
    assert encoder.training
    for name, value in encoder.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("kind", ["dinov2", "siglip", "clip", "vit"])
def test_plain_transformers_makes_the_pixels_that_the_encoder_sees(
    kind: str, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor

    folder = vision_folder(kind, tmp_path / "from")
    encoder = build_image_encoder(ImageConfig(name=str(folder), image_px=56))
    processor = AutoImageProcessor.from_pretrained(save_transformers(encoder, tmp_path / "plain"))
    images = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    own = encoder.preprocess(images)
    assert pixels.shape == own.shape
    # Theirs rounds to whole levels after resizing.
    level = 1 / 255 / min(encoder.preprocessing["std"])
    torch.testing.assert_close(pixels, own, rtol=0, atol=1.5 * level)


def test_a_transformers_backbone_s_weights_load_in_plain_transformers(tmp_path: Path) -> None:
    from transformers import AutoModel

    encoder_model = model_of("vit", tmp_path)
    folder = save_transformers(encoder_model.image, tmp_path / "plain")
    plain = AutoModel.from_pretrained(folder).eval()
    pixels = torch.rand(2, 3, PX, PX)
    with torch.no_grad():
        hidden = plain(pixel_values=pixels).last_hidden_state
        embedding, tokens = encoder_model.image.eval().features(pixels)
    torch.testing.assert_close(tokens, hidden[:, 1:])
    torch.testing.assert_close(embedding[:, :16], hidden[:, 0])
