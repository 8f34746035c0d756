"""A user's models (depth, captions, tracks): checked early, named by digests, loaded in stages."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clip_in_work import ModelStage
from dynaflip.platform.triplets.clips import content_hash
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow import TRACKERS, TRACKERS_3D, tracker_point
from dynaflip.platform.triplets.flow.flow_of_tracks import check_settings
from dynaflip.platform.triplets.flow.learned_tracker import (
    flow_in_3d,
    load_tracker,
    tracks_windows,
)
from dynaflip.platform.triplets.model_stages import CaptionStage, DepthStage, TrackStage
from dynaflip.platform.triplets.models import CAPTIONERS, DEPTH_MODELS
from dynaflip.platform.triplets.models.captioner import LoadedCaptioner
from dynaflip.platform.triplets.models.depth import works_by_window
from dynaflip.platform.triplets.sources.locations import fingerprints, root_and_files
from dynaflip.platform.triplets.stage_config import ModelStageConfig
from dynaflip.plugins import ExtensionPoint, split_argument

CAPTIONS, DEPTH, TRACK = "captions", "depth", "track"  # names of stages
_DEPTH, _CAPTIONER, _TRACKER = "depth", "source.captioner", "track.tracker"


def uses_models(config: PreprocessConfig) -> bool:
    """True where a model is loaded, so that actors serve better than tasks."""
    return bool(stage_names(config))


def check_models(config: PreprocessConfig) -> None:
    """Refuse early what cannot be loaded.

    Raises:
        UserError: the setting, and what is wrong with its name.
    """
    for point, setting, name in _models(config):
        base, argument = split_argument(name)
        model = point.resolve(base, setting)
        method = "describe" if point is CAPTIONERS else "__call__"
        if _lacks(model, method):
            kind = point.kind.replace("_", " ")
            raise UserError(f"{setting}: {name} is no {kind}: it has no method {method}")
        if (check := getattr(model, "check", None)) is not None:
            check(argument)
    _check_stages(config)
    if flow_in_3d(config):
        check_settings(config)
    if tracks_windows(config.track.tracker):
        load_tracker(config.track.tracker)


def _check_stages(config: PreprocessConfig) -> None:
    """Refuse settings of stages that the job does not have."""
    names = stage_names(config)
    for name in (CAPTIONS, DEPTH, TRACK):
        if name not in names and getattr(config.stages, name) != ModelStageConfig():
            raise UserError(f"stages.{name}: the settings name no model that runs there")
    for name, setting in ((CAPTIONS, "stages.caption_batch"), (DEPTH, "stages.depth_batch")):
        if name not in names and getattr(config.stages, setting.partition(".")[2]):
            raise UserError(f"{setting}: the settings name no model that it is for")
    if DEPTH not in names and config.depth_precision != "auto":
        raise UserError("depth_precision: no depth model is named by depth")
    _check_abilities(config)


def _check_abilities(config: PreprocessConfig) -> None:
    """Refuse settings that no model takes, as far as their classes tell."""
    depth = _classes(DEPTH_MODELS, _DEPTH, config.depth_models())
    captioners = _classes(CAPTIONERS, _CAPTIONER, config.captioners())
    for name, model in depth.items():
        if config.depth_precision not in ("auto", "float32") and _lacks(model, "use_precision"):
            raise UserError(f"depth_precision: {name} has no method use_precision, which sets it")
    one_by_one = all(_lacks(model, "describe_all") for model in captioners.values())
    if config.stages.caption_batch > 1 and one_by_one:
        raise UserError(
            f"stages.caption_batch: {' and '.join(captioners)} has no method describe_all, which "
            f"takes several clips"
        )
    if config.stages.depth_batch > 1 and all(_is_by_window(model) for model in depth.values()):
        raise UserError(
            f"stages.depth_batch: {' and '.join(depth)} is given the frames of one window at a time"
        )


def _classes(point: ExtensionPoint, setting: str, names: set[str]) -> dict[str, Any]:
    """The classes, or functions that make models, by the names of settings."""
    return {name: point.resolve(split_argument(name)[0], setting) for name in sorted(names)}


def _lacks(model: Any, method: str) -> bool:
    """The class of a model has no such method; of a function nothing is known yet."""
    # Not hasattr: every class can be called.
    return isinstance(model, type) and not any(method in vars(base) for base in model.__mro__)


def _is_by_window(model: Any) -> bool:
    """The class of a depth model says that it works so."""
    return isinstance(model, type) and works_by_window(model)


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


def load_stages(
    config: PreprocessConfig, digests: Mapping[str, str] | None = None
) -> dict[str, ModelStage]:
    """Load all models of the settings: their stages by name, in the order of work.

    Args:
        config: the settings, which name them.
        digests: of :func:`digests_of_models`, so that all actors load one commit.
    """
    return {name: load_stage(name, config, digests) for name in stage_names(config)}


def stage_names(config: PreprocessConfig) -> list[str]:
    """The stages of the models that the settings name, in the order of work."""
    wanted = {
        CAPTIONS: bool(config.captioners()),
        DEPTH: bool(config.depth_models()),
        TRACK: tracks_windows(config.track.tracker),
    }
    return [name for name, there in wanted.items() if there]


def load_stage(
    name: str, config: PreprocessConfig, digests: Mapping[str, str] | None = None
) -> ModelStage:
    """Load the models of one stage; a GPU is used where this process has one."""
    if name == CAPTIONS:
        captioners = {kind: _captioner(kind, digests) for kind in sorted(config.captioners())}
        batch = config.stages.caption_batch or (8 if _on_gpu() else 1)
        return CaptionStage(captioners, batch)
    if name == DEPTH:
        models = {
            model: _load(DEPTH_MODELS, model, _DEPTH, digests)
            for model in sorted(config.depth_models())
        }
        for model, loaded in models.items():
            _set_precision(loaded, model, config.depth_precision)
        return DepthStage(models, config.stages.depth_batch or (16 if _on_gpu() else 1))
    return TrackStage(load_tracker(config.track.tracker), config.track.tracker)


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _set_precision(model: Any, name: str, precision: str) -> None:
    use = getattr(model, "use_precision", None)
    if precision == "auto":
        if use is not None and _on_gpu():
            use("float16")
    elif use is not None:
        use(precision)
    elif precision != "float32":
        raise UserError(f"depth_precision: {name} has no other precision than its own")


def _captioner(name: str, digests: Mapping[str, str] | None) -> LoadedCaptioner:
    model = _load(CAPTIONERS, name, _CAPTIONER, digests)
    digest = getattr(model, "digest", "") or content_hash(name, _digest_of(_code_of(type(model))))
    return LoadedCaptioner(model, digest)
