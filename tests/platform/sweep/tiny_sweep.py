"""Sweeps whose trials compute instead of train, through the same path as real ones."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

from dynaflip.platform.sweep import sweep_folder as folders
from dynaflip.platform.sweep.config import SweepConfig, SweepJobConfig
from dynaflip.platform.sweep.ledger import Assignment
from dynaflip.platform.sweep.opened_sweep import Sweep
from dynaflip.platform.sweep.run import open_sweep
from dynaflip.platform.sweep.space import paper_values, parse_space

SPECS = ("objective.volume=log(0.1,10)", "objective.flow=uniform(0,2)")
STEPS = 9


def opened(name: str, **settings: Any) -> Sweep:
    """A sweep of this home that is about to begin."""
    config = SweepConfig(**{"confirm": 0, "concurrent": 2, **settings})
    job, space = SweepJobConfig(sweep=config), parse_space(SPECS)
    folders.write_config(name, job)
    return open_sweep(
        job,
        name,
        space,
        paper_values(space, job),
        data=("nowhere", "synthetic"),
        score_digest="synthetic",
        length=(STEPS, 3),
    )


def bowl(values: dict[str, float]) -> float:
    """Least, 0, at volume 3 and flow 0.5."""
    away = np.log10(values["objective.volume"] / 3), values["objective.flow"] - 0.5
    return float(np.square(away).sum())


def computed(assignment: Assignment) -> None:
    """A trial that is done at once."""
    report(STEPS, bowl(assignment.values), final=True)


def send_by_value(*modules: ModuleType) -> None:
    """Workers cannot import the tests' files."""
    import ray

    for module in (sys.modules[__name__], *modules):
        ray.cloudpickle.register_pickle_by_value(module)


def report(step: int, score: float, **more: Any) -> None:
    """Tell Tune what a training would."""
    from ray import tune

    scores = {"score/perturbed_cm": score, "score/unperturbed_cm": 2 - score}
    tune.report({"step": step, **scores, **more})
