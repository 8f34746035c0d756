"""What the check ran on: hardware, driver, versions, commit."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform as host
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "numpy", "safetensors", "torchvision", "pytest", "ray")


def describe() -> dict[str, Any]:
    """Hardware and versions as JSON values; ``device`` is cuda or cpu."""
    import torch

    found: dict[str, Any] = {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "python": host.python_version(),
        "system": f"{host.system()} {host.release()} {host.machine()}",
        "cpus": cpus(),
        "commit": commit(),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    found["torch"] = torch.__version__
    if found["device"] == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda or "none",
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """The description as a few lines for people."""
    gpu = "no GPU that torch sees"
    if found["device"] == "cuda":
        gpu = (
            f"{found['gpus']} x {found['gpu']}, {found['gpu_memory_gb']} GB, driver "
            f"{found['driver']}, CUDA {found['cuda']}, cuDNN {found['cudnn']}"
        )
    versions = ", ".join(f"{name} {found[name]}" for name in PACKAGES)
    return [
        f"device   {gpu}",
        f"machine  {found['cpus']:g} CPUs, {found['system']}",
        f"versions Python {found['python']}, {versions}",
        f"commit   {found['commit']}",
    ]


def cpus() -> float:
    """CPUs that this process may use: its affinity, and a container's quota where there is one."""
    allowed = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else min(allowed, int(quota) / int(period))


def commit() -> str:
    """The checkout's commit, with a plus where files differ from it; or what there is to say."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        state = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        return "unknown (no git here)"
    if name.returncode:
        return "unknown (no git checkout)"
    return name.stdout.strip() + ("+" if state.stdout.strip() else "")


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.split("\n")[0].strip() or "unknown"


def write(path: Path) -> None:
    """Write :func:`describe` as JSON."""
    path.write_text(json.dumps(describe()))
