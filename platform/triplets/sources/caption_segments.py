"""Rows of a table of captions by the segment of a video that they are about."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from dynaflip.platform.triplets.sources.captions import CaptionRow

# Columns in which the rows of a segment, its phrasings, say the same.
_ONE_A_SEGMENT = ("task", "recording", "camera", "licence", "embodiment", "depth")


def span_of(row: CaptionRow) -> str:
    """The part of a video that a row is about, as the clip's id has it."""
    return f"{row.start_s or 0.0!r} {row.end_s!r}"


def segments_of(rows: list[CaptionRow]) -> list[list[CaptionRow]]:
    """Rows of a video by their segment, without those that cannot be used.

    A video without rows is one segment.
    """
    if not rows:
        return [[CaptionRow("")]]
    segments: dict[str, list[CaptionRow]] = defaultdict(list)
    # A video is of one recording, whatever segment of it a row is about.
    recordings = _two_of("recording", good := [row for row in rows if not row.problem])
    for row in good:
        segments[span_of(row)].append(replace(row, problem=recordings))
    return list(segments.values())


def merged(rows: list[CaptionRow]) -> CaptionRow:
    """What the rows of a segment say together; ``problem`` where two of them disagree."""
    said = {}
    problem = rows[0].problem
    for name in _ONE_A_SEGMENT:
        said[name] = next((value for row in rows if (value := getattr(row, name))), "")
        problem = problem or _two_of(name, rows)
    return replace(rows[0], **said, problem=problem)  # type: ignore[arg-type]


def _two_of(name: str, rows: list[CaptionRow]) -> str:
    """A problem where rows have two values in a column that should have one, else ""."""
    values = list(dict.fromkeys(value for row in rows if (value := getattr(row, name))))
    if len(values) < 2:
        return ""
    return f"its captions have {name} {values[0]!r} and {name} {values[1]!r}: leave one"
