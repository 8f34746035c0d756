"""Render the evaluation's own episodes in parallel on Ray, once for each plan.

Images are cached below ``DYNAFLIP_HOME/evaluation``, a Parquet file per task, named by the digest
of its plan: a second evaluation, of whichever encoder, reads them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.errors import UserError
from dynaflip.eval import expert_views
from dynaflip.eval.envs.registry import environment
from dynaflip.eval.expert_views import EpisodePlan
from dynaflip.eval.labelled_frames import LabelledFrames, as_recorded, concatenate
from dynaflip.files import new_file
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.evaluation.probe_config import ViewsConfig
from dynaflip.platform.job_queues import JobQueue
from dynaflip.platform.paths import home

_SIMULATOR = "simulator"  # key of a cached file's metadata: the version that rendered it
_POSITION_M = pa.list_(pa.float64(), 3)
SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("episode", pa.string(), nullable=False),  # task/split/layout seed
        pa.field("condition", pa.string(), nullable=False),  # none | all | a factor's name
        pa.field("factors", pa.string(), nullable=False),  # JSON
        pa.field("frame", pa.int32(), nullable=False),  # moment within the episode
        pa.field("png", pa.binary(), nullable=False),  # RGB
        pa.field("hand_m", _POSITION_M, nullable=False),  # world frame
        pa.field("object_m", _POSITION_M, nullable=False),  # world frame
        pa.field("joints_rad", pa.list_(pa.float64()), nullable=False),  # of the robot
        pa.field("success", pa.bool_(), nullable=False),  # of the expert, in the episode
    ]
)


def plan_views(
    config: ViewsConfig, tasks: list[str], camera: str, size_px: tuple[int, int], split: str
) -> dict[str, list[EpisodePlan]]:
    """All episodes to render, by task. Nothing is rendered yet.

    Args:
        config: what to render.
        tasks: ids.
        camera: name, of the environment.
        size_px: (height, width) of the images.
        split: of layouts and factor values, ``dev`` or ``test``.
    """
    assert config.horizon_steps is not None, "filled in by the settings"
    factors = config.factors or environment(config.environment).factors
    return {
        task: [
            expert_views.plan_episode(
                task,
                index,
                split=split,
                level=config.level,
                factors=tuple(factors),
                frames=config.frames_per_episode,
                frames_a_factor=config.frames_per_factor,
                horizon_steps=config.horizon_steps,
                size_px=size_px,
                camera=camera,
                seed=config.seed,
                environment=config.environment,
            )
            for index in range(config.episodes_per_task)
        ]
        for task in tasks
    }


def render_views(plans: dict[str, list[EpisodePlan]]) -> LabelledFrames:
    """The images of all plans, from the cache where they are in it.

    Raises:
        UserError: the simulator cannot render here.
    """
    paths = {task: _cache_path(task, episodes) for task, episodes in plans.items()}
    missing = missing_views(plans)
    if missing:
        _render_on_ray({task: plans[task] for task in missing}, paths)
    return concatenate([_read(path) for path in paths.values()])


def missing_views(plans: dict[str, list[EpisodePlan]]) -> list[str]:
    """Tasks whose images are not cached."""
    return [
        task
        for task, several in plans.items()
        if not _is_current(_cache_path(task, several), several[0])
    ]


def _render_on_ray(plans: dict[str, list[EpisodePlan]], paths: dict[str, Path]) -> None:
    from tqdm import tqdm

    queue = JobQueue(list(plans))
    spec = environment(next(iter(plans.values()))[0].environment)
    pool = ActorPool(
        _Renderer, job="evaluate", most=len(plans), variables=spec.worker_environment()
    )
    with pool, tqdm(total=len(plans), desc="render", unit="task") as bar:
        rendered = pool.run(queue.next, lambda actor, task: actor.render.remote(plans[task]))
        for task, table in rendered:
            _write(table.replace_schema_metadata({_SIMULATOR: spec.version()}), paths[task])
            bar.update()


class _Renderer:
    """A Ray actor that renders episodes."""

    def render(self, plans: list[EpisodePlan]) -> pa.Table:
        """One task's episodes, a row per image."""
        # As many actors as CPUs run side by side; each would else start a thread per core.
        cv2.setNumThreads(1)
        scene = expert_views.open_scene(plans[0])
        try:
            rows = [_row(view) for plan in plans for view in expert_views.render(plan, scene)]
        finally:
            scene.close()
        return pa.Table.from_pylist(rows, schema=SCHEMA)


def _row(view: expert_views.View) -> dict[str, Any]:
    image = as_recorded(view.image)
    # Level 1: ten times faster than the default for a tenth more bytes.
    encoded = cv2.imencode(".png", image[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
    return {
        "task": view.task,
        "episode": view.episode,
        "condition": view.condition,
        "factors": json.dumps(view.factors, sort_keys=True),
        "frame": view.frame,
        "png": encoded.tobytes(),
        "hand_m": view.hand_m.astype(np.float64).tolist(),
        "object_m": view.object_m.astype(np.float64).tolist(),
        "joints_rad": view.joints_rad.astype(np.float64).tolist(),
        "success": view.success,
    }


def _cache_path(task: str, plans: list[EpisodePlan]) -> Path:
    digest = hashlib.sha256("".join(plan.digest() for plan in plans).encode()).hexdigest()[:16]
    return home() / "evaluation" / f"{task}-{digest}.parquet"


def _is_current(path: Path, plan: EpisodePlan) -> bool:
    """True if images are cached, and of the simulator's present version where that is stored."""
    if not path.is_file():
        return False
    try:
        stored = (pq.read_schema(path).metadata or {}).get(_SIMULATOR.encode())
    except (OSError, pa.ArrowException):
        return True  # reading it says what is wrong
    return stored is None or stored.decode() == environment(plan.environment).version()


def _write(table: pa.Table, path: Path) -> None:
    with new_file(path) as unfinished:
        pq.write_table(table, unfinished)


def _read(path: Path) -> LabelledFrames:
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"evaluation cache {path} is damaged ({error}); delete it") from None
    images = [_decoded(png) for png in table["png"].to_pylist()]
    return LabelledFrames(
        np.stack(images),
        np.array(table["hand_m"].to_pylist()),
        np.array(table["object_m"].to_pylist()),
        np.array(table["joints_rad"].to_pylist()),
        np.array(table["task"].to_pylist()),
        np.array(table["episode"].to_pylist()),
        np.array(table["condition"].to_pylist()),
    )


def _decoded(png: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, "the cache holds what this module wrote"
    return image[:, :, ::-1]
