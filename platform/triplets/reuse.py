"""Reuse of finished work, and versions of a triplet folder."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from dynaflip.platform.config_loader import flatten, to_dict
from dynaflip.platform.s3_errors import NetworkError
from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.clips import TEMPORARY_STAGES, Clip, content_hash
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.folder_index import TRIPLETS, set_files
from dynaflip.platform.triplets.place import Place
from dynaflip.platform.triplets.versions import STAGE_VERSIONS, versions_of
from dynaflip.platform.triplets.work_folder import StoredClip, WorkFolder, read_stored
from dynaflip.renames import current_key

# Settings that change no triplet; and those of sources, because each clip holds those that
# matter to it, so that an added source costs its own clips alone.
_BESIDE = (
    "max_rejected_share",
    "example_images",
    "clips_per_shard",
    "part_mb",
    "source",
    "sources",
)


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


@dataclass(frozen=True)
class Adopted:
    """Clips of a finished folder that would be made again just the same.

    Args:
        parts: summaries' JSON files of Parquet files whose clips are all wanted: both stay as
            they are.
        clips: of every such file, and the wanted ones of all others.
    """

    parts: tuple[Place, ...] = ()
    clips: tuple[StoredClip, ...] = ()

    def loose(self) -> list[StoredClip]:
        """Clips of files that hold others, too: they move to new files."""
        whole = {part.stem for part in self.parts}
        return [clip for clip in self.clips if clip.file is None or clip.file.stem not in whole]


def adopt_clips(folder: Place, made_from: dict[str, Any], clips: list[Clip]) -> Adopted:
    """Adopt the clips of a finished folder that would be made again just the same.

    Those are the clips that are listed as they were, if settings and stages are the folder's own,
    and that were not rejected for a temporary reason. So an added recording costs its own time
    alone.
    """
    before = read_finished(folder).get("made_from", {})
    if any(before.get(name) != made_from[name] for name in ("settings", "stages")):
        return Adopted()
    # A model that was not there before made none of the clips: they name theirs.
    if any(before["models"].get(n, digest) != digest for n, digest in made_from["models"].items()):
        return Adopted()
    wanted = Counter(clip.digest() for clip in clips)  # a file may be listed twice
    parts, adopted = [], []
    finished = finished_work(folder)
    files = [finished.done / name for name in place.names(finished.done)]
    for done, text in zip(files, place.read_texts(files), strict=True):
        stored = read_stored(text, finished.triplets)
        kept = []
        for clip in stored:
            digest = clip.summary["clip_digest"]
            if wanted[digest] and clip.summary["stage"] not in TEMPORARY_STAGES:
                wanted[digest] -= 1
                kept.append(clip)
        if kept and len(kept) == len(stored) and kept[0].file is not None:
            parts.append(done)
        adopted += kept
    return Adopted(tuple(parts), tuple(adopted))


def link_parts(adopted: Adopted, work: WorkFolder) -> None:
    """Give the work folder the adopted Parquet files, and then their summaries."""
    if work.parts is None:  # otherwise both sets have their Parquet files there
        for done in adopted.parts:
            file = done.parent.parent / TRIPLETS / f"{done.stem}.parquet"
            place.copy(file, work.triplets / file.name)
    place.copy_all([(done, work.done / done.name) for done in adopted.parts])


def temporary_rejections(folder: Place) -> int:
    """Number of clips of a finished folder that were rejected for a temporary reason."""
    file = finished_work(folder).path / "rejected.parquet"
    if not file.is_file():
        return 0
    stages = place.read_table(file, ["stage"])["stage"].to_pylist()
    return sum(stage in TEMPORARY_STAGES for stage in stages)


def read_finished(folder: Place) -> dict[str, Any]:
    """The manifest of a folder in today's form, or {} where there is none that can be read."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except NetworkError:  # there may be one
        raise
    except (OSError, ValueError):
        return {}
    if not isinstance(manifest, dict):
        return {}
    made_from = manifest.get("made_from")
    if isinstance(made_from, dict) and {"settings", "input"} <= made_from.keys():
        made_from = current_form(made_from)
        manifest |= {"made_from": made_from, "work_key": work_key(made_from)}
    return manifest


def finished_work(folder: Place) -> WorkFolder:
    """The set that a folder's manifest names."""
    return WorkFolder(set_files(folder, read_finished(folder)), folder / TRIPLETS)


def write_manifest(folder: Place, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json``."""
    place.write(folder / "manifest.json", json.dumps(manifest, indent=1))
