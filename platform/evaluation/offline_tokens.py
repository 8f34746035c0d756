"""Policies of the suite ``offline`` that read tokens: fitted by encoder, asked by episode.

Tokens are hundreds of times as large as features, so none are kept: an encoder's training tokens
lie on its worker's disk while its policies are fitted, and those of held-out frames are read as
they come. Kept below ``DYNAFLIP_HOME/evaluation/offline`` are the policies and their actions, so an
interrupted evaluation resumes.
Legend of shapes: N frames, M entries of an action that move in training.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.policies.config import settings_to_hash
from dynaflip.eval.policies.recipe import PolicyRecipe
from dynaflip.files import write_file
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.cluster import start_ray
from dynaflip.platform.evaluation.encoder_service import EncoderService, actors_for
from dynaflip.platform.evaluation.encoders_under_test import Encoder, EncoderUnderTest
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.offline_data import OfflineData, OfflineEpisode
from dynaflip.platform.evaluation.offline_plan import (
    OfflinePlan,
    code_of_images,
    code_of_policies,
    drop_lost,
    offline_version,
)
from dynaflip.platform.evaluation.offline_worker import (
    ActJob,
    FitKey,
    Fitted,
    TokenFitJob,
    TokenTraining,
)
from dynaflip.platform.evaluation.worker_encoders import CACHED_ENCODERS
from dynaflip.platform.job_queues import JobQueue
from dynaflip.platform.paths import home
from dynaflip.platform.provenance import versions_of

Planned = dict[FitKey, dict[str, np.ndarray]]  # policy → condition → (N, M)


def training_of(
    config: OfflineConfig,
    data: OfflineData,
    words: dict[str, np.ndarray] | None,
    recipe: PolicyRecipe,
    scales: int,
) -> TokenTraining:
    """The frames that policies learn from."""
    return TokenTraining(data.source, tuple(data.train), config.image_px, words, recipe, scales)


def token_fits(
    config: OfflineConfig,
    data: OfflineData,
    training: TokenTraining,
    tested: Sequence[EncoderUnderTest],
) -> tuple[list[TokenFitJob], dict[FitKey, Path]]:
    """Fits that are not kept, those of an encoder together; and the file of every policy."""
    digests = [episode.digest() for episode in training.episodes]
    paths = {
        (entry.name, seed): _fit_path(config, data, training, entry.encoder(seed), seed, digests)
        for entry in tested
        for seed in range(config.seeds)
    }
    jobs, planned = [], set[Path]()  # entries of equal weights share their policies
    for entry in tested:
        seeds_of: dict[Encoder, list[int]] = {}
        for seed in range(config.seeds):
            path = paths[entry.name, seed]
            if path not in planned and not path.is_file():
                planned.add(path)
                seeds_of.setdefault(entry.encoder(seed), []).append(seed)
        jobs += [TokenFitJob(entry.name, one, tuple(s)) for one, s in seeds_of.items()]
    return jobs, paths


def act_jobs(
    config: OfflineConfig,
    data: OfflineData,
    plan: OfflinePlan,
    encoders: Mapping[FitKey, Encoder],
    fits: Mapping[FitKey, Path],
) -> list[ActJob]:
    """Held-out episodes in which some policies' actions are not kept.

    Args:
        config, data, plan: of the evaluation.
        encoders: of each policy.
        fits: file of each policy.
    """
    one_of_each = {fits[key]: key for key in reversed(list(encoders))}.values()  # of equal weights
    distinct, jobs = list(dict.fromkeys(encoders.values())), []
    # As many encoders at a time as stay loaded; an image is decoded once for all of them.
    for start in range(0, len(distinct), CACHED_ENCODERS):
        some = distinct[start : start + CACHED_ENCODERS]
        keys = [key for key in encoders if key in one_of_each and encoders[key] in some]
        for episode in data.heldout:
            wanted = tuple(
                key
                for key in keys
                if not _actions_path(config, fits[key].stem, episode, plan).is_file()
            )
            if wanted:
                values = plan.of(episode)
                jobs.append(ActJob(data.source, episode, config.image_px, values, wanted))
    return jobs


def fit_on_tokens(
    config: OfflineConfig,
    data: OfflineData,
    training: TokenTraining,
    tested: Sequence[EncoderUnderTest],
    pool: ActorPool,
    service: EncoderService | None = None,
) -> tuple[list[Fitted], list[str]]:
    """Fit what is not fitted; reasons of the training episodes that cannot be decoded, which go.

    Args:
        config, data, training, tested: of the evaluation.
        pool: of :class:`~dynaflip.platform.evaluation.offline_worker.OfflineWorker`.
        service: encodes the workers' images, if it has actors; None: workers do.

    Raises:
        UserError: no episode can be decoded, or not the same ones for all policies.
    """
    from tqdm import tqdm

    jobs, paths = token_fits(config, data, training, tested)
    with tqdm(total=len(jobs), desc="fit", unit="encoder", disable=not jobs) as bar:
        put = _to_workers(training) if jobs else None
        results = pool.run(
            JobQueue(jobs).next,
            lambda actor, job: actor.fit_on_tokens.remote(job, put, actors_for(service)),
            number=len(jobs),
            describe=lambda job: f"policies on the tokens of {job.under_test}",
        )
        for job, fits in results if jobs else ():
            for seed, tensors in fits.tensors.items():
                _save_fit(paths[job.under_test, seed], tensors, fits.lost)
            bar.update()
    fitted: list[Fitted] = []
    lost: list[dict[str, str]] = []
    for entry in tested:
        for seed in range(config.seeds):
            tensors, without = _load_fit(paths[entry.name, seed])
            fitted.append(Fitted(entry.name, seed, entry.encoder(seed), tensors))
            lost.append(without)
    if other := next((one for one in lost if one.keys() != lost[0].keys()), None):
        raise UserError(
            f"source: policies learnt from different episodes: {len(lost[0])} could not be decoded "
            f"for some, and {len(other)} for others; delete {_folder()} and run again"
        )
    return fitted, drop_lost(config, data, lost[0])


def act_on_tokens(
    config: OfflineConfig,
    data: OfflineData,
    plan: OfflinePlan,
    training: TokenTraining,
    fitted: Sequence[Fitted],
    pool: ActorPool,
    service: EncoderService | None = None,
) -> tuple[Planned, list[str]]:
    """Ask every policy for its actions; reasons of the episodes that cannot be decoded, which go.

    Args:
        config, data, plan, training: of the evaluation.
        fitted: the policies.
        pool: of :class:`~dynaflip.platform.evaluation.offline_worker.OfflineWorker`.
        service: encodes the workers' images, if it has actors; None: workers do.

    Raises:
        UserError: no held-out episode can be decoded.
    """
    from tqdm import tqdm

    digests = [episode.digest() for episode in training.episodes]
    fits = {
        one.key: _fit_path(config, data, training, one.encoder, one.seed, digests) for one in fitted
    }

    def path(key: FitKey, episode: OfflineEpisode) -> Path:
        return _actions_path(config, fits[key].stem, episode, plan)

    jobs = act_jobs(config, data, plan, {one.key: one.encoder for one in fitted}, fits)
    lost: dict[str, str] = {}
    count = sum(len(job.values) * len(job.episode.frames) for job in jobs)
    with tqdm(total=count, desc="act", unit="image", disable=not count) as bar:
        given = training, {one.key: one for one in fitted}
        put = [_to_workers(one) for one in given] if jobs else []
        results = pool.run(
            JobQueue(jobs).next,
            lambda actor, job: actor.act.remote(job, *put, actors_for(service)),
            number=len(jobs),
            describe=lambda job: f"actions in episode {job.episode.index}",
        )
        for job, found in results if jobs else ():
            if isinstance(found, str):
                lost[job.episode.digest()] = found
            else:
                for key, planned in found.items():
                    _save_actions(path(key, job.episode), planned)
            bar.set_postfix_str("" if service is None else service.words())
            bar.update(len(job.values) * len(job.episode.frames))
    reasons = drop_lost(config, data, lost)
    together: Planned = {}
    for one in fitted:
        parts = [_load_actions(path(one.key, episode)) for episode in data.heldout]
        names = [condition.name for condition in plan.conditions]
        together[one.key] = {name: np.concatenate([p[name] for p in parts]) for name in names}
    return together, reasons


def _to_workers(value: Any) -> Any:
    """A value in Ray's memory, for all jobs together; Ray is started as this package starts it."""
    start_ray()
    import ray

    return ray.put(value)


