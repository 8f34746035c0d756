"""Environment steps a second of a frozen encoder's evaluation, against the plain loop.

The plain loop is what one would write first: the environment's own rendering (4096 px shadow
map, 4× multisampling), one environment, one image at a time through the encoder, and all the
threads that torch likes to have.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import torch
from expectation import show

from dynaflip.eval.perturbations import layout_seed
from dynaflip.eval.policies.behaviour_cloning import BehaviourCloning
from dynaflip.eval.policies.config import BehaviourCloningConfig
from dynaflip.eval.policies.encoder_policy import EncoderPolicy
from dynaflip.eval.rollout import EpisodeStart, Observation

pytestmark = [pytest.mark.bench, pytest.mark.sim, pytest.mark.ray]

TASK = "drawer-open-v3"
STEPS = 100


def new_policy(px: int) -> EncoderPolicy:
    """ImageNet features and a head that has learnt nothing: it never solves the task."""
    from dynaflip.encoders.config import ImageConfig
    from dynaflip.encoders.image import build_image_encoder

    encoder = build_image_encoder(ImageConfig(image_px=px)).eval()
    head = BehaviourCloning(encoder.dim + 4, 4, BehaviourCloningConfig()).eval()
    return EncoderPolicy(encoder, head, use_proprioception=True)


def plain_loop(px: int, steps: int) -> float:
    """Steps a second."""
    import mujoco

    from dynaflip.eval.envs.metaworld import make_environment

    environment = make_environment(TASK)
    environment.seed(layout_seed("dev", 0))
    environment.reset()
    renderer = mujoco.Renderer(environment.model, px, px)
    policy = new_policy(px)

    def step() -> None:
        renderer.update_scene(environment.data, camera="corner4")
        proprioception = environment._get_curr_obs_combined_no_goal()[:4].astype(np.float32)
        plan = policy.act(Observation(renderer.render()[None], proprioception[None]))
        environment.step(plan[0, 0])

    for _ in range(3):
        step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    rate = steps / (time.perf_counter() - began)
    renderer.close()
    return rate


def harness(px: int, starts: int) -> float:
    """Steps a second of all workers together, once their scenes are loaded."""
    import ray
    from ray import cloudpickle

    from dynaflip.eval.envs.metaworld_tasks import ENVIRONMENT

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test

    @ray.remote(num_cpus=1, runtime_env={"env_vars": ENVIRONMENT.worker_environment()})
    class Side:
        def __init__(self) -> None:
            from dynaflip.eval.envs.metaworld import Scene

            torch.set_num_threads(1)
            self.policy = new_policy(px)
            self.scenes = [Scene(TASK, height_px=px, width_px=px) for _ in range(10)]

        def run(self, first: int, steps: int) -> int:
            from dynaflip.eval.rollout import roll_out

            places = [EpisodeStart(layout_seed("dev", first + i), {}) for i in range(starts)]
            results = roll_out(
                self.scenes, places, self.policy, horizon_steps=steps, steps_after_success=steps
            )
            return sum(result.steps for result in results)

    sides = [Side.remote() for _ in range(2)]
    ray.get([side.run.remote(0, 3) for side in sides])
    began = time.perf_counter()
    done = sum(ray.get([side.run.remote(100 * i, STEPS) for i, side in enumerate(sides)]))
    rate = done / (time.perf_counter() - began)
    for side in sides:
        ray.kill(side)
    return rate


def test_rollouts_are_many_times_faster_than_the_plain_loop(ray_cluster: None) -> None:
    for px, steps, starts in ((112, 40, 20), (224, 25, 10)):
        plain, ours = plain_loop(px, steps), harness(px, starts)
        print(
            f"\n{px} px: plain loop {plain:.1f} steps/s, harness on 2 workers {ours:.1f} steps/s: "
            f"{ours / plain:.1f} times"
        )
        show("steps/s, harness / plain loop", ours / plain, at_least=5)
