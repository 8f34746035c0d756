"""What a user sees of a sweep: its states, its live view, its verdict and its page."""

from __future__ import annotations

import contextlib
import html
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from checkout import REPOSITORY
from optuna.trial import FrozenTrial, TrialState
from stored_sweep import beat, complete, finished, started
from tiny_sweep import STEPS, opened

from dynaflip.errors import UserError
from dynaflip.files import file_lock
from dynaflip.platform.sweep import control, requests
from dynaflip.platform.sweep import sweep_folder as folders
from dynaflip.platform.sweep.confirmation import confirmed_of, student_interval
from dynaflip.platform.sweep.figures import figures
from dynaflip.platform.sweep.importance import keep_importances
from dynaflip.platform.sweep.live_view import LiveView
from dynaflip.platform.sweep.opened_sweep import Sweep, chosen_settings, open_to_read
from dynaflip.platform.sweep.page import Registered, page
from dynaflip.platform.sweep.report import Report, report_of
from dynaflip.platform.sweep.show import show
from dynaflip.platform.sweep.stages import ledger_of
from dynaflip.platform.sweep.status import stages_of, status_of
from dynaflip.platform.sweep.study import CONFIRM, SEARCH, open_study
from dynaflip.platform.sweep.study_reader import read_trials
from dynaflip.platform.sweep.table import sparkline, trial_table
from dynaflip.platform.tracking import child_runs


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    """A sweep whose trials have all ended, in a home of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNAFLIP_HOME", str(tmp_path_factory.mktemp("done")))
        sweep = finished("done")
        keep_importances(sweep)
        yield sweep


def report_on(sweep: Sweep) -> Report:
    return report_of(sweep, confirmed_of(sweep.trials(CONFIRM), chosen_settings(sweep)))


def test_the_report_has_one_verdict_that_says_which_sign_is_better(done: Sweep) -> None:
    report = report_on(done)
    text = report.text()
    assert report.verdict in text
    assert "sweep done: stopped" in text  # it has no page yet
    assert "negative is better" in report.verdict
    assert "better beyond noise" in report.verdict
    assert "search: 4 done, 1 skipped, 1 failed of 6" in text
    assert "trial-003 failed: diverged" in text
    assert "importance: objective." in text
    assert "None" not in text
    assert "nan" not in text
    # One figure for one quantity: the difference of the verdict stands in the table.
    gap = re.search(r"[-+]\d\.\d\d \[[-+]\d\.\d\d, [-+]\d\.\d\d\]", report.verdict)
    assert gap is not None
    assert text.count(gap.group()) == 2


def test_an_interval_of_errors_ends_at_zero() -> None:
    assert student_interval([0.1, 3.0], least=0.0).low == 0.0
    assert student_interval([0.1, 3.0]).low < 0


def test_the_page_begins_with_the_verdict_and_needs_no_other_file(done: Sweep) -> None:
    report = report_on(done)
    made = figures(report)
    assert set(made) == {"confirmation", "history", "importance", "parallel_coordinates"}
    registered = Registered("encoder", 7, "confirm-002", 4.13, "cm", "yes: there was none")
    text = page(report, made, "http://server/#/experiments/1", registered)
    verdict = html.escape(report.verdict[0].upper() + report.verdict[1:])
    assert text.index(verdict) < text.index("<img")
    assert text.count("<img") == 4
    assert set(re.findall(r"<img src=\"([a-z:/+]*)", text)) == {"data:image/svg+xml"}
    assert "<script" not in text
    assert "<link" not in text
    assert "@import" not in text
    for trial in (*report.stages[0].trials, *report.stages[1].trials):
        address = f"http://server/#/experiments/1/runs/{trial.run_id}"
        assert f'<a href="{address}">{trial.name}</a>' in text
    assert "objective.volume=log(0.1,10)" in text
    assert "None" not in re.sub(r"base64,[^\"]*", "", text)


def test_trials_are_running_while_a_process_holds_the_lock_and_stopped_afterwards(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = opened("killed", trials=4)
    ledger = ledger_of(sweep, SEARCH, 4)
    complete(sweep, ledger, started(ledger))
    trial = started(ledger)
    beat(sweep, trial, 3)
    with file_lock(folders.folder_of("killed") / folders.LOCK, "busy"):
        text = show("killed")
        assert "sweep killed: running" in text
        assert "1 done, 1 running of 4; 4.0 epochs trained; ETA" in text
        assert re.search(r"trial-001 .* 3/9 .* 0:0\d .* training", text)
    text = show("killed")
    assert "stopped; continue with: python jobs/sweep.py --resume killed" in text
    assert "1 done, 1 stopped of 4" in text
    assert "running" not in text
    assert "is not running; continue with" in control.stop("killed")


def test_a_stopped_sweeps_trial_is_skipped_when_it_continues_and_counts_as_one(home: Path) -> None:
    sweep = opened("paused", trials=2)
    ledger = ledger_of(sweep, SEARCH, 2)
    complete(sweep, ledger, started(ledger))
    started(ledger)
    ledger.stopped()
    assert [run.status for run in child_runs(sweep.parent)] == ["FINISHED", "KILLED"]
    with pytest.raises(UserError, match="trial-000 is done, not running"):
        control.skip("paused", "0")
    with pytest.raises(UserError, match="no such trial; it has trial-000, trial-001"):
        control.skip("paused", "trial-009")
    assert "will be skipped when the sweep continues" in control.skip("paused", "1")
    ledger = ledger_of(open_to_read("paused", "test"), SEARCH, 2)
    assert ledger.remaining() == 0
    (_, trial) = sweep.trials(SEARCH)
    assert trial.state == TrialState.PRUNED
    assert "1 done, 1 skipped of 2" in show("paused")
    tags = child_runs(sweep.parent)[1].tags
    assert (tags["sweep.state"], tags["sweep.skipped"]) == ("pruned", "by the user")


def test_a_skipped_trial_that_has_its_last_score_keeps_it(home: Path) -> None:
    sweep = opened("late", trials=1)
    ledger = ledger_of(sweep, SEARCH, 1)
    trial = started(ledger)
    ledger.skip(0)
    complete(sweep, ledger, trial)
    assert sweep.trials(SEARCH)[0].state == TrialState.COMPLETE


def test_a_trial_that_waits_shows_the_values_that_it_will_have(home: Path) -> None:
    sweep = opened("queued", trials=3)
    (stage,) = stages_of(sweep)
    (row,) = trial_table(stage, sweep.space, sweep.config.objectives).rows[1:]
    assert row[1:4] == ["trial-000", "1", "1"]
    assert row[-1] == "waiting"


def test_the_quick_reader_reads_what_optuna_does(home: Path) -> None:
    sweep = opened("read", trials=3)
    study = open_study(sweep.facts, SEARCH, ("perturbed",))
    for value in (1.5, float("inf"), None):
        trial = study.ask()
        trial.suggest_float("objective.volume", 0.1, 10, log=True)
        trial.suggest_int("data.batch_size", 4, 8)
        trial.suggest_categorical("train.precision", ["float32", "bfloat16"])
        trial.set_user_attr("name", "Ö")
        for step, report in enumerate((2.0, float("nan"), float("-inf"))):
            trial.report(report, step)
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        study.tell(trial, value, state=state)
    study.ask()
    study.enqueue_trial({"objective.volume": 2.0})
    ours, theirs = read_trials(sweep.facts.storage, "read"), study.get_trials()
    assert ours is not None
    assert [fields(t) for t in ours] == [fields(t) for t in theirs]
    assert read_trials(sweep.facts.storage, "no such study") is None
    assert optuna.trial.TrialState.WAITING in {t.state for t in ours}


def fields(trial: FrozenTrial) -> dict[str, str]:
    """A trial as text, as NaN equals nothing; the order of names has no meaning."""
    return {
        name: repr(sorted(value.items()) if isinstance(value, dict) else value)
        for name, value in vars(trial).items()
    }


def test_show_loads_nothing_heavy(done: Sweep) -> None:
    code = (
        "import sys; sys.argv = ['sweep.py', 'show', 'done']; sys.path[0] = 'jobs'\n"
        "import runpy\n"
        "try:\n    runpy.run_path('jobs/sweep.py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'sqlalchemy', 'matplotlib', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shown.returncode == 0, shown.stderr
    assert "verdict: " in shown.stdout


@pytest.fixture
def running(home: Path) -> LiveView:
    """The view of a sweep of which one trial is done and one runs."""
    sweep = opened("live", trials=3)
    ledger = ledger_of(sweep, SEARCH, 3)
    complete(sweep, ledger, started(ledger))
    beat(sweep, started(ledger), 5)

    def now(alive: bool) -> object:
        return status_of(sweep, SEARCH, sweep.trials(SEARCH), running=alive, total=3)

    return LiveView(sweep, sweep.space, now)  # type: ignore[arg-type]


def test_where_there_is_no_terminal_changes_and_progress_are_lines(
    running: LiveView, capsys: pytest.CaptureFixture[str]
) -> None:
    with running:
        running.tick()
        running.tick()  # too soon for another one
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("trial-000  volume=1 flow=1  done  4.")
    assert re.fullmatch(r"trial-001  volume=\S+ flow=\S+  running", lines[1])
    assert re.fullmatch(
        r"search: 1 done, 1 running of 3; 4.7 epochs trained; ETA 0:0\d"
        r" \| trial-001 training 5/9 loss 0.287 ETA 0:0\d",
        lines[2],
    )
    assert len(lines) == 3


def test_on_a_terminal_the_table_is_drawn_and_at_the_end_says_stopped(
    running: LiveView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    terminal, end = os.openpty()
    seen: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(terminal, 4096):
                seen.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(end, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        running.__enter__()
        running.tick()
        running.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    reader.join()
    os.close(terminal)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(seen).decode())
    first, last = (re.findall(rf"trial-001.* {word}", plain) for word in ("training", "stopped"))
    assert first
    assert last
    assert f"5/{STEPS}" in first[0]
    assert sparkline([(s, -s) for s in range(5)]) == "█▆▅▃▁"


def test_a_request_to_stop_is_forgotten_by_the_next_session(home: Path) -> None:
    opened("asked", trials=1)
    requests.ask_stop("asked")
    assert requests.stop_asked("asked")
    requests.forget_stop("asked")
    assert not requests.stop_asked("asked")
