"""Reuse of finished work, and versions of a triplet folder."""

from __future__ import annotations

import json
from typing import Any

from dynaflip.platform.config_loader import flatten, to_dict
from dynaflip.platform.s3_errors import NetworkError
from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.clips import TEMPORARY_STAGES, content_hash
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.folder_index import TRIPLETS, set_files
from dynaflip.platform.triplets.place import Place
from dynaflip.platform.triplets.versions import STAGE_VERSIONS, versions_of
from dynaflip.platform.triplets.work_folder import WorkFolder
from dynaflip.renames import current_key

# Settings that change no triplet; and those of sources, because each clip holds those that
# matter to it, so that an added source costs its own clips alone.
_BESIDE = (
    "max_rejected_share",
    "example_images",
    "clips_per_shard",
    "part_mb",
    "stages",
    "source",
    "sources",
)


def work_of(settings: dict[str, Any], models: dict[str, str], inputs: str = "") -> dict[str, Any]:
    """All that a triplet folder is made from: settings that matter, input, models, stage versions.

    Args:
        settings: of the job.
        models: their digests by name.
        inputs: digest of all clips, "" as long as they are not listed.
    """
    flat = flatten({k: v for k, v in settings.items() if k not in _BESIDE})
    return {"settings": flat, "input": inputs, "models": models, "stages": dict(STAGE_VERSIONS)}


def without_input(made_from: dict[str, Any]) -> dict[str, Any]:
    """The same work on any clips."""
    return {**made_from, "input": ""}


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


def can_adopt(finished: dict[str, Any], made_from: dict[str, Any]) -> bool:
    """True where clips of a finished folder that are listed as they were need not be made again.

    So an added recording costs its own time alone.
    """
    before = finished.get("made_from", {})
    if any(before.get(name) != made_from[name] for name in ("settings", "stages")):
        return False
    # A model that was not there before made none of the clips: they name theirs.
    return all(
        before["models"].get(n, digest) == digest for n, digest in made_from["models"].items()
    )


def link_parts(finished: WorkFolder, names: list[str], work: WorkFolder) -> None:
    """Give the work folder Parquet files of a finished set, and then their summaries."""
    if work.parts is None:  # otherwise both sets have their Parquet files there
        for name in names:
            file = f"{name}.parquet"
            place.copy(finished.triplets / file, work.triplets / file)
    done = [f"{name}.json" for name in names]
    place.copy_all([(finished.done / name, work.done / name) for name in done])


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
