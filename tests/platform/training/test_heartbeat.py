"""The heartbeat of a run: written from a thread, gone on with by the next session."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from dynaflip.platform.training import heartbeat
from dynaflip.platform.training.heartbeat import Heartbeat, Pulse, note, read_pulse, write_pulse


def test_a_training_says_what_it_does_and_then_its_steps(tmp_path: Path) -> None:
    note(tmp_path, "starting workers", first=True)
    beat = Heartbeat(tmp_path, total_steps=40, every_s=0.01)
    with beat.beating():
        beat.doing("first evaluation")
        while (pulse := read_pulse(tmp_path)) is None or pulse.doing != "first evaluation":
            time.sleep(0.01)
        assert (pulse.step, pulse.total_steps, pulse.loss, pulse.eta_s()) == (0, 40, None, None)
        for step in (11, 12, 13):
            beat.stepped(step, torch.tensor(1 / step, requires_grad=True))
            while (pulse := read_pulse(tmp_path)) is None or pulse.step != step:
                time.sleep(0.01)
    last = read_pulse(tmp_path)
    assert last is not None
    assert (last.doing, last.step) == ("training", 13)
    assert last.loss == pytest.approx(1 / 13)
    assert [step for step, _ in last.curve] == [11, 12, 13]
    assert last.eta_s() is not None


def test_a_pause_between_sessions_does_not_count_and_steps_done_again_are_drawn_once(
    tmp_path: Path,
) -> None:
    curve = [(step, 1.0) for step in range(1, 6)]
    stopped = Pulse("training", 5, 9, 1.0, 60.0, 2.0, curve, written_s=time.time() - 3600)
    write_pulse(tmp_path, stopped)
    note(tmp_path, "starting workers", first=True)
    begun = read_pulse(tmp_path)
    assert begun is not None
    assert begun.elapsed_s == pytest.approx(60.0)
    beat = Heartbeat(tmp_path, total_steps=9, every_s=0.01)
    with beat.beating():
        beat.stepped(4, torch.tensor(2.0))
    pulse = read_pulse(tmp_path)
    assert pulse is not None
    assert 60.0 <= pulse.elapsed_s < 90.0
    assert pulse.curve == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


def test_a_long_curve_is_thinned_and_keeps_its_newest_point(tmp_path: Path) -> None:
    beat = Heartbeat(tmp_path, total_steps=10_000)
    for step in range(1, 1001):
        beat.stepped(step, torch.tensor(float(step)))
        beat._pulse = beat._now()
    curve = beat._pulse.curve
    assert len(curve) <= heartbeat._POINTS
    assert curve[-1] == (1000, 1000.0)


def test_what_cannot_be_read_or_written_disturbs_nobody(tmp_path: Path) -> None:
    assert read_pulse(tmp_path) is None
    (tmp_path / heartbeat.FILE).write_text('{"from": "another version"}')
    assert read_pulse(tmp_path) is None
    blocked = tmp_path / "file"
    blocked.touch()
    write_pulse(blocked, Pulse())
