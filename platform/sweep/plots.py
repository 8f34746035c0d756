"""Plots of a sweep, logged to its parent run: history, importance, parallel coordinates."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
from optuna.trial import TrialState

from dynaflip.platform.sweep.stages import Sweep
from dynaflip.platform.sweep.study import SEARCH
from dynaflip.platform.sweep.table import titles

_ENOUGH = 4  # finished trials below which importances mean nothing


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of the scores' variance that each setting explains (fANOVA); empty for too few trials.

    With several objectives, the first one counts.
    """
    done = study.get_trials(states=[TrialState.COMPLETE], deepcopy=False)
    if len(done) < _ENOUGH or len({t.values[0] for t in done}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(
        study, evaluator=evaluator, target=lambda trial: trial.values[0]
    )
    return {key: float(value) for key, value in shares.items()}


def importance_line(study: optuna.Study) -> str:
    """Importances in one line."""
    shares = importances(study)
    if not shares:
        return f"importance: needs {_ENOUGH} finished trials"
    return "importance: " + ", ".join(f"{key} {share:.0%}" for key, share in shares.items())


def log_plots(sweep: Sweep) -> None:
    """Draw the plots that the finished trials allow, and log them under ``plots/``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import optuna.visualization.matplotlib as draw

    study = sweep.study(SEARCH)
    several = len(sweep.config.objectives) > 1
    options: dict[str, Any] = {"target_name": titles(sweep.config.objectives)[0]}
    if several:
        options["target"] = lambda trial: trial.values[0]
    made = {
        "history": lambda: draw.plot_optimization_history(study, **options),
        "parallel_coordinates": lambda: draw.plot_parallel_coordinate(study, **options),
    }
    if importances(study):
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        made["importance"] = lambda: draw.plot_param_importances(
            study, evaluator=evaluator, **options
        )
    if several:
        names = titles(sweep.config.objectives)
        made["pareto_front"] = lambda: draw.plot_pareto_front(study, target_names=names)
    for name, plot in made.items():
        with warnings.catch_warnings():  # a setting that all trials share has no range to draw
            warnings.simplefilter("ignore")
            figure: Any = plot().figure
            figure.set_size_inches(9, 5)
            figure.tight_layout()  # long names of settings are slanted
        sweep.parent.log_figure(figure, f"plots/{name}.png")
        plt.close(figure)
