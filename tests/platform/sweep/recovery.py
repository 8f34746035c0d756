"""Start a real sweep as a user would, kill a part of it, and go on with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkout import REPOSITORY

JOB = REPOSITORY / "jobs" / "sweep.py"
WORKER = "ray::RayTrainWorker"
# These look after a node for a minute after its end; they know nothing of trials.
_LAST = ("ray::RuntimeEnvAgent", "ray::DashboardAgent")


@dataclass
class Process:
    """A running sweep and the file it writes to."""

    popen: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        """Everything it wrote so far."""
        return self.log.read_text()

    def descendants(self) -> dict[int, str]:
        """Process id → command line of everything below it."""
        return descendants(self.popen.pid)

    def find(self, part: str) -> int | None:
        """A descendant whose command holds a word."""
        return next((p for p, command in self.descendants().items() if part in command), None)


def descendants(pid: int) -> dict[int, str]:
    """Process id → command line of everything below a process."""
    parents, commands = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text().rpartition(")")[2].split()
            parents[int(path.name)] = int(stat[1])
            commands[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it ended while we looked
    below: set[int] = set()
    frontier = {pid}
    while frontier:
        frontier = {p for p, parent in parents.items() if parent in frontier} - below
        below |= frontier
    return {p: commands[p] for p in below if p in commands}


def start(home: Path, words: Sequence[str], log: Path, script: Path = JOB) -> Process:
    """Run ``jobs/sweep.py``, or another script; its output goes into a file."""
    environment = {**os.environ, "DYNAFLIP_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    with log.open("ab") as out:
        popen = subprocess.Popen(
            [sys.executable, str(script), *words],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Process(popen, log)


def until(condition: Callable[[], object], timeout_s: float, what: str) -> object:
    """Wait until something holds; returns it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{what} did not happen within {timeout_s:.0f} s")


def kill(process: Process, kind: str, worker: str = WORKER) -> bool:
    """SIGKILL the driver, a worker or the node; False where there is none to kill.

    Returns when everything that cannot outlive it is gone.
    """
    words = {"worker": worker, "node": "/raylet/raylet "}
    before = process.descendants()
    pid = process.popen.pid if kind == "driver" else process.find(words[kind])
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it ended by itself in this moment
        return False
    if kind != "worker":
        process.popen.wait(timeout=120)
        left = {p: c for p, c in before.items() if p != pid and not c.startswith(_LAST)}
        until(lambda: not any(map(_alive, left)), 90, f"the end of all of {left}")
    return True


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
