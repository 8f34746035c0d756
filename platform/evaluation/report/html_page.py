"""The report of an evaluation as one HTML file that needs no other file."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dynaflip.platform.evaluation.report.tables import Section

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; color: #222 }
table { border-collapse: collapse; margin: 0 0 1.5rem; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
img { max-width: 100% } .facts td { text-align: left } h2 { margin-top: 2rem }
"""

_KINDS = {b"\x89PN": "png", b"GIF": "gif"}


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
    facts: dict[str, str],
    sections: list[Section],
    notes: list[str],
    images: list[tuple[str, bytes]],
) -> None:
    """Write the report.

    Args:
        path: of the HTML file; its folder is made.
        title: heading.
        facts: what was scored, name to value.
        sections: of the table.
        notes: remarks, a line each.
        images: (caption, bytes of a PNG, JPEG or GIF).
    """
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{_e(title)}</title>"]
    parts.append(f"<style>{_STYLE}</style><h1>{_e(title)}</h1>")
    rows = "".join(f"<tr><td>{_e(k)}<td>{_e(v)}" for k, v in facts.items())
    parts.append(f"<table class=facts>{rows}</table>")
    for section in sections:
        head = "".join(f"<th>{_e(name)}" for name in section.columns)
        body = "".join("<tr>" + "".join(f"<td>{_e(cell)}" for cell in row) for row in section.rows)
        parts.append(f"<h2>{_e(section.title)}</h2><table><tr>{head}{body}</table>")
    parts.append("".join(f"<p>{_e(note)}</p>" for note in notes))
    for caption, data in images:
        kind = _KINDS.get(data[:3], "jpeg")
        source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        parts.append(f'<h2>{_e(caption)}</h2><img alt="{_e(caption)}" src="{source}">')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")


def _e(text: str) -> str:
    return html.escape(str(text))
