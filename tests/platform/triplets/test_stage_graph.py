"""Stages apart, with fake GPUs: the same triplets as in one actor, and resources as declared."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from staged_models import Ramp
from tiny_depth_model import tiny_depth_model

from dynaflip.errors import UserError
from dynaflip.platform.triplets import model_stages
from dynaflip.platform.triplets.batches import BatchNews, BatchSize
from dynaflip.platform.triplets.clip_in_work import ClipInWork, ask_about
from dynaflip.platform.triplets.clips import Clip, ClipRejected
from dynaflip.platform.triplets.config import FilterConfig, PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.flow.config import TrackConfig
from dynaflip.platform.triplets.model_stages import DepthStage, in_batches
from dynaflip.platform.triplets.models.captioner import LoadedCaptioner, caption_clips
from dynaflip.platform.triplets.models.depth import TransformersDepth
from dynaflip.platform.triplets.models.loading import check_models
from dynaflip.platform.triplets.progress import Progress
from dynaflip.platform.triplets.shard import make_triplets
from dynaflip.platform.triplets.stage_config import ModelStageConfig, StagesConfig
from dynaflip.platform.triplets.stage_graph import read_shard, stage_graph

ME = "class:staged_models"


def settings(folder: Path, **more: object) -> PreprocessConfig:
    return PreprocessConfig(
        source=SourceConfig(path=str(folder)),
        filter=FilterConfig(min_moving_share=0, min_visible_share=0),
        **more,  # type: ignore[arg-type]
    )


def test_each_stage_states_what_it_holds(tmp_path: Path) -> None:
    config = settings(tmp_path, depth=f"{ME}:Ramp", track=TrackConfig(tracker=f"{ME}:Still"))

    def graph(config: PreprocessConfig, gpus: float, cpus: float = 4.0) -> list[tuple]:
        stages = stage_graph(config, "", None, {}, {"GPU": gpus, "CPU": cpus})  # type: ignore
        return [(stage.name, stage.cpus, stage.gpus, stage.actors) for stage in stages]

    assert graph(settings(tmp_path), 8) == [("all", 1, 0, 0)], "nothing for a GPU to do"
    assert graph(config, 0) == [("all", 1, 0, 3)]
    both = [("depth", 0, 0.5, 2), ("track", 0, 0.5, 2)]
    assert graph(config, 2) == [("read", 1, 0, 0), *both, ("write", 1, 0, 0)]
    whole = ModelStageConfig(gpus=1.0, cpus=0.5, actors=3)
    mine = replace(config, stages=StagesConfig(depth=whole))
    assert graph(mine, 4)[1:3] == [("depth", 0.5, 1, 3), ("track", 0, 0.5, 4)]
    with pytest.raises(UserError, match=r"stages.depth.gpus.* need 1.5 GPUs; the cluster has 1"):
        graph(mine, 1)
    half = replace(config, stages=StagesConfig(depth=ModelStageConfig(gpus=0.25)))
    assert graph(half, 2)[1:3] == [("depth", 0, 0.25, 4), ("track", 0, 0.5, 2)], "all of 2 GPUs"
    alone = replace(config, stages=StagesConfig(depth=ModelStageConfig(actors=1)))
    assert graph(alone, 0)[1:3] == [("depth", 1, 0, 1), ("track", 1, 0, 1)]
    with pytest.raises(UserError, match=r"stages.depth.cpus.* need 3 CPUs; the cluster has 2"):
        graph(alone, 0, cpus=2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"stages": StagesConfig(depth=ModelStageConfig(gpus=0.5))}, "stages.depth: "),
        ({"stages": StagesConfig(track=ModelStageConfig(actors=1))}, "stages.track: "),
        ({"stages": StagesConfig(caption_batch=4)}, "stages.caption_batch: "),
        ({"depth_precision": "float16"}, "depth_precision: "),
        ({"depth": f"{ME}:Ramp", "depth_precision": "float16"}, "precision: .*:Ramp has no method"),
        (
            {"depth": f"{ME}:ByWindow", "stages": StagesConfig(depth_batch=4)},
            "stages.depth_batch: .*:ByWindow is given the frames of one window",
        ),
        (
            {"captioner": f"{ME}:OneAtATime", "stages": StagesConfig(caption_batch=4)},
            "stages.caption_batch: .*:OneAtATime has no method describe_all",
        ),
    ],
)
def test_a_setting_of_a_stage_that_would_be_ignored_is_refused(
    more: dict, message: str, tmp_path: Path
) -> None:
    source = SourceConfig(path=str(tmp_path), captioner=more.pop("captioner", ""))
    config = replace(settings(tmp_path, **{"depth": "plane", **more}), source=source)
    with pytest.raises(UserError, match=message):
        check_models(config)


def test_each_distinct_frame_is_asked_about_once(
    video_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = video_folder(1)
    rows = "clip0.mp4,push,0,1\nclip0.mp4,pull,0.5,1.5\n"
    (folder / "captions.csv").write_text(f"file,caption,start_s,end_s\n{rows}")
    config = settings(folder, depth=f"{ME}:Ramp")
    Ramp.frames = 0
    read, stage = read_items(config, tmp_path), DepthStage({f"{ME}:Ramp": Ramp()}, batch=7)
    stage(read)
    readers = [item.reader for item in read]
    frames = [f.tobytes() for r in readers for w in r.windows.values() for f in r.tracked_frames(w)]
    distinct = set(frames)
    assert len(frames) > 1.5 * len(distinct), "windows overlap, and so do the clips"
    assert Ramp.frames == len(distinct)
    stage(read_items(config, tmp_path))
    assert Ramp.frames == len(distinct), "nor in the next shard"
    monkeypatch.setattr(model_stages, "_KEPT_BYTES", 1)
    stage(read)
    stage(read_items(config, tmp_path))
    assert Ramp.frames == 2 * len(distinct), "memory is bounded"


def test_what_a_stage_fails_for_is_rejected_alone(
    video_folder: Callable[..., Path], tmp_path: Path
) -> None:
    read = read_items(settings(video_folder(3), depth="plane"), tmp_path)

    def stage(items: Sequence[ClipInWork]) -> None:
        if read[1] in items:
            raise KeyError("of the second")

    ask_about(read, stage)
    assert [item.rejection and item.rejection[0] for item in read] == [None, "unexpected", None]


def test_a_model_that_does_not_say_its_scale_rejects_its_clips(
    video_folder: Callable[..., Path], tmp_path: Path
) -> None:
    (item,) = read_items(settings(video_folder(1), depth="class:mine:Model"), tmp_path)
    model: Any = lambda frames: np.ones(frames.shape[:3])  # noqa: E731
    ask_about([item], DepthStage({"class:mine:Model": model}))
    summary, table = make_triplets(item)
    assert table is None
    assert summary["stage"] == "depth"
    assert "class:mine:Model has scale None, not one of" in summary["reason"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [("ab", "gave a str"), (["a"], "gave 1 captions"), (["a", 2], "gave a int, not a caption")],
)
def test_captions_of_other_clips_are_not_taken(said: object, reason: str) -> None:
    class Wrong:
        def describe_all(self, images: object, prompts: object) -> object:
            return said

    names = ("recording", "source", "clip.mp4", "main", (), "", "", "human", "own", "class:mine:W")
    clips = [Clip(f"clip {number}", *names) for number in range(2)]
    images = [np.zeros((4, 4, 3), np.uint8)] * 2
    with pytest.raises(ClipRejected, match=reason):
        caption_clips(clips, images, LoadedCaptioner(Wrong(), "digest"))  # type: ignore[arg-type]


def read_items(config: PreprocessConfig, work: Path) -> list:
    from dynaflip.platform.triplets.sources.formats import open_sources

    source = open_sources(config)
    clips = [clip.to_json() for clip in source.list_clips()]
    row = read_shard({"name": "a", "clips": clips}, config, str(work), source)
    items = pickle.loads(row["items"])
    assert [item.rejection for item in items] == [None] * len(items)
    return items


def test_half_precision_is_close_and_batches_change_nothing(tmp_path: Path) -> None:
    folder = tiny_depth_model(tmp_path)
    frames = np.random.default_rng(0).integers(0, 255, (5, 56, 56, 3), dtype=np.uint8)
    model = TransformersDepth(str(folder))
    together = model(frames)
    alone = np.concatenate([model(frame[None]) for frame in frames])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
    model.use_precision("bfloat16")
    half = model(frames)
    # bfloat16 has 8 bits: 0.4 % a rounding, some of them one after the other.
    assert 0 < np.abs(half - together).mean() < 0.05 * np.abs(together).mean()


def test_a_batch_that_does_not_fit_is_halved_and_an_error_stays_with_its_question() -> None:
    sizes = []

    def ask(some: list[int]) -> list[int]:
        sizes.append(len(some))
        if len(some) > 3:
            raise MemoryError
        if 5 in some:
            raise ValueError("five")
        return [2 * number for number in some]

    size = BatchSize(8)
    answers = in_batches(ask, range(10), size)
    assert sizes[:3] == [8, 4, 2], "and never more again"
    assert max(sizes[3:]) == 2
    del sizes[:]
    in_batches(ask, range(20, 26), size)
    assert sizes == [2, 2, 2], "nor for other questions"
    assert answers[:5] + answers[6:] == [0, 2, 4, 6, 8, 12, 14, 16, 18]
    assert isinstance(answers[5], ClipRejected)
    assert answers[5].reason.endswith("five")


def test_actors_learn_from_each_other_how_much_fits_and_it_is_said_once(tmp_path: Path) -> None:
    def ask(some: list[int]) -> list[int]:
        if len(some) > 3:
            raise MemoryError("no room\nand more of it")
        return some

    note = tmp_path / "attempts" / "note"
    one, other, later, news = BatchSize(0), BatchSize(16), BatchSize(16), BatchNews()
    for size in (one, other):
        size.share(note)
    in_batches(ask, range(12), one)
    told = [("depth", one.news()), ("track", {})]
    (line,) = news.lines(told)
    assert line == "depth: memory ran out with 12 at once; 3 at once from now on (no room)"
    other.halve(16, MemoryError())
    assert other.most == 3, "smaller than a half: it fitted there"
    assert not news.lines([("depth", other.news())]), "said already"
    later.share(note)
    assert later.most == 3
    assert later.news()["tried"] == 12, "the one that found it may have died before it said so"


def test_the_progress_line_names_the_stage_that_limits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = Progress("triplets", 10)
    progress.workers = {"read": 2.0, "depth": 1.0, "write": 2.0}
    clock[0] = 5.0
    progress.busy({"read": 1.0, "depth": 5.0, "write": 1.0})
    clock[0] = 10.0
    progress.busy({"read": 1.0, "depth": 5.0, "write": 3.0})
    progress.update([""] * 10)
    progress.close()
    line = capsys.readouterr().out.splitlines()[-1]
    assert "read 10 % · depth 100 % (limits) · write 20 %".replace(" %", "%") in line


@pytest.mark.ray
@pytest.mark.integration
def test_stages_apart_make_the_same_triplets_and_survive_a_killed_actor(
    video_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = video_folder(6)
    (folder / "broken.mp4").write_bytes(b"no video")
    with (folder / "captions.csv").open("a") as file:
        file.write("broken.mp4,nothing\n")
    model = tiny_depth_model(tmp_path / "model", kind="metric")
    script = Path(__file__).with_name("stage_graph_run.py")
    environment = os.environ | {"DYNAFLIP_TEST_MARK": str(tmp_path / "mark")}
    command = [sys.executable, str(script), str(folder), str(model), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert "(limits)" in done.stdout, "progress tells of the stages"
    assert found["apart"] == found["together"], "digest and counts"
    assert found["apart"][1]["rejected"] == 1
    assert (tmp_path / "mark").exists(), "an actor was killed"
    assert found["killed"][1] == found["whole"][1]
    assert found["killed"][1]["rejected"] == 1
    assert found["waves"] == [3, 3, 1]
    assert found["in waves"][1] == found["whole"][1]
    notes = [line.split() for line in (tmp_path / "mark.loaded").read_text().splitlines()]
    by = {kind: [pid for what, pid in notes if what == kind] for kind in ("loaded", "asked")}
    assert len(by["loaded"]) == 2, "once for each of two GPUs"
    assert set(by["asked"]) <= set(by["loaded"])
    assert found["small"][1] == found["whole"][1]
    sizes = [line.split() for line in (tmp_path / "mark.sizes").read_text().splitlines()]
    failed = [int(size) for kind, size in sizes if kind == "failed"]
    assert failed == [failed[0] // 2**n for n in range(len(failed))], "halved until it fits"
    assert failed[-1] > 8 >= failed[-1] // 2, "an actor begun anew knows what fits"
    assert sum(kind == "died" for kind, _ in sizes) == 1
    (line,) = [line for line in done.stdout.splitlines() if "memory ran out" in line]
    fits = failed[-1] // 2
    assert line.strip() == (
        f"depth: memory ran out with {failed[0]} at once; {fits} at once from now on (CUDA out of "
        f"memory. Tried to allocate)"
    )
