"""The MLflow UI's process: its server ends with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkout import REPOSITORY

from dynaflip.platform.cluster import free_port
from dynaflip.platform.tracking.store import client


def group_of(pid: int) -> set[int]:
    """Every process below one, itself included."""
    found = {pid}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found |= group_of(int(stat.parent.name))
    return found


@pytest.mark.integration
def test_a_terminated_ui_takes_its_server_with_it(home: Path) -> None:
    client().search_experiments()  # makes the store
    port = free_port()
    ui = subprocess.Popen(
        [sys.executable, "jobs/ui.py", "--port", str(port)],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    try:
        until = time.monotonic() + 120
        while True:
            assert ui.poll() is None
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.3)
        processes = group_of(ui.pid)
        assert len(processes) > 1
        ui.send_signal(signal.SIGTERM)
        assert ui.wait(30) == 128 + signal.SIGTERM
        alive = [pid for pid in processes if Path(f"/proc/{pid}").exists()]
        until = time.monotonic() + 10
        while alive and time.monotonic() < until:  # children of a dead parent are reaped soon
            time.sleep(0.2)
            alive = [pid for pid in processes if Path(f"/proc/{pid}").exists()]
        assert not alive
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    finally:
        for pid in group_of(ui.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        ui.wait()
