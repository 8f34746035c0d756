"""Folders of small recordings, and a real S3 server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_server import Failures, failing_proxy, s3_server
from triplet_recordings import moving_square, write_video

from dynaflip.platform import s3_errors
from dynaflip.platform.triplets import compaction, pipeline
from dynaflip.platform.triplets.shard import process_shard


@pytest.fixture
def video_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of good videos with captions.csv."""

    def make(count: int = 3, captions: dict[str, str] | None = None) -> Path:
        folder = tmp_path / "videos"
        lines = ["file,caption"]
        for n in range(count):
            write_video(folder / f"clip{n}.mp4", moving_square(step_px=0.8 + 0.1 * n))
            lines.append(f"clip{n}.mp4,push the square {n % 2}")
        lines += [f"{name},{caption}" for name, caption in (captions or {}).items()]
        (folder / "captions.csv").write_text("\n".join(lines) + "\n")
        return folder

    return make


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are made one after the other, without Ray."""

    def run(shards, config, work, source, *_):
        for name, clips in shards.items():
            yield from process_shard(name, clips, source, config, work)

    monkeypatch.setattr(pipeline, "run_stages", run)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Failures]:
    """The server behind a proxy, in this process's environment."""
    monkeypatch.setattr(s3_errors, "_FIRST_WAIT_S", 0.01)
    with failing_proxy(server) as (url, failures):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield failures


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are written one after the other, without Ray."""
    monkeypatch.setattr(
        compaction,
        "_write_all",
        lambda items: (compaction.write_part(json.loads(item["part"])) for item in items),
    )
