"""The evaluation's Ray actor: fits policies and rolls them out; one CPU, many environments."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dynaflip.eval.envs.registry import environment
from dynaflip.eval.rollout import EpisodeStart
from dynaflip.platform.evaluation.demonstration_set import DemonstrationSet
from dynaflip.platform.evaluation.encoders_under_test import EXPERT, RANDOM_POLICY, Encoder
from dynaflip.platform.evaluation.job_result import JobResult
from dynaflip.platform.evaluation.plan import EvaluationJob, PolicySpec
from dynaflip.platform.evaluation.policy_fits import (
    FEATURE_BATCH,
    encode_demonstrations,
    fit_policy,
    fitted_policy,
)
from dynaflip.platform.evaluation.worker_encoders import WorkerEncoders

if TYPE_CHECKING:
    from dynaflip.eval.metrics.attention import AttentionMaps
    from dynaflip.platform.evaluation.encoder_service import EncoderActors

CACHED_DEMONSTRATIONS = 5  # tasks whose decoded frames stay in memory


@dataclass(frozen=True)
class ImitationResult:
    """Some policies' actions compared with the expert's, moment by moment."""

    condition: Any  # (N,) names
    episode: Any  # (N,) int, index of the episode's start
    agreement: dict[str, Any]  # digest of a policy → (N,) in [0, 1], 1 − relative action error


@dataclass(frozen=True)
class SaliencyMaps:
    """Images of a task with every encoder's saliency maps."""

    images: Any  # (B, H, W, 3) uint8
    robot: Any  # (B, H, W) bool
    objects: Any  # (B, H, W) bool
    saliency: dict[str, Any]  # digest of an encoder → (B, G, G)


class SceneSpec(NamedTuple):
    """The scenes that a worker has loaded."""

    environment: str
    task: str
    image_px: int


