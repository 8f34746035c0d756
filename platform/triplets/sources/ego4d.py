"""Ego4D-style narrations: long videos, captions that belong to a moment.

``narration.json`` (or ``all_narrations_redacted.json``) maps a video's id to passes of
``{"narration_text": "#C C picks up a cup", "timestamp_sec": 12.3}``; the videos are
``ID.mp4``. A narration is about the time around its moment: the clip is that of
``source.narration_s`` seconds with the moment in the middle.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.triplets.sources.captions import CaptionRow
from dynaflip.platform.triplets.sources.folder import VIDEO_ENDINGS, FolderSource
from dynaflip.platform.triplets.sources.locations import Location, why_unreadable

_NARRATIONS = re.compile(r"(^|/)(all_)?narrations?(_redacted)?\.json$")
_PASSES = ("narration_pass_1", "narration_pass_2")
# "#C C does": the wearer of the camera; "#O A man Y does": somebody else.
_WHO = re.compile(r"^\s*#\s*[CO]\s+(?:(?:A\s+)?(?:[a-z]+\s+){0,2}[A-Z]\b\s*)?")
_TAGS = re.compile(r"#\s*(?:unsure|summary|c|o)\b", re.IGNORECASE)


class Ego4DSource(FolderSource):
    """Parts of long videos around narrated moments."""

    format = "ego4d"
    looks_for = "narration.json"
    takes_captions = False
    ends_within = False  # what is narrated near a video's end has less than narration_s
    embodiment = "human"
    licence = "Ego4D License"

    @classmethod
    def detect(cls, root: Location, names: list[str]) -> bool:
        """A file of narrations and a video."""
        narrated = any(_NARRATIONS.search(name) for name in names)
        return narrated and super().detect(root, names)

    def read_rows(self, names: list[str]) -> list[CaptionRow]:
        """A caption a narration of the videos that are there."""
        videos = {PurePosixPath(n).stem: n for n in names if n.lower().endswith(VIDEO_ENDINGS)}
        rows = []
        for name in names:
            if _NARRATIONS.search(name):
                for video, narrations in self._narrations(name).items():
                    if video in videos:
                        rows += list(self._rows(videos[video], narrations))
        if not rows:
            raise UserError(f"source.path: no narration in {self.root} belongs to a video there")
        return rows

    def _rows(self, file: str, narrations: list[Any]) -> Iterator[CaptionRow]:
        half_s = self.config.narration_s / 2
        for narration in narrations:
            try:
                text, moment_s = narration["narration_text"], float(narration["timestamp_sec"])
            except (KeyError, TypeError, ValueError):
                yield CaptionRow(file, problem="a narration without text or time")
                continue
            if not isinstance(text, str) or not math.isfinite(moment_s) or moment_s < 0:
                yield CaptionRow(file, problem=f"a narration {text!r} at {moment_s} s")
                continue
            start_s = max(0.0, moment_s - half_s)
            caption = plain_narration(text)
            yield CaptionRow(
                file, caption, start_s=start_s, end_s=start_s + self.config.narration_s
            )

    def _narrations(self, name: str) -> dict[str, list[Any]]:
        """Narrations by video, of the first pass that has some."""
        try:
            content = json.loads((self.root / name).read_text(encoding="utf-8-sig"))
            content = content.get("videos", content)
            out = {}
            for video, passes in content.items():
                several = [(passes.get(one) or {}).get("narrations") for one in _PASSES]
                # Older files list the narrations of a video without passes.
                several.append(passes.get("narrations"))
                out[str(video)] = next((list(found) for found in several if found), [])
        except (OSError, ValueError, AttributeError, TypeError) as error:
            why = why_unreadable(self.root / name, error)
            raise UserError(f"{self.root / name}: not readable as narrations ({why})") from None
        return out


def plain_narration(text: str) -> str:
    """``#C C picks up a cup #unsure`` becomes ``a person picks up a cup``."""
    found = _WHO.match(text)
    rest = _TAGS.sub(" ", text[found.end() :] if found else text)
    words = " ".join(rest.split()).rstrip(" .")
    return f"a person {words}" if found and words else words
