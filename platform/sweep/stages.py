"""The two stages of a sweep: the search, and the confirmation of its best with other seeds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from dynaflip.platform import tracking
from dynaflip.platform.sweep import study as studies
from dynaflip.platform.sweep import sweep_folder as folders
from dynaflip.platform.sweep import table
from dynaflip.platform.sweep.config import POLICY, SweepConfig
from dynaflip.platform.sweep.confirmation import Confirmed, confirmed_of
from dynaflip.platform.sweep.ledger import Assignment, Ledger
from dynaflip.platform.sweep.resources import Fit
from dynaflip.platform.sweep.space import SEED, Dimension, with_values
from dynaflip.platform.sweep.study import CONFIRM, SEARCH, own_trials
from dynaflip.platform.sweep.sweep_folder import Facts
from dynaflip.platform.training.config import PretrainConfig

SETTING = "setting"  # of a confirming trial: the number of the trial that it repeats
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

    def folder(self) -> Path:
        """The sweep's folder."""
        return folders.folder_of(self.facts.name)

    def ledger(self, stage: str, total: int) -> Ledger:
        """The trials of a stage; what a killed session left unfinished is repaired first."""
        ledger = Ledger(
            self.study(stage),
            stage,
            space_of(self, stage),
            self.facts,
            self.config,
            self.parent,
            total=total,
            describe=self._describe,
        )
        ledger.repair()
        return ledger

    def _describe(self, values: dict[str, Any]) -> dict[str, Any]:
        from dynaflip.platform.training.run import settings_digest

        try:
            return {"config_digest": settings_digest(with_values(self.base, values))}
        except ValueError:  # the trial fails with the reason
            return {}


def space_of(sweep: Sweep, stage: str) -> tuple[Dimension, ...]:
    """The settings that a trial has values for; in the confirmation also the seed."""
    if stage == SEARCH:
        return sweep.space
    return (*sweep.space, Dimension(SEED, "int", 0, _SEEDS))


def search(sweep: Sweep, work: Any, fit: Fit) -> None:
    """Run the remaining trials of the search."""
    _run(sweep, SEARCH, sweep.config.trials, work, fit)


def confirm(sweep: Sweep, work: Any, fit: Fit) -> list[Confirmed]:
    """Train the best trials and the paper's weights again, with other seeds.

    Returns:
        Their scores over seeds, best first; empty where the setting ``confirm`` is 0.
    """
    if sweep.config.confirm == 0:
        return []
    queue_confirmation(sweep)
    _run(sweep, CONFIRM, len(sweep.study(CONFIRM).trials), work, fit)
    return confirmed_of(sweep.study(CONFIRM), chosen_settings(sweep))


def chosen_settings(sweep: Sweep) -> list[int]:
    """Numbers of the search's trials that are confirmed: the paper's, and the best others."""
    offset = sweep.facts.warm_trials
    done = [
        t
        for t in own_trials(sweep.study(SEARCH))
        if t.state == TrialState.COMPLETE and t.number != offset
    ]
    done.sort(key=lambda t: t.values[0])
    return [0, *(t.number - offset for t in done[: sweep.config.confirm])]


def queue_confirmation(sweep: Sweep) -> None:
    """Add the trials of the confirmation that are missing to its study."""
    study = sweep.study(CONFIRM)
    queued = {(t.user_attrs[SETTING], t.user_attrs["seed"]) for t in study.trials}
    search_trials = own_trials(sweep.study(SEARCH))
    first = sweep.base.train.seed + 1
    for setting in chosen_settings(sweep):
        values = _values(sweep, search_trials[setting])
        for seed in range(first, first + sweep.config.confirm_seeds):
            if (setting, seed) not in queued:
                study.enqueue_trial(values | {SEED: seed}, {SETTING: setting, "seed": seed})


def _values(sweep: Sweep, trial: FrozenTrial) -> dict[str, Any]:
    # Trial 0 may have failed before it had values.
    return dict(sweep.facts.papers) if "papers" in trial.user_attrs else trial.params


def _run(sweep: Sweep, stage: str, total: int, work: Any, fit: Fit) -> None:
    from dynaflip.platform.sweep.policy_score import policy_score
    from dynaflip.platform.sweep.probe_score import ProbeScore
    from dynaflip.platform.sweep.trial import TrialTask

    score = sweep.config.score
    by_policy = POLICY in sweep.config.objectives
    task = TrialTask(
        work=work,
        score=ProbeScore(sweep.folder() / folders.FRAMES, score.folds, score.batch_size),
        policy_score=policy_score(score.policy) if by_policy else None,
        score_steps=(
            studies.score_steps(sweep.config, sweep.facts.total_steps)
            if stage == SEARCH
            else (sweep.facts.total_steps,)
        ),
        folder=sweep.folder() / "trials",
        fit=fit,
    )
    run_with(sweep, stage, total, task)
    # Trials that were stopped early or failed are not continued.
    for path in task.folder.glob("*/checkpoints"):
        shutil.rmtree(path, ignore_errors=True)


def run_with(
    sweep: Sweep,
    stage: str,
    total: int,
    trainable: Callable[[Assignment], None],
    *,
    reuse: bool = False,
) -> None:
    """Run the remaining trials of a stage with any trainable, and show the table live.

    Args:
        sweep: an open sweep.
        stage: search or confirm.
        total: number of trials that the stage ends with.
        trainable: see :func:`dynaflip.platform.sweep.ray_tune.run_stage`.
        reuse: run several trials in one process.
    """
    from dynaflip.platform.sweep.ray_tune import run_stage

    ledger = sweep.ledger(stage, total)
    study, space = ledger.study, ledger.space
    shown = (study, sweep.facts, space, sweep.config.objectives)

    def draw() -> str:
        head = f"{stage}: {table.summary(study, sweep.facts, total)}"
        return f"{head}\n{table.trial_table(*shown, mark_best=stage == SEARCH)}"

    view = table.LiveView(draw, lambda: table.state_lines(*shown))
    session = sweep.folder() / "tune" / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_stage(
        ledger,
        trainable,
        concurrent=sweep.config.concurrent,
        session=session,
        tick=view.tick,
        reuse=reuse,
    )
    view.update()
