"""A job started as a script runs the code of its own checkout, in the driver and in workers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY

SCRIPTS = sorted(p for p in (REPOSITORY / "jobs").glob("*.py") if p.stem[0] != "_")
BOOTSTRAP = """if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()
"""
PROBE = (
    """\"\"\"Prints whose code runs in the driver and in a worker.\"\"\"

"""
    + BOOTSTRAP
    + """
import dynaflip.losses.config
from dynaflip.platform import provenance


def where() -> str:
    import dynaflip.losses.config as there

    return there.__file__


print("driver", dynaflip.losses.config.__file__)
print("commit", provenance.git_commit())
"""
)
WORKER = """
from dynaflip.platform.cluster import start_ray

start_ray(num_cpus=1)
import ray

print("worker", ray.get(ray.remote(where).remote()))
ray.shutdown()
"""


def run(python: str, script: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
    return subprocess.run(
        [python, str(script), *words],
        env={**clean, **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """A checkout of another commit beside the one that is installed or on the path."""
    folder = tmp_path / "second"
    folder.mkdir()
    for name in ("dynaflip", "losses", "encoders", "eval", "platform", "jobs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignore)
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "Second"], check=True)
    return folder


def head(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_job_turns_to_its_checkout_before_it_imports_the_package(script: Path) -> None:
    before, found, _ = script.read_text().partition(BOOTSTRAP)
    assert found
    assert "import" not in before.partition("from __future__ import annotations")[2]


def test_a_second_checkout_runs_and_records_its_own_code(second: Path, home: Path) -> None:
    (second / "jobs" / "probe.py").write_text(PROBE)
    result = run(sys.executable, second / "jobs" / "probe.py")
    assert result.returncode == 0, result.stderr
    driver, commit = (line.split()[1] for line in result.stdout.splitlines())
    assert driver == str(second / "losses" / "config.py")
    assert commit == head(second)


def test_the_installed_command_tells_that_it_is_not_this_checkout_s(
    second: Path, home: Path
) -> None:
    code = "import sys; sys.argv = ['dynaflip', 'home']; from dynaflip.jobs import cli; cli.main()"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    notes = []
    for folder in (REPOSITORY / "docs", REPOSITORY, second):
        command = [sys.executable, "-P", "-c", code]
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr
        notes.append(result.stderr)
    assert notes[:2] == ["", ""]
    assert "python jobs/home.py" in notes[2]


@pytest.mark.ray
@pytest.mark.integration
def test_the_workers_of_a_second_checkout_run_its_code(
    second: Path, home: Path, tmp_path: Path
) -> None:
    (second / "jobs" / "probe.py").write_text(PROBE + WORKER)
    # As batch systems make it: too long for the names of Ray's sockets below it.
    temporary = tmp_path / ("x" * 62)
    temporary.mkdir()
    result = run(sys.executable, second / "jobs" / "probe.py", TMPDIR=str(temporary))
    assert result.returncode == 0, result.stderr
    worker = next(line for line in result.stdout.splitlines() if line.startswith("worker"))
    assert worker.split()[1] == str(second / "losses" / "config.py")


def test_a_python_without_the_packages_is_one_line_and_2(tmp_path: Path, second: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "v")], check=True)
    result = run(str(tmp_path / "v" / "bin" / "python"), second / "jobs" / "pretrain.py")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert f"cd {second} && make env && . {second}/.venv/bin/activate" in result.stderr
