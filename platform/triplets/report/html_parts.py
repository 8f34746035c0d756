"""Parts of an HTML page that stands alone: its frame, tables, histograms, images."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import polars as pl

from dynaflip.platform.triplets.clips import Frames

_QUALITIES = (80, 55, 30, 10)  # of WebP images, the first that is small enough
_BYTES_A_PIXEL = 0.25
_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#566173;--line:#dde3ea;--paper:#fff;
--panel:#f5f7f9;--bar:#3b6ea5}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ee;--soft:#9fabbb;--line:#343c48;
--paper:#14181e;--panel:#1d232b;--bar:#6fa0d8}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:76em;padding:0 1.5em;
color:var(--ink);background:var(--paper)}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin:2em 0 .5em}
h3{font-size:1.02em;margin:0 0 .1em;overflow-wrap:anywhere;max-width:60em}
p{margin:.3em 0 .7em;max-width:60em;overflow-wrap:anywhere}
table{border-collapse:collapse;margin:.4em 0}
td,th{padding:.2em 1em .2em 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line);
overflow-wrap:break-word;max-width:34em}
td.n,th.n{text-align:right;white-space:nowrap}th{color:var(--soft);font-weight:600}
figure{display:inline-block;margin:0;vertical-align:top}
figcaption,.soft{color:var(--soft);font-size:.87em;line-height:1.35}
.row{display:flex;flex-wrap:wrap;gap:1em 1.2em;align-items:flex-start}
.row figure{max-width:min(100%,30em)}.row figcaption{margin-top:.25em}
.row img{display:block;max-width:100%;height:auto;border-radius:3px}
.example{margin:0 0 1.3em;padding:1em 1.1em;background:var(--panel);border-radius:8px;
break-inside:avoid}
.example>p{margin:0 0 .6em;max-width:none}.column{display:flex;flex-direction:column;gap:.5em}
.numbers{display:flex;flex-wrap:wrap;gap:.6em 2.4em;margin:1em 0}
.numbers div{line-height:1.25}.numbers b{display:block;font-size:1.55em;font-weight:600}
svg text{fill:var(--soft)}svg.bars rect{fill:var(--bar)}
svg.view,canvas.turn{background:#39414d;border-radius:3px;display:block}
svg.view text{fill:#d5dbe3}
svg.view path{fill:none;stroke-linecap:round}svg.view text{font:76px system-ui,sans-serif}
svg.view .rest{stroke:#8592a3;stroke-width:15}
svg.view .axis{stroke:#fff;stroke-width:9}
canvas.turn{touch-action:none;cursor:grab}
.colours{display:inline-block;width:9em;height:.7em;border-radius:2px;vertical-align:middle;
margin:0 .5em;border:1px solid var(--line)}
.note{border-left:4px solid #e08a00;padding:.1em .8em;margin:.5em 0}
details{margin:.6em 0}pre{background:var(--panel);padding:.8em;overflow:auto;font-size:.85em}
summary{cursor:pointer;color:var(--soft)}
@media print{body{max-width:none;margin:0}.example{background:none;border:1px solid var(--line)}}
"""


def page(title: str, parts: Sequence[str], script: str = "") -> str:
    """A whole page; nothing in it is loaded from elsewhere.

    Args:
        title: as plain text.
        parts: of the body, as markup.
        script: run at its end.
    """
    head = (
        f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    run = f"<script>{script}</script>" if script else ""
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}{run}</body>"


def text(value: object) -> str:
    """Markup of plain text in any script; half characters are shown as what they are."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode())


def table(frame: pl.DataFrame) -> str:
    """A table of values; numbers stand to the right."""
    if not len(frame):
        return "<p>none</p>"
    numeric = [dtype.is_numeric() for dtype in frame.dtypes]

    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{' class=n' if right else ''} dir=auto>{text('' if v is None else v)}</{tag}>"
            for v, right in zip(values, numeric, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in frame.iter_rows())
    return f"<table><tr>{cells('th', frame.columns)}</tr>{body}</table>"


def numbers(named: Mapping[str, object]) -> str:
    """A few large numbers, each above what it counts."""
    parts = (f"<div><b>{text(value)}</b>{text(name)}</div>" for name, value in named.items())
    return f"<div class=numbers>{''.join(parts)}</div>"


def details(summary: str, body: str) -> str:
    """Plain text that a click shows."""
    return f"<details><summary>{text(summary)}</summary><pre>{text(body)}</pre></details>"


def figure(content: str, caption: str, width_px: int | None = None) -> str:
    """Markup of an image or drawing with its caption, which is plain text."""
    wide = f" style='width:{width_px}px'" if width_px else ""
    return f"<figure{wide}>{content}<figcaption dir=auto>{text(caption)}</figcaption></figure>"


def image(pixels: Frames, short_side_px: int) -> tuple[str, int]:
    """An ``<img>`` of (H, W, 3) uint8 RGB, and its width on the page; its shape is kept.

    Args:
        pixels: at twice the size on the page, for sharp screens.
        short_side_px: on the page.
    """
    height, width = pixels.shape[:2]
    scale = min(short_side_px / min(height, width), 0.5)
    uri = f"data:image/webp;base64,{base64.b64encode(_webp(pixels)).decode()}"
    wide, high = round(width * scale), round(height * scale)
    return f"<img src='{uri}' width={wide} height={high} alt=''>", wide


def _webp(pixels: Frames) -> bytes:
    """A WebP image whose size is bounded, whatever it shows."""
    for quality in _QUALITIES:
        flags = [cv2.IMWRITE_WEBP_QUALITY, quality]
        done, data = cv2.imencode(".webp", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flags)
        assert done
        if data.nbytes <= _BYTES_A_PIXEL * pixels.shape[0] * pixels.shape[1]:
            break
    return data.tobytes()


def histogram(title: str, counts: np.ndarray, names: Sequence[str]) -> str:
    """Bars as inline SVG; the number of each shows under the pointer."""
    wide, high = 300, 90
    step, most = wide / max(1, len(counts)), max(1, int(counts.max()))
    bars = "".join(
        f"<rect x='{n * step:.1f}' y='{high - high * c / most:.1f}' width='{step - 1:.1f}' "
        f"height='{high * c / most:.1f}'><title>from {name}: {c}</title></rect>"
        for n, (c, name) in enumerate(zip(counts.tolist(), names, strict=True))
    )
    ends = f"<text x='0' y='{high + 14}'>{names[0]}</text>"
    ends += f"<text x='{wide}' y='{high + 14}' text-anchor='end'>{names[-1]}</text>"
    svg = f"<svg class=bars width='{wide}' height='{high + 18}' font-size='11'>{bars}{ends}</svg>"
    return figure(svg, title, wide)


def bins(values: pl.Series) -> tuple[np.ndarray, list[str]]:
    """Counts in twenty even bins and the bins' lower edges."""
    found = values.to_numpy()
    high = max(float(found.max()), 1e-6) if len(found) else 1.0
    counts, edges = np.histogram(found, bins=20, range=(0.0, high * (1 + 1e-6)))
    return counts, [f"{edge:.3g}" for edge in edges[:-1]]
