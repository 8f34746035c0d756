"""`preprocess preview`: how clips are drawn, what they cost, and a whole preview of a folder."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from s3_server import Failures, upload
from triplet_recordings import settings, textured, write_video

from dynaflip.errors import UserError
from dynaflip.jobs.preprocess import main
from dynaflip.platform.triplets import preview
from dynaflip.platform.triplets.clips import Clip
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.preview import (
    Made,
    draw_clips,
    make_clips,
    whole_set_s,
    workers_of_job,
)
from dynaflip.platform.triplets.report.preview_page import duration
from dynaflip.platform.triplets.shard import process_shard
from dynaflip.platform.triplets.sources.formats import open_sources
from dynaflip.platform.triplets.work_folder import WorkFolder


def clip(number: int, source: str = "a", camera: str = "front") -> Clip:
    name = f"{source}{number}"
    texts = ("open it",), "open it", "open", "robot", "none"
    return Clip(f"{name}{camera}", name, source, f"{name}.mp4", camera, *texts)


class Listed:
    """A source of which only the listing is wanted."""

    format = name = "listed"

    def __init__(self, clips: list[Clip]) -> None:
        self.clips, self.looked_at = clips, 0

    def list_clips(self) -> Iterator[Clip]:
        for one in self.clips:
            self.looked_at += 1
            yield one


CLIPS = [clip(n, "a", camera) for n in range(300) for camera in ("front", "wrist")]
CLIPS += [clip(n, "b", "top") for n in range(20)]


def test_clips_are_drawn_from_all_sources_cameras_and_recordings() -> None:
    drawn = draw_clips([Listed(CLIPS)], 12, seed=0)
    assert drawn.complete
    assert drawn.listed == {"a": 600, "b": 20}
    by_camera = Counter((c.source, c.camera) for c in drawn.clips)
    assert by_camera == {("a", "front"): 3, ("a", "wrist"): 3, ("b", "top"): 6}
    assert len({c.recording_id for c in drawn.clips}) == 12
    assert sum(int(c.recording_id[1:]) >= 150 for c in drawn.clips if c.source == "a") > 0


def test_a_draw_depends_on_seed_and_clips_alone() -> None:
    drawn = draw_clips([Listed(CLIPS)], 12, seed=0).clips
    assert draw_clips([Listed(CLIPS[::-1])], 12, seed=0).clips == drawn
    assert draw_clips([Listed(CLIPS)], 12, seed=1).clips != drawn
    few = draw_clips([Listed(CLIPS[:5])], 12, seed=0).clips
    assert sorted(c.clip_id for c in few) == sorted(c.clip_id for c in CLIPS[:5])


def test_a_huge_source_is_not_listed_to_its_end() -> None:
    source = Listed(CLIPS)
    drawn = draw_clips([source, Listed(CLIPS[-20:])], 2, seed=0, limit_s=0.0)
    assert not drawn.complete
    assert source.looked_at < len(CLIPS)
    assert drawn.listed == {"a": source.looked_at, "b": 1}  # no source is left out


def test_the_whole_set_is_reckoned_by_source() -> None:
    made = [Made(clip(n, "a"), {}, 2.0) for n in range(2)] + [Made(clip(0, "b"), {}, 10.0)]
    total_s, spread_s = whole_set_s(made, Counter(a=100, b=10), workers=4)
    assert total_s == pytest.approx((100 * 2 + 10 * 10) / 4)
    assert spread_s > 0  # one clip says little of its source
    _, nothing_left = whole_set_s(made, Counter(a=2, b=1), workers=4)
    assert nothing_left == 0
    one_s, _ = whole_set_s(made[:1], Counter(a=1), workers=8)
    assert one_s == pytest.approx(2.0)  # no worker shares a clip with another


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (80, "80 s"), (600, "10 min"), (36000, "10.0 h")]
)
def test_times_are_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_an_output_that_would_be_taken_for_triplets_is_refused(home: Path) -> None:
    with pytest.raises(UserError, match=r"--output: my_triplets: a preview writes one page"):
        main(["preview", "--output", "my_triplets"])
    with pytest.raises(UserError, match="--clips: must be at least 1, not 0"):
        main(["preview", "--clips", "0"])
    assert not home.exists()


@pytest.mark.integration
def test_a_folder_is_previewed_with_the_settings_of_the_job(
    video_folder: Callable[..., Path], tmp_path: Path, home: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = video_folder(3, {"broken.mp4": "nothing", "still.mp4": "<b>nothing moves</b>"})
    (folder / "broken.mp4").write_bytes(b"no video")
    write_video(folder / "still.mp4", np.repeat(textured(160, 90)[None], 40, axis=0))
    words = ["--source", str(folder), "--depth", "plane", "--draws_per_clip", "1"]
    assert main(["preview", *words]) == 0
    printed = capsys.readouterr().out
    page = (home / "previews" / "videos" / "preview.html").read_text()
    # What the job makes of the same clips, in this process.
    config = settings(folder)
    source = open_sources(config)
    work = WorkFolder(tmp_path / "work")
    summaries = process_shard("all", list(source.list_clips()), source, config, work)
    rows = sum(len(summary["rows"]) for summary in summaries)
    assert rows > 0
    assert f"<b>{rows}</b>triplets" in page
    assert "<b>3</b>clips kept" in page
    assert "<b>2</b>clips rejected" in page
    assert printed.count(" triplets") == 3
    assert "broken.mp4 (main): rejected: reading the video" in printed
    assert "5 clips on" in printed
    _, after = page.split("<h2>Rejected clips</h2>")
    rejected, after = after.split("<h2>Windows left out by the filters</h2>")
    assert "no frame can be read" in rejected
    assert rejected.count("<img ") == 3  # of the still video: first, middle, last
    for width, height in re.findall(r"<img [^>]*width=(\d+) height=(\d+)", rejected):
        assert int(width) / int(height) == pytest.approx(90 / 160, rel=0.05)
    assert "no trusted point moves" in after
    assert "draws_per_clip" in after  # the settings that differ from the defaults
    assert [path.name for path in (home / "previews").iterdir()] == ["videos"]


@pytest.mark.integration
def test_a_bucket_is_previewed(
    video_folder: Callable[..., Path], home: Path, server: str, proxy: Failures
) -> None:
    uri = upload(server, video_folder(1, {"broken.mp4": "nothing"}), "previewed")
    words = ["--source", uri, "--depth", "plane", "--draws_per_clip", "1"]
    assert main(["preview", *words]) == 0
    page = (home / "previews" / "previewed" / "preview.html").read_text()
    assert "<b>1</b>clips kept" in page
    assert "<b>1</b>clips rejected" in page


class Ramp:
    """A depth model: the left is twice as far as the right."""

    scale = "relative"

    def __call__(self, frames: np.ndarray, /) -> np.ndarray:
        ramp = np.linspace(2, 1, frames.shape[2], dtype=np.float32)
        return np.broadcast_to(ramp, frames.shape[:3]).copy()


class Says:
    """A captioner."""

    def describe(self, image: np.ndarray, prompt: str, /) -> str:
        return f"<i>{len(prompt)} letters asked</i>"


@pytest.mark.integration
def test_models_are_those_of_the_job(
    video_folder: Callable[..., Path], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    folder = video_folder(1)
    (folder / "captions.csv").write_text("file,caption\nclip0.mp4,\n")
    words = ["--source", str(folder), "--source.captioner", f"class:{__name__}:Says"]
    words += ["--source.captioner_prompt", "what?", "--depth", f"class:{__name__}:Ramp"]
    page = tmp_path / "pages" / "models.html"
    assert main(["preview", *words, "--draws_per_clip", "1", "--output", str(page)]) == 0
    text = page.read_text()
    assert "“&lt;i&gt;5 letters asked&lt;/i&gt;”" in text
    assert "<canvas class=turn" in text
    assert "% of the depth farther" in text
    assert [path.name for path in page.parent.iterdir()] == ["models.html"]


class Crashes:
    """A depth model that takes its process with it at every frame."""

    scale = "relative"

    def __call__(self, frames: np.ndarray, /) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGSEGV)
        return frames[..., 0].astype(np.float32)


@pytest.mark.integration
def test_a_clip_that_kills_its_process_is_rejected_and_the_others_are_shown(
    video_folder: Callable[..., Path], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    config = settings(video_folder(1), depth=f"class:{__name__}:Crashes")
    source = open_sources(config)
    (made,) = make_clips(source.list_clips(), source, config, tmp_path / "new")
    assert made.summary["stage"] == "crash"
    assert "fault in native code" in made.summary["reason"]


class Unloadable:
    """A depth model without weights."""

    scale = "relative"

    def __init__(self) -> None:
        raise FileNotFoundError("weights.safetensors is not there")


class Unanswered(Unloadable):
    """One whose error cannot be sent from process to process."""

    def __init__(self) -> None:
        class NoAnswer(Exception):
            pass

        raise NoAnswer("the hub does not answer")


class Dying(Unloadable):
    """One that takes its process with it while it is loaded."""

    def __init__(self) -> None:
        os._exit(1)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("model", "raised", "said"),
    [
        ("Unloadable", FileNotFoundError, r"weights\.safetensors is not there"),
        ("Unanswered", RuntimeError, "NoAnswer: the hub does not answer"),
        ("Dying", UserError, "the preview's process died 2 times without a clip that was done"),
    ],
)
def test_a_model_that_cannot_be_loaded_ends_the_preview(
    video_folder: Callable[..., Path],
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    raised: type[Exception],
    said: str,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setattr(preview, "MAX_STARTS", 1)
    config = settings(video_folder(1), depth=f"class:{__name__}:{model}")
    source = open_sources(config)
    with pytest.raises(raised, match=said):
        list(make_clips(source.list_clips(), source, config, tmp_path / "new"))


@pytest.mark.ray
def test_the_time_is_reckoned_for_the_cluster_that_is_named(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert workers_of_job(PreprocessConfig(depth="plane")) == (2, "2 CPUs of this cluster")
    models = PreprocessConfig(depth=f"class:{__name__}:Crashes")
    assert workers_of_job(models) == (1, "2 CPUs of this cluster")  # the driver keeps one
    monkeypatch.delenv("RAY_ADDRESS")
    assert workers_of_job(PreprocessConfig())[1].endswith("CPUs of this machine")
