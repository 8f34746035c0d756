"""One trial: a pretraining on Ray Train, started by a Tune actor that waits for it.

Import this only after :func:`dynaflip.platform.cluster.start_ray`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray import tune
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RpcError,
    WorkerCrashedError,
)
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.tune.integration.ray_train import TuneReportCallback

from dynaflip.encoders.checkpoint import load_image_encoder
from dynaflip.files import write_file
from dynaflip.platform import tracking
from dynaflip.platform.sweep.config import METRIC, POLICY
from dynaflip.platform.sweep.ledger import Assignment
from dynaflip.platform.sweep.policy_score import PolicyScore
from dynaflip.platform.sweep.ray_tune import ProcessLost
from dynaflip.platform.sweep.resources import Fit, placed
from dynaflip.platform.sweep.space import with_values
from dynaflip.platform.sweep.trial_score import TrialScore
from dynaflip.platform.training.backends import ray_train
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.curve_file import CurveFile
from dynaflip.platform.training.data.caption_cache import caption_table
from dynaflip.platform.training.diagnostics import Collapsed
from dynaflip.platform.training.heartbeat import note
from dynaflip.platform.training.job import TrainJob
from dynaflip.platform.training.run import checkpoint_uri, save_encoder
from dynaflip.platform.training.step import NonFiniteLoss

RESULT = "result.json"
# Errors of processes and nodes that were killed (also for memory), and did not fail by themselves.
_LOST = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    LocalRayletDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RpcError,
)


@dataclass(frozen=True)
class TrialTask:
    """Trainable of a sweep: Tune calls it with a trial's assignment."""

    work: TrainJob  # of the settings that are not searched
    score: TrialScore
    policy_score: PolicyScore | None  # where it is an objective
    score_steps: tuple[int, ...]
    folder: Path  # of all trials
    fit: Fit

    def __call__(self, assignment: Assignment) -> None:
        """Train, score and report; continues a trial that a killed session started."""
        folder = self.folder / assignment.name
        folder.mkdir(parents=True, exist_ok=True)
        done = folder / RESULT
        if not done.is_file():
            note(folder, "starting workers")
            result = self._train(assignment, folder)
            write_file(done, json.dumps(result, indent=1))
            note(folder, "recording the result")
        tune.report(json.loads(done.read_text()))

    def _train(self, assignment: Assignment, folder: Path) -> dict[str, Any]:
        """The trial's last report. A failure that would repeat is a result, not an exception."""
        step = self.work.length.total_steps
        try:
            settings = with_values(self.work.config, assignment.values)
        except ValueError as error:
            return {"final": True, "failed": str(error)}
        work = self._work_of(settings, folder, assignment.run)
        assignment.run.log_settings(settings)
        index = work.index
        assignment.run.log_dataset(Path(index.folder).name, index.digest, index.folder)
        try:
            ray_train.fit(work, assignment.run, folder, [_to_tune()], heartbeat=folder)
        except (NonFiniteLoss, Collapsed) as error:
            return {"final": True, "failed": f"diverged: {error}"}
        except (TrainingFailedError, RayActorError, OutOfMemoryError) as error:
            away = ray_train.find_error(error, (tracking.store_error(),))
            if away is not None:
                raise away from error
            lost = ray_train.find_error(error, _LOST)
            if lost is not None:
                raise ProcessLost(_last_line(lost)) from error
            return {"final": True, "failed": _reason(error)}
        note(folder, "saving the encoder")
        curves = CurveFile(folder).curves()
        metrics = {name: points[-1][1] for name, points in curves.items()}
        recorded = dataclasses.replace(work, config=settings)
        encoder = save_encoder(recorded, assignment.run, folder, metrics)
        scores = {name: curves.get(name, [(0, 0.0)])[-1] for name in self.score.names}
        if any(at != step for at, _ in scores.values()):
            # Killed between the last checkpoint and its report: score what was saved.
            note(folder, "scoring")
            own = load_image_encoder(encoder, backbone=settings.model.image.name)
            found = self.score.metrics(own)
            assignment.run.log_metrics(found, step)
        else:
            found = {name: value for name, (_, value) in scores.items()}
        if self.policy_score is not None:
            note(folder, "rolling out the policy")
            try:
                failures = {METRIC[POLICY]: self.policy_score(encoder)}
            except _LOST as error:
                raise ProcessLost(_last_line(error)) from error
            assignment.run.log_metrics(failures, step)
            found |= failures
        # Only the encoder is needed from here on.
        work.checkpoint_manager().remove_all()
        return {"step": step, "final": True, **found}

    def _work_of(self, settings: PretrainConfig, folder: Path, run: tracking.Run) -> TrainJob:
        text = self.work.text
        if settings.model.language != self.work.config.model.language:
            index = self.work.index
            text = caption_table(
                lambda: index.captions, settings.model.language, digest=index.captions_digest
            )
        return dataclasses.replace(
            self.work,
            config=placed(settings, self.fit),
            text=text,
            checkpoints=_checkpoints(settings, folder, run),
            score=self.score,
            score_steps=frozenset(self.score_steps),
        )


def _checkpoints(settings: PretrainConfig, folder: Path, run: tracking.Run) -> str:
    """Where a trial's checkpoints are; outside the sweep's folder its run's id is in the name."""
    if settings.train.checkpoint_storage is None:
        return checkpoint_uri(settings, folder)
    return checkpoint_uri(settings, folder.with_name(f"{folder.name}-{run.run_id[:8]}"))


def _to_tune() -> ray.train.UserCallback:
    # Typed as one of Ray's older callbacks, which it is not.
    callback: Any = TuneReportCallback()
    return callback


def _reason(error: Exception) -> str:
    """The error of the worker or of the controller."""
    failures = getattr(error, "worker_failures", {}) or {}
    inner = next(iter(failures.values()), None) or error
    return f"training failed: {_last_line(inner)}"


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
