"""The triplet format: one row is one transition of one camera of one recording.

A triplet folder holds ``triplets/*.parquet`` (this schema), ``rejected.parquet``
(:data:`REJECTED_SCHEMA`) and ``manifest.json``. Plain pyarrow and polars read it.

Coordinate frames: flow is metric XYZ in the camera frame of frame t (x right,
y down, z forward), so the motion of the camera is compensated where its pose is
known. Pixels have their origin at the top left corner of the top left pixel
(the centre of the first pixel is at 0.5), in units of the stored image.

Shapes: K = 7 steps, G = 20 grid points a side; the grid is stored row-major,
[row (down), column (right)].
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from dynaflip.errors import UserError
from dynaflip.platform.s3 import S3Path, check_bucket
from dynaflip.platform.triplets.place import one_line_errors, place_of
from dynaflip.platform.triplets.shapes import GRID, R3M_FRAMES, STEPS

SCHEMA_VERSION = 2

TRIPLET_SCHEMA = pa.schema(
    [
        # Identity. Ids are content hashes, so that running again gives the same ones.
        pa.field("triplet_id", pa.string(), nullable=False),
        pa.field("clip_id", pa.string(), nullable=False),  # one camera of one recording
        pa.field("recording_id", pa.string(), nullable=False),  # episode or source video
        pa.field("source", pa.string(), nullable=False),  # name of the source in the config
        pa.field("camera", pa.string(), nullable=False),
        pa.field("embodiment", pa.string(), nullable=False),  # robot | human | unknown
        pa.field("licence", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train | heldout, by recording
        # Language.
        pa.field("caption", pa.string(), nullable=False),
        pa.field("caption_kind", pa.string(), nullable=False),  # source | template | model:NAME
        pa.field("caption_group", pa.string(), nullable=False),  # equal = same meaning
        pa.field("task", pa.string(), nullable=False),  # task id; the caption group if none
        # Images: JPEG, RGB, aspect ratio kept, short side = image_px.
        pa.field("frame_t", pa.binary(), nullable=False),
        pa.field("frame_next", pa.binary(), nullable=False),  # at t_s + window_s, or R3M's next
        pa.field("frames_r3m", pa.list_(pa.binary(), R3M_FRAMES), nullable=False),
        pa.field("width_px", pa.int32(), nullable=False),
        pa.field("height_px", pa.int32(), nullable=False),
        # Times, seconds from the beginning of the clip.
        pa.field("t_s", pa.float64(), nullable=False),
        # Time to the next drawn frame, at most flow_window_s.
        pa.field("window_s", pa.float64(), nullable=False),
        pa.field("frames_r3m_s", pa.list_(pa.float64(), R3M_FRAMES), nullable=False),
        # Flow. Origin: metric XYZ, camera frame t. Step k = 1…K is at t + k·window/K.
        # A point without depth in frame t (the sky) has origin 0 and is never visible.
        pa.field(
            "flow_origin_m", pa.fixed_shape_tensor(pa.float32(), (GRID, GRID, 3)), nullable=False
        ),
        pa.field(
            "flow_displacement_m",
            pa.fixed_shape_tensor(pa.float32(), (STEPS, GRID, GRID, 3)),
            nullable=False,
        ),
        # 1 where the tracker trusts the point at that step (uint8: tensors of bool do not exist).
        pa.field(
            "flow_visible",
            pa.fixed_shape_tensor(pa.uint8(), (STEPS, GRID, GRID)),
            nullable=False,
        ),
        # 1 where a tracked frame lies near that step's time, 0 where the step is interpolated
        # between frames further away (`lifting.measured_within`): input, but no loss. Older
        # folders lack this column: all of their steps count as measured.
        pa.field("flow_measured", pa.fixed_shape_tensor(pa.uint8(), (STEPS,)), nullable=False),
        # Where the points are in frame t and, uncompensated, at each step.
        pa.field("origin_px", pa.fixed_shape_tensor(pa.float32(), (GRID, GRID, 2)), nullable=False),
        pa.field(
            "tracks_px", pa.fixed_shape_tensor(pa.float32(), (STEPS, GRID, GRID, 2)), nullable=False
        ),
        pa.field("median_depth_m", pa.float32(), nullable=False),  # of frame t
        pa.field("focal_px", pa.float32(), nullable=False),  # of the stored image
        # recorded | estimated (by a 3D tracker) | assumed (the longer side, 53°): metres across the
        # image are then a guess, whatever `depth_scale` says. Folders made before November 2026
        # lack this column.
        pa.field("focal_kind", pa.string(), nullable=False),
        # How the flow came about; never silently.
        pa.field(
            "flow_source", pa.string(), nullable=False
        ),  # lk+aligned | … (a tracker) | simulator
        # recorded | model:NAME | plane | tracker (a 3D tracker's own) | tracker+model:NAME
        pa.field("depth_kind", pa.string(), nullable=False),
        # metric | relative | aligned (relative, brought to metres by scale and shift)
        pa.field("depth_scale", pa.string(), nullable=False),
        # Removed: pose (recorded) | tracker (a 3D tracker's poses) | fit (in 3D, by depth) | image
        # (without depth, by one homography a frame) | image+parallax (the same, but near and far
        # move differently, which it cannot remove; points that this explains are not trusted).
        # Tested: static (the camera stood still). Not removed: none (not tested, or too little
        # texture to tell) | failed (tested, and nothing fits). Folders made before the camera's
        # motion was fitted without depth say `none` for all of depth `plane`, and `fit` for a
        # camera that stood still.
        pa.field("camera_motion", pa.string(), nullable=False),
        # Of fit, image, image+parallax, static and failed, the smallest share over the window of
        # the points that agree; null for others.
        pa.field("camera_inlier_share", pa.float32(), nullable=True),
        pa.field("grid", pa.string(), nullable=False),  # uniform | motion (lines closer there)
        # Shares in [0, 1], over grid points.
        pa.field("visible_share", pa.float32(), nullable=False),
        pa.field("moving_share", pa.float32(), nullable=False),
        # Perturbation values of the recording (JSON; "{}" when unperturbed or unknown).
        pa.field("factors", pa.string(), nullable=False),
        # Five small grey frames of the clip, beside each other in a JPEG, the same in all of its
        # rows: near-duplicates are found by them. In older folders, which lack them, none is.
        pa.field("clip_thumbnails", pa.binary(), nullable=False),
    ],
    metadata={"dynaflip_schema_version": str(SCHEMA_VERSION)},
)

# What training reads; the tracks in pixels, more than half of a row, stay on disk.
TRAINING_COLUMNS = (
    "triplet_id",
    "clip_id",
    "recording_id",
    "source",
    "caption",
    "caption_group",
    "task",
    "frame_t",
    "frame_next",
    "frames_r3m",
    "t_s",
    "window_s",
    "frames_r3m_s",
    "flow_origin_m",
    "flow_displacement_m",
    "flow_visible",
    "flow_measured",
    "median_depth_m",
)

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("recording_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),  # relative to the source's root
        pa.field("stage", pa.string(), nullable=False),  # decode | sample | caption | depth | …
        pa.field("reason", pa.string(), nullable=False),
    ],
    metadata={"dynaflip_schema_version": str(SCHEMA_VERSION)},
)


def interpolated_steps(table: pa.Table) -> float:
    """Number of a table's triplets whose flow is interpolated, each counted by its share of steps.

    0 of older folders, which lack the column.
    """
    if "flow_measured" not in table.column_names:
        return 0.0
    measured = table["flow_measured"].combine_chunks().to_numpy_ndarray()
    return float((1 - measured.mean(axis=1)).sum())


def read_manifest(folder: str) -> dict[str, Any]:
    """Read ``manifest.json`` of a triplet folder.

    Keys: ``schema_version``, ``digest`` (of all triplets), ``settings`` (resolved),
    ``counts`` (read, kept, rejected, triplets, by split and by reason).

    Raises:
        UserError: no triplet folder, or one of another schema version.
    """
    if "://" in folder and not folder.startswith("s3://"):
        raise UserError(f"triplets: {folder}: give a folder or s3://bucket/prefix")
    root = place_of(folder)
    if isinstance(root, S3Path):
        check_bucket(root, "triplets")
    path = root / "manifest.json"
    with one_line_errors("triplets"):
        text = path.read_text() if path.is_file() else None
    if text is None:
        there = root.is_dir()
        hint = f"--source {folder} --output NEW_FOLDER" if there else f"--output {folder}"
        raise UserError(
            f"triplets: {folder} is not a triplet folder (no manifest.json); make one with "
            f"jobs/preprocess.py {hint}"
        )
    try:
        manifest = json.loads(text)
        version = manifest["schema_version"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"triplets: {path} is damaged; run jobs/preprocess.py again") from None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"triplets: {folder} has schema version {version}, this code reads "
            f"{SCHEMA_VERSION}; run jobs/preprocess.py again into a new folder"
        )
    return manifest
