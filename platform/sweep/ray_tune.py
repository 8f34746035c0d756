"""Ray Tune runs the trials of a stage; what to run and what came of it is the ledger's.

Every session is a Tune experiment of its own, because the study already has everything
that a session would have to restore. Import this only after
:func:`dynaflip.platform.cluster.start_ray`.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dynaflip.errors import StoreError
from dynaflip.platform import tracking
from dynaflip.platform.sweep.ledger import Assignment, Interrupted, Ledger
from dynaflip.platform.sweep.resources import DRIVER_CPUS

Trainable = Callable[[Assignment], None]
_ASSIGNMENT = "assignment"
_OUTAGE = "outage"
_OUTAGE_S = 600.0  # the driver ends the session long before
_NODE_CHECK_S = 3.0
_ENVIRONMENT = {
    # Ctrl-C ends a sweep like any other job; Tune would go on until its trials are saved.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Its newer output prints a banner at any verbosity.
    "RAY_AIR_NEW_OUTPUT": "0",
}


class ProcessLost(RuntimeError):
    """A process of a trial died, by no fault of its settings: it is started again."""


class StudySearch(Searcher):
    """Tune's view of who suggests: the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial, or the word that there is none."""
        assignment = self.ledger.next()
        if assignment is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = assignment.number
        return {_ASSIGNMENT: assignment}

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        """Record a trial's end; :class:`Watch` records deaths, which it can count."""
        number = self._numbers.pop(trial_id)
        if not error:
            self.ledger.complete(number, result or {})

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save beside the study."""
        Path(checkpoint_path).write_text(self.ledger.study.study_name)


class StudyScheduler(FIFOScheduler):
    """Tune's view of who stops a trial early: the study's pruner."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        """Note the result, and stop what the pruner gives up."""
        goes_on = self.ledger.progress(trial.config[_ASSIGNMENT].number, result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


class Watch(tune.Callback):
    """Tells the ledger of trials that died, and the view that time has passed."""

    def __init__(self, ledger: Ledger, tick: Callable[[], None]) -> None:
        self.ledger, self.tick = ledger, tick
        self._checked_s = time.monotonic()
        self._outage = ""

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any
    ) -> None:
        """Hear of an outage, on which every trial would fail in turn."""
        self._outage = self._outage or result.get(_OUTAGE, "")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Every turn of Tune's loop."""
        self.tick()
        if self._outage:
            raise Interrupted(
                f"{self._outage}; when that is mended go on: python jobs/sweep.py --resume "
                f"{self.ledger.facts.name}"
            )
        self._check_node()

    def _check_node(self) -> None:
        """Tune would wait for ever for the processes of a node that is no more."""
        if time.monotonic() - self._checked_s < _NODE_CHECK_S:
            return
        self._checked_s = time.monotonic()
        here = ray.get_runtime_context().get_node_id()
        if not any(node["NodeID"] == here and node["Alive"] for node in ray.nodes()):
            name = self.ledger.facts.name
            raise Interrupted(f"the Ray node died; go on: python jobs/sweep.py --resume {name}")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A process died more often than allowed; what a trial raises is a result instead."""
        lost = (trial.last_result or {}).get("lost", "its process died")
        reason = f"{lost} ({trial.num_failures} times)"
        self.ledger.fail(trial.config[_ASSIGNMENT].number, reason)


def run_stage(
    ledger: Ledger,
    trainable: Trainable,
    *,
    concurrent: int,
    session: Path,
    tick: Callable[[], None],
    reuse: bool = False,
) -> None:
    """Run what is left of a stage.

    Args:
        ledger: of the stage.
        trainable: runs one :class:`Assignment` in an actor and reports to Tune; its last
            report has ``final`` and the score, or ``failed`` and the reason.
        concurrent: trials at once.
        session: folder of this session's Tune experiment; made.
        tick: called often while trials run.
        reuse: run several trials in one process, one after the other.
    """
    left = ledger.left()
    if left <= 0:
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.train"):  # what fails is in the table, with its reason
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def named(trial: Trial) -> str:
        return trial.config[_ASSIGNMENT].name

    tuner = tune.Tuner(
        tune.with_resources(_recording(trainable), {"CPU": DRIVER_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=StudySearch(ledger),
            scheduler=StudyScheduler(ledger),
            num_samples=left,
            max_concurrent_trials=concurrent,
            trial_name_creator=named,
            trial_dirname_creator=named,
            reuse_actors=reuse,
        ),
        run_config=tune.RunConfig(
            name=session.name,
            storage_path=str(session.parent),
            failure_config=tune.FailureConfig(max_failures=ledger.config.max_failures),
            callbacks=[Watch(ledger, tick)],
            verbose=0,
        ),
    )
    tuner.fit()


def _recording(trainable: Trainable) -> Callable[[dict[str, Any]], None]:
    """A function for Tune that reports what a trial raises as its result.

    A lost process is raised again, so that Tune tries the trial once more; an outage ends the
    sweep with its trial still running in the study, so that ``--resume`` takes it up.
    """

    def run_one(config: dict[str, Any]) -> None:  # Tune wants a plain function
        try:
            trainable(config[_ASSIGNMENT])
        except ProcessLost as error:
            tune.report({"lost": str(error)})
            raise
        except Exception as error:  # would be raised again: recorded, and not tried again
            if _is_outage(error):  # whatever the trial was at
                tune.report({_OUTAGE: str(error).partition("\n")[0] or type(error).__name__})
                time.sleep(_OUTAGE_S)
                return
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
            tune.report({"final": True, "failed": said})

    return run_one


def _is_outage(error: Exception) -> bool:
    """Whether a disk, bucket or server is away that every trial needs: none is to blame."""
    return isinstance(error, StoreError) or tracking.is_store_error(error)
