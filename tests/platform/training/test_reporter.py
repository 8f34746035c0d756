"""What the controller writes down reaches MLflow, though that was away for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynaflip.errors import StoreError
from dynaflip.platform import tracking
from dynaflip.platform.tracking.store import client
from dynaflip.platform.training.backends.ray_train import Reporter


def report(reporter: Reporter, *steps: int) -> None:
    for step in steps:
        metrics = {"step": step, "train/loss": 1.0 / step, "time/step_s": 0.1}
        reporter.after_report(None, [metrics], None)


def test_reports_that_mlflow_refuses_are_logged_when_it_answers_again(tmp_path: Path) -> None:
    run = tracking.open_run("reporter-test", "away", {"kind": "pretrain"})
    log = tmp_path / "progress.log"
    reporter = Reporter(run, log, total_steps=100)
    report(reporter, 1)
    client().delete_run(run.run_id)  # its store refuses points from here on
    report(reporter, 2, 3)
    assert log.read_text().count("warning: MLflow refused a report") == 2
    client().restore_run(run.run_id)
    report(reporter, 4)
    assert [step for step, _ in run.curves()["train/loss"]] == [1, 2, 3, 4]

    client().delete_run(run.run_id)
    with pytest.raises(StoreError, match=r"refused 10 reports in a row .*--resume"):
        report(reporter, *range(5, 20))
    with pytest.raises(StoreError, match="refused 11 reports"):
        report(reporter, 100)  # the last one: nothing would follow to carry it
    with pytest.raises(StoreError, match=r"cannot write .*make room"):
        report(Reporter(run, tmp_path / "nowhere" / "log", total_steps=100), 1)
