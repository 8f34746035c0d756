"""The MLflow run of an evaluation by rollouts: how it is opened, counted and read back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, environment, recorded_environment
from dynaflip.eval.perturbations import recorded_factors
from dynaflip.platform import tracking
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest
from dynaflip.platform.evaluation.evaluation_run import (
    FACTORS_TAG,
    TEST_TAG,
    open_counted_run,
    read_finished,
)
from dynaflip.platform.evaluation.plan import ROLLOUT_VERSION, EvaluationJob
from dynaflip.platform.evaluation.protocols import label_of
from dynaflip.renames import current_settings

EPISODES_FILE = "episodes.parquet"
KIND = "policies"  # the run's tag `kind`
VERSION_TAG = "rollout_version"
SIMULATOR_TAG = "simulator"
PROTOCOL_TAG = "protocol"
RECORDINGS_TAG = "recordings"  # of a user's own that policies learnt from: task → digest


@dataclass(frozen=True)
class FinishedEvaluation:
    """A finished evaluation by rollouts, as its MLflow run holds it."""

    run_id: str
    run_name: str
    settings: dict[str, Any]
    episodes: pl.DataFrame
    test_evaluation: str  # its number among the evaluations on test; empty on dev
    rollout_version: str  # of the code's recipe for episodes
    simulator: str  # its packages with versions; empty where it is not recorded
    factors: tuple[str, ...]  # all that the environment had when it was made
    named: str | None = None  # environment that the user gave as --environment, if any
    recordings: dict[str, str] = field(default_factory=dict)  # the user's own: task → digest

    @property
    def environment(self) -> EnvironmentSpec:
        """The environment that it ran in.

        Raises:
            UserError: it is of no installed package, and the user has not named it: a store's word
                runs no code. Or they have named another.
        """
        name = self.settings.get("environment", DEFAULT_ENVIRONMENT)
        return recorded_environment(name, self.named, f"run {self.run_name}")


def open_rollout_run(
    config: RolloutConfig, tested: list[EncoderUnderTest], jobs: list[EvaluationJob]
) -> tuple[tracking.Run, int]:
    """Open the run, with its number among the evaluations on ``test`` (0 on dev)."""
    digests = json.dumps(sorted(job.digest() for job in jobs))
    spec = environment(config.environment)
    tags = {VERSION_TAG: str(ROLLOUT_VERSION), SIMULATOR_TAG: spec.version()}
    if protocol := label_of(config):
        tags[PROTOCOL_TAG] = protocol
    if config.source:
        shown = {s.task: s.digest[:16] for job in jobs for s in job.policy.demonstrations}
        tags[RECORDINGS_TAG] = json.dumps(shown, sort_keys=True)
    return open_counted_run(
        config,
        tested[0],
        kind=KIND,
        split=config.split,
        digest=hashlib.sha256(digests.encode()).hexdigest()[:16],
        factors=spec.factors,
        tags=tags,
    )


def read_evaluation(run: str, named: str | None = None) -> FinishedEvaluation:
    """Read a finished evaluation.

    Args:
        run: name or id of its MLflow run.
        named: environment that the user gave as ``--environment``, where it ran in one of theirs.

    Raises:
        UserError: there is no such run, or it is no finished evaluation by rollouts.
    """
    entity, settings, episodes = read_finished(
        run,
        kind=KIND,
        file=EPISODES_FILE,
        what="evaluation of policies (jobs/evaluate.py --suite rollouts)",
        asker="compare",
    )
    tags = entity.tags
    return FinishedEvaluation(
        entity.run_id,
        entity.run_name,
        current_settings(RolloutConfig, settings),
        episodes,
        tags.get(TEST_TAG, ""),
        tags.get(VERSION_TAG, "1"),  # of runs from before the tag
        tags.get(SIMULATOR_TAG, ""),
        recorded_factors(tags.get(FACTORS_TAG)),
        named,
        json.loads(tags.get(RECORDINGS_TAG, "{}")),
    )
