"""Folders of small recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from triplet_recordings import moving_square, write_video

from dynaflip.platform.triplets import pipeline
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

    def run(shards, config, work, source, models):
        for number, clips in shards.items():
            yield from process_shard(number, clips, source, config, work)

    monkeypatch.setattr(pipeline, "_run", run)
