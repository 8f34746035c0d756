"""Write requirements.lock: the exact version of everything that pyproject.toml asks for."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADER = """\
# Exact versions of everything, direct or not, that CI runs (Python 3.11, CPU).
# `make lock` writes it anew. Elsewhere than on a CPU machine torch brings CUDA packages of its own.
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        report = Path(folder) / "report.json"
        # torch by its exact version, so that the CPU wheel is taken where one is offered.
        command = [f"{folder}/bin/pip", "install", "--quiet", "--dry-run", "--report", str(report)]
        wanted = ["torch==2.13.0", f"{ROOT}[platform,sim,ogbench,test,dev]", "setuptools>=77"]
        subprocess.run([*command, *wanted], check=True)
        found = json.loads(report.read_text())["install"]
    # A local build tag (+cpu) names one index's wheel; elsewhere the plain version is right.
    pins = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"].split("+")[
            0
        ]
        for item in found
    }
    pins.pop("dynaflip")
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    (ROOT / "requirements.lock").write_text(HEADER + "".join(lines))
    print(f"requirements.lock: {len(lines)} packages")


if __name__ == "__main__":
    main()
