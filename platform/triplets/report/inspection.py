"""What a triplet folder holds, in numbers: counts, captions, motion, visibility.

Polars reads the columns of plain values; tensors are read file by file, so that memory
does not grow with the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.clips import normalise_caption
from dynaflip.platform.triplets.folder_index import parquet_files, set_files
from dynaflip.platform.triplets.place import Place, place_of
from dynaflip.platform.triplets.report.cautions import (
    MOSTLY_MOVING,
    camera_lines,
    interpolated_lines,
    small_set_lines,
)
from dynaflip.platform.triplets.report.copies import Copies, copies_across, read_looks
from dynaflip.platform.triplets.schema import read_manifest

_PLAIN = [
    "clip_id",
    "recording_id",
    "source",
    "split",
    "embodiment",
    "licence",
    "caption",
    "caption_group",
    "task",
    "window_s",
    "visible_share",
    "moving_share",
    "flow_source",
    "depth_kind",
    "depth_scale",
    "camera_motion",
    "camera_inlier_share",
    "focal_kind",
    "grid",
]
# Columns that older folders lack.
_ADDED = {"focal_kind": "unknown"}
# Bins of a point's motion to the end of the window, as a share of the median depth.
MOTION_BINS = np.concatenate([[0, 1e-6], np.geomspace(0.002, 1.0, 19)])
_MOST_CAPTIONS = 10


@dataclass(frozen=True)
class Inspection:
    """``files``: the Parquet files; ``rows``: the plain columns of every triplet;
    ``rejected``: rows of rejected.parquet;
    ``motion``: how many trusted points fall into each of :data:`MOTION_BINS`;
    ``manifest``: as :func:`read_manifest` gives it; ``copies``: near copies across the splits,
    None for folders without thumbnails."""

    folder: Place
    manifest: dict[str, Any]
    rows: pl.DataFrame
    rejected: pl.DataFrame
    motion: np.ndarray
    files: tuple[Place, ...] = ()
    copies: Copies | None = None

    def counts(self) -> pl.DataFrame:
        """Triplets, clips, recordings and mean shares, by source and split."""
        return (
            self.rows.group_by("source", "embodiment", "licence", "split")
            .agg(
                pl.len().alias("triplets"),
                pl.col("clip_id").n_unique().alias("clips"),
                pl.col("recording_id").n_unique().alias("recordings"),
                pl.col("moving_share").cast(pl.Float64).mean().round(4).alias("moving"),
                pl.col("visible_share").cast(pl.Float64).mean().round(4).alias("visible"),
            )
            .sort("source", "split")
        )

    def ways(self) -> pl.DataFrame:
        """How flow, depth and camera motion came about."""
        names = ["flow_source", "depth_kind", "depth_scale", "camera_motion", "focal_kind", "grid"]
        return self.rows.group_by(names).agg(pl.len().alias("triplets")).sort(names)

    def camera_counts(self) -> dict[str, Any]:
        """As :func:`camera_lines` takes them; from the rows, so that older folders have them."""
        share = pl.col("moving_share") / pl.col("visible_share").clip(1e-6)
        by_clip = self.rows.group_by("clip_id").agg(share.median().alias("moving"))
        kinds = self.rows["camera_motion"].value_counts(sort=True)
        return {
            "kept": len(by_clip),
            "mostly_moving": int((by_clip["moving"] > MOSTLY_MOVING).sum()),
            "camera_motion": dict(kinds.iter_rows()),
        }

    def reasons(self) -> pl.DataFrame:
        """Rejected clips by source, stage and reason, the most frequent first; one's path."""
        return (
            self.rejected.group_by("source", "stage", "reason")
            .agg(pl.len().alias("clips"), pl.col("path").min().alias("example"))
            .sort("clips", "reason", descending=[True, False])
        )

    def left_out(self) -> pl.DataFrame:
        """Windows that were rejected, by reason, and where one of each lies."""
        counts = self.manifest["counts"]
        found, places = counts.get("windows_left_out", {}), counts.get("windows_left_out_at", {})
        return pl.DataFrame(
            {
                "reason": list(found),
                "windows": list(found.values()),
                "for example": ["; ".join(map(_where, places.get(name, [])[:2])) for name in found],
            },
            schema={"reason": pl.String, "windows": pl.Int64, "for example": pl.String},
        )

    def captions(self) -> dict[str, float]:
        """Distinct captions and groups; ``duplicates``: the share of clips whose caption (but
        for case and punctuation) another clip has too: they weaken the contrast."""
        by_clip = self.rows.unique(["clip_id", "caption"]).with_columns(
            pl.col("caption").map_elements(normalise_caption, return_dtype=pl.String).alias("plain")
        )
        shared = by_clip.group_by("plain").agg(pl.col("clip_id").n_unique().alias("clips"))
        repeated = by_clip.join(shared, on="plain")
        words = by_clip["plain"].str.split(" ").list.len()
        return {
            "distinct": by_clip["caption"].n_unique(),
            "distinct_normalised": by_clip["plain"].n_unique(),
            "groups": self.rows["caption_group"].n_unique(),
            "duplicates": float((repeated["clips"] > 1).to_numpy().mean()) if len(words) else 0.0,
            "words_mean": float(np.mean(words.to_numpy())) if len(words) else 0.0,
        }

    def common_captions(self) -> pl.DataFrame:
        """The captions of most triplets."""
        found = self.rows.group_by("caption").agg(
            pl.len().alias("triplets"), pl.col("clip_id").n_unique().alias("clips")
        )
        return found.sort("triplets", "caption", descending=[True, False]).head(_MOST_CAPTIONS)


