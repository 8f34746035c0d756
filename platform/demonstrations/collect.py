"""Demonstrations in parallel on Ray, resumed where they stopped, visible only when whole.

Episodes are staged one by one in ``OUTPUT.partial`` (each under a temporary name
until it is complete), put together there, and renamed to ``OUTPUT`` in one step.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.eval.envs.registry import environment
from dynaflip.files import file_lock, replace_folder
from dynaflip.platform.config_loader import flatten
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.demonstrations.plan import EpisodePlan, plan_episodes
from dynaflip.platform.paths import home
from dynaflip.platform.triplets.clips import content_hash

# Raised when the same settings give other episodes than before.
RECIPE_VERSION = 1
_SETTINGS = "meta/dynaflip.json"
_WHOLE = "dataset"  # in the staging folder: the episodes put together


@dataclass(frozen=True)
class Collected:
    """Result of a collection."""

    path: str
    episodes: int
    frames: int
    successes: dict[str, tuple[int, int]]  # task → solved, episodes
    seconds: float
    recorded_now: int  # the rest was there already
    depth_error: dict[str, Any] | None  # None of an environment without depth


def collect(config: CollectConfig, output: str, *, num_cpus: int | None = None) -> Collected:
    """Collect the data set of these settings, or what is missing of it.

    Raises:
        UserError: ``output`` is something else, another process is making it, or it was collected,
            wholly or in part, with other settings.
    """
    # Where a link leads: the link itself cannot be replaced by a folder.
    target = Path(os.path.realpath(output))
    lock = home() / "locks" / f"{content_hash(str(target))}.lock"
    with file_lock(lock, f"--output: another process is making {target}"):
        return _collect(config, target, num_cpus)


def _collect(config: CollectConfig, target: Path, num_cpus: int | None) -> Collected:
    start = time.monotonic()
    recipe = {
        "recipe_version": RECIPE_VERSION,
        "settings": config.recipe(),
        "simulator": environment(config.environment).version(),
    }
    if _is_done(target, recipe):
        return _summary(target, start, recorded_now=0)
    staging = target.with_name(target.name + ".partial")
    plans = plan_episodes(config)
    folder = _open_staging(staging, recipe)
    missing = [plan for plan in plans if not (folder / _name(plan.index)).is_dir()]
    _record_missing(config, missing, len(plans), folder, num_cpus)

    from dynaflip.platform.demonstrations.lerobot_dataset import assemble

    whole = staging / _WHOLE
    shutil.rmtree(whole, ignore_errors=True)
    folders = [folder / _name(plan.index) for plan in plans]
    assemble(whole, folders, environment(config.environment))
    (whole / _SETTINGS).write_text(json.dumps(recipe, indent=2))
    replace_folder(whole, target)
    shutil.rmtree(staging)
    return _summary(target, start, recorded_now=len(missing))


def _is_done(target: Path, recipe: dict[str, Any]) -> bool:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        if target.exists():
            target.rmdir()
        return False
    try:
        before = json.loads((target / _SETTINGS).read_text())
    except (OSError, json.JSONDecodeError):
        raise UserError(
            f"output: {target} is there already and was not written by jobs/collect.py; "
            f"choose another --output"
        ) from None
    if not _difference(before, recipe):
        return True
    raise UserError(
        f"output: {target} was collected with other settings ({_difference(before, recipe)}); "
        f"choose another --output, or delete it first"
    )


def _difference(before: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What was made otherwise before, in words; empty where it is the same.

    A collection of before simulators were recorded may be of any version of its simulator.
    """
    if before.get("recipe_version") != wanted["recipe_version"]:
        return f"recipe version {before.get('recipe_version')}, now {wanted['recipe_version']}"
    old, new = flatten(before.get("settings", {})), flatten(wanted["settings"])
    if before.get("simulator", wanted["simulator"]) != wanted["simulator"]:
        return f"simulator {before['simulator']}, now {wanted['simulator']}"
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key)}, now {new.get(key)}" for key in keys)


