"""What a second start of a training reads before its first step, and how long that takes.

From the driver's point of view: the index, the captions' features, the gallery. Bytes are what
the process asks the system for; nothing here is cached but by the system's own page cache. One
line of figures a folder, and a verdict: make bench, or this file alone (about a minute).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from checkout import REPOSITORY
from expectation import show

from dynaflip.platform.triplets.folder_index import (
    CLIPS_SCHEMA,
    FileIndex,
    index_file,
    name_hash,
)
from dynaflip.platform.triplets.index_writer import write_index
from dynaflip.platform.triplets.schema import SCHEMA_VERSION
from dynaflip.platform.triplets.work_folder import ClipFile

pytestmark = pytest.mark.bench

ROWS_A_CLIP, CLIPS_A_FILE = 12, 200
GALLERY = 256
# Each is a start in a process of its own, after its imports.
START = """
import json, time
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.job import build_job
import dynaflip.platform.training.data.gallery, torch, sys

def read_bytes():
    return int(open("/proc/self/io").read().split()[1])

folder = sys.argv[1]
config = load_config(PretrainConfig, None, {"triplets": folder})
before, began = read_bytes(), time.perf_counter()
job = build_job(config, folder + "-checkpoints")
indexed = read_bytes()
gallery = job.gallery(0)
out = {"seconds": time.perf_counter() - began, "bytes": read_bytes() - before}
out |= {"gallery_bytes": read_bytes() - indexed, "gallery": len(gallery["triplet_id"])}
print(json.dumps(out))
"""


def clip_of(number: int, images: list[bytes], rng: np.random.Generator | None) -> pa.Table:
    """Twelve rows; with random images and flow of the usual size, or as small as they come."""
    from synthetic_triplets import clip_rows, rows_table

    rows = clip_rows(np.random.default_rng(number), number, ROWS_A_CLIP, 16)
    for n, row in enumerate(rows):
        row |= {"source": "bench", "split": "heldout"}
        row |= {"recording_id": recording(number), "caption": caption(number)}
        if rng is not None:
            row |= {"frame_t": images[n], "frame_next": images[n + 12]}
            row |= {"frames_r3m": [images[(n // 4 * 5 + k) % len(images)] for k in range(5)]}
            for name in ("flow_origin_m", "flow_displacement_m"):
                row[name] = rng.standard_normal(row[name].shape, np.float32)
    return rows_table(rows)


def recording(number: int) -> str:
    return f"recording {number:06d}"


def caption(number: int) -> str:
    return f"put the cup number {number} beside the plate"


def jpegs(rng: np.random.Generator) -> list[bytes]:
    """Smooth images of 160 px, 5 to 10 kB each."""
    import cv2

    small = rng.integers(0, 255, (24, 20, 20, 3), np.uint8)
    large = [cv2.resize(image, (213, 160), interpolation=cv2.INTER_CUBIC) for image in small]
    return [cv2.imencode(".jpg", image)[1].tobytes() for image in large]


def write_folder(folder: Path, heldout_rows: int, captions: int) -> None:
    """A folder with so many held-out triplets, four times as many others, and their captions."""
    rng = np.random.default_rng(0)
    (folder / "triplets").mkdir(parents=True)
    numbers = sorted(range(heldout_rows // ROWS_A_CLIP), key=lambda n: name_hash(recording(n)))
    found = []
    for start in range(0, len(numbers), CLIPS_A_FILE):
        file = ClipFile(folder / "triplets" / f"part-{start:06d}.parquet")
        for place, number in enumerate(numbers[start : start + CLIPS_A_FILE], start):
            # Only what the gallery reads need be real.
            file.write(clip_of(number, jpegs(rng), rng if place * ROWS_A_CLIP < GALLERY else None))
        file.close()
        found.append(index_file(file.path))
    texts = [
        {"caption": caption(n), "caption_group": str(n), "split": "train"} for n in range(captions)
    ]
    schema = found[0].texts.schema
    parts = [replace(part, texts=schema.empty_table()) for part in found]
    trained = others(4 * len(numbers), rng)
    parts.append(FileIndex(trained, pa.Table.from_pylist(texts, schema), found[0].kinds))
    manifest = {"schema_version": SCHEMA_VERSION, "digest": folder.name, "counts": {}}
    manifest["index"] = write_index(folder / "index", parts)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def others(number: int, rng: np.random.Generator) -> pa.Table:
    """Index rows of training clips, whose files no start opens."""
    columns = {
        "file": [f"part-{n // CLIPS_A_FILE:06d}-train.parquet" for n in range(number)],
        "row_group": [n % CLIPS_A_FILE for n in range(number)],
        "rows": [ROWS_A_CLIP] * number,
        "bytes": rng.integers(500_000, 800_000, number),
        "split": ["train"] * number,
        "source": ["bench"] * number,
        "clip_id": [rng.bytes(16).hex() for _ in range(number)],
        "recording_id": [rng.bytes(16).hex() for _ in range(number)],
        "key": rng.integers(0, 2**63, number).astype(np.uint64),
    }
    return pa.table(columns, schema=CLIPS_SCHEMA)


def embed(captions: int, digest: str) -> None:
    """Put features of all captions where an earlier start would have left them."""
    from dynaflip.encoders.config import LanguageConfig
    from dynaflip.platform.paths import cache_folder
    from dynaflip.platform.training.data.caption_cache import features_key
    from dynaflip.platform.training.data.caption_features import write_table

    folder = cache_folder() / "captions" / features_key(LanguageConfig())
    texts = [caption(n) for n in range(captions)]
    write_table(folder / f"{digest}.safetensors", texts, np.zeros((captions, 384), np.float32))


def second_start(folder: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for _ in range(2):
        words = [sys.executable, "-c", START, str(folder)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_second_start_reads_no_more_of_a_larger_folder(tmp_path: Path, home: Path) -> None:
    print("\nsecond start of a training: read_index, captions' features, gallery")
    found = []
    for heldout_rows, captions in ((5_000, 5_000), (50_000, 200_000)):
        folder = tmp_path / f"{heldout_rows}"
        write_folder(folder, heldout_rows, captions)
        manifest = json.loads((folder / "manifest.json").read_text())
        embed(captions, manifest["index"]["captions_digest"])
        start = second_start(folder)
        found.append(start)
        print(
            f"  {heldout_rows:,} held-out rows, {5 * heldout_rows // 12:,} clips, "
            f"{captions:,} captions: {start['bytes'] / 1e6:.1f} MB read "
            f"(gallery {start['gallery_bytes'] / 1e6:.1f} MB, {start['gallery']} rows), "
            f"{start['seconds']:.2f} s"
        )
    small, large = found
    growth = large["bytes"] / small["bytes"]
    apart_s = abs(large["seconds"] - small["seconds"])
    show("bytes read, ten times the rows to one", growth, at_most=1.1)
    show("seconds apart", apart_s, at_most=10)
    verdict = "HOLDS" if growth <= 1.1 and apart_s <= 10 else "DOES NOT HOLD"
    print(f"  start independent of the size of the folder: {verdict}")
    assert growth <= 1.1  # counted, not timed
