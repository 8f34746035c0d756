"""The actor of the suite ``offline``: encodes perturbed frames, fits policies and asks for actions.

Legend of shapes: N frames, D feature width of all cameras together, M entries of an action that
move in training, P width of proprioception, C width of the task's words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.metrics.action_scale import ActionScale, action_scale
from dynaflip.eval.policies.base import Demonstrations, RecordedActions
from dynaflip.eval.policies.recipe import PolicyRecipe
from dynaflip.platform.evaluation.encoders_under_test import Encoder
from dynaflip.platform.evaluation.offline_data import OfflineEpisode
from dynaflip.platform.evaluation.worker import FEATURE_BATCH
from dynaflip.platform.evaluation.worker_encoders import WorkerEncoders
from dynaflip.platform.triplets.clips import TEMPORARY_STAGES, ClipRejected
from dynaflip.platform.triplets.config import SourceConfig

if TYPE_CHECKING:
    from dynaflip.platform.evaluation.encoder_service import EncoderActors

FitKey = tuple[str, int]  # name of an entry, seed of the policy


@dataclass(frozen=True)
class FeatureJob:
    """An episode's frames through some encoders under some conditions."""

    source: SourceConfig
    episode: OfflineEpisode
    image_px: int
    values: dict[str, dict[str, Any]]  # name of a condition → factor values
    wanted: tuple[tuple[Encoder, str], ...]  # (encoder, name of a condition)


@dataclass(frozen=True)
class FitJob:
    """A policy on features: what it learns from is given beside it."""

    under_test: str
    digest: str  # of the encoder
    seed: int
    recipe: PolicyRecipe


@dataclass(frozen=True)
class TokenFitJob:
    """Policies of one encoder, which share its tokens."""

    under_test: str
    encoder: Encoder
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class TokenTraining:
    """What policies on tokens learn from; the same for every encoder."""

    source: SourceConfig
    episodes: tuple[OfflineEpisode, ...]
    image_px: int
    words: dict[str, np.ndarray] | None  # caption → (C,)
    recipe: PolicyRecipe
    scales: int  # feature maps that the read-out reads


@dataclass(frozen=True)
class TokenFits:
    """Fitted policies of an encoder."""

    tensors: dict[int, dict[str, Any]]  # by seed
    lost: dict[str, str]  # digest of an episode that cannot be decoded → reason


@dataclass(frozen=True)
class Fitted:
    """A fitted policy on tokens."""

    under_test: str
    seed: int
    encoder: Encoder
    tensors: dict[str, Any]

    @property
    def key(self) -> FitKey:
        """Of the policy."""
        return self.under_test, self.seed


@dataclass(frozen=True)
class ActJob:
    """A held-out episode, whose actions some policies are asked for."""

    source: SourceConfig
    episode: OfflineEpisode
    image_px: int
    values: dict[str, dict[str, Any]]  # name of a condition → factor values
    wanted: tuple[FitKey, ...]


