"""Tiny random transformers models, saved to a folder and loaded the way real ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dynaflip.encoders.checkpoint import load_image_encoder, save_folder
from dynaflip.encoders.config import ImageConfig, LanguageConfig, ModelConfig
from dynaflip.encoders.image import build_image_encoder
from dynaflip.encoders.language import build_language_encoder, embed_captions, language_dim
from dynaflip.encoders.model import DynaFLIP
from dynaflip.errors import UserError

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
CAPTIONS = ["open the drawer", "push the red button down", "open the drawer"]


def vision_folder(kind: str, folder: Path) -> Path:
    import transformers as hf

    patches = {**SIZES, "intermediate_size": 32, "image_size": 56, "patch_size": 14}
    network: Any
    if kind == "dinov2":
        sizes = {k: v for k, v in patches.items() if k != "intermediate_size"}
        network = hf.Dinov2Model(hf.Dinov2Config(**sizes, mlp_ratio=2))
    elif kind == "dinov2_with_registers":
        sizes = {k: v for k, v in patches.items() if k != "intermediate_size"}
        network = hf.Dinov2WithRegistersModel(
            hf.Dinov2WithRegistersConfig(**sizes, mlp_ratio=2, num_register_tokens=3)
        )
    elif kind == "vit":
        network = hf.ViTModel(hf.ViTConfig(**patches), add_pooling_layer=False)
    elif kind == "siglip_vision":
        network = hf.SiglipVisionModel(hf.SiglipVisionConfig(**patches))
    elif kind == "clip":
        text = {**SIZES, "intermediate_size": 32, "vocab_size": 99}
        network = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=patches))
    elif kind == "siglip":
        text = {**SIZES, "intermediate_size": 32, "vocab_size": 99}
        network = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=patches))
    else:
        network = hf.ResNetModel(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        )
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})
    )
    return folder


@pytest.mark.parametrize(
    ("kind", "dim"),
    [
        ("dinov2", 32),
        ("dinov2_with_registers", 32),
        ("vit", 32),
        ("clip", 32),
        ("siglip_vision", 32),
        ("siglip", 32),
        ("resnet", 16),
    ],
)
@pytest.mark.parametrize("image_px", [56, 84])
def test_vision_model_by_folder(kind: str, dim: int, image_px: int, tmp_path: Path) -> None:
    folder = vision_folder(kind, tmp_path / kind)
    encoder = build_image_encoder(ImageConfig(name=str(folder), image_px=image_px)).eval()
    assert encoder.dim == dim
    assert encoder.token_dim == 16
    assert encoder.preprocessing["mean"] == (0.1, 0.2, 0.3)
    images = torch.rand(2, 40, 40, 3)
    with torch.no_grad():
        assert encoder(images).shape == (2, dim)
        tokens = encoder.tokens(images)
        if kind != "resnet":
            assert tokens.shape == (2, (image_px // 14) ** 2, 16)
        # The last part of the embedding is the mean of the spatial tokens.
        torch.testing.assert_close(encoder(images)[:, -16:], tokens.mean(1))


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "vit", "clip", "siglip"])
def test_every_weight_left_to_train_gets_a_gradient(kind: str, tmp_path: Path) -> None:
    folder = vision_folder(kind, tmp_path / kind)
    config = ImageConfig(name=str(folder), image_px=56)
    encoder = build_image_encoder(config).train()
    before = {name for name, p in encoder.named_parameters() if p.requires_grad}
    encoder.freeze_unread()
    assert encoder.training
    encoder(torch.rand(2, 40, 40, 3)).sum().backward()
    after = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert after == {name for name, p in encoder.named_parameters() if p.grad is not None}
    unread = {"dinov2": "mask_token", "clip": "post_layernorm"}
    if kind in unread:
        assert any(unread[kind] in name for name in before - after)
    assert any("layer.2" in name or "layers.2" in name for name in after)


def test_frame_embedding_of_dinov2_is_cls_and_mean_patch(tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = vision_folder("dinov2", tmp_path / "dinov2")
    encoder = build_image_encoder(ImageConfig(name=str(folder), image_px=56)).eval()
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(pixel_values=pixels).last_hidden_state
        expected = torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], -1)
        torch.testing.assert_close(encoder.features(pixels)[0], expected)


def test_frozen_blocks_of_a_transformer(tmp_path: Path) -> None:
    folder = vision_folder("dinov2", tmp_path / "dinov2")
    encoder = build_image_encoder(ImageConfig(name=str(folder), image_px=56, frozen_blocks=2))
    encoder.features(torch.randn(1, 3, 56, 56))[0].sum().backward()
    trained = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert any("layer.2." in name for name in trained)
    assert not any("layer.1." in name or "embeddings" in name for name in trained)
    with pytest.raises(UserError, match="frozen_blocks: 9 of 3"):
        build_image_encoder(ImageConfig(name=str(folder), image_px=56, frozen_blocks=9))


@pytest.mark.parametrize("kind", ["dinov2", "siglip", "clip"])
def test_checkpoint_needs_the_original_folder_no_more(kind: str, tmp_path: Path) -> None:
    folder = vision_folder(kind, tmp_path / "original")
    config = ModelConfig(
        image=ImageConfig(name=str(folder), image_px=56), embedding_dim=8, hidden_dim=8
    )
    model = DynaFLIP(config).eval()
    saved = save_folder(tmp_path / "saved", model, {})
    folder.rename(tmp_path / "moved")
    loaded = load_image_encoder(saved)
    for name, value in model.image.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    images = torch.rand(1, 56, 56, 3)
    with torch.no_grad():
        # Not bit for bit: attention kernels round by where in memory the weights lie.
        torch.testing.assert_close(loaded(images), model.image(images), atol=1e-5, rtol=1e-5)


def text_folder(kind: str, folder: Path) -> Path:
    """A tiny text model with a word tokenizer that ends each caption with its end token."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    size = len(vocabulary)
    network: Any
    if kind == "t5":
        t5 = hf.T5Config(
            vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
            pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        network = hf.T5Model(t5)
    elif kind in ("mt5", "umt5"):
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        config_of, model_of = {
            "mt5": (hf.MT5Config, hf.MT5EncoderModel), "umt5": (hf.UMT5Config, hf.UMT5EncoderModel)
        }[kind]  # fmt: skip
        network = model_of(config_of(vocab_size=size, pad_token_id=0, eos_token_id=1, **sizes))
    elif kind == "clip":
        sizes = {**SIZES, "intermediate_size": 32}
        text = {**sizes, "vocab_size": size, "pad_token_id": 0, "eos_token_id": 1}
        vision = {**sizes, "image_size": 28, "patch_size": 14}
        network = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision))
    elif kind == "clip_text":
        text = {**SIZES, "intermediate_size": 32, "vocab_size": size}
        network = hf.CLIPTextModel(hf.CLIPTextConfig(**text, pad_token_id=0, eos_token_id=1))
    else:
        network = hf.BertModel(hf.BertConfig(**SIZES, intermediate_size=32, vocab_size=size))
    network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5", "clip", "clip_text", "bert"])
