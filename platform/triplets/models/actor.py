"""The Ray Data actor that holds a user's models (depth, tracker, captioner) and makes shards."""

from __future__ import annotations

import importlib
import inspect
import json
import os
from pathlib import Path
from typing import Any

from dynaflip.platform.triplets.clips import Clip, Source, content_hash
from dynaflip.platform.triplets.config import DEPTH_MODEL, PreprocessConfig
from dynaflip.platform.triplets.flow.learned_tracker import is_learned, load_tracker
from dynaflip.platform.triplets.models.captioner import KIND, Captioner, check_captioner
from dynaflip.platform.triplets.models.depth import TransformersDepth, check_depth_model
from dynaflip.platform.triplets.shard import WorkFolder, process_shard
from dynaflip.platform.triplets.sources.locations import fingerprints, root_and_files


def uses_models(config: PreprocessConfig) -> bool:
    """Whether a model is loaded, so that actors serve better than tasks."""
    captioned = any(source.captioner for source in config.all_sources())
    return captioned or bool(config.depth_models()) or is_learned(config.track.tracker)


def check_models(config: PreprocessConfig) -> None:
    """Refuse early what cannot be loaded.

    Raises:
        UserError: says what was looked for.
    """
    for depth in sorted(config.depth_models()):
        check_depth_model(depth.removeprefix(DEPTH_MODEL))
    if is_learned(config.track.tracker):
        load_tracker(config.track.tracker)
    for source in config.all_sources():
        if source.captioner:
            check_captioner(source.captioner)


def digests_of_models(config: PreprocessConfig) -> dict[str, str]:
    """What each model of the settings is, by its setting: other weights make other triplets.

    A file or folder has a fingerprint of its content, a hub id the commit in the local cache,
    a tracker's class its module's code.
    """
    depths = [depth.removeprefix(DEPTH_MODEL) for depth in config.depth_models()]
    captioners = [source.captioner for source in config.all_sources() if source.captioner]
    found = {name: _digest_of(name) for name in {*depths, *captioners}}
    if is_learned(config.track.tracker):
        kind, _, rest = config.track.tracker.partition(":")
        if kind == "class":
            module = inspect.getsourcefile(importlib.import_module(rest.rpartition(":")[0]))
            rest = module or rest
        found[config.track.tracker] = _digest_of(rest)
    return dict(sorted(found.items()))


def _digest_of(model: str) -> str:
    if not os.path.exists(model):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, "config.json")
        return Path(cached).parent.name if isinstance(cached, str) else ""
    root, names = root_and_files(model)
    prints = fingerprints(root, names)
    return content_hash(*(part for name in names for part in (name, prints[name].digest)))


class ModelShards:
    """Loads its models once; a GPU is used where there is one."""

    def __init__(self, config: PreprocessConfig, folder: str, source: Source) -> None:
        self.config, self.folder, self.source = config, folder, source
        self.depth_models = {
            depth: TransformersDepth(depth.removeprefix(DEPTH_MODEL))
            for depth in sorted(config.depth_models())
        }
        if is_learned(config.track.tracker):
            load_tracker(config.track.tracker)
        self.captioners = {
            KIND + name: Captioner(name)
            for name in sorted({one.captioner for one in config.all_sources()} - {""})
        }

    def __call__(self, row: dict[str, Any]) -> list[dict[str, str]]:
        """A shard's row to a summary a clip."""
        summaries = process_shard(
            row["number"],
            [Clip.from_json(text) for text in row["clips"]],
            self.source,
            self.config,
            WorkFolder(Path(self.folder)),
            self.depth_models,
            self.captioners,
        )
        return [{"summary": json.dumps(summary)} for summary in summaries]
