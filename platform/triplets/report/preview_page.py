"""The page and the lines of a preview: what clips became, what was rejected, and the cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from dynaflip.files import write_file
from dynaflip.platform.config_loader import flatten, to_dict
from dynaflip.platform.settings_text import commented_yaml
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.preview import Drawn, Made, Thumbnail
from dynaflip.platform.triplets.report.cautions import camera_lines, interpolated_lines
from dynaflip.platform.triplets.report.data_card import captions, histograms, in_words, notes
from dynaflip.platform.triplets.report.example_cards import LEGEND, example
from dynaflip.platform.triplets.report.examples import read_examples
from dynaflip.platform.triplets.report.html_parts import (
    details,
    figure,
    image,
    numbers,
    page,
    table,
    text,
)
from dynaflip.platform.triplets.report.inspection import Inspection, inspect_files
from dynaflip.platform.triplets.report.view_3d import TURN_SCRIPT
from dynaflip.platform.triplets.report.words import reason_words, stage_words
from dynaflip.platform.triplets.schema import REJECTED_SCHEMA

_THUMBNAIL_PX = 110  # short side on the page


@dataclass(frozen=True)
class Cost:
    """Cost of the whole set.

    Args:
        seconds, spread_s: and twice its standard error.
        workers: that make clips at a time, in words.
    """

    seconds: float
    spread_s: float
    workers: str


@dataclass(frozen=True)
class Preview:
    """All that a preview shows.

    Args:
        name: of the source.
        config: the settings that clips were made with.
        drawn: how clips were drawn.
        made: what became of each.
        cost: of the whole set.
        rejected: clips that were rejected.
        left_out: some of the windows that were left out.
        folder: that holds the shards.
    """

    name: str
    config: PreprocessConfig
    drawn: Drawn
    made: Sequence[Made]
    cost: Cost
    rejected: Sequence[Thumbnail]
    left_out: Sequence[Thumbnail]
    folder: Path


def clip_line(one: Made) -> str:
    """One line on a clip that was made, for the terminal."""
    summary = one.summary
    if summary["stage"]:
        verdict = f"rejected: {stage_words(summary['stage'])}: {summary['reason']}"
    else:
        verdict = f"{len(summary['rows'])} triplets"
        if left_out := sum(summary["left_out"].values()):
            verdict += f", {left_out} window{'s'[: left_out > 1]} left out"
    camera = f" ({one.clip.camera})" if one.clip.camera else ""
    return f"{one.seconds:6.1f} s  {summary['path']}{camera}: {verdict}"


def cost_sentence(found: Preview) -> str:
    """How long the whole set would take."""
    cost, drawn = found.cost, found.drawn
    total = drawn.listed.total()
    spread = f" ± {duration(cost.spread_s)}" if cost.spread_s >= 0.05 * cost.seconds else ""
    clips = f"{total:,} {'clip' if total == 1 else 'clips'}"
    whole = f"{clips} on {cost.workers}: about {duration(cost.seconds)}{spread}"
    if drawn.complete:
        return f"{whole}, reckoned from {len(found.made)}, without start and compaction"
    return (
        f"{whole} for these alone: listing was stopped after {drawn.seconds:.0f} s, there are more "
        f"clips, and the preview is drawn from the first {total:,}"
    )


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def write_page(found: Preview, path: Path) -> None:
    """Write the page; it stands alone."""
    files = sorted((found.folder / "shards").glob("*.parquet"))
    kept = [one for one in found.made if not one.summary["stage"]]
    triplets = sum(len(one.summary["rows"]) for one in kept)
    windows = sum(sum(one.summary["left_out"].values()) for one in found.made)
    mean_s = sum(one.seconds for one in found.made) / max(1, len(found.made))
    parts = [
        f"<h1>Preview of {text(found.name)}</h1>",
        f"<p class=soft>{len(found.made)} of {found.drawn.listed.total():,} clips, drawn by hash "
        f"over sources, cameras and recordings, made as the job would make them</p>",
        numbers(
            {
                "triplets": triplets,
                "clips kept": len(kept),
                "clips rejected": len(found.made) - len(kept),
                "windows left out": windows,
                "seconds a clip": f"{mean_s:.1f}",
                "for the whole set": f"≈ {duration(found.cost.seconds)}",
            }
        ),
        f"<p>{text(cost_sentence(found))}.</p>",
        *notes(_notes(found, len(kept))),
    ]
    if kept:
        counts = {"windows_left_out": _left_out(found.made)}
        rejected = pl.DataFrame(schema=dict.fromkeys(REJECTED_SCHEMA.names, pl.String))
        parts += _flow(inspect_files(found.folder, {"counts": counts}, files, rejected), found)
    parts += [
        "<h2>Rejected clips</h2>",
        _thumbnails(found.rejected, "none of these clips is rejected"),
        "<h2>Windows left out by the filters</h2>",
        _thumbnails(found.left_out, "no window of these clips is left out"),
        "<h2>Clip by clip</h2>",
        table(_clips(found.made)),
        "<h2>Settings</h2>",
        *_settings(found.config),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page(f"Preview of {found.name}", parts, TURN_SCRIPT))


def _flow(inspection: Inspection, found: Preview) -> list[str]:
    """Sections that show triplets."""
    seconds = {one.clip.clip_id: one.seconds for one in found.made}
    rows = read_examples(inspection.files, len(found.made))
    return [
        *notes(camera_lines(inspection.camera_counts())),
        "<h2>Where flow, depth and camera motion are from</h2>",
        table(in_words(inspection.ways())),
        "<h2>Triplets</h2><p>Of each clip the window with most motion, from most to least.</p>",
        LEGEND,
        *(example(row, [f"the clip took {seconds[row['clip_id']]:.1f} s"]) for row in rows),
        "<h2>Motion and visibility</h2>",
        f"<div class=row>{''.join(histograms(inspection))}</div>",
        "<h2>Captions</h2>",
        *captions(inspection),
    ]


def _notes(found: Preview, kept: int) -> list[str]:
    lines = []
    share = 1 - kept / len(found.made)
    if share > found.config.max_rejected_share:
        lines.append(
            f"{share:.0%} of these clips are rejected: with more than max_rejected_share="
            f"{found.config.max_rejected_share:g} the job would fail"
        )
    lines += interpolated_lines({"sources": _by_source(found.made)})
    # Of clips that a captioner captions, what it says is in their triplets alone.
    spoken = [one.clip.captions for one in found.made if not one.summary["stage"]]
    if len(spoken) > 1 and all(spoken) and len({c for some in spoken for c in some}) == 1:
        lines.append(
            "all of these clips have one caption: nothing can be learnt from language (source."
            "captions, source.captioner)"
        )
    return lines


def _by_source(made: Sequence[Made]) -> dict[str, dict[str, float]]:
    """Triplets of each source, and how many of them are interpolated."""
    out: dict[str, dict[str, float]] = {}
    for one in made:
        counts = out.setdefault(one.clip.source, {"triplets": 0, "interpolated": 0.0})
        counts["triplets"] += len(one.summary["rows"])
        counts["interpolated"] += one.summary["interpolated"]
    return out


def _left_out(made: Sequence[Made]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in made:
        total.update(one.summary["left_out"])
    return dict(total.most_common())


def _thumbnails(rejected: Sequence[Thumbnail], otherwise: str) -> str:
    """Frames of what was rejected, each with its reason."""
    if not rejected:
        return f"<p>{otherwise}</p>"
    return f"<div class=row>{''.join(map(_thumbnail, rejected))}</div>"


def _thumbnail(one: Thumbnail) -> str:
    images = [image(frame, _THUMBNAIL_PX) for frame in one.frames]
    stage, _, reason = one.reason.partition(": ")
    where = f"{one.clip.path}, {one.clip.camera}" if one.clip.camera else one.clip.path
    when = f", {one.at_s[0]:.2f} to {one.at_s[1]:.2f} s" if one.at_s else ""
    words = f"{stage_words(stage)}: {reason_words(reason)} — {where}{when}"
    markup = f"<div style='display:flex;gap:3px'>{''.join(tag for tag, _ in images)}</div>"
    width = max(240, sum(wide + 3 for _, wide in images))
    return figure(markup if images else "<p class=soft>no frame can be read</p>", words, width)


def _clips(made: Sequence[Made]) -> pl.DataFrame:
    rows = [
        {
            "clip": one.summary["path"],
            "camera": one.clip.camera,
            "source": one.clip.source,
            "caption": one.clip.captions[0] if one.clip.captions else "",
            "triplets": len(one.summary["rows"]),
            "left out": sum(one.summary["left_out"].values()),
            "seconds": round(one.seconds, 1),
        }
        for one in made
    ]
    return pl.DataFrame(rows)


def _settings(config: PreprocessConfig) -> list[str]:
    """Settings that differ from the defaults, and all of them on demand."""
    usual, own = (flatten(to_dict(one)) for one in (PreprocessConfig(), config))
    changed: list[dict[str, Any]] = [
        {"setting": name, "value": str(value), "default": str(usual.get(name, ""))}
        for name, value in own.items()
        if usual.get(name) != value
    ]
    out = [table(pl.DataFrame(changed))] if changed else ["<p>all defaults</p>"]
    return [*out, details("all settings, as --config reads them", commented_yaml(config))]