def test_language_model_by_folder(kind: str, tmp_path: Path) -> None:
    config = LanguageConfig(name=str(text_folder(kind, tmp_path / kind)))
    encoder = build_language_encoder(config)
    assert encoder.pooling == ("mean" if kind == "bert" else "eos")
    features = encoder(CAPTIONS)
    assert features.shape == (3, language_dim(config)) == (3, 16)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    # Padding beside a longer caption changes nothing, and equal captions are equal.
    torch.testing.assert_close(features[:1], encoder(CAPTIONS[:1]), atol=1e-5, rtol=1e-4)
    assert torch.equal(features[0], features[2])
    assert not torch.allclose(features[0], features[1])


def test_a_tokenizer_that_names_no_mask_is_asked_for_one(tmp_path: Path) -> None:
    folder = text_folder("bert", tmp_path)
    whole = build_language_encoder(LanguageConfig(name=str(folder)))(CAPTIONS)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.testing.assert_close(
        build_language_encoder(LanguageConfig(name=str(folder)))(CAPTIONS), whole
    )


def test_random_weights_are_float32_whatever_the_folder_holds(tmp_path: Path) -> None:
    folder = vision_folder("vit", tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "dtype": "float16"}))
    config = ImageConfig(name=str(folder), pretrained=False, image_px=28)
    encoder = build_image_encoder(config)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_eos_pooling_takes_the_end_token(tmp_path: Path) -> None:
    encoder = build_language_encoder(LanguageConfig(name=str(text_folder("t5", tmp_path))))
    tokens = encoder.tokenizer(CAPTIONS[:1], return_tensors="pt")
    assert tokens["input_ids"][0, -1] == 1
    with torch.no_grad():
        hidden = encoder.network(input_ids=tokens["input_ids"]).last_hidden_state
    torch.testing.assert_close(encoder(CAPTIONS)[0], hidden[0, -1], atol=1e-5, rtol=1e-4)


def test_long_captions_are_cut(tmp_path: Path) -> None:
    config = LanguageConfig(name=str(text_folder("bert", tmp_path)), max_tokens=4)
    encoder = build_language_encoder(config)
    assert encoder(["open the drawer " * 300]).shape == (1, 16)


def test_minilm_is_nearly_blind_to_direction_but_not_to_the_object() -> None:
    features = embed_captions(["open the drawer", "close the drawer", "push the button"])
    assert features.shape == (3, language_dim(LanguageConfig()))
    unit = torch.nn.functional.normalize(features)
    assert (unit[0] @ unit[1]).item() == pytest.approx(0.90, abs=0.02)
    assert unit[0] @ unit[2] < 0.6


@pytest.mark.parametrize("offline", [True, False])
def test_unreachable_models_give_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = "facebook/not-a-model-of-ours" if offline else str(tmp_path / "missing")
    for build in (
        lambda: build_image_encoder(ImageConfig(name=name)),
        lambda: build_language_encoder(LanguageConfig(name=name)),
    ):
        with pytest.raises(UserError, match="cannot be loaded") as caught:
            build()
        assert "\n" not in str(caught.value)


def test_a_text_model_is_no_image_encoder(tmp_path: Path) -> None:
    folder = text_folder("bert", tmp_path)
    with pytest.raises(UserError, match="takes no images"):
        build_image_encoder(ImageConfig(name=str(folder)))
