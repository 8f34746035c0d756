"""Models of a hub: pinned to a commit, downloaded once, found offline. The hub is a real server."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from hub_server import Hub

from dynaflip.encoders import hub
from dynaflip.encoders.backbones.transformers_vision import TransformersBackbone
from dynaflip.encoders.config import ImageConfig
from dynaflip.errors import UserError

NAME = "lab/tiny"


def tiny_vit(folder: Path, seed: int = 0) -> Path:
    """A ViT of a few thousand weights with the files that a repository has beside them."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=16,
    )  # fmt: skip
    ViTModel(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    (folder / "pytorch_model.bin").write_bytes(b"a copy of the weights in another format")
    return folder


def backbone_of(name: str) -> TransformersBackbone:
    return TransformersBackbone.from_settings(ImageConfig(name=name, image_px=32))


def weights_of(backbone: TransformersBackbone) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in backbone.parameters()])


def test_a_pinned_model_stays_what_it_was_and_asks_the_hub_no_more(
    model_hub: Hub, tmp_path: Path
) -> None:
    first = model_hub.push(NAME, tiny_vit(tmp_path / "a"))
    pinned = hub.pinned(NAME)
    assert pinned == f"{NAME}@{first}"
    assert model_hub.requests, "the hub was asked"
    backbone = backbone_of(pinned)
    assert backbone.licence == "mit"
    assert backbone.mean == (0.1, 0.2, 0.3)
    assert not any("pytorch_model.bin" in request for request in model_hub.requests)
    second = model_hub.push(NAME, tiny_vit(tmp_path / "b", seed=1))
    model_hub.requests.clear()
    again = backbone_of(pinned)
    assert hub.identity(pinned) == f"commit {first}"
    assert hub.pinned(pinned) == pinned
    assert model_hub.requests == []
    assert torch.equal(weights_of(again), weights_of(backbone))
    assert hub.pinned(NAME) == hub.pinned(f"{NAME}@main") == f"{NAME}@{second}"
    assert not torch.equal(weights_of(backbone_of(NAME)), weights_of(backbone))


def test_processes_of_a_machine_download_once(model_hub: Hub, tmp_path: Path) -> None:
    pinned = f"{NAME}@{model_hub.push(NAME, tiny_vit(tmp_path / 'a'))}"
    folders: list[str] = []
    threads = [
        threading.Thread(target=lambda: folders.append(hub.local_folder(pinned))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4
    assert len(set(folders)) == 1
    downloads = [r for r in model_hub.requests if r.startswith("GET") and "safetensors" in r]
    assert len(downloads) == 1
    assert sum("api/models" in request for request in model_hub.requests) == 1


def test_a_download_that_was_cut_short_is_made_whole(model_hub: Hub, tmp_path: Path) -> None:
    pinned = f"{NAME}@{model_hub.push(NAME, tiny_vit(tmp_path / 'a'))}"
    hub.load_config(pinned)  # config.json alone is there now
    whole = Path(hub.local_folder(pinned))
    assert (whole / "model.safetensors").is_file()
    (whole / "model.safetensors").unlink()
    assert (Path(hub.local_folder(pinned)) / "model.safetensors").is_file()


def test_without_the_hub_the_local_cache_has_the_commit(
    model_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with pytest.raises(UserError, match=r"model 'lab/tiny': this hub id cannot be loaded"):
        hub.pinned(NAME)
    commit = model_hub.push(NAME, tiny_vit(tmp_path / "a"))
    hub.local_folder(NAME)
    model_hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.pinned(NAME) == f"{NAME}@{commit}"
    backbone_of(NAME)
    assert model_hub.requests == []
    with pytest.raises(UserError, match=r"model 'lab/other@v1'.*while online"):
        hub.local_folder("lab/other@v1")


def test_a_folder_is_told_apart_by_its_content(tmp_path: Path) -> None:
    folder = tiny_vit(tmp_path / "with@sign")
    assert hub.pinned(str(folder)) == hub.local_folder(str(folder)) == str(folder)
    assert hub.split_revision(str(folder)) == (str(folder), None)
    before = hub.identity(str(folder))
    (folder / "README.md").write_text("other words")
    assert hub.identity(str(folder)) == before
    tiny_vit(folder, seed=1)
    assert hub.identity(str(folder)) != before
