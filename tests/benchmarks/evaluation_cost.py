"""Compare what ``--dry-run`` estimates of a small evaluation by rollouts with what it then takes.

    python tests/benchmarks/evaluation_cost.py
    python tests/benchmarks/evaluation_cost.py --on_ray

Two encoders of EfficientNet-Lite0 with different random weights, 1 seed, unperturbed and under one
factor. In a home of its own, so that unit costs are measured anew and nothing is cached, the dry
run's own functions estimate seconds; then the same settings run for real. By default all jobs run
in this process one after the other, and CPU time is compared with the estimate for one core: a busy
machine gives about the same. ``--on_ray`` runs the suite as users do and compares wall time on this
machine's cores, which needs the machine alone. The parts are the estimate's:

- demonstrations: the expert's episodes, rendered, stepped and written.
- fits: images of the demonstrations encoded, and policies fitted.
- rollouts: scenes opened, stepped and rendered, and policies asked; on a CPU an image is encoded
  while acting, so encoding is in both of the last two.
- start: all else. The estimate assumes it, with Ray, imports, saliency and the report.

Rollouts are estimated for the steps that episodes really took, which is what unit costs can be held
to, and to the horizon, as where nothing is cached (at most). The verdict is of the former.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

PARTS = ("demonstrations", "fits", "rollouts", "start")
WITHIN = 1.5  # factor of the verdict


def encoder_folder(path: Path) -> Path:
    """An encoder of the default architecture with random weights."""
    import torch

    from dynaflip.encoders.checkpoint import save_folder
    from dynaflip.encoders.config import ImageConfig, ModelConfig
    from dynaflip.encoders.model import DynaFLIP

    torch.manual_seed(0)
    model = DynaFLIP(ModelConfig(image=ImageConfig(pretrained=False)))
    return save_folder(path, model, {"config": {"train": {"seed": 0}}})


def settings(encoder: Path, options: argparse.Namespace) -> Any:
    """Settings of the evaluation."""
    from dynaflip.eval.policies.config import BehaviourCloningConfig
    from dynaflip.platform.evaluation.config import RolloutConfig

    return RolloutConfig(
        encoder=str(encoder),
        baselines=("random",),
        tasks=tuple(options.tasks.split(",")),
        seeds=1,
        factors=("light_tint",),
        all_at_once=False,
        episodes=options.episodes,
        demonstrations=options.demonstrations,
        environments=options.episodes,
        behaviour_cloning=BehaviourCloningConfig(steps=options.fit_steps),
        keep_policies=False,
    )


def estimated(config: Any, folder: Path, cores: int) -> Callable[[float | None], dict[str, float]]:
    """Seconds by part, as the dry run estimates them before anything has run.

    Returns:
        steps of an episode (None: as the dry run counts them) → seconds by part.
    """
    from dynaflip.platform.evaluation import cost
    from dynaflip.platform.evaluation.plan import plan_rollouts

    _, tasks, jobs = plan_rollouts(config, folder)
    work = cost.work_of(config, tasks, jobs)
    costs = cost.costs_of(config, jobs)
    print(costs.scene)
    print(*costs.policies.values(), sep="\n")

    def parts(steps: float | None) -> dict[str, float]:
        if steps is not None:
            work.steps = steps
        stages = cost.stages_s(work, costs, cores, None)
        return dict(zip(PARTS, (*stages, cost.START_S), strict=True))

    return parts


class _Called:
    """An actor's method that answers at once, where Ray's gives a reference."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.remote = method


class _Actor:
    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def __getattr__(self, name: str) -> _Called:
        return _Called(getattr(self._worker, name))


class HerePool:
    """Stands for ``ActorPool`` with one actor, which is an object of this process."""

    def __init__(self, actor_class: type, *arguments: Any, **_: Any) -> None:
        self._make = lambda: _Actor(actor_class(*arguments))
        self._actor: _Actor | None = None

    def __enter__(self) -> HerePool:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def state(self) -> Any:
        """Nobody waits for anything."""
        from dynaflip.platform.actor_pool import PoolState

        return PoolState(1, 0, 0, 0)

    def run(
        self, next_job: Callable[[int], Any], submit: Callable[[Any, Any], Any], **_: Any
    ) -> Iterator[tuple[Any, Any]]:
        """Run jobs one after the other."""
        self._actor = self._actor or self._make()
        while (job := next_job(0)) is not None:
            yield job, submit(self._actor, job)


