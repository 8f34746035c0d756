"""``--dry-run`` of policies: what would run, what is cached, and how long it takes.

The plan is the evaluation's own: the same jobs, named by the same digests. Seconds follow from unit
costs that were measured on this machine (:mod:`dynaflip.platform.evaluation.cost_units`). Of the
suite ``rollouts``, and of ``imitation``, which shows policies the expert's moments instead.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dynaflip.eval.envs.registry import environment
from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.cost_table import START_S, makespan, span, time_section
from dynaflip.platform.evaluation.cost_units import (
    PolicyCosts,
    SceneCosts,
    calibration_file,
    policy_costs,
    policy_kind,
    scene_costs,
    scene_to_measure,
)
from dynaflip.platform.evaluation.demonstration_set import DemonstrationSet
from dynaflip.platform.evaluation.demonstrations import collect_settings
from dynaflip.platform.evaluation.plan import EvaluationJob, plan_rollouts
from dynaflip.platform.evaluation.report.tables import Section

POOL_S = 4.0  # assumed: actors that start for a task's demonstrations
# Assumed of a GPU: forward and backward through an image that trains the encoder.
TRAINED_IMAGE = 3.0


@dataclass
class Work:
    """Work of an evaluation; counts of what is not cached."""

    demonstrations: list[tuple[DemonstrationSet, int]] = field(default_factory=list)  # episodes
    fits: list[list[EvaluationJob]] = field(default_factory=list)  # policies that share features
    rollouts: list[EvaluationJob] = field(default_factory=list)
    jobs: list[EvaluationJob] = field(default_factory=list)  # all, cached ones too
    steps: float = 0.0  # of an episode, expected
    from_cache: bool = False  # whether these are of cached episodes
    imitation: bool = False  # policies are shown the expert's moments, and not rolled out


@dataclass(frozen=True)
class Costs:
    """Unit costs of an evaluation of policies."""

    scene: SceneCosts
    policies: dict[str, PolicyCosts]  # by the encoder's digest


def dry_run(
    config: RolloutConfig, *, gpu_images_per_s: float, imitation: bool = False
) -> list[Section]:
    """Tables of what would run and how long it takes; writes nothing but unit costs.

    Args:
        config: of the evaluation.
        gpu_images_per_s: assumed throughput of a GPU.
        imitation: policies are shown the expert's moments, and are not rolled out.

    Raises:
        UserError: as the evaluation itself would raise.
    """
    with tempfile.TemporaryDirectory() as folder:
        _, tasks, jobs = plan_rollouts(config, Path(folder))
        work = work_of(config, tasks, jobs, imitation=imitation)
        costs = costs_of(config, jobs)
    last = "imitation" if imitation else "rollouts"
    return [
        _jobs_section(work),
        _work_section(work, costs),
        time_section(
            ("demonstrations", "fits", last),
            lambda cores, rate: stages_s(work, costs, cores, rate),
            gpu_images_per_s,
            str(calibration_file()),
        ),
    ]


def costs_of(config: RolloutConfig, jobs: list[EvaluationJob]) -> Costs:
    """Unit costs of an evaluation's jobs, from the file or measured now."""
    collect = None if config.source else collect_settings(config, jobs[0].task)
    with_encoder = [job for job in jobs if job.policy.encoder.folder is not None]
    kinds = {policy_kind(job): job for job in with_encoder}
    scene = scene_costs(scene_to_measure(jobs, collect))
    known = {kind: policy_costs(job) for kind, job in kinds.items()}
    return Costs(
        scene, {job.policy.encoder.digest: known[policy_kind(job)] for job in with_encoder}
    )


def work_of(
    config: RolloutConfig,
    tasks: dict[str, DemonstrationSet],
    jobs: list[EvaluationJob],
    *,
    imitation: bool = False,
) -> Work:
    """The part of a plan that is not cached.

    Args:
        config: of the evaluation.
        tasks: demonstrations of each task, collected or not.
        jobs: all of it.
        imitation: whether policies are shown the expert's moments, which nothing caches.
    """
    work = Work(jobs=jobs, steps=float(config.horizon_steps or 0), imitation=imitation)
    for task, shown in tasks.items():
        if shown.own is None and not (Path(shown.folder) / "meta" / "dynaflip.json").is_file():
            work.demonstrations.append((shown, collect_settings(config, task).episodes_per_task))
    results = [(job, None if imitation else cache.load_result(job)) for job in jobs]
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


