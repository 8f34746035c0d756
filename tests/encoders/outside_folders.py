"""Tiny random vision models of other people, saved by transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_TEXT = {**_SIZES, "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
KINDS = (
    "dinov2", "dinov3", "dinov3_convnext", "siglip2", "siglip2_vision", "siglip2_naflex",
    "siglip2_naflex_vision",
)  # fmt: skip
PROCESSORS = {
    "dinov2": {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}},
    "siglip2_naflex": {"patch_size": 16, "max_num_patches": 16},
}
USUAL = {"size": {"height": 64, "width": 64}}


def network_of(kind: str) -> Any:
    """A network with random weights, of 56 px (DINOv2) or 64 px."""
    import transformers as hf

    image = {**_SIZES, "image_size": 64, "patch_size": 16}
    patches = {**_SIZES, "num_patches": 16, "patch_size": 16}
    if kind == "dinov2":
        sizes = {k: v for k, v in _SIZES.items() if k != "intermediate_size"}
        sizes |= {"image_size": 56, "patch_size": 14, "mlp_ratio": 2}
        return hf.Dinov2Model(hf.Dinov2Config(**sizes))
    if kind == "dinov3":
        return hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**image, num_register_tokens=4))
    if kind == "dinov3_convnext":
        sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
        return hf.DINOv3ConvNextModel(hf.DINOv3ConvNextConfig(**sizes))
    # The SigLIP2 of one image size is published in SigLIP's form, the other in its own.
    if kind == "siglip2":
        return hf.SiglipModel(hf.SiglipConfig(text_config=_TEXT, vision_config=image))
    if kind == "siglip2_vision":
        return hf.SiglipVisionModel(hf.SiglipVisionConfig(**image))
    if kind == "siglip2_naflex":
        return hf.Siglip2Model(hf.Siglip2Config(text_config=_TEXT, vision_config=patches))
    return hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**patches))


def outside_folder(kind: str, folder: Path, licence: str = "apache-2.0") -> Path:
    """Save one with a processor and a model card; returns the folder."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network_of(kind).save_pretrained(folder)
    processor = PROCESSORS.get(kind.removesuffix("_vision"), USUAL)
    means = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **means}))
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A model\n")
    return folder
