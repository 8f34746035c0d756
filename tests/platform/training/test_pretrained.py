"""The weights that a run starts from: pinned, and part of the settings' digest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Hub

from dynaflip.encoders import hub
from dynaflip.encoders.config import ImageConfig, LanguageConfig, ModelConfig
from dynaflip.platform.training import pretrained
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.pretrained import pin_models, remembered_digest
from dynaflip.platform.training.run import settings_digest


@pytest.fixture(autouse=True)
def fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DYNAFLIP_HOME", str(tmp_path / "home"))
    pretrained._pinned_once.cache_clear()
    yield
    pretrained._pinned_once.cache_clear()


def tiny_text_model(folder: Path, seed: int = 0) -> Path:
    """Weights and settings; nothing here reads words."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def config_of(image: str = "efficientnet-lite0", language: str = "minilm") -> PretrainConfig:
    return PretrainConfig(
        model=ModelConfig(image=ImageConfig(name=image), language=LanguageConfig(name=language))
    )


def test_a_hub_id_is_resolved_once_and_gets_its_commit(model_hub: Hub, tmp_path: Path) -> None:
    first = model_hub.push("lab/text", tiny_text_model(tmp_path / "a"))
    lines: list[str] = []
    model = pin_models(config_of(language="lab/text").model, log=lines.append)
    assert model.language.name == f"lab/text@{first}"
    assert model.image.name == "efficientnet-lite0"
    assert lines == [f"model.language.name lab/text is pinned to lab/text@{first}"]
    asked = len(model_hub.requests)
    second = model_hub.push("lab/text", tiny_text_model(tmp_path / "b", seed=1))
    assert pin_models(config_of(language="lab/text").model) == model, "one process, one commit"
    assert len(model_hub.requests) == asked
    pretrained._pinned_once.cache_clear()  # as another process
    now = pin_models(config_of(language="lab/text").model)
    assert now.language.name == f"lab/text@{second}"
    # A run that is continued stays where it began.
    earlier = (model.image.name, model.language.name)
    assert pin_models(config_of(language="lab/text").model, earlier) == model


def test_the_digest_of_settings_is_that_of_the_weights_they_name(
    model_hub: Hub, tmp_path: Path
) -> None:
    first = model_hub.push("lab/text", tiny_text_model(tmp_path / "a"))
    by_name = settings_digest(config_of(language="lab/text"))
    assert by_name == settings_digest(config_of(language=f"lab/text@{first}"))
    model_hub.push("lab/text", tiny_text_model(tmp_path / "b", seed=1))
    pretrained._pinned_once.cache_clear()
    assert settings_digest(config_of(language="lab/text")) != by_name
    assert settings_digest(config_of(language=f"lab/text@{first}")) == by_name


@pytest.mark.parametrize("part", ["image", "language"])
def test_other_weights_in_the_same_folder_are_another_run(part: str, tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path / "model")
    config = config_of(**{part: str(folder)})
    before = settings_digest(config)
    assert settings_digest(config) == before
    tiny_text_model(folder, seed=1)
    assert settings_digest(config) != before
    bundled = settings_digest(config_of())
    assert bundled == settings_digest(dataclasses.replace(config_of(), triplets="elsewhere"))


def test_weights_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_text_model(tmp_path / "model")
    read: list[Path] = []
    digest_of = hub.content_digest
    monkeypatch.setattr(hub, "content_digest", lambda f: (read.append(f), digest_of(f))[1])
    first = remembered_digest(folder)
    assert remembered_digest(folder) == first
    assert len(read) == 1
    tiny_text_model(folder, seed=1)
    assert remembered_digest(folder) != first
    assert len(read) == 2
