"""Workers of an evaluation: one that is lost takes nothing with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.schedule import MOST_LOST, Workers

pytestmark = pytest.mark.ray


def squares(folder: Path, deaths: int) -> dict[int, int]:
    """Squares of 1 to 4 from workers, of which the one with 2 is killed so many times."""

    def square(_: Any, number: int) -> int:
        before = len(list(folder.iterdir()))
        if number == 2 and before < deaths:
            (folder / str(before)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2

    queue = [4, 3, 2, 1]
    with Workers() as workers:
        return dict(
            workers.run(
                lambda _: queue.pop() if queue else None,
                lambda actor, number: actor.__ray_call__.remote(square, number),
            )
        )


def test_the_job_of_a_lost_worker_is_done_again(
    tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture
) -> None:
    assert squares(tmp_path, deaths=1) == {1: 1, 2: 4, 3: 9, 4: 16}
    assert capsys.readouterr().out.count("a worker was lost") == 1


@pytest.mark.integration
def test_a_job_that_kills_every_worker_ends_in_one_line(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(UserError, match=r"workers were lost.*run the same again") as error:
        squares(tmp_path, deaths=1000)
    assert "\n" not in str(error.value)
    assert len(list(tmp_path.iterdir())) == MOST_LOST + 1


# Ray's memory monitor sees every machine as full here; a worker is killed in its first job.
FULL_MACHINE = """
import time

import ray

from dynaflip.errors import UserError
from dynaflip.platform.evaluation.schedule import Workers

full = {"memory_usage_threshold": 0.001, "memory_monitor_refresh_ms": 100}
ray.init(num_cpus=1, address="local", include_dashboard=False, _system_config=full)
jobs = [0]
with Workers() as workers:
    try:
        list(workers.run(
            lambda _: jobs.pop() if jobs else None,
            lambda actor, _: actor.__ray_call__.remote(lambda _: time.sleep(60)),
        ))
    except UserError as error:
        print("refused:", error)
"""


@pytest.mark.integration
def test_workers_that_memory_does_not_suffice_for_end_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_MACHINE], capture_output=True, text=True, timeout=240
    )
    assert done.stdout.count("a worker was lost") == MOST_LOST, done.stderr[-2000:]
    assert "refused: evaluate: 6 workers were lost" in done.stdout
    assert "low on memory" in done.stdout