def measured(config: Any, clock: Callable[[], float]) -> tuple[dict[str, float], float]:
    """Seconds by part of the real evaluation, and the steps of its mean episode."""
    from dynaflip.platform.evaluation import plan, schedule
    from dynaflip.platform.evaluation.suites.rollouts import Rollouts

    seconds = dict.fromkeys(PARTS, 0.0)

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            began = clock()
            try:
                return function(*arguments, **named)
            finally:
                seconds[part] += clock() - began
                print(f"{part}: {seconds[part]:.1f} s", flush=True)

        return run

    began = clock()
    with contextlib.ExitStack() as patches:
        for module, name, part in (
            (plan, "collect_demonstrations", "demonstrations"),
            (schedule, "fit_missing", "fits"),
            (schedule, "_roll_out_missing", "rollouts"),
        ):
            whole = clocked(part, getattr(module, name))
            patches.enter_context(mock.patch.object(module, name, whole))
        if clock is time.process_time:
            from dynaflip.platform import actor_pool

            patches.enter_context(mock.patch.object(actor_pool, "ActorPool", HerePool))
            patches.enter_context(mock.patch.object(schedule, "ActorPool", HerePool))
        outcome = Rollouts().run(config)
    seconds["start"] = clock() - began - sum(seconds.values())
    return seconds, float(outcome.rows()["steps"].mean())


def show(title: str, estimate: dict[str, float], actual: dict[str, float]) -> float:
    """Print estimated and actual seconds by part; estimated by actual of all together."""
    print(f"{title}\n  {'':16}{'estimated':>10}{'actual':>10}{'ratio':>8}")
    both = [(part, estimate[part], actual[part]) for part in PARTS]
    both.append(("together", sum(estimate.values()), sum(actual.values())))
    for part, guess, real in both:
        print(f"  {part:16}{guess:9.1f}s{real:9.1f}s{guess / real:8.2f}")
    return sum(estimate.values()) / sum(actual.values())


def main() -> None:
    """Estimate, run, and print both with the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", default="reach,drawer-open", help="separated by commas")
    parser.add_argument("--episodes", type=int, default=3, help="of a job")
    parser.add_argument("--demonstrations", type=int, default=3, help="of a task")
    parser.add_argument("--fit_steps", type=int, default=500, help="of a policy")
    parser.add_argument("--on_ray", action="store_true", help="as users run it, by wall time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DYNAFLIP_HOME"] = str(Path(folder) / "home")
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        from dynaflip.eval.envs.registry import environment
        from dynaflip.platform.cluster import available_cpus, prepare_environment

        prepare_environment()
        os.environ.update(environment("metaworld").worker_environment())
        from dynaflip.platform.evaluation import cost

        if not options.on_ray:
            cost.POOL_S = 0.0  # no actors start
        config = settings(encoder_folder(Path(folder) / "encoder"), options)
        cores = available_cpus() if options.on_ray else 1
        parts = estimated(config, Path(folder) / "built", cores)
        horizon = parts(None)
        clock = time.perf_counter if options.on_ray else time.process_time
        actual, steps = measured(config, clock)
        what = f"wall time on {cores} cores" if options.on_ray else "CPU time of one core"
        print(f"\n{what}, load {os.getloadavg()[0]:.1f}; {options}")
        show(f"to the horizon, {config.horizon_steps} steps (at most)", horizon, actual)
        ratio = show(f"for the {steps:.0f} steps that episodes took", parts(steps), actual)
        verdict = "yes" if 1 / WITHIN <= ratio <= WITHIN else "no"
        print(f"the estimate is within a factor of {WITHIN}: {verdict} ({ratio:.2f})")


if __name__ == "__main__":
    main()
