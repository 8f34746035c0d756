"""Rows to batches: what is in them, in which order, and that a run can go on from any step."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from dynaflip.encoders.preprocessing import channels_first, to_pixels
from dynaflip.errors import UserError
from dynaflip.losses.base import FRAMES
from dynaflip.platform.s3 import Traffic
from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.caption_features import write_table
from dynaflip.platform.training.data.collate import Batch, Collate, Jpegs
from dynaflip.platform.training.data.decode import decode_image
from dynaflip.platform.training.data.gallery import gallery_batch, read_clips
from dynaflip.platform.training.data.ids import id64
from dynaflip.platform.training.data.index import read_index
from dynaflip.platform.training.data.loader import Feed
from dynaflip.platform.training.data.prefetch import Prefetched
from dynaflip.platform.training.data.sampling import Position, Sampling
from dynaflip.platform.triplets.folder_index import parquet_files
from dynaflip.platform.triplets.schema import SCHEMA_VERSION
from tests.synthetic_triplets import write_triplets

PX = 32
EVERY_ROW_ONCE = Sampling({}, seed=0)


def collate_of(
    folder: Path, config: DataConfig, *, augment: bool = True, frames: tuple[str, ...] = FRAMES
) -> Collate:
    captions = read_index(str(folder)).captions
    features = np.arange(len(captions), dtype=np.float32)[:, None].repeat(8, 1)
    text = write_table(folder / "captions.safetensors", captions, features)
    return Collate(config, PX, text, seed=0, augment=augment, frames=frames)


def feed_of(
    folder: Path,
    *,
    rank: int = 0,
    workers: int = 1,
    sampling: Sampling = EVERY_ROW_ONCE,
    frames: tuple[str, ...] = FRAMES,
    **settings: float,
) -> Feed:
    config = DataConfig(**{"batch_size": 4, **settings})  # type: ignore[arg-type]
    return Feed(
        read_index(str(folder)).train,
        collate_of(folder, config, frames=frames),
        config,
        sampling,
        batch_size=config.batch_size,
        rank=rank,
        workers=workers,
    )


def epoch_of(folder: Path, epoch: int = 0, skip: int = 0, **settings: float) -> list[Batch]:
    return list(feed_of(folder, **settings)(Position(epoch, skip)))  # type: ignore[arg-type]


def rows_of(folder: Path, split: str = "train") -> pa.Table:
    """All rows of a split, in the order of their ids."""
    index = read_index(str(folder))
    clips = index.train if split == "train" else index.heldout
    return pa.concat_tables(read_clips(clips, np.arange(len(clips)))).sort_by("triplet_id")


def ids(batches: list[Batch]) -> list[str]:
    return [name for batch in batches for name in batch["triplet_id"]]


def equal(a: Batch, b: Batch) -> bool:
    return all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


def test_a_batch_has_the_shapes_the_model_takes(triplet_folder: Path) -> None:
    batch = epoch_of(triplet_folder)[0]
    for name in ("image_t", "image_next", "image_far"):
        assert batch[name].shape == (4, 3, PX, PX)
        assert batch[name].dtype == torch.uint8
    assert batch["flow_displacement_m"].shape == (4, 7, 20, 20, 3)
    assert batch["flow_visible"].dtype == torch.bool
    assert batch["group"].dtype == torch.int64
    assert batch["window_start_s"].dtype == torch.float64
    assert (batch["window_end_s"] - batch["window_start_s"] == 0.5).all()
    assert set(batch["window_start_s"].tolist()) <= {0, 0.5, 1, 1.5}
    # Every caption of a group has its own features, and the group is the task here.
    assert len(set(batch["group"].tolist())) <= 2


def test_marks_of_interpolated_steps_reach_the_batch_and_older_folders_have_none(
    triplet_folder: Path,
) -> None:
    table = rows_of(triplet_folder)
    name, collate = "flow_measured", collate_of(triplet_folder, DataConfig(batch_size=4))
    marks = np.random.default_rng(0).integers(0, 2, (len(table), 7)).astype(np.uint8)
    at = table.column_names.index(name)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(marks)
    batch = collate(table.set_column(at, table.schema.field(name), column))
    assert batch[name].dtype == torch.bool
    assert batch[name].tolist() == marks.astype(bool).tolist()
    older = collate(table.drop_columns([name]))
    assert older[name].shape == (len(table), 7)
    assert older[name].all()
    assert equal({**older, name: batch[name]}, batch)


def test_an_epoch_is_every_training_triplet_once_but_the_last_partial_batch(
    triplet_folder: Path,
) -> None:
    index = read_index(str(triplet_folder))
    names = ids(epoch_of(triplet_folder))
    assert len(names) == len(set(names)) == index.counts["train"] // 4 * 4
    assert not set(names) & set(rows_of(triplet_folder, "heldout")["triplet_id"].to_pylist())


def test_order_and_augmentation_follow_from_the_seed_and_differ_by_epoch(
    triplet_folder: Path,
) -> None:
    first, again, other = (epoch_of(triplet_folder, epoch=e) for e in (0, 0, 1))
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert ids(first) != ids(other)


@pytest.mark.parametrize("buffer_mb", [0.01, 0.3, 500])
def test_skipping_batches_is_the_rest_of_the_epoch(triplet_folder: Path, buffer_mb: float) -> None:
    whole = epoch_of(triplet_folder, shuffle_buffer_mb=buffer_mb)
    rest = epoch_of(triplet_folder, skip=3, shuffle_buffer_mb=buffer_mb)
    assert len(rest) == len(whole) - 3
    assert all(equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


@pytest.mark.parametrize("skip", [0, 4, 8])
def test_a_resumed_epoch_reads_no_clip_whose_rows_have_all_come(
    triplet_folder: Path, skip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynaflip.platform.training.data.loader._CLIPS_AHEAD", 0)
    # 36 rows of 9 clips; they stay together in a buffer of one row.
    feed = feed_of(triplet_folder, shuffle_buffer_mb=1e-6)
    read: list[int] = []
    reading = feed.reader.read

    def noted(clip: int, traffic: Traffic | None) -> pa.Table:
        read.append(clip)
        return reading(clip, traffic)

    feed.reader.read = noted  # type: ignore[method-assign]
    next(feed(Position(0, skip)))
    clips = 9 - skip  # clips have four rows, as batches do
    # Those of the batch and of the ones that are decoded ahead of it; 8 left: those of epoch 1 too.
    assert 1 <= len(read) <= 5
    if clips >= 5:
        assert len(set(read)) == len(read)


def test_reading_goes_on_across_the_end_of_an_epoch(triplet_folder: Path) -> None:
    feed = feed_of(triplet_folder)
    first = list(feed(Position(0)))
    stream = feed._stream
    second = list(feed(Position(1)))
    assert feed._stream is stream
    assert all(equal(a, b) for a, b in zip(first, epoch_of(triplet_folder, 0), strict=True))
    assert all(equal(a, b) for a, b in zip(second, epoch_of(triplet_folder, 1), strict=True))
    # An epoch that is left early is not gone on with.
    some = list(itertools.islice(feed(Position(2)), 3))
    again = list(feed(Position(2, 1)))
    assert feed._stream is not stream
    assert all(equal(a, b) for a, b in zip(some[1:], again, strict=False))
    feed.close()


@pytest.mark.parametrize("rates", [{}, {"synthetic": 1.7}])
def test_ranks_share_the_rows(triplet_folder: Path, rates: dict[str, float]) -> None:
    sampling = Sampling(rates, seed=0)
    parts = [
        list(
            feed_of(triplet_folder, rank=rank, workers=5, sampling=sampling, batch_size=2)(
                Position()
            )
        )
        for rank in range(5)
    ]
    assert len({len(part) for part in parts}) == 1
    examples = [int(e) for part in parts for batch in part for e in batch["example"]]
    assert len(set(examples)) == len(examples)
    names = set(ids([batch for part in parts for batch in part]))
    if not rates:
        assert len(names) == len(examples)
    assert len(names) > 0.6 * read_index(str(triplet_folder)).counts["train"]


def test_batches_hold_the_values_of_their_rows(triplet_folder: Path) -> None:
    rows = {row["triplet_id"]: row for row in rows_of(triplet_folder).to_pylist()}
    captions = read_index(str(triplet_folder)).captions
    for batch in epoch_of(triplet_folder):
        for i, name in enumerate(batch["triplet_id"]):
            row = rows[name]
            assert int(batch["triplet"][i]) == id64(name)
            assert int(batch["clip"][i]) == id64(row["clip_id"])
            assert int(batch["group"][i]) == id64(row["caption_group"])
            assert int(batch["source"][i]) == id64(row["source"])
            assert batch["text_features"][i].tolist() == [captions.index(row["caption"])] * 8
            assert float(batch["median_depth_m"][i]) == row["median_depth_m"]
            flow = np.array(row["flow_displacement_m"], np.float32).reshape(7, 20, 20, 3)
            assert np.array_equal(batch["flow_displacement_m"][i].numpy(), flow)
            assert batch["flow_visible"][i].all()
            for frame, column in (("t", "frame_t"), ("next", "frame_next")):
                image = decode_image(row[column], PX).transpose(2, 0, 1)
                assert np.array_equal(batch[f"image_{frame}"][i].numpy(), image)
            if batch["far_valid"][i]:
                later = zip(row["frames_r3m"], row["frames_r3m_s"], strict=True)
                images = [
                    decode_image(jpeg, PX).transpose(2, 0, 1)
                    for jpeg, time_s in later
                    if time_s > row["t_s"] + row["window_s"]
                ]
                far = batch["image_far"][i].numpy()
                assert any(np.array_equal(far, image) for image in images)


def test_a_frame_that_no_term_reads_is_not_decoded(triplet_folder: Path) -> None:
    all_of_them = epoch_of(triplet_folder)
    fewer = list(feed_of(triplet_folder, frames=("t",))(Position()))
    for batch, full in zip(fewer, all_of_them, strict=True):
        assert "image_far" not in batch
        assert equal(batch, {name: full[name] for name in batch})


def test_the_far_frame_is_drawn_anew_in_each_epoch(triplet_folder: Path) -> None:
    far = [
        {
            name: batch["image_far"][i]
            for batch in epoch_of(triplet_folder, epoch)
            for i, name in enumerate(batch["triplet_id"])
        }
        for epoch in (0, 1, 2)
    ]
    changed = [not torch.equal(far[0][name], far[1][name]) for name in far[0]]
    assert 0 < sum(changed) < len(changed)
    assert any(not torch.equal(far[1][name], far[2][name]) for name in far[1])


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_do_not_depend_on_the_number_of_threads(triplet_folder: Path, threads: int) -> None:
    feed = feed_of(triplet_folder, decode_threads=threads)
    assert feed.threads == threads
    for batch, expected in zip(feed(Position()), epoch_of(triplet_folder), strict=True):
        assert equal(batch, expected)


def test_a_folder_that_is_changed_during_the_run_is_one_clear_line(tmp_path: Path) -> None:
    folder = write_triplets(tmp_path / "set", shards=1)
    feed = feed_of(folder)
    (path,) = parquet_files(folder)
    Path(path).write_bytes(b"something else")
    with pytest.raises(UserError, match=r"cannot read row group \d+ of .*part-00000"):
        list(feed(Position()))


def test_an_image_that_is_damaged_ends_the_run_and_not_only_a_thread(triplet_folder: Path) -> None:
    feed = feed_of(triplet_folder, decode_threads=2)
    keep = feed.collate.keep

    def spoilt(*arguments, **named):  # type: ignore[no-untyped-def]
        rows = keep(*arguments, **named)
        frames = {**rows.frames, "next": Jpegs(np.zeros(8, np.uint8), np.zeros(99, np.int32) + 8)}
        return dataclasses.replace(rows, frames=frames)

    feed.collate.keep = spoilt  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="a triplet's image cannot be decoded"):
        list(feed(Position()))


def test_training_sees_images_as_the_encoder_does_at_use() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (23, 31, 3), dtype=np.uint8)
    image = cv2.resize(small, (160, 120), interpolation=cv2.INTER_CUBIC)
    done, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert done
    stored = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[:, :, ::-1].copy()
    for side_px in (64, 112, 200):
        trained = decode_image(jpeg.tobytes(), side_px)
        used = to_pixels(channels_first(stored[None]), side_px, (0, 0, 0), (1, 1, 1))[0]
        apart = np.abs(trained.transpose(2, 0, 1) / 255.0 - used.numpy()).max()
        assert apart < 1.5 / 255, f"{side_px} px: up to {255 * apart:.1f} of 255 levels"


def test_the_far_frame_is_later_than_the_pair_and_flagged_where_there_is_none(
    triplet_folder: Path,
) -> None:
    for batch in epoch_of(triplet_folder, jitter_hue=0):
        for name, valid in zip(batch["triplet_id"], batch["far_valid"].tolist(), strict=True):
            assert valid == (not name.endswith("-3"))  # the last of four transitions ends the clip


def test_the_gallery_is_fixed_and_holds_whole_clips(triplet_folder: Path) -> None:
    index = read_index(str(triplet_folder))
    collate = collate_of(triplet_folder, DataConfig(), augment=False)
    gallery, again = (gallery_batch(index, collate, 6) for _ in range(2))
    assert gallery is not None
    assert again is not None
    assert equal(gallery, again)
    clips = [name.rpartition("-")[0] for name in gallery["triplet_id"]]
    assert all(clips.count(clip) == 4 for clip in clips)
    assert len(clips) >= 6
    everything = gallery_batch(index, collate, 10_000)
    assert everything is not None
    assert len(everything["triplet_id"]) == index.counts["heldout"]


def test_prefetching_hands_errors_on_and_stops_with_its_consumer() -> None:
    def failing() -> itertools.chain:
        return itertools.chain([1, 2], (1 // 0 for _ in range(1)))

    with pytest.raises(ZeroDivisionError):
        list(Prefetched(failing(), 2))
    drawn: list[int] = []

    def endless():  # type: ignore[no-untyped-def]
        for i in itertools.count():
            drawn.append(i)
            yield i

    stream = Prefetched(endless(), 2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    stream.close()
    seen = len(drawn)
    assert seen <= 7


def test_a_folder_that_holds_no_triplets_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a triplet folder"):
        read_index(str(tmp_path))
    (tmp_path / "manifest.json").write_text(
        json.dumps({"schema_version": SCHEMA_VERSION, "digest": "x"})
    )
    with pytest.raises(UserError, match="holds no triplets"):
        read_index(str(tmp_path))


def test_a_process_that_ends_while_it_reads_ahead_ends_well() -> None:
    code = (
        "import torch\n"
        "from dynaflip.platform.training.data.prefetch import Prefetched\n"
        "def batches():\n"
        "    weights = torch.rand(300, 300, requires_grad=True)\n"
        "    while True:\n"
        "        (weights @ weights).sum().backward()\n"
        "        yield 1\n"
        "next(Prefetched(batches(), 100))\n"
        "left = Prefetched(batches(), 100_000)\n"
        "next(left)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
