"""When finished work is reused, and what makes a new version of a triplet folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from dynaflip.platform.config import flatten
from dynaflip.platform.triplets.clips import Clip, content_hash
from dynaflip.platform.triplets.digest import code_digest

# Settings that do not change any triplet.
_BESIDE = ("max_rejected_share", "example_pictures", "source.path", "source.weight")


def work_of(settings: dict[str, Any], clips: list[Clip]) -> dict[str, Any]:
    """What a triplet folder is made from: settings that matter, input and code."""
    own = dict(settings)
    own["sources"] = [
        {k: v for k, v in source.items() if f"source.{k}" not in _BESIDE}
        for source in settings["sources"]
    ]
    flat = {k: v for k, v in flatten(own).items() if k not in _BESIDE}
    inputs = hashlib.sha256("".join(clip.digest() for clip in clips).encode()).hexdigest()
    return {"settings": flat, "input": inputs, "code": code_digest()}


def work_key(work: dict[str, Any]) -> str:
    """Equal for equal work."""
    return content_hash(json.dumps(work, sort_keys=True))


def changes(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """What differs between two pieces of work, a line each; empty where there is no old one."""
    if old is None:
        return []
    before, after = old["settings"], new["settings"]
    lines = [
        f"{key}: {before.get(key, 'not there')} → {after.get(key, 'not there')}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    lines += ["input: other recordings or captions"] if old["input"] != new["input"] else []
    lines += ["code: preprocessing itself"] if old["code"] != new["code"] else []
    return lines


def read_finished(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, or {} where there is none that can be read."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json`` so that it is there whole or not at all."""
    part = folder / ".manifest.json.part"
    part.write_text(json.dumps(manifest, indent=1))
    os.replace(part, folder / "manifest.json")
