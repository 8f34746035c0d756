"""The actor of the suite ``offline``: encodes perturbed frames, and fits policies on the features.

Legend of shapes: N frames, D feature width of all cameras together, A action width, P width of
proprioception, C width of the task's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaflip.platform.evaluation.encoders_under_test import Encoder, load
from dynaflip.platform.evaluation.worker import CACHED_ENCODERS, FEATURE_BATCH
from dynaflip.platform.triplets.clips import Clip, ClipRejected
from dynaflip.platform.triplets.config import SourceConfig


@dataclass(frozen=True)
class FeatureJob:
    """An episode's frames through some encoders under some conditions."""

    source: SourceConfig
    episode: str  # digest
    index: int
    clips: tuple[Clip, ...]
    frames: tuple[int, ...]
    rows: int  # frames that the table says there are
    image_px: int
    values: dict[str, dict[str, Any]]  # name of a condition → factor values
    wanted: tuple[tuple[Encoder, str], ...]  # (encoder, name of a condition)


@dataclass(frozen=True)
class FitJob:
    """A policy: what it learns from is given beside it."""

    under_test: str
    digest: str  # of the encoder
    seed: int
    head: str
    head_settings: dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What a policy reads of N frames; the actions are in [-1, 1]."""

    features: np.ndarray  # (N, D) float32
    proprioception: np.ndarray  # (N, P) float32
    context: np.ndarray | None  # (N, C) float32
    actions: np.ndarray  # (N, A) float32
    episode: np.ndarray  # (N,) int


class OfflineWorker:
    """Does the jobs of the suite ``offline``; some encoders stay loaded between calls."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._encoders: dict[str, Any] = {}
        self._checked: set[str] = set()

    def features(self, job: FeatureJob) -> dict[tuple[str, str], np.ndarray] | str:
        """(digest of an encoder, condition) → (N, D) float32; a reason where nothing decodes."""
        from dynaflip.eval.image_perturbations import perturb
        from dynaflip.eval.policies.encoder_policy import features_of

        try:
            images = decode_frames(job)
        except ClipRejected as error:
            return error.reason
        found: dict[tuple[str, str], np.ndarray] = {}
        # Each frame is perturbed once for all encoders.
        for condition in dict.fromkeys(name for _, name in job.wanted):
            seen = [
                perturb(one, job.values[condition], job.frames, camera)
                for camera, one in enumerate(images)
            ]
            for encoder in (encoder for encoder, name in job.wanted if name == condition):
                network = self._encoder(encoder, seen[0])
                parts = [
                    np.concatenate(
                        [
                            features_of(network, one[start : start + FEATURE_BATCH])
                            for start in range(0, len(one), FEATURE_BATCH)
                        ]
                    )
                    for one in seen
                ]
                found[encoder.digest, condition] = np.concatenate(parts, axis=1)
        return found

    def fit(
        self, job: FitJob, train: Inputs, tests: Mapping[str, np.ndarray], test: Inputs
    ) -> dict[str, np.ndarray]:
        """Fit a policy, and ask it for its actions: condition → (N, A) in [-1, 1].

        Args:
            job: the policy.
            train: what it learns from.
            tests: condition → (N, D) features of the held-out frames.
            test: the rest of what it reads of these frames; its features are not read.
        """
        import torch

        from dynaflip.eval.policies.base import Demonstrations, join
        from dynaflip.eval.policies.registry import head_settings, policy_head

        known = train.proprioception.shape[1] > 0
        head = policy_head(job.head).fit(
            Demonstrations(
                train.features, train.proprioception, train.actions, train.episode, train.context
            ),
            head_settings(job.head, job.head_settings),
            use_proprioception=known,
            seed=job.seed,
        )
        state = test.proprioception if known else None
        planned = {}
        for condition, features in tests.items():
            inputs = torch.from_numpy(join(features, state, test.context))
            planned[condition] = head.plan(inputs)[:, 0].numpy()
        return planned

    def _encoder(self, encoder: Encoder, images: np.ndarray) -> Any:
        from dynaflip.eval.policies.encoder_policy import check_encoder

        if encoder.digest not in self._encoders:
            if len(self._encoders) >= CACHED_ENCODERS:
                self._encoders.pop(next(iter(self._encoders)))
            self._encoders[encoder.digest] = load(encoder)
        network = self._encoders[encoder.digest]
        if encoder.digest not in self._checked:
            check_encoder(network, images[:4])
            self._checked.add(encoder.digest)
        return network


def decode_frames(job: FeatureJob) -> list[np.ndarray]:
    """The episode's frames through each camera: (N, H, W, 3) uint8 each.

    Raises:
        ClipRejected: they cannot be read, or are not as many as the table's rows.
    """
    from dynaflip.platform.triplets.sources.lerobot import LeRobotSource

    source = LeRobotSource(job.source)
    images = []
    for clip in job.clips:
        recording = source.open(clip)
        number = len(recording.times_s())
        if number != job.rows:
            reason = f"{number} frames of {clip.camera}, and {job.rows} rows of actions"
            raise ClipRejected("decode", reason)
        images.append(recording.read_frames(list(job.frames), job.image_px))
    return images
