"""Rows to batches: what is in them, in which order, and that a run can go on from any step."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dynaflip.encoders.preprocessing import channels_first, to_pixels
from dynaflip.errors import UserError
from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.augment import colour_jitter, draw_patches
from dynaflip.platform.training.data.caption_features import write_table
from dynaflip.platform.training.data.collate import Batch, Collate, decode_image
from dynaflip.platform.training.data.gallery import gallery_batch
from dynaflip.platform.training.data.ids import id64
from dynaflip.platform.training.data.index import read_index, shard_paths
from dynaflip.platform.training.data.loader import (
    epoch_batches,
    plain_tables,
    read_tables,
    shuffled,
)
from dynaflip.platform.training.data.prefetch import EpochsAhead, Prefetched
from dynaflip.platform.training.data.sampling import Position, Sampling
from dynaflip.platform.triplets.schema import SCHEMA_VERSION
from tests.synthetic_triplets import write_triplets

PX = 32
EVERY_ROW_ONCE = Sampling({}, seed=0)


def collate_of(folder: Path, config: DataConfig, *, augment: bool = True) -> Collate:
    captions = read_index(str(folder)).captions
    features = np.arange(len(captions), dtype=np.float32)[:, None].repeat(8, 1)
    text = write_table(folder / "captions.safetensors", captions, features)
    return Collate(config, PX, text, seed=0, augment=augment)


def epoch_of(folder: Path, epoch: int = 0, skip: int = 0, **settings: int) -> list[Batch]:
    config = DataConfig(batch_size=4, **settings)
    tables = plain_tables(str(folder), "train")(epoch)
    collate = collate_of(folder, config)
    position = Position(epoch, skip)
    batches = epoch_batches(
        tables, collate, config, EVERY_ROW_ONCE, position, batch_size=config.batch_size, rank=0
    )
    return list(batches)


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
    # Every caption of a group has its own features, and the group is the task here.
    assert len(set(batch["group"].tolist())) <= 2


def test_an_epoch_is_every_training_triplet_once_but_the_last_partial_batch(
    triplet_folder: Path,
) -> None:
    index = read_index(str(triplet_folder))
    names = ids(epoch_of(triplet_folder))
    assert len(names) == len(set(names)) == index.counts["train"] // 4 * 4
    heldout = [
        table["triplet_id"].to_pylist() for table in read_tables(str(triplet_folder), "heldout")
    ]
    assert not set(names) & set(itertools.chain(*heldout))


def test_order_and_augmentation_follow_from_the_seed_and_differ_by_epoch(
    triplet_folder: Path,
) -> None:
    first, again, other = (epoch_of(triplet_folder, epoch=e) for e in (0, 0, 1))
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert ids(first) != ids(other)


@pytest.mark.parametrize("buffer_rows", [1, 5, 2048])
def test_skipping_batches_is_the_rest_of_the_epoch(triplet_folder: Path, buffer_rows: int) -> None:
    whole = epoch_of(triplet_folder, shuffle_buffer_rows=buffer_rows)
    rest = epoch_of(triplet_folder, skip=3, shuffle_buffer_rows=buffer_rows)
    assert len(rest) == len(whole) - 3
    assert all(equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_sources_are_mixed_where_the_buffer_is_smaller_than_a_source(tmp_path: Path) -> None:
    """Shards are numbered source by source; read in that order, batches would be of one alone."""
    folder = write_triplets(tmp_path / "triplets", clips=64, shards=32)
    paths = shard_paths(str(folder))
    assert len(paths) == 32
    assert shard_paths(str(folder)) == paths
    names = [Path(path).name for path in paths]
    assert names != sorted(names)
    numbers = [int(name[5:10]) for name in names]
    first, second = np.array(numbers[:16]) < 16, np.array(numbers[16:]) < 16
    assert 4 <= first.sum() <= 12
    assert 4 <= second.sum() <= 12


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
        apart = np.abs(trained / 255.0 - used.numpy()).max()
        assert apart < 1.5 / 255, f"{side_px} px: up to {255 * apart:.1f} of 255 levels"


def test_how_often_a_row_comes_says_nothing_of_how_it_is_augmented() -> None:
    sampling = Sampling({"rare": 0.3}, seed=0)
    rows = [{"triplet_id": f"{i}", "source": "rare", "example": id64(f"{i}")} for i in range(4000)]
    kept = list(sampling(rows, Position()))
    assert 1000 < len(kept) < 1400
    first = [np.random.default_rng([0, 0, row["example"]]).random() for row in kept]
    assert 0.45 < np.mean(first) < 0.55, "the first number that `Collate` draws is any number"


def test_ranks_share_the_rows(triplet_folder: Path) -> None:
    parts = [
        [
            name
            for table in plain_tables(str(triplet_folder), "train", rank=rank, world_size=2)(0)
            for name in table["triplet_id"].to_pylist()
        ]
        for rank in (0, 1)
    ]
    assert not set(parts[0]) & set(parts[1])
    assert len(parts[0]) + len(parts[1]) == read_index(str(triplet_folder)).counts["train"]


def test_the_far_frame_is_later_than_the_pair_and_flagged_where_there_is_none(
    triplet_folder: Path,
) -> None:
    for batch in epoch_of(triplet_folder, jitter_hue=0):
        for name, valid in zip(batch["triplet_id"], batch["far_valid"].tolist(), strict=True):
            assert valid == (not name.endswith("-3"))  # the last of four transitions ends the clip


def test_images_of_a_sample_share_their_jitter_unless_asked(triplet_folder: Path) -> None:
    def changes(per_image: bool) -> torch.Tensor:
        plain = DataConfig(
            batch_size=4,
            jitter_brightness=0.4,
            jitter_contrast=0,
            jitter_saturation=0,
            jitter_hue=0,
            jitter_per_image=per_image,
        )
        rows = [r for t in plain_tables(str(triplet_folder), "train")(0) for r in _rows(t)][:4]
        bright = collate_of(triplet_folder, plain)(rows, 0)
        same = collate_of(triplet_folder, plain, augment=False)(rows, 0)
        # A corner of the image is background in every frame.
        ratio = [
            bright[k][:, :, -2:, -2:].float().mean((1, 2, 3))
            / same[k][:, :, -2:, -2:].float().mean((1, 2, 3))
            for k in ("image_t", "image_next", "image_far")
        ]
        return torch.stack(ratio)

    together, apart = changes(False), changes(True)
    assert (together - together[0]).abs().max() < 0.05
    assert (apart - apart[0]).abs().max() > 0.05


def test_colour_jitter_of_nothing_changes_nothing_and_hue_keeps_brightness() -> None:
    images = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8)
    one, zero = torch.ones(2, 3), torch.zeros(2, 3)
    assert torch.equal(colour_jitter(images, one, one, one, zero), images)
    middle = (images.float() * 0.3 + 90).to(torch.uint8)
    turned = colour_jitter(middle, one, one, one, zero + 0.05)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    before, after = ((x.float() * weights).sum(2) for x in (middle, turned))
    assert not torch.equal(middle, turned)
    assert (before - after).abs().max() < 1.5
    grey = colour_jitter(images, one, one, zero, zero).float()
    assert (grey[:, :, 0] - grey[:, :, 2]).abs().max() <= 1


def test_patches_differ_between_the_images_of_a_sample_and_come_again(
    triplet_folder: Path,
) -> None:
    still = {f"jitter_{name}": 0 for name in ("brightness", "contrast", "saturation", "hue")}
    config = DataConfig(batch_size=4, patches=3, **still)
    rows = [r for t in plain_tables(str(triplet_folder), "train")(0) for r in _rows(t)][:4]
    covered = collate_of(triplet_folder, config)(rows, 0)
    bare = collate_of(triplet_folder, config, augment=False)(rows, 0)
    changed = torch.stack(
        [(covered[k] != bare[k]).any(1) for k in ("image_t", "image_next", "image_far")]
    )
    share = changed.float().mean((2, 3))  # (images, samples)
    assert 0 < share.mean() < 0.6
    assert (share == 0).any()  # from none to several
    assert (share > 0.01).any()
    assert not torch.equal(changed[0], changed[1])
    assert equal(covered, collate_of(triplet_folder, config)(rows, 0))
    assert not torch.equal(
        covered["image_t"], collate_of(triplet_folder, config)(rows, 1)["image_t"]
    )


def test_a_patch_stays_in_the_image_and_leaves_the_original_alone() -> None:
    image = np.full((3, 20, 30), 128, np.uint8)
    seen = [draw_patches(np.random.default_rng(i), image, 5) for i in range(50)]
    assert (image == 128).all()
    assert {(p.shape, p.dtype) for p in seen} == {((3, 20, 30), np.dtype(np.uint8))}
    changed = [float((p != 128).any(0).mean()) for p in seen]
    assert min(changed) == 0
    assert 0.2 < max(changed) <= 1


def test_crop_keeps_one_window_for_a_sample(triplet_folder: Path) -> None:
    config = DataConfig(batch_size=4, crop_min_share=0.5)
    rows = [r for t in plain_tables(str(triplet_folder), "train")(0) for r in _rows(t)][:4]
    batch = collate_of(triplet_folder, config)(rows, 0)
    assert batch["image_t"].shape == (4, 3, PX, PX)
    whole = collate_of(triplet_folder, config, augment=False)(rows, 0)
    assert not torch.equal(batch["image_t"], whole["image_t"])


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


def test_shuffle_loses_nothing_and_a_large_buffer_mixes_everything() -> None:
    for buffer_rows in (1, 7, 1000):
        rng = np.random.default_rng(0)
        assert sorted(shuffled(range(100), buffer_rows, rng)) == list(range(100))
    mixed = list(shuffled(range(1000), 1000, np.random.default_rng(1)))
    assert abs(np.corrcoef(mixed, range(1000))[0, 1]) < 0.1


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


def test_the_next_epoch_is_begun_when_the_last_row_of_one_is_read() -> None:
    begun: list[int] = []

    def tables() -> Iterator[int]:
        begun.append(len(begun))
        return iter(range(3))

    epochs = EpochsAhead(tables)
    first = epochs.read(last=False)
    assert [next(first) for _ in range(3)] == [0, 1, 2]
    assert len(begun) == 1
    assert list(first) == []
    assert len(begun) == 2
    second = epochs.read(last=False)
    assert next(second) == 0
    third = epochs.read(last=True)  # one that is left before its end begins no other
    assert list(second) == [1, 2]
    assert list(third) == [0, 1, 2]
    assert len(begun) == 3


def test_an_epoch_that_is_left_is_ended_before_the_next_is_begun() -> None:
    events: list[str] = []

    def tables() -> Iterator[int]:
        number = sum(event == "begun" for event in events)
        events.append("begun")
        try:
            for row in range(100):
                time.sleep(0.01)  # a reader that would go on for a second
                yield number * 100 + row
        finally:
            events.append("ended")

    epochs = EpochsAhead(tables)
    left = Prefetched(epochs.read(last=False), 2)  # as the thread that decodes does
    del left  # nothing of it was asked for
    assert list(itertools.islice(epochs.read(last=False), 3)) == [100, 101, 102]
    assert events[:3] == ["begun", "ended", "begun"]


def test_a_folder_that_holds_no_triplets_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a triplet folder"):
        read_index(str(tmp_path))
    (tmp_path / "manifest.json").write_text(
        json.dumps({"schema_version": SCHEMA_VERSION, "digest": "x"})
    )
    with pytest.raises(UserError, match="holds no triplets"):
        read_index(str(tmp_path))


def _rows(table):  # type: ignore[no-untyped-def]
    from dynaflip.platform.training.data.loader import rows_of

    return rows_of(table)


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
