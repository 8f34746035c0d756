"""Listing: streamed, the same the second time, and nothing opened that did not change."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import Failures, upload
from triplet_recordings import moving_square, settings, write_lerobot, write_video

from dynaflip.platform.paths import cache_folder
from dynaflip.platform.triplets import digest, listing
from dynaflip.platform.triplets.clips import Clip
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.digest import SetDigest, digest_of
from dynaflip.platform.triplets.ledger import Ledger
from dynaflip.platform.triplets.listing import Listing
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.sources import listed_files
from dynaflip.platform.triplets.sources.formats import Mix, open_sources


class Endless:
    """A source that never ends; ``listed`` counts what was asked of it."""

    format = name = "endless"

    def __init__(self) -> None:
        self.listed = 0

    def list_clips(self) -> Iterator[Clip]:
        while True:
            self.listed += 1
            texts = dict.fromkeys(("source", "path", "camera", "caption_group", "task"), "x")
            yield Clip(
                clip_id=f"{self.listed:032x}",
                recording_id=f"{self.listed:032x}",
                captions=("push",),
                embodiment="robot",
                licence="mine",
                **texts,
            )

    def open(self, clip: Clip) -> None:
        raise NotImplementedError


def names(source: Endless | Mix, shards: int) -> list[str]:
    with closing(Ledger(Path("shards"))) as ledger:
        found = islice(Listing(source, ledger, 4).shards(), shards)  # type: ignore[arg-type]
        return [shard.name for shard in found]


def test_work_begins_before_listing_ends_and_shards_have_the_same_names_again() -> None:
    source = Endless()
    first = names(source, 40)
    assert source.listed == 40 * 4
    assert len(set(first)) == 40
    source.listed = 0
    assert names(source, 40) == first


def test_one_wave_is_listed_ahead_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_WAVE_CLIPS", 100)
    monkeypatch.setattr(listing, "_WAVE_SHARDS_A_CPU", 5)
    source = Endless()
    with closing(Ledger(Path("shards"))) as ledger:
        waves = Listing(source, ledger, 4).waves()  # type: ignore[arg-type]
        for wave in islice(waves, 3):
            assert sum(len(shard.clips) for shard in wave) == 100
        waves.close()
    assert source.listed <= 5 * 100 + 64


def mix_of(path: Path | str) -> Mix:
    return open_sources(PreprocessConfig(source=SourceConfig(path=str(path))))


def test_a_job_that_ends_early_lists_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_WAVE_SHARDS", 4)
    source = Endless()
    with closing(Ledger(Path("shards"))) as ledger:
        with closing(Listing(source, ledger, 1).waves()) as waves:  # type: ignore[arg-type]
            next(waves)
        assert not any(thread.name.startswith("listing") for thread in threading.enumerate())


def test_episodes_that_stand_out_of_order_are_listed_in_order(tmp_path: Path) -> None:
    episodes = [{"top": moving_square(12, step_px=1 + n / 4)} for n in range(4)]
    root = write_lerobot(tmp_path / "set", episodes, ["push", "pull", "lift", "turn"])
    before = [clip.digest() for clip in mix_of(root).list_clips()]
    table = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(table)
    half = [rows.slice(2), rows.slice(0, 2)]
    pq.write_table(pa.concat_tables(half), table, row_group_size=1)
    assert [clip.digest() for clip in mix_of(root).list_clips()] == before


@pytest.mark.parametrize("change", ["touch", "write", "rename", "add", "remove", "hidden"])
def test_a_change_below_the_source_changes_its_listing(
    video_folder: Callable[..., Path], change: str
) -> None:
    folder = video_folder(2)
    before = mix_of(folder).listing_digest()
    assert mix_of(folder).listing_digest() == before
    video = folder / "clip0.mp4"
    if change == "touch":
        os.utime(video, ns=(0, video.stat().st_mtime_ns + 1))
    elif change == "write":
        video.write_bytes(video.read_bytes() + b"\0")
    elif change == "rename":
        video.rename(folder / "other.mp4")
    elif change == "remove":
        video.unlink()
    else:
        (folder / (".notes" if change == "hidden" else "notes.txt")).write_text("mine")
    assert (mix_of(folder).listing_digest() == before) == (change == "hidden")


def test_an_unchanged_source_is_not_listed_a_second_time(
    video_folder: Callable[..., Path],
    tmp_path: Path,
    in_process: None,
    in_order: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, out = video_folder(2), str(tmp_path / "out")
    first = preprocess(settings(folder), out)

    def never(self: Mix) -> None:
        raise AssertionError("listed again")

    with monkeypatch.context() as patched:
        patched.setattr(Mix, "list_clips", never)
        again = preprocess(settings(folder, max_rejected_share=0.9), out)
        assert (again.reused, again.digest) == (True, first.digest)
        with pytest.raises(AssertionError, match="listed again"):
            preprocess(settings(folder, draws_per_clip=2), out)
        os.utime(folder / "clip0.mp4", (1, 1))
        with pytest.raises(AssertionError, match="listed again"):
            preprocess(settings(folder), out)
    # The same content, so the triplets stay, and the next run looks at no file again.
    assert preprocess(settings(folder), out).reused
    monkeypatch.setattr(Mix, "list_clips", never)
    assert preprocess(settings(folder), out).reused


@pytest.mark.parametrize("lost", ["unreadable", "hidden depth"])
def test_what_the_listing_cannot_tell_is_looked_at_every_time(
    video_folder: Callable[..., Path],
    tmp_path: Path,
    in_process: None,
    in_order: None,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
) -> None:
    folder = video_folder(3)
    if lost == "unreadable":
        (folder / "clip2.mp4").unlink()
        (folder / "clip2.mp4").symlink_to(tmp_path / "not-yet.mp4")
    else:
        (folder / "captions.csv").write_text("file,caption,depth\nclip0.mp4,push,.hidden/a.npy\n")
    preprocess(settings(folder, max_rejected_share=0.9), str(tmp_path / "out"))
    listed = []
    monkeypatch.setattr(
        Mix, "list_clips", lambda self, real=Mix.list_clips: (listed.append(1), real(self))[1]
    )
    preprocess(settings(folder, max_rejected_share=0.9), str(tmp_path / "out"))
    assert listed


def test_files_that_did_not_change_are_not_opened_again(
    video_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = video_folder(4)
    clips = [clip.digest() for clip in mix_of(folder).list_clips()]
    opened: list[str] = []
    real = listed_files.fingerprints
    monkeypatch.setattr(
        listed_files,
        "fingerprints",
        lambda root, names, stamps: (opened.extend(names), real(root, names, stamps))[1],
    )
    assert [clip.digest() for clip in mix_of(folder).list_clips()] == clips
    assert opened == []
    write_video(folder / "clip1.mp4", moving_square(step_px=1.7))
    changed = [clip.digest() for clip in mix_of(folder).list_clips()]
    assert [a == b for a, b in zip(clips, changed, strict=True)] == [True, False, True, True]
    assert opened == ["clip1.mp4"]
    # A damaged cache is made anew.
    (cache_folder() / "recordings.db").write_bytes(b"no database at all, but long enough" * 99)
    assert [clip.digest() for clip in mix_of(folder).list_clips()] == changed
    assert len(opened) == 5
    assert [clip.digest() for clip in mix_of(folder).list_clips()] == changed


def test_a_second_run_over_a_bucket_asks_for_its_listing_alone(
    video_folder: Callable[..., Path],
    tmp_path: Path,
    in_process: None,
    in_order: None,
    server: str,
    proxy: Failures,
) -> None:
    folder = video_folder(5)
    uri, out = upload(server, folder, "incremental"), str(tmp_path / "out")
    config = settings(Path("x"), example_images=0)

    def run() -> tuple[bool, list[str]]:
        """Whether triplets were reused, and which objects of the source were asked for."""
        begun = len(proxy.requests)
        source = SourceConfig(path=uri)
        made = preprocess(PreprocessConfig(**{**vars(config), "source": source}), out)
        paths = [path.split("?")[0] for path, _ in proxy.requests[begun:]]
        assert len(paths) < 100
        return made.reused, [path for path in paths if path.count("/") > 2]

    assert run()[0] is False
    assert run() == (True, [])
    write_video(folder / "late.mp4", moving_square(step_px=1.75))
    with (folder / "captions.csv").open("a") as file:
        file.write("late.mp4,pull the square\n")
    for name in ("late.mp4", "captions.csv"):
        os.utime(folder / name)
        (tmp_path / "new" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "new" / name).write_bytes((folder / name).read_bytes())
    upload(server, tmp_path / "new", "incremental")
    reused, asked = run()
    assert not reused
    assert {path.rsplit("/", 1)[1] for path in asked} == {"late.mp4", "captions.csv"}
    assert run() == (True, [])


def test_a_digest_of_more_than_memory_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{n * 0x9E3779B97F4A7C15 % 2**256:064x}" for n in range(1, 2000)]
    rows += [f"{n:02x}{row[2:]}" for n, row in enumerate(rows[:256])]
    whole = digest_of(rows)
    monkeypatch.setattr(digest, "_IN_MEMORY_BYTES", 5000)
    with SetDigest() as several:
        several.add(rows[:700])
        several.add(reversed(rows[700:]))
        assert several.hexdigest() == whole
