"""An open sweep: what all that run, show or check it share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from dynaflip.platform import tracking
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.sweep import study as studies
from dynaflip.platform.sweep import sweep_folder as folders
from dynaflip.platform.sweep.config import SweepConfig, SweepJobConfig, pretrain_part
from dynaflip.platform.sweep.space import SEED, Dimension, parse_space
from dynaflip.platform.sweep.study import SEARCH
from dynaflip.platform.sweep.study_reader import read_trials
from dynaflip.platform.sweep.sweep_folder import Facts
from dynaflip.platform.training.config import PretrainConfig

_SEEDS = 1 << 20


@dataclass(frozen=True)
class Sweep:
    """An open sweep: its settings, its fixed facts and its MLflow run."""

    config: SweepConfig
    base: PretrainConfig
    space: tuple[Dimension, ...]
    facts: Facts
    parent: tracking.Run

    def study(self, stage: str) -> optuna.Study:
        """The study of a stage."""
        return studies.open_study(self.facts, stage, self.config.objectives)

    def trials(self, stage: str) -> list[FrozenTrial]:
        """A stage's own trials in order, read as they are now; empty before it has begun."""
        name = studies.study_name(self.facts.name, stage)
        return studies.without_warm(read_trials(self.facts.storage, name) or [])

    def folder(self) -> Path:
        """The sweep's folder."""
        return folders.folder_of(self.facts.name)


def open_to_read(name: str, flag: str) -> Sweep:
    """Open a sweep for reading.

    Raises:
        UserError: there is no such sweep.
    """
    facts = folders.read_facts(name, flag)
    job = load_config(SweepJobConfig, str(folders.folder_of(name) / folders.CONFIG), {}, saved=True)
    parent = tracking.Run(facts.run_id, name, tracking.tracking_uri())
    return Sweep(job.sweep, pretrain_part(job), parse_space(facts.space), facts, parent)


def space_of(sweep: Sweep, stage: str) -> tuple[Dimension, ...]:
    """The settings that a trial has values for; in the confirmation also the seed."""
    if stage == SEARCH:
        return sweep.space
    return (*sweep.space, Dimension(SEED, "int", 0, _SEEDS))


def chosen_settings(sweep: Sweep) -> list[int]:
    """Numbers of the search's trials that are confirmed: the paper's, and the best others."""
    offset = sweep.facts.warm_trials
    done = [
        t for t in sweep.trials(SEARCH) if t.state == TrialState.COMPLETE and t.number != offset
    ]
    done.sort(key=lambda t: t.values[0])
    return [0, *(t.number - offset for t in done[: sweep.config.confirm])]
