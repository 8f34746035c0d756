"""Index of a triplet folder: what the driver reads of it before training, without any image."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynaflip.errors import UserError
from dynaflip.platform.paths import cache_folder, is_uri
from dynaflip.platform.triplets import place as places
from dynaflip.platform.triplets.clips import content_hash
from dynaflip.platform.triplets.folder_index import (
    CAPTIONS_FILE,
    CLIPS_FILE,
    CLIPS_SCHEMA,
    GROUPS_FILE,
    INDEX,
    TRIPLETS,
    FileIndex,
    distinct,
    index_file,
    parquet_files,
    set_files,
)
from dynaflip.platform.triplets.index_writer import write_index
from dynaflip.platform.triplets.place import Place, place_of
from dynaflip.platform.triplets.report.cautions import small_set_lines
from dynaflip.platform.triplets.schema import read_manifest

_MANY_FILES = 1000  # a few seconds
_READERS = 8  # threads that wait for disks
_CLIP_COLUMNS = [name for name in CLIPS_SCHEMA.names if not name.endswith("_id")]


@dataclass(frozen=True)
class ClipTable:
    """Clips of one split: an entry a row group, which is what training orders and reads at once.

    In the order of a hash of their recordings; C clips.
    """

    files: tuple[str, ...]  # absolute paths or s3:// URIs
    file: np.ndarray  # (C,) int32 into `files`
    row_group: np.ndarray  # (C,) int32 within the file
    rows: np.ndarray  # (C,) int32 triplets, at least 1
    # (C,) int64 in memory, of what training reads; an image that several rows share counts once.
    bytes: np.ndarray
    source: np.ndarray  # (C,) int32 into `sources`
    sources: tuple[str, ...]
    # (C,) uint64 hash of what the clip holds: the same whichever file it lies in.
    key: np.ndarray

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.rows)

    @classmethod
    def of(cls, clips: pa.Table, folder: str) -> ClipTable:
        """The table of some rows of a folder's ``CLIPS_SCHEMA``."""
        names, file = _coded(clips["file"])
        sources, source = _coded(clips["source"])
        return cls(
            files=tuple(str(place_of(folder) / TRIPLETS / name) for name in names),
            file=file,
            row_group=clips["row_group"].to_numpy(),
            rows=clips["rows"].to_numpy(),
            bytes=clips["bytes"].to_numpy(),
            source=source,
            sources=sources,
            key=clips["key"].to_numpy(),
        )


@dataclass(frozen=True)
class TripletIndex:
    """A triplet folder without its images and flow; plain data, so that it travels to workers."""

    folder: str
    digest: str
    index_folder: str  # where the captions are listed
    captions_digest: str  # of the distinct captions
    counts: dict[str, int]  # triplets by split
    sources: dict[str, int]  # training triplets by source
    # Sampling weight of each source in the triplets' own settings; empty where all are equal.
    weights: dict[str, float]
    licences: list[str]
    flow_sources: list[str]
    depth_kinds: list[str]
    train: ClipTable
    heldout: ClipTable
    # Preprocessing's settings, as the manifest has them; empty where it has none.
    settings: dict[str, Any] = field(default_factory=dict)
    # Clips by source and by the short side of their stored images, in pixels.
    short_sides_px: dict[str, dict[str, int]] = field(default_factory=dict)
    # What the set is too small for, a line each.
    notes: tuple[str, ...] = ()

    @property
    def captions(self) -> list[str]:
        """Distinct captions, sorted; read when asked for."""
        return _column(place_of(self.index_folder) / CAPTIONS_FILE)

    @property
    def caption_groups(self) -> list[str]:
        """Distinct caption groups of the training triplets, sorted; read when asked for."""
        return _column(place_of(self.index_folder) / GROUPS_FILE)

    def provenance(self) -> dict[str, Any]:
        """Origin of the training data, as an encoder's info records it."""
        return {
            "data_digest": self.digest,
            "sources": self.sources,
            "licences": self.licences,
            "caption_groups": self.caption_groups,
            "flow_sources": self.flow_sources,
            "depth_kinds": self.depth_kinds,
            "heldout_share": self.settings.get("heldout_share"),
        }


