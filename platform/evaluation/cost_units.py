"""Unit costs of an evaluation, measured in a short calibration and kept per hardware.

Seconds of one core, so that a busy machine gives about the same. Where a machine has several, two
processes measure at the same time, as an evaluation's workers run. The figures are the only thing
that ``--dry-run`` keeps: ``DYNAFLIP_HOME/calibration/HARDWARE.json``; delete the file to measure
again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dynaflip.eval.envs.registry import environment
from dynaflip.eval.policies.config import EndToEndConfig
from dynaflip.eval.rollout import EpisodeStart
from dynaflip.files import write_file
from dynaflip.platform.cluster import available_cpus
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.evaluation.plan import EvaluationJob, PolicySpec
from dynaflip.platform.paths import home
from dynaflip.platform.provenance import hardware

_VERSION = 3
_RENDERS, _STEPS = 8, 40
_FRAMES = 16  # images that a trial fit is given
_FIT_STEPS = (10, 40)
_END_TO_END_STEPS = (1, 4)


@dataclass(frozen=True)
class SceneCosts:
    """Of an environment at an image size; seconds."""

    open_s: float  # a scene
    reset_s: float  # an episode's initial state with its perturbation, the mean over conditions
    step_s: float  # a control step
    render_s: float  # an image, the mean over conditions
    recorded_frame_s: float  # a demonstration's frame: rendered, stepped, written as video
    demonstration_steps: float  # frames of the expert's episode; 0: not asked


@dataclass(frozen=True)
class PolicyCosts:
    """Of an encoder's architecture with a head and a read-out; seconds."""

    encode_s: float  # an image of the demonstrations
    act_s: float  # an image while acting: encoder, read-out and head
    fit_s: float  # a policy, its features at hand
    chunk: int  # steps from one image to the next
    trained_images: int = 0  # of a fit that trains the encoder; 0: the encoder is frozen


@dataclass(frozen=True)
class SceneToMeasure:
    """A task at an image size, and how it is shown."""

    environment: str
    task: str
    size_px: tuple[int, int]  # (height, width)
    conditions: Mapping[str, EpisodeStart]  # name → one of its starts
    collect: CollectConfig | None  # how demonstrations are collected; None: they are not


def scene_to_measure(
    jobs: Sequence[EvaluationJob], collect: CollectConfig | None
) -> SceneToMeasure:
    """The first job's task, under the conditions of all of its jobs."""
    first = jobs[0]
    starts = {job.condition.name: job.starts[0] for job in jobs if job.task == first.task}
    size_px = (first.image_px, first.image_px)
    return SceneToMeasure(first.environment, first.task, size_px, starts, collect)


def scene_costs(scene: SceneToMeasure) -> SceneCosts:
    """Of an environment, from the file or measured now."""
    spec = environment(scene.environment)
    steps = None if scene.collect is None else scene.collect.max_steps
    recipe = [spec.name, *spec.versions(), scene.task, scene.size_px, sorted(scene.conditions)]
    variables = spec.worker_environment()
    values = known_or(
        key_of("scene", [*recipe, steps]), lambda: together(variables, _measure_scene, scene)
    )
    return SceneCosts(**values)


def policy_costs(job: EvaluationJob) -> PolicyCosts:
    """Of a job's policy, from the file or measured now; equal architectures are measured once."""
    variables = environment(job.environment).worker_environment()
    values = known_or(policy_kind(job), lambda: together(variables, _measure_policy, job))
    return PolicyCosts(
        encode_s=values["encode_s"],
        act_s=values["act_s"],
        fit_s=values["fit_s"],
        chunk=round(values["chunk"]),
        trained_images=round(values["trained_images"]),
    )


def policy_kind(job: EvaluationJob) -> str:
    """Equal for policies that cost the same."""
    spec = job.policy
    assert spec.encoder.folder is not None, "the policy has an encoder"
    described = json.loads((Path(spec.encoder.folder) / "config.json").read_text())
    recipe = [described["preprocessing"], described["image_architecture"], described["model"]]
    recipe += [spec.head, spec.head_settings, spec.readout, spec.readout_settings]
    recipe += [spec.adaptation, spec.end_to_end]
    return key_of("policy", [*recipe, job.image_px, job.environments])


def calibration_file() -> Path:
    """File of this machine's unit costs."""
    name = re.sub(r"[^\w]+", "-", hardware()).strip("-")[:100]
    return home() / "calibration" / f"{name}.json"