class Worker:
    """Does an evaluation's jobs; a task's scenes and some encoders stay loaded between calls."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._scenes: list[Any] = []
        self._loaded: SceneSpec | None = None
        self._encoders = WorkerEncoders()
        self._views: tuple[Any, Any] | None = None
        self._frames: dict[str, Any] = {}

    def fit(
        self, specs: list[PolicySpec], there: EncoderActors | None = None
    ) -> dict[str, dict[str, Any]]:
        """Fit policies that share a frozen encoder, demonstrations and read-out.

        Features are computed once for all of them, and in no minibatch.

        Args:
            specs: of the policies.
            there: actors that encode the demonstrations; None: this worker does.

        Returns:
            Digest of a policy → its state dict.
        """
        parts = [self._frames_of(d) for d in specs[0].demonstrations]
        shown = encode_demonstrations(self._encoder_of(specs[0], there), parts, specs[0])
        return {spec.digest(): fit_policy(spec, shown) for spec in specs}

    def roll_out(
        self,
        job: EvaluationJob,
        weights: dict[str, Any] | None,
        there: EncoderActors | None = None,
    ) -> JobResult:
        """Run a job's episodes with a fitted policy.

        Args:
            job: which episodes of which policy.
            weights: the policy's fitted tensors; without its encoder's, if that is ``there``.
            there: actors that encode the images; None: this worker does.
        """
        from dynaflip.eval.rollout import roll_out

        began = time.monotonic()
        scenes = self._scenes_for(job)
        policy = self._policy(job, weights, there)
        results = roll_out(
            scenes,
            job.starts,
            policy,
            horizon_steps=job.horizon_steps,
            steps_after_success=job.steps_after_success,
            record_first=job.recorded,
            groups=1 if there is None else 2,
        )
        if weights is not None:
            policy.check_features()
        images = results[0].images
        return JobResult(
            [r.success_ever for r in results],
            [r.success_last for r in results],
            [r.steps for r in results],
            time.monotonic() - began,
            _animation(images) if images else None,
            [r.goal for r in results],
            getattr(getattr(policy, "encoder", None), "waited_s", 0.0),
        )

    def compare_with_expert(
        self,
        jobs: list[EvaluationJob],
        weights: dict[str, Any],
        there: EncoderActors | None = None,
    ) -> ImitationResult:
        """Compare policies of one encoder and task with the expert, under all conditions.

        Args:
            jobs: one per policy and condition; those of a policy differ in condition alone.
            weights: digest of a policy → its fitted tensors (none for those without an encoder).
            there: actors that encode the images; None: this worker does.
        """
        import numpy as np

        from dynaflip.eval.metrics.action_error import action_score
        from dynaflip.eval.rollout import Observation

        views = self._expert_views(jobs)
        unit = views.actions[views.condition == views.condition[0]]  # each moment once
        by_policy = {}
        for job in {job.policy.digest(): job for job in jobs}.values():
            digest = job.policy.digest()
            policy, actions = self._policy(job, weights.get(digest), there), []
            size = FEATURE_BATCH if there is None else there.batch
            for start in range(0, len(views.images), size):
                part = slice(start, start + size)
                observation = Observation(views.images[part], views.proprioception[part])
                plan = views.actions[part, None] if policy is None else policy.act(observation)
                actions.append(plan[:, 0])
            by_policy[digest] = action_score(np.concatenate(actions), views.actions, unit)
        return ImitationResult(views.condition, views.episode, by_policy)

    def saliency(
        self, spec: SceneSpec, layout_seeds: list[int], encoders: list[Encoder]
    ) -> SaliencyMaps | None:
        """Encoders' saliency in a task, half a second into the expert's episodes, unperturbed.

        None in an environment that cannot tell robot and objects apart, or has no expert.
        """
        import numpy as np

        from dynaflip.eval.envs.base import Env
        from dynaflip.eval.expert_views import act_as_expert
        from dynaflip.eval.metrics.attention import MOMENT_S
        from dynaflip.eval.metrics.saliency import saliency

        scene = self._load_scenes(spec, 1)[0]
        if Env.robot_and_object is type(scene).robot_and_object:
            return None
        if not scene.has_expert():
            return None
        views = []
        for seed in layout_seeds:
            scene.reset(seed)
            act_as_expert(scene, MOMENT_S)
            views.append((scene.rgb(), *scene.robot_and_object()))
        images, robot, objects = (np.stack(column) for column in zip(*views, strict=True))
        maps = {e.digest: saliency(self._encoders.here(e), images) for e in encoders}
        return SaliencyMaps(images, robot, objects, maps)

    def attention(
        self,
        spec: SceneSpec,
        starts: dict[str, tuple[EpisodeStart, ...]],
        policies: list[tuple[PolicySpec, dict[str, Any]]],
    ) -> AttentionMaps | None:
        """Attention of fitted policies' read-outs on a task; None where they say nothing of places.

        Args:
            spec: of the scene.
            starts: condition → initial states, of equal layouts under all conditions.
            policies: with their fitted tensors.
        """
        from dynaflip.eval.metrics.attention import AttentionMaps, moments_of, reading_of

        moments = moments_of(self._load_scenes(spec, 1)[0], starts)
        readings = {}
        for policy, weights in policies:
            encoder = self._encoders.here(policy.encoder)
            fitted = fitted_policy(policy, weights, encoder, spec.task)
            reading = reading_of(fitted, moments.images)
            if reading is None:
                return None
            readings[policy.digest()] = reading
        return AttentionMaps(moments, readings)

    def _expert_views(self, jobs: list[EvaluationJob]) -> Any:
        """The expert's views of the jobs' task and conditions; the last ones stay in memory."""
        from dynaflip.eval.metrics.action_error import show_expert

        starts = {job.condition.name: job.starts for job in jobs}
        key = (jobs[0].task, jobs[0].image_px, jobs[0].horizon_steps, tuple(starts.items()))
        if self._views is None or self._views[0] != key:
            scene = self._load_scenes(_scene_spec(jobs[0]), 1)[0]
            views = show_expert(scene, starts, horizon_steps=jobs[0].horizon_steps)
            self._views = key, views
        return self._views[1]

    def _scenes_for(self, job: EvaluationJob) -> list[Any]:
        number = min(job.environments, len(job.starts))
        return self._load_scenes(_scene_spec(job), number)

    def _load_scenes(self, spec: SceneSpec, number: int) -> list[Any]:
        if self._loaded != spec:
            for scene in self._scenes:
                scene.close()
            self._scenes, self._loaded = [], spec
        while len(self._scenes) < number:
            scene = environment(spec.environment).open(
                spec.task, height_px=spec.image_px, width_px=spec.image_px
            )
            self._scenes.append(scene)
        return self._scenes

    def _frames_of(self, demonstrations: DemonstrationSet) -> Any:
        """Decoded once for the encoders that follow; 25 episodes at 112 px are 80 MB."""
        from dynaflip.platform.evaluation.demonstrations import read_demonstrations

        if demonstrations.digest not in self._frames:
            if len(self._frames) >= CACHED_DEMONSTRATIONS:
                self._frames.pop(next(iter(self._frames)))
            self._frames[demonstrations.digest] = read_demonstrations(demonstrations)
        return self._frames[demonstrations.digest]

    def _encoder_of(self, spec: PolicySpec, there: EncoderActors | None) -> Any:
        """A policy's encoder: here, or in encoder actors."""
        trained = None if spec.adaptation == "frozen" else spec.digest()
        return self._encoders.of(spec.encoder, there, trained)

    def _policy(
        self, job: EvaluationJob, weights: dict[str, Any] | None, there: EncoderActors | None
    ) -> Any:
        from dynaflip.eval.policies.random_policy import RandomPolicy

        spec = job.policy
        if spec.encoder.name == EXPERT:
            return None
        if spec.encoder.name == RANDOM_POLICY:
            return RandomPolicy(spec.seed, environment(job.environment).action_dim)
        assert weights is not None
        return fitted_policy(spec, weights, self._encoder_of(spec, there), job.task)


def _scene_spec(job: EvaluationJob) -> SceneSpec:
    return SceneSpec(job.environment, job.task, job.image_px)


def _animation(images: list[Any]) -> bytes:
    from PIL import Image

    frames = [Image.fromarray(image) for image in images]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=60, loop=0, optimize=False
    )
    return buffer.getvalue()
