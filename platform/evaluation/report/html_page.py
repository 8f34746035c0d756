"""The report of an evaluation as one HTML file that needs no other file and no network.

Verdict first, then figures, what they rest on in images, and tables last.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dynaflip.files import write_file
from dynaflip.platform.evaluation.report.tables import Section

# Images that play or fail may take so much of a page; what is beyond it is in MLflow alone.
IMAGE_BUDGET_BYTES = 6_000_000

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --page: #fff; --soft: #4a5260; --line: #ddd;
        --mark: #14506b; --shade: #eef3fa }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --page: #16181c; --soft: #a9b1bd; --line: #383d45; --mark: #6db3d1;
          --shade: #20262e }
}
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem;
       max-width: 1180px; color: var(--ink); background: var(--page) }
h1 { font-size: 1.25rem; font-weight: 500; color: var(--soft); margin: 0 }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
.verdict { font-size: 1.3rem; font-weight: 600; line-height: 1.4; margin: .6rem 0;
           padding: .7rem 1rem; background: var(--shade); border-left: 5px solid var(--mark) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; margin: 0 0 1.5rem; font-size: .8rem;
        font-variant-numeric: tabular-nums }
td, th { padding: .25rem .7rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line) }
th { vertical-align: bottom } td { white-space: nowrap } .facts td { white-space: normal }
td:first-child, th:first-child, .facts td { text-align: left }
.scroll td:first-child { position: sticky; left: 0; background: var(--page) }
figure { margin: .5rem 0 1.2rem; break-inside: avoid }
figure img { max-width: 100%; height: auto; border-radius: 3px }
.printed { display: none }
figcaption, .notes { color: var(--soft); font-size: .92rem }
.columns { display: grid; grid-auto-columns: 1fr; grid-auto-flow: column; text-align: center;
           font-size: .85rem; gap: .3rem }
.side img { width: 100% } .side { max-width: calc(190px * var(--parts)) }
.tiles, .sides { display: flex; flex-wrap: wrap; gap: 1rem }
.tiles figure { width: 345px; margin: 0 } .tiles figcaption b { color: var(--ink) }
.sides { gap: 0 1.4rem }
@media print {
  @page { margin: 12mm }
  body { margin: 0; padding: 0; max-width: none; font-size: 10pt }
  .scroll { overflow: visible } table { width: 100%; font-size: 7pt }
  td, th { padding: .12rem .3rem .12rem 0; white-space: normal }
  td:first-child, th { overflow-wrap: break-word }
  figure img { max-height: 112mm }
  tr { break-inside: avoid } h2, h3, .notes { break-after: avoid } .verdict { background: none }
  .scroll td:first-child { position: static }
  .side { max-width: calc(30mm * var(--parts)) } .tiles figure { width: 58mm }
  .played { display: none } .printed { display: inline }
}
"""

_KINDS = {b"\x89PN": "png", b"GIF": "gif", b"RIF": "webp"}


@dataclass(frozen=True)
class ReportImage:
    """An image of a report, which is an artifact of the run too."""

    name: str  # file name in MLflow
    caption: str
    data: bytes  # PNG, JPEG, GIF or WebP
    heading: str = ""  # of the part that begins with it
    alt: str = ""  # what it shows, in words; the caption by default
    columns: tuple[str, ...] = ()  # names below equal parts of it, from the left
    tile: bool = False  # small, several in a row
    printed: bytes = b""  # stands for one that plays on paper
    lead: str = ""  # below the heading: what the part shows, and what is better


def png_of(figure: Any) -> bytes:
    """A matplotlib figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def jpeg_of(image: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 RGB as JPEG."""
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()


def write_report(
    path: Path,
    *,
    title: str,
    verdict: Sequence[str],
    facts: dict[str, str],
    sections: Sequence[Section],
    notes: Sequence[str],
    images: Sequence[ReportImage],
) -> None:
    """Write the report.

    Args:
        path: of the HTML file; its folder is made.
        title: heading.
        verdict: sentences: what was found, then what else was.
        facts: what was evaluated, name to value.
        sections: of the tables.
        notes: remarks, a line each.
        images: in their order; figures first.
    """
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(title)}</title><style>{_STYLE}</style></head><body><h1>{_e(title)}</h1>"
    ]
    if verdict:
        parts.append(f'<p class="verdict">{_e(verdict[0])}</p>')
        parts += [f"<p>{_e(line)}</p>" for line in verdict[1:]]
    parts += _images(images)
    if notes:
        parts.append("<h2>How to read this</h2>")
        parts += [f'<p class="notes">{_e(note)}</p>' for note in notes]
    parts.append("<h2>Tables</h2>")
    for section in sections:
        head = "".join(f"<th>{_e(name)}</th>" for name in section.columns)
        parts.append(f"<h3>{_e(section.title)}</h3>{_table(section.rows, head)}")
    parts.append("<h2>What was evaluated</h2>")
    parts.append(_table([[k, v] for k, v in facts.items()], "", "facts"))
    parts.append("</body></html>\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, "\n".join(parts).encode())


def _table(rows: Sequence[Sequence[str]], head: str, kind: str = "") -> str:
    body = "".join(
        "<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    first = f"<tr>{head}</tr>" if head else ""
    return f'<div class="scroll"><table class="{kind}">{first}{body}</table></div>'


def _images(images: Sequence[ReportImage]) -> list[str]:
    """Figures with captions; tiles, and images of several parts, stand in rows."""
    parts: list[str] = []
    used, left_out, row = 0, 0, ""  # row: the kind of row that is open
    for image in images:
        used += len(image.data) + len(image.printed)
        if used > IMAGE_BUDGET_BYTES:
            left_out += 1
            continue
        kind = "tiles" if image.tile else "sides" if image.columns else ""
        if row and (image.heading or kind != row):
            parts.append("</div>")
            row = ""
        if image.heading:
            parts.append(f"<h2>{_e(image.heading)}</h2>")
        if image.lead:
            parts.append(f'<p class="notes">{_e(image.lead)}</p>')
        if kind and not row:
            parts.append(f'<div class="{kind}">')
            row = kind
        parts.append(_figure(image))
    if row:
        parts.append("</div>")
    if left_out:
        parts.append(
            f'<p class="notes">{left_out} more images are in the MLflow run, below images/: this '
            f"page holds {IMAGE_BUDGET_BYTES // 10**6} MB of them.</p>"
        )
    return parts


def _figure(image: ReportImage) -> str:
    alt = image.alt or image.caption
    img = _img(image.data, alt)
    if image.printed:
        img = _img(image.data, alt, "played") + _img(image.printed, alt, "printed")
    names = "".join(f"<span>{_e(name)}</span>" for name in image.columns)
    if names:
        img = (
            f'<div class="side" style="--parts: {len(image.columns)}">{img}'
            f'<div class="columns">{names}</div></div>'
        )
    caption = _e(image.caption)
    if image.tile:  # its first line says what kind it is
        first, _, rest = caption.partition("\n")
        caption = f"<b>{first}</b><br>{rest}" if rest else first
    return f"<figure>{img}<figcaption>{caption}</figcaption></figure>"


def _img(data: bytes, alt: str, kind: str = "") -> str:
    source = f"data:image/{_KINDS.get(data[:3], 'jpeg')};base64,{base64.b64encode(data).decode()}"
    marked = f'class="{kind}" ' if kind else ""
    return f'<img alt="{_e(alt)}" {marked}src="{source}">'


def _e(text: str) -> str:
    return html.escape(str(text))
