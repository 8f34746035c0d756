"""A notice that a machine or a process will be gone: saved at once, and no trace in the curves."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkout import REPOSITORY
from test_loop import CONFIG, Trial, one_thread, terms_of

from dynaflip.platform.training.context import Context, Metrics
from dynaflip.platform.training.curve_file import CurveFile
from dynaflip.platform.training.length import plan
from dynaflip.platform.training.loop import Pretraining
from dynaflip.platform.training.notices import (
    LEAVE,
    NOTHING,
    SAVE,
    STOP,
    Agreement,
    Leaving,
    Notices,
    Stopped,
    on_sigterm,
)

__all__ = ["one_thread"]  # a fixture that pytest finds here

# Reports of two steps, checkpoints of four: a notice in step 3 comes between all of them.
EVERY = {"report_every_steps": 2, "checkpoint_every_steps": 4, "keep_checkpoints": 9}


def trained(trial: Trial, *, level: int = NOTHING, at_step: int = 0) -> Pretraining:
    """Train; the notice comes while a step is computed, as signals do."""
    notices = Notices()
    batches = trial.batches

    def noticed(position):  # type: ignore[no-untyped-def]
        for batch in batches(position):
            if pretraining.step == at_step - 1:
                notices.notify(level)
            yield batch

    pretraining = trial.pretraining()
    context = dataclasses.replace(pretraining.context, notices=notices)
    pretraining = Pretraining(
        trial.config, context, pretraining.length, pretraining.gallery, pretraining.sources
    )
    pretraining.run(noticed)
    return pretraining


@pytest.mark.parametrize(("level", "error"), [(SAVE, None), (LEAVE, Leaving), (STOP, Stopped)])
def test_a_notice_saves_the_very_step_and_the_curves_do_not_show_it(
    triplet_folder: Path, tmp_path: Path, level: int, error: type[Exception] | None
) -> None:
    train = dataclasses.replace(CONFIG.train, eval_every_steps=0, **EVERY)
    config = dataclasses.replace(CONFIG, train=train)
    whole = Trial(triplet_folder, config, tmp_path / "whole")
    done = trained(whole)
    broken = Trial(triplet_folder, config, tmp_path / "broken")
    if error is None:
        trained(broken, level=level, at_step=3)
        assert terms_of(broken.reports) == terms_of(whole.reports)
    else:
        with pytest.raises(error, match=r"step 3: .*checkpoint is saved"):
            trained(broken, level=level, at_step=3)
    assert any("checkpoint is saved" in line for line in broken.logged)
    names = sorted(path.name for path in (tmp_path / "broken").iterdir())
    assert names[0] == "step-00000003"
    for later in names[1:]:  # of the run that trained on: its machine goes now
        for path in (tmp_path / "broken" / later).iterdir():
            path.unlink()
    again = Trial(triplet_folder, config, tmp_path / "broken")
    rest = again.pretraining()
    assert rest.step == 3
    rest.run(again.batches)
    assert terms_of(again.reports) == terms_of(whole.reports), "means over the same steps"
    for name, value in done.state.model.state_dict().items():
        assert torch.equal(value, rest.state.model.state_dict()[name]), name


def test_a_store_that_takes_longer_than_the_grace_leaves_the_checkpoint_before(
    triplet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, grace_s=17))
    trial = Trial(triplet_folder, config, tmp_path)
    length = plan(config, trial.index.counts["train"])
    notices, reports = Notices(lambda: STOP), list[Metrics]()
    checkpoints = trial.pretraining().context.checkpoints
    assert checkpoints is not None
    context = Context(report=reports.append, checkpoints=checkpoints, notices=notices)
    asked: list[float | None] = []
    monkeypatch.setattr(
        checkpoints, "wait", lambda timeout_s=None: bool(asked.append(timeout_s)) or not timeout_s
    )
    with pytest.raises(Stopped, match="step 1: told to end; the checkpoint could not be saved"):
        Pretraining(config, context, length).run(trial.batches)
    assert asked[-1] == 12, "5 s are left to end in"


def test_the_first_sigterm_is_a_notice_and_the_highest_one_counts() -> None:
    notices, other = Notices(lambda: NOTHING), []
    previous = signal.signal(signal.SIGTERM, lambda signum, frame: other.append(signum))
    try:
        with on_sigterm(lambda: notices.notify(STOP)):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
            notices.notify(SAVE)
            assert (notices.level(), other) == (STOP, [])
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
            assert other == [signal.SIGTERM], "a second one acts as before"
    finally:
        signal.signal(signal.SIGTERM, previous)
    alone = Agreement("cpu")
    assert alone.reach(SAVE) == SAVE
    alone.finish()


@pytest.mark.integration
def test_a_run_that_gets_sigterm_leaves_with_143_and_goes_on(
    triplet_folder: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "jobs/pretrain.py", "--config", "tests/tiny.yaml"]
    words += ["--triplets", str(triplet_folder), "--backend", "in_process"]
    words += ["--output", str(tmp_path / "run"), "--train.steps", "400"]
    words += ["--train.eval_every_steps", "0", "--train.report_every_steps", "1"]
    words += ["--train.checkpoint_every_steps", "1000"]
    environment = {**os.environ, "DYNAFLIP_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        words, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    )
    curves = CurveFile(tmp_path / "run")
    deadline = time.monotonic() + 240
    while curves.last_step() < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "told to end; a checkpoint is saved. Go on with the same command." in output
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = json.loads((saved / "state.json").read_text())["step"]
    assert 3 <= step == curves.last_step() < 400
