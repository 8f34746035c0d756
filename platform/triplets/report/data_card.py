"""The data card: one HTML file, nothing loaded from elsewhere, that shows a triplet folder."""

from __future__ import annotations

from typing import Any

import polars as pl

from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.place import Place
from dynaflip.platform.triplets.report.cautions import (
    camera_lines,
    interpolated_lines,
    small_set_lines,
)
from dynaflip.platform.triplets.report.example_cards import LEGEND, example
from dynaflip.platform.triplets.report.examples import read_examples
from dynaflip.platform.triplets.report.html_parts import (
    bins,
    histogram,
    numbers,
    page,
    table,
    text,
)
from dynaflip.platform.triplets.report.inspection import MOTION_BINS, Inspection
from dynaflip.platform.triplets.report.view_3d import TURN_SCRIPT
from dynaflip.platform.triplets.report.words import (
    camera_words,
    depth_words,
    flow_words,
    focal_words,
    grid_words,
    reason_words,
    stage_words,
)

CARD_NAME = "data_card.html"


def write_card(found: Inspection, examples: int) -> Place:
    """Write ``data_card.html`` into the triplet folder.

    Args:
        found: what the folder holds.
        examples: how many triplets to show, of clips that are spread over the set.
    """
    counts, manifest = found.manifest["counts"], found.manifest
    rows = read_examples(found.files, examples) if examples else []
    parts = [
        f"<h1>{text(found.folder.name)}</h1>",
        f"<p class=soft>image-language-3D-flow triplets · schema version "
        f"{text(manifest['schema_version'])} · digest <code>{text(manifest['digest'])}</code></p>",
        numbers(
            {
                "triplets": len(found.rows),
                "clips kept": counts["kept"],
                "clips rejected": counts["rejected"],
                "windows left out": sum(counts.get("windows_left_out", {}).values()),
            }
        ),
        *notes(
            [
                *small_set_lines(manifest),
                *interpolated_lines(counts),
                *camera_lines(found.camera_counts()),
            ]
        ),
        *notes(found.copies.lines() if found.copies and found.copies.copied else []),
        "<h2>By source and split</h2>",
        table(shares_in_words(found.counts())),
        "<h2>Where flow, depth and camera motion are from</h2>",
        table(in_words(found.ways())),
        "<h2>Examples</h2>",
        "<p>Clips spread over the set, from most motion to least; of each the window with most "
        "motion.</p>",
        LEGEND,
        *(example(row) for row in rows),
        "<h2>Motion and visibility</h2>",
        f"<div class=row>{''.join(histograms(found))}</div>",
        "<h2>Captions</h2>",
        *captions(found),
        "<h2>Rejected clips</h2>",
        table(reasons_in_words(found.reasons())),
        "<h2>Windows left out by the filters</h2>",
        table(_left_out_in_words(found.left_out())),
    ]
    place.write(found.folder / CARD_NAME, page(found.folder.name, parts, TURN_SCRIPT))
    return found.folder / CARD_NAME


def notes(lines: list[str]) -> list[str]:
    """Notes that a reader must not miss."""
    return [f"<p class=note>{text(line)}</p>" for line in lines]


def shares_in_words(counts: pl.DataFrame) -> pl.DataFrame:
    """The table of :meth:`Inspection.counts` for people."""
    return counts.with_columns(
        pl.Series(name, [f"{share:.1%}" for share in counts[name]], pl.String)
        for name in ("moving", "visible")
    ).rename({"moving": "points that move", "visible": "trusted to the end"})


def in_words(ways: pl.DataFrame) -> pl.DataFrame:
    """The table of :meth:`Inspection.ways` for people: words instead of codes."""
    out = [
        {
            "points followed by": flow_words(way["flow_source"]),
            "depth": depth_words(way["depth_kind"], way["depth_scale"]),
            "motion of the camera": camera_words(way["camera_motion"]),
            "focal length": focal_words(way["focal_kind"]),
            "grid": grid_words(way["grid"]),
            "triplets": way["triplets"],
        }
        for way in ways.iter_rows(named=True)
    ]
    return pl.DataFrame(out)


def reasons_in_words(reasons: pl.DataFrame) -> pl.DataFrame:
    """The table of :meth:`Inspection.reasons` for people."""
    said = (
        pl.Series("stage", map(stage_words, reasons["stage"]), pl.String),
        pl.Series("reason", map(reason_words, reasons["reason"]), pl.String),
    )
    return reasons.with_columns(said).rename({"stage": "where", "example": "for example"})


def _left_out_in_words(left_out: pl.DataFrame) -> pl.DataFrame:
    said = []
    for stage, _, reason in (name.partition(": ") for name in left_out["reason"]):
        said.append(f"{stage_words(stage)}: {reason_words(reason)}")
    return left_out.with_columns(pl.Series("reason", said, pl.String))


def captions(found: Inspection) -> list[str]:
    """How rich the captions are, and the commonest."""
    said = found.captions()
    return [
        f"<p>{said['distinct']:.0f} distinct, {said['distinct_normalised']:.0f} but for case and "
        f"punctuation, in {said['groups']:.0f} groups of equal meaning; {said['words_mean']:.1f} "
        f"words on average; {said['duplicates']:.0%} of the clips share their caption.</p>",
        table(found.common_captions()),
    ]


def histograms(found: Inspection) -> list[str]:
    """Distributions over triplets and points."""
    rows: Any = found.rows
    names = ["rests", *(f"{low:.2g}" for low in MOTION_BINS[1:])]
    out = [
        histogram("share of points that move", *bins(rows["moving_share"])),
        histogram("share of points trusted to the end", *bins(rows["visible_share"])),
        histogram(
            "motion of trusted points that move, share of the median depth",
            found.motion[1:],
            names[1:],
        ),
        histogram("window, seconds", *bins(rows["window_s"])),
    ]
    fitted = rows["camera_inlier_share"].drop_nulls()
    if len(fitted):
        out.append(histogram("points that agree with the fitted camera", *bins(fitted)))
    return out
