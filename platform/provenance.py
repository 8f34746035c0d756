"""What made a result: the commit of the code, the machine, the command. Knows no MLflow."""

from __future__ import annotations

import os
import platform as host_platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dynaflip.platform.passwords import MASK, masked


def provenance() -> dict[str, str]:
    """Code and machine of a result: git commit, host, CPUs, GPU, Python, command."""
    return {
        "git_commit": git_commit(),
        "hardware": hardware(),
        "python": host_platform.python_version(),
        "command": " ".join([Path(sys.argv[0]).name, *map(_masked_word, sys.argv[1:])])[:1000],
    }


def git_commit() -> str:
    """The checkout's commit, marked ``-dirty`` when files differ from it.

    Where the code is a copy without ``.git`` (a submitted job, a wheel):
    ``DYNAFLIP_GIT_COMMIT``, or ``unknown (…)``.
    """
    root = Path(__file__).resolve().parents[1]
    if (root / ".git").exists():
        try:
            commit = _git(root, "rev-parse", "HEAD")
            dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
        except (OSError, subprocess.SubprocessError):
            return os.environ.get("DYNAFLIP_GIT_COMMIT") or "unknown (git failed)"
        return commit + ("-dirty" if dirty else "")
    # Ray names a submitted working directory by the digest of its files.
    package = f", {root.name}" if root.name.startswith("_ray_pkg_") else ""
    return os.environ.get("DYNAFLIP_GIT_COMMIT") or f"unknown (no git checkout{package})"


def hardware() -> str:
    """CPU model, number of usable CPUs, and the GPU if torch sees one."""
    from dynaflip.platform.cluster import available_cpus

    parts = [f"{available_cpus()} x {_cpu_model()}"]
    torch: Any = sys.modules.get("torch")  # never imported for a tag
    if torch is not None and torch.cuda.is_available():
        parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    return ", ".join(parts)


def versions_of(packages: tuple[str, ...]) -> list[str]:
    """``name version`` of installed packages."""
    return [f"{name} {version(name)}" for name in packages]


def _masked_word(word: str) -> str:
    """A word of the command line; one that is a URL may have spaces in its password."""
    masked_url = re.sub(r"^(\w+://[^:/]*:)[^@]*\s[^@]*@", rf"\1{MASK}@", word)
    return masked(masked_url)


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return host_platform.processor() or host_platform.machine()