def _where(window: dict[str, Any]) -> str:
    """Where a window lies, for a reader who opens the video there."""
    return f"{window['path']}, {window['from_s']:.2f} to {window['to_s']:.2f} s"


def inspect_folder(folder: str) -> Inspection:
    """Read a triplet folder.

    Raises:
        UserError: it is none, or one of another schema version.
    """
    manifest = read_manifest(folder)
    root = place_of(folder)
    files = parquet_files(root, manifest)
    rejected = _polars(place.read_table(set_files(root, manifest) / "rejected.parquet"))
    return inspect_files(root, manifest, files, rejected)


def inspect_files(
    root: Place, manifest: dict[str, Any], files: Sequence[Place], rejected: pl.DataFrame
) -> Inspection:
    """Read Parquet files of triplets, at least one.

    Args:
        root: folder that they belong to.
        manifest: of the folder; without one, what is known of it.
        files: to read.
        rejected: rows of rejected.parquet.
    """
    motion = np.zeros(len(MOTION_BINS), dtype=np.int64)
    rows, looks = [], []
    clips = int(manifest["counts"].get("kept", 0))
    for path in files:
        with place.open_parquet(path) as file:
            rows.append(_plain_rows(file))
            looks += read_looks(file, clips)
            motion += _motion(file)
    plain = pl.concat(rows)
    of_train = plain.filter(pl.col("split") == "train")["clip_id"].n_unique()
    copies = copies_across(looks, of_train) if looks else None
    return Inspection(root, manifest, plain, rejected, motion, tuple(files), copies)


def _plain_rows(file: pq.ParquetFile) -> pl.DataFrame:
    lacking = set(_ADDED) - set(file.schema_arrow.names)
    found = _polars(file.read(columns=[n for n in _PLAIN if n not in lacking]))
    return found.with_columns(pl.lit(_ADDED[name]).alias(name) for name in sorted(lacking)).select(
        _PLAIN
    )


def _polars(table: pa.Table) -> pl.DataFrame:
    found = pl.from_arrow(table)
    assert isinstance(found, pl.DataFrame)
    return found


def _motion(file: pq.ParquetFile) -> np.ndarray:
    """Trusted points by how far they go; the last bin holds all that is further."""
    out = np.zeros(len(MOTION_BINS), dtype=np.int64)
    names = ["flow_displacement_m", "flow_visible", "median_depth_m"]
    # All row groups at once: of a bucket's file, they are asked for side by side.
    for batch in file.read(columns=names).to_batches():
        moved_m, visible = (batch[name].to_numpy_ndarray()[:, -1] for name in names[:2])
        depth_m = batch["median_depth_m"].to_numpy()[:, None, None]
        share = np.linalg.norm(moved_m, axis=-1) / depth_m
        bins = np.digitize(share[visible.astype(bool)], MOTION_BINS) - 1
        out += np.bincount(bins, minlength=len(MOTION_BINS))
    return out


def inspection_lines(found: Inspection) -> list[str]:
    """The lines that ``jobs/preprocess.py inspect`` prints."""
    counts = found.manifest["counts"]
    texts = found.captions()
    lines = [
        f"{found.folder}: schema version {found.manifest['schema_version']}, "
        f"digest {found.manifest['digest'][:16]}",
        f"clips read {counts['read']}, kept {counts['kept']}, rejected {counts['rejected']}",
        "",
        *_table(found.counts()),
        "",
        *_table(found.ways()),
    ]
    if len(found.rejected):
        lines += ["", "rejected clips", *_table(found.reasons().head(12))]
    if len(found.left_out()):
        lines += ["", "windows left out", *_table(found.left_out())]
    moving, visible = found.rows["moving_share"], found.rows["visible_share"]
    fitted = found.rows["camera_inlier_share"].drop_nulls()
    lines += [
        "",
        f"points that move: {_spread(moving)}",
        f"points trusted to the end: {_spread(visible)}",
    ]
    lines += interpolated_lines(counts)
    lines += camera_lines(found.camera_counts())
    if len(fitted):
        lines.append(f"points that agree with the fitted camera: {_spread(fitted)}")
    lines += [
        f"captions: {texts['distinct']:.0f} distinct ({texts['distinct_normalised']:.0f} but for "
        f"case and punctuation), {texts['groups']:.0f} groups, {texts['words_mean']:.1f} words; "
        f"{texts['duplicates']:.0%} of the clips share theirs with another",
        "",
        *_table(found.common_captions()),
        *(found.copies.lines() if found.copies else []),
        *(f"note: {line}" for line in small_set_lines(found.manifest)),
    ]
    return lines


def _spread(values: pl.Series) -> str:
    low, middle, high = (float(values.quantile(q) or 0.0) for q in (0.1, 0.5, 0.9))
    return f"{middle:.1%} (a tenth below {low:.1%}, a tenth above {high:.1%})"


def _table(frame: pl.DataFrame) -> list[str]:
    """Columns aligned, without a frame."""
    cells = [list(frame.columns)]
    cells += [["" if v is None else str(v)[:60] for v in row] for row in frame.iter_rows()]
    wide = [max(len(row[n]) for row in cells) for n in range(len(frame.columns))]
    number = [dtype.is_numeric() for dtype in frame.dtypes]
    return [
        "  ".join(
            cell.rjust(w) if right else cell.ljust(w)
            for cell, w, right in zip(row, wide, number, strict=True)
        ).rstrip()
        for row in cells
    ]
