"""Evaluation suites by name: the built-in ones, and one of an outsider through the job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY

from dynaflip.errors import UserError
from dynaflip.jobs import evaluate
from dynaflip.platform.evaluation.suites.registry import SUITES, open_suite

OUTSIDER = '''
from dataclasses import dataclass

from dynaflip.platform import tracking
from dynaflip.platform.evaluation.config import EvaluationConfig
from dynaflip.platform.evaluation.outcome import Outcome
from dynaflip.platform.evaluation.suites.base import Suite


@dataclass(frozen=True)
class NameLengthConfig(EvaluationConfig):
    factor: float = 1.0
    """What the length is multiplied with."""


class NameLength(Suite):
    """Score an encoder by the length of its name."""

    settings = NameLengthConfig

    def run(self, config):
        run = tracking.open_run(config.experiment, "name-length", {"kind": "name-length"})
        with tracking.ending(run):
            run.log_settings(config)
            metrics = {"length": config.factor * len(config.encoder)}
            run.log_metrics(metrics, step=0)
        return Outcome(f"length {metrics['length']:g}", run.run_name, run.run_id, metrics=metrics)
'''


@pytest.fixture
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a suite in a module that is outside the tree."""
    (tmp_path / "name_length.py").write_text(OUTSIDER)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "class:name_length:NameLength"


def test_an_outsider_s_suite_runs_through_the_job(
    outsider: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dynaflip.platform import tracking

    words = ["--suite", outsider, "--encoder", "four", "--factor", "2.5"]
    assert evaluate.main(words) == 0
    printed = capsys.readouterr().out
    assert "length 10" in printed
    run = tracking.find_run("name-length")
    assert run is not None
    assert run.metrics == {"length": 10.0}
    assert run.run_id in printed
    with pytest.raises(UserError, match=r"factor"):
        evaluate.main([*words[:-1], "much"])
    with pytest.raises(SystemExit):
        evaluate.main(["--suite", outsider, "--help"])
    shown = capsys.readouterr().out
    assert "Score an encoder by the length of its name." in shown
    assert "--factor" in shown


def test_unknown_suites_and_objects_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"no suite 'rollout'; did you mean rollouts\?"):
        evaluate.main(["--suite", "rollout"])
    with pytest.raises(UserError, match="known: probes, rollouts, imitation"):
        evaluate.main(["--suite"])
    with pytest.raises(UserError, match="is no subclass of"):
        open_suite("class:pathlib:Path")
    with pytest.raises(UserError, match="RUN_B"):
        evaluate.main(["compare", "one-run"])


def test_the_old_name_of_rollouts_works_with_one_warning_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--suite", "metaworld", "--help"])
    captured = capsys.readouterr()
    assert "--suite metaworld is now rollouts" in captured.err
    assert len(captured.err.splitlines()) == 1
    assert "--horizon_steps" in captured.out


def test_help_of_every_suite_imports_neither_torch_nor_ray() -> None:
    code = f"""
import sys
from dynaflip.jobs import evaluate
for name in {SUITES.names()}:
    try:
        evaluate.main(["--suite", name, "--help"])
    except SystemExit:
        pass
print("heavy:", sorted({{"torch", "ray", "mlflow", "polars", "mujoco"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert "heavy: []" in done.stdout, done.stderr
    for word in ("Retrieval", "roll them out", "the expert's"):
        assert word in done.stdout
