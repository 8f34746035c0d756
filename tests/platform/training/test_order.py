"""The order of rows: from the index alone, equal rows a rank, nothing twice and nothing left out.

Ranks are simulated: what each would train on is computed here, without processes or files.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.index import ClipTable
from dynaflip.platform.training.data.order import (
    Rows,
    buffer_rows,
    epoch_rows,
    rank_batches,
    shuffle_order,
)
from dynaflip.platform.training.data.random_numbers import Purpose, bits, uniform
from dynaflip.platform.training.data.sampling import Position, Sampling, sampling_of

PLAIN = Sampling({}, seed=0)


def clip_table(clips: int, *, files: int = 3, sources: tuple[str, ...] = ("robot",)) -> ClipTable:
    """Clips of 1 to 9 rows of 100 kB, from the sources in turn."""
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 10, clips).astype(np.int32)
    number = np.arange(clips, dtype=np.int32)
    return ClipTable(
        files=tuple(f"/part-{i}.parquet" for i in range(files)),
        file=number % files,
        row_group=number // files,
        rows=rows,
        bytes=rows.astype(np.int64) * 100_000,
        source=number % len(sources),
        sources=sources,
        key=rng.integers(0, 2**63, clips).astype(np.uint64),
    )


def all_ranks(
    clips: ClipTable,
    position: Position,
    workers: int,
    *,
    size: int = 4,
    buffer_mb: float = 2,
    sampling: Sampling = PLAIN,
) -> list[Rows]:
    return [
        rank_batches(
            clips,
            sampling,
            position,
            rank=rank,
            workers=workers,
            batch_size=size,
            buffer_mb=buffer_mb,
        )
        for rank in range(workers)
    ]


def examples(ranks: list[Rows]) -> np.ndarray:
    return np.concatenate([rows.example.ravel() for rows in ranks])


@pytest.mark.parametrize(("clips", "workers"), [(200, 1), (200, 7), (5, 8), (1, 3)])
def test_ranks_have_equally_many_batches_of_different_rows(clips: int, workers: int) -> None:
    """Also where there are fewer clips, and fewer files, than ranks."""
    table = clip_table(clips)
    ranks = all_ranks(table, Position(), workers, size=1)
    every = int(table.rows.sum())
    assert {rows.clip.shape for rows in ranks} == {(every // workers, 1)}
    found = examples(ranks)
    assert len(set(found.tolist())) == len(found) == every // workers * workers
    places = {(c, r) for rows in ranks for c, r in zip(rows.clip.flat, rows.row.flat, strict=True)}
    assert len(places) == len(found)
    assert all(0 <= row < table.rows[clip] for clip, row in places)


def test_an_order_follows_from_seed_and_epoch_and_not_from_the_files() -> None:
    table = clip_table(100)
    first = epoch_rows(table, PLAIN, Position(0))
    assert np.array_equal(epoch_rows(table, PLAIN, Position(0)).example, first.example)
    # The same clips in another order, in other files.
    turned = np.random.default_rng(1).permutation(100)
    other = dataclasses.replace(
        table,
        **{name: getattr(table, name)[turned] for name in ("rows", "bytes", "source", "key")},
    )
    assert np.array_equal(epoch_rows(other, PLAIN, Position(0)).example, first.example)
    for rows in (
        epoch_rows(table, PLAIN, Position(1)),
        epoch_rows(table, Sampling({}, seed=1), Position(0)),
    ):
        assert sorted(rows.example) == sorted(first.example)
        assert np.mean(rows.example == first.example) < 0.1
        assert abs(np.corrcoef(rows.clip, first.clip)[0, 1]) < 0.2


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("buffer_mb", [0.01, 2, 1000])
def test_a_resumed_part_is_the_rest_of_it(steps: int, buffer_mb: float) -> None:
    table = clip_table(60)
    whole = all_ranks(table, Position(2), 3, buffer_mb=buffer_mb)
    rest = all_ranks(table, Position(2, steps), 3, buffer_mb=buffer_mb)
    for all_of_it, later in zip(whole, rest, strict=True):
        assert np.array_equal(all_of_it.example[steps:], later.example)
        assert np.array_equal(all_of_it.row[steps:], later.row)


@pytest.mark.parametrize("rates", [{}, {"robot": 0.5, "human": 2.25}])
def test_other_workers_go_on_with_the_rows_that_none_has_had(rates: dict[str, float]) -> None:
    table = clip_table(80, sources=("robot", "human"))
    sampling = Sampling(rates, seed=3)
    every = epoch_rows(table, sampling, Position(1)).example
    seen: np.ndarray = np.zeros(0, np.int64)
    # Four workers for 9 steps, then two for 5, then three to the end.
    for workers, steps in ((4, 9), (2, 5), (3, None)):
        ranks = all_ranks(table, Position(1, 0, np.sort(seen)), workers, sampling=sampling)
        had = np.concatenate([rows.example[:steps].ravel() for rows in ranks])
        assert len(had)
        seen = np.concatenate([seen, had])
    assert len(set(seen.tolist())) == len(seen), "a row was repeated"
    assert set(seen.tolist()) <= set(every.tolist())
    # What is missing did not fill a batch of every worker.
    assert len(every) - len(seen) < 3 * 4 + 3


def test_a_full_buffer_is_a_full_shuffle_and_a_small_one_parts_the_rows_of_a_clip() -> None:
    for buffer in (1, 7, 100, 1000):
        assert sorted(shuffle_order(100, buffer, 0)) == list(range(100))
    assert shuffle_order(100, 1, 0).tolist() == list(range(100))
    assert shuffle_order(0, 5, 0).tolist() == []
    order = shuffle_order(2000, 2000, 0)
    assert abs(np.corrcoef(order, range(2000))[0, 1]) < 0.1
    assert shuffle_order(100, 30, 0).tolist() != shuffle_order(100, 30, 1).tolist()

    def gap(buffer: int) -> float:
        """Turns between a row and the one that was beside it."""
        turns = np.argsort(shuffle_order(2000, buffer, 0))
        return float(np.median(np.abs(np.diff(turns))))

    assert gap(1) == 1
    assert 20 < gap(50) < 80
    assert gap(500) > 200


def test_the_buffer_is_set_in_megabytes() -> None:
    table = clip_table(50)
    assert buffer_rows(table, 2.0) == 20  # of 100 kB
    assert buffer_rows(table, 1e-6) == 1
    small, large = (all_ranks(table, Position(), 1, buffer_mb=mb)[0] for mb in (0.1, 1000))
    assert not np.array_equal(small.example, large.example)
    assert sorted(small.row.ravel()) != list(small.row.ravel())


def test_sources_come_as_often_as_weighed_and_repetitions_have_ids_of_their_own() -> None:
    table = clip_table(2000, sources=("robot", "robot_2", "human"))
    counts = {n: int(table.rows[table.source == i].sum()) for i, n in enumerate(table.sources)}
    sampling = Sampling({"robot": 1.5, "human": 0.25}, seed=0)
    rows = epoch_rows(table, sampling, Position())
    drawn = {n: int((table.source[rows.clip] == i).sum()) for i, n in enumerate(table.sources)}
    assert drawn["robot"] == pytest.approx(1.5 * counts["robot"], rel=0.05)
    assert drawn["human"] == pytest.approx(0.25 * counts["human"], rel=0.1)
    assert drawn["robot_2"] == 0
    assert len(set(rows.example.tolist())) == len(rows)
    # A row comes once or twice; which rows come twice is drawn anew in each epoch.
    of_robots = table.source[rows.clip] == 0
    places = np.stack([rows.clip, rows.row])[:, of_robots]
    assert set(np.unique(places, axis=1, return_counts=True)[1]) == {1, 2}
    once = {}
    for epoch in (0, 1):
        again = epoch_rows(table, sampling, Position(epoch)).example
        once[epoch] = set(again.tolist())
    assert once[0] == set(rows.example.tolist())
    assert once[0] != once[1]


def test_weights_become_rates_that_keep_the_length_of_an_epoch(triplet_index: object) -> None:
    index = dataclasses.replace(triplet_index, sources={"robot": 270, "human": 90})  # type: ignore[type-var]
    sampling = sampling_of(DataConfig(source_weights={"robot": 1, "human": 1}), index, seed=0)
    assert sampling.rates == pytest.approx({"robot": 180 / 270, "human": 180 / 90})
    alone = sampling_of(DataConfig(source_weights={"human": 3}), index, seed=0)
    assert alone.rates == pytest.approx({"human": 4.0})
    assert sampling_of(DataConfig(), index, seed=0).is_plain()
    with pytest.raises(ValueError, match="no source ego; theirs are robot, human"):
        sampling_of(DataConfig(source_weights={"ego": 1}), index, seed=0)


@pytest.fixture
def triplet_index(triplet_folder: object) -> object:
    from dynaflip.platform.training.data.index import read_index

    return read_index(str(triplet_folder))


def test_numbers_depend_on_every_key_and_on_nothing_else() -> None:
    keys = np.arange(10_000)
    numbers = uniform(Purpose.FAR_FRAME, 0, 1, keys)
    assert np.array_equal(numbers[5000:], uniform(Purpose.FAR_FRAME, 0, 1, keys[5000:]))
    others = (
        uniform(Purpose.CROP, 0, 1, keys),
        uniform(Purpose.FAR_FRAME, 1, 1, keys),
        uniform(Purpose.FAR_FRAME, 0, 2, keys),
        uniform(Purpose.FAR_FRAME, 1, 0, keys),
    )
    for other in others:
        assert abs(np.corrcoef(numbers, other)[0, 1]) < 0.05
    assert numbers.min() >= 0
    assert numbers.max() < 1
    shares = np.histogram(numbers, 10, (0, 1))[0] / len(keys)
    assert np.abs(shares - 0.1).max() < 0.02
    assert len(np.unique(bits(Purpose.EXAMPLE, keys[:100, None], keys[:100]))) == 10_000
    # Fixed for ever: checkpoints hold ids that are made of them.
    assert bits(Purpose.EXAMPLE, 1, 2).item() == 15549969042648332857
