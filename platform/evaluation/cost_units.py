"""Unit costs of an evaluation by rollouts, measured in a short calibration and kept per hardware.

Seconds of one core. Where a machine has several, two processes measure at the same time, as an
evaluation's workers run. The figures are the only thing that ``--dry-run`` keeps:
``DYNAFLIP_HOME/calibration/HARDWARE.json``; delete the file to measure again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dynaflip.eval.envs.registry import environment
from dynaflip.files import write_file
from dynaflip.platform.cluster import available_cpus
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.evaluation.plan import EvaluationJob, PolicySpec
from dynaflip.platform.paths import home
from dynaflip.platform.provenance import hardware

_VERSION = 1
_RENDERS, _STEPS = 20, 40
_FRAMES = 16  # images that a trial fit is given
_FIT_STEPS = (10, 40)


@dataclass(frozen=True)
class SceneCosts:
    """Of an environment at an image size; seconds."""

    open_s: float  # a scene
    reset_s: float  # an episode's initial state with its perturbation
    step_s: float  # a control step
    render_s: float  # an image
    recorded_frame_s: float  # a demonstration's frame: rendered, stepped, written as video
    demonstration_steps: float  # frames of the expert's episode


@dataclass(frozen=True)
class PolicyCosts:
    """Of an encoder's architecture with a head and a read-out; seconds."""

    encode_s: float  # an image of the demonstrations
    act_s: float  # an image while acting: encoder, read-out and head
    fit_s: float  # a policy, its features at hand
    chunk: int  # steps from one image to the next


def scene_costs(job: EvaluationJob, collect: CollectConfig) -> SceneCosts:
    """Of a job's environment, from the file or measured now.

    Args:
        job: any of an evaluation.
        collect: how a task's demonstrations are collected.
    """
    spec = environment(job.environment)
    key = _key("scene", [spec.name, *spec.versions(), job.task, job.image_px, collect.max_steps])
    values = _known_or(key, lambda: _together(job.environment, _measure_scene, job, collect))
    return SceneCosts(**values)


def policy_costs(job: EvaluationJob) -> PolicyCosts:
    """Of a job's policy, from the file or measured now; equal architectures are measured once."""
    values = _known_or(
        policy_kind(job), lambda: _together(job.environment, _measure_policy, job, None)
    )
    return PolicyCosts(
        encode_s=values["encode_s"],
        act_s=values["act_s"],
        fit_s=values["fit_s"],
        chunk=round(values["chunk"]),
    )


def policy_kind(job: EvaluationJob) -> str:
    """Equal for policies that cost the same."""
    spec = job.policy
    assert spec.encoder.folder is not None, "the policy has an encoder"
    described = json.loads((Path(spec.encoder.folder) / "config.json").read_text())
    recipe = [described["preprocessing"], described["image_architecture"], described["model"]]
    recipe += [spec.head, spec.head_settings, spec.readout, spec.readout_settings]
    return _key("policy", [*recipe, job.image_px, job.environments])


def calibration_file() -> Path:
    """Where this machine's unit costs are kept."""
    name = re.sub(r"[^\w]+", "-", hardware()).strip("-")[:100]
    return home() / "calibration" / f"{name}.json"


def _known_or(key: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
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


def _key(kind: str, recipe: list[Any]) -> str:
    text = json.dumps([_VERSION, *recipe], sort_keys=True)
    return f"{kind} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _together(name: str, measure: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    """The mean of what processes measure at the same time, each on one core."""
    number = min(2, available_cpus())
    variables = environment(name).worker_environment()
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


def _measure_scene(job: EvaluationJob, collect: CollectConfig) -> SceneCosts:
    from dynaflip.platform.demonstrations.lerobot_episode import write_episode
    from dynaflip.platform.demonstrations.plan import plan_episodes
    from dynaflip.platform.demonstrations.record import record_episode

    spec = environment(job.environment)
    scene, open_s = _timed(
        lambda: spec.open(job.task, height_px=job.image_px, width_px=job.image_px)
    )
    plan = plan_episodes(collect)[0]

    def record() -> int:
        recording = record_episode(scene, plan, collect)
        with tempfile.TemporaryDirectory() as folder:
            write_episode(Path(folder) / "episode", plan, recording, spec)
        return len(recording.rgb)

    frames, recorded_s = _timed(record)

    def begin() -> None:
        scene.reset(job.starts[0].layout_seed)
        scene.apply(job.starts[0].factors)

    _, reset_s = _timed(begin)
    action = scene.expert_action()
    scene.rgb()
    _, step_s = _timed(lambda: [scene.step(action) for _ in range(_STEPS)])
    _, render_s = _timed(lambda: [scene.rgb() for _ in range(_RENDERS)])
    scene.close()
    return SceneCosts(
        open_s, reset_s, step_s / _STEPS, render_s / _RENDERS, recorded_s / frames, frames
    )


def _measure_policy(job: EvaluationJob, _: None) -> PolicyCosts:
    import numpy as np
    import torch

    from dynaflip.eval.rollout import Observation
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
    shown = encode_demonstrations(frozen, [frames], policy)
    _, encode_s = _timed(lambda: encode_demonstrations(frozen, [frames], policy))
    # Its checks encode a few images more than once: they are part of a fit's cost, not of an image.
    from dynaflip.eval.policies.encoder_policy import check_encoder

    if shown.tokens is None:
        _, check_s = _timed(lambda: check_encoder(frozen, frames.images[:4], None))
        encode_s = max(encode_s - check_s, encode_s / 4)
    weights, fit_s = _fit(policy, shown)
    acting = fitted_policy(policy, weights, frozen, job.task)
    batch = images[: job.environments]
    seen = Observation(batch, np.zeros((len(batch), spec.proprioception_dim), np.float32))
    plan = acting.act(seen)
    _, act_s = _timed(lambda: [acting.act(seen) for _ in range(3)])
    return PolicyCosts(encode_s / _FRAMES, act_s / 3 / len(batch), fit_s, plan.shape[1])


def _fit(policy: PolicySpec, shown: Any) -> tuple[dict[str, Any], float]:
    """A fitted policy, and the seconds that one of all steps takes."""
    from dynaflip.eval.policies.registry import head_settings
    from dynaflip.platform.evaluation.policy_fits import fit_policy

    alone = replace(
        policy, demonstrations=tuple(replace(d, first=None) for d in policy.demonstrations)
    )
    settings = head_settings(policy.head, policy.head_settings)
    if not hasattr(settings, "steps"):
        return _timed(lambda: fit_policy(alone, shown))
    seconds: list[float] = []
    weights: dict[str, Any] = {}
    for steps in (_FIT_STEPS[0], *_FIT_STEPS):  # the first one warms up
        short = replace(alone, head_settings={**policy.head_settings, "steps": steps})
        weights, spent = _timed(partial(fit_policy, short, shown))
        seconds.append(spent)
    step_s = max(seconds[2] - seconds[1], 0.0) / (_FIT_STEPS[1] - _FIT_STEPS[0])
    return weights, step_s * settings.steps


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began
