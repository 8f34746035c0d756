"""Triplets in a bucket of a real S3 server: those of a folder, and whole at every moment."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from s3_server import BUCKET, Failures, client, upload
from triplet_recordings import settings

from dynaflip.errors import StoreError, UserError
from dynaflip.platform.s3 import S3Path, Traffic
from dynaflip.platform.s3_errors import AccessRefused
from dynaflip.platform.training.data.index import ClipTable, read_index
from dynaflip.platform.training.data.row_groups import RowGroupReader
from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.attempt_notes import Notes
from dynaflip.platform.triplets.batches import BatchSize, forget, note_of
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.destination import destination_of
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.report.inspection import inspect_folder
from dynaflip.platform.triplets.report.summary import summary_lines
from dynaflip.platform.triplets.reuse import read_finished
from dynaflip.platform.triplets.schema import TRAINING_COLUMNS, read_manifest
from dynaflip.platform.triplets.work_folder import ClipFile

Make = Callable[..., PreprocessConfig]


@pytest.fixture
def make(
    video_folder: Callable[..., Path], in_process: None, in_order: None, proxy: Failures
) -> Make:
    """Settings for three clips, a clip a file."""
    folder = video_folder(3)

    def settings_of(**values) -> PreprocessConfig:
        return settings(folder, **{"example_images": 0, "part_mb": 1e-3, **values})

    return settings_of


def prefix(name: str) -> str:
    return f"s3://{BUCKET}/{name}"


def objects(uri: str) -> set[str]:
    return set(S3Path.parse(uri).walk())


def rows(clips: ClipTable, traffic: Traffic | None = None) -> pa.Table:
    reader = RowGroupReader(clips, TRAINING_COLUMNS)
    found = [reader.read(clip, traffic) for clip in range(len(clips))]
    return pa.concat_tables(found).sort_by("triplet_id")


def check(uri: str, digest: str) -> None:
    """The prefix holds one whole set, and nothing beside it."""
    manifest = read_manifest(uri)
    assert manifest["digest"] == digest
    index = read_index(uri)
    assert index.counts["train"] + index.counts["heldout"] == manifest["counts"]["triplets"]
    rows(index.train)
    names = objects(uri)
    assert {name.split("/")[0] for name in names} == {"manifest.json", "sets", "triplets"}
    sets = {"/".join(name.split("/")[:2]) for name in names if name.startswith("sets/")}
    assert sets == {manifest["files"]}
    inside = {name.split("/")[2] for name in names if name.startswith("sets/")}
    assert inside == {"done", "index", "rejected.parquet"}
    parts = {f"triplets/{path.rsplit('/', 1)[1]}" for path in index.train.files}
    parts |= {f"triplets/{path.rsplit('/', 1)[1]}" for path in index.heldout.files}
    assert {name for name in names if name.startswith("triplets/")} == parts


def test_a_bucket_holds_what_a_folder_holds(make: Make, tmp_path: Path, proxy: Failures) -> None:
    local = preprocess(make(), str(tmp_path / "out"))
    there = preprocess(make(example_images=2), prefix("same"))
    assert there.digest == local.digest
    assert summary_lines(there, 1.0)[-1].endswith("pictures/examples.png")
    here, far = read_index(str(local.folder)), read_index(prefix("same"))
    assert (far.counts, far.captions) == (here.counts, here.captions)
    assert far.train.key.tolist() == here.train.key.tolist()
    assert rows(far.train) == rows(here.train)
    looked, expected = inspect_folder(prefix("same")), inspect_folder(str(local.folder))
    assert looked.rows.sort("clip_id", "window_s").equals(expected.rows.sort("clip_id", "window_s"))
    assert looked.motion.tolist() == expected.motion.tolist()
    # A set that was copied from a folder is read, too, and made anew like any other.
    copied = upload(proxy_url(), tmp_path / "out", "copied")
    assert rows(read_index(copied).train) == rows(here.train)
    assert preprocess(make(), copied).reused
    preprocess(make(draws_per_clip=2), copied)
    assert not any(name.startswith(("index/", "done/")) for name in objects(copied))


def proxy_url() -> str:
    import os

    return os.environ["AWS_ENDPOINT_URL"]


def test_finished_work_is_found_with_one_listing(make: Make, proxy: Failures) -> None:
    preprocess(make(), prefix("twice"))
    before = objects(prefix("twice"))
    begun = len(proxy.requests)
    assert preprocess(make(), prefix("twice")).reused
    print("\n".join(path for path, _ in proxy.requests[begun:]))
    assert not [path for path, _ in proxy.requests[begun:] if "part-" in path]
    assert objects(prefix("twice")) == before


def test_killed_before_any_write_it_goes_on_to_the_same_set(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects appear in one moment; the job dies before each of them, over an older set."""
    whole = preprocess(make(draws_per_clip=2), str(tmp_path / "whole"))
    before = preprocess(make(), prefix("killed"))
    config = make(draws_per_clip=2)
    kills, done = 0, False
    while not done:
        with contextlib.suppress(KeyboardInterrupt), monkeypatch.context() as patched:
            die_at_write(2 * kills, patched)
            preprocess(config, prefix("killed"))
            done = True
        kills += 1
        found = read_manifest(prefix("killed"))["digest"]
        assert found in ((whole.digest,) if done else (before.digest, whole.digest))
        rows(read_index(prefix("killed")).train)
    assert kills > 4
    check(prefix("killed"), whole.digest)


