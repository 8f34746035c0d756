"""The stages from clips to triplets, on Ray Data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dynaflip.platform.triplets.clips import Clip, Source
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.models.actor import ModelShards, uses_models
from dynaflip.platform.triplets.place import place_of
from dynaflip.platform.triplets.ray_tasks import dataset_of
from dynaflip.platform.triplets.shard import process_shard
from dynaflip.platform.triplets.work_folder import WorkFolder


def run_stages(
    shards: dict[str, list[Clip]],
    config: PreprocessConfig,
    work: WorkFolder,
    source: Source,
    models: dict[str, str],
) -> Iterator[dict[str, Any]]:
    """Yield a summary a clip as Ray Data finishes shards; ``models`` are their digests."""
    items = [{"name": n, "clips": [c.to_json() for c in clips]} for n, clips in shards.items()]
    dataset = dataset_of(items)
    arguments = {"config": config, "folder": str(work.path), "source": source}
    # Most deaths of workers are not a clip's fault; `attempts` counts the clips that kill them.
    if uses_models(config):
        import ray

        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        dataset = dataset.flat_map(
            ModelShards,
            fn_constructor_kwargs=arguments | {"digests": models},
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, gpus or cpus - 1)),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
    else:
        dataset = dataset.flat_map(_shard_task, fn_kwargs=arguments, num_cpus=1)
    for row in dataset.iter_rows():
        yield json.loads(row["summary"])


def _shard_task(
    row: dict[str, Any], config: PreprocessConfig, folder: str, source: Source
) -> list[dict[str, str]]:
    clips = [Clip.from_json(text) for text in row["clips"]]
    summaries = process_shard(row["name"], clips, source, config, WorkFolder(place_of(folder)))
    return [{"summary": json.dumps(summary)} for summary in summaries]
