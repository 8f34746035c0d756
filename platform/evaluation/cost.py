"""``--dry-run`` of rollouts: what would run, what is cached, and how long it takes.

The plan is the evaluation's own: the same jobs, named by the same digests. Seconds follow from unit
costs that were measured on this machine (:mod:`dynaflip.platform.evaluation.cost_units`).
"""

from __future__ import annotations

import heapq
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dynaflip.errors import UserError
from dynaflip.platform.cluster import available_cpus
from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.cost_units import (
    PolicyCosts,
    SceneCosts,
    calibration_file,
    policy_costs,
    policy_kind,
    scene_costs,
)
from dynaflip.platform.evaluation.demonstrations import (
    DemonstrationSet,
    collect_settings,
)
from dynaflip.platform.evaluation.plan import EvaluationJob, plan_rollouts
from dynaflip.platform.evaluation.report.tables import Section

START_S = 10.0  # assumed: Ray, imports, the run, saliency, intervals and the report
POOL_S = 4.0  # assumed: actors that start for a task's demonstrations


@dataclass
class Work:
    """What an evaluation would do; counts of what is not cached."""

    demonstrations: list[tuple[DemonstrationSet, int]] = field(default_factory=list)  # episodes
    fits: list[list[EvaluationJob]] = field(default_factory=list)  # policies that share features
    rollouts: list[EvaluationJob] = field(default_factory=list)
    jobs: list[EvaluationJob] = field(default_factory=list)  # all, cached ones too
    steps: float = 0.0  # of an episode, expected
    from_cache: bool = False  # whether these are of cached episodes


def dry_run(config: RolloutConfig, *, gpu_images_per_s: float) -> list[Section]:
    """Tables of what would run and how long it takes; writes nothing but unit costs.

    Raises:
        UserError: as the evaluation itself would raise, or its encoders are trained.
    """
    if config.adaptation != "frozen":
        raise UserError(f"--dry-run: adaptation {config.adaptation} is not estimated, frozen is")
    with tempfile.TemporaryDirectory() as folder:
        _, tasks, jobs = plan_rollouts(config, Path(folder))
        work = work_of(config, tasks, jobs)
        with_encoder = [job for job in jobs if job.policy.encoder.folder is not None]
        scene = scene_costs(jobs[0], collect_settings(config, jobs[0].task))
        kinds = {policy_kind(job): job for job in with_encoder}
        known = {kind: policy_costs(job) for kind, job in kinds.items()}
        costs = {job.policy.encoder.digest: known[policy_kind(job)] for job in with_encoder}
    return [
        _jobs_section(work),
        _work_section(work, scene, costs),
        _time_section(work, scene, costs, gpu_images_per_s),
    ]


def work_of(
    config: RolloutConfig, tasks: dict[str, DemonstrationSet], jobs: list[EvaluationJob]
) -> Work:
    """What of a plan is not cached.

    Args:
        config: of the evaluation.
        tasks: demonstrations of each task, collected or not.
        jobs: all of it.
    """
    work = Work(jobs=jobs, steps=float(config.horizon_steps or 0))
    for task, shown in tasks.items():
        if not (Path(shown.folder) / "meta" / "dynaflip.json").is_file():
            work.demonstrations.append((shown, collect_settings(config, task).episodes_per_task))
    results = [(job, cache.load_result(job)) for job in jobs]
    missing = {job.digest(): job for job, result in results if result is None}
    work.rollouts = list(missing.values())
    steps = [step for _, result in results if result is not None for step in result.steps]
    if steps:
        work.steps, work.from_cache = sum(steps) / len(steps), True
    groups: dict[tuple[str, ...], dict[str, EvaluationJob]] = {}
    for job in work.rollouts:
        spec = job.policy
        if spec.encoder.folder is not None and not cache.has_policy(spec):
            key = (spec.encoder.digest, *(d.digest for d in spec.demonstrations))
            groups.setdefault(key, {})[spec.digest()] = job
    work.fits = [list(policies.values()) for policies in groups.values()]
    return work


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Seconds until jobs are done that free workers take in their order."""
    free = [0.0] * workers
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def _frames(shown: DemonstrationSet, scene: SceneCosts) -> float:
    """Frames that policies learn from: as recorded, or as the expert's measured episode has."""
    path = Path(shown.folder) / "meta" / "info.json"
    per_episode = scene.demonstration_steps
    if path.is_file():
        info = json.loads(path.read_text())
        per_episode = info["total_frames"] / info["total_episodes"]
    return per_episode * shown.number


