"""Consistency check: the study, MLflow and Ray Tune agree about every trial.

Run after a recovery. Each record is read from its own source: the study from its database, the
runs from MLflow, and each trial's last result from the files of Tune's sessions.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from dynaflip.platform.sweep.config import METRIC, SCORE_NAME
from dynaflip.platform.sweep.ledger import STATUS
from dynaflip.platform.sweep.opened_sweep import Sweep, open_to_read
from dynaflip.platform.sweep.study import CONFIRM, SEARCH, open_storage, own_trials, study_name
from dynaflip.platform.tracking import RunRecord, child_runs


def inconsistencies(name: str) -> list[str]:
    """Contradictions between the records, one line each; empty if there are none.

    Raises:
        UserError: there is no such sweep.
    """
    sweep = open_to_read(name, "check")
    known = optuna.get_all_study_names(open_storage(sweep.facts.storage))
    runs = child_runs(sweep.parent)
    found: list[str] = []
    for stage in (SEARCH, CONFIRM):
        if study_name(name, stage) in known:
            found += _of_stage(sweep, stage, runs)
    return found


def _of_stage(sweep: Sweep, stage: str, runs: list[RunRecord]) -> Iterator[str]:
    trials = own_trials(sweep.study(stage))
    wanted = sweep.config.trials if stage == SEARCH else len(trials)
    if len(trials) != wanted:
        yield f"{stage}: the study has {len(trials)} trials, {wanted} were asked for"
    here = [run for run in runs if run.tags.get("sweep.stage") == stage]
    counts = Counter(run.tags.get("sweep.trial") for run in here)
    names = {t.user_attrs.get("name") for t in trials}
    for name, number in counts.items():
        if number != 1 or name not in names:
            yield f"MLflow has {number} runs of {name}"
    by_name = {run.tags.get("sweep.trial"): run for run in here}
    for trial in trials:
        name = trial.user_attrs.get("name", f"{stage} {trial.number}")
        if trial.state not in STATUS:
            yield f"{name}: {trial.state.name.lower()} in the study"
            continue
        score = SCORE_NAME[sweep.config.objectives[0]]
        yield from _with_mlflow(name, trial, by_name.get(name), score)
        yield from _with_tune(name, trial, sweep)


def _with_mlflow(name: str, trial: FrozenTrial, run: RunRecord | None, score: str) -> Iterator[str]:
    if run is None:
        yield f"{name}: MLflow has no run"
        return
    state = trial.state.name.lower()
    if run.status != STATUS[trial.state] or run.tags.get("sweep.state") != state:
        yield f"{name}: {state} in the study, {run.status} in MLflow"
    if run.run_id != trial.user_attrs.get("run_id"):
        yield f"{name}: another run than the study names"
    if trial.state == TrialState.COMPLETE and not _close(run.metrics.get(score), trial):
        yield f"{name}: {trial.values[0]} in the study, {run.metrics.get(score)} in MLflow"


def _with_tune(name: str, trial: FrozenTrial, sweep: Sweep) -> Iterator[str]:
    results = [r for path in _tune_files(sweep, name) if (r := _last_result(path)) is not None]
    finals = [r for r in results if r.get("final")]
    if trial.state == TrialState.COMPLETE:
        metric = METRIC[sweep.config.objectives[0]]
        # A final report that a kill kept from the study is sent once more, from its file.
        if not finals or not all(_close(r.get(metric), trial) for r in finals):
            yield f"{name}: {trial.values[0]} in the study, {finals or results} in Tune"
    elif any(not r.get("failed") for r in finals):
        yield f"{name}: {trial.state.name.lower()} in the study, finished in Tune"
    elif trial.state == TrialState.PRUNED and not results and "skipped" not in trial.user_attrs:
        yield f"{name}: pruned in the study, and no report in Tune"


def _tune_files(sweep: Sweep, name: str) -> list[Path]:
    return sorted((sweep.folder() / "tune").glob(f"*/{name}/result.json"))


def _last_result(path: Path) -> dict[str, Any] | None:
    """The last complete line of Tune's results."""
    for line in reversed(path.read_text().splitlines()):
        try:
            return json.loads(line)
        except json.JSONDecodeError:  # a kill cut it short
            continue
    return None


def _close(value: float | None, trial: FrozenTrial) -> bool:
    return value is not None and math.isclose(value, trial.values[0], rel_tol=1e-9)
