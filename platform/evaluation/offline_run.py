"""Run the suite ``offline``: policies on frozen features or tokens, and their action errors.

Legend of shapes: N frames, M entries of an action that move in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from dynaflip.eval.metrics.action_scale import ActionScale
from dynaflip.eval.policies.frozen_fit import scales_of
from dynaflip.eval.policies.recipe import PolicyRecipe
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.evaluation.encoder_service import EncoderService
from dynaflip.platform.evaluation.encoders_under_test import NO_IMAGE, EncoderUnderTest
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.offline_data import OfflineData
from dynaflip.platform.evaluation.offline_features import compute_features, features_of_frames
from dynaflip.platform.evaluation.offline_plan import OfflinePlan, words_of
from dynaflip.platform.evaluation.offline_tokens import (
    Planned,
    act_on_tokens,
    fit_on_tokens,
    training_of,
)
from dynaflip.platform.evaluation.offline_worker import FitJob, FitKey, inputs_of, scale_of
from dynaflip.platform.job_queues import JobQueue


@dataclass(frozen=True)
class OfflineResult:
    """What an evaluation has found."""

    table: pl.DataFrame  # a row per policy, condition and held-out episode
    scale: ActionScale
    recipe: PolicyRecipe
    words: dict[str, np.ndarray] | None  # caption → its features, where there are several tasks
    policies: dict[FitKey, dict[str, Any]]  # their tensors
    lost: list[str]  # episodes that cannot be decoded, and why


def fit_and_test(
    config: OfflineConfig,
    data: OfflineData,
    plan: OfflinePlan,
    tested: Sequence[EncoderUnderTest],
    pool: ActorPool,
    service: EncoderService | None = None,
) -> OfflineResult:
    """Encode, fit every policy, and compare its actions with those recorded.

    Args:
        config: of the evaluation.
        data: episodes that cannot be decoded are taken out of it.
        plan: what is shown.
        tested: the encoders.
        pool: of :class:`~dynaflip.platform.evaluation.offline_worker.OfflineWorker`.
        service: encodes the workers' images, if it has actors; None: workers do.

    Raises:
        UserError: the training actions are all constant, or too few episodes can be decoded.
    """
    scale_of(data.train, config.source)  # refused before anything is encoded
    recipe = offline_recipe(config, data)
    words, scales = words_of(data), scales_of(recipe.readout, recipe.readout_settings)
    planned: Planned = {}
    policies: dict[FitKey, dict[str, Any]] = {}
    on_features = list(tested)
    if scales is None:
        lost = compute_features(config, data, plan, tested, pool, service)
    else:
        on_tokens = [entry for entry in tested if entry.name != NO_IMAGE]
        on_features = [entry for entry in tested if entry.name == NO_IMAGE]
        training = training_of(config, data, words, recipe, scales)
        fitted, lost = fit_on_tokens(config, data, training, on_tokens, pool, service)
        planned, more = act_on_tokens(config, data, plan, training, fitted, pool, service)
        lost, policies = [*lost, *more], {one.key: one.tensors for one in fitted}
    scale = scale_of(data.train, config.source)
    jobs = [
        FitJob(entry.name, entry.encoder(seed).digest, seed, recipe)
        for entry in on_features
        for seed in range(config.seeds)
    ]
    for key, actions, tensors in _fit_on_features(config, data, plan, jobs, scale, words, pool):
        planned[key], policies[key] = actions, tensors
    rows: list[dict[str, Any]] = []
    for entry in tested:
        for seed in range(config.seeds):
            digest = entry.encoder(seed).digest
            found = planned[entry.name, seed]
            rows += _rows((entry.name, digest, seed), data, plan, scale, found)
    return OfflineResult(pl.DataFrame(rows), scale, recipe, words, policies, lost)


def offline_recipe(config: OfflineConfig, data: OfflineData) -> PolicyRecipe:
    """The policies' recipe; they are given proprioception where the data has it."""
    return PolicyRecipe(
        config.head,
        config.settings_of_head(),
        config.readout,
        config.settings_of_readout(),
        data.train[0].proprioception.shape[1] > 0,
    )


def _fit_on_features(
    config: OfflineConfig,
    data: OfflineData,
    plan: OfflinePlan,
    jobs: list[FitJob],
    scale: ActionScale,
    words: dict[str, np.ndarray] | None,
    pool: ActorPool,
) -> list[tuple[FitKey, dict[str, np.ndarray], dict[str, Any]]]:
    """Policy, its actions by condition, (N, M) in [-1, 1], and its tensors."""
    from dataclasses import replace

    from tqdm import tqdm

    train, test = (inputs_of(side, scale, words) for side in (data.train, data.heldout))
    put: dict[str, Any] = {}

    def submit(actor: Any, job: FitJob) -> Any:
        import ray

        if job.digest not in put:
            put.clear()  # jobs of an encoder follow each other
            features, tests = features_of_frames(config, data, plan, job.digest)
            put[job.digest] = ray.put(replace(train, features=features)), ray.put(tests)
        return actor.fit.remote(job, *put[job.digest], test)

    found = []
    with tqdm(total=len(jobs), desc="fit", unit="policy", disable=not jobs) as bar:
        fits = pool.run(
            JobQueue(jobs).next,
            submit,
            number=len(jobs),
            describe=lambda job: f"policy {job.seed} on {job.under_test}",
        )
        for job, (actions, tensors) in fits if jobs else ():
            found.append(((job.under_test, job.seed), actions, tensors))
            bar.update()
    return found


def _rows(
    policy: tuple[str, str, int],
    data: OfflineData,
    plan: OfflinePlan,
    scale: ActionScale,
    planned: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
    """A row per condition and held-out episode of a policy.

    Args:
        policy: name of its entry, digest of its encoder, and seed.
        data, plan, scale: of the evaluation.
        planned: condition → its actions, (N, M) in [-1, 1].
    """
    rows = []
    for condition in plan.conditions:
        start = 0
        for episode in data.heldout:
            stop = start + len(episode.frames)
            errors = scale.errors(planned[condition.name][start:stop], episode.actions)
            of_mean = scale.errors_of_mean(episode.actions)
            rows.append(
                {
                    **dict(zip(("encoder", "encoder_digest", "seed"), policy, strict=True)),
                    "factor": condition.factor,
                    "level": condition.level,
                    "episode": episode.index,
                    "recording": episode.recording_id,
                    "moments": len(errors),
                    "action_error": float(errors.mean()),
                    "squared": float(np.square(errors).sum()),
                    "error_of_mean": float(of_mean.mean()),
                    "squared_of_mean": float(np.square(of_mean).sum()),
                }
            )
            start = stop
    return rows
