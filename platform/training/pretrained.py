"""The pretrained weights that a run starts from: pinned to a commit, and told apart by content."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

from dynaflip.encoders.backbones import BACKBONES
from dynaflip.encoders.config import MINILM, ModelConfig
from dynaflip.files import write_file
from dynaflip.platform.paths import cache_folder
from dynaflip.platform.triplets.clips import content_hash


def pin_models(
    model: ModelConfig,
    earlier: tuple[str, str] = ("", ""),
    log: Callable[[str], None] = lambda line: None,
) -> ModelConfig:
    """The settings with a commit in each hub id, so that every worker takes the same weights.

    Args:
        model: the settings.
        earlier: image and language model of the run that is continued: their commits stay.
        log: takes a line for each id that is pinned.

    Raises:
        UserError: neither the hub nor the local cache knows a model.
    """
    image, language = model.image.name, model.language.name
    if not BACKBONES.knows(image):
        image = _pinned("model.image.name", image, earlier[0], log)
    if language != MINILM:
        language = _pinned("model.language.name", language, earlier[1], log)
    return dataclasses.replace(
        model,
        image=dataclasses.replace(model.image, name=image),
        language=dataclasses.replace(model.language, name=language),
    )


def _pinned(setting: str, name: str, before: str, log: Callable[[str], None]) -> str:
    if before.startswith(f"{name}@"):
        return before
    pinned = _pinned_once(name)
    if pinned != name:
        log(f"{setting} {name} is pinned to {pinned}")
    return pinned


@functools.cache
def _pinned_once(name: str) -> str:
    """The hub is asked once a process: a sweep's trials all start from one commit."""
    from dynaflip.encoders import hub

    return hub.pinned(name)


def weights_identities(model: ModelConfig) -> tuple[str, str]:
    """Identities of the initial weights of the image backbone and of the text model.

    Raises:
        UserError: a model cannot be reached.
    """
    from dynaflip.encoders.backbones import backbone_class
    from dynaflip.encoders.language import weights_identity

    backbone = backbone_class(model.image.name)
    return (
        backbone.weights_identity(model.image, remembered_digest),
        weights_identity(model.language, remembered_digest),
    )


def remembered_digest(folder: Path) -> str:
    """Digest of a model folder's content, read again only where a file has changed.

    A file has not changed where its name, size and times are those of before.
    """
    from dynaflip.encoders import hub

    folder = folder.absolute()
    stats = {path.name: path.stat() for path in hub.deciding_files(folder)}
    files = {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats.items()}
    remembered = cache_folder() / "weights" / f"{content_hash(str(folder))[:32]}.json"
    try:
        known = json.loads(remembered.read_text())
        if known["files"] == files:
            return str(known["digest"])
    except (OSError, ValueError, KeyError):
        pass
    digest = hub.content_digest(folder)
    write_file(remembered, json.dumps({"folder": str(folder), "files": files, "digest": digest}))
    return digest
