"""Ray Data on 2 CPUs against the same job in a plain loop, and where the time goes.

    python tests/benchmarks/speed.py [--tasks 12] [--episodes 12] [--video FILE.mp4]

Both sides make the same set, from the listing to the manifest; the loop makes one shard after the
other in one process. Two such loops at once, each with half of the clips, show what this machine's
two CPUs give without Ray. One thread a process, in one run; the ratio is what counts, and beside
it stands the CPU time of the driver, of Ray's own processes and of its workers. ``--video`` also
times a clip of the user's (720p, say) against decoding all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import multiprocessing
import pstats
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
from simulated import TASKS, recordings

from dynaflip.platform.cluster import start_ray
from dynaflip.platform.triplets import compaction, pipeline
from dynaflip.platform.triplets.build import clip_table
from dynaflip.platform.triplets.clips import Clip, Source
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.ledger import Ledger
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.publish import Outcome
from dynaflip.platform.triplets.shard import process_shard
from dynaflip.platform.triplets.sources.formats import open_source
from dynaflip.platform.triplets.work_folder import StoredClip, WorkFolder

# Functions whose time (with what they call) is decoding, tracking or depth.
STAGES = {
    "decoding": ("read_frames", "read_depth_m", "read_timeline", "times_s"),
    "tracking": ("flow_of_window", "fit_camera", "grid_on_first_frame"),
}


class Phases:
    """Moments of a job that runs in this process, told from outside: the clips, then the end."""

    def __init__(self, monkeypatched: contextlib.ExitStack) -> None:
        self.clips_s: list[float] = []
        self.publishing_s = 0.0
        add, publish = Ledger.add, pipeline.publish

        def timed_add(ledger: Ledger, clips: Iterable[StoredClip]) -> None:
            self.clips_s.append(time.perf_counter())
            add(ledger, clips)

        def timed_publish(*arguments: Any) -> Outcome:
            self.publishing_s = time.perf_counter()
            return publish(*arguments)

        monkeypatched.enter_context(mock.patch.object(Ledger, "add", timed_add))
        monkeypatched.enter_context(mock.patch.object(pipeline, "publish", timed_publish))

    def table(self, began_s: float, ended_s: float) -> str:
        """Seconds and shares of the parts of a job."""
        first, last = self.clips_s[0], self.clips_s[-1]
        # The last clip of all but one process: from there on a CPU waits.
        alone = self.clips_s[-2]
        parts = {
            "to the first clip": first - began_s,
            "while all work": alone - first,
            "the last clip alone": last - alone,
            "checks after it": self.publishing_s - last,
            "compaction, index, pictures": ended_s - self.publishing_s,
        }
        whole = ended_s - began_s
        return "\n".join(f"  {n:<28}{s:6.2f} s {s / whole:4.0%}" for n, s in parts.items())


def one_after_the_other(
    shards: dict[str, list[Clip]],
    config: PreprocessConfig,
    work: WorkFolder,
    source: Source,
    models: dict[str, str],
    *_: object,
) -> Iterator[dict[str, Any]]:
    """All shards in this process, in place of Ray Data."""
    for name, clips in shards.items():
        yield from process_shard(name, clips, source, config, work)


def write_all(items: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """All Parquet files in this process, in place of Ray Data."""
    return (compaction.write_part(json.loads(item["part"])) for item in items)


def plain_loop(config: PreprocessConfig, folder: str) -> float:
    """Seconds of the same job without Ray."""
    with (
        mock.patch.object(pipeline, "run_stages", one_after_the_other),
        mock.patch.object(compaction, "_write_all", write_all),
    ):
        began_s = time.perf_counter()
        preprocess(config, folder)
        return time.perf_counter() - began_s


def ray_cpu_s() -> dict[str, float]:
    """CPU seconds so far of this cluster's processes: Ray's own, and workers."""
    import psutil  # Ray brings it

    spent = {"Ray's own processes": 0.0, "workers": 0.0}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            name, times = " ".join(process.cmdline()), process.cpu_times()
            own = not name.startswith("ray::") or "Agent" in name
            spent["Ray's own processes" if own else "workers"] += times.user + times.system
    return spent


def half(arguments: tuple[str, int, int, str, Any]) -> None:
    """Every second clip in a plain loop; in a process of its own."""
    path, which, count, folder, barrier = arguments
    cv2.setNumThreads(1)
    config = PreprocessConfig(source=SourceConfig(path=path))
    source = open_source(config.source)
    clips = list(source.list_clips())[which:count:2]
    work = WorkFolder(Path(folder))
    for part in (work.shards, work.attempts):
        part.mkdir(parents=True)
    process_shard("warm", clips[:1], source, config, work)
    barrier.wait()
    for start in range(0, len(clips), config.clips_per_shard):
        some = clips[start : start + config.clips_per_shard]
        process_shard(some[0].digest()[:16], some, source, config, work)
    barrier.wait()


def two_loops(path: str, count: int, folder: Path) -> float:
    """Seconds of two plain loops at once, each with half of the clips."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    both = [
        context.Process(target=half, args=((path, n, count, str(folder / f"half{n}"), barrier),))
        for n in range(2)
    ]
    for process in both:
        process.start()
    barrier.wait()
    began_s = time.perf_counter()
    barrier.wait()
    spent_s = time.perf_counter() - began_s
    for process in both:
        process.join()
    return spent_s