def _open_staging(staging: Path, recipe: dict[str, Any]) -> Path:
    """The folder of finished episodes.

    Raises:
        UserError: it holds some of other settings, or something else.
    """
    settings = staging / "settings.json"
    folder = staging / "episodes"
    try:
        before = json.loads(settings.read_text())
    except (OSError, json.JSONDecodeError):
        before = {}
    others = {path.name for path in staging.glob("*")} - {settings.name, folder.name, _WHOLE}
    if others:
        raise UserError(
            f"output: {staging} is there already and was not written by jobs/collect.py "
            f"({min(others)}); choose another --output"
        )
    if _difference(before, recipe) and any(path.suffix != ".tmp" for path in folder.glob("*")):
        raise UserError(
            f"output: {staging} holds episodes of an unfinished collection with other settings "
            f"({_difference(before, recipe)}); choose another --output, or delete it first"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps(recipe))
    except OSError as error:
        raise UserError(f"output: cannot write to {staging}: {error.strerror}") from None
    for leftover in folder.glob("*.tmp"):  # a worker died while it wrote this one
        shutil.rmtree(leftover)
    return folder


def _name(index: int) -> str:
    return f"episode-{index:06d}"


def _record_missing(
    config: CollectConfig,
    missing: list[EpisodePlan],
    total: int,
    folder: Path,
    num_cpus: int | None,
) -> None:
    if not missing:
        return
    spec = environment(config.environment)
    # Fail here, in one line, and not in every worker.
    check_expert(
        spec,
        missing[0].task,
        "so nothing can be collected; give its class a method expert_action, or your recordings to "
        "jobs/evaluate.py with --source PATH (rollouts learn from them, --suite offline needs no "
        "simulator)",
    )
    from tqdm import tqdm

    from dynaflip.platform.actor_pool import ActorPool
    from dynaflip.platform.job_queues import TaskQueue

    queue = TaskQueue(missing)
    pool = ActorPool(
        Recorder,
        config,
        str(folder),
        job="collect",
        most=len(missing),
        start_cpus=num_cpus,
        variables=spec.worker_environment(),
    )
    bar = tqdm(total=total, initial=total - len(missing), unit="episode", desc="collect")
    with pool, bar:
        for _ in pool.run(queue.next, lambda actor, plan: actor.record.remote(plan)):
            bar.update(1)


def check_expert(spec: EnvironmentSpec, task: str, consequence: str) -> None:
    """Refuse an environment whose scripted expert is needed and lacking, or that does not open.

    Args:
        spec: of the environment.
        task: that is opened, small.
        consequence: what follows for the user, and what to do.

    Raises:
        UserError: see above.
    """
    scene = spec.open(task, height_px=32, width_px=32)
    try:
        if not scene.has_expert():
            raise UserError(f"environment: {spec.name} has no scripted expert, {consequence}")
    finally:
        scene.close()


class Recorder:
    """A Ray actor: records episodes into the staging folder."""

    def __init__(self, config: CollectConfig, folder: str) -> None:
        self.config, self.folder = config, Path(folder)
        self.scene: Any = None

    def record(self, plan: EpisodePlan) -> None:
        """Record one episode; its folder appears when it is complete."""
        from dynaflip.platform.demonstrations.lerobot_episode import write_episode
        from dynaflip.platform.demonstrations.record import record_episode

        spec = environment(self.config.environment)
        if self.scene is None or self.scene.task != plan.task:
            if self.scene is not None:
                self.scene.close()
            size = self.config.image_px
            self.scene = spec.open(plan.task, height_px=size, width_px=size)
        recording = record_episode(self.scene, plan, self.config)
        temporary = self.folder / f"{_name(plan.index)}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        write_episode(temporary, plan, recording, spec)
        replace_folder(temporary, self.folder / _name(plan.index))


def _summary(target: Path, start: float, recorded_now: int) -> Collected:
    import pyarrow.parquet as pq

    table = pq.read_table(
        target / "meta" / "episodes" / "chunk-000" / "file-000.parquet",
        columns=["task_id", "success", "length"],
    ).to_pydict()
    errors = target / "meta" / "depth_error.json"
    episodes = Counter(table["task_id"])
    solved = Counter(
        task for task, success in zip(table["task_id"], table["success"], strict=True) if success
    )
    return Collected(
        path=str(target),
        episodes=len(table["task_id"]),
        frames=sum(table["length"]),
        successes={task: (solved[task], episodes[task]) for task in sorted(episodes)},
        seconds=time.monotonic() - start,
        recorded_now=recorded_now,
        depth_error=json.loads(errors.read_text()) if errors.is_file() else None,
    )


__all__ = ["Collected", "collect"]
