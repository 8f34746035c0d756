"""The stages from clips to triplets, on Ray Data: what runs where, with which resources.

Without a model one CPU task does all of a shard. With models and GPUs the stages are apart, and
Ray Data streams shards from one to the next within the object store's memory:

    read (CPU tasks) → captions → depth → track (actors with GPUs) → write (CPU tasks)

so that all CPUs decode, make flow and write while GPUs compute. On CPUs alone one actor does all
stages of a shard: handing frames over would cost CPU time and save none.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.triplets.batches import note_of
from dynaflip.platform.triplets.clip_in_work import ClipInWork, all_noted, noted
from dynaflip.platform.triplets.clips import Clip, Source
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.model_hosts import ModelHosts
from dynaflip.platform.triplets.models.loading import load_stage, load_stages, stage_names
from dynaflip.platform.triplets.place import place_of
from dynaflip.platform.triplets.progress import Progress
from dynaflip.platform.triplets.ray_tasks import dataset_of
from dynaflip.platform.triplets.shard import (
    Made,
    make_triplets,
    process_shard,
    read_item,
    write_shard,
)
from dynaflip.platform.triplets.work_folder import WorkFolder

Row = dict[str, Any]

# Shards in work and waiting at an actor, so that a GPU does not wait for the next one.
_QUEUED = 6


@dataclass(frozen=True)
class Stage:
    """One stage of the graph.

    Args:
        name: that progress is reported by.
        work: a function for tasks, or a class that each actor makes once: a row to a row.
        arguments: of the function or the class.
        cpus: of one task or actor.
        gpus: of one actor.
        actors: how many; 0: tasks.
    """

    name: str
    work: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    cpus: float = 1.0
    gpus: float = 0.0
    actors: int = 0


def run_stages(
    shards: dict[str, list[Clip]],
    config: PreprocessConfig,
    work: WorkFolder,
    source: Source,
    models: dict[str, str],
    progress: Progress | None = None,
    hosts: ModelHosts | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Yield a summary a clip as Ray Data finishes shards; closing it stops the work.

    Args:
        shards: clips by the shard's name.
        config: settings.
        work: folder of the work.
        source: that opens the clips.
        models: digests of the models.
        progress: is told how busy each stage is.
        hosts: actors with models, which the caller ends; None: they end with the shards.

    Raises:
        UserError: the cluster cannot hold the stages' actors.
    """
    if hosts is None:
        with closing(ModelHosts()) as mine:
            yield from run_stages(shards, config, work, source, models, progress, mine)
        return
    items = [{"name": n, "clips": [c.to_json() for c in clips]} for n, clips in shards.items()]
    dataset = dataset_of(items)
    import ray

    resources = ray.cluster_resources()
    stages = stage_graph(config, str(work.path), source, models, resources)
    if progress is not None and len(stages) > 1:
        cpus = resources.get("CPU", 1.0)
        progress.workers = {s.name: float(s.actors) or cpus / s.cpus for s in stages}
    with_models = [stage for stage in stages if stage.actors]
    # A task reads or writes beside them.
    hosts.start(with_models, resources.get("CPU", 1.0) - 1, resources.get("GPU", 0.0))
    for stage in stages:
        if stage.actors:
            queued = None if stage.name == "all" else _QUEUED
            dataset = dataset.map(**hosts.stage(stage.name, queued))
        else:
            dataset = dataset.map(
                stage.work,
                num_cpus=stage.cpus,
                num_gpus=stage.gpus,
                fn_kwargs=dict(stage.arguments),
            )
    # Closed at once where the caller stops: Ray would tell of each task that it lost otherwise.
    with closing(iter(dataset.iter_rows())) as rows:
        for row in rows:
            if progress is not None:
                progress.busy(json.loads(row["busy"]))
                progress.batches(json.loads(row["news"]))
            yield from json.loads(row["summaries"])


def stage_graph(
    config: PreprocessConfig,
    folder: str,
    source: Source,
    digests: Mapping[str, str],
    resources: Mapping[str, float],
) -> list[Stage]:
    """The stages of a job on a cluster with some resources.

    Raises:
        UserError: the cluster cannot hold the stages' actors.
    """
    names = stage_names(config)
    about = {"config": config, "folder": folder, "source": source}
    if not names:
        return [Stage("all", make_shard, about)]
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1.0)
    if not gpus and not any(_is_apart(config, name) for name in names):
        actors = max(1, int(cpus) - 1)
        return [Stage("all", ModelShards, about | {"digests": digests}, actors=actors)]
    model_stages = [_model_stage(name, config, folder, digests, gpus, len(names)) for name in names]
    _check_room(model_stages, gpus, cpus)
    return [
        Stage("read", read_shard, about),
        *model_stages,
        Stage("write", finish_shard, {"folder": folder}),
    ]


def _is_apart(config: PreprocessConfig, name: str) -> bool:
    """True where the settings ask for actors of a stage's own."""
    stage = getattr(config.stages, name)
    return bool(stage.actors or stage.gpus)


