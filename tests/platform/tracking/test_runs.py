"""Runs in a real SQLite store: curves, reopening, and what becomes of killed ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dynaflip.errors import UserError
from dynaflip.platform import tracking
from dynaflip.platform.tracking.store import client
from dynaflip.platform.training.config import PretrainConfig


def status(run: tracking.Run) -> str:
    return client().get_run(run.run_id).info.status


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://127.0.0.1:9", "no server answers there .*start it, or unset"),
        ("foo://user:secret@bar", r"foo://user:\*+@bar: MLflow knows no such store"),
    ],
)
def test_a_store_that_is_not_there_is_one_line_at_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, uri: str, said: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=said):
        client()


def test_a_run_lies_in_the_home_and_keeps_curves_settings_and_provenance(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tracking.open_run("first", "run-1", {"kind": "test"})
    with tracking.ending(run):
        run.log_settings(PretrainConfig())
        run.log_curves([(step, {"train/loss": 1.0 / (step + 1)}) for step in range(1200)])
        run.log_text("hello", "notes/hello.txt")
    stored = client().get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params["objective.temperature"] == "0.07"
    assert stored.data.tags["kind"] == "test"
    assert len(stored.data.tags["git_commit"].split("-")[0]) == 40 or "unknown" in str(
        stored.data.tags["git_commit"]
    )
    assert " x " in stored.data.tags["hardware"]
    curve = run.curves()["train/loss"]
    assert len(curve) == 1200
    assert curve[3] == (3, 0.25)
    artifacts = home / "mlflow" / "artifacts" / "first" / run.run_id / "artifacts"
    assert (artifacts / "config.yaml").is_file()
    assert (artifacts / "notes" / "hello.txt").read_text() == "hello"
    assert (home / "mlflow" / "mlflow.db").is_file()
    # Nothing falls into the working directory, and the user's choice of store stays open.
    assert list(tmp_path.iterdir()) == [home]
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_reopening_goes_on_with_the_curves(home: Path) -> None:
    run = tracking.open_run("first", "run-1")
    run.log_metrics({"a": 1.0}, step=0)
    run.end("KILLED")
    again = tracking.reopen_run(run.run_id)
    assert status(again) == "RUNNING"
    again.log_metrics({"a": 2.0}, step=1)
    again.log_metrics({"a": 3.0}, step=1)
    assert run.curves() == {"a": [(0, 1.0), (1, 3.0)]}
    with pytest.raises(UserError, match="has no run 0123"):
        tracking.reopen_run("0123")


def test_failures_and_interrupts_end_the_run(home: Path) -> None:
    failed, stopped = (tracking.open_run("first", name) for name in "ab")
    with pytest.raises(RuntimeError), tracking.ending(failed):
        raise RuntimeError("the loss of step 3")
    with pytest.raises(KeyboardInterrupt), tracking.ending(stopped):
        raise KeyboardInterrupt
    assert (status(failed), status(stopped)) == ("FAILED", "KILLED")
    assert client().get_run(failed.run_id).data.tags["error"] == "the loss of step 3"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_leaves_no_run_running(home: Path, how: signal.Signals) -> None:
    mine = tracking.open_run("first", "mine")
    code = (
        "import time; from dynaflip.platform import tracking\n"
        "run = tracking.open_run('first', 'theirs')\n"
        "with tracking.ending(run):\n"
        "    print(run.run_id, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        run_id = other.stdout.readline().strip()
        other.send_signal(how)
        other.wait(30)
    tracking.open_run("first", "next")
    theirs = client().get_run(run_id)
    assert theirs.info.status == "KILLED"
    assert status(mine) == "RUNNING"


def test_the_environment_overrides_the_store(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert not tracking.is_embedded()
    assert client().tracking_uri == uri
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert client().tracking_uri == f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"


def test_what_was_deleted_in_the_ui_is_restored(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tracking.open_run("deleted", "run-1")
    first.end("FINISHED")
    store = client()
    experiment_id = store.get_run(first.run_id).info.experiment_id
    store.delete_experiment(experiment_id)
    second = tracking.open_run("deleted", "run-2")
    assert store.get_run(second.run_id).info.experiment_id == experiment_id
    assert "the experiment deleted had been deleted in MLflow" in capsys.readouterr().out
    store.delete_run(second.run_id)
    assert status(tracking.reopen_run(second.run_id)) == "RUNNING"
    store.delete_experiment(experiment_id)
    assert status(tracking.reopen_run(second.run_id)) == "RUNNING"
    assert store.get_experiment(experiment_id).lifecycle_stage == "active"


def test_experiments_open_on_models_and_on_the_columns_that_matter(home: Path) -> None:
    from dynaflip.platform.tracking.views import add_views, table_address

    tracking.open_run("dynaflip-evaluate", "a").end("FINISHED")
    before = client().create_experiment("dynaflip-of-before")
    client().create_experiment("another's")
    found = add_views()
    assert set(found) == {"dynaflip-evaluate", "dynaflip-of-before"}
    for experiment in found.values():
        tags = client().get_experiment(experiment).tags
        assert tags["mlflow.experimentKind"] == "custom_model_development"
        view = json.loads(tags["mlflow.sharedViewState.dynaflip"])
        columns = json.loads(view["state"])["selectedColumns"]
        assert "attributes.`Description`" in columns
        assert ("attributes.`Dataset`" in columns) == (experiment == before)
    assert table_address("http://h", before).endswith(
        f"/#/experiments/{before}/runs?workflowType=machine_learning&viewStateShareKey=dynaflip"
    )
