"""Finished evaluations by the suite ``offline`` as evidence: read back, and paired by recording."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import yaml

from dynaflip.errors import UserError
from dynaflip.eval.intervals.cluster_bootstrap import Interval, paired_difference
from dynaflip.eval.perturbations import recorded_factors
from dynaflip.platform import tracking
from dynaflip.platform.evaluation.coverage import MIN_POLICIES, missing_coverage
from dynaflip.platform.evaluation.encoders_under_test import TRAINED, weights_digest
from dynaflip.platform.evaluation.report.offline_report import Pair, groups_of
from dynaflip.platform.evaluation.rollout_run import FACTORS_TAG, TEST_TAG
from dynaflip.platform.promotion_config import PromotionConfig
from dynaflip.platform.tracking import registry

RUN_TAG = "offline_test_run_id"  # written by an evaluation on test on the version that it scored
ERRORS_FILE = "action_errors.parquet"
# What a moment's error depends on beside the encoder.
_PROTOCOL = (
    "action", "cameras", "proprioception", "frames_per_episode", "image_px", "seed", "split",
    "head", "head_settings", "behaviour_cloning", "diffusion", "seeds",
)  # fmt: skip
_PLACE = ("recording", "episode", "factor", "level")


@dataclass(frozen=True)
class OfflineEvidence:
    """A finished evaluation: its settings, and a row per policy, condition and episode."""

    run_id: str
    run_name: str
    settings: dict[str, Any]
    table: pl.DataFrame
    test_evaluation: str  # its number among the evaluations on test; empty on dev
    factors: tuple[str, ...]  # all that there were when it was made

    def of(self, encoder: str, digest: str | None = None) -> pl.DataFrame:
        """Mean over policies of an encoder: a row per condition and episode."""
        rows = self.table.filter(pl.col("encoder") == encoder)
        if digest is not None:
            rows = rows.filter(pl.col("encoder_digest") == digest)
        means = [pl.col("action_error").mean(), pl.col("squared_of_mean").first()]
        return rows.group_by(*_PLACE, maintain_order=True).agg(means)

    def conditions(self) -> set[Pair]:
        """(factor, level) that were shown."""
        return set(self.table.select("factor", "level").unique().iter_rows())


def read_offline_run(run: str) -> OfflineEvidence:
    """Read a finished evaluation by name or id of its MLflow run.

    Raises:
        UserError: there is none, or it is no finished evaluation by the suite offline.
    """
    entity = tracking.find_run(run)
    if entity is None:
        raise UserError(f"promotion: there is no run {run}")
    errors = tracking.read_artifact(entity.run_id, ERRORS_FILE)
    settings = tracking.read_artifact(entity.run_id, "config.yaml")
    if errors is None or settings is None:
        raise UserError(
            f"promotion: run {run} holds no {ERRORS_FILE}; it is no finished evaluation of the "
            "suite offline"
        )
    return OfflineEvidence(
        entity.run_id,
        entity.run_name,
        yaml.safe_load(settings),
        pl.read_parquet(io.BytesIO(errors)),
        entity.tags.get(TEST_TAG, ""),
        recorded_factors(entity.tags.get(FACTORS_TAG)),
    )


def offline_evidence_of(name: str, version: str) -> tuple[OfflineEvidence, str]:
    """The finished offline evaluation on test of a version, and the digest of its weights.

    Raises:
        UserError: it has none.
    """
    tags = registry.version_tags(name, version)
    if RUN_TAG not in tags:
        raise UserError(
            f"--version {version}: {name} version {version} has not been evaluated offline on "
            f"test; run python jobs/evaluate.py --suite offline --split test --source DATASET "
            f"--encoder models:/{name}/{version}"
        )
    evidence = read_offline_run(tags[RUN_TAG])
    if evidence.settings["split"] != "test":
        raise UserError(
            f"--version {version}: {evidence.run_name} is an evaluation on "
            f"{evidence.settings['split']}; a champion takes evidence on test"
        )
    digest = weights_digest(f"models:/{name}/{version}")
    if evidence.of(TRAINED, digest).is_empty():
        raise UserError(
            f"--version {version}: {evidence.run_name} has evaluated other weights than those of "
            f"{name} version {version}; evaluate models:/{name}/{version} on test"
        )
    return evidence, digest


def check_offline_coverage(
    version: str, mine: OfflineEvidence, digest: str, needed: PromotionConfig
) -> None:
    """Refuse evidence on few factors, episodes or policies.

    Args:
        version: for the message.
        mine: its evaluation.
        digest: of its weights.
        needed: what the evidence must cover.

    Raises:
        UserError: names what is missing.
    """
    own = mine.table.filter(pl.col("encoder_digest") == digest)
    missing = missing_coverage(
        adaptation="frozen",
        episodes=needed.episodes,
        tasks=(),
        needed_tasks=(),
        conditions=mine.conditions(),
        factors=needed.factors or mine.factors,
        level=needed.level,
        min_episodes=needed.episodes,
    )
    if (found := own.select("recording", "episode").n_unique()) < needed.episodes:
        missing.append(f"{needed.episodes} held-out episodes (it has {found})")
    if own["seed"].n_unique() < MIN_POLICIES:
        missing.append(f"{MIN_POLICIES} policies (--seeds)")
    if missing:
        raise UserError(
            f"--version {version}: {mine.run_name} lacks {', '.join(missing)}, which --promotion.… "
            "asks for"
        )


def paired_gains(
    mine: tuple[OfflineEvidence, str, str | None], theirs: tuple[OfflineEvidence, str, str | None]
) -> dict[str, Interval]:
    """How much lower my action error is than theirs, in sigma, by group of conditions.

    Args:
        mine: evaluation, encoder's name in it, and digest of its weights.
        theirs: the same.

    Raises:
        UserError: the two are not about the same moments, perturbations and policies.
    """
    first, second = mine[0].of(*mine[1:]), theirs[0].of(*theirs[1:])
    for name in _PROTOCOL:
        one, other = (evidence.settings.get(name) for evidence in (mine[0], theirs[0]))
        if one != other:
            raise UserError(
                f"promotion: {mine[0].run_name} has {name} {one}, {theirs[0].run_name} {other}: "
                "their episodes are no pairs; evaluate both with the same settings"
            )
    both = first.join(second, on=_PLACE, how="inner", suffix="_theirs", maintain_order="left")
    scale, other_scale = (
        both[name].to_numpy() for name in ("squared_of_mean", "squared_of_mean_theirs")
    )
    whole = both["recording"].n_unique() == first["recording"].n_unique()
    whole &= first["recording"].n_unique() == second["recording"].n_unique()
    # Equal only where the same actions are compared, in sigmas of the same training episodes.
    if both.is_empty() or not whole or not np.allclose(scale, other_scale, rtol=1e-6):
        raise UserError(
            f"promotion: {mine[0].run_name} and {theirs[0].run_name} are not about the same "
            "recordings; evaluate both on the same data set with the same settings"
        )
    gains = {}
    for name, conditions in groups_of(both).items():
        chosen = pl.DataFrame(conditions, schema=["factor", "level"], orient="row")
        rows = both.join(chosen.cast({"level": pl.Int64}), on=["factor", "level"])
        compared = ("action_error_theirs", "action_error")
        by_episode = rows.group_by("recording", "episode", maintain_order=True)
        episodes = by_episode.agg(pl.col(compared).mean())
        before, after = (episodes[column].to_numpy() for column in compared)
        gains[name] = paired_difference(before, after, np.arange(len(episodes)))
    return gains
