"""The Ray Data actor that holds a user's models (depth, tracker, captioner) and makes shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynaflip.platform.triplets.clips import Clip, Source
from dynaflip.platform.triplets.config import DEPTH_MODEL, PreprocessConfig
from dynaflip.platform.triplets.shard import WorkFolder, process_shard
from dynaflip.platform.triplets.stages.captioner import KIND, Captioner, check_captioner
from dynaflip.platform.triplets.stages.depth_model import TransformersDepth, check_depth_model
from dynaflip.platform.triplets.stages.learned_track import is_learned, load_tracker


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
            KIND + one.captioner: Captioner(one.captioner, one.captioner_prompt)
            for one in config.all_sources()
            if one.captioner
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