def shares(profile: cProfile.Profile) -> dict[str, float]:
    """Share of the whole time by stage."""
    stats = pstats.Stats(profile)
    whole = max(row[3] for row in stats.stats.values())
    return {
        stage: sum(row[3] for (_, _, name), row in stats.stats.items() if name in names) / whole
        for stage, names in STAGES.items()
    }


def against_full_decode(video: Path) -> None:
    """CPU time of a clip's triplets (without depth) beside decoding every frame of it."""
    import av

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        shutil.copy(video, root / "clip.mp4")
        (root / "captions.csv").write_text("file,caption\nclip.mp4,something happens\n")
        config = PreprocessConfig(source=SourceConfig(path=str(root)), depth="plane")
        source = open_source(config.source)
        # The first table of a process imports pandas, by way of pyarrow.
        (clip,) = list(source.list_clips())
        clip_table(clip, source.open(clip), replace(config, draws_per_clip=1))
        began_s = time.process_time()
        (clip,) = list(source.list_clips())
        rows = len(clip_table(clip, source.open(clip), config))
        ours_s = time.process_time() - began_s
        began_s = time.process_time()
        with av.open(str(root / "clip.mp4")) as container:
            container.streams.video[0].codec_context.thread_count = 1
            frames = sum(1 for _ in container.decode(video=0))
        decode_s = time.process_time() - began_s
    print(
        f"{video.name}: {rows} triplets in {ours_s:.2f} s, decoding all {frames} frames "
        f"{decode_s:.2f} s: {ours_s / decode_s:.2f} times that"
    )


def main() -> float:
    """Print the ratio, where the time goes and, if a video is given, its time; the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=len(TASKS))
    parser.add_argument("--episodes", type=int, default=12, help="of each task")
    parser.add_argument("--video", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    root = recordings(TASKS[: args.tasks], moving_camera=False, episodes=args.episodes, seed=11)
    config = PreprocessConfig(source=SourceConfig(path=str(root)))
    few = replace(config, source=SourceConfig(path=str(root), max_clips=3))
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as patches:
        folder = Path(name)
        profile = cProfile.Profile()
        profile.enable()
        plain_loop(few, str(folder / "profiled"))
        profile.disable()
        start_ray(num_cpus=2)
        preprocess(few, str(folder / "warm"))  # workers start and import before the clock does
        plain_s = plain_loop(config, str(folder / "plain"))
        phases = Phases(patches)
        before = ray_cpu_s()
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        outcome = preprocess(config, str(folder / "ray"))
        ended_s, driver_s = time.perf_counter(), time.process_time() - began_cpu_s
        spent_s = {name: seconds - before[name] for name, seconds in ray_cpu_s().items()}
        ray_s = ended_s - began_s
        count = outcome.counts["read"]
        both_s = two_loops(str(root), count, folder)
    ratio = plain_s / ray_s
    print(
        f"{count} clips, {outcome.counts['triplets']} triplets: plain loop {plain_s:.1f} s, "
        f"Ray Data on 2 CPUs {ray_s:.1f} s, {ratio:.2f} times as fast; two plain loops at once "
        f"{both_s:.1f} s, {plain_s / both_s:.2f} times"
    )
    print(", ".join(f"{stage} {share:.0%}" for stage, share in shares(profile).items()))
    processes = ", ".join(f"{seconds:.1f} of {name}" for name, seconds in spent_s.items())
    print(f"Ray Data's time, with {driver_s:.1f} CPU s of the driver, {processes}:")
    print(phases.table(began_s, ended_s))
    if args.video:
        against_full_decode(args.video)
    return ratio


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "Constant", UserWarning)  # Meta-World's own experts
    main()
