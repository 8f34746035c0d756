"""The frames and the flow that the flow probe reads of a triplet set: a folder or a bucket."""

from __future__ import annotations

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dynaflip.errors import UserError
from dynaflip.eval.labelled_frames import embed
from dynaflip.eval.metrics.flow_probe import (
    FlowWindows,
    cells_of,
    flow_windows,
    point_velocities,
)
from dynaflip.files import new_file
from dynaflip.platform.evaluation.flow_probe_config import FlowProbeConfig
from dynaflip.platform.training.data.decode import decode_image
from dynaflip.platform.training.data.index import ClipTable, TripletIndex
from dynaflip.platform.training.data.row_groups import RowGroupReader
from dynaflip.platform.triplets.shapes import GRID, STEPS

# Raised when the same triplets give other scores than before.
FLOW_PROBE_VERSION = 1
_COLUMNS = (
    "recording_id", "source", "camera", "frame_t", "width_px", "height_px", "t_s", "window_s",
    "flow_displacement_m", "flow_visible", "flow_measured", "origin_px", "median_depth_m",
)  # fmt: skip
_ARRAYS = ("velocity", "view", "recording", "heldout", "left_out")
_POINTS = GRID * GRID


@dataclass(frozen=True)
class FlowFrames:
    """N windows and the encoded images of their first frames."""

    windows: FlowWindows
    jpegs: tuple[bytes, ...]  # (N,)

    def features(self, encoder: Any, batch_size: int) -> np.ndarray:
        """(N, D) frozen features of the frames, decoded to the encoder's own size."""
        side = int(encoder.config.image_px)
        parts = [
            embed(
                encoder,
                np.stack([decode_image(jpeg, side) for jpeg in self.jpegs[i : i + batch_size]]),
                batch_size,
            )
            for i in range(0, len(self.jpegs), batch_size)
        ]
        return np.concatenate(parts)

    def digest(self) -> str:
        """Equal for equal frames and flow: scores of equal digests are comparable."""
        found = hashlib.sha256(str(FLOW_PROBE_VERSION).encode())
        for name in _ARRAYS:
            found.update(np.ascontiguousarray(getattr(self.windows, name)).tobytes())
        for jpeg in self.jpegs:
            found.update(hashlib.sha256(jpeg).digest())
        return found.hexdigest()[:16]


def read_flow_frames(index: TripletIndex, config: FlowProbeConfig) -> FlowFrames:
    """The windows of the first clips in the order of a hash of their recordings, evenly spaced.

    Raises:
        UserError: the triplets cannot be read.
    """
    sides = ((index.train, config.clips, False), (index.heldout, config.heldout_clips, True))
    tables, heldout = [], []
    for clips, most, side in sides:
        for table in _read(clips, most):
            some = np.linspace(0, len(table) - 1, min(config.windows_per_clip, len(table)))
            tables.append(table.sort_by("t_s").take(np.unique(some.round().astype(int))))
            heldout += [side] * len(tables[-1])
    if not tables:
        raise UserError(f"triplets: {index.folder} holds no triplets to score flow on")
    columns = [_columns_of(table) for table in tables]
    joined = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    windows, kept = flow_windows(**joined, heldout=np.array(heldout))
    jpegs = [jpeg for table in tables for jpeg in table["frame_t"].to_pylist()]
    return FlowFrames(windows, tuple(jpegs[i] for i in np.flatnonzero(kept)))


def write_flow_frames(frames: FlowFrames, path: Path) -> None:
    """Write them as one ``.npz`` without pickles; a file already there is replaced whole."""
    ends = np.cumsum([len(jpeg) for jpeg in frames.jpegs])
    arrays = {name: getattr(frames.windows, name) for name in _ARRAYS}
    data = np.frombuffer(b"".join(frames.jpegs), np.uint8)
    with new_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays, jpegs=data, ends=ends)


def read_flow_file(path: Path) -> FlowFrames:
    """Read what :func:`write_flow_frames` wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            velocity, view, recording, heldout, left_out = (file[name] for name in _ARRAYS)
            data, ends = file["jpegs"].tobytes(), file["ends"].tolist()
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"flow_probe: {path} holds no frames with flow ({reason})") from None
    jpegs = tuple(data[start:end] for start, end in zip([0, *ends], ends, strict=False))
    return FlowFrames(FlowWindows(velocity, view, recording, heldout, int(left_out)), jpegs)


def _read(clips: ClipTable, most: int) -> list[pa.Table]:
    """The first clips of a split, a table each; older sets lack some columns."""
    reader = RowGroupReader(clips, _COLUMNS)
    with ThreadPoolExecutor(reader.threads) as pool:
        return list(pool.map(reader.read, range(min(most, len(clips)))))


def _columns_of(table: pa.Table) -> dict[str, np.ndarray]:
    """The arguments of :func:`flow_windows` but for the split, of some rows."""
    number = len(table)
    visible = _tensor(table, "flow_visible").reshape(number, STEPS, _POINTS) > 0
    if "flow_measured" in table.column_names:  # older sets lack it: all steps count as measured
        visible = visible & (_tensor(table, "flow_measured").reshape(number, STEPS, 1) > 0)
    size_px = np.stack([table[name].to_numpy() for name in ("width_px", "height_px")], axis=1)
    return {
        "velocity": point_velocities(
            _tensor(table, "flow_displacement_m").reshape(number, STEPS, _POINTS, 3),
            visible,
            table["median_depth_m"].to_numpy(),
            table["window_s"].to_numpy(),
        ),
        "cells": cells_of(_tensor(table, "origin_px").reshape(number, _POINTS, 2), size_px),
        "source": np.array(table["source"].to_pylist(), dtype=object),
        "camera": np.array(table["camera"].to_pylist(), dtype=object),
        "recording": np.array(table["recording_id"].to_pylist(), dtype=str),
    }


def _tensor(table: pa.Table, name: str) -> np.ndarray:
    return table[name].combine_chunks().to_numpy_ndarray()
