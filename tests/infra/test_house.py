"""The layout's promises: quick help, the standard module intact."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY

JOBS = sorted(p.stem for p in (REPOSITORY / "jobs").glob("*.py") if p.stem[0] != "_")
# Jobs with what they do beside their main work.
HELP = [
    *((job,) for job in JOBS),
    ("evaluate", "--suite", "metaworld"),
    ("preprocess", "inspect"),
    ("sweep", "show"),
]


def run(*words: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_standard_platform_module_is_intact_from_the_root() -> None:
    assert platform.python_version() == ".".join(map(str, sys.version_info[:3]))
    result = run("-c", "import platform, ray; print(platform.system())")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == platform.system()


@pytest.mark.ray
def test_the_standard_platform_module_is_intact_in_a_worker(ray_cluster: None) -> None:
    import ray

    @ray.remote(num_cpus=0.5)
    def where() -> tuple[str, str]:
        import platform

        import dynaflip.platform.paths

        return platform.system(), str(dynaflip.platform.paths.home())

    assert ray.get(where.remote()) == (platform.system(), os.environ["DYNAFLIP_HOME"])


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_always_works_writes_nothing_and_is_quick(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    job = words[0]
    code = (
        "import resource, runpy, sys\n"
        f"sys.argv = [*{words!r}, '--help']\n"
        "sys.path[0] = 'jobs'\n"  # as for `python jobs/JOB.py`
        "try:\n"
        f"    runpy.run_path('jobs/{job}.py', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'transformers', 'mujoco'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "assert used.ru_utime + used.ru_stime < 1, used\n"
    )
    (tmp_path / "file").write_text("")
    result = run(
        "-c",
        code,
        # A home that cannot be made, and other settings of the shell that make no sense.
        DYNAFLIP_HOME=str(tmp_path / "file" / "home"),
        MLFLOW_TRACKING_URI="nonsense",
        RAY_ADDRESS="nonsense",
        COLUMNS="wide",
        PYTHONIOENCODING="ascii",
        PYTHONPATH=str(REPOSITORY),
    )
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout or job == "cli"
    assert "DYNAFLIP_HOME" not in result.stdout.splitlines()[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