class OfflineWorker:
    """Does the jobs of the suite ``offline``; some encoders stay loaded between calls."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._encoders = WorkerEncoders()
        self._checked: set[str] = set()

    def features(
        self, job: FeatureJob, there: EncoderActors | None = None
    ) -> dict[tuple[str, str], np.ndarray] | str:
        """(digest of an encoder, condition) → (N, D) float32; a reason where nothing decodes.

        Args:
            job: the episode.
            there: actors that encode the images; None: this worker does.
        """
        from dynaflip.eval.policies.encoder_policy import begin_features

        def finish(begun: dict[tuple[str, str], list[list[Any]]]) -> None:
            for key, of_cameras in begun.items():
                parts = [np.concatenate([answer() for answer in one]) for one in of_cameras]
                found[key] = np.concatenate(parts, axis=1)

        try:
            images = decode_frames(job.source, job.episode, job.image_px)
        except ClipRejected as error:
            return error.reason
        found: dict[tuple[str, str], np.ndarray] = {}
        size = FEATURE_BATCH if there is None else there.batch
        sent: dict[tuple[str, str], list[list[Any]]] = {}
        # Each frame is perturbed once for all encoders.
        for condition in dict.fromkeys(name for _, name in job.wanted):
            seen = perturbed(images, job.values[condition], job.episode)
            begun: dict[tuple[str, str], list[list[Any]]] = {}
            for encoder in (encoder for encoder, name in job.wanted if name == condition):
                network = self._encoder(encoder, seen[0], there)
                begun[encoder.digest, condition] = [
                    [begin_features(network, batch) for (batch,) in _batches([one], size)]
                    for one in seen
                ]
            # Actors encode a condition's images while the next ones are perturbed.
            finish(sent)
            sent = begun
        finish(sent)
        return found

    def fit(
        self, job: FitJob, train: Demonstrations, tests: Mapping[str, np.ndarray], test: Any
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Fit a policy on features, and ask it for its actions.

        Args:
            job: the policy.
            train: what it learns from.
            tests: condition → (N, D) features of the held-out frames.
            test: the rest of what it reads of these frames; its features are not read.

        Returns:
            Condition → (N, M) in [-1, 1], and the policy's tensors.
        """
        from dynaflip.eval.policies.frozen_fit import fit_frozen
        from dynaflip.eval.policies.recipe import assemble, split_tensors

        tensors = fit_frozen(job.recipe, train, job.seed)
        policy = assemble(job.recipe, split_tensors(tensors), None)
        planned = {
            condition: policy.plan(features, test.proprioception, test.context)[:, 0]
            for condition, features in tests.items()
        }
        return planned, tensors

    def fit_on_tokens(
        self, job: TokenFitJob, training: TokenTraining, there: EncoderActors | None = None
    ) -> TokenFits:
        """Fit policies that read an encoder's tokens, which lie on this machine's disk meanwhile.

        Args:
            job: the policies.
            training: what they learn from.
            there: actors that encode the images; None: this worker does.

        Raises:
            UserError: no episode can be decoded, the actions of those that can are constant, the
                encoder is none, or the disk has no room.
        """
        from dataclasses import replace

        from dynaflip.eval.policies.encoder_policy import tokens_of_views
        from dynaflip.eval.policies.frozen_fit import fit_frozen, store_tokens

        size = FEATURE_BATCH if there is None else there.batch
        lost: dict[str, str] = {}
        kept: list[OfflineEpisode] = []

        def tokens() -> Iterator[Any]:
            for episode in training.episodes:
                try:
                    images = decode_frames(training.source, episode, training.image_px)
                except ClipRejected as error:
                    if error.stage in TEMPORARY_STAGES:  # a fit is kept, and what it lacks too
                        raise UserError(
                            f"source: episode {episode.index} cannot be read now "
                            f"({error.reason}); what is done is kept: run the same command again"
                        ) from None
                    lost[episode.digest()] = error.reason
                    continue
                kept.append(episode)
                network = self._encoder(job.encoder, images[0], there, training.scales)
                for views in _batches(images, size):
                    yield tokens_of_views(network, views, training.scales)
            if not kept:
                raise UserError(
                    f"source: no episode of {training.source.path} that is to learn from can be "
                    f"decoded; the first: {next(iter(lost.values()))}"
                )

        store = store_tokens(tokens(), sum(len(e.frames) for e in training.episodes))
        inputs = inputs_of(kept, scale_of(kept, training.source.path), training.words)
        inputs = replace(inputs, tokens=store.some(np.arange(len(inputs.episode))))
        fits = {seed: fit_frozen(training.recipe, inputs, seed) for seed in job.seeds}
        return TokenFits(fits, lost)

    def act(
        self,
        job: ActJob,
        training: TokenTraining,
        fitted: Mapping[FitKey, Fitted],
        there: EncoderActors | None = None,
    ) -> dict[FitKey, dict[str, np.ndarray]] | str:
        """Policy → condition → its actions, (N, M) in [-1, 1]; a reason where nothing decodes.

        Args:
            job: the episode.
            training: of the policies; its episodes are not read.
            fitted: all policies, of which the job names some.
            there: actors that encode the images; None: this worker does.
        """
        from dynaflip.eval.policies.recipe import assemble, split_tensors

        try:
            images = decode_frames(job.source, job.episode, job.image_px)
        except ClipRejected as error:
            return error.reason
        size = FEATURE_BATCH if there is None else there.batch
        context = context_of(job.episode, training.words)
        by_encoder: dict[str, dict[FitKey, Any]] = {}
        for key in job.wanted:
            one = fitted[key]
            network = self._encoder(one.encoder, images[0], there, training.scales)
            policy = assemble(
                training.recipe, split_tensors(one.tensors), network, cameras=len(images)
            )
            by_encoder.setdefault(one.encoder.digest, {})[key] = policy
        found: dict[FitKey, dict[str, np.ndarray]] = {key: {} for key in job.wanted}
        for condition, values in job.values.items():
            seen = perturbed(images, values, job.episode)
            for policies in by_encoder.values():
                first = next(iter(policies.values()))
                # A batch's tokens are read at once, so that no episode's tokens are in memory.
                parts: dict[FitKey, list[np.ndarray]] = {key: [] for key in policies}
                start = 0
                for views in _batches(seen, size):
                    rows = slice(start, start + len(views[0]))
                    tokens, start = first.see(views), rows.stop
                    words = None if context is None else context[rows]
                    state = job.episode.proprioception[rows].astype(np.float32)
                    for key, policy in policies.items():
                        parts[key].append(policy.plan(tokens, state, words)[:, 0])
                for key, actions in parts.items():
                    found[key][condition] = np.concatenate(actions)
        return found

    def _encoder(
        self,
        encoder: Encoder,
        images: np.ndarray,
        there: EncoderActors | None,
        scales: int | None = None,
    ) -> Any:
        """An encoder, here or in encoder actors; checked on some images when it is first asked."""
        from dynaflip.eval.policies.encoder_policy import apart, check_encoder

        network = self._encoders.of(encoder, there)
        if encoder.digest not in self._checked:
            check_encoder(network, apart(images), scales)
            self._checked.add(encoder.digest)
        return network