def known_or(key: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Unit costs of a key, from the file or measured now."""
    path = calibration_file()
    try:
        known = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        known = {}
    if key not in known:
        print(f"measuring unit costs ({key.partition(' ')[0]}) …", flush=True)
        known[key] = measure()
        write_file(path, json.dumps(known, indent=1, sort_keys=True).encode())
    values: dict[str, float] = known[key]
    return values


def key_of(kind: str, recipe: list[Any]) -> str:
    """Name of unit costs in the file: equal where what was measured is."""
    text = json.dumps([_VERSION, *recipe], sort_keys=True)
    return f"{kind} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def together(
    variables: Mapping[str, str], measure: Callable[..., Any], *arguments: Any
) -> dict[str, float]:
    """The mean of what processes measure at the same time, each on one core.

    Args:
        variables: environment variables of these processes.
        measure: gives a dataclass of numbers.
        arguments: of it.
    """
    number = min(2, available_cpus())
    before = dict(os.environ)
    os.environ.update(variables)  # read when the simulator and torch are imported
    try:
        with ProcessPoolExecutor(number, multiprocessing.get_context("spawn")) as processes:
            waiting = [processes.submit(measure, *arguments) for _ in range(number)]
            found = [asdict(one.result()) for one in waiting]
    finally:
        os.environ.clear()
        os.environ.update(before)
    return {name: sum(one[name] for one in found) / number for name in found[0]}


def _measure_scene(asked: SceneToMeasure) -> SceneCosts:
    import numpy as np

    from dynaflip.eval.labelled_frames import as_recorded

    spec, (height_px, width_px) = environment(asked.environment), asked.size_px
    scene, open_s = timed(lambda: spec.open(asked.task, height_px=height_px, width_px=width_px))
    recorded, frames = (0.0, 0) if asked.collect is None else _record(scene, asked.collect)
    reset_s = render_s = 0.0
    for start in asked.conditions.values():

        def begin(start: EpisodeStart = start) -> None:
            scene.reset(start.layout_seed)
            scene.apply(start.factors)

        reset_s += timed(begin)[1]
        scene.rgb()
        render_s += timed(lambda: [as_recorded(scene.rgb()) for _ in range(_RENDERS)])[1] / _RENDERS
        scene.restore()
    action = scene.expert_action() if scene.has_expert() else np.zeros(spec.action_dim, np.float32)
    scene.step(action)
    steps = min(_STEPS, spec.horizon_steps // 2)
    _, step_s = timed(lambda: [scene.step(action) for _ in range(steps)])
    scene.close()
    number = len(asked.conditions)
    per_frame = recorded / frames if frames else 0.0
    return SceneCosts(
        open_s, reset_s / number, step_s / steps, render_s / number, per_frame, frames
    )


def _record(scene: Any, collect: CollectConfig) -> tuple[float, int]:
    """Seconds of a demonstration, recorded and written, and its frames."""
    from dynaflip.platform.demonstrations.lerobot_episode import write_episode
    from dynaflip.platform.demonstrations.plan import plan_episodes
    from dynaflip.platform.demonstrations.record import record_episode

    plan = plan_episodes(collect)[0]

    def record() -> int:
        recording = record_episode(scene, plan, collect)
        with tempfile.TemporaryDirectory() as folder:
            write_episode(
                Path(folder) / "episode", plan, recording, environment(collect.environment)
            )
        return len(recording.rgb)

    frames, seconds = timed(record)
    return seconds, frames


def _measure_policy(job: EvaluationJob) -> PolicyCosts:
    import numpy as np
    import torch

    from dynaflip.platform.evaluation.demonstration_set import DemonstrationFrames
    from dynaflip.platform.evaluation.encoders_under_test import load
    from dynaflip.platform.evaluation.policy_fits import encode_demonstrations, fitted_policy

    torch.set_num_threads(1)
    rng, px, spec = np.random.default_rng(0), job.image_px, environment(job.environment)
    policy = replace(job.policy, demonstrations=job.policy.demonstrations[:1])
    images = rng.integers(0, 256, (max(_FRAMES, job.environments), px, px, 3), np.uint8)
    frames = DemonstrationFrames(
        images[:_FRAMES],
        rng.standard_normal((_FRAMES, spec.proprioception_dim)).astype(np.float32),
        rng.uniform(-1, 1, (_FRAMES, spec.action_dim)).astype(np.float32),
        np.arange(_FRAMES) // 4,
    )
    frozen = load(policy.encoder)
    if policy.adaptation != "frozen":
        weights, fit_s = _fit_end_to_end(policy, frames)
        acting = fitted_policy(policy, weights, None, job.task)
        training = EndToEndConfig(**policy.end_to_end)
        encode_s, act_s, chunk = _acting(acting, images, job.environments, spec.proprioception_dim)
        trained = training.steps * training.batch_size
        return PolicyCosts(encode_s, act_s, fit_s, chunk, trained)
    shown = encode_demonstrations(frozen, [frames], policy)
    _, encode_s = timed(lambda: encode_demonstrations(frozen, [frames], policy))
    # Its checks encode a few images more than once: they are part of a fit's cost, not of an image.
    from dynaflip.eval.policies.encoder_policy import check_encoder

    if shown.tokens is None:
        _, check_s = timed(lambda: check_encoder(frozen, frames.images[:4], None))
        encode_s = max(encode_s - check_s, encode_s / 4)
    weights, fit_s = _fit(policy, shown)
    acting = fitted_policy(policy, weights, frozen, job.task)
    _, act_s, chunk = _acting(acting, images, job.environments, spec.proprioception_dim)
    return PolicyCosts(encode_s / _FRAMES, act_s, fit_s, chunk)


def _acting(policy: Any, images: Any, number: int, states: int) -> tuple[float, float, int]:
    """Seconds of an image that is only encoded, of one that is acted on, and steps between two.

    Args:
        policy: an :class:`~dynaflip.eval.policies.encoder_policy.EncoderPolicy`.
        images: (N, H, W, 3) uint8.
        number: of environments that ask together.
        states: width of proprioception.
    """
    import numpy as np

    from dynaflip.eval.rollout import Observation

    batch = images[:number]
    seen = Observation(batch, np.zeros((len(batch), states), np.float32))
    plan = policy.act(seen)
    _, act_s = timed(lambda: [policy.act(seen) for _ in range(3)])
    _, encode_s = timed(lambda: [policy.see([batch]) for _ in range(3)])
    return encode_s / 3 / len(batch), act_s / 3 / len(batch), plan.shape[1]


def _fit_end_to_end(policy: PolicySpec, frames: Any) -> tuple[dict[str, Any], float]:
    """A policy that has trained its encoder for few steps, and the seconds that all steps take."""
    from dynaflip.platform.evaluation.policy_fits import fit_end_to_end_policy

    given = policy.end_to_end
    return _slope(
        lambda steps: fit_end_to_end_policy(
            replace(policy, end_to_end={**given, "steps": steps}), frames
        ),
        EndToEndConfig(**given).steps,
        _END_TO_END_STEPS,
    )


def _fit(policy: PolicySpec, shown: Any) -> tuple[dict[str, Any], float]:
    """A fitted policy, and the seconds that one of all steps takes."""
    from dynaflip.platform.evaluation.policy_fits import fit_policy

    alone = replace(
        policy, demonstrations=tuple(replace(d, first=None) for d in policy.demonstrations)
    )
    return fit_seconds(
        policy.head,
        policy.head_settings,
        lambda settings: fit_policy(replace(alone, head_settings=settings), shown),
    )


def fit_seconds(
    head: str, settings: dict[str, Any], fit: Callable[[dict[str, Any]], Any]
) -> tuple[Any, float]:
    """A fit of few steps, and the seconds that one of all steps takes.

    Args:
        head: name of the policy's head.
        settings: of it.
        fit: fits with some settings.
    """
    from dynaflip.eval.policies.registry import head_settings

    steps = getattr(head_settings(head, settings), "steps", None)
    if steps is None:
        return timed(lambda: fit(settings))
    return _slope(lambda number: fit({**settings, "steps": number}), steps, _FIT_STEPS)


def _slope(fit: Callable[[int], Any], steps: int, trial: tuple[int, int]) -> tuple[Any, float]:
    """The result of a fit of few steps, and the seconds of one of all steps.

    Args:
        fit: number of steps → what is fitted.
        steps: all of them.
        trial: two numbers of steps, whose difference is timed.
    """
    fit(trial[0])  # warms up
    (_, few_s), (fitted, more_s) = (timed(partial(fit, number)) for number in trial)
    return fitted, max(more_s - few_s, 0.0) / (trial[1] - trial[0]) * steps


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and its seconds on one core: waiting for others does not count."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began
