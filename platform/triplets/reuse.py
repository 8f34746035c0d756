"""Reuse of finished work, and versions of a triplet folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dynaflip.files import new_file, write_file
from dynaflip.platform.config_loader import flatten, to_dict
from dynaflip.platform.triplets.clips import TEMPORARY_STAGES, Clip, content_hash
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.shard import WorkFolder
from dynaflip.platform.triplets.versions import STAGE_VERSIONS, versions_of
from dynaflip.renames import current_key

# Settings that change no triplet; and those of sources, because each clip holds those that
# matter to it, so that an added source costs its own clips alone.
_BESIDE = ("max_rejected_share", "example_images", "clips_per_shard", "source", "sources")


def work_of(settings: dict[str, Any], clips: list[Clip], models: dict[str, str]) -> dict[str, Any]:
    """What a triplet folder is made from: settings that matter, input, models, stage versions."""
    flat = flatten({k: v for k, v in settings.items() if k not in _BESIDE})
    inputs = hashlib.sha256("".join(clip.digest() for clip in clips).encode()).hexdigest()
    return {"settings": flat, "input": inputs, "models": models, "stages": dict(STAGE_VERSIONS)}


def current_form(made_from: dict[str, Any]) -> dict[str, Any]:
    """A manifest's ``made_from`` in today's names of settings and stages.

    A setting that the manifest lacks has today's default, because a new setting leaves triplets
    as they were by default.
    """
    defaults = flatten({k: v for k, v in to_dict(PreprocessConfig()).items() if k not in _BESIDE})
    renamed = {
        current_key(PreprocessConfig, key): value for key, value in made_from["settings"].items()
    }
    unversioned = {"unknown": 1}
    return {
        "settings": defaults | renamed,
        "input": made_from["input"],
        "models": made_from.get("models", {}),
        "stages": versions_of(made_from) or unversioned,
    }


def work_key(work: dict[str, Any]) -> str:
    """Equal for equal work."""
    return content_hash(json.dumps(work, sort_keys=True))


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Differences between two ``made_from``, one line each; empty where there is no old one."""
    if not old:
        return []
    before, after = old["settings"], new["settings"]
    lines = [
        f"{key}: {before.get(key, 'not there')} → {after.get(key, 'not there')}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    lines += [
        f"{name}: its weights or code"
        for name, digest in new["models"].items()
        if old["models"].get(name, digest) != digest
    ]
    if old["input"] != new["input"]:
        lines.append("input: other recordings or captions, or other settings of a source")
    if "unknown" in old["stages"]:
        return [*lines, "stages: made by code without stage versions"]
    lines += [
        f"stages.{stage}: version {old['stages'][stage]} → {version} (see CHANGELOG.md)"
        for stage, version in new["stages"].items()
        if old["stages"].get(stage) != version
    ]
    return lines


def adopt_shards(
    folder: Path, made_from: dict[str, Any], clips: list[Clip], work: WorkFolder
) -> dict[int, list[Clip]]:
    """Adopt the shards of a finished folder that would be made again just the same.

    Those are the shards whose clips are all listed as they were, if settings and stages are
    the folder's own, and none was rejected for a temporary reason. So an added recording costs its
    own time alone.

    Returns:
        The clips of each shard that the work folder now holds, by its number.
    """
    before = read_finished(folder).get("made_from", {})
    if any(before.get(name) != made_from[name] for name in ("settings", "stages")):
        return {}
    # A model that was not there before made none of the shards: clips name theirs.
    if any(before["models"].get(n, digest) != digest for n, digest in made_from["models"].items()):
        return {}
    by_digest = {clip.digest(): clip for clip in clips}
    wanted = Counter(clip.digest() for clip in clips)  # a file may be listed twice
    adopted: dict[int, list[Clip]] = {}
    for done in sorted((folder / work.done.name).glob("part-*.json")):
        summaries = json.loads(done.read_text())
        digests = [summary["clip_digest"] for summary in summaries]
        is_temporary = any(summary["stage"] in TEMPORARY_STAGES for summary in summaries)
        if is_temporary or not Counter(digests) <= wanted:
            continue
        wanted -= Counter(digests)
        for file in (folder / work.triplets.name).glob(f"{done.stem}-*.parquet"):
            _link(file, work.triplets / file.name)
        _link(done, work.done / done.name)  # last: a shard with a summary is complete
        adopted[int(done.stem.removeprefix("part-"))] = [by_digest[d] for d in digests]
    return adopted


def temporary_rejections(folder: Path) -> int:
    """Number of clips of a finished folder that were rejected for a temporary reason."""
    file = folder / "rejected.parquet"
    if not file.is_file():
        return 0
    stages = pq.read_table(file, columns=["stage"])["stage"].to_pylist()
    return sum(stage in TEMPORARY_STAGES for stage in stages)


def _link(file: Path, to: Path) -> None:
    if to.exists():
        return
    try:
        os.link(file, to)
    except OSError:  # a file system without hard links
        with new_file(to) as unfinished:
            shutil.copy2(file, unfinished)


def read_finished(folder: Path) -> dict[str, Any]:
    """The manifest of a folder in today's form, or {} where there is none that can be read."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(manifest, dict):
        return {}
    made_from = manifest.get("made_from")
    if isinstance(made_from, dict) and {"settings", "input"} <= made_from.keys():
        made_from = current_form(made_from)
        manifest |= {"made_from": made_from, "work_key": work_key(made_from)}
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json``."""
    write_file(folder / "manifest.json", json.dumps(manifest, indent=1))