def stages_s(
    work: Work, costs: Costs, workers: int, gpu_images_per_s: float | None
) -> tuple[float, float, float]:
    """Seconds of demonstrations, fits, and rollouts or imitation, on so many workers."""
    last = _imitation_s if work.imitation else _rollouts_s
    return (
        _demonstrations_s(work, costs.scene, workers),
        _fits_s(work, costs, workers, gpu_images_per_s),
        last(work, costs, workers, gpu_images_per_s),
    )


def _demonstrations_s(work: Work, scene: SceneCosts, workers: int) -> float:
    seconds = 0.0
    for _, episodes in work.demonstrations:
        one = scene.recorded_frame_s * scene.demonstration_steps
        seconds += POOL_S + makespan([scene.open_s / episodes + one] * episodes, workers)
    return seconds


def _frames(shown: DemonstrationSet, scene: SceneCosts) -> float:
    """Frames that policies learn from: as recorded, or as the expert's measured episode has."""
    if shown.own is not None:
        return shown.own.frames
    path = Path(shown.folder) / "meta" / "info.json"
    per_episode = scene.demonstration_steps
    if path.is_file():
        info = json.loads(path.read_text())
        per_episode = info["total_frames"] / info["total_episodes"]
    return per_episode * shown.number


def _fits_s(work: Work, costs: Costs, workers: int, gpu_images_per_s: float | None) -> float:
    seconds, encoded = [], 0.0
    for group in work.fits:
        fitted = costs.policies[group[0].policy.encoder.digest]
        if fitted.trained_images:  # one by one, on GPUs where there are any
            if gpu_images_per_s is None:
                seconds += [fitted.fit_s] * len(group)
            else:
                encoded += TRAINED_IMAGE * fitted.trained_images * len(group)
            continue
        images = sum(_frames(d, costs.scene) for d in group[0].policy.demonstrations)
        encoded += images
        encode_s = fitted.encode_s if gpu_images_per_s is None else 0.0
        seconds.append(images * encode_s + len(group) * fitted.fit_s)
    return max(makespan(seconds, workers), encoded / (gpu_images_per_s or math.inf))


def _rollouts_s(work: Work, costs: Costs, workers: int, gpu_images_per_s: float | None) -> float:
    scene, seconds, seen, opened = costs.scene, [], 0.0, set[str]()
    for job in work.rollouts:
        cost = costs.policies.get(job.policy.encoder.digest)
        images = 0 if cost is None else math.ceil(work.steps / cost.chunk)
        act_s = 0.0 if cost is None else _act_s(cost, gpu_images_per_s)
        one = scene.reset_s + work.steps * scene.step_s + images * (scene.render_s + act_s)
        seconds.append(one * len(job.starts))
        if job.task not in opened:
            opened.add(job.task)
            seconds[-1] += scene.open_s * min(job.environments, len(job.starts))
        seen += images * len(job.starts)
    # Workers beyond the tasks open scenes of their own.
    most = max((min(j.environments, len(j.starts)) for j in work.rollouts), default=0)
    spare = scene.open_s * most if workers > len(opened) else 0.0
    return max(makespan(seconds, workers) + spare, seen / (gpu_images_per_s or math.inf))


def _imitation_s(work: Work, costs: Costs, workers: int, gpu_images_per_s: float | None) -> float:
    """Each task's moments are rendered once a worker; every policy encodes all of them."""
    scene, seconds, seen, opened = costs.scene, [], 0.0, set[str]()
    batches: dict[tuple[str, str], list[EvaluationJob]] = {}
    for job in work.rollouts:
        batches.setdefault((job.task, job.policy.encoder.digest), []).append(job)
    rendering = 0.0
    for (task, digest), jobs in batches.items():
        images = moments_of(jobs, scene) * len({job.policy.digest() for job in jobs})
        cost = costs.policies.get(digest)
        seconds.append(0.0 if cost is None else images * _act_s(cost, gpu_images_per_s))
        seen += 0 if cost is None else images
        if task not in opened:
            opened.add(task)
            expert = len(jobs[0].starts) * scene.demonstration_steps * scene.step_s
            rendering = scene.open_s + expert + moments_of(jobs, scene) * scene.render_s
            seconds[-1] += rendering
    spare = rendering if workers > len(opened) else 0.0
    return max(makespan(seconds, workers) + spare, seen / (gpu_images_per_s or math.inf))


