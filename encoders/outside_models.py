"""Models of others as image encoders, as they stand: nothing is trained, nothing is added.

A transformers vision model by folder or hub id, a folder of :mod:`dynaflip.encoders.export`, a
backbone of the table, or the user's own ``class:MODULE:NAME``. Weights are read from safetensors
alone, and no code of a model's folder is run.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from dynaflip.encoders import hub
from dynaflip.encoders.backbones import BACKBONES, backbone_class, own_class
from dynaflip.encoders.backbones.native_images import USUAL_PX, native_px
from dynaflip.encoders.backbones.transformers_vision import TransformersBackbone
from dynaflip.encoders.backbones.vision_outputs import default_pooling
from dynaflip.encoders.config import CLS, CLS_MEAN, POOLER, ImageConfig
from dynaflip.encoders.image import (
    ImageEncoder,
    build_image_encoder,
    encoder_around,
    rebuild_image_encoder,
)
from dynaflip.errors import UserError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_EXPORTED = "dynaflip"  # model type, and key of the settings, of an exported folder
_WEIGHTS = "model.safetensors"


def is_outside_model(name: str) -> bool:
    """True if a name is one of these, and no DynaFLIP folder and no registered version."""
    if own_class(name) is not None or BACKBONES.knows(name):
        return True
    if os.path.isdir(name):
        return "model_type" in _config_of(name)
    return not name.startswith("models:/") and _HUB_ID.fullmatch(name) is not None


def source_of(name: str) -> str:
    """The name with what pins its weights: a hub id with its commit, others as they are.

    Raises:
        UserError: the hub id is not known.
    """
    return name if own_class(name) is not None or BACKBONES.knows(name) else hub.pinned(name)


def identity_of(name: str) -> str:
    """Identity of the weights: a commit, or a folder's content.

    Raises:
        UserError: they cannot be reached.
    """
    if own_class(name) is not None or BACKBONES.knows(name):
        config = ImageConfig(name=name)
        return f"{name} {backbone_class(name).weights_identity(config, hub.content_digest)}"
    return hub.identity(name)


def open_outside_model(
    name: str, *, pooling: str | None = None, image_px: int | None = None, own: str | None = None
) -> ImageEncoder:
    """An image encoder around a model, in evaluation mode, on the CPU.

    Args:
        name: folder, hub id (with ``@REVISION``), backbone or ``class:MODULE:NAME``.
        pooling: one of :data:`dynaflip.encoders.config.IMAGE_POOLINGS` for a model of
            transformers; its family's by default.
        image_px: side of the square image; by default that of the model's own processor, and 224
            where nothing says it.
        own: the user's own backbone class, where an exported folder has one.

    Raises:
        UserError: it cannot be loaded, lacks weights, is no image model, or the options do not fit.
    """
    if os.path.isdir(name) and _config_of(name).get("model_type") == _EXPORTED:
        _refuse("pooling", name, pooling)
        _refuse("px", name, image_px)
        return _exported(Path(name), own)
    if own_class(name) is not None or BACKBONES.knows(name):
        _refuse("pooling", name, pooling)
        return build_image_encoder(ImageConfig(name=name, image_px=image_px or USUAL_PX)).eval()
    return _of_transformers(name, pooling, image_px).eval()


def pooling_of(encoder: ImageEncoder) -> str:
    """Pooling of an encoder's tokens to its embedding; ``own`` where a backbone says it nowhere."""
    backbone = encoder.backbone
    return backbone.pooling if isinstance(backbone, TransformersBackbone) else "own"


def licence_of(name: str) -> str:
    """The licence that a model's card or configuration names, or an empty string."""
    if own_class(name) is not None or BACKBONES.knows(name):
        return backbone_class(name).licence
    said = hub.licence_of(name)
    if not said and os.path.isdir(name):
        said = str(_config_of(name).get("license") or "")
    return said


def _of_transformers(name: str, pooling: str | None, image_px: int | None) -> ImageEncoder:
    exported = _config_of(name).get(_EXPORTED) if os.path.isdir(name) else None
    backbone = TransformersBackbone.from_settings(ImageConfig(name=name))
    config: Any = backbone.network.config
    try:
        px = image_px or (exported or {}).get("image_px")
        px = px or native_px(hub.processor_settings(name), config)
    except UserError as error:
        raise UserError(f"model {name!r}: {error}, such as [224px]") from None
    family = default_pooling(config.model_type, has_class_token=backbone.prefix_tokens > 0)
    backbone.pooling = pooling or (CLS_MEAN if exported else family)
    if backbone.pooling == POOLER and any("pooler." in weight for weight in backbone.unfilled):
        raise UserError(f"model {name!r}: its files hold no pooler; choose another pooling")
    if backbone.pooling == CLS and not backbone.prefix_tokens:
        raise UserError(f"model {name!r}: it has no [CLS] token; choose another pooling")
    settings = ImageConfig(name=name, image_px=px)
    preprocessing = {"image_px": px, "mean": backbone.mean, "std": backbone.std}
    return encoder_around(backbone, settings, preprocessing)


def _exported(folder: Path, own: str | None) -> ImageEncoder:
    """A folder of ``dynaflip export --format transformers`` with a backbone that is no model of
    transformers: by this package's own code, not by the folder's."""
    settings = _config_of(folder)[_EXPORTED]
    preprocessing = {key: settings[key] for key in ("image_px", "mean", "std")}
    config = ImageConfig(**settings["image"])
    named = own if own is not None and own == config.name else None
    encoder = rebuild_image_encoder(config, settings["architecture"], preprocessing, named)
    try:
        encoder.load_state_dict(load_file(folder / _WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: its weights cannot be loaded ({reason})") from None
    return encoder.eval()


def _refuse(option: str, name: str, value: Any) -> None:
    if value is not None:
        raise UserError(f"{name}: it has its own {option}; leave {value} out")


def _config_of(folder: str | Path) -> dict[str, Any]:
    try:
        return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
