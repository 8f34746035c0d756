"""The MLflow run of an evaluation by rollouts: how it is opened, counted and read back."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import polars as pl
import yaml

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, environment, recorded_environment
from dynaflip.eval.perturbations import factors_to_record, recorded_factors
from dynaflip.platform import tracking
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest, info_of
from dynaflip.platform.evaluation.plan import ROLLOUT_VERSION, EvaluationJob
from dynaflip.platform.evaluation.protocols import label_of
from dynaflip.platform.paths import new_run_name
from dynaflip.renames import current_settings

EPISODES_FILE = "episodes.parquet"
KIND = "policies"  # the run's tag `kind`
JOBS_TAG = "cells_digest"
VERSION_TAG = "rollout_version"
SIMULATOR_TAG = "simulator"
TEST_TAG = "test_look"
FACTORS_TAG = "factors"
PROTOCOL_TAG = "protocol"


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
    jobs_digest = hashlib.sha256(digests.encode()).hexdigest()[:16]
    encoders, spec = tested[0].encoders, environment(config.environment)
    tags = {
        "kind": KIND,
        "encoder": config.encoder,
        "encoder_run_id": info_of(encoders[0]).get("mlflow_run_id", ""),
        "encoder_digest": ",".join(encoder.digest for encoder in encoders),
        "perturbation_split": config.split,
        JOBS_TAG: jobs_digest,
        VERSION_TAG: ROLLOUT_VERSION,
        SIMULATOR_TAG: spec.version(),
        FACTORS_TAG: factors_to_record(spec.factors),
    }
    if protocol := label_of(config):
        tags[PROTOCOL_TAG] = protocol
    number = count_test_evaluations(jobs_digest) if config.split == "test" else 0
    if number:
        tags[TEST_TAG] = str(number)
    return tracking.open_run(config.experiment, new_run_name(KIND), tags), number


def count_test_evaluations(jobs_digest: str, kind: str = KIND) -> int:
    """How many different evaluations on ``test`` this store has, this one included.

    Args:
        jobs_digest: of this evaluation. The same jobs again, after a kill or to see the table
            once more, are the same evaluation.
        kind: tag of the suite's runs: each suite counts its own.
    """
    runs = tracking.runs_with_tags({"kind": kind, "perturbation_split": "test"})
    return len({run.tags.get(JOBS_TAG, run.run_id) for run in runs} | {jobs_digest})


def read_evaluation(run: str, named: str | None = None) -> FinishedEvaluation:
    """Read a finished evaluation.

    Args:
        run: name or id of its MLflow run.
        named: environment that the user gave as ``--environment``, where it ran in one of theirs.

    Raises:
        UserError: there is no such run, or it is no finished evaluation by rollouts.
    """
    entity = tracking.find_run(run)
    if entity is None:
        newest = ", ".join(tracking.newest_run_names(KIND)) or "none"
        raise UserError(f"compare: there is no run {run}; newest policy runs: {newest}")
    run_id = entity.run_id
    episodes = tracking.read_artifact(run_id, EPISODES_FILE)
    settings = tracking.read_artifact(run_id, "config.yaml")
    if episodes is None or settings is None:
        raise UserError(
            f"compare: run {run} holds no {EPISODES_FILE}; it is not a finished evaluation of "
            f"policies (jobs/evaluate.py --suite rollouts)"
        )
    tags = entity.tags
    return FinishedEvaluation(
        run_id,
        entity.run_name,
        current_settings(RolloutConfig, yaml.safe_load(settings)),
        pl.read_parquet(io.BytesIO(episodes)),
        tags.get(TEST_TAG, ""),
        tags.get(VERSION_TAG, "1"),  # of runs from before the tag
        tags.get(SIMULATOR_TAG, ""),
        recorded_factors(tags.get(FACTORS_TAG)),
        named,
    )
