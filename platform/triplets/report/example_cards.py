"""Markup that shows triplets: frames, trails, 3D views, captions and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynaflip.platform.triplets.report.html_parts import figure, image, text
from dynaflip.platform.triplets.report.overlays import decode_image, draw_tracks
from dynaflip.platform.triplets.report.trails import has_depth, trails_of
from dynaflip.platform.triplets.report.view_3d import drawn_views, turned_view
from dynaflip.platform.triplets.report.words import (
    camera_is_removed,
    camera_words,
    depth_words,
    flow_words,
    window_words,
)

_FRAME_PX = 112  # short sides on the page
_TRAILS_PX = 248
_VIEW_PX = 132

LEGEND = """
<p class=soft>
<svg width=54 height=14><path d='M5 7L44 7' stroke='#111' stroke-width=5.5 stroke-linecap=round />
<path d='M5 7L24 7' stroke='#eeeeee' stroke-width=2 /><path d='M24 7L44 7' stroke='#faaa5f'
stroke-width=3 /><circle cx=46 cy=7 r=5 fill='#111' /><circle cx=46 cy=7 r=3.6 fill='#e05c00' />
</svg> a point that moves in the scene: its trail grows wider from frame t to the dot at the
window's end (dotted: interpolated between frames that are far apart) &ensp;
<svg width=12 height=14><circle cx=6 cy=7 r=4 fill='#666' /><circle cx=6 cy=7 r=2.4 fill='#96beff'
/></svg> a point at rest; its pale blue line is the camera's motion &ensp;
<svg width=12 height=14><path d='M2 3L10 11M2 11L10 3' stroke='#888' /></svg> a point that was lost
</p>"""


def example(row: dict[str, Any], facts: Sequence[str] = ()) -> str:
    """One triplet.

    Args:
        row: columns of a triplet, as :func:`.examples.read_examples` gives them.
        facts: more to say about it, as plain text.
    """
    camera = camera_words(row["camera_motion"], row["camera_inlier_share"])
    depth = depth_words(row["depth_kind"], row["depth_scale"])
    said = [
        f"{row['source']}, camera {row['camera']}" if row["camera"] else row["source"],
        window_words(row),
        f"{row['moving_share']:.0%} of the points move, {row['visible_share']:.0%} are trusted "
        f"to the end",
        depth if depth.startswith("no depth") else f"depth: {depth}",
        f"camera motion: {camera}",
        f"tracked by: {flow_words(row['flow_source'])}",
        *facts,
    ]
    return (
        f"<section class=example><h3 dir=auto>“{text(row['caption'])}”</h3>"
        f"<p class=soft>{text(' · '.join(said))}</p>"
        f"<div class=row>{''.join(_panels(row))}</div>{_colour_bar(row)}</section>"
    )


def _panels(row: dict[str, Any]) -> list[str]:
    frames = [
        _image(decode_image(row[column], 2 * _FRAME_PX), _FRAME_PX, caption)
        for column, caption in (("frame_t", "frame t"), ("frame_next", "its second image"))
    ]
    panels = [_column(frames)]
    if camera_is_removed(row["camera_motion"]) and trails_of(row).differ():
        shown = draw_tracks(row, 2 * _TRAILS_PX)
        panels.append(_image(shown, _TRAILS_PX, "trails, the camera's motion removed: the flow"))
        seen = draw_tracks(row, 2 * _TRAILS_PX, as_seen=True)
        panels.append(_image(seen, _TRAILS_PX, "trails as the image shows them: not removed"))
    else:
        shown = draw_tracks(row, 2 * _TRAILS_PX)
        still = camera_is_removed(row["camera_motion"])
        words = "the camera stood still" if still else "the camera's motion, if any, is in them"
        panels.append(_image(shown, _TRAILS_PX, f"trails; {words}"))
    if has_depth(row):
        above, beside = drawn_views(row, _VIEW_PX)
        turned = turned_view(row, _TRAILS_PX)
        panels.append(figure(turned, "points and trails in 3D: drag to turn", _TRAILS_PX))
        views = ((above, "from above"), (beside, "from the side"))
        panels.append(_column([figure(view, name, _VIEW_PX) for view, name in views]))
    return panels


def _column(figures: Sequence[str]) -> str:
    return f"<div class=column>{''.join(figures)}</div>"


def _image(pixels: Any, short_side_px: int, caption: str) -> str:
    markup, width = image(pixels, short_side_px)
    return figure(markup, caption, width)


def _colour_bar(row: dict[str, Any]) -> str:
    trails = trails_of(row)
    hues, (low, high) = trails.bar()
    what = "distance in the image since t" if trails.unit == "image" else "change of depth since t"
    return (
        f"<p class=soft style='margin:.6em 0 0'>{what}: {text(low)}<span class=colours "
        f"style='background:linear-gradient(to right,{','.join(hues)})'></span>{text(high)}</p>"
    )
