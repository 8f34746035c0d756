"""``dynaflip export`` and ``dynaflip plugins``, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dynaflip
from dynaflip.encoders.checkpoint import save_folder
from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.encoders.model import DynaFLIP
from dynaflip.errors import UserError
from dynaflip.jobs import export, plugins


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    flow = FlowConfig(width=16, layers=1, heads=2, channels=4, cnn_layers=2)
    image = ImageConfig(image_px=32, pretrained=False)
    model = DynaFLIP(ModelConfig(image=image, flow=flow, embedding_dim=8, hidden_dim=8))
    return str(save_folder(tmp_path_factory.mktemp("export") / "encoder", model, {"steps": 3}))


def test_a_plain_folder_holds_the_encoder_alone(encoder_folder: str, tmp_path: Path) -> None:
    assert export.main([encoder_folder, str(tmp_path / "plain")]) == 0
    names = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert names == ["README.md", "config.json", "encoder.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
    images = torch.rand(1, 40, 40, 3)
    with torch.no_grad():
        own, exported = (
            dynaflip.load_encoder(uri)(images) for uri in (encoder_folder, tmp_path / "plain")
        )
    assert torch.equal(own, exported)


@pytest.mark.parametrize(
    ("kind", "file"), [("transformers", "modeling_dynaflip.py"), ("torch_export", "encoder.pt2")]
)
def test_other_formats(encoder_folder: str, tmp_path: Path, kind: str, file: str) -> None:
    assert export.main([encoder_folder, str(tmp_path / "out"), "--format", kind]) == 0
    assert (tmp_path / "out" / file).is_file()


def test_a_folder_with_files_in_it_is_left_alone(encoder_folder: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="exists already and is not empty"):
        export.main([encoder_folder, str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_list_of_extensions_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert plugins.main(["backbone"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("backbone: entry points dynaflip.backbone")
    assert "efficientnet-lite0" in lines[1]
    assert "built in" in lines[1]
    assert plugins.main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) > len(lines)
