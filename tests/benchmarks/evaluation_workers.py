"""What an evaluation's worker spends its time on, and how busy encoder actors leave it.

    python tests/benchmarks/evaluation_workers.py [--skip-actors]

In this process: a worker's job of ten environments (Meta-World, 112 px, ImageNet features) and its
CPU time in rendering, physics, encoding and the rest; a frame beside bare ``mujoco.Renderer``; the
job beside the plain loop that one would write first. Then, on a Ray cluster of this machine that is
said to have a GPU, the same jobs with an encoder actor that sleeps 2 ms for a pass of 64 images:
the share of the workers' time in which they do not wait for it. Under three minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")

import numpy as np
import torch
from expectation import show
from test_rollout_speed import plain_loop

from dynaflip.eval.envs.registry import environment
from dynaflip.eval.perturbations import layout_seed, sample
from dynaflip.eval.policies.behaviour_cloning import BehaviourCloning
from dynaflip.eval.policies.config import BehaviourCloningConfig
from dynaflip.eval.rollout import EpisodeStart
from dynaflip.platform.evaluation.demonstration_set import DemonstrationSet
from dynaflip.platform.evaluation.encoder_actor import EncoderActor
from dynaflip.platform.evaluation.encoder_config import CPU, EncoderActorConfig
from dynaflip.platform.evaluation.encoders_under_test import Encoder
from dynaflip.platform.evaluation.job_result import JobResult
from dynaflip.platform.evaluation.plan import Condition, EvaluationJob, PolicySpec
from dynaflip.platform.evaluation.worker import Worker

TASK, PX, DIM = "drawer-open-v3", 112, 1280
PASS_S = 0.002
SPEC = environment("metaworld")


def new_job(encoder: Encoder, chunk: int, steps: int, episodes: int, first: int) -> EvaluationJob:
    """Unsolved episodes of a fixed length, half of them perturbed by light and tint."""
    head = {"chunk": chunk}
    shown = (DemonstrationSet(TASK, "", "none", 1),)
    policy = PolicySpec(encoder, shown, "behaviour_cloning", head, True, 0, "frozen", {})
    starts = []
    for i in range(first, first + episodes):
        factors = sample("dev", i, ["light_tint"], 3) if i % 2 else {}
        starts.append(EpisodeStart(layout_seed("dev", i), factors))
    condition = Condition("light_tint", 3)
    return EvaluationJob(
        "trained", policy, TASK, condition, tuple(starts), steps, steps, PX, 10, first == 0
    )


def new_weights(chunk: int) -> dict[str, torch.Tensor]:
    """Of a head that has learnt nothing: it solves no task."""
    torch.manual_seed(0)
    return BehaviourCloning(DIM + 4, 4, BehaviourCloningConfig(chunk=chunk)).state_dict()


class Meter:
    """CPU seconds of this process by what it did."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = 0.0

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Count an object's method as a part, without what is counted inside it."""
        real: Callable = getattr(owner, method)

        def counted(*arguments: Any, **named: Any) -> Any:
            outer, self._inside = self._inside, 0.0
            began = time.process_time()
            try:
                return real(*arguments, **named)
            finally:
                spent = time.process_time() - began
                self.seconds[part] = self.seconds.get(part, 0.0) + spent - self._inside
                self._inside = outer + spent

        setattr(owner, method, counted)


def measure_worker(encoder: Encoder, chunk: int, steps: int) -> float:
    """Print a worker's CPU time by part; wall seconds a control step."""
    worker, meter = Worker(), Meter()
    weights = new_weights(chunk)
    worker.roll_out(new_job(encoder, chunk, 3, 10, 100), weights)  # loads scenes and encoder
    for scene in worker._scenes:
        meter.watch(scene, "render", "rendering")
        meter.watch(scene, "step", "physics")
        meter.watch(scene, "reset", "physics")
        meter.watch(scene, "apply", "perturbing")
        meter.watch(scene, "restore", "perturbing")
    network = worker._encoders.here(encoder)
    meter.watch(network, "forward", "encoding")
    with suppress(ImportError):
        import dynaflip.eval.labelled_frames as frames

        meter.watch(frames, "as_recorded", "as a video stores it")
    import dynaflip.platform.evaluation.worker as module

    meter.watch(module, "_animation", "animation")
    began, wall = time.process_time(), time.perf_counter()
    result = worker.roll_out(new_job(encoder, chunk, steps, 20, 0), weights)
    whole, wall = time.process_time() - began, time.perf_counter() - wall
    done = sum(result.steps)
    print(f"\na worker, a new image every {chunk} steps: {done} steps, {whole:.1f} s of CPU")
    parts = dict(sorted(meter.seconds.items(), key=lambda item: -item[1]))
    for name, seconds in parts.items():
        print(f"  {name}: {100 * seconds / whole:.1f} %, {1000 * seconds / done:.2f} ms a step")
    rest = whole - sum(parts.values())
    print(f"  the rest: {100 * rest / whole:.1f} %")
    useful = sum(parts.get(name, 0) for name in ("rendering", "physics", "encoding"))
    show("share in rendering, physics and encoding", useful / whole, at_least=0.85)
    for scene in worker._scenes:
        scene.close()
    return wall / done