def die_at_write(number: int, patched: pytest.MonkeyPatch) -> None:
    """Let so many objects be written or deleted, and kill the job before the next."""
    left = [number]

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def run(*words: object, **named: object) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real(*words, **named)

        return run

    for name in ("write_bytes", "upload", "copy_to", "delete_below"):
        patched.setattr(S3Path, name, counted(getattr(S3Path, name)))


def test_a_recording_more_leaves_the_other_objects_as_they_are(
    make: Make, tmp_path: Path, proxy: Failures
) -> None:
    from triplet_recordings import moving_square, write_video

    preprocess(make(), prefix("more"))
    before = objects(prefix("more"))
    write_video(tmp_path / "videos" / "late.mp4", moving_square(step_px=1.7))
    with (tmp_path / "videos" / "captions.csv").open("a") as file:
        file.write("late.mp4,pull the square\n")
    outcome = preprocess(make(), prefix("more"))
    assert outcome.version == 2
    kept = {name for name in before if name.startswith("triplets/")}
    assert kept < objects(prefix("more"))
    check(prefix("more"), outcome.digest)


def test_two_who_make_one_set_do_not_mix(make: Make, proxy: Failures) -> None:
    target = destination_of(prefix("two"))
    mine = preprocess(make(), prefix("two"))
    work = target.work("0" * 12)
    with pytest.raises(StoreError, match="another process has made"):
        target.publish(work, read_finished(target.folder), [])
    check(prefix("two"), mine.digest)


def test_answers_that_break_off_are_asked_for_again(make: Make, proxy: Failures) -> None:
    preprocess(make(), prefix("cut"))
    index = read_index(prefix("cut"))
    expected = rows(index.train)
    proxy.rule = lambda path, number: {0: "500", 1: "cut"}.get(number % 4)
    traffic = Traffic()
    assert rows(read_index(prefix("cut")).train, traffic) == expected
    assert traffic.requests >= 2 * len(index.train)
    assert traffic.bytes > 0


def test_bytes_and_requests_of_an_epoch_are_those_that_the_server_saw(
    make: Make, proxy: Failures
) -> None:
    preprocess(make(), prefix("counted"))
    index = read_index(prefix("counted"))
    traffic = Traffic()
    asked, sent = len(proxy.requests), proxy.bytes_sent
    rows(index.train, traffic)
    assert traffic.requests == len(proxy.requests) - asked
    assert traffic.bytes == proxy.bytes_sent - sent


def test_what_changed_under_a_run_is_said(make: Make, proxy: Failures) -> None:
    preprocess(make(), prefix("gone"))
    index = read_index(prefix("gone"))
    for path in index.train.files:
        S3Path.parse(path).unlink()
    with pytest.raises(UserError, match="if the folder was changed during the run"):
        rows(index.train)