def decode_frames(source: SourceConfig, episode: OfflineEpisode, image_px: int) -> list[np.ndarray]:
    """The episode's chosen frames through each camera: (N, H, W, 3) uint8 each.

    Raises:
        ClipRejected: they cannot be read, or are not as many as the table's rows.
    """
    from dynaflip.platform.triplets.sources.lerobot import LeRobotSource

    opened = LeRobotSource(source)
    images = []
    for clip in episode.clips:
        recording = opened.open(clip)
        number, rows = len(recording.times_s()), len(episode.recorded)
        if number != rows:
            reason = f"{number} frames of {clip.camera}, and {rows} rows of actions"
            raise ClipRejected("decode", reason)
        images.append(recording.read_frames(list(episode.frames), image_px))
    return images


def perturbed(
    images: list[np.ndarray], values: dict[str, Any], episode: OfflineEpisode
) -> list[np.ndarray]:
    """Each camera's frames under a condition."""
    from dynaflip.eval.image_perturbations import perturb

    return [perturb(one, values, episode.frames, camera) for camera, one in enumerate(images)]


def scale_of(episodes: list[OfflineEpisode], source: str) -> ActionScale:
    """The units of the actions of the chosen frames of training episodes.

    Raises:
        UserError: they are all constant.
    """
    try:
        return action_scale(np.concatenate([episode.actions for episode in episodes]))
    except ValueError as error:
        raise UserError(f"action: {source}: {error}") from None


def inputs_of(
    episodes: list[OfflineEpisode], scale: ActionScale, words: Mapping[str, np.ndarray] | None
) -> Demonstrations:
    """All that policies learn from in some episodes, but for features and tokens.

    Args:
        episodes: whose chosen frames.
        scale: of the actions.
        words: caption → (C,), where there are several tasks.
    """
    contexts = [context_of(episode, words) for episode in episodes]
    starts = np.cumsum([0, *(len(episode.recorded) for episode in episodes)])
    numbers = np.arange(len(episodes))
    frames = [np.array(e.frames) + start for e, start in zip(episodes, starts, strict=False)]
    return Demonstrations(
        features=np.zeros((sum(map(len, frames)), 0), np.float32),
        proprioception=np.concatenate([e.proprioception for e in episodes]).astype(np.float32),
        actions=scale.to_unit(np.concatenate([e.actions for e in episodes])),
        episode=np.repeat(numbers, [len(e.frames) for e in episodes]),
        context=None if words is None else np.concatenate([c for c in contexts if c is not None]),
        recorded=RecordedActions(
            scale.to_unit(np.concatenate([e.recorded for e in episodes])),
            np.repeat(numbers, [len(e.recorded) for e in episodes]),
            np.concatenate(frames),
        ),
    )


def context_of(
    episode: OfflineEpisode, words: Mapping[str, np.ndarray] | None
) -> np.ndarray | None:
    """(N, C) float32: the task in words at each chosen frame, where there are several tasks."""
    return None if words is None else np.stack([words[caption] for caption in episode.captions])


def _batches(views: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """The cameras' frames, ``size`` moments at a time."""
    for start in range(0, len(views[0]), size):
        yield [one[start : start + size] for one in views]
