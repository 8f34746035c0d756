"""Triplets to look at: some of a set, spread over it, with their tensors as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.place import Place

_COLUMNS = [
    "clip_id",
    "source",
    "camera",
    "split",
    "caption",
    "caption_kind",
    "frame_t",
    "frame_next",
    "t_s",
    "window_s",
    "origin_px",
    "tracks_px",
    "flow_visible",
    "flow_measured",
    "flow_origin_m",
    "flow_displacement_m",
    "median_depth_m",
    "focal_px",
    "width_px",
    "height_px",
    "visible_share",
    "moving_share",
    "flow_source",
    "depth_kind",
    "depth_scale",
    "camera_motion",
    "camera_inlier_share",
]
_FILES = 48  # of a large set; footers are read of these alone
_CANDIDATES = 3  # clips looked at, for each that is shown


def read_examples(files: Sequence[Place], count: int) -> list[dict[str, Any]]:
    """Triplets of clips that are spread over a set, from most motion to least.

    Args:
        files: the set's Parquet files.
        count: how many; each is of another clip, and the one with most motion of it.

    Returns:
        Columns of triplets; tensors are arrays of the schema's shapes.
    """
    best: dict[str, dict[str, Any]] = {}
    for table in _tables(files, _CANDIDATES * count):
        moving = table["moving_share"].to_pylist()
        for n, clip in enumerate(table["clip_id"].to_pylist()):
            if clip not in best or moving[n] > best[clip]["moving_share"]:
                best[clip] = _plain_row(table, n)
    found = sorted(best.values(), key=lambda row: (-row["moving_share"], row["clip_id"]))
    return [found[n] for n in _spread(len(found), count)]


def _tables(files: Sequence[Place], clips: int) -> Iterator[pa.Table]:
    """Row groups (a clip each), evenly spaced."""
    groups = []
    for path in (files[n] for n in _spread(len(files), _FILES)):
        with place.open_parquet(path) as file:
            groups += [(path, number) for number in range(file.num_row_groups)]
    wanted: dict[Place, list[int]] = {}
    for path, number in (groups[n] for n in _spread(len(groups), clips)):
        wanted.setdefault(path, []).append(number)
    for path, numbers in wanted.items():
        with place.open_parquet(path) as file:
            there = set(file.schema_arrow.names)  # older sets lack some
            for number in numbers:
                yield file.read_row_group(number, columns=[n for n in _COLUMNS if n in there])


def _spread(total: int, count: int) -> list[int]:
    """At most ``count`` different positions among ``total``, evenly spaced."""
    return sorted({int(n) for n in np.linspace(0, total - 1, min(total, count)).round()})


def _plain_row(table: Any, n: int) -> dict[str, Any]:
    """One row with its tensors as arrays."""
    row = {}
    for name in table.column_names:
        column = table[name].slice(n, 1).combine_chunks()
        tensor = hasattr(column, "to_numpy_ndarray")
        row[name] = column.to_numpy_ndarray()[0] if tensor else column[0].as_py()
    return row
