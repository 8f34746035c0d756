"""OGBench's named tasks: expert, random actions, cloning on privileged state and on images.

    python tests/benchmarks/ogbench_tasks.py
    python tests/benchmarks/ogbench_tasks.py --tasks drawer-open --demonstrations 25 --episodes 20

For every task: success of the scripted expert, of random actions, of behaviour cloning on the
simulator's own state, and of behaviour cloning on frozen features of the encoder's initialisation
(EfficientNet-Lite0 with ImageNet weights) with proprioception, all in layouts that no demonstration
has shown. A task is fit to compare encoders with where these are at least 0.9, at most 0.1, at
least 0.7, and between 0.1 and 0.8. Also the time of a frame beside bare ``mujoco.Renderer`` with
OGBench's own settings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dynaflip.eval.envs.registry import environment
from dynaflip.eval.labelled_frames import as_recorded
from dynaflip.eval.perturbations import layout_seed
from dynaflip.eval.policies.base import Demonstrations
from dynaflip.eval.policies.behaviour_cloning import BehaviourCloning, fit_behaviour_cloning
from dynaflip.eval.policies.config import BehaviourCloningConfig
from dynaflip.eval.policies.encoder_policy import features_of

PX = 112
SPEC = environment("ogbench")
Act = Callable[[Any, Any], np.ndarray]  # (scene, privileged observation) → (T, A)


@dataclass
class Shown:
    """Frames of solved demonstrations."""

    features: np.ndarray
    states: np.ndarray
    proprioception: np.ndarray
    actions: np.ndarray
    episode: np.ndarray


def demonstrate(scene: Any, encoder: Any, number: int, noise: float) -> Shown:
    """Demonstrations as the rollouts' are: noise on the expert's motion, 10 steps past success."""
    rows: list[tuple[Any, ...]] = []
    seed = done = 0
    while done < number:
        rng = np.random.default_rng(seed)
        observation, solved_at, episode = scene.reset(layout_seed("pretrain", seed)), None, []
        seed += 1
        for step in range(SPEC.steps_for("collect")):
            action = scene.expert_action()
            action[:3] = np.clip(action[:3] + noise * rng.standard_normal(3), -1, 1)
            image = as_recorded(scene.rgb()) if encoder is not None else np.zeros((1, 1, 3))
            episode.append((image, observation, scene.proprioception(), action, done))
            after = scene.step(action)
            observation = after.observation
            if after.success and solved_at is None:
                solved_at = step
            if solved_at is not None and step >= solved_at + 10:
                break
        if solved_at is not None:
            rows += episode
            done += 1
    images, states, felt, actions, episodes = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    features = np.zeros((len(rows), 0), np.float32)
    if encoder is not None:
        features = np.concatenate([features_of(encoder, part) for part in batches(images)])
    return Shown(features, states.astype(np.float32), felt, actions.astype(np.float32), episodes)


def batches(images: np.ndarray, size: int = 64) -> list[np.ndarray]:
    """Consecutive parts of at most so many images."""
    return [images[begin : begin + size] for begin in range(0, len(images), size)]


def success(scene: Any, episodes: int, act: Act, horizon: int) -> float:
    """Share of episodes, in layouts of dev, that are ever solved."""
    solved = 0
    for index in range(episodes):
        observation = scene.reset(layout_seed("dev", index))
        step, over = 0, False
        while step < horizon and not over:
            for action in act(scene, observation):
                after = scene.step(action)
                observation, step, over = after.observation, step + 1, after.success
                if over or step >= horizon:
                    break
        solved += over
    return solved / episodes


def cloned(shown: Shown, features: np.ndarray, seed: int, chunk: int) -> BehaviourCloning:
    """Behaviour cloning on some features, with proprioception."""
    frames = Demonstrations(features, shown.proprioception, shown.actions, shown.episode)
    config = BehaviourCloningConfig(input_norm="std_floor", chunk=chunk)
    return fit_behaviour_cloning(frames, config, use_proprioception=True, seed=seed)


def measure(task: str, encoder: Any, options: argparse.Namespace) -> list[float]:
    """Expert, random, cloned on state, cloned on images (the latter two over seeds)."""
    scene = SPEC.open(task, height_px=PX, width_px=PX)
    rng = np.random.default_rng(0)
    horizon = SPEC.steps_for("evaluate")
    expert = success(scene, options.episodes, lambda s, _: s.expert_action()[None], horizon)
    random = success(scene, options.episodes, lambda *_: rng.uniform(-1, 1, (1, 5)), horizon)
    shown = demonstrate(scene, encoder, options.demonstrations, options.noise)
    scores: dict[str, list[float]] = {"state": [], "images": []}
    for seed in range(options.seeds):
        by_state = cloned(shown, shown.states, seed, options.chunk)
        scores["state"].append(
            success(scene, options.episodes, lambda s, o, p=by_state: ask(p, s, o), horizon)
        )
        if encoder is not None:
            by_image = cloned(shown, shown.features, seed, options.chunk)

            def see(scene: Any, _: Any, policy: BehaviourCloning = by_image) -> np.ndarray:
                features = features_of(encoder, as_recorded(scene.rgb())[None])[0]
                return ask(policy, scene, features)

            scores["images"].append(success(scene, options.episodes, see, horizon))
    scene.close()
    return [expert, random, *(float(np.mean(s)) if s else np.nan for s in scores.values())]


def ask(policy: BehaviourCloning, scene: Any, features: np.ndarray) -> np.ndarray:
    """The next actions (T, A) for features and the scene's proprioception."""
    inputs = np.concatenate([features, scene.proprioception()]).astype(np.float32)
    return policy.plan(torch.from_numpy(inputs)[None])[0].numpy()


