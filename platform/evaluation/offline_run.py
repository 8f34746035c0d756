"""Run the suite ``offline``: features of every distinct image once, then policies on them.

Features are cached below ``DYNAFLIP_HOME/evaluation/features`` by what they depend on: an
interrupted evaluation resumes, and a new encoder only computes its own.
Legend of shapes: N frames, D feature width of all cameras together, A action width.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dynaflip.errors import UserError
from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
from dynaflip.eval.image_perturbations import (
    IMAGE_FACTOR_NAMES,
    IMAGE_VERSION,
    check_changes_frames,
    draw_values,
    perturb,
)
from dynaflip.eval.metrics.action_scale import ActionScale, action_scale
from dynaflip.files import write_file
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.evaluation.encoders_under_test import (
    NO_IMAGE,
    Encoder,
    EncoderUnderTest,
    info_of,
)
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.offline_data import OfflineData, OfflineEpisode
from dynaflip.platform.evaluation.offline_worker import FeatureJob, FitJob, Inputs, decode_frames
from dynaflip.platform.evaluation.plan import Condition
from dynaflip.platform.evaluation.worker import CACHED_ENCODERS
from dynaflip.platform.job_queues import JobQueue
from dynaflip.platform.paths import home
from dynaflip.platform.provenance import versions_of

# Raised when the same recipe gives other results than before.
OFFLINE_VERSION = 1
CLEAN = Condition(UNPERTURBED, 0)


@dataclass(frozen=True)
class OfflinePlan:
    """What is shown: conditions, and for each held-out episode its factor values."""

    conditions: tuple[Condition, ...]
    values: dict[str, dict[str, dict[str, Any]]]  # recording → name of a condition → values

    def of(self, episode: OfflineEpisode) -> dict[str, dict[str, Any]]:
        """Name of a condition → values; training episodes are clean."""
        return self.values[episode.recording_id] if episode.heldout else {CLEAN.name: {}}


def plan_offline(config: OfflineConfig, data: OfflineData) -> OfflinePlan:
    """Conditions, and values that are a function of split, recording, condition and seed alone.

    Raises:
        UserError: a factor does not exist, or changes no pixel.
    """
    names = config.factors or IMAGE_FACTOR_NAMES
    for name in names:
        check_changes_frames(name)
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
    if config.all_at_once and len(names) > 1:
        groups[ALL_FACTORS] = names
    perturbed = [Condition(group, level) for group in groups for level in config.levels]
    clean: dict[str, dict[str, Any]] = {CLEAN.name: {}}
    values = {
        episode.recording_id: clean
        | {
            one.name: draw_values(
                config.split,
                f"{config.seed}/{episode.recording_id}/{one.factor}",
                groups[one.factor],
                one.level,
            )
            for one in perturbed
        }
        for episode in data.heldout
    }
    return OfflinePlan((CLEAN, *perturbed), values)


def evaluation_digest(
    config: OfflineConfig, data: OfflineData, plan: OfflinePlan, tested: list[EncoderUnderTest]
) -> str:
    """Equal for evaluations that show the same images to the same policies."""
    recipe = [
        [OFFLINE_VERSION, IMAGE_VERSION, *versions_of(("torch",))],
        [episode.digest() for episode in (*data.train, *data.heldout)],
        plan.values,
        [[entry.name, *(encoder.digest for encoder in entry.encoders)] for entry in tested],
        [config.head, config.settings_of_head(), config.seeds, config.image_px],
        [config.action, data.proprioception],
    ]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def feature_batches(
    config: OfflineConfig,
    data: OfflineData,
    plan: OfflinePlan,
    tested: Sequence[EncoderUnderTest],
) -> list[FeatureJob]:
    """A job an episode and some encoders: as many at a time as stay loaded.

    What is cached is not wanted of it. An image is decoded once for all encoders of a job.
    """
    encoders = list({e.digest: e for one in tested for e in one.encoders if e.folder}.values())
    some = [encoders[i : i + CACHED_ENCODERS] for i in range(0, len(encoders), CACHED_ENCODERS)]
    episodes = [*data.train, *data.heldout]
    return [_feature_job(config, data, plan, e, part) for part in some or [[]] for e in episodes]


def compute_features(
    config: OfflineConfig,
    data: OfflineData,
    plan: OfflinePlan,
    tested: Sequence[EncoderUnderTest],
    pool: ActorPool,
) -> list[str]:
    """Compute what is not cached; reasons of the episodes that cannot be decoded, which go.

    Raises:
        UserError: too few episodes are left.
    """
    from tqdm import tqdm

    jobs = [job for job in feature_batches(config, data, plan, tested) if job.wanted]
    lost: dict[str, str] = {}
    count = sum(len(job.wanted) * len(job.frames) * len(job.clips) for job in jobs)
    print(f"{count} images to encode, the others are cached")
    by_digest = {episode.digest(): episode for episode in (*data.train, *data.heldout)}
    with tqdm(total=count, desc="encode", unit="image", disable=not count) as bar:
        results = pool.run(
            JobQueue(jobs).next,
            lambda actor, job: actor.features.remote(job),
            number=len(jobs),
            describe=lambda job: f"features of episode {job.index}",
        )
        for job, found in results if jobs else ():
            if isinstance(found, str):
                lost[job.episode] = f"episode {job.index}: {found}"
            else:
                for (encoder, condition), features in found.items():
                    values = plan.of(by_digest[job.episode])[condition]
                    _save(_path(encoder, job.episode, config.image_px, values), features)
            bar.update(len(job.wanted) * len(job.frames) * len(job.clips))
    for side in (data.train, data.heldout):
        side[:] = [episode for episode in side if episode.digest() not in lost]
        if not side:
            raise UserError(
                f"source: no episode of {config.source} that is "
                f"{'held out' if side is data.heldout else 'to learn from'} can be decoded; the "
                f"first: {next(iter(lost.values()))}"
            )
    return list(lost.values())


def fit_and_test(
    config: OfflineConfig,
    data: OfflineData,
    plan: OfflinePlan,
    tested: Sequence[EncoderUnderTest],
    pool: ActorPool,
) -> tuple[pl.DataFrame, ActionScale]:
    """Fit every policy: a row per policy, condition and held-out episode, and the actions' scale.

    Raises:
        UserError: the training actions are all constant.
    """
    from tqdm import tqdm

    try:
        scale = action_scale(np.concatenate([episode.actions for episode in data.train]))
    except ValueError as error:
        raise UserError(f"action: {config.action} of {config.source}: {error}") from None
    words = _words(data)
    sides = {
        side: _inputs(episodes, scale, words)
        for side, episodes in (("train", data.train), ("heldout", data.heldout))
    }
    jobs = [
        FitJob(entry.name, entry.encoder(seed).digest, seed, config.head, config.settings_of_head())
        for entry in tested
        for seed in range(config.seeds)
    ]
    put: dict[str, Any] = {}

    def submit(actor: Any, job: FitJob) -> Any:
        import ray

        if job.digest not in put:
            put.clear()  # jobs of an encoder follow each other
            train, tests = _features(config, data, plan, job.digest)
            put[job.digest] = ray.put(_with(sides["train"], train)), ray.put(tests)
        return actor.fit.remote(job, *put[job.digest], sides["heldout"])

    planned: dict[FitKey, dict[str, np.ndarray]] = {}
    with tqdm(total=len(jobs), desc="fit", unit="policy") as bar:
        fits = pool.run(
            JobQueue(jobs).next,
            submit,
            number=len(jobs),
            describe=lambda job: f"policy {job.seed} on {job.under_test}",
        )
        for job, actions in fits:
            planned[job.under_test, job.seed] = actions
            bar.update()
    rows: list[dict[str, Any]] = []
    for job in jobs:
        rows += _rows(job, data, plan, scale, planned[job.under_test, job.seed])
    return pl.DataFrame(rows), scale


FitKey = tuple[str, int]  # name of an entry, seed of the policy


def heldout_share_notes(share: float, tested: Sequence[EncoderUnderTest]) -> list[str]:
    """A note for each pretraining that held out a smaller share than is held out here.

    Both splits are by the same hash, so a smaller share's recordings are among a larger one's:
    where pretraining read this data set, the encoder knows the others, which are held out here.
    Encoders made before the share was recorded, or elsewhere, give no note.

    Args:
        share: held out here.
        tested: the encoders, as their folders describe them.
    """
    notes = []
    for encoder in (encoder for entry in tested for encoder in entry.encoders):
        own = info_of(encoder).get("heldout_share")
        if own is not None and float(own) < share:
            notes.append(
                f"note: {encoder.name} was pretrained on triplets with heldout_share {own:g}, and "
                f"here it is {share:g}: if those were made from this data set, it has seen some of "
                f"the recordings that are held out here; set --heldout_share {own:g}"
            )
    return list(dict.fromkeys(notes))


def with_no_image(data: OfflineData, tested: list[EncoderUnderTest]) -> list[EncoderUnderTest]:
    """The entries, and policies that see no image where they are given anything else."""
    if not data.train[0].proprioception.shape[1] and _words(data) is None:
        return tested
    return [*tested, EncoderUnderTest(NO_IMAGE, (Encoder(NO_IMAGE, None, NO_IMAGE),))]


def example_images(config: OfflineConfig, data: OfflineData, plan: OfflinePlan) -> np.ndarray:
    """A held-out frame under each condition, four in a row: (rows · H, 4 · W, 3) uint8."""
    episode = data.heldout[0]
    middle = (episode.frames[len(episode.frames) // 2],)
    job = replace(_feature_job(config, data, plan, episode, []), frames=middle)
    (frame,) = decode_frames(replace(job, clips=episode.clips[:1]))
    values = plan.of(episode)
    shown = [perturb(frame, values[one.name], middle)[0] for one in plan.conditions]
    shown += [np.full_like(shown[0], 255)] * (-len(shown) % 4)
    rows = [np.concatenate(shown[start : start + 4], axis=1) for start in range(0, len(shown), 4)]
    return np.concatenate(rows)


def _feature_job(
    config: OfflineConfig,
    data: OfflineData,
    plan: OfflinePlan,
    episode: OfflineEpisode,
    encoders: list[Encoder],
) -> FeatureJob:
    digest, values = episode.digest(), plan.of(episode)
    wanted = tuple(
        (encoder, name)
        for name, drawn in values.items()
        for encoder in encoders
        if not _path(encoder.digest, digest, config.image_px, drawn).is_file()
    )
    return FeatureJob(
        data.source,
        digest,
        episode.index,
        episode.clips,
        episode.frames,
        episode.rows,
        config.image_px,
        values,
        wanted,
    )


def _path(encoder: str, episode: str, image_px: int, values: dict[str, Any]) -> Path:
    recipe = [OFFLINE_VERSION, IMAGE_VERSION, encoder, episode, image_px, values]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:24]
    return home() / "evaluation" / "features" / digest[:2] / f"{digest}.npy"


def _save(path: Path, features: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, features)
    write_file(path, buffer.getvalue())


def _features(
    config: OfflineConfig, data: OfflineData, plan: OfflinePlan, encoder: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(N, D) of the training frames, and condition → (N, D) of the held-out ones."""

    def read(episode: OfflineEpisode, condition: str) -> np.ndarray:
        if encoder == NO_IMAGE:
            return np.zeros((len(episode.frames), 0), np.float32)
        values = plan.of(episode)[condition]
        return np.load(_path(encoder, episode.digest(), config.image_px, values))

    train = np.concatenate([read(episode, CLEAN.name) for episode in data.train])
    tests = {
        one.name: np.concatenate([read(episode, one.name) for episode in data.heldout])
        for one in plan.conditions
    }
    return train, tests


