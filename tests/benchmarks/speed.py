"""Ray Data on 2 CPUs against the same stages in a plain loop, and where the loop's time goes.

    python tests/benchmarks/speed.py [--tasks 12] [--video FILE.mp4]

One thread a task on both sides, in one run; the ratio is what counts. ``--video`` also
times a clip of the user's (720p, say) against decoding all of it.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import shutil
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
from simulated import TASKS, recordings

from dynaflip.platform.cluster import start_ray
from dynaflip.platform.triplets.build import clip_table
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.shard import process_shard
from dynaflip.platform.triplets.sources.formats import open_source
from dynaflip.platform.triplets.work_folder import WorkFolder

# Functions whose time (with what they call) is decoding, tracking or depth.
STAGES = {
    "decoding": ("read_frames", "read_depth_m", "read_timeline", "times_s"),
    "tracking": ("flow_of_window", "fit_camera", "grid_on_first_frame"),
}


def plain_loop(config: PreprocessConfig, folder: Path, clips: list) -> float:
    """Seconds of the same stages without Ray."""
    work = WorkFolder(folder)
    for part in (work.shards, work.attempts):
        part.mkdir(parents=True)
    source = open_source(config.source)
    began_s = time.perf_counter()
    for number, clip in enumerate(clips):
        process_shard(number, [clip], source, config, work)
    return time.perf_counter() - began_s


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


def main() -> None:
    """Print the ratio, the profile and, if a video is given, its time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=len(TASKS))
    parser.add_argument("--video", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    root = recordings(TASKS[: args.tasks], moving_camera=False, seed=11)
    config = PreprocessConfig(source=SourceConfig(path=str(root)), clips_per_shard=1)
    clips = list(open_source(config.source).list_clips())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        profile = cProfile.Profile()
        profile.enable()
        plain_loop(config, folder / "profiled", clips[:3])
        profile.disable()
        start_ray(num_cpus=2)
        # Workers start and import before the clock does.
        warm = PreprocessConfig(source=SourceConfig(path=str(root), max_clips=2), clips_per_shard=1)
        preprocess(warm, str(folder / "warm"))
        plain_s = plain_loop(config, folder / "plain", clips)
        began_s = time.perf_counter()
        outcome = preprocess(config, str(folder / "ray"))
        ray_s = time.perf_counter() - began_s
    print(
        f"{len(clips)} clips, {outcome.counts['triplets']} triplets: plain loop {plain_s:.1f} s, "
        f"Ray Data on 2 CPUs {ray_s:.1f} s, "
        f"{plain_s / ray_s:.2f} times as fast"
    )
    print(", ".join(f"{stage} {share:.0%}" for stage, share in shares(profile).items()))
    if args.video:
        against_full_decode(args.video)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "Constant", UserWarning)  # Meta-World's own experts
    main()