def _stages(
    work: Work,
    scene: SceneCosts,
    costs: dict[str, PolicyCosts],
    workers: int,
    gpu_images_per_s: float | None,
) -> tuple[float, float, float]:
    """Seconds of demonstrations, fits and rollouts on so many workers."""
    collected = 0.0
    for _, episodes in work.demonstrations:
        one = scene.recorded_frame_s * scene.demonstration_steps
        collected += POOL_S + makespan([scene.open_s / episodes + one] * episodes, workers)
    fits, rollouts, encoded, seen = [], [], 0.0, 0.0
    for group in work.fits:
        fitted = costs[group[0].policy.encoder.digest]
        images = sum(_frames(d, scene) for d in group[0].policy.demonstrations)
        encoded += images
        encode_s = fitted.encode_s if gpu_images_per_s is None else 0.0
        fits.append(images * encode_s + len(group) * fitted.fit_s)
    opened: set[str] = set()
    for job in work.rollouts:
        cost = costs.get(job.policy.encoder.digest)
        chunk = 1 if cost is None else cost.chunk
        images = 0 if cost is None else math.ceil(work.steps / chunk)
        act_s = 0.0 if cost is None else cost.act_s
        if cost is not None and gpu_images_per_s is not None:
            act_s = max(0.0, cost.act_s - cost.encode_s)
        one = scene.reset_s + work.steps * scene.step_s + images * (scene.render_s + act_s)
        seconds = one * len(job.starts)
        if job.task not in opened:
            opened.add(job.task)
            seconds += scene.open_s * min(job.environments, len(job.starts))
        seen += images * len(job.starts)
        rollouts.append(seconds)
    # Workers beyond the tasks open scenes of their own.
    spare = max(0, workers - len(opened)) if work.rollouts else 0
    most = max((min(j.environments, len(j.starts)) for j in work.rollouts), default=0)
    rollout_s = makespan(rollouts, workers) + (scene.open_s * most if spare else 0.0)
    fit_s = makespan(fits, workers)
    if gpu_images_per_s is not None:
        fit_s = max(fit_s, encoded / gpu_images_per_s)
        rollout_s = max(rollout_s, seen / gpu_images_per_s)
    return collected, fit_s, rollout_s


def estimated_s(work: Work, scene: SceneCosts, costs: dict[str, PolicyCosts], cores: int) -> float:
    """Seconds of the whole evaluation on so many cores."""
    return START_S + sum(_stages(work, scene, costs, cores, None))


def _jobs_section(work: Work) -> Section:
    section = Section(
        "Evaluation jobs (task x condition x seed)",
        [],
        ("encoder", "demonstrations", "jobs", "cached", "episodes to run"),
    )
    missing = {job.digest() for job in work.rollouts}
    rows: dict[tuple[str, int], list[EvaluationJob]] = {}
    for job in work.jobs:
        rows.setdefault((job.under_test, job.policy.demonstrations[0].shown), []).append(job)
    for (name, number), jobs in rows.items():
        left = [job for job in jobs if job.digest() in missing]
        episodes = sum(len(job.starts) for job in left)
        cells = [name, str(number), str(len(jobs)), str(len(jobs) - len(left)), str(episodes)]
        section.rows.append(cells)
    return section


def _work_section(work: Work, scene: SceneCosts, costs: dict[str, PolicyCosts]) -> Section:
    """What is left to do, with its unit cost."""
    episodes = sum(number for _, number in work.demonstrations)
    images = sum(_frames(d, scene) for group in work.fits for d in group[0].policy.demonstrations)
    policies = sum(map(len, work.fits))
    rolled = sum(len(job.starts) for job in work.rollouts)
    used = list(costs.values())

    def span(values: Sequence[float], digits: int = 1) -> str:
        low, high = (f"{1000 * value:.{digits}f}" for value in (min(values), max(values)))
        return f"{low} ms" if low == high else f"{low} to {high} ms"

    section = Section("Work that is not cached", [], ("", "number", "measured, of one core"))
    frame = f"{1000 * scene.recorded_frame_s:.1f} ms a frame, {scene.demonstration_steps:.0f} each"
    section.rows.append(["demonstrations to render, episodes", str(episodes), frame])
    if used:
        encode = f"{span([c.encode_s for c in used])} an image"
        fit = f"{span([c.fit_s for c in used], 0)} a policy"
        section.rows.append(["images to encode for fits", f"{images:.0f}", encode])
        section.rows.append(["policies to fit", str(policies), fit])
    kind = "of cached episodes" if work.from_cache else "the horizon: at most"
    step = f"{1000 * scene.step_s:.2f} ms a step, {work.steps:.0f} each ({kind})"
    section.rows.append(["episodes to roll out", str(rolled), step])
    if used:
        image = f"{1000 * scene.render_s:.1f} ms to render, {span([c.act_s for c in used])} to act"
        section.rows.append(["… an image every so many steps", str(used[0].chunk), image])
    return section


def _time_section(
    work: Work, scene: SceneCosts, costs: dict[str, PolicyCosts], gpu_images_per_s: float
) -> Section:
    section = Section(
        f"Time, minutes (unit costs: {calibration_file()})",
        [],
        ("", "demonstrations", "fits", "rollouts", "together", "assumes"),
    )
    here = available_cpus()
    gpu = f"16 cores as fast as this one's; {gpu_images_per_s:g} images/s on the GPU, not measured"
    rows: list[tuple[str, int, float | None, str]] = [("2 cores", 2, None, "cores like this one's")]
    if here not in (2, 16):
        rows.append((f"this machine, {here} cores", here, None, "two cores' speed for each"))
    rows.append(("16 cores", 16, None, "16 cores as fast as this one's, and no slower together"))
    rows.append(("16 cores and a GPU (assumed)", 16, gpu_images_per_s, gpu))
    for name, cores, rate, assumes in rows:
        stages = _stages(work, scene, costs, cores, rate)
        cells = [f"{seconds / 60:.1f}" for seconds in (*stages, START_S + sum(stages))]
        section.rows.append([name, *cells, assumes])
    return section