def moments_of(jobs: Sequence[EvaluationJob], scene: SceneCosts) -> int:
    """Images of a task that each policy is shown, under all conditions together."""
    from dynaflip.eval.metrics.action_error import MOMENT_EVERY_S

    every = max(1, round(MOMENT_EVERY_S * environment(jobs[0].environment).control_hz))
    steps = scene.demonstration_steps or _mean_own(jobs)
    conditions = len({job.condition.name for job in jobs})
    return math.ceil(steps / every) * len(jobs[0].starts) * conditions


def _mean_own(jobs: Sequence[EvaluationJob]) -> float:
    """Frames of the mean recording of a user's own."""
    own = [(d.own.frames, d.number) for d in jobs[0].policy.demonstrations if d.own is not None]
    return sum(frames for frames, _ in own) / sum(number for _, number in own)


def _act_s(cost: PolicyCosts, gpu_images_per_s: float | None) -> float:
    """Of a worker for an image, which a GPU encodes where there is one."""
    return cost.act_s if gpu_images_per_s is None else max(0.0, cost.act_s - cost.encode_s)


def estimated_s(work: Work, costs: Costs, cores: int) -> float:
    """Seconds of the whole evaluation on so many cores."""
    return START_S + sum(stages_s(work, costs, cores, None))


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
        episodes = "none" if work.imitation else str(sum(len(job.starts) for job in left))
        cells = [name, str(number), str(len(jobs)), str(len(jobs) - len(left)), episodes]
        section.rows.append(cells)
    return section


def _work_section(work: Work, costs: Costs) -> Section:
    """Table of the work that is left, with its unit costs."""
    scene, used = costs.scene, list(costs.policies.values())
    episodes = sum(number for _, number in work.demonstrations)
    section = Section("Work that is not cached", [], ("", "number", "measured, of one core"))
    frame = f"{1000 * scene.recorded_frame_s:.1f} ms a frame, {scene.demonstration_steps:.0f} each"
    if scene.demonstration_steps:
        section.rows.append(["demonstrations to render, episodes", str(episodes), frame])
    if used:
        frozen = [g[0].policy for g in work.fits if g[0].policy.adaptation == "frozen"]
        groups = [policy.demonstrations for policy in frozen]
        images = sum(_frames(d, scene) for shown in groups for d in shown)
        encode = f"{span([c.encode_s for c in used])} an image"
        fit = f"{span([c.fit_s for c in used], 0)} a policy"
        section.rows.append(["images to encode for fits", f"{images:.0f}", encode])
        section.rows.append(["policies to fit", str(sum(map(len, work.fits))), fit])
    if work.imitation:
        return _with_moments(section, work, costs)
    rolled = sum(len(job.starts) for job in work.rollouts)
    kind = "of cached episodes" if work.from_cache else "the horizon: at most"
    step = f"{1000 * scene.step_s:.2f} ms a step, {work.steps:.0f} each ({kind})"
    section.rows.append(["episodes to roll out", str(rolled), step])
    if used:
        image = f"{1000 * scene.render_s:.1f} ms to render, {span([c.act_s for c in used])} to act"
        section.rows.append(["… an image every so many steps", str(used[0].chunk), image])
    return section


def _with_moments(section: Section, work: Work, costs: Costs) -> Section:
    """The table with the expert's moments, and how often a policy is asked about one."""
    rendered = asked = 0
    for task in dict.fromkeys(job.task for job in work.rollouts):
        jobs = [job for job in work.rollouts if job.task == task]
        moments = moments_of(jobs, costs.scene)
        encoders = {job.policy.digest(): job.policy.encoder.digest for job in jobs}
        rendered += moments
        asked += moments * sum(digest in costs.policies for digest in encoders.values())
    render = f"{1000 * costs.scene.render_s:.1f} ms to render"
    section.rows.append(["moments of the expert, under all conditions", str(rendered), render])
    if used := list(costs.policies.values()):
        act = f"{span([c.act_s for c in used])} to act"
        section.rows.append(["… shown to policies, times", str(asked), act])
    return section
