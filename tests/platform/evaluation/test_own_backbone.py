"""Encoders whose backbone is the user's own class are evaluated where their settings name it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dynaflip.encoders.backbones import BACKBONES
from dynaflip.encoders.checkpoint import load_model, save_folder
from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.encoders.model import DynaFLIP
from dynaflip.errors import UserError
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoders_under_test import resolve_encoders, weights_digest
from dynaflip.platform.evaluation.probe_config import ProbeSuiteConfig
from dynaflip.platform.evaluation.probe_scores import load_pair
from dynaflip.platform.evaluation.worker import Worker

OUTSIDE = """
from torch import nn

from dynaflip.encoders.backbones.base import Backbone


class Patches(Backbone):
    licence = "CC0-1.0"

    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(3, 6, 16, 16)

    @classmethod
    def from_settings(cls, config):
        return cls()

    def forward(self, pixels):
        tokens = self.project(pixels).flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens
"""
OWN = "class:patches_net:Patches"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder with a backbone from outside; nothing has imported its class yet."""
    (tmp_path / "patches_net.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    flow = FlowConfig(width=16, layers=1, heads=2, channels=4, cnn_layers=2)
    image = ImageConfig(name=OWN, image_px=32)
    model = DynaFLIP(ModelConfig(image=image, flow=flow, embedding_dim=8, hidden_dim=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)  # as if trained: its initialisation is another one
    made = save_folder(tmp_path / "encoder", model, {})
    sys.modules.pop("patches_net")
    BACKBONES._loaded.clear()
    return made


def test_the_encoder_its_baselines_and_the_workers_get_the_class(home: Path, folder: Path) -> None:
    tested = resolve_encoders(RolloutConfig(encoder=str(folder), backbone=OWN))
    classes = {entry.name: entry.encoders[0].backbone for entry in tested}
    assert classes == {"trained": OWN, "initialization": OWN, "imagenet": None, "random": OWN}
    trained = tested[0].encoders[0]
    assert trained.digest == weights_digest(str(folder)) != tested[1].encoders[0].digest
    images = np.zeros((1, 32, 32, 3), np.uint8)
    for entry in tested[:2]:
        assert Worker()._encoders.here(entry.encoders[0])(images).shape == (1, 6)
    pair = load_pair(folder, OWN)
    assert type(pair.initial.image.backbone) is type(pair.trained.image.backbone)


def test_a_class_that_the_settings_do_not_name_never_runs(home: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=f"--backbone {OWN} in a job"):
        resolve_encoders(RolloutConfig(encoder=str(folder)))
    other = "class:other_net:Other"
    for load in (
        lambda: resolve_encoders(RolloutConfig(encoder=str(folder), backbone=other)),
        lambda: load_pair(folder, other),
    ):
        with pytest.raises(UserError, match=f"backbone: .* has the backbone {OWN}, not {other}"):
            load()
    assert weights_digest(str(folder))  # promotion reads the weights without running code
    assert "patches_net" not in sys.modules
    with pytest.raises(ValueError, match="backbone must be class:MODULE:NAME, not resnet"):
        ProbeSuiteConfig(backbone="resnet")
    assert load_model(folder, backbone=OWN).config.image.name == OWN
