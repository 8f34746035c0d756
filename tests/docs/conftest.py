"""What the documentation's Python blocks and the examples take as given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def home_with_an_encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A DYNAFLIP_HOME in which a small encoder is registered, as candidate."""
    from dynaflip.encoders.checkpoint import save_folder
    from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
    from dynaflip.encoders.model import DynaFLIP
    from dynaflip.platform import tracking
    from dynaflip.platform.promotion import move_alias
    from dynaflip.platform.tracking import registry

    folder = tmp_path_factory.mktemp("docs") / "home"
    before = os.environ["DYNAFLIP_HOME"]
    os.environ["DYNAFLIP_HOME"] = str(folder)
    config = ModelConfig(
        image=ImageConfig(image_px=32, pretrained=False),
        flow=FlowConfig(width=32, layers=1, heads=2, channels=8),
        embedding_dim=16,
        hidden_dim=32,
    )
    encoder = save_folder(folder.parent / "encoder", DynaFLIP(config, text_dim=384), {"steps": 3})
    run = tracking.open_run("docs", "a small encoder")
    with tracking.ending(run):
        version = registry.register(encoder, run)
        move_alias(registry.DEFAULT_NAME, "candidate", version)
    yield folder
    os.environ["DYNAFLIP_HOME"] = before