def compare_frames(frames: int = 60) -> None:
    """Print milliseconds of a frame beside ``mujoco.Renderer``, in turn in this process."""
    import mujoco

    from dynaflip.eval.envs.metaworld import make_environment

    scene: Any = SPEC.open(TASK, height_px=PX, width_px=PX)
    scene.reset(0)
    bare = mujoco.Renderer(scene.model, PX, PX)
    stock_env = make_environment(TASK)
    stock_env.reset()
    stock = mujoco.Renderer(stock_env.model, PX, PX)

    def by(renderer: Any, data: Any) -> Callable[[], Any]:
        def render() -> Any:
            renderer.update_scene(data, camera="corner4")
            return renderer.render()

        return render

    ways = {
        "worker": scene.rgb,
        "mujoco.Renderer, the worker's settings": by(bare, scene.data),
        "mujoco.Renderer, Meta-World's settings": by(stock, stock_env.data),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(frames):
        for name, way in ways.items():
            began = time.process_time()
            way()
            spent[name].append(time.process_time() - began)
    print("\na frame, CPU time:")
    middle = {name: 1000 * float(np.median(values)) for name, values in spent.items()}
    for name, milliseconds in middle.items():
        print(f"  {name}: {milliseconds:.2f} ms")
    ours, alike = middle["worker"], middle["mujoco.Renderer, the worker's settings"]
    show("a worker's frame / bare mujoco.Renderer's", ours / alike, at_most=1.15)
    for renderer in (bare, stock):
        renderer.close()
    scene.close()


class Asleep:
    """Takes 2 ms for a pass of 64 images, and no CPU."""

    batch = 64

    def see(self, images: np.ndarray, scales: int | None) -> list[np.ndarray]:
        time.sleep(PASS_S * -(-len(images) // self.batch))
        return [images[:, ::4, ::4].reshape(len(images), -1)[:, :DIM].astype(np.float32)]


class FakeGpu(EncoderActor):
    """An encoder actor whose encoder is asleep."""

    def _passes(self, *arguments: Any) -> Any:
        return Asleep()


def measure_actors(encoder: Encoder, chunk: int, workers: int, steps: int) -> None:
    """Print how busy workers are beside an encoder actor."""
    import ray

    from dynaflip.platform.evaluation.encoder_service import EncoderService

    config = EncoderActorConfig(device=CPU, gpus_per_actor=1)
    remote: Any = ray.remote(num_cpus=1, runtime_env={"env_vars": SPEC.worker_environment()})(
        Worker
    )
    weights = new_weights(chunk)
    with EncoderService(config, actor_class=FakeGpu) as service:
        hired = [remote.remote() for _ in range(workers)]

        def run(steps: int, jobs: int, first: int) -> list[JobResult]:
            asked = [
                worker.roll_out.remote(
                    new_job(encoder, chunk, steps, 20, first + 20 * (workers * i + n)),
                    weights,
                    service.for_a_job(),
                )
                for i in range(jobs)
                for n, worker in enumerate(hired)
            ]
            return ray.get(asked)

        run(3, 1, 1000)
        actor = service.for_a_job().actors[0]  # type: ignore[union-attr]
        ray.get(actor.usage.remote())
        results = run(steps, 2, 1)
        used = ray.get(actor.usage.remote())
        for worker in hired:
            ray.kill(worker)
    seconds = sum(result.seconds for result in results)
    waited = sum(result.waited_s for result in results)
    print(
        f"\n{workers} worker(s) and a fake GPU, a new image every {chunk} steps: "
        f"{sum(sum(r.steps) for r in results) / seconds:.0f} steps/s each, encoder "
        f"{100 * used.busy:.0f} % busy, {used.images / used.passes:.1f} images a pass"
    )
    show("share of their time in which workers are busy", 1 - waited / seconds, at_least=0.9)


def main() -> None:
    """All measurements in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-actors", action="store_true", help="only this process")
    options = parser.parse_args()
    from dynaflip.encoders.checkpoint import save_folder
    from dynaflip.encoders.config import ImageConfig, ModelConfig
    from dynaflip.encoders.model import DynaFLIP

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DYNAFLIP_HOME"] = folder
        path = Path(folder) / "encoder"
        save_folder(path, DynaFLIP(ModelConfig(image=ImageConfig(image_px=PX))), {})
        encoder = Encoder("imagenet", str(path), "imagenet")
        compare_frames()
        step_s = measure_worker(encoder, 1, 40)
        measure_worker(encoder, 16, 96)
        rate = plain_loop(PX, 30)
        print(f"\nplain loop: {rate:.1f} steps/s; a worker: {1 / step_s:.1f}")
        show("a worker's steps/s / the plain loop's", 1 / (step_s * rate), at_least=2.5)
        if not options.skip_actors:
            run_actors(encoder)


def run_actors(encoder: Encoder) -> None:
    """The measurements with Ray."""
    from dynaflip.platform.cluster import available_cpus, prepare_environment

    prepare_environment()
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    root = str(Path(__file__).resolve().parents[2])
    ray.init(
        "local",
        num_cpus=available_cpus(),
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    encoder = replace(encoder, name="asleep")
    for chunk, steps in ((1, 40), (16, 96)):
        measure_actors(encoder, chunk, min(2, available_cpus()), steps)
    ray.shutdown()


if __name__ == "__main__":
    main()
