"""Entries of the setting ``encoders``: which encoders an evaluation compares with, and how.

Imports neither torch nor Ray: settings read their entries for ``--help``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dynaflip.encoders.config import IMAGE_POOLINGS

BASELINES = ("initialization", "imagenet", "random")
_BASELINE_WORDS = {name: name for name in BASELINES} | {"initialisation": "initialization"}
_ENTRY = re.compile(r"(?P<name>[^\[=]*?)\s*(\[(?P<options>[^\]]*)\]\s*)?=(?P<uris>.*)", re.DOTALL)
_SHAPE = (
    "NAME=URI or NAME=URI,URI, with options as NAME[mean,224px]=URI; or a baseline "
    f"({', '.join(BASELINES)}), a models:/ URI, a hub id or a folder alone"
)


@dataclass(frozen=True)
class EncoderEntry:
    """One entry, as it was written."""

    name: str  # in tables and metrics
    uris: tuple[str, ...] = ()  # one, or one per pretraining seed; none for a baseline
    baseline: str | None = None  # one of BASELINES
    pooling: str | None = None  # None: the model's own or its family's
    image_px: int | None = None  # None: the model's own
    licence: str = ""  # the user's words

    def options(self) -> bool:
        """True if the entry says how an outside model is read."""
        return self.pooling is not None or self.image_px is not None


def read_entry(text: str) -> EncoderEntry:
    """Read one entry.

    Raises:
        ValueError: it is none, or an option is unknown; the message names the entry.
    """
    if (word := text.strip()) in _BASELINE_WORDS:
        return EncoderEntry(_BASELINE_WORDS[word], baseline=_BASELINE_WORDS[word])
    match = _ENTRY.fullmatch(text)
    if match is None:
        if "/" not in word or "," in word:
            raise ValueError(f"encoders: {text!r} must read {_SHAPE}")
        return EncoderEntry(_checked(_name_of(word)), (word,))
    uris = tuple(uri.strip() for uri in match["uris"].split(",") if uri.strip())
    name = match["name"].strip()
    if not name or not uris:
        raise ValueError(f"encoders: {text!r} must read {_SHAPE}")
    chosen = _options(match["options"], text)
    return EncoderEntry(_checked(name), uris, None, *chosen)


def read_entries(texts: Sequence[str]) -> list[EncoderEntry]:
    """Read all entries of the setting.

    Raises:
        ValueError: as of :func:`read_entry`, or two have one name.
    """
    entries = [read_entry(text) for text in texts]
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"encoders: two are called {name}; name them NAME=URI")
    return entries


def _checked(name: str) -> str:
    """The name, which becomes a metric's."""
    if not re.fullmatch(r"[\w .-]+", name):
        raise ValueError(f"encoders: the name {name!r} may hold letters, digits, spaces and _ . -")
    return name


def _name_of(uri: str) -> str:
    """``dynaflip 3`` of ``models:/dynaflip/3``, ``dinov2-base`` of ``facebook/dinov2-base``."""
    if uri.startswith("models:/"):
        return uri.removeprefix("models:/").replace("/", " ").replace("@", " ")
    return uri.rstrip("/").rsplit("/", 1)[-1].partition("@")[0]


def _options(text: str | None, entry: str) -> tuple[str | None, int | None, str]:
    """Pooling, side in pixels and licence."""
    pooling, image_px, licence = None, None, ""
    for word in [] if text is None else [word.strip() for word in text.split(",")]:
        if word in IMAGE_POOLINGS:
            pooling = word
        elif match := re.fullmatch(r"(\d+) ?px", word):
            image_px = int(match[1])
        elif match := re.fullmatch(r"licence[:=] ?(.+)", word):
            licence = match[1].strip()
        else:
            raise ValueError(
                f"encoders: {entry!r} has the option {word!r}; known: "
                f"{', '.join(IMAGE_POOLINGS)}, a side such as 224px, licence: WORDS"
            )
    return pooling, image_px, licence
