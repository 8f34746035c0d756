"""Features of every distinct image of the suite ``offline``, computed once.

They are cached below ``DYNAFLIP_HOME/evaluation/features`` by what they depend on: an interrupted
evaluation resumes, and a new encoder only computes its own.
Legend of shapes: N frames, D feature width of all cameras together.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dynaflip.eval.image_perturbations import IMAGE_VERSION, perturb
from dynaflip.files import write_file
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.evaluation.encoder_service import EncoderService, actors_for
from dynaflip.platform.evaluation.encoders_under_test import NO_IMAGE, Encoder, EncoderUnderTest
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.offline_data import OfflineData, OfflineEpisode
from dynaflip.platform.evaluation.offline_plan import CLEAN, OfflinePlan, code_of_images, drop_lost
from dynaflip.platform.evaluation.offline_worker import FeatureJob, decode_frames
from dynaflip.platform.evaluation.worker_encoders import CACHED_ENCODERS
from dynaflip.platform.job_queues import JobQueue
from dynaflip.platform.paths import home
from dynaflip.platform.triplets.clips import ClipRejected

# Raised when the same recipe gives other features than before.
FEATURES_VERSION = 1


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
    service: EncoderService | None = None,
) -> list[str]:
    """Compute what is not cached; reasons of the episodes that cannot be decoded, which go.

    Args:
        config, data, plan, tested: of the evaluation.
        pool: of :class:`~dynaflip.platform.evaluation.offline_worker.OfflineWorker`.
        service: encodes the workers' images, if it has actors; None: workers do.

    Raises:
        UserError: too few episodes are left.
    """
    from tqdm import tqdm

    jobs = [job for job in feature_batches(config, data, plan, tested) if job.wanted]
    lost: dict[str, str] = {}
    count = sum(map(_images, jobs))
    print(f"{count} images to encode, the others are cached")
    with tqdm(total=count, desc="encode", unit="image", disable=not count) as bar:
        results = pool.run(
            JobQueue(jobs).next,
            lambda actor, job: actor.features.remote(job, actors_for(service)),
            number=len(jobs),
            describe=lambda job: f"features of episode {job.episode.index}",
        )
        for job, found in results if jobs else ():
            digest = job.episode.digest()
            if isinstance(found, str):
                lost[digest] = found
            else:
                for (encoder, condition), features in found.items():
                    _save(_path(config, encoder, digest, job.values[condition]), features)
            bar.set_postfix_str("" if service is None else service.words())
            bar.update(_images(job))
    return drop_lost(config, data, lost)


def _images(job: FeatureJob) -> int:
    return len(job.wanted) * len(job.episode.frames) * len(job.episode.clips)


def example_images(
    config: OfflineConfig, data: OfflineData, plan: OfflinePlan
) -> np.ndarray | None:
    """A held-out frame under each condition, four in a row: (rows · H, 4 · W, 3) uint8.

    None where none can be decoded any more.
    """
    for episode in data.heldout:
        middle = (episode.frames[len(episode.frames) // 2],)
        shown_one = replace(episode, frames=middle, clips=episode.clips[:1])
        try:
            ((frame,),) = decode_frames(data.source, shown_one, config.image_px)
        except ClipRejected:
            continue
        break
    else:
        return None
    values = plan.of(episode)
    shown = [perturb(frame[None], values[one.name], middle)[0] for one in plan.conditions]
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
        if not _path(config, encoder.digest, digest, drawn).is_file()
    )
    return FeatureJob(data.source, episode, config.image_px, values, wanted)


def _path(config: OfflineConfig, encoder: str, episode: str, values: dict[str, Any]) -> Path:
    recipe = [FEATURES_VERSION, IMAGE_VERSION, encoder, episode, config.image_px, values]
    recipe += [*config.encoder_actor.recipe(), *code_of_images(config, values)]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:24]
    return home() / "evaluation" / "features" / digest[:2] / f"{digest}.npy"


def _save(path: Path, features: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, features)
    write_file(path, buffer.getvalue())


def features_of_frames(
    config: OfflineConfig, data: OfflineData, plan: OfflinePlan, encoder: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(N, D) of the training frames, and condition → (N, D) of the held-out ones."""

    def read(episode: OfflineEpisode, condition: str) -> np.ndarray:
        if encoder == NO_IMAGE:
            return np.zeros((len(episode.frames), 0), np.float32)
        values = plan.of(episode)[condition]
        return np.load(_path(config, encoder, episode.digest(), values))

    train = np.concatenate([read(episode, CLEAN.name) for episode in data.train])
    tests = {
        one.name: np.concatenate([read(episode, one.name) for episode in data.heldout])
        for one in plan.conditions
    }
    return train, tests
