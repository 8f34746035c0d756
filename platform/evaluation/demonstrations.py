"""Demonstrations that policies learn from: collected once a task, read without privilege."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.errors import UserError
from dynaflip.eval.envs.metaworld_tasks import CAPTIONS
from dynaflip.platform.config_loader import config_digest
from dynaflip.platform.demonstrations.collect import RECIPE_VERSION, collect
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.evaluation.rollout_config import RolloutConfig
from dynaflip.platform.paths import home
from dynaflip.platform.provenance import versions_of
from dynaflip.platform.triplets.clips import ClipRejected
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources.lerobot import LeRobotSource

# All that a policy may read of a frame beside its image.
PROPRIOCEPTION, ACTION = "observation.state", "action"
# Packages that decide what is simulated.
SIMULATION = ("metaworld", "mujoco")
_AS_RECORDED = 1 << 20  # px: longer than any short side, and images are never enlarged


@dataclass(frozen=True)
class DemonstrationSet:
    """A task's demonstrations on disk."""

    task: str
    folder: str
    digest: str
    number: int  # of solved episodes that are learned from, the first ones

    @property
    def caption(self) -> str:
        """The task in words."""
        return CAPTIONS[self.task][0]


@dataclass(frozen=True)
class DemonstrationFrames:
    """N frames of a task's solved demonstrations."""

    images: np.ndarray  # (N, H, W, 3) uint8
    proprioception: np.ndarray  # (N, 4) float32
    actions: np.ndarray  # (N, 4) float32
    episode: np.ndarray  # (N,) int


def collect_demonstrations(
    config: RolloutConfig, tasks: tuple[str, ...]
) -> dict[str, DemonstrationSet]:
    """Collect what is missing: unperturbed, through a still camera, layouts of pretraining's split.

    So no layout of an evaluation split is ever demonstrated.
    """
    found = {}
    for task in tasks:
        settings = CollectConfig(
            tasks=(task,),
            # The expert fails now and then; what it failed is no demonstration.
            episodes_per_task=config.demonstrations + max(2, config.demonstrations // 3),
            image_px=config.image_px,
            perturbed_share=0.0,
            moving_camera_share=0.0,
            seed=config.seed,
        )
        made_by = f"{RECIPE_VERSION}/{'/'.join(versions_of(SIMULATION))}"
        recipe = f"{config_digest(settings.recipe())}/{made_by}/{config.demonstrations}"
        digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
        folder = home() / "evaluation" / "demonstrations" / f"{task}-{digest}"
        collected = collect(settings, str(folder))
        solved, number = collected.successes[task]
        if solved < config.demonstrations:
            raise UserError(
                f"demonstrations: the expert solved {solved} of {number} episodes of {task}, "
                f"{config.demonstrations} are wanted; ask for fewer or leave this task out"
            )
        found[task] = DemonstrationSet(task, str(folder), digest, config.demonstrations)
    return found


def read_demonstrations(demonstrations: DemonstrationSet) -> DemonstrationFrames:
    """Decode every frame of the first episodes that were solved."""
    source = LeRobotSource(SourceConfig(path=demonstrations.folder))
    solved = sorted(_solved_episodes(Path(demonstrations.folder)))[: demonstrations.number]
    parts: dict[str, list[np.ndarray]] = {n: [] for n in ("images", "state", "action", "episode")}
    for clip in source.list_clips():
        if clip.episode_index not in solved:
            continue
        recording = source.open(clip)
        try:
            number = len(recording.times_s())
            images = recording.read_frames(list(range(number)), _AS_RECORDED)
        except ClipRejected as error:
            raise UserError(
                f"demonstrations: {demonstrations.folder} is damaged ({error.reason}); delete it"
            ) from None
        state, action = _columns(source, clip.episode_index, json.loads(clip.extra), number)
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


def _solved_episodes(folder: Path) -> set[int]:
    files = sorted((folder / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    table = pa.concat_tables(
        [pq.read_table(file, columns=["episode_index", "success"]) for file in files]
    ).to_pydict()
    rows = zip(table["episode_index"], table["success"], strict=True)
    return {index for index, success in rows if success}


def _columns(
    source: LeRobotSource, episode_index: int, episode: dict, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Proprioception and actions of an episode: two (N, 4) float32."""
    name = source.info["data_path"].format(
        chunk_index=episode["data/chunk_index"], file_index=episode["data/file_index"]
    )
    table = pq.read_table(
        source.root / name,
        columns=["frame_index", PROPRIOCEPTION, ACTION],
        filters=[("episode_index", "=", episode_index)],
    ).sort_by("frame_index")
    if table.num_rows != number:
        raise UserError(
            f"demonstrations: episode {episode_index} of {source.root} has {table.num_rows} rows "
            f"and {number} images; delete the folder"
        )
    state = np.array(table[PROPRIOCEPTION].to_pylist(), np.float32)
    return state, np.array(table[ACTION].to_pylist(), np.float32)