def _words(data: OfflineData) -> dict[str, np.ndarray] | None:
    """Caption → its features, where there are several tasks to tell apart."""
    captions = sorted({c for e in (*data.train, *data.heldout) for c in e.captions})
    if len(captions) < 2:
        return None
    from dynaflip.encoders.config import LanguageConfig
    from dynaflip.encoders.language import embed_captions

    features = embed_captions(captions, LanguageConfig()).numpy()
    return dict(zip(captions, features, strict=True))


def _inputs(
    episodes: list[OfflineEpisode], scale: ActionScale, words: dict[str, np.ndarray] | None
) -> Inputs:
    """All that policies read of some episodes, but for the features."""
    context = None
    if words is not None:
        context = np.stack([words[c] for episode in episodes for c in episode.captions])
    return Inputs(
        features=np.zeros((0, 0), np.float32),
        proprioception=np.concatenate([e.proprioception for e in episodes]).astype(np.float32),
        context=context,
        actions=scale.to_unit(np.concatenate([e.actions for e in episodes])),
        episode=np.repeat(np.arange(len(episodes)), [len(e.frames) for e in episodes]),
    )


def _with(inputs: Inputs, features: np.ndarray) -> Inputs:
    return Inputs(features, inputs.proprioception, inputs.context, inputs.actions, inputs.episode)


def _rows(
    job: FitJob,
    data: OfflineData,
    plan: OfflinePlan,
    scale: ActionScale,
    planned: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
    """A row per condition and held-out episode of a policy."""
    rows = []
    for condition in plan.conditions:
        start = 0
        for episode in data.heldout:
            stop = start + len(episode.frames)
            errors = scale.errors(planned[condition.name][start:stop], episode.actions)
            of_mean = scale.errors_of_mean(episode.actions)
            rows.append(
                {
                    "encoder": job.under_test,
                    "encoder_digest": job.digest,
                    "seed": job.seed,
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
