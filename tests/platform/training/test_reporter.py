"""Reports reach the disk at once and MLflow when it answers: all of them, in order, once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from dynaflip.errors import StoreError, UserError
from dynaflip.platform import tracking
from dynaflip.platform.tracking.store import client
from dynaflip.platform.training import sending
from dynaflip.platform.training.background import Background
from dynaflip.platform.training.curve_file import CurveFile
from dynaflip.platform.training.reports import ReportWriter
from dynaflip.platform.training.sending import Sender, send_curves


def points_of(run: tracking.Run) -> list[tuple[int, float]]:
    """Every point of the loss that the store has, repetitions and all, as it has them."""
    history = client().get_metric_history(run.run_id, "train/loss")
    return [(point.step, point.value) for point in history]


def filled(folder: Path, *steps: int) -> CurveFile:
    curves = CurveFile(folder)
    for step in steps:
        curves.append(step, {"train/loss": 1.0 / step, "speed/steps_per_s": 2.0})
    return curves


def until(condition: object) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_queue_hands_on_in_order_and_keeps_the_first_error() -> None:
    handled: list[int] = []
    free = threading.Event()

    def handle(item: int) -> None:
        free.wait(10)
        if item == 3:
            raise StoreError("full")
        handled.append(item)

    background = Background(handle, most=5, name="test")
    for item in (1, 2, 3, 4):
        background.put(item)  # though nothing is handled yet
    assert handled == []
    assert not background.flush(timeout_s=0.01)
    free.set()
    with pytest.raises(StoreError, match="full"):
        background.flush()
    assert handled == [1, 2], "in order, and nothing after the error"
    with pytest.raises(StoreError, match="full"):
        background.put(5)


def test_reports_are_on_disk_once_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    lines: list[str] = []
    for steps in ((1, 2, 3), (2, 3, 4)):  # the second is resumed from a checkpoint at step 1
        writer = ReportWriter(CurveFile(tmp_path), lines.extend, total_steps=4)
        for step in steps:
            writer({"step": step, "train/loss": 1.0 / step}, ["note"] if step == 4 else [])
        writer.flush()
    assert CurveFile(tmp_path).curves()["train/loss"] == [(n, 1.0 / n) for n in (1, 2, 3, 4)]
    assert [line.split("  ")[0] for line in lines] == [
        "step 1/4", "step 2/4", "step 3/4", "note", "step 4/4",
    ]  # fmt: skip


def test_half_a_line_and_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    curves = CurveFile(tmp_path)
    curves.append(1, {"train/loss": float("nan"), "train/lr": 0.1})
    with curves.path.open("a") as file:
        file.write('{"step": 2, "tr')
    assert curves.unsent(100)[0][0].values == {"train/lr": 0.1}
    assert len(curves.unsent(100)[0]) == 1, "what is being written is not sent"
    assert CurveFile(tmp_path).last_step() == 1
    assert curves.path.read_text().count("\n") == 1
    with pytest.raises(StoreError, match=r"cannot write .*nowhere.*make room"):
        CurveFile(tmp_path / "nowhere").append(1, {})


def test_points_are_sent_once_though_a_crash_forgot_that_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_MOST_VALUES", 5)  # two points a call
    run = tracking.open_run("reporter-test", "once", {"kind": "pretrain"})
    curves = filled(tmp_path, *range(1, 8))
    calls = []
    monkeypatch.setattr(CurveFile, "mark_sent", lambda self, count: calls.append(count))
    batch, _ = curves.unsent(5)
    run.log_points([(p.step, p.time_ms, p.values) for p in batch])  # and killed before the mark
    monkeypatch.undo()
    monkeypatch.setattr(sending, "_MOST_VALUES", 5)
    assert not curves.all_sent()
    assert send_curves(CurveFile(tmp_path), run) == 7
    assert curves.all_sent()
    assert points_of(run) == [(n, 1.0 / n) for n in range(1, 8)]
    filled(tmp_path, 8)
    assert send_curves(CurveFile(tmp_path), run) == 1
    assert points_of(run)[-1] == (8, 1.0 / 8)


def test_what_mlflow_refuses_waits_and_comes_in_order_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_EVERY_S", 0.05)
    run = tracking.open_run("reporter-test", "away", {"kind": "pretrain"})
    curves, lines = filled(tmp_path, 1), list[str]()
    sender = Sender(CurveFile(tmp_path), run, lines.append)
    until(curves.all_sent)
    client().delete_run(run.run_id)  # its store refuses points from here on
    filled(tmp_path, 2)
    until(lambda: lines)
    filled(tmp_path, 3)
    client().restore_run(run.run_id)
    until(curves.all_sent)
    assert sender.finish(patience_s=30)
    assert [step for step, _ in points_of(run)] == [1, 2, 3]
    assert len(lines) == 2, "one line when it goes, one when it is back"
    assert lines[0].startswith("warning: MLflow is away (")
    assert lines[1].startswith("MLflow is back after 0:0")

    client().delete_run(run.run_id)
    filled(tmp_path, 4)
    assert not Sender(CurveFile(tmp_path), run, lines.append).finish(patience_s=30)
    client().restore_run(run.run_id)
    assert send_curves(CurveFile(tmp_path), run) == 1, "the next session sends it"


def test_curves_of_a_run_that_began_before_there_were_files_go_on(tmp_path: Path) -> None:
    run = tracking.open_run("reporter-test", "before", {"kind": "pretrain"})
    run.log_curves([(1, {"train/loss": 1.0}), (2, {"train/loss": 0.5})])
    curves = CurveFile(tmp_path)
    curves.adopt(run.curves)
    assert curves.last_step() == 2
    assert curves.all_sent()
    curves.adopt(lambda: pytest.fail("it has them"))


def test_a_run_that_was_stopped_sends_its_curves_and_one_that_is_done_says_so(
    tmp_path: Path,
) -> None:
    from dynaflip.platform.training.publish import send, write_run_file

    folder = tmp_path / "done"
    folder.mkdir()
    run = tracking.open_run("reporter-test", "done", {"kind": "pretrain"})
    config = {"tracking": {"model_name": "m"}}
    write_run_file(folder, run_id=run.run_id, config=config)
    filled(folder, 1)
    assert send(folder, None) == (
        "sent 1 points of the curves; the run is not trained to its end: --resume done goes on"
    )
    assert points_of(run) == [(1, 1.0)]
    assert client().get_run(run.run_id).info.status == "KILLED"
    write_run_file(folder, version=3)
    with pytest.raises(UserError, match="--send done: MLflow has all of it; it is version 3 of m"):
        send(folder, None)


def test_workers_that_were_told_to_end_are_no_failures(tmp_path: Path) -> None:
    from dynaflip.platform.cluster import prepare_environment

    prepare_environment()
    from dynaflip.platform.training.backends.ray_train import PROGRESS, Reporter
    from dynaflip.platform.training.notices import Leaving, Stopped

    reporter = Reporter(tmp_path, total_steps=9, max_failures=1)
    reporter.after_report(None, [{"step": 1, "notes": ["first"], "train/loss": 1.0}], None)
    for _ in range(3):
        reporter.after_exception(None, {0: Leaving("step 1: told to end"), 1: OSError("reset")})
    reporter.after_exception(None, {0: OSError("crashed")})
    with pytest.raises(OSError, match="crashed again"):
        reporter.after_exception(None, {0: OSError("crashed again")})
    with pytest.raises(Stopped):
        reporter.after_exception(None, {0: OSError("reset"), 1: Stopped("step 2")})
    lines = (tmp_path / PROGRESS).read_text().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["first", "step 1/9"] + 3 * [
        "step 1: told to end"
    ]
