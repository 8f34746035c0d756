"""What the MLflow runs of all evaluations of policies share: how they are opened and read back."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import polars as pl
import yaml

from dynaflip.errors import UserError
from dynaflip.eval.perturbations import factors_to_record
from dynaflip.platform import tracking
from dynaflip.platform.evaluation.config import EvaluationConfig
from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest, info_of
from dynaflip.platform.paths import new_run_name
from dynaflip.platform.tracking.search import RunRecord

JOBS_TAG = "cells_digest"
TEST_TAG = "test_look"
FACTORS_TAG = "factors"


def open_counted_run(
    config: EvaluationConfig,
    entry: EncoderUnderTest,
    *,
    kind: str,
    split: str,
    digest: str,
    factors: Sequence[str],
    tags: dict[str, str],
) -> tuple[tracking.Run, int]:
    """Open the run, with its number among the evaluations on ``test`` (0 on dev).

    Args:
        config: of the evaluation.
        entry: the encoder under test.
        kind: the run's tag ``kind``; each counts its own.
        split: of the perturbations.
        digest: equal for evaluations that show the same to the same policies.
        factors: all that there are now, whether they are shown or not.
        tags: of this kind alone.
    """
    encoders = entry.encoders
    all_tags = {
        "kind": kind,
        "encoder": config.encoder,
        "encoder_run_id": info_of(encoders[0]).get("mlflow_run_id", ""),
        "encoder_digest": ",".join(encoder.digest for encoder in encoders),
        "perturbation_split": split,
        JOBS_TAG: digest,
        FACTORS_TAG: factors_to_record(factors),
        **tags,
    }
    number = count_test_evaluations(digest, kind) if split == "test" else 0
    if number:
        all_tags[TEST_TAG] = str(number)
    return tracking.open_run(config.experiment, new_run_name(kind), all_tags), number


def count_test_evaluations(jobs_digest: str, kind: str) -> int:
    """How many different evaluations on ``test`` this store has, this one included.

    Args:
        jobs_digest: of this evaluation. The same jobs again, after a kill or to see the table
            once more, are the same evaluation.
        kind: tag of the suite's runs: each suite counts its own.
    """
    runs = tracking.runs_with_tags({"kind": kind, "perturbation_split": "test"})
    return len({run.tags.get(JOBS_TAG, run.run_id) for run in runs} | {jobs_digest})


def read_finished(
    run: str, *, kind: str, file: str, what: str, asker: str
) -> tuple[RunRecord, dict[str, Any], pl.DataFrame]:
    """A finished evaluation's run, its settings, and its table of results.

    Args:
        run: name or id of its MLflow run.
        kind: the tag of such runs.
        file: of the table.
        what: such runs are, in words.
        asker: first word of a refusal.

    Raises:
        UserError: there is no such run, or it is none.
    """
    entity = tracking.find_run(run)
    if entity is None:
        newest = ", ".join(tracking.newest_run_names(kind)) or "none"
        raise UserError(f"{asker}: there is no run {run}; newest {kind} runs: {newest}")
    table = tracking.read_artifact(entity.run_id, file)
    settings = tracking.read_artifact(entity.run_id, "config.yaml")
    if table is None or settings is None:
        raise UserError(f"{asker}: run {run} holds no {file}; it is no finished {what}")
    return entity, yaml.safe_load(settings), pl.read_parquet(io.BytesIO(table))