def read_index(folder: str) -> TripletIndex:
    """Read the index of a triplet folder: its manifest and a row a clip.

    Raises:
        UserError: no triplet folder, one of another schema version, or an empty one.
    """
    manifest = read_manifest(folder)
    place: Place = set_files(place_of(folder), manifest) / INDEX
    summary = manifest.get("index")
    if summary is None or not (place / CLIPS_FILE).is_file():
        place, summary = _index_of_earlier(folder, manifest)
    clips = _read(place / CLIPS_FILE, _CLIP_COLUMNS)
    train, heldout = (
        ClipTable.of(clips.filter(pc.field("split") == split), folder)
        for split in ("train", "heldout")
    )
    sources = {
        name: int(train.rows[train.source == number].sum())
        for number, name in enumerate(train.sources)
    }
    return TripletIndex(
        folder=folder,
        digest=str(manifest["digest"]),
        index_folder=str(place),
        captions_digest=summary["captions_digest"],
        counts={"train": int(train.rows.sum()), "heldout": int(heldout.rows.sum())},
        sources=sources,
        weights=_weights_of(manifest, sources),
        licences=summary["licences"],
        flow_sources=summary["flow_sources"],
        depth_kinds=summary["depth_kinds"],
        train=train,
        heldout=heldout,
        settings=manifest.get("settings", {}),
        short_sides_px=manifest.get("counts", {}).get("short_sides_px", {}),
        notes=tuple(small_set_lines(manifest)),
    )


def _index_of_earlier(folder: str, manifest: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Index of a folder that was made or copied without one, scanned once and kept in the home.

    Raises:
        UserError: it holds no triplets.
    """
    paths = parquet_files(place_of(folder), manifest)
    if not paths:
        raise UserError(f"triplets: {folder} holds no triplets (triplets/*.parquet)")
    stamps = places.stamps(place_of(folder) / TRIPLETS)
    files = [(path.name, *stamps[path.name]) for path in paths]
    # The digest is of rows, and the index of files.
    digest = f"{manifest['digest'][:32]}-{content_hash(repr(files))[:16]}"
    place = cache_folder() / "indexes" / digest
    known = place / "summary.json"
    if not known.exists():
        if len(paths) > _MANY_FILES:
            print(f"triplets: indexing the {len(paths):,} files of {folder}, once", flush=True)
        with ThreadPoolExecutor(_READERS) as readers:
            summary = write_index(place, readers.map(_index_file, paths))
        places.write(known, json.dumps(summary))
    return place, json.loads(known.read_text())


def _index_file(path: Place) -> FileIndex:
    with places.local_copy(path) as local:
        return index_file(local, path.name)


def _column(path: Place) -> list[str]:
    (column,) = _read(path).columns
    return column.to_pylist()


def _read(path: Place, columns: list[str] | None = None) -> pa.Table:
    try:
        return places.read_table(path, columns)
    except (OSError, pa.ArrowException) as error:
        remedy = f"delete {path.parent}, and the next start indexes the triplets anew"
        if is_uri(str(path)):
            remedy = "try again, or run jobs/preprocess.py again"
        raise UserError(
            f"triplets: {path} cannot be read ({str(error).splitlines()[0]}); {remedy}"
        ) from None


def _coded(column: pa.ChunkedArray) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct values of a column, sorted, and (C,) int32 which of them each row has."""
    names = distinct(column)
    return tuple(names.to_pylist()), pc.index_in(column, names).to_numpy()


def _weights_of(manifest: dict[str, Any], sources: dict[str, int]) -> dict[str, float]:
    about = manifest.get("sources", {})
    weights = {name: float(about.get(name, {}).get("weight", 1.0)) for name in sources}
    return {} if len(set(weights.values())) < 2 else weights
