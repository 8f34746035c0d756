"""Demonstrations that policies are trained on: collected once per task, or a user's own.

They are read without a simulator's labels.
"""

from __future__ import annotations

import hashlib

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.envs.registry import environment
from dynaflip.platform.config_loader import config_digest
from dynaflip.platform.demonstrations.collect import RECIPE_VERSION, collect
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.demonstration_set import DemonstrationFrames, DemonstrationSet
from dynaflip.platform.evaluation.own_demonstrations import own_demonstrations, read_own
from dynaflip.platform.lerobot.columns import ACTION, PROPRIOCEPTION, read_arrays
from dynaflip.platform.lerobot.episode import Episode
from dynaflip.platform.paths import home
from dynaflip.platform.triplets.clips import ClipRejected
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources.lerobot import LeRobotSource

_AS_RECORDED = 1 << 20  # px: longer than any short side, and images are never enlarged


def collect_demonstrations(
    config: RolloutConfig, tasks: tuple[str, ...]
) -> dict[str, DemonstrationSet]:
    """Collect what is missing: unperturbed, static camera, layouts of pretraining's split.

    So no layout of an evaluation split is ever demonstrated.

    Raises:
        UserError: the expert solves too few episodes of a task, or the simulator cannot render.
    """
    sets = {}
    for task in tasks:
        shown = demonstration_set(config, task)
        collected = collect(collect_settings(config, task), shown.folder)
        solved, number = collected.successes[task]
        if solved < config.demonstrations:
            raise UserError(
                f"demonstrations: the expert solved {solved} of {number} episodes of {task}, "
                f"{config.demonstrations} are wanted; ask for fewer or leave this task out"
            )
        sets[task] = shown
    return sets


def demonstration_sets(
    config: RolloutConfig, tasks: tuple[str, ...]
) -> dict[str, DemonstrationSet]:
    """Demonstrations of each task: the user's own, or those that are or will be collected.

    Raises:
        UserError: the user's own do not fit the environment.
    """
    if config.source:
        return own_demonstrations(config, tasks)
    return {task: demonstration_set(config, task) for task in tasks}


def demonstration_set(config: RolloutConfig, task: str) -> DemonstrationSet:
    """A task's demonstrations by the expert, whether they are collected or not."""
    digest = _recipe_digest(collect_settings(config, task), config.demonstrations)
    folder = home() / "evaluation" / "demonstrations" / f"{task}-{digest}"
    return DemonstrationSet(task, str(folder), digest, config.demonstrations, config.environment)


def collect_settings(config: RolloutConfig, task: str) -> CollectConfig:
    """Settings of the collection of a task's demonstrations."""
    return CollectConfig(
        environment=config.environment,
        tasks=(task,),
        # The expert fails now and then; what it failed is no demonstration.
        episodes_per_task=config.demonstrations + max(2, config.demonstrations // 3),
        image_px=config.image_px,
        perturbed_share=0.0,
        moving_camera_share=0.0,
        seed=config.seed,
    )


def _recipe_digest(settings: CollectConfig, number: int) -> str:
    """Equal for demonstrations that are equal."""
    versions = "/".join(environment(settings.environment).versions())
    text = f"{config_digest(settings.recipe())}/{RECIPE_VERSION}/{versions}/{number}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_demonstrations(demonstrations: DemonstrationSet) -> DemonstrationFrames:
    """Decode every frame of the first episodes that were solved."""
    if demonstrations.own is not None:
        return read_own(demonstrations)
    source = LeRobotSource(SourceConfig(path=demonstrations.folder))
    solved = [episode.index for episode in source.meta.episodes() if episode.success]
    chosen = solved[: demonstrations.number]
    parts: dict[str, list[np.ndarray]] = {n: [] for n in ("images", "state", "action", "episode")}
    for clip in source.list_clips():
        if clip.episode_index not in chosen:
            continue
        recording = source.open(clip)
        try:
            number = len(recording.times_s())
            images = recording.read_frames(list(range(number)), _AS_RECORDED)
        except ClipRejected as error:
            raise UserError(
                f"demonstrations: {demonstrations.folder} is damaged ({error.reason}); delete it"
            ) from None
        state, action = _columns(source, Episode.from_json(clip.extra), number)
        parts["images"].append(images)
        parts["state"].append(state)
        parts["action"].append(action)
        parts["episode"].append(np.full(number, clip.episode_index))
    return DemonstrationFrames(
        np.concatenate(parts["images"]),
        np.concatenate(parts["state"]),
        np.concatenate(parts["action"]),
        np.concatenate(parts["episode"]),
    )


def _columns(source: LeRobotSource, episode: Episode, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Proprioception and actions of an episode: two (N, 4) float32."""
    state, action = read_arrays(source.meta, episode, (PROPRIOCEPTION, ACTION))
    if len(state) != number:
        raise UserError(
            f"demonstrations: episode {episode.index} of {source.root} has {len(state)} rows and "
            f"{number} images; delete the folder"
        )
    return state.astype(np.float32), action.astype(np.float32)
