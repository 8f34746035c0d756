"""Compaction: large files with a row group a clip, whatever was killed and whatever was added."""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from triplet_recordings import moving_square, settings, write_video

from dynaflip import files
from dynaflip.platform.training.data.index import read_index
from dynaflip.platform.triplets import place, publish
from dynaflip.platform.triplets.compaction import plan_parts
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.digest import digest_of, row_digests
from dynaflip.platform.triplets.folder_index import index_file, name_hash
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.work_folder import StoredClip

CLIP_A_FILE = 1e-3  # MB


def clips_by_file(folder: Path) -> dict[str, list[set[str]]]:
    """Clip ids of every row group of every Parquet file."""
    found = {}
    for path in sorted((folder / "triplets").iterdir()):
        with pq.ParquetFile(path) as file:
            tables = [file.read_row_group(n, ["clip_id"]) for n in range(file.num_row_groups)]
        found[path.name] = [set(table["clip_id"].to_pylist()) for table in tables]
    return found


def digest_of_files(folder: Path) -> str:
    """The digest of what the Parquet files really hold."""
    tables = [pq.read_table(path) for path in sorted((folder / "triplets").iterdir())]
    return digest_of(digest for table in tables for digest in row_digests(table))


def place_in_index(clip: dict[str, Any]) -> tuple[Any, ...]:
    names = ("clip_id", "key", "file", "row_group")
    return name_hash(clip["recording_id"]), *(clip[name] for name in names)


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "triplets").iterdir()}


def check(folder: Path, digest: str) -> None:
    """The folder is whole: rows, index, manifest, and nothing beside them."""
    assert digest_of_files(folder) == digest
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["digest"] == digest
    files = clips_by_file(folder)
    assert all(len(clip) == 1 for groups in files.values() for clip in groups)
    scanned = [index_file(folder / "triplets" / name).clips for name in files]
    rows = sorted(pa.concat_tables(scanned).to_pylist(), key=place_in_index)
    assert pq.read_table(folder / "index" / "clips.parquet").to_pylist() == rows
    assert {path.name for path in folder.iterdir()} <= {
        "triplets",
        "index",
        "done",
        "manifest.json",
        "rejected.parquet",
    }
    done = {path.stem for path in (folder / "done").iterdir()}
    assert done == {Path(name).stem for name in files} | {"rejected"}


@pytest.fixture
def small(video_folder: Callable[..., Path], in_process: None, in_order: None) -> Path:
    return video_folder(4)


def test_files_have_the_size_that_is_asked_and_the_same_triplets(
    small: Path, tmp_path: Path
) -> None:
    one = preprocess(settings(small, example_images=0), str(tmp_path / "one"))
    check(one.folder, one.digest)
    # Recordings are 120 px high, and 160 are asked for.
    assert one.counts["short_sides_px"] == {"videos": {"120": 4}}
    ((name, groups),) = clips_by_file(one.folder).items()  # all are for training
    assert len(groups) == 4
    size_mb = (one.folder / "triplets" / name).stat().st_size / 2**20
    config = settings(small, example_images=0, part_mb=0.6 * size_mb)
    two = preprocess(config, str(tmp_path / "two"))
    check(two.folder, one.digest)
    assert sorted(map(len, clips_by_file(two.folder).values())) == [2, 2]
    index = read_index(str(two.folder))
    assert len(index.train) + len(index.heldout) == 4
    assert sum(index.counts.values()) == two.counts["triplets"]
    assert index.captions == ["push the square 0", "push the square 1"]


def stored(n: int, **about: str) -> StoredClip:
    summary = {"clip_id": f"clip {n}", "clip_digest": f"digest {n}", "split": "train", **about}
    return StoredClip(summary, Path(f"shard-{n // 4}.parquet"), n % 4, 30 + n % 7)


def test_places_follow_from_the_clips_alone() -> None:
    clips = [stored(n) for n in range(200)]
    parts = plan_parts(clips, 1000)
    shuffled = random.Random(0).sample(clips, len(clips))
    assert plan_parts([*shuffled, StoredClip({"clip_id": "no"}, None)], 1000) == parts
    sizes = [sum(clip.bytes for clip in part.clips) for part in parts]
    assert all(900 < size <= 1000 for size in sizes[:-1])
    placed = Counter(clip.summary["clip_id"] for part in parts for clip in part.clips)
    assert placed == Counter(f"clip {n}" for n in range(200))
    # By hash: the shards of a part come from everywhere.
    assert all(len({clip.file for clip in part.clips}) > 15 for part in parts[:-1])
    # A clip that is listed twice has two places, which are never taken for one.
    twice = plan_parts([stored(0), StoredClip(stored(0).summary, Path("other"), 0, 9)], 1)
    assert len({part.name for part in twice}) == 2


