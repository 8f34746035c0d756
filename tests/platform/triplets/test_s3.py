"""Sources in S3, against a real server: same triplets, ranges only, failures survived or said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import odd_lerobot
import pyarrow.parquet as pq
import pytest
from checkout import REPOSITORY
from s3_server import BUCKET, Failures, upload
from triplet_recordings import moving_square, textured, write_lerobot, write_video

from dynaflip.errors import RefusedError, UserError
from dynaflip.platform import s3
from dynaflip.platform.paths import cache_folder
from dynaflip.platform.ranged_file import RangedFile
from dynaflip.platform.s3 import S3Path
from dynaflip.platform.s3_errors import AccessRefused, CredentialsRefused, NetworkError
from dynaflip.platform.triplets.build import clip_table
from dynaflip.platform.triplets.clips import ClipRejected
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.digest import row_digests
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.sources.formats import open_sources
from dynaflip.platform.triplets.sources.locations import fingerprint, list_files


def digests(path: str, **settings) -> list[list[str]]:
    config = PreprocessConfig(
        source=SourceConfig(path=path, name="same", **settings), depth="plane", draws_per_clip=1
    )
    mix = open_sources(config)
    return [row_digests(clip_table(c, mix.open(c), config)) for c in mix.list_clips()]


def test_triplets_from_s3_are_those_of_the_folder(
    server: str, proxy: Failures, video_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = video_folder(2)
    assert digests(upload(server, folder, "videos")) == digests(str(folder))
    episodes = [{"top": moving_square(30 + n)} for n in range(2)]
    root = write_lerobot(tmp_path / "set", episodes, ["push", "pull"])
    assert digests(upload(server, root, "lerobot")) == digests(str(root))


def test_real_records_from_s3(
    server: str, proxy: Failures, shared_clips: Path, tmp_path: Path
) -> None:
    path = shared_clips / "bridge_debug.tfrecord"
    (tmp_path / path.name).write_bytes(path.read_bytes())
    uri = upload(server, tmp_path, "rlds")
    assert digests(uri, cameras=("image_0",)) == digests(str(tmp_path), cameras=("image_0",))


def test_a_segment_of_a_long_video_is_not_downloaded_whole(
    server: str, proxy: Failures, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    frames = np.stack([textured(240, 320, int(rng.integers(1 << 30))) for _ in range(480)])
    write_video(tmp_path / "v" / "long.mp4", frames, options={"g": "12", "bf": "0"})
    (tmp_path / "v" / "captions.csv").write_text(
        "file,caption,start_s,end_s\nlong.mp4,shake,9.0,9.4\n"
    )
    size = (tmp_path / "v" / "long.mp4").stat().st_size
    uri = upload(server, tmp_path / "v", "long")
    mix = open_sources(PreprocessConfig(source=SourceConfig(path=uri)))
    clip = next(iter(mix.list_clips()))
    before = proxy.bytes_sent
    shown = mix.open(clip).read_frames([0, 5], 96)
    assert shown.shape[0] == 2
    asked = proxy.bytes_sent - before
    print(f"\n{asked} of {size} bytes")
    assert asked < 0.5 * size


def test_a_ranged_file_reads_what_a_file_reads(
    server: str, proxy: Failures, tmp_path: Path
) -> None:
    data = np.random.default_rng(1).integers(0, 256, 1_300_001, dtype=np.uint8).tobytes()
    (tmp_path / "data.bin").write_bytes(data)
    path = S3Path.parse(upload(server, tmp_path, "plain")) / "data.bin"
    with RangedFile(path) as file:
        for offset, size in ((0, 10), (262_140, 9), (1_300_000, 50), (7, 700_000)):
            file.seek(offset)
            assert file.read(size) == data[offset : offset + size]
            assert file.tell() == min(len(data), offset + size)
        file.seek(-3, 2)
        assert file.read() == data[-3:]
    assert fingerprint(path) == fingerprint(tmp_path / "data.bin")


def test_temporary_failures_are_retried(
    server: str, proxy: Failures, video_folder: Callable[..., Path]
) -> None:
    folder = video_folder(2)
    uri = upload(server, folder, "flaky")
    expected = digests(str(folder))
    proxy.rule = lambda path, number: {0: "500", 1: "cut"}.get(number % 4)
    assert digests(uri) == expected
    assert any(proxy.rule("", n) == "cut" for n in range(len(proxy.requests)))


def test_permanent_failures_reject_the_clip_and_an_outage_fails_the_job(
    server: str, proxy: Failures, tmp_path: Path
) -> None:
    for name, step_px in (("good", 1.3), ("gone", 1.5)):
        write_video(tmp_path / "v" / f"{name}.mp4", moving_square(30, step_px=step_px))
    (tmp_path / "v" / "captions.csv").write_text("file,caption\ngood.mp4,push\ngone.mp4,pull\n")
    uri = upload(server, tmp_path / "v", "partly")
    config = PreprocessConfig(source=SourceConfig(path=uri), depth="plane")
    mix = open_sources(config)
    gone, good = mix.list_clips()
    assert good.path == "good.mp4"
    proxy.rule = lambda path, number: "500" if "gone" in path else None
    with pytest.raises(ClipRejected, match="gave up after 6 attempts") as caught:
        mix.open(gone).times_s()
    assert caught.value.stage == "network"
    assert len(mix.open(good).times_s()) == 30
    shutil.rmtree(cache_folder())  # so that the file is looked at again
    again = {c.path: c for c in mix.list_clips()}
    assert again["gone.mp4"].problem is not None
    assert "gave up" in again["gone.mp4"].problem[1]
    proxy.rule = lambda path, number: "500"
    with pytest.raises(UserError, match="cannot be read"):
        open_sources(config)


@pytest.mark.parametrize("verdict", ["403", "401", "expired"])
def test_expired_credentials_are_a_temporary_rejection(
    server: str, proxy: Failures, tmp_path: Path, verdict: str
) -> None:
    write_video(tmp_path / "v" / "a.mp4", moving_square(10))
    np.save(tmp_path / "v" / "a.npy", np.ones((10, 120, 160), np.float32))
    (tmp_path / "v" / "captions.csv").write_text("file,caption,depth\na.mp4,push,a.npy\n")
    videos = SourceConfig(path=upload(server, tmp_path / "v", f"expired{verdict}"))
    root = write_lerobot(tmp_path / "set", [{"top": moving_square(20)}], ["push"])
    robot = SourceConfig(path=upload(server, root, f"robot{verdict}"))
    odd = odd_lerobot.sound()
    odd_lerobot.depth_beside()(odd)
    deep = SourceConfig(path=upload(server, odd.write(tmp_path / "deep"), f"deep{verdict}"))
    mix = open_sources(PreprocessConfig(sources=(videos, robot, deep)))
    clips = list(mix.list_clips())
    video, episode, with_depth = map(mix.open, clips[:3])
    unread = mix.open(clips[1])
    assert len(video.times_s()) == 10
    assert len(episode.times_s()) == 20
    proxy.rule = lambda path, number: verdict
    reads = (
        lambda: video.read_frames([0], 96),
        lambda: video.read_depth_m([0]),
        lambda: with_depth.read_depth_m([0]),
    )
    for read in reads:
        with pytest.raises(ClipRejected) as caught:
            read()
        assert caught.value.stage == "network"
    with pytest.raises(ClipRejected) as caught:
        unread.cameras([0])  # by pyarrow, whose failures are plain OSErrors
    assert caught.value.stage == "network"


@pytest.mark.parametrize(
    ("verdict", "raised", "remedy"),
    [
        ("403 AccessDenied", AccessRefused, "lack the right"),
        ("400 ExpiredToken", CredentialsRefused, "renew the credentials"),
        ("403 InvalidAccessKeyId", CredentialsRefused, "check AWS_ACCESS_KEY_ID"),
        ("403 SignatureDoesNotMatch", CredentialsRefused, "check AWS_ACCESS_KEY_ID"),
        ("403 RequestTimeTooSkewed", CredentialsRefused, "clock"),
        ("403 InvalidObjectState", AccessRefused, "restore it"),
        ("400 InvalidRequest", PermissionError, "InvalidRequest"),
    ],
)
def test_what_never_passes_is_asked_once_and_says_what_to_do(
    proxy: Failures, verdict: str, raised: type[OSError], remedy: str
) -> None:
    path = S3Path.parse(f"s3://{BUCKET}/a")
    proxy.rule = lambda path, number: verdict
    for ask in (path.exists, lambda: path.read_range(0, 4), lambda: path.write_bytes(b"a")):
        asked = len(proxy.requests)
        with pytest.raises(raised, match=remedy) as caught:
            ask()
        assert type(caught.value) is raised
        # To know why HEAD was refused takes a GET; boto3 asks where the bucket is, too.
        assert len(proxy.requests) - asked in ((2, 3) if ask == path.exists else (1,))


@pytest.mark.parametrize("verdict", ["503 SlowDown", "429", "500 InternalError", "409 Busy"])
def test_only_what_may_pass_is_asked_for_again(proxy: Failures, verdict: str) -> None:
    proxy.rule = lambda path, number: verdict
    with pytest.raises(OSError, match=verdict.split(" ")[-1]) as caught:
        S3Path.parse(f"s3://{BUCKET}/a").read_range(0, 4)
    passing = verdict != "409 Busy"
    assert type(caught.value) is (NetworkError if passing else PermissionError)
    assert len(proxy.requests) == (6 if passing else 1)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"AWS_ENDPOINT_URL": "localhost:9000"}, "give http://HOST:PORT"),
        ({"AWS_PROFILE": "nobody"}, "correct AWS_PROFILE"),
        ({"AWS_REGION": "the moon"}, "set AWS_REGION"),
        ({"AWS_ENDPOINT_URL": "https", "AWS_CA_BUNDLE": "/none.pem"}, "AWS_CA_BUNDLE"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "set AWS_ACCESS_KEY_ID"),
    ],
)
def test_settings_of_the_environment_that_fit_no_store_are_one_line(
    proxy: Failures, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    tls = os.environ["AWS_ENDPOINT_URL"].replace("http:", "https:")
    for name, value in variables.items():
        monkeypatch.setenv(name, tls if value == "https" else value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it has read the environment
    monkeypatch.setattr(s3, "_client", s3._client.__wrapped__)
    with pytest.raises(UserError, match=said) as caught:
        s3.check_bucket(S3Path.parse(f"s3://{BUCKET}/a"), "--output")
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_table_of_an_episode_is_a_permanent_rejection(
    server: str, proxy: Failures, tmp_path: Path
) -> None:
    root = write_lerobot(tmp_path / "set", [{"top": moving_square(20)}], ["push"])
    (root / "data/chunk-000/file-000.parquet").unlink()
    mix = open_sources(PreprocessConfig(source=SourceConfig(path=upload(server, root, "lost"))))
    with pytest.raises(ClipRejected) as caught:
        mix.open(next(iter(mix.list_clips()))).cameras([0])
    assert caught.value.stage == "decode"


def test_a_failure_while_another_is_explained_is_a_network_rejection(
    server: str, proxy: Failures, tmp_path: Path
) -> None:
    """A damaged video is looked at once more, to say what is wrong with it."""
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"noise" * 100)
    (tmp_path / "v" / "captions.csv").write_text("file,caption\na.mp4,push\n")
    source = SourceConfig(path=upload(server, tmp_path / "v", "noise"))
    mix = open_sources(PreprocessConfig(source=source))
    recording = mix.open(next(iter(mix.list_clips())))
    with pytest.raises(ClipRejected) as caught:
        recording.times_s()
    assert caught.value.stage == "decode"
    begun = len(proxy.requests)
    proxy.rule = lambda path, number: (
        "403" if number > begun + 1 and not proxy.requests[-1][1] else None
    )
    with pytest.raises(ClipRejected) as caught:
        recording.times_s()
    assert caught.value.stage == "network"


@pytest.mark.fuzz
def test_a_flaky_bucket_rejects_only_the_clips_that_it_withholds(
    server: str, proxy: Failures, video_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = video_folder(4)
    write_video(folder / "gone.mp4", moving_square(30, step_px=1.9))
    with (folder / "captions.csv").open("a") as file:
        file.write("\ngone.mp4,pull\n")
    uri = upload(server, folder, "job")
    job = str(REPOSITORY / "jobs" / "preprocess.py")
    words = ["--depth", "plane", "--draws_per_clip", "1", "--max_rejected_share", "0.5"]

    def manifest_of(source: str, name: str) -> dict[str, Any]:
        out = tmp_path / name
        done = subprocess.run(
            [sys.executable, job, "--source", source, "--output", str(out), *words],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return json.loads((out / "manifest.json").read_text())

    # Two of five requests for each object fail. Counted over all objects, another process's
    # requests would come between, and now and then one object would get six failures in a row.
    asked: Counter[str] = Counter()

    def flaky(path: str, number: int) -> str | None:
        asked[path] += 1
        return "500" if "gone" in path else {0: "500", 2: "cut"}.get(asked[path] % 5)

    proxy.rule = flaky
    counts = manifest_of(uri, "flaky")["counts"]
    assert (counts["read"], counts["kept"], counts["rejected"]) == (5, 4, 1)
    (rejected,) = pq.read_table(tmp_path / "flaky" / "rejected.parquet").to_pylist()
    assert (rejected["path"], rejected["stage"]) == ("gone.mp4", "list")  # no fingerprint
    assert "gave up" in rejected["reason"]
    proxy.rule = lambda path, number: None
    whole = manifest_of(uri, "calm")["counts"]
    assert (whole["read"], whole["kept"], whole["rejected"]) == (5, 5, 0)
    assert whole["triplets"] > counts["triplets"]


def test_an_empty_prefix_is_a_user_error(server: str, proxy: Failures) -> None:
    with pytest.raises(UserError, match="no folder s3:"):
        open_sources(PreprocessConfig(source=SourceConfig(path=f"s3://{BUCKET}/nothing")))
    with pytest.raises(UserError, match="cannot be read"):
        open_sources(PreprocessConfig(source=SourceConfig(path="s3://no-such-bucket/x")))


def test_names_are_joined_and_listed(server: str, proxy: Failures, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/one.txt", "two.txt", ".hidden"):
        (tmp_path / name).write_text(name)
    root = S3Path.parse(upload(server, tmp_path, "names") + "/")
    assert list_files(root) == ["a/one.txt", "two.txt"]
    assert (root / "a/one.txt").read_text() == "a/one.txt"
    assert (root / "a").is_dir()
    assert not (root / "a").is_file()
    assert (root / "a/one.txt").parent == root / "a"
    with pytest.raises(FileNotFoundError):
        (root / "three.txt").stat()
    proxy.rule = lambda path, number: "500"
    with pytest.raises(NetworkError, match=r"two\.txt"):
        (root / "two.txt").stat()


@pytest.mark.integration
def test_credentials_that_run_out_end_the_job_which_then_goes_on(
    server: str,
    proxy: Failures,
    video_folder: Callable[..., Path],
    in_process: None,
    in_order: None,
    tmp_path: Path,
) -> None:
    folder = video_folder(3)
    source = SourceConfig(path=upload(server, folder, "runs-out"), name="same")
    config = PreprocessConfig(
        source=source, depth="plane", draws_per_clip=1, clips_per_shard=1, example_images=0
    )
    out = tmp_path / "out"
    proxy.rule = lambda path, number: (
        "expired" if list(tmp_path.glob(".out.*/shards/*.json")) else None
    )
    with pytest.raises(RefusedError, match=r"ExpiredToken.*renew.*run the same command again"):
        preprocess(config, str(out))
    assert not out.exists()
    proxy.rule = lambda path, number: None
    outcome = preprocess(config, str(out))
    assert (outcome.counts["kept"], outcome.counts["rejected"]) == (3, 0)
