"""The two stages of a sweep: the search, and the confirmation of its best with other seeds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from dynaflip.platform.sweep import study as studies
from dynaflip.platform.sweep.config import POLICY
from dynaflip.platform.sweep.ledger import Assignment, Ledger
from dynaflip.platform.sweep.live_view import LiveView
from dynaflip.platform.sweep.opened_sweep import Sweep, chosen_settings, space_of
from dynaflip.platform.sweep.resources import Fit
from dynaflip.platform.sweep.space import SEED, with_values
from dynaflip.platform.sweep.status import StageStatus, status_of
from dynaflip.platform.sweep.study import CONFIRM, SEARCH, own_trials

if TYPE_CHECKING:
    from dynaflip.platform.sweep.confirmation import Confirmed

SETTING = "setting"  # of a confirming trial: the number of the trial that it repeats


def search(sweep: Sweep, work: Any, fit: Fit) -> None:
    """Run the remaining trials of the search."""
    _run(sweep, SEARCH, sweep.config.trials, work, fit)


def confirm(sweep: Sweep, work: Any, fit: Fit) -> list[Confirmed]:
    """Train the best trials and the paper's weights again, with other seeds.

    Returns:
        Their scores over seeds, best first; empty where the setting ``confirm`` is 0.
    """
    from dynaflip.platform.sweep.confirmation import confirmed_of

    if sweep.config.confirm == 0:
        return []
    queue_confirmation(sweep)
    _run(sweep, CONFIRM, len(sweep.study(CONFIRM).trials), work, fit)
    return confirmed_of(sweep.trials(CONFIRM), chosen_settings(sweep))


def queue_confirmation(sweep: Sweep) -> None:
    """Add the trials of the confirmation that are missing to its study."""
    study = sweep.study(CONFIRM)
    queued = {(t.user_attrs[SETTING], t.user_attrs["seed"]) for t in study.trials}
    search_trials = sweep.trials(SEARCH)
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
    from dynaflip.platform.sweep.trial import TrialTask
    from dynaflip.platform.sweep.trial_score import trial_score

    by_policy = POLICY in sweep.config.objectives
    task = TrialTask(
        work=work,
        score=trial_score(sweep.config, sweep.folder()),
        policy_score=policy_score(sweep.config.score.policy) if by_policy else None,
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

    ledger = ledger_of(sweep, stage, total)

    def status_now(running: bool) -> StageStatus:
        trials = own_trials(ledger.study)
        return status_of(sweep, stage, trials, running=running, total=total)

    session = sweep.folder() / "tune" / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}"
    with LiveView(sweep, ledger.space, status_now) as view:
        run_stage(
            ledger,
            trainable,
            concurrent=sweep.config.concurrent,
            session=session,
            tick=view.tick,
            reuse=reuse,
        )


def ledger_of(sweep: Sweep, stage: str, total: int) -> Ledger:
    """The trials of a stage; what a killed session left unfinished is repaired first."""

    def describe(values: dict[str, Any]) -> dict[str, Any]:
        from dynaflip.platform.training.run import settings_digest

        try:
            return {"config_digest": settings_digest(with_values(sweep.base, values))}
        except ValueError:  # the trial fails with the reason
            return {}

    ledger = Ledger(
        sweep.study(stage),
        stage,
        space_of(sweep, stage),
        sweep.facts,
        sweep.config,
        sweep.parent,
        total=total,
        describe=describe,
    )
    ledger.repair()
    return ledger
