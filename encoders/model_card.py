"""The model card of an encoder's folder: what it is, its training data, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynaflip.encoders.image import ImageEncoder

_SHOWN_METRICS = ("heldout/retrieval/", "heldout/effective_rank/", "heldout/area/")


# How a folder is loaded, by the library that loads it.
_LOADING = {
    "dynaflip": (
        "import dynaflip",
        'encoder = dynaflip.load_encoder("this folder")',
        "features = encoder(images)  # (B, H, W, 3) or (B, 3, H, W), uint8 or in [0, 1]",
    ),
    "transformers": (
        "from transformers import AutoModel",
        'model = AutoModel.from_pretrained("this folder", trust_remote_code=True)',
        "features = model.encode(images)  # (B, H, W, 3) or (B, 3, H, W), uint8 or in [0, 1]",
    ),
}


def model_card(encoder: ImageEncoder, info: Mapping[str, Any], *, library: str = "dynaflip") -> str:
    """Markdown, with the front matter that model hubs read.

    Args:
        encoder: the image encoder; its backbone names the licence of its pretrained weights.
        info: of :func:`dynaflip.encoders.checkpoint.save_folder`; missing entries read "unknown".
        library: that loads the folder, ``dynaflip`` or ``transformers``.
    """
    config, px = encoder.config, encoder.preprocessing["image_px"]
    start = encoder.backbone.licence or f"see {config.name}"
    if not config.pretrained:
        start = "random weights"
    lines = [
        "---",
        f"library_name: {library}",
        "tags: [robotics, image-feature-extraction]",
        "---",
        "",
        "# DynaFLIP image encoder",
        "",
        f"One RGB image ({px} px, any size is resized) to a vector of {encoder.dim} numbers. "
        "Pretrained with image-language-3D-flow triplets (arXiv 2605.30350); language and flow "
        "are not needed at use.",
        "",
        "```python",
        *_LOADING[library],
        "```",
        "",
        "## Weights",
        "",
        f"* backbone: {config.name}, {'pretrained' if config.pretrained else 'from scratch'}",
        f"* starting weights: {start}",
        f"* code: {info.get('git_commit', 'unknown commit')}",
        f"* steps: {info.get('steps', 'unknown')}; run: {info.get('run_name', 'unknown')}",
        "",
        "## Data",
        "",
        f"* triplets: digest {info.get('data_digest', 'unknown')}",
        *(f"* {source}: {count} triplets" for source, count in info.get("sources", {}).items()),
        f"* licences of the data: {', '.join(info.get('licences', [])) or 'unknown'}",
        f"* flow from: {', '.join(info.get('flow_sources', [])) or 'unknown'}",
        "",
        "## Metrics at the end of the run",
        "",
    ]
    metrics = {k: v for k, v in info.get("metrics", {}).items() if k.startswith(_SHOWN_METRICS)}
    lines += [f"* {key}: {value:.4g}" for key, value in sorted(metrics.items())] or ["* none"]
    return "\n".join([*lines, "", "Every setting is in `config.json`.", ""])
