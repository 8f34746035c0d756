"""The data card: one HTML file, nothing loaded from elsewhere, that shows a triplet folder."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

import cv2
import numpy as np
import polars as pl

from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.clips import Frames
from dynaflip.platform.triplets.place import Place
from dynaflip.platform.triplets.report.inspection import MOTION_BINS, Inspection
from dynaflip.platform.triplets.report.overlays import (
    decode_image,
    draw_flow_3d,
    draw_tracks,
    read_examples,
)

CARD_NAME = "data_card.html"
_EXAMPLE_PX = 220  # short side of an example's images
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:72em;color:#1c2430}
h1{font-size:1.5em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse}
td,th{padding:.15em .9em .15em 0;text-align:left;border-bottom:1px solid #dde3ea}
td.n{text-align:right}figure{display:inline-block;margin:.4em 1.2em .4em 0}
figcaption{color:#556}.example{margin:1em 0}.example img{height:220px;margin-right:4px}
"""


def write_card(found: Inspection, examples: int) -> Place:
    """Write ``data_card.html`` into the triplet folder.

    Args:
        found: what the folder holds.
        examples: how many triplets to show, those with most motion.
    """
    counts, texts = found.manifest["counts"], found.captions()
    rows = found.rows
    parts = [
        f"<h1>{html.escape(found.folder.name)}</h1>",
        f"<p>{len(rows)} image-language-3D-flow triplets of {counts['kept']} clips "
        f"({counts['rejected']} of {counts['read']} rejected). Schema version "
        f"{found.manifest['schema_version']}, digest <code>{found.manifest['digest']}</code></p>",
        "<h2>By source and split</h2>",
        _table(found.counts()),
        "<h2>Where flow, depth and camera motion are from</h2>",
        _table(found.ways()),
        "<h2>Motion and visibility</h2>",
        _histogram("share of points that move", *_bins(rows["moving_share"])),
        _histogram("share of points trusted to the end", *_bins(rows["visible_share"])),
        _motion_histogram(found),
        _histogram("window, seconds", *_bins(rows["window_s"])),
    ]
    fitted = rows["camera_inlier_share"].drop_nulls()
    if len(fitted):
        parts.append(_histogram("points that agree with the fitted camera", *_bins(fitted)))
    parts += [
        "<h2>Captions</h2>",
        f"<p>{texts['distinct']:.0f} distinct, {texts['distinct_normalised']:.0f} but for case and "
        f"punctuation, in {texts['groups']:.0f} groups of equal meaning; {texts['words_mean']:.1f} "
        f"words on average; {texts['duplicates']:.0%} of the clips share their caption.</p>",
        _table(found.common_captions()),
        "<h2>Rejected clips</h2>",
        _table(found.reasons()),
        "<h2>Windows left out</h2>",
        _table(found.left_out()),
        "<h2>Examples</h2><p>Frame t; the frame at the end of the window; tracks over frame t "
        "(moving ones from green to red, resting ones blue, lost ones grey); 3D flow from above "
        "and from the side (the camera looks to the right).</p>",
        *_examples(found.files, examples),
    ]
    head = f"<meta charset='utf-8'><title>{html.escape(found.folder.name)}</title>"
    text = f"<!doctype html>{head}<style>{_STYLE}</style>{''.join(parts)}"
    place.write(found.folder / CARD_NAME, text)
    return found.folder / CARD_NAME


def _examples(files: Sequence[Place], count: int) -> list[str]:
    out = []
    for row in read_examples(files, count):
        images = [
            decode_image(row["frame_t"], _EXAMPLE_PX),
            decode_image(row["frame_next"], _EXAMPLE_PX),
            draw_tracks(row, _EXAMPLE_PX),
            draw_flow_3d(row, _EXAMPLE_PX),
        ]
        markup = "".join(f"<img src='{_data_uri(image)}'>" for image in images)
        words = f"“{row['caption']}”, {row['moving_share']:.0%} of the points move"
        out.append(f"<div class=example>{markup}<br>{html.escape(words)}</div>")
    return out


def _data_uri(image: Frames) -> str:
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def _table(frame: pl.DataFrame) -> str:
    if not len(frame):
        return "<p>none</p>"
    numeric = [dtype.is_numeric() for dtype in frame.dtypes]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in frame.columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if right else ''}>{html.escape(str(value))}</td>"
            for value, right in zip(row, numeric, strict=True)
        )
        + "</tr>"
        for row in frame.iter_rows()
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _bins(values: pl.Series) -> tuple[np.ndarray, list[str]]:
    """Counts in twenty even bins and the bins' lower edges."""
    found = values.to_numpy()
    high = max(float(found.max()), 1e-6) if len(found) else 1.0
    counts, edges = np.histogram(found, bins=20, range=(0.0, high * (1 + 1e-6)))
    return counts, [f"{edge:.3g}" for edge in edges[:-1]]


def _motion_histogram(found: Inspection) -> str:
    names = ["rests", *(f"{low:.2g}" for low in MOTION_BINS[1:])]
    title = "motion of trusted points that move, share of the median depth"
    return _histogram(title, found.motion[1:], names[1:])


def _histogram(title: str, counts: np.ndarray, names: list[str]) -> str:
    """Bars as inline SVG; the number of each shows under the pointer."""
    wide, high = 300, 90
    step, most = wide / max(1, len(counts)), max(1, int(counts.max()))
    bars = "".join(
        f"<rect x='{n * step:.1f}' y='{high - high * c / most:.1f}' width='{step - 1:.1f}' "
        f"height='{high * c / most:.1f}' fill='#3b6ea5'><title>from {name}: {c}</title></rect>"
        for n, (c, name) in enumerate(zip(counts.tolist(), names, strict=True))
    )
    ends = f"<text x='0' y='{high + 14}'>{names[0]}</text>"
    ends += f"<text x='{wide}' y='{high + 14}' text-anchor='end'>{names[-1]}</text>"
    return (
        f"<figure><svg width='{wide}' height='{high + 18}' font-size='11'>{bars}{ends}</svg>"
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
    )
