"""Entries of a merged set's manifest that follow from those of its inputs, in any order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dynaflip.platform.config_loader import to_dict
from dynaflip.platform.triplets.clips import content_hash
from dynaflip.platform.triplets.config import SourceConfig

Manifest = Mapping[str, Any]


def union_made_from(manifests: Sequence[Manifest], preferred: str) -> dict[str, Any]:
    """Entry ``made_from``, which changes with anything that the union is made from.

    Args:
        manifests: of the inputs, in today's form.
        preferred: digest of the input whose triplets are taken where others differ, or "".
    """
    keys = sorted(f"{one['work_key']} {one['digest']}" for one in manifests)
    made_from = [one["made_from"] for one in manifests]
    stages = [one["stages"] for one in made_from]
    return {
        "settings": _common([one["settings"] for one in made_from]),
        "input": content_hash("merge", preferred, *keys),
        "models": {name: digest for one in made_from for name, digest in one["models"].items()},
        "stages": {name: min(some.get(name, 1) for some in stages) for name in stages[0]},
    }


def union_entries(inputs: Mapping[str, Manifest]) -> dict[str, Any]:
    """Entries on settings, sources, inputs and recordings that changed sides.

    Args:
        inputs: manifests by the folder's name.
    """
    moved = {k: v for one in inputs.values() for k, v in one.get("moved_recordings", {}).items()}
    return {
        "settings": _settings([one["settings"] for one in inputs.values()]),
        "sources": _sources(inputs.values()),
        "merged": [{"folder": name, **_about(one)} for name, one in inputs.items()],
        **({"moved_recordings": moved} if moved else {}),
    }


def _common(dictionaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Entries that all have, with the same value."""
    first, *others = dictionaries
    return {
        name: value
        for name, value in sorted(first.items())
        if all(name in other and other[name] == value for other in others)
    }


def _settings(every: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings that are equal, all sources, and the smallest images."""
    sources = [source for some in every for source in (some.get("sources") or [some["source"]])]
    unique = {json.dumps(source, sort_keys=True): source for source in sources}
    return {
        **_common(every),
        "image_px": min(some["image_px"] for some in every),
        "source": to_dict(SourceConfig()),
        "sources": [unique[text] for text in sorted(unique)],
    }


def _sources(manifests: Iterable[Manifest]) -> dict[str, dict[str, Any]]:
    about: dict[str, dict[str, Any]] = {}
    for one in manifests:
        for name, known in one["sources"].items():
            about.setdefault(name, {k: known[k] for k in ("format", "weight") if k in known})
    return dict(sorted(about.items()))


def _about(one: Manifest) -> dict[str, Any]:
    return {name: one[name] for name in ("digest", "version", "settings", "made_from")}