@pytest.mark.parametrize("verdict", ["403", "expired", "endpoint", "bucket", "other"])
def test_a_bucket_that_cannot_be_used_is_one_line(
    make: Make, proxy: Failures, monkeypatch: pytest.MonkeyPatch, verdict: str
) -> None:
    uri, said = prefix("refused"), "does not let us read"
    if verdict == "endpoint":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    elif verdict == "bucket":
        uri, said = "s3://no-such-bucket/x", "there is no bucket no-such-bucket at http"
    elif verdict == "other":
        uri, said = prefix("others"), "holds something else than triplets"
        client(proxy_url()).put_object(Bucket=BUCKET, Key="others/notes.txt", Body=b"mine")
    else:
        proxy.rule = lambda path, number: verdict
    with pytest.raises(UserError, match=said) as caught:
        preprocess(make(), uri)
    assert len(str(caught.value).splitlines()) == 1
    if verdict != "other":
        with pytest.raises(UserError, match=said):
            read_manifest(uri)


def test_a_clip_that_kills_its_workers_is_counted_in_the_bucket(proxy: Failures) -> None:
    folder = S3Path.parse(prefix("notes"))
    first = Notes(folder, "clip")
    with first.begun("started\n") as file:
        file.write("Fatal Python error")
    assert Notes(folder, "clip").read() == "started\nFatal Python error"
    first.file.unlink()  # as another machine has it
    assert Notes(folder, "clip").read() == "started\n"
    first.remove()
    assert Notes(folder, "clip").read() == ""


def test_actors_learn_from_a_note_in_the_bucket_how_much_fits(proxy: Failures) -> None:
    attempts = S3Path.parse(prefix("sizes")) / "attempts"
    forget(attempts, ["depth", "track"])  # where there is none
    one, other = BatchSize(16), BatchSize(16)
    for size in (one, other):
        size.share(note_of(attempts, "depth"))
    # Nothing on this machine, where the other actor may not be; and the store fails now and then.
    proxy.rule = lambda path, number: "503" if number % 2 == 0 else None
    one.halve(16, MemoryError("no room"))
    one.halve(8, MemoryError("no room"))
    assert objects(prefix("sizes")) == {"attempts/batch-of-depth"}
    other.halve(16, MemoryError())
    assert (one.most, other.most) == (4, 4)
    later, of_another_stage = BatchSize(16), BatchSize(16)
    later.share(note_of(attempts, "depth"))
    of_another_stage.share(note_of(attempts, "track"))
    assert (later.most, of_another_stage.most) == (4, 16)
    assert later.news() == {"tried": 16, "fits": 4, "error": "no room"}
    forget(attempts, ["depth", "track"])
    anew = BatchSize(16)
    anew.share(note_of(attempts, "depth"))
    assert anew.most == 16, "another run's machines may have more memory"


def test_a_set_is_inspected_without_its_images(make: Make, proxy: Failures) -> None:
    preprocess(make(), prefix("looked"))
    size = sum(stat.st_size for _, stat in S3Path.parse(prefix("looked")).entries())
    before = proxy.bytes_sent
    found = inspect_folder(prefix("looked"))
    assert len(found.rows) == found.manifest["counts"]["triplets"]
    assert found.motion.sum() > 0
    print(f"{proxy.bytes_sent - before} of {size} bytes")
    assert proxy.bytes_sent - before < 0.8 * size


def test_an_upload_that_fails_leaves_nothing_on_the_machine(
    server: str, proxy: Failures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = S3Path.parse(prefix("refused/part.parquet"))
    proxy.rule = lambda path, number: "403 AccessDenied"
    with pytest.raises(AccessRefused), ClipFile(path) as file:
        file.close()
    with pytest.raises(RuntimeError, match="row group"), ClipFile(path):
        raise RuntimeError("another row group")
    written = place.staged(path)
    written.write_bytes(b"data")
    with pytest.raises(AccessRefused):
        place.publish(written, path)
    (uploads,) = tmp_path.iterdir()
    assert not list(uploads.iterdir())