def _fit_path(
    config: OfflineConfig,
    data: OfflineData,
    training: TokenTraining,
    encoder: Encoder,
    seed: int,
    digests: list[str],
) -> Path:
    """Of a policy, by all that its weights depend on."""
    captions = None if training.words is None else [e.captions for e in training.episodes]
    recipe = training.recipe
    what: list[Any] = [
        [offline_version(config), *versions_of(("torch",))],
        [encoder.digest, seed, config.image_px, config.action, data.proprioception],
        [recipe.head, settings_to_hash(recipe.head_settings)],
        [recipe.readout, recipe.readout_settings],
        [digests, captions],
    ]
    what += [*config.encoder_actor.recipe(), *code_of_policies(config)]
    return _folder() / f"{_digest(what)}.safetensors"


def _actions_path(
    config: OfflineConfig, policy: str, episode: OfflineEpisode, plan: OfflinePlan
) -> Path:
    from dynaflip.eval.image_perturbations import IMAGE_VERSION

    values = plan.of(episode)
    what = [IMAGE_VERSION, policy, episode.digest(), config.image_px, values]
    what += code_of_images(config, values)
    name = _digest(what)
    return _folder() / name[:2] / f"{name}.npz"


def _folder() -> Path:
    return home() / "evaluation" / "offline"


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]


_LOST = "left_out"  # key of a file's metadata


def _save_fit(path: Path, tensors: dict[str, Any], lost: dict[str, str]) -> None:
    from safetensors.torch import save

    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_file(path, save(plain, metadata={_LOST: json.dumps(lost)}))


def _load_fit(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A policy's tensors, and the training episodes that could not be decoded."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads((file.metadata() or {})[_LOST])


def _save_actions(path: Path, planned: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **planned)
    write_file(path, buffer.getvalue())


def _load_actions(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)
