"""Submitted jobs on a real cluster that asks for a token.

The environment has every dependency and not this package.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from checkout import REPOSITORY

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

pytestmark = pytest.mark.ray

TOKEN = secrets.token_hex(32)
AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


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
    from dynaflip.platform.cluster import free_port

    dashboard, home = free_port(), tmp_path_factory.mktemp("cluster-home")
    unset = ("PYTHONPATH", "RAY_ADDRESS", *AUTHENTICATION)
    environment = {
        **{k: v for k, v in os.environ.items() if k not in unset},
        "PATH": f"{bare_python.parent}{os.pathsep}{os.environ['PATH']}",
        "DYNAFLIP_HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    ports = {"--port": free_port(), "--dashboard-port": dashboard}
    ports |= {"--dashboard-agent-listen-port": free_port(), "--ray-client-server-port": free_port()}
    words = [str(bare_python), "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    words += [word for flag, port in ports.items() for word in (flag, str(port))]
    words += ["--num-cpus", "2", "--node-ip-address", "127.0.0.1", "--disable-usage-stats"]
    words += ["--object-store-memory", "150000000", "--temp-dir", f"/tmp/ray-{os.getpid()}"]
    log = (home / "ray-start.log").open("w")
    head = subprocess.Popen(
        words, env=environment, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True
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


def dashboard_of(address: str) -> JobSubmissionClient:
    """A client with the cluster's token, whatever this process's own Ray uses."""
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(address, headers={"Authorization": f"Bearer {TOKEN}"})


def wait_for_dashboard(port: int, head: subprocess.Popen, log: Path) -> None:
    for _ in range(120):
        assert head.poll() is None, log.read_text()
        try:
            dashboard_of(f"http://127.0.0.1:{port}").list_jobs()
            return
        except (ConnectionError, RuntimeError):
            time.sleep(0.5)
    raise AssertionError(f"the dashboard did not answer: {log.read_text()}")


def ray_job_submit(
    environment: dict[str, str], *words: str, cwd: Path = REPOSITORY
) -> subprocess.CompletedProcess:
    """`ray job submit WORDS` as a user would type it."""
    python = str(Path(environment["PATH"].split(os.pathsep)[0]) / "python")
    command = [python, "-m", "ray.scripts.scripts", "job", "submit", *words]
    return subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300
    )


def submit(cluster: dict[str, str], *words: str) -> tuple[int, int | None, str]:
    """Submit this checkout; the CLI's exit code, the job's own, and what was printed.

    A job that never began (its upload was refused) fails the test with the CLI's words.
    """
    name = f"test-{time.time_ns()}"
    checkout = ("--submission-id", name, "--working-dir", str(REPOSITORY))
    result = ray_job_submit(cluster, *checkout, "--", "python", *words)
    printed = result.stdout + result.stderr
    try:
        info = dashboard_of(cluster["RAY_ADDRESS"]).get_job_info(name)
    except RuntimeError as error:
        pytest.fail(f"the job was not accepted ({error}):\n{printed}")
    return result.returncode, info.driver_exit_code, printed


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


def test_a_submit_without_the_token_is_refused(cluster: dict[str, str]) -> None:
    stranger = {k: v for k, v in cluster.items() if k not in AUTHENTICATION}
    refused = ray_job_submit(stranger, "--", "echo", "I am in")
    assert refused.returncode != 0
    assert "AuthenticationError" in refused.stderr
    guessing = {**cluster, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    assert ray_job_submit(guessing, "--", "echo", "I am in").returncode != 0
    said = submit_job(stranger, "home")
    assert said.returncode == 2
    (line,) = [line for line in said.stderr.splitlines() if line.startswith("error: ")]
    assert "RAY_AUTH_TOKEN" in line
    assert "Traceback" not in said.stderr
    commands = [job.entrypoint for job in dashboard_of(cluster["RAY_ADDRESS"]).list_jobs()]
    assert not any("I am in" in command for command in commands)


def test_a_job_without_a_working_directory_runs_where_ray_start_ran(
    cluster: dict[str, str],
) -> None:
    result = ray_job_submit(cluster, "--", "python", "jobs/home.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"DYNAFLIP_HOME {cluster['DYNAFLIP_HOME']}" in result.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the checkout's tracked files, with 120 MB of a user's recordings in it."""
    folder = tmp_path / "copy"
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-co", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    for name in ("my_videos/pour.mp4", "my_triplets/triplets/part-00000.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(60_000_000))  # nothing that a zip makes smaller
    return folder


def submit_job(
    environment: dict[str, str], *words: str, checkout: Path = REPOSITORY
) -> subprocess.CompletedProcess:
    """`python jobs/submit.py WORDS` in a checkout."""
    python = str(Path(environment["PATH"].split(os.pathsep)[0]) / "python")
    command = [python, "jobs/submit.py", *words]
    return subprocess.run(
        command, env=environment, cwd=checkout, capture_output=True, text=True, timeout=300
    )


def test_recordings_in_the_checkout_are_not_uploaded(cluster: dict[str, str], copy: Path) -> None:
    words = ("--working-dir", ".", "--", "python", "jobs/home.py")
    result = ray_job_submit(cluster, *words, cwd=copy)
    assert result.returncode == 0, result.stdout + result.stderr
    result = submit_job(cluster, "home", checkout=copy)
    assert result.returncode == 0, result.stdout + result.stderr
    newest = max(dashboard_of(cluster["RAY_ADDRESS"]).list_jobs(), key=lambda j: j.start_time or 0)
    assert "DYNAFLIP_GIT_COMMIT" in (newest.runtime_env or {})["env_vars"]


def test_an_upload_that_is_too_large_names_the_files_and_the_remedy(
    cluster: dict[str, str], copy: Path
) -> None:
    (copy / "weights.bin").write_bytes(os.urandom(120_000_000))
    result = ray_job_submit(cluster, "--working-dir", ".", "--", "python", "jobs/home.py", cwd=copy)
    assert result.returncode != 0
    assert "413" in result.stderr
    result = submit_job(cluster, "home", checkout=copy)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert ".rayignore" in last
    assert "weights.bin (120 MB)" in last
