"""Other people's models as they stand give what plain transformers gives on the same pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynaflip.encoders import hub
from dynaflip.encoders.backbones.native_images import native_px, normalisation
from dynaflip.encoders.checkpoint import load_image_encoder, save_image_encoder
from dynaflip.encoders.export import save_transformers
from dynaflip.encoders.outside_models import (
    is_outside_model,
    licence_of,
    open_outside_model,
    pooling_of,
)
from dynaflip.errors import UserError
from tests.encoders.outside_folders import KINDS, outside_folder

IMAGES = torch.randint(0, 256, (3, 70, 90, 3), generator=torch.Generator().manual_seed(1))
DEFAULTS = {"dinov2": "cls+mean", "dinov3": "cls+mean"}


def by_hand(folder: Path, kind: str, px: int, pooling: str) -> Tensor:
    """The embedding of :data:`IMAGES` by transformers alone, pooled here."""
    from transformers import AutoModel

    pixels = IMAGES.permute(0, 3, 1, 2).float() / 255
    pixels = torch.nn.functional.interpolate(pixels, (px, px), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    pixels = (pixels - mean) / std
    model: Any = AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "vision_model", model)
    if "naflex" in kind:
        squares = pixels.unfold(2, 16, 16).unfold(3, 16, 16)  # (B, 3, rows, columns, 16, 16)
        patches = squares.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        mask = torch.ones(patches.shape[:2], dtype=torch.int64)
        shapes = torch.tensor([[px // 16, px // 16]] * len(pixels))
        out = model(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)
    else:
        resized = {"interpolate_pos_encoding": True} if "siglip2" in kind else {}
        out = model(pixel_values=pixels, **resized)
    hidden = out.last_hidden_state
    before = {"dinov2": 1, "dinov3": 5, "dinov3_convnext": 1}.get(kind, 0)
    parts = {
        "cls": hidden[:, 0], "mean": hidden[:, before:].mean(1), "pooler": out.pooler_output,
    }  # fmt: skip
    return torch.cat([parts[name] for name in pooling.split("+")], -1)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_features_are_those_of_plain_transformers(kind: str, tmp_path: Path) -> None:
    folder = outside_folder(kind, tmp_path / kind)
    assert is_outside_model(str(folder))
    px = 56 if kind == "dinov2" else 64
    encoder = open_outside_model(str(folder))
    assert encoder.preprocessing["image_px"] == px
    default = DEFAULTS.get(kind, "pooler")
    assert pooling_of(encoder) == default
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(encoder(IMAGES.byte()), by_hand(folder, kind, px, default), **close)
    assert encoder.token_grid == ((2, 2) if kind == "dinov3_convnext" else (4, 4))
    chosen = open_outside_model(str(folder), pooling="mean", image_px=2 * px)
    expected = by_hand(folder, kind, 2 * px, "mean")
    torch.testing.assert_close(chosen(IMAGES.byte()), expected, **close)
    # A saved copy keeps pooling and size, and needs the folder no more.
    saved = save_image_encoder(tmp_path / "saved", chosen, {}, "a copy")
    (folder / "config.json").unlink()
    copy = load_image_encoder(saved)
    torch.testing.assert_close(copy(IMAGES.byte()), expected, **close)
    assert pooling_of(copy) == "mean"


@torch.no_grad()
def test_exported_folders_are_read_without_their_code(tmp_path: Path) -> None:
    for name in (outside_folder("dinov3", tmp_path / "dinov3"), "efficientnet-lite0"):
        encoder = open_outside_model(str(name), image_px=48)
        folder = save_transformers(encoder, tmp_path / "exported")
        code = folder / "modeling_dynaflip.py"
        code.write_text(f"raise SystemExit('ran')\n{code.read_text()}")
        read = open_outside_model(str(folder))
        assert read.preprocessing["image_px"] == 48
        torch.testing.assert_close(read(IMAGES.byte()), encoder(IMAGES.byte()))
        for file in folder.iterdir():
            file.unlink()


@torch.no_grad()
def test_mae_shows_all_of_its_patches_in_their_order(tmp_path: Path) -> None:
    import transformers as hf

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.ViTMAEConfig(**sizes, intermediate_size=32, image_size=64, patch_size=16)
    hf.ViTMAEModel(config).save_pretrained(tmp_path)
    encoder = open_outside_model(str(tmp_path), image_px=64)
    assert pooling_of(encoder) == "cls+mean"
    pixels = encoder.preprocess(IMAGES.byte())
    whole = hf.ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0).eval()
    hidden = whole(pixel_values=pixels).last_hidden_state  # patches in a random order
    close = {"atol": 1e-5, "rtol": 1e-4}
    expected = torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], -1)
    torch.testing.assert_close(encoder(IMAGES.byte()), expected, **close)
    # A patch that is changed changes its own token most, in every image.
    pixels[:, :, 16:32, 32:48] += 5
    moved = (encoder.features(pixels)[1] - encoder.tokens(IMAGES.byte())).norm(dim=-1)
    assert moved.argmax(1).tolist() == [4 + 2] * 3


def test_what_would_be_wrong_in_silence_is_refused(tmp_path: Path) -> None:
    import transformers as hf
    from safetensors.torch import load_file, save_file

    folder = outside_folder("dinov2", tmp_path / "dinov2")
    vit = _vit(tmp_path / "vit", hf)
    assert pooling_of(open_outside_model(str(vit))) == "cls"
    with pytest.raises(UserError, match="its files hold no pooler; choose another pooling"):
        open_outside_model(str(vit), pooling="pooler")
    siglip = outside_folder("siglip2_vision", tmp_path / "siglip2")
    with pytest.raises(UserError, match=r"no \[CLS\] token"):
        open_outside_model(str(siglip), pooling="cls")
    naflex = outside_folder("siglip2_naflex_vision", tmp_path / "naflex")
    with pytest.raises(UserError, match="60 px is no multiple of its patch of 16 px"):
        open_outside_model(str(naflex), image_px=60)

    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "layer.1" in name)
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors")
    with pytest.raises(UserError, match="lack 1 weights of its network"):
        open_outside_model(str(folder))
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        open_outside_model(str(folder))


def _vit(folder: Path, hf: Any) -> Path:
    """Saved without a pooler, which transformers would fill with random weights."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.ViTConfig(**sizes, intermediate_size=32, image_size=56, patch_size=14)
    hf.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_licences_are_those_of_the_card_or_the_configuration(tmp_path: Path) -> None:
    folder = outside_folder("dinov2", tmp_path / "dinov2")
    assert licence_of(str(folder)) == "apache-2.0"
    card = "---\nlicense: other\nlicense_name: dinov3-license\n---\n"
    (folder / "README.md").write_text(card)
    assert hub.licence_of(str(folder)) == "dinov3-license"
    (folder / "README.md").unlink()
    assert licence_of(str(folder)) == ""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "license": "mit"}))
    assert licence_of(str(folder)) == "mit"


