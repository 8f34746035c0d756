"""GPU check of Ray Train: a job that is killed and resumed ends in the weights of one that is not.

    make gpu-ray PYTHON=.venv/bin/python

Trains on synthetic triplets with jobs/pretrain.py and one GPU a worker, twice: undisturbed; and
with SIGKILL for the worker, then for the driver, then --resume. The encoders must be equal bit by
bit. Leaves with 1 where they are not, and with 0 and a line that says so where Ray does not import
or there is no GPU: then there is nothing to check.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STEPS, WORKER_DIES_AT, DRIVER_DIES_AT = 24, 6, 14
LIMIT_S = 600.0  # of one training
NEEDED = ("torch", "ray", "mlflow", "pyarrow", "pydantic", "cv2")
WORKER = b"RayTrainWorker"
# Random numbers in every step: a step that is repeated otherwise gives other weights.
SETTINGS = {
    "model.image.name": "class:repeatable_backbone:Patches",
    "model.image.image_px": "32",
    "model.image.frozen_blocks": "0",
    "model.flow.condition_dropout": "0.5",
    "data.batch_size": "4",
    "train.steps": str(STEPS),
    "train.report_every_steps": "1",
    "train.checkpoint_every_steps": "2",
    "train.diagnostics_every_steps": "0",
}


def main(argv: list[str] | None = None) -> int:
    """Train twice and compare; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="default gpu")
    device = parser.parse_args(argv).device
    if reason := why_not(device):
        print(f"gpu-ray: nothing was checked: {reason}")
        return 0
    try:
        expected, found = digests(device)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"gpu-ray: failed: {error}")
        return 1
    equal = expected == found
    print(
        f"gpu-ray: worker killed after step {WORKER_DIES_AT}, driver after {DRIVER_DIES_AT}; the "
        f"encoders are {'equal' if equal else 'NOT EQUAL'}: {expected} and {found}"
    )
    return 0 if equal else 1


def digests(device: str) -> tuple[str, str]:
    """Digests of the encoders of an undisturbed training, and of one that is killed twice.

    Raises:
        RuntimeError: a training ended when it should not have.
    """
    with tempfile.TemporaryDirectory(prefix="dynaflip-") as folder:
        triplets = _triplets(Path(folder) / "triplets")
        undisturbed = Training(Path(folder) / "undisturbed", triplets, device)
        killed = Training(Path(folder) / "killed", triplets, device)
        try:
            undisturbed.start()
            undisturbed.wait()
            killed.start()
            killed.kill_worker(WORKER_DIES_AT)
            killed.kill_driver(DRIVER_DIES_AT)
            killed.resume()
            killed.wait()
        finally:
            undisturbed.end()
            killed.end()
        return undisturbed.digest(), killed.digest()


def why_not(device: str) -> str:
    """Why there is nothing to check here; empty where there is."""
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            return f"{name} does not import ({error}); pip install 'dynaflip[platform]'"
        if name == "torch" and device == "gpu":
            import torch

            if not torch.cuda.is_available():
                return "torch sees no GPU; --device cpu runs the same on a CPU"
    return ""


class Training:
    """A job in a process and a home of its own."""

    def __init__(self, home: Path, triplets: Path, device: str) -> None:
        self.home = home
        self.process: subprocess.Popen[bytes] | None = None
        words = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
        self.words = ["--config", "tests/tiny.yaml", "--triplets", str(triplets), *words]
        self.words += ["--train.device", device]

    def start(self) -> None:
        """Start the training."""
        self._run(self.words)

    def resume(self) -> None:
        """Continue the run after its driver was killed."""
        (run,) = (self.home / "runs").iterdir()
        self._run(["--resume", run.name])

    def _run(self, words: list[str]) -> None:
        path = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "DYNAFLIP_HOME": str(self.home),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        }
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, "jobs/pretrain.py", *words]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment)

    def kill_worker(self, step: int) -> None:
        """SIGKILL the training worker once the run has reported a step."""
        self._reach(step)
        mine = f"DYNAFLIP_HOME={self.home}".encode()
        ends_s = time.monotonic() + 60
        while not (workers := _processes(WORKER, mine)):
            if time.monotonic() > ends_s:
                raise RuntimeError("no training worker is found among the processes")
            time.sleep(0.05)
        os.kill(workers[0], signal.SIGKILL)
        print(f"gpu-ray: killed worker {workers[0]}", flush=True)

    def kill_driver(self, step: int) -> None:
        """SIGKILL the job itself once the run has reported a step."""
        self._reach(step)
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        print(f"gpu-ray: killed driver {self.process.pid}", flush=True)

    def wait(self) -> None:
        """Wait for the end; an error is one."""
        assert self.process is not None
        if code := self.process.wait(LIMIT_S):
            raise RuntimeError(f"the training ended with exit code {code}; see above")

    def end(self) -> None:
        """End the job where it still runs; Ray's processes end with it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

    def digest(self) -> str:
        """Of the encoder's files of weights."""
        (folder,) = (self.home / "runs").glob("*/encoder")
        digest = hashlib.sha256()
        for file in sorted(folder.glob("*.safetensors")):
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]

    def _reach(self, step: int) -> None:
        ends_s = time.monotonic() + LIMIT_S
        while self._reported() < step:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"the training ended before step {step}; see above")
            if time.monotonic() > ends_s:
                raise RuntimeError(f"step {step} was not reached in {LIMIT_S:.0f} s")
            time.sleep(0.02)

    def _reported(self) -> int:
        logs = list(self.home.glob("runs/*/progress.log"))
        lines = logs[0].read_text().splitlines() if logs else []
        matches = [re.match(r"step +(\d+)/", line) for line in lines]
        return max((int(match[1]) for match in matches if match), default=0)


def _processes(name: bytes, variable: bytes) -> list[int]:
    """Ids of processes of a name that have a variable in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line, environment = (folder / n for n in ("cmdline", "environ"))
            if name in line.read_bytes() and variable in environment.read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended, or is another user's
    return found


def _triplets(folder: Path) -> Path:
    """The tests' synthetic triplets."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from synthetic_triplets import write_triplets

    return write_triplets(folder)


if __name__ == "__main__":
    sys.exit(main())
