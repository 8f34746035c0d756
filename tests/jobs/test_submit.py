"""`ray job submit` on a real cluster, in an environment where the package is not installed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import REPOSITORY

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with every dependency and without this package.

    Its one .pth file adds this environment's packages as a plain path, so the .pth files
    in there, the editable install's among them, are not read.
    """
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})["purelib"]
    Path(packages, "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    python = folder / "bin" / "python"
    outside = tmp_path_factory.mktemp("outside")
    found = subprocess.run([str(python), "-c", "import dynaflip"], cwd=outside, env={}, check=False)
    assert found.returncode != 0, "the package is installed: the test would show nothing"
    return python


@pytest.fixture(scope="module")
def cluster(
    bare_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """`ray start --head` as an engineer would type it; yields the environment to submit from."""
    from dynaflip.platform.cluster import free_port, prepare_environment

    prepare_environment()
    dashboard, home = free_port(), tmp_path_factory.mktemp("cluster-home")
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")},
        "PATH": f"{bare_python.parent}{os.pathsep}{os.environ['PATH']}",
        "DYNAFLIP_HOME": str(home),
    }
    ports = {"--port": free_port(), "--dashboard-port": dashboard}
    ports |= {"--dashboard-agent-listen-port": free_port(), "--ray-client-server-port": free_port()}
    words = [str(bare_python), "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    words += [word for flag, port in ports.items() for word in (flag, str(port))]
    words += ["--num-cpus", "2", "--node-ip-address", "127.0.0.1", "--disable-usage-stats"]
    words += ["--object-store-memory", "150000000", "--temp-dir", f"/tmp/ray-{os.getpid()}"]
    log = (home / "ray-start.log").open("w")
    head = subprocess.Popen(
        words, env=environment, cwd=home, stdout=log, stderr=log, start_new_session=True
    )
    environment["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for_dashboard(dashboard, head, home / "ray-start.log")
        yield environment
    finally:
        # SIGTERM to `ray start --block` alone leaves it waiting for its children.
        with contextlib.suppress(ProcessLookupError):  # a head that did not start says why itself
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def wait_for_dashboard(port: int, head: subprocess.Popen, log: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    for _ in range(120):
        assert head.poll() is None, log.read_text()
        try:
            JobSubmissionClient(f"http://127.0.0.1:{port}").list_jobs()
            return
        except (ConnectionError, RuntimeError):
            time.sleep(0.5)
    raise AssertionError(f"the dashboard did not answer: {log.read_text()}")


def submit(cluster: dict[str, str], *words: str) -> tuple[int, int | None, str]:
    """Submit as a user would; the CLI's exit code, the job's own, and what was printed."""
    from ray.job_submission import JobSubmissionClient

    name = f"test-{time.time_ns()}"
    python = str(Path(cluster["PATH"].split(os.pathsep)[0]) / "python")
    command = [python, "-m", "ray.scripts.scripts", "job", "submit", "--submission-id", name]
    command += ["--working-dir", str(REPOSITORY), "--", "python", *words]
    result = subprocess.run(
        command, env=cluster, cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    info = JobSubmissionClient(cluster["RAY_ADDRESS"]).get_job_info(name)
    return result.returncode, info.driver_exit_code, result.stdout + result.stderr


@pytest.mark.integration
def test_a_submitted_pretraining_runs_the_submitted_code_and_registers(
    cluster: dict[str, str], triplet_folder: Path, bare_python: Path
) -> None:
    code, own, printed = submit(
        cluster,
        "jobs/pretrain.py",
        "--config",
        "tests/tiny.yaml",
        "--triplets",
        str(triplet_folder),
    )
    assert (code, own) == (0, 0), printed
    assert f"DYNAFLIP_HOME {cluster['DYNAFLIP_HOME']} (submitted job)" in printed
    script = (
        "import json, dynaflip, torch\n"
        "encoder = dynaflip.load_encoder('models:/dynaflip-encoder@latest')\n"
        "out = encoder(torch.zeros(2, 3, 48, 64))\n"
        "print(json.dumps([list(out.shape), encoder.dim, encoder.info['git_commit']]))\n"
    )
    loaded = subprocess.run(
        [str(bare_python), "-c", script],
        env={**cluster, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert loaded.returncode == 0, loaded.stderr
    shape, dim, _ = json.loads(loaded.stdout.strip().splitlines()[-1])
    assert shape == [2, dim]


def test_a_submitted_jobs_exit_code_is_its_own(cluster: dict[str, str]) -> None:
    code, own, printed = submit(cluster, "jobs/pretrain.py", "--objective.volume", "-1")
    assert code != 0
    assert own == 2
    assert "objective.volume" in printed


@pytest.mark.integration
def test_a_submitted_job_refuses_to_write_into_its_temporary_copy(cluster: dict[str, str]) -> None:
    code, own, printed = submit(cluster, "jobs/preprocess.py", "--output", "data/triplets")
    assert code != 0
    assert own == 2
    assert "temporary copy" in printed
