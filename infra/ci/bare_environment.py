"""Check the base install: an encoder's folder loads in an environment of torch alone.

    python infra/ci/bare_environment.py --torch 2.7.1

Makes a virtual environment, installs this checkout there with its base dependencies and the given
torch (on Linux with its CUDA libraries, several GB), loads a folder that this Python saved, and
compares the features. Leaves with 1 where they differ or where anything else was installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("ray", "mlflow", "optuna", "transformers", "pydantic", "pyarrow")
# Largest share of the features' range by which two releases of torch may differ.
TOLERANCE = 1e-5

FEATURES = """
images = torch.randint(0, 256, (2, 90, 120, 3), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    embedding = encoder(images.to(torch.uint8))
    tokens = encoder.token_map(images.to(torch.uint8))
"""
SAVE = f"""
import sys, torch
from safetensors.torch import save_file
from dynaflip.encoders.checkpoint import save_folder
from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.encoders.model import DynaFLIP
image = ImageConfig(image_px=64)
flow = FlowConfig(width=16, layers=1, heads=2, channels=4, cnn_layers=2)
model = DynaFLIP(ModelConfig(image=image, flow=flow, embedding_dim=8, hidden_dim=8)).eval()
save_folder(sys.argv[1], model, {{}})
encoder = model.image
{FEATURES}
save_file({{"embedding": embedding, "tokens": tokens.contiguous()}}, sys.argv[2])
"""
LOAD = f"""
import json, sys, torch
from importlib.metadata import distributions
from safetensors.torch import load_file
import dynaflip
encoder = dynaflip.load_encoder(sys.argv[1])
{FEATURES}
expected = load_file(sys.argv[2])
found = {{"embedding": embedding, "tokens": tokens}}
differs = {{
    name: float((found[name] - value).abs().max() / value.abs().max())
    for name, value in expected.items()
}}
try:
    dynaflip.load_encoder("models:/dynaflip-encoder@candidate")
except ValueError as error:
    message = str(error)
names = sorted({{d.name.lower() for d in distributions()}})
print(json.dumps([torch.__version__, differs, message, names]))
"""


def main(argv: list[str]) -> int:
    """Install, load, compare; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", default="2.7.1", help="release (default 2.7.1)")
    parser.add_argument("--python", default=sys.executable, help="that makes the environment")
    parser.add_argument("--venv", help="an environment to install into, instead of a new one")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder, expected = str(work / "encoder"), str(work / "expected.safetensors")
        own = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", SAVE, folder, expected], check=True, env=own)
        venv = Path(args.venv) if args.venv else work / "venv"
        if not args.venv:
            subprocess.run([args.python, "-m", "venv", str(venv)], check=True)
        python = str(venv / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
        # A copy, because building leaves files in the checkout.
        ignore = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
        source = shutil.copytree(ROOT, work / "source", ignore=ignore)
        subprocess.run([*pip, f"torch=={args.torch}", str(source)], check=True)
        bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        result = subprocess.run(
            [python, "-c", LOAD, folder, expected],
            check=True,
            env=bare,
            cwd=work,
            stdout=subprocess.PIPE,
            text=True,
        )
    version, differs, message, names = json.loads(result.stdout)
    heavy = sorted(set(HEAVY) & set(names))
    print(f"torch {version}, {len(names)} packages; largest relative differences {differs}")
    print(f"models:/ without MLflow: {message}")
    if heavy:
        print(f"the base install brings {', '.join(heavy)}")
    wrong = heavy or max(differs.values()) > TOLERANCE or "dynaflip export" not in message
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
