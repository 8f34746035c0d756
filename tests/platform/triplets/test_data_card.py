"""What the data card draws and says: images in their shape, trails, words, captions of any text."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_triplets import clip_rows, rows_table

from dynaflip.platform.triplets.report import words
from dynaflip.platform.triplets.report.data_card import write_card
from dynaflip.platform.triplets.report.example_cards import example
from dynaflip.platform.triplets.report.examples import read_examples
from dynaflip.platform.triplets.report.inspection import inspect_folder
from dynaflip.platform.triplets.report.overlays import draw_tracks
from dynaflip.platform.triplets.report.trails import colours, round_number, trails_of
from dynaflip.platform.triplets.schema import GRID, REJECTED_SCHEMA, STEPS

FOCAL_PX, MIDDLE_PX = 100.0, np.array([30.0, 55.0])  # off the image's middle


def triplet(width: int = 96, height: int = 64, **values: Any) -> dict[str, Any]:
    """A row: a block of points moves right and away; ``values`` replace columns."""
    row = clip_rows(np.random.default_rng(0), 0, 1, 32)[0] | {"source": "synthetic"}
    x, y = (np.arange(GRID) + 0.5) * width / GRID, (np.arange(GRID) + 0.5) * height / GRID
    origin_px = np.stack(np.meshgrid(x, y), -1).astype(np.float32)
    slope = (origin_px - MIDDLE_PX) / FOCAL_PX
    origin_m = np.concatenate([2 * slope, np.full((GRID, GRID, 1), 2.0)], -1).astype(np.float32)
    moved_m = np.zeros((STEPS, GRID, GRID, 3), np.float32)
    moved_m[:, 5:10, 5:10] = np.linspace(0, 1, STEPS + 1)[1:, None, None, None] * [0.2, 0.0, 0.1]
    at_m = origin_m + moved_m
    tracks_px = at_m[..., :2] / at_m[..., 2:] * FOCAL_PX + MIDDLE_PX
    frame = np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)
    jpeg = cv2.imencode(".jpg", frame)[1].tobytes()
    row |= {"frame_t": jpeg, "frame_next": jpeg, "width_px": width, "height_px": height}
    row |= {"origin_px": origin_px, "tracks_px": tracks_px.astype(np.float32)}
    row |= {"flow_origin_m": origin_m, "flow_displacement_m": moved_m, "median_depth_m": 2.0}
    row |= {"focal_px": FOCAL_PX}
    return row | values


def write_set(folder: Path, rows: list[dict[str, Any]], **counts: Any) -> Path:
    """Write a triplet folder with a clip a row."""
    (folder / "triplets").mkdir(parents=True)
    with pq.ParquetWriter(folder / "triplets/part-0.parquet", rows_table(rows[:1]).schema) as file:
        for n, row in enumerate(rows):
            file.write_table(rows_table([row | {"clip_id": f"clip {n}"}]))
    rejected = dict.fromkeys(REJECTED_SCHEMA.names, "x") | {"stage": "decode", "path": "a/<i>.mp4"}
    pq.write_table(pa.Table.from_pylist([rejected], REJECTED_SCHEMA), folder / "rejected.parquet")
    counts = {"read": len(rows) + 1, "kept": len(rows), "rejected": 1, **counts}
    manifest = {"schema_version": 2, "digest": "d", "counts": counts}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def images_of(page: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Size on the page and of the image itself, (width, height), of every ``<img>``."""
    found = re.findall(r"<img src='data:image/webp;base64,([^']+)' width=(\d+) height=(\d+)", page)
    out = []
    for data, width, height in found:
        encoded = np.frombuffer(base64.b64decode(data), np.uint8)
        shape = cv2.imdecode(encoded, cv2.IMREAD_COLOR).shape
        out.append(((int(width), int(height)), (shape[1], shape[0])))
    return out


@pytest.mark.parametrize("size", [(160, 90), (90, 160), (64, 64), (400, 50)])
def test_images_keep_their_shape(size: tuple[int, int]) -> None:
    images = images_of(example(triplet(*size)))
    assert len(images) == 3
    for shown, own in images:
        assert shown[0] / shown[1] == pytest.approx(size[0] / size[1], rel=0.03)
        assert own[0] / own[1] == pytest.approx(size[0] / size[1], rel=0.03)
        assert max(shown) <= 560


def test_captions_and_paths_of_any_text_stand_in_the_card_and_are_no_markup(tmp_path: Path) -> None:
    caption = "倒咖啡 <script>alert(1)</script> & \"so\" عربى 'x' " + "long" * 80
    left_out = {"filter: blurred (filter.min_sharpness)": 2}
    where = {"source": "s", "path": "<b>.mp4", "from_s": 1.0, "to_s": 1.5}
    places = {"filter: blurred (filter.min_sharpness)": [where]}
    folder = write_set(
        tmp_path / "<i>set",
        [triplet(caption=caption)],
        windows_left_out=left_out,
        windows_left_out_at=places,
    )
    card = Path(str(write_card(inspect_folder(str(folder)), 4))).read_text()
    assert html.escape(caption) in card
    for raw in ("<script>alert", "<b>.mp4", "<i>set", "<i>.mp4"):
        assert raw not in card
    assert "&lt;b&gt;.mp4, 1.00 to 1.50 s" in card
    assert "a/&lt;i&gt;.mp4" in card
    assert not re.search(r"(src|href)=['\"](?!data:)|url\(|@import", card)


