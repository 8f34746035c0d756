"""Can the CPUs keep up with a GPU? The whole path from Parquet to a batch against bare decoding.

Augmentation is the device's and is measured apart. Rates are of CPU time, all threads together, so
that a busy machine changes them little. Run with `make bench`, or alone:
``python -m pytest tests/benchmarks/test_feeding.py -m bench -s``.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import synthetic_triplets
import torch
from expectation import show

from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.augment import augment, draw_augmentation
from dynaflip.platform.training.data.caption_features import write_table
from dynaflip.platform.training.data.collate import Collate
from dynaflip.platform.training.data.decode import decode_into
from dynaflip.platform.training.data.index import TripletIndex, read_index
from dynaflip.platform.training.data.loader import Feed
from dynaflip.platform.training.data.sampling import Position, Sampling
from dynaflip.platform.triplets.work_folder import ClipFile

pytestmark = pytest.mark.bench
PX, BATCH, CLIPS, PER_CLIP = 224, 32, 60, 8
TURNS = 5  # of what is compared, one after the other
GPU_IMAGES_PER_S = (500, 1000, 2000, 4000)


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Triplets of 224 px, images as detailed as photographs (11 kB), as preprocessing writes."""
    folder = tmp_path_factory.mktemp("feeding") / "set"
    (folder / "triplets").mkdir(parents=True)
    rng = np.random.default_rng(0)
    file = ClipFile(folder / "triplets" / "part-00000.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_triplets, "_jpeg", lambda px, *place: _photograph(rng, px))
        for number in range(CLIPS):
            rows = synthetic_triplets.clip_rows(rng, number, PER_CLIP, PX)
            for row in rows:  # numbers that do not compress to nothing
                shape = row["flow_displacement_m"].shape
                row["flow_displacement_m"] = rng.normal(0, 0.02, shape).astype(np.float32)
            file.write(
                synthetic_triplets.rows_table([{**row, "source": "synthetic"} for row in rows])
            )
    file.close()
    manifest = {"schema_version": synthetic_triplets.SCHEMA_VERSION, "digest": "bench"}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "counts": {}}))
    return str(folder)


def _photograph(rng: np.random.Generator, px: int) -> bytes:
    coarse = rng.integers(0, 256, (px // 16, px // 16, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (px, px), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    image = (image + rng.integers(-6, 7, image.shape)).clip(0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def feed_of(index: TripletIndex, threads: int = 1) -> Feed:
    config = DataConfig(batch_size=BATCH, decode_threads=threads)
    features = np.random.default_rng(0).normal(size=(len(index.captions), 768)).astype(np.float32)
    text = write_table(Path(index.folder) / "captions.safetensors", index.captions, features)
    collate = Collate(config, PX, text, seed=0, augment=True)
    return Feed(index.train, collate, config, Sampling({}, 0), batch_size=BATCH)


def jpegs_of(index: TripletIndex) -> list[np.ndarray]:
    """The encoded images of all rows, in memory."""
    reader = feed_of(index).reader
    tables = [reader.read(clip) for clip in range(len(index.train))]
    columns = [
        table[name].combine_chunks() for table in tables for name in ("frame_t", "frame_next")
    ]
    return [np.frombuffer(value.as_buffer(), np.uint8) for column in columns for value in column]


def cpu_s(work: Callable[[], object]) -> float:
    """CPU time of all threads."""
    began = time.process_time()
    work()
    return time.process_time() - began


def test_the_whole_path_against_bare_decoding(triplets: str) -> None:
    cv2.setNumThreads(1)
    index = read_index(triplets)
    jpegs = jpegs_of(index)
    epochs = itertools.count()

    def whole() -> float:
        """Images per core and second in the middle of an epoch, reading included."""
        feed = feed_of(index)
        batches = feed(Position(next(epochs)))
        number = sum(1 for _ in zip(batches, range(2), strict=False))
        began = time.process_time()
        number = sum(1 for _ in batches)
        taken = time.process_time() - began
        feed.close()
        time.sleep(0.3)  # its threads end
        return 3 * BATCH * number / taken

    def bare() -> float:
        return len(jpegs) / cpu_s(lambda: [cv2.imdecode(jpeg, cv2.IMREAD_COLOR) for jpeg in jpegs])

    def fast() -> float:
        out = np.empty((PX, PX, 3), np.uint8)
        return len(jpegs) / cpu_s(lambda: [decode_into(jpeg, out) for jpeg in jpegs])

    whole()
    rates = [(whole(), bare(), fast()) for _ in range(TURNS)]
    ours, opencv, decoder = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(one / other for one, other, _ in rates)
    size = sum(map(len, jpegs)) / len(jpegs) / 1e3
    print(
        f"\n{PX} px, {size:.1f} kB an image, of one core: whole path {ours:.0f} images/s, bare "
        f"cv2.imdecode {opencv:.0f}, our decoder alone {decoder:.0f}"
    )
    show("images per core-second, whole path / bare cv2.imdecode", ratio, at_least=0.5)
    print("cores that feed one GPU, by the images that it takes (three frames an example):")
    for rate in GPU_IMAGES_PER_S:
        print(f"  {rate:5} images/s: {rate / ours:.1f} cores")


def test_the_decode_pool_with_two_threads(triplets: str) -> None:
    """Of the wall clock: two cores must be free."""
    jpegs = jpegs_of(read_index(triplets))[:600]
    outs = np.empty((len(jpegs), PX, PX, 3), np.uint8)

    def fill(some: range) -> None:
        for number in some:
            decode_into(jpegs[number], outs[number])

    def taken_s(threads: int) -> float:
        parts = [range(i, min(i + 12, len(jpegs))) for i in range(0, len(jpegs), 12)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, parts))
            began = time.perf_counter()
            list(pool.map(fill, parts))
            return time.perf_counter() - began

    ratios = [taken_s(1) / taken_s(2) for _ in range(2 * TURNS)]
    print()
    show("decode pool, images/s, 2 threads / 1", statistics.median(ratios), at_least=1.6)


@pytest.mark.parametrize("settings", [{}, {"crop_min_share": 0.5}, {"patches": 2}])
def test_augmentation_on_the_cpu(settings: dict, triplets: str) -> None:
    """Against decoding the same batch: on a CPU both are paid by the same cores."""
    torch.set_num_threads(1)
    jpegs = jpegs_of(read_index(triplets))[: 3 * BATCH]
    images = np.empty((3 * BATCH, PX, PX, 3), np.uint8)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    drawn = draw_augmentation(DataConfig(**settings), np.arange(3 * BATCH), seed=0, epoch=0)
    own = {
        name.removeprefix("augment_"): value if name == "augment_crop" else value[:, 0]
        for name, value in drawn.items()
    }

    def decode() -> None:
        for number, jpeg in enumerate(jpegs):
            decode_into(jpeg, images[number])

    def lay() -> None:
        augment(tensor, **own)

    decode()
    lay()
    times = [(cpu_s(lay), cpu_s(decode)) for _ in range(TURNS)]
    ratio = statistics.median(one / other for one, other in times)
    print(f"\n{settings or 'colour jitter'}: {1e3 * times[0][0]:.0f} ms for {3 * BATCH} images")
    show("CPU time, augmentation / decoding", ratio, at_most=18 if settings else 7)
