"""Models of others in an evaluation: each becomes an encoder's folder that every worker loads.

The folder lies below ``DYNAFLIP_HOME/evaluation/encoders`` and is named by what its features depend
on: the commit or content of the weights, pooling, image size, and the library that computes them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaflip.errors import UserError
from dynaflip.platform.paths import made_encoders

if TYPE_CHECKING:
    from dynaflip.platform.evaluation.encoder_entries import EncoderEntry

# Raised when the same model with the same options gives other features than before.
OUTSIDE_VERSION = 1
UNKNOWN = "unknown"


def outside_folder(
    source: str, entry: EncoderEntry, own: str | None = None, built_in: Path | None = None
) -> Path:
    """The folder of a model of others, made where it is not there yet.

    Args:
        source: of :func:`dynaflip.encoders.outside_models.source_of`: a hub id with its commit, a
            folder, a backbone or a class.
        entry: with the options.
        own: the user's own backbone class, where they have named one.
        built_in: folder of what is made here; None: the home's.

    Raises:
        UserError: the model cannot be loaded or used as the entry says, or its features are no
            function of the image.
    """
    import torch

    from dynaflip.encoders.backbones import own_class
    from dynaflip.encoders.checkpoint import CONFIG, save_image_encoder
    from dynaflip.encoders.outside_models import (
        identity_of,
        licence_of,
        open_outside_model,
        pooling_of,
    )
    from dynaflip.eval.policies.encoder_policy import check_encoder

    made_by = [OUTSIDE_VERSION, _version("transformers"), _version("torch")]
    recipe = [made_by, identity_of(source), entry.pooling, entry.image_px]
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]+", "-", entry.name)
    folder = (built_in or made_encoders()) / f"{name}-{digest}"
    # A class's code and weights have no digest: it is built every time.
    if (folder / CONFIG).is_file() and own_class(source) is None:
        return folder
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = open_outside_model(
                source, pooling=entry.pooling, image_px=entry.image_px, own=own
            )
        px = encoder.preprocessing["image_px"]
        images = torch.randint(0, 256, (2, px, px, 3), dtype=torch.uint8)
        check_encoder(encoder, images.numpy())
    except UserError as error:
        raise UserError(f"encoders: {entry.name}: {error}") from None
    encoder.backbone.licence = licence_of(source)
    info = {"outside_model": source, "pooling": pooling_of(encoder)}
    card = f"# {entry.name}\n\n{source} as it stands, copied for an evaluation.\n"
    return save_image_encoder(folder, encoder, info, card)


def description(folder: str | Path) -> dict[str, Any]:
    """An encoder's ``pooling``, ``image_px`` and ``licence``, as its folder states them.

    The licence is that of the weights, or of those that pretraining started from; empty where
    nothing says it.
    """
    from dynaflip.encoders.checkpoint import CONFIG

    described = json.loads((Path(folder) / CONFIG).read_text())
    pooling = described["info"].get("pooling")
    if pooling is None:
        has_tokens = "model_type" in (described["image_architecture"] or {})
        pooling = "cls+mean" if has_tokens else "own"
    return {
        "pooling": pooling,
        "image_px": described["preprocessing"]["image_px"],
        "licence": described.get("licence") or "",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