def _model_stage(
    name: str,
    config: PreprocessConfig,
    folder: str,
    digests: Mapping[str, str],
    gpus: int,
    sharing: int,
) -> Stage:
    stage = getattr(config.stages, name)
    share = stage.gpus if stage.gpus is not None else (1 / sharing if gpus else 0.0)
    cpus = stage.cpus if stage.cpus is not None else (0.0 if share else 1.0)
    # With the default shares each GPU holds one actor of every stage; with half of one, two.
    fit = int(gpus / (share * sharing) + 1e-6) if share else 1
    arguments = {"name": name, "config": config, "folder": folder, "digests": digests}
    return Stage(name, ModelActor, arguments, cpus, share, stage.actors or max(1, fit))


def _check_room(stages: list[Stage], gpus: int, cpus: float) -> None:
    """Refuse what would wait for ever: one actor of each stage, and a task beside them."""
    wanted_gpus, wanted_cpus = sum(s.gpus for s in stages), sum(s.cpus for s in stages) + 1
    for unit, wanted, there in (("GPU", wanted_gpus, gpus), ("CPU", wanted_cpus, cpus)):
        if wanted > there + 1e-6:
            setting = ", ".join(f"stages.{stage.name}.{unit.lower()}s" for stage in stages)
            raise UserError(
                f"{setting}: one actor of each stage, and a task beside them, need {wanted:g} "
                f"{unit}s; the cluster has {there:g}: lower them"
            )


def make_shard(row: Row, config: PreprocessConfig, folder: str, source: Source) -> Row:
    """All stages of a shard where there is no model."""
    clips = [Clip.from_json(text) for text in row["clips"]]
    summaries = process_shard(row["name"], clips, source, config, WorkFolder(place_of(folder)))
    return {"summaries": json.dumps(summaries), "busy": "{}", "news": "[]"}


class ModelShards:
    """All stages of a shard in one actor, which loads its models once.

    Args:
        config: settings, which name the models.
        folder: of the work.
        source: of the clips.
        digests: of the models, so that all actors load one commit.
    """

    def __init__(
        self,
        config: PreprocessConfig,
        folder: str,
        source: Source,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        self.config, self.folder, self.source = config, folder, source
        self.stages = load_stages(config, digests)
        for name, stage in self.stages.items():
            stage.batch.share(note_of(WorkFolder(place_of(folder)).attempts, name))

    def __call__(self, row: Row) -> Row:
        """Make a shard's triplets."""
        summaries = process_shard(
            row["name"],
            [Clip.from_json(text) for text in row["clips"]],
            self.source,
            self.config,
            WorkFolder(place_of(self.folder)),
            list(self.stages.values()),
        )
        news = [(name, stage.batch.news()) for name, stage in self.stages.items()]
        return {"summaries": json.dumps(summaries), "busy": "{}", "news": json.dumps(news)}


def read_shard(row: Row, config: PreprocessConfig, folder: str, source: Source) -> Row:
    """Read a shard's clips: all that later stages need of them."""
    began_s = time.monotonic()
    attempts = WorkFolder(place_of(folder)).attempts
    items = [ClipInWork(Clip.from_json(text)) for text in row["clips"]]
    for item in items:
        with noted(item, attempts):
            read_item(item, source, config)
    return _passed_on(row, "read", items, began_s)


class ModelActor:
    """A stage of one kind of model.

    Args:
        name: of the stage.
        config: settings.
        folder: of the work.
        digests: of the models.
    """

    def __init__(
        self, name: str, config: PreprocessConfig, folder: str, digests: Mapping[str, str]
    ) -> None:
        self.name = name
        self.attempts = WorkFolder(place_of(folder)).attempts
        self.stage = load_stage(name, config, digests)
        self.stage.batch.share(note_of(self.attempts, name))

    def __call__(self, row: Row) -> Row:
        """Give a shard's clips the model's answers."""
        began_s = time.monotonic()
        items = pickle.loads(row["items"])  # written by the stage before
        all_noted(items, self.attempts, self.stage)
        news = self.name, self.stage.batch.news()
        return _passed_on(row, self.name, items, began_s, [news])


def finish_shard(row: Row, folder: str) -> Row:
    """Make the triplets of a shard whose models have answered, and write them."""
    began_s = time.monotonic()
    work = WorkFolder(place_of(folder))

    def made(item: ClipInWork) -> Made:
        with noted(item, work.attempts):
            return make_triplets(item)

    items = pickle.loads(row["items"])  # written by the stage before
    summaries = write_shard(row["name"], (made(item) for item in items), work)
    busy = json.loads(row["busy"]) | {"write": time.monotonic() - began_s}
    return {"summaries": json.dumps(summaries), "busy": json.dumps(busy), "news": row["news"]}


def _passed_on(
    row: Row,
    stage: str,
    items: list[ClipInWork],
    began_s: float,
    news: Sequence[tuple[str, dict[str, Any]]] = (),
) -> Row:
    """The row for the next stage."""
    payload = pickle.dumps(items, protocol=5)
    busy = json.loads(row.get("busy", "{}")) | {stage: time.monotonic() - began_s}
    told = json.dumps([*json.loads(row.get("news", "[]")), *news])
    return {"name": row["name"], "items": payload, "busy": json.dumps(busy), "news": told}
