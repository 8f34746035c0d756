"""A backbone from outside the tree, and what a folder's backbone name may and may not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkout import REPOSITORY

import dynaflip
from dynaflip.encoders.backbones import BACKBONES, backbone_class
from dynaflip.encoders.checkpoint import load_image_encoder, load_model, save_folder
from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.encoders.image import build_image_encoder
from dynaflip.encoders.model import DynaFLIP
from dynaflip.errors import UserError

OUTSIDE = '''
import torch
from torch import nn
from dynaflip.encoders.backbones.base import Backbone


class Stripes(Backbone):
    """Columns of the image, averaged over its height."""

    licence = "CC0-1.0"
    mean, std = (0.5,) * 3, (0.25,) * 3

    def __init__(self, width):
        super().__init__()
        self.project = nn.Linear(3, width)

    @classmethod
    def from_settings(cls, config):
        return cls(6)

    @classmethod
    def from_description(cls, description, config):
        return cls(description["width"])

    def describe(self):
        return {"width": self.project.out_features}

    def forward(self, pixels):
        tokens = self.project(pixels.mean(2).transpose(1, 2)[:, ::8])
        return tokens.mean(1), tokens

    def token_grid(self, count):
        return 1, count
'''
OWN = "class:stripes_net:Stripes"
IMAGES = torch.rand(2, 40, 56, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path that holds another's module, as an installed package would."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "stripes_net.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "stripes_net", raising=False)
    BACKBONES._loaded.clear()
    return folder


def install(folder: Path) -> None:
    """Declare the module's class as an entry point, as pip writes it down."""
    info = folder / "stripes-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[dynaflip.backbone]\nstripes = stripes_net:Stripes\n")


def saved(name: str, folder: Path) -> tuple[Path, torch.Tensor]:
    """An encoder's folder with this backbone, and its features of the images."""
    torch.manual_seed(0)
    flow = FlowConfig(width=16, layers=1, heads=2, channels=4, cnn_layers=2)
    image = ImageConfig(name=name, image_px=32)
    model = DynaFLIP(ModelConfig(image=image, flow=flow, embedding_dim=8, hidden_dim=8)).eval()
    with torch.no_grad():
        return save_folder(folder, model, {}), model.image(IMAGES)


def test_an_outsider_s_class_is_a_backbone(outside: Path) -> None:
    encoder = build_image_encoder(ImageConfig(name=OWN, image_px=32)).eval()
    assert (encoder.dim, encoder.token_dim, encoder.token_grid) == (6, 6, (1, 4))
    assert encoder.preprocessing == {"image_px": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    with torch.no_grad():
        assert encoder.token_map(IMAGES).shape == (2, 6, 1, 4)


def test_frozen_blocks_are_not_ignored(outside: Path) -> None:
    with pytest.raises(UserError, match=f"frozen_blocks: backbone {OWN} freezes no blocks"):
        build_image_encoder(ImageConfig(name=OWN, image_px=32, frozen_blocks=2))


@pytest.mark.integration
def test_an_outsider_s_backbone_goes_through_the_whole_job(
    outside: Path, tmp_path: Path, triplet_folder: Path
) -> None:
    words = ["--config", "tests/tiny.yaml", "--triplets", str(triplet_folder)]
    words += ["--backend", "in_process", "--output", str(tmp_path / "run")]
    words += ["--model.image.name", OWN, "--model.image.frozen_blocks", "0"]
    path = os.pathsep.join([str(outside), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "DYNAFLIP_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "jobs/pretrain.py", *words],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    folder = tmp_path / "run" / "encoder"
    with pytest.raises(UserError, match="may not choose which code runs"):
        dynaflip.load_encoder(folder)
    encoder = dynaflip.load_encoder(folder, backbone=OWN)
    with torch.no_grad():
        assert encoder(IMAGES).shape == (2, 6)


def test_a_folder_cannot_name_a_class_but_its_user_can(outside: Path, tmp_path: Path) -> None:
    folder, features = saved(OWN, tmp_path / "encoder")
    assert "CC0-1.0" in (folder / "README.md").read_text()
    sys.modules.pop("stripes_net")
    BACKBONES._loaded.clear()
    for load in (load_image_encoder, load_model):
        with pytest.raises(UserError, match="a folder may not choose which code runs") as caught:
            load(folder)
        assert "\n" not in str(caught.value)
        assert f"load_encoder(folder, backbone={OWN!r}) in Python" in str(caught.value)
        assert str(caught.value).endswith(f"--backbone {OWN} in a job")
    assert "stripes_net" not in sys.modules
    with torch.no_grad():
        assert torch.equal(load_image_encoder(folder, backbone=OWN)(IMAGES), features)
        assert torch.equal(load_model(folder, backbone=OWN).image(IMAGES), features)
    # The user's own use of the class does not open the door for the next folder.
    with pytest.raises(UserError, match="may not choose which code runs"):
        load_image_encoder(folder)


def test_an_installed_package_s_backbone_loads_from_a_folder(outside: Path, tmp_path: Path) -> None:
    install(outside)
    folder, features = saved("stripes", tmp_path / "encoder")
    with torch.no_grad():
        assert torch.equal(load_image_encoder(folder)(IMAGES), features)
    origins = {plugin.name: plugin.origin for plugin in BACKBONES.plugins()}
    assert origins == {"efficientnet-lite0": "built in", "stripes": "stripes 1.2"}


def test_a_folder_whose_backbone_is_unknown_reaches_for_nothing(
    outside: Path, tmp_path: Path
) -> None:
    folder, _ = saved(OWN, tmp_path / "encoder")
    described = json.loads((folder / "config.json").read_text())
    described["model"]["image"]["name"] = "someone/net"
    described["image_architecture"] = None
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="'someone/net' is no built-in one"):
        load_image_encoder(folder)


def test_what_is_no_backbone_is_refused() -> None:
    with pytest.raises(UserError, match=r"pathlib:Path is no subclass of .*base\.Backbone"):
        backbone_class("class:pathlib:Path")
    with pytest.raises(UserError, match="cannot import class:nowhere:Net"):
        build_image_encoder(ImageConfig(name="class:nowhere:Net"))


@pytest.mark.parametrize("shape", [(64, 64), (64, 128), (300, 100)])
def test_tokens_know_their_place_in_the_image(shape: tuple[int, int]) -> None:
    encoder = build_image_encoder(ImageConfig(image_px=256)).eval()
    rows, columns = encoder.token_grid
    assert (rows, columns) == (8, 8)
    images = torch.full((1, *shape, 3), 0.5)
    changed = images.clone()
    changed[:, -shape[0] // 4 :, : shape[1] // 4] = 1  # the bottom left corner
    with torch.no_grad():
        maps = encoder.token_map(torch.cat([images, changed]))
        tokens = encoder.tokens(images)
    assert maps.shape == (2, encoder.token_dim, rows, columns)
    torch.testing.assert_close(maps[:1].flatten(2).transpose(1, 2), tokens)
    moved = (maps[1] - maps[0]).norm(dim=0)
    row, column = divmod(int(moved.argmax()), columns)
    assert row >= rows - 3
    assert column <= 2


def test_tokens_without_a_grid_are_one_clear_line(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone_class(OWN), "token_grid", lambda self, count: None)
    encoder = build_image_encoder(ImageConfig(name=OWN, image_px=32)).eval()
    with pytest.raises(UserError, match=r"stripes_net:Stripes: its tokens are no square grid"):
        encoder.token_map(IMAGES)
