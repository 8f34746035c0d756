"""The Ray Data actor that holds a user's models (depth, tracker, captioner) and makes shards."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from typing import Any

from dynaflip.platform.triplets.clips import Clip, Source, content_hash
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow import TRACKERS, TRACKERS_3D, tracker_point
from dynaflip.platform.triplets.flow.flow_of_tracks import check_settings
from dynaflip.platform.triplets.flow.learned_tracker import (
    flow_in_3d,
    load_tracker,
    tracks_windows,
)
from dynaflip.platform.triplets.models import CAPTIONERS, DEPTH_MODELS
from dynaflip.platform.triplets.place import place_of
from dynaflip.platform.triplets.shard import LoadedCaptioner, process_shard
from dynaflip.platform.triplets.sources.locations import fingerprints, root_and_files
from dynaflip.platform.triplets.work_folder import WorkFolder
from dynaflip.plugins import ExtensionPoint, split_argument

_DEPTH, _CAPTIONER, _TRACKER = "depth", "source.captioner", "track.tracker"


def uses_models(config: PreprocessConfig) -> bool:
    """Whether a model is loaded, so that actors serve better than tasks."""
    models = config.depth_models() or config.captioners()
    return bool(models) or tracks_windows(config.track.tracker)


def check_models(config: PreprocessConfig) -> None:
    """Refuse early what cannot be loaded.

    Raises:
        UserError: the setting, and what is wrong with its name.
    """
    for point, setting, name in _models(config):
        base, argument = split_argument(name)
        check = getattr(point.resolve(base, setting), "check", None)
        if check is not None:
            check(argument)
    if flow_in_3d(config):
        check_settings(config)
    if tracks_windows(config.track.tracker):
        load_tracker(config.track.tracker)


def digests_of_models(config: PreprocessConfig) -> dict[str, str]:
    """Digest of each model of the settings, by its name: other weights make other triplets.

    A file or folder has a fingerprint of its content, a hub id its commit, which the hub is asked
    for once, and an extension the fingerprint of its module's code.

    Raises:
        UserError: neither the hub nor the local cache knows a model.
    """
    digests = {}
    for point, setting, name in _models(config):
        base, argument = split_argument(name)
        if base in point.table:
            # Manifests have models of the built-in classes by their folder or hub id.
            digests[name if point in (TRACKERS, TRACKERS_3D) else argument] = _digest_of(argument)
        else:
            code = _digest_of(_code_of(point.resolve(base, setting)))
            digests[name] = content_hash(code, _digest_of(argument)) if argument else code
    return dict(sorted(digests.items()))


def _models(config: PreprocessConfig) -> list[tuple[ExtensionPoint, str, str]]:
    """Extension point, setting and name of every model of the settings."""
    models = [(DEPTH_MODELS, _DEPTH, name) for name in sorted(config.depth_models())]
    models += [(CAPTIONERS, _CAPTIONER, name) for name in sorted(config.captioners())]
    if tracks_windows(config.track.tracker):
        models.append((tracker_point(config.track.tracker), _TRACKER, config.track.tracker))
    return models


def _load(
    point: ExtensionPoint, name: str, setting: str, digests: Mapping[str, str] | None = None
) -> Any:
    """A model of the settings; of a hub id the commit in ``digests``, where it is there."""
    base, argument = split_argument(name)
    commit = (digests or {}).get(argument) if base in point.table else None
    if commit and not os.path.exists(argument):
        argument = f"{argument.partition('@')[0]}@{commit}"
    return point.resolve(base, setting)(*[argument] if argument else [])


def _code_of(extension: Any) -> str:
    """Path of the file that defines an extension, or its name where it has none."""
    try:
        return inspect.getsourcefile(extension) or repr(extension)
    except TypeError:
        return repr(extension)


def _digest_of(model: str) -> str:
    if not os.path.exists(model):
        from dynaflip.encoders import hub

        return hub.split_revision(hub.pinned(model))[1] or ""
    root, names = root_and_files(model)
    prints = fingerprints(root, names)
    return content_hash(*(part for name in names for part in (name, prints[name].digest)))


class ModelShards:
    """Loads its models once; a GPU is used where there is one."""

    def __init__(
        self,
        config: PreprocessConfig,
        folder: str,
        source: Source,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """Load the models.

        Args:
            config: the settings, which name them.
            folder: of the work.
            source: of the clips.
            digests: of :func:`digests_of_models`, so that all actors load one commit.
        """
        self.config, self.folder, self.source = config, folder, source
        self.depth_models = {
            name: _load(DEPTH_MODELS, name, _DEPTH, digests)
            for name in sorted(config.depth_models())
        }
        if tracks_windows(config.track.tracker):
            load_tracker(config.track.tracker)
        self.captioners = {name: _captioner(name, digests) for name in sorted(config.captioners())}

    def __call__(self, row: dict[str, Any]) -> list[dict[str, str]]:
        """Make a shard's triplets; one summary for each of its clips."""
        summaries = process_shard(
            row["name"],
            [Clip.from_json(text) for text in row["clips"]],
            self.source,
            self.config,
            WorkFolder(place_of(self.folder)),
            self.depth_models,
            self.captioners,
        )
        return [{"summary": json.dumps(summary)} for summary in summaries]


def _captioner(name: str, digests: Mapping[str, str] | None) -> LoadedCaptioner:
    model = _load(CAPTIONERS, name, _CAPTIONER, digests)
    digest = getattr(model, "digest", "") or content_hash(name, _digest_of(_code_of(type(model))))
    return LoadedCaptioner(model, digest)
