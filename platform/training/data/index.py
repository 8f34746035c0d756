"""Index of a triplet folder: what the driver reads of it before training, without any image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from dynaflip.errors import UserError
from dynaflip.platform.triplets.schema import read_manifest


@dataclass(frozen=True)
class TripletIndex:
    """A triplet folder without its images and flow; plain data, so that it travels to workers."""

    folder: str
    digest: str
    captions: list[str]  # distinct, sorted
    caption_groups: list[str]  # of the training triplets, distinct, sorted
    counts: dict[str, int]  # triplets by split
    sources: dict[str, int]  # training triplets by source
    # Sampling weight of each source in the triplets' own settings; empty where all are equal.
    weights: dict[str, float]
    licences: list[str]
    flow_sources: list[str]
    depth_kinds: list[str]
    heldout: pa.Table  # triplet_id, clip_id, recording_id of split heldout

    def provenance(self) -> dict[str, Any]:
        """Where the training data come from, as an encoder's info records it."""
        return {
            "data_digest": self.digest,
            "sources": self.sources,
            "licences": self.licences,
            "caption_groups": self.caption_groups,
            "flow_sources": self.flow_sources,
            "depth_kinds": self.depth_kinds,
        }


def shard_paths(folder: str) -> list[str]:
    """The Parquet shards of a triplet folder, in the one order that all readers use.

    By a hash of their names: shards are numbered source by source, and in that order a shuffle
    buffer that is smaller than a source would give batches of one source alone.
    """
    paths = (Path(folder) / "triplets").glob("*.parquet")
    return [str(path) for path in sorted(paths, key=lambda path: name_hash(path.name))]


def read_index(folder: str) -> TripletIndex:
    """Read the small columns of a triplet folder.

    Raises:
        UserError: no triplet folder, one of another schema version, or an empty one.
    """
    manifest = read_manifest(folder)
    paths = shard_paths(folder)
    if not paths:
        raise UserError(f"triplets: {folder} holds no triplets (triplets/*.parquet)")
    names = ["triplet_id", "clip_id", "recording_id", "split", "caption"]
    described = ["source", "licence", "flow_source", "depth_kind", "caption_group"]
    table = pads.dataset(paths).to_table(columns=[*names, *described])
    splits = pc.value_counts(table["split"]).to_pylist()
    train = table.filter(pc.field("split") == "train")
    sources = pc.value_counts(train["source"]).to_pylist()
    heldout = table.filter(pc.field("split") == "heldout")
    counts = {c["values"]: c["counts"] for c in sorted(sources, key=lambda c: c["values"])}
    return TripletIndex(
        folder=folder,
        digest=str(manifest["digest"]),
        captions=sorted(pc.unique(table["caption"]).to_pylist()),
        caption_groups=sorted(pc.unique(train["caption_group"]).to_pylist()),
        counts={"train": 0, "heldout": 0} | {c["values"]: c["counts"] for c in splits},
        sources=counts,
        weights=_weights_of(manifest, counts),
        licences=sorted(pc.unique(table["licence"]).to_pylist()),
        flow_sources=sorted(pc.unique(table["flow_source"]).to_pylist()),
        depth_kinds=sorted(pc.unique(table["depth_kind"]).to_pylist()),
        heldout=heldout.select(names[:3]),
    )


def _weights_of(manifest: dict[str, Any], sources: dict[str, int]) -> dict[str, float]:
    about = manifest.get("sources", {})
    weights = {name: float(about.get(name, {}).get("weight", 1.0)) for name in sources}
    return {} if len(set(weights.values())) < 2 else weights


def name_hash(text: str) -> str:
    """A fixed pseudo-random sort key of a name."""
    return hashlib.sha256(text.encode()).hexdigest()