def test_an_example_stays_small_whatever_it_shows() -> None:
    noise = triplet(160, 284, camera_motion="fit")
    noise["tracks_px"] = noise["tracks_px"] + np.float32(3)  # both panels of trails
    markup = example(noise)
    assert len(images_of(markup)) == 4
    assert 12 * len(markup.encode()) < 5e6


def test_3d_is_drawn_only_where_there_is_depth() -> None:
    flat = example(triplet(depth_kind="plane", depth_scale="relative"))
    assert "<canvas" not in flat
    assert "class=view" not in flat
    assert "no depth: everything at one metre" in flat
    assert "distance in the image" in flat
    deep = example(triplet())
    assert deep.count("class=view") == 2
    (data,) = re.findall(r"data-points='([^']+)'", deep)
    points = json.loads(data)["points"]
    assert len(points) == GRID * GRID
    assert sum(len(steps) == 3 * (STEPS + 1) for steps, _, _ in points) == 25  # those that move
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for _, colour, _ in points)


def test_depth_has_its_unit() -> None:
    assert "10 cm closer to the camera" in example(triplet())
    assert "5 % of the depth closer" in example(triplet(depth_scale="relative"))


def test_a_compensated_camera_is_shown_beside_what_the_image_shows() -> None:
    row = triplet(camera_motion="fit", camera_inlier_share=0.93)
    row["tracks_px"] = row["tracks_px"] + np.float32(4)
    both = example(row)
    assert "motion removed: the flow" in both
    assert "as the image shows them: not removed" in both
    assert "93% of the points agree" in both
    row |= {"camera_motion": "none", "camera_inlier_share": None}
    alone = example(row)
    assert "motion, if any, is in them" in html.unescape(alone)
    assert len(images_of(alone)) == len(images_of(both)) - 1


def test_flow_is_projected_to_where_its_points_go() -> None:
    row = triplet()
    trails = trails_of(row)
    np.testing.assert_allclose(trails.removed_px[0], row["origin_px"], atol=1e-3)
    np.testing.assert_allclose(trails.removed_px[1:], row["tracks_px"], atol=1e-3)
    assert not trails.differ()
    assert trails.moving.sum() == 25


def test_points_without_depth_and_a_triplet_without_any_trusted_point_are_drawn() -> None:
    row = triplet()
    row["flow_origin_m"][:10] = 0
    row["flow_visible"][:, :10] = 0
    assert np.isfinite(trails_of(row).removed_px).all()
    row["flow_visible"][:] = 0
    assert len(images_of(example(row))) == 3


def test_closer_is_blue_and_farther_orange_and_rest_light() -> None:
    closer, rest, farther = colours(np.array([-1.0, 0.0, 1.0]), 1.0, signed=True).astype(int)
    assert closer[2] > closer[0] + 100
    assert farther[0] > farther[2] + 100
    assert np.ptp(rest) < 10
    brightness = colours(np.linspace(0, 1, 9), 1.0, signed=False) @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) > 0).all()


def test_interpolated_steps_look_otherwise() -> None:
    solid = draw_tracks(triplet(flow_measured=np.ones(STEPS, np.uint8)))
    dotted = draw_tracks(triplet(flow_measured=np.zeros(STEPS, np.uint8)))
    older = triplet()
    del older["flow_measured"]  # sets of before lack the column
    assert (solid != dotted).any()
    assert (draw_tracks(older) == solid).all()


def test_examples_are_spread_over_a_set(tmp_path: Path) -> None:
    rows = [triplet(moving_share=0.5 - n / 100, camera=str(n)) for n in range(40)]
    found = read_examples([write_set(tmp_path / "set", rows) / "triplets/part-0.parquet"], 3)
    cameras = sorted(int(row["camera"]) for row in found)
    assert len(found) == 3
    assert (cameras[0], cameras[-1]) == (0, 39)


def test_every_code_has_words() -> None:
    assert words.camera_words("fit", 0.5).endswith("in 3D (50% of the points agree)")
    assert words.camera_words("of a later version") == "of a later version"
    assert words.depth_words("model:depth/small", "aligned").startswith("estimated by depth/small")
    assert words.depth_words("tracker", "metric") == "found by the 3D tracker, in metres"
    assert "from that of depth/small" in words.depth_words("tracker+model:depth/small", "metric")
    assert words.camera_words("tracker").startswith("removed by the camera poses")
    assert words.focal_words("estimated") == "estimated by the 3D tracker"
    assert words.flow_words("lk+aligned").endswith("surfaces aligned in depth")
    assert "what moves was lost" in words.reason_words("no motion (filter.min_moving_share)")


@pytest.mark.parametrize(("value", "rounded"), [(0.0013, 0.002), (0.2, 0.2), (7, 10), (0, 1e-9)])
def test_ends_of_scales_are_round(value: float, rounded: float) -> None:
    assert round_number(value) == pytest.approx(rounded)
