"""Workers of an evaluation: one that is lost takes nothing with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dynaflip.errors import UserError
from dynaflip.platform.rollouts.run import MOST_LOST, Workers

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


def test_a_job_that_kills_every_worker_ends_in_one_line(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(UserError, match=r"workers were lost.*run the same again") as error:
        squares(tmp_path, deaths=1000)
    assert "\n" not in str(error.value)
    assert len(list(tmp_path.iterdir())) == MOST_LOST + 1