def frame_ms() -> tuple[float, float]:
    """CPU time of a frame here, and of ``mujoco.Renderer`` with OGBench's own settings."""
    import mujoco

    scene: Any = SPEC.open("drawer-open", height_px=PX, width_px=PX)
    scene.reset(0)
    stock_model = scene.env.model
    stock_model.vis.global_.offwidth = stock_model.vis.global_.offheight = PX
    stock = mujoco.Renderer(stock_model, PX, PX)

    def stock_frame() -> None:
        stock.update_scene(scene.data, camera=SPEC.camera)
        stock.render()

    times: dict[str, list[float]] = {"here": [], "stock": []}
    for _ in range(10):
        for name, render in (("here", scene.rgb), ("stock", stock_frame)):
            began = time.process_time()
            render()
            times[name].append(1000 * (time.process_time() - began))
    stock.close()
    scene.close()
    return float(np.median(times["here"])), float(np.median(times["stock"]))


def initialisation() -> Any:
    """The encoder as pretraining begins it."""
    from dynaflip.encoders.config import ImageConfig
    from dynaflip.encoders.image import build_image_encoder

    return build_image_encoder(ImageConfig(image_px=PX)).eval()


def main() -> None:
    """Print a line per task and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default=",".join(SPEC.tasks_of(SPEC.tasks_for("evaluate"))))
    parser.add_argument("--demonstrations", type=int, default=25)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--state_only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    here, stock = frame_ms()
    print(f"a frame of {PX} px: {here:.1f} ms CPU, OGBench's own settings {stock:.1f} ms")
    encoder = None if options.state_only else initialisation()
    fit = []
    print("task            expert  random  cloned on state  on the initialisation")
    for task in options.tasks.split(","):
        expert, random, state, images = measure(task, encoder, options)
        print(f"{task:<15} {expert:6.2f} {random:7.2f} {state:16.2f} {images:22.2f}", flush=True)
        if expert >= 0.9 and random <= 0.1 and state >= 0.7 and 0.1 <= images <= 0.8:
            fit.append(task)
    print(f"fit to compare encoders with: {', '.join(fit) or 'none'}")
    print(f"at least three: {'yes' if len(fit) >= 3 else 'no'}")


if __name__ == "__main__":
    main()
