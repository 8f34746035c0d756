"""The decode pool feeding the real loop: share of the time waited for data, cores needed.

JPEGs are made in memory, so that neither a data set nor pyarrow is needed: what Parquet costs is
not in here. Everything after it is the loop's own: decoding on a pool of threads into pinned
memory, the copy, augmentation on the device, the step around ViT-B/14, and its meter.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import machine
import numpy as np
import torch
from full_model import GRID, IMAGES, STEPS, TEXT_DIM, config_of, dinov2_folder, image_px
from part import Part

from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.context import Context, Metrics
from dynaflip.platform.training.data.collate import Batch, Collate, Jpegs, PendingBatch, Rows
from dynaflip.platform.training.data.decode import decoder
from dynaflip.platform.training.data.prefetch import Prefetched
from dynaflip.platform.training.data.sampling import Position
from dynaflip.platform.training.length import Plan
from dynaflip.platform.training.loop import Pretraining

POOL_ROWS = 256  # rows that batches are drawn from, with three images each
TASKS_PER_THREAD = 2


def run(part: Part) -> None:
    """Rows of the pool alone, by threads, and of the loop that it feeds."""
    px = image_px(part)
    size, seconds = (4, 1.0) if part.dry else (128, 60.0)
    rows = _rows(16 if part.dry else POOL_ROWS, px)
    cpus = max(1, int(machine.cpus()))
    with dinov2_folder(part) as folder:
        config = config_of(
            folder, px, size, report_every_steps=5, eval_every_steps=0, diagnostics_every_steps=0
        )
        collate = Collate(
            config.data, px, _captions(), seed=0, augment=True  # type: ignore[arg-type]
        )  # fmt: skip
        rates = _pool_alone(part, collate, rows, size, cpus)
        _fed_loop(part, config, collate, rows, cpus, rates[1], seconds)


def _pool_alone(part: Part, collate: Collate, rows: Rows, size: int, cpus: int) -> dict[int, float]:
    """Images/s of 1, 2, 4 … threads."""
    rates: dict[int, float] = {}
    threads = 1
    while threads <= min(cpus, 2 if part.dry else 64):
        with ThreadPoolExecutor(threads) as pool:

            def one(pool: ThreadPoolExecutor = pool, threads: int = threads) -> Batch:
                pairs = [(rows, number % len(rows.row)) for number in range(size)]
                tasks = TASKS_PER_THREAD * threads
                return collate.start(pairs, 0, pool, tasks).result()

            rates[threads] = IMAGES * size / part.seconds(one, 2 if part.dry else 5)
        part.add(
            f"decode pool alone, {threads} thread{'s' * (threads > 1)}",
            value=rates[threads],
            unit="images/s",
            reference=rates[1],
            reference_name="1 thread",
            note=f"decoder {decoder().__qualname__.partition('.')[0].strip('_')}",
        )
        threads *= 2
    return rates


def _fed_loop(
    part: Part,
    config: PretrainConfig,
    collate: Collate,
    rows: Rows,
    cpus: int,
    per_core: float,
    seconds: float,
) -> None:
    """Train for some seconds, after a few steps that say how many steps that is."""
    threads = max(1, cpus - 1)  # one is the loop's own
    batches = _feed(collate, rows, config, threads, part.device)
    warm = _train(part, config, batches, 10 if part.device == "cuda" else 2)
    rate = warm[-1]["speed/steps_per_s"]
    steps = max(2, int(rate * min(seconds, max(1.0, part.left_s() - 8))))
    part.say(f"{steps} steps of {config.data.batch_size} samples with {threads} decode threads")
    part.forget_peak()
    began = time.perf_counter()
    reports = _train(part, config, batches, steps)
    took = time.perf_counter() - began
    images = float(np.mean([r["speed/images_per_s"] for r in reports]))
    waited = float(np.mean([r["speed/data_wait_share"] for r in reports]))
    part.add(
        f"the loop for {took:.0f} s, batch {config.data.batch_size}, {threads} decode threads",
        value=images,
        unit="images/s",
        reference=per_core,
        reference_name="1 decode thread",
        mfu=reports[-1].get("speed/mfu"),
        peak_gb=part.peak_gb(),
        note=f"waited for data {100 * waited:.1f} %; cores to decode: {images / per_core:.1f}",
    )


def _train(
    part: Part, config: PretrainConfig, batches: Callable[[Position], Iterator[Batch]], steps: int
) -> list[Metrics]:
    """The real loop over so many steps; its reports but for the first, which warms up."""
    reports: list[Metrics] = []
    context = Context(device=part.device, report=reports.append, log=part.say)
    length = Plan(steps * config.data.batch_size, steps, steps)
    Pretraining(config, context, length).run(batches)
    return reports[1:] or reports


def _feed(
    collate: Collate, rows: Rows, config: PretrainConfig, threads: int, device: str
) -> Callable[[Position], Iterator[Batch]]:
    """Batches without end, decoded ahead as the feed of a run does it."""
    size, count = config.data.batch_size, len(rows.row)

    def pending(epoch: int) -> Iterator[PendingBatch]:
        rng = np.random.default_rng(epoch)
        with ThreadPoolExecutor(threads, "decode") as pool:
            while True:
                pairs = [(rows, number) for number in rng.integers(0, count, size).tolist()]
                tasks = TASKS_PER_THREAD * threads
                yield collate.start(pairs, epoch, pool, tasks, pinned=device == "cuda")

    def batches(position: Position) -> Iterator[Batch]:
        for batch in Prefetched(pending(position.epoch), config.data.prefetch_batches):
            yield batch.result()

    return batches


def _rows(count: int, px: int) -> Rows:
    """Rows of one clip in memory, as the feed keeps them in its shuffle buffer."""
    rng = np.random.default_rng(0)
    frames = {name: _jpegs(rng, count, px) for name in ("t", "next", "far")}
    flow = (count, STEPS, GRID, GRID)
    ids = np.arange(count, dtype=np.int64)
    return Rows(
        row=np.arange(count),
        frames=frames,
        tensors={
            "flow_origin_m": rng.standard_normal((count, GRID, GRID, 3), np.float32),
            "flow_displacement_m": 0.05 * rng.standard_normal((*flow, 3), np.float32),
            "flow_visible": (rng.random(flow) < 0.8).astype(np.uint8),
        },
        median_depth_m=np.ones(count, np.float32),
        window_s=np.stack([ids, ids + 0.5], 1).astype(np.float64),
        ids=np.repeat(ids[:, None], 6, 1),
        text=np.zeros(count, np.int64),
        triplet_id=[str(number) for number in ids],
        example=ids,
        far_valid=np.ones(count, bool),
    )


def _captions() -> Any:
    """Features of one caption."""
    return SimpleNamespace(features=np.zeros((1, TEXT_DIM), np.float32))


def _jpegs(rng: np.random.Generator, count: int, px: int) -> Jpegs:
    """Encoded images of smooth random colours with some grain, about 10 kB each at 224 px."""
    encode = _encoder()
    encoded = []
    for _ in range(count):
        cells = torch.from_numpy(rng.uniform(0, 255, (1, 3, 12, 12)))
        smooth = torch.nn.functional.interpolate(cells, size=(px, px), mode="bicubic")[0]
        grain = rng.normal(0, 4, (px, px, 3))
        image = (smooth.permute(1, 2, 0).numpy() + grain).clip(0, 255).astype(np.uint8)
        encoded.append(np.frombuffer(encode(np.ascontiguousarray(image)), np.uint8))
    ends = np.cumsum([0, *(len(jpeg) for jpeg in encoded)]).astype(np.int32)
    return Jpegs(np.concatenate(encoded), ends)


def _encoder() -> Callable[[np.ndarray], bytes]:
    """RGB (H, W, 3) uint8 to JPEG, by whatever library is there."""
    try:
        import simplejpeg

        return lambda image: simplejpeg.encode_jpeg(image, quality=90)
    except ImportError:
        pass
    try:
        import cv2

        return lambda image: cv2.imencode(".jpg", image[:, :, ::-1])[1].tobytes()
    except ImportError:
        pass
    try:
        from PIL import Image

        return lambda image: _by_pillow(Image.fromarray(image))
    except ImportError:
        pass
    from torchvision.io import encode_jpeg

    return lambda image: encode_jpeg(torch.from_numpy(image).permute(2, 0, 1), 90).numpy().tobytes()


def _by_pillow(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
