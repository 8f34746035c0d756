"""Finished evaluations by the suite ``offline`` as evidence: read back, and paired by recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from dynaflip.errors import UserError
from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
from dynaflip.eval.intervals.cluster_bootstrap import Interval, paired_difference
from dynaflip.eval.perturbations import recorded_factors
from dynaflip.eval.policies.readouts.config import POOLED
from dynaflip.platform.evaluation.coverage import MIN_POLICIES, missing_coverage
from dynaflip.platform.evaluation.encoder_config import precision_of
from dynaflip.platform.evaluation.encoders_under_test import TRAINED, weights_digest
from dynaflip.platform.evaluation.evaluation_run import FACTORS_TAG, TEST_TAG, read_finished
from dynaflip.platform.evaluation.offline_config import KIND
from dynaflip.platform.evaluation.report.offline_report import Pair, groups_of
from dynaflip.platform.promotion_config import PromotionConfig
from dynaflip.platform.tracking import registry

RUN_TAG = "offline_test_run_id"  # written by an evaluation on test on the version that it scored
VERSION_TAG = "offline_version"
_FIRST_VERSION = "1, images 1"  # of runs from before the tag
ERRORS_FILE = "action_errors.parquet"
# What a moment's error depends on beside the encoder, the recordings and the head's own settings.
_PROTOCOL = (
    "split", "levels", "action", "cameras", "proprioception", "frames_per_episode", "image_px",
    "seed", "seeds", "head", "head_settings", "readout", "readout_settings",
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
    version: str = _FIRST_VERSION  # of the code's recipe for features and images

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

    def single_factors(self) -> set[str]:
        """Factors that were shown one at a time."""
        return {factor for factor, _ in self.conditions()} - {UNPERTURBED, ALL_FACTORS}


def read_offline_run(run: str, asker: str = "promotion") -> OfflineEvidence:
    """Read a finished evaluation by name or id of its MLflow run.

    Args:
        run: name or id.
        asker: first word of a refusal.

    Raises:
        UserError: there is none, or it is no finished evaluation by the suite offline.
    """
    entity, settings, errors = read_finished(
        run, kind=KIND, file=ERRORS_FILE, what="evaluation of the suite offline", asker=asker
    )
    return OfflineEvidence(
        entity.run_id,
        entity.run_name,
        settings,
        errors,
        entity.tags.get(TEST_TAG, ""),
        recorded_factors(entity.tags.get(FACTORS_TAG)),
        entity.tags.get(VERSION_TAG, _FIRST_VERSION),
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


Side = tuple[OfflineEvidence, str, str | None]  # evaluation, encoder's name in it, its digest


def paired_gains(mine: Side, theirs: Side) -> dict[str, Interval]:
    """Gain of my action error over theirs, in sigma, by group of conditions.

    Args:
        mine: evaluation, encoder's name in it, and digest of its weights.
        theirs: the same.

    Raises:
        UserError: the two are not about the same moments, perturbations and policies.
    """
    return {
        name: paired_difference(their_errors, my_errors, np.arange(len(my_errors)))
        for name, (my_errors, their_errors) in paired_errors(mine, theirs, "promotion").items()
    }


def paired_errors(mine: Side, theirs: Side, asker: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """My and their action error of each held-out episode, (E,) and (E,) sigma, by group.

    An episode's error is its mean over policies and over the conditions that both have. All
    factors at once are a condition of both where they are the same factors.

    Args:
        mine: evaluation, encoder's name in it, and digest of its weights (None takes any).
        theirs: the same.
        asker: first word of a refusal.

    Raises:
        UserError: the two are not about the same moments, perturbations and policies.
    """
    both = paired_rows(mine, theirs, asker)
    return {name: episode_errors(both, chosen) for name, chosen in groups_of(both).items()}


def paired_rows(mine: Side, theirs: Side, asker: str) -> pl.DataFrame:
    """A row per condition and episode that both have, with ``action_error`` and theirs.

    Args:
        mine, theirs, asker: of :func:`paired_errors`.

    Raises:
        UserError: the two are not about the same moments, perturbations and policies.
    """
    _check_same_protocol(mine[0], theirs[0], asker)
    first, second = mine[0].of(*mine[1:]), theirs[0].of(*theirs[1:])
    for (evidence, encoder, _), rows in ((mine, first), (theirs, second)):
        if rows.is_empty():
            raise UserError(f"{asker}: {evidence.run_name} has no encoder {encoder}")
    both = first.join(second, on=_PLACE, how="inner", suffix="_theirs", maintain_order="left")
    _check_same_recordings((mine[0], first), (theirs[0], second), both, asker)
    if mine[0].single_factors() != theirs[0].single_factors():
        both = both.filter(pl.col("factor") != ALL_FACTORS)
    return both


def episode_errors(both: pl.DataFrame, conditions: list[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """My and their action error of each episode, (E,) and (E,) sigma: the mean over conditions.

    Args:
        both: of :func:`paired_rows`.
        conditions: some of its (factor, level).
    """
    chosen = pl.DataFrame(conditions, schema=["factor", "level"], orient="row")
    rows = both.join(chosen.cast({"level": pl.Int64}), on=["factor", "level"])
    compared = ("action_error", "action_error_theirs")
    by_episode = rows.group_by("recording", "episode", maintain_order=True)
    episodes = by_episode.agg(pl.col(compared).mean())
    my_errors, their_errors = (episodes[column].to_numpy() for column in compared)
    return my_errors, their_errors


def _check_same_protocol(mine: OfflineEvidence, theirs: OfflineEvidence, asker: str) -> None:
    """Refuse to pair episodes of different settings or versions."""
    values: list[tuple[str, Any, Any]] = [("version", mine.version, theirs.version)]
    # Settings of a head or read-out that is not used change nothing.
    used = [str(mine.settings["head"]), str(mine.settings.get("readout", POOLED))]
    before = {"readout": POOLED, "readout_settings": {}}  # of runs from before there were others
    precisions = (precision_of(mine.settings), precision_of(theirs.settings))
    values.append(("encoder_actor.precision", *precisions))
    for name in (*_PROTOCOL, *used):
        one, other = (e.settings.get(name, before.get(name)) for e in (mine, theirs))
        if isinstance(one, dict) and isinstance(other, dict):
            keys = dict.fromkeys((*one, *other))
            values += [(f"{name}.{key}", one.get(key), other.get(key)) for key in keys]
        else:
            values.append((name, one, other))
    for name, one, other in values:
        if one != other:
            raise UserError(
                f"{asker}: {mine.run_name} has {name} {one}, {theirs.run_name} {other}: "
                "their episodes are no pairs; evaluate both with the same settings"
            )


def _check_same_recordings(
    mine: tuple[OfflineEvidence, pl.DataFrame],
    theirs: tuple[OfflineEvidence, pl.DataFrame],
    both: pl.DataFrame,
    asker: str,
) -> None:
    """Refuse to pair episodes of which only some are shared, or errors in different sigmas.

    Args:
        mine, theirs: evaluation, and rows of :meth:`OfflineEvidence.of`.
        both: the rows that they share.
        asker: first word of a refusal.
    """
    runs = f"{mine[0].run_name} and {theirs[0].run_name}"
    mine_held, their_held, shared = (
        set(rows.select("recording", "episode").iter_rows()) for rows in (mine[1], theirs[1], both)
    )
    if not mine_held == their_held == shared:
        raise UserError(
            f"{asker}: {runs} are not about the same recordings: {len(mine_held)} held-out "
            f"episodes and {len(their_held)}, {len(mine_held & their_held)} of them in both; "
            "evaluate both on the same data set with the same heldout_share and heldout_episodes"
        )
    scales = [both[name].to_numpy() for name in ("squared_of_mean", "squared_of_mean_theirs")]
    # Equal only where the same actions are compared, in sigmas of the same training episodes.
    if not np.allclose(scales[0], scales[1], rtol=1e-6):
        clean = (both["factor"] == UNPERTURBED).to_numpy()
        one, other = (float(scale[clean].sum()) for scale in scales)
        raise UserError(
            f"{asker}: {runs} have other actions or learnt from other training episodes: the "
            f"squared error of training's mean action sums up to {one:.6g} and {other:.6g}; "
            "evaluate both on the same data set with the same heldout_share and train_episodes"
        )