def test_heldout_clips_lie_by_themselves_in_the_order_of_the_gallery() -> None:
    train = [stored(n) for n in range(50)]
    heldout = [stored(n, split="heldout", recording_id=f"r{n // 3}") for n in range(50, 110)]
    parts = plan_parts([*train, *heldout], 1000)
    splits = [{clip.summary["split"] for clip in part.clips} for part in parts]
    assert all(len(of_part) == 1 for of_part in splits)
    recordings = [
        clip.summary["recording_id"] for part in parts for clip in part.clips if clip in heldout
    ]
    assert recordings == sorted(recordings, key=name_hash)


def test_killed_anywhere_it_goes_on_to_the_same_folder(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of the compaction is written in one rename; the job dies before each of them."""
    whole = preprocess(settings(small, example_images=0), str(tmp_path / "whole"))
    config = settings(small, example_images=0, part_mb=CLIP_A_FILE)
    out, kills = tmp_path / "out", 0
    real = files.move

    def run(most: int) -> None:
        """Preprocess until so many files are written."""
        written = 0

        def move(source: Path, target: Path) -> None:
            nonlocal written
            if "shards" not in target.parts:
                if written == most:
                    raise KeyboardInterrupt
                written += 1
            real(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(files, "move", move)
            preprocess(config, str(out))

    while not out.exists():
        with contextlib.suppress(KeyboardInterrupt):
            run(most=kills)
        kills += 1
    assert kills > 5
    check(out, whole.digest)
    assert len(clips_by_file(out)) == 4
    assert not list(tmp_path.glob(".*"))


def test_what_is_added_goes_to_new_files_and_what_is_removed_leaves_the_others(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(small, example_images=0, part_mb=CLIP_A_FILE)
    out = tmp_path / "out"
    first = preprocess(config, str(out))
    before = stamps(out)
    read: Counter[str] = Counter()
    read_texts = place.read_texts

    def counted(paths: Iterable[Path]) -> Iterator[str]:
        some = list(paths)
        read.update(path.stem for path in some if path.parent.name == "done")
        return read_texts(some)

    monkeypatch.setattr(place, "read_texts", counted)
    write_video(small / "added.mp4", moving_square(step_px=1.5))
    lines = (small / "captions.csv").read_text()
    (small / "captions.csv").write_text(f"{lines}added.mp4,push again\n")
    second = preprocess(config, str(out))
    check(out, second.digest)
    after = stamps(out)
    assert before.items() <= after.items()
    assert len(after) == 5
    # Its summaries and the index of each file, of old ones as well, in one reading.
    assert read == dict.fromkeys([*(Path(name).stem for name in after), "rejected"], 1)
    (small / "clip0.mp4").unlink()
    kept = [line for line in lines.splitlines() if not line.startswith("clip0")]
    (small / "captions.csv").write_text("\n".join([*kept, "added.mp4,push again"]))
    third = preprocess(config, str(out))
    check(out, third.digest)
    assert stamps(out).items() < after.items()
    assert third.digest not in (first.digest, second.digest)
    assert third.digest == preprocess(config, str(tmp_path / "anew")).digest


def test_the_others_of_a_file_that_lost_a_clip_move_without_being_made_again(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(small, example_images=0)
    preprocess(config, str(tmp_path / "out"))  # all in one file
    (small / "clip0.mp4").unlink()
    lines = (small / "captions.csv").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("clip0")]
    (small / "captions.csv").write_text("\n".join(kept))
    whole = preprocess(config, str(tmp_path / "anew"))
    monkeypatch.setattr("dynaflip.platform.triplets.shard.read_clip", None)  # none is made
    outcome = preprocess(config, str(tmp_path / "out"))
    assert (outcome.version, outcome.counts["kept"]) == (2, 3)
    check(outcome.folder, whole.digest)


def test_files_of_another_size_are_not_mixed_in_after_an_interruption(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(small, example_images=0, part_mb=CLIP_A_FILE)
    stop_at("write_index", config, tmp_path / "out", monkeypatch)
    outcome = preprocess(settings(small, example_images=0), str(tmp_path / "out"))
    check(outcome.folder, outcome.digest)
    assert len(clips_by_file(outcome.folder)) == 1


def stop_at(
    step: str, config: PreprocessConfig, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt preprocessing at a step of its publication."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(publish, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            preprocess(config, str(out))


def test_a_row_group_that_holds_another_clip_is_never_published(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "out", settings(small, example_images=0)
    stop_at("parts_of", config, out, monkeypatch)
    (work,) = tmp_path.glob(".out.*")
    first, second = sorted((work / "shards").glob("*.parquet"))[:2]
    tables: list[pa.Table] = [pq.read_table(path) for path in (first, second)]
    pq.write_table(tables[1], first)
    with pytest.raises(RuntimeError, match=r"row group 0 of .* instead of"):
        preprocess(config, str(out))
    assert not out.exists()
