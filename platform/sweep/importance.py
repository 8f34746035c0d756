"""Importance of the searched settings: computed once, when the sweep ends, and kept.

Computing it takes seconds, which `show` must not, and every place then gives the same numbers.
"""

from __future__ import annotations

import json

import optuna
from optuna.trial import TrialState

from dynaflip.files import write_file
from dynaflip.platform.sweep.opened_sweep import Sweep
from dynaflip.platform.sweep.study import SEARCH

_FILE = "importance.json"
ENOUGH = 4  # finished trials below which importances mean nothing


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of the scores' variance that each setting explains (fANOVA); empty for too few trials.

    With several objectives, the first one counts.
    """
    done = study.get_trials(states=[TrialState.COMPLETE], deepcopy=False)
    if len(done) < ENOUGH or len({t.values[0] for t in done}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(
        study, evaluator=evaluator, target=lambda trial: trial.values[0]
    )
    return {key: float(value) for key, value in shares.items()}


def keep_importances(sweep: Sweep) -> dict[str, float]:
    """Compute the importances and write them into the sweep's folder."""
    shares = importances(sweep.study(SEARCH))
    write_file(sweep.folder() / _FILE, json.dumps(shares))
    return shares


def kept_importances(sweep: Sweep) -> dict[str, float] | None:
    """The importances that the sweep's end computed; None before that."""
    path = sweep.folder() / _FILE
    return json.loads(path.read_text()) if path.is_file() else None


def importance_line(shares: dict[str, float] | None) -> str:
    """Importances in one line."""
    if shares is None:
        return "importance: computed when the sweep ends"
    if not shares:
        return f"importance: needs {ENOUGH} finished trials with different scores"
    return "importance: " + ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