def test_the_processor_says_size_and_normalisation() -> None:
    crop = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    assert native_px(crop) == 224
    assert native_px({**crop, "do_center_crop": False}) == 256
    assert native_px({"size": 384}) == 384
    assert native_px({"patch_size": 16, "max_num_patches": 256}) == 256
    assert native_px({}) == 224
    with pytest.raises(UserError, match="480 x 640 px, not square"):
        native_px({"size": {"height": 480, "width": 640}})
    half = (0.5,) * 3
    assert normalisation({"do_normalize": False}, half, half) == ((0.0,) * 3, (1.0,) * 3)
    # Values 0...2 instead of 0...1, less 0.5: by hand (2 v - 0.5) / 0.5 = (v - 0.25) / 0.25.
    doubled = normalisation({"rescale_factor": 2 / 255}, half, half)
    assert doubled == ((0.25,) * 3, (0.25,) * 3)
    assert normalisation({"rescale_factor": 1 / 255}, half, half) == (half, half)


def test_names_of_outside_models(tmp_path: Path) -> None:
    assert is_outside_model("facebook/dinov2-base@main")
    assert is_outside_model("class:my_module:MyBackbone")
    assert is_outside_model("efficientnet-lite0")
    for name in ("models:/dynaflip/3", "3", "encoder", "./there/is/none"):
        assert not is_outside_model(name)
