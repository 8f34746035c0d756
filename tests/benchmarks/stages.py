"""Throughput of the stage graph beside what its slowest stage allows.

    python tests/benchmarks/stages.py [--clips 320] [--sleep-s 1]

A depth model sleeps for each batch on a cluster that says it has one GPU, so that it limits: the
run cannot be faster than its batches times its sleep. The ratio of that to the time from the
start of Ray's work to its end is what counts.
With half the sleep both limit about alike on two CPUs, and neither is busy all the time: a queue
between two equally slow stages is empty or full by chance.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from dynaflip.platform.triplets.progress import Progress

HERE = Path(__file__).parent
BATCH = 64
CPUS = 2


class Sleeper:
    """Depth that takes a time for each batch and no CPU."""

    scale = "metric"

    def __init__(self) -> None:
        self.sleep_s = float(os.environ["DYNAFLIP_SLEEP_S"])

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        time.sleep(self.sleep_s)
        return np.ones(frames.shape[:3], np.float32)


def write_videos(folder: Path, count: int) -> None:
    """Videos of a square that moves, 20 frames each, all different, with their captions."""
    lines = ["file,caption"]
    texture = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    for n in range(count):
        name = f"{n:05d}.mp4"
        kind = cv2.VideoWriter.fourcc(*"mp4v")
        video = cv2.VideoWriter(str(folder / name), kind, 20, (128, 96))
        for t in range(20):
            frame = texture.copy()
            x = 10 + 3 * t + n % 5
            frame[30:60, x : x + 30] = (n % 256, n // 256, 200)
            video.write(frame)
        video.release()
        lines.append(f"{name},move the square {n % 4}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")


def measured(clips: int, sleep_s: float) -> float:
    """Make the clips' triplets on one fake GPU; the share of the least possible time."""
    from dynaflip.platform.cluster import prepare_environment

    prepare_environment()
    import ray

    from dynaflip.platform.triplets.config import FilterConfig, PreprocessConfig, SourceConfig
    from dynaflip.platform.triplets.flow.config import AlignmentConfig
    from dynaflip.platform.triplets.models.loading import digests_of_models
    from dynaflip.platform.triplets.progress import Progress
    from dynaflip.platform.triplets.sources.formats import open_sources
    from dynaflip.platform.triplets.stage_config import StagesConfig
    from dynaflip.platform.triplets.stage_graph import run_stages
    from dynaflip.platform.triplets.work_folder import WorkFolder

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ.setdefault("DYNAFLIP_HOME", str(root / "home"))
        (root / "videos").mkdir()
        write_videos(root / "videos", clips)
        start_cluster(sleep_s)
        config = PreprocessConfig(
            source=SourceConfig(path=str(root / "videos")),
            depth="class:stages:Sleeper",
            filter=FilterConfig(min_moving_share=0, min_visible_share=0),
            draws_per_clip=1,
            rgbd_alignment=AlignmentConfig(enabled=False),
            stages=StagesConfig(depth_batch=BATCH),
        )
        source = open_sources(config)
        listed = list(source.list_clips())
        shards = {f"s{n}": listed[n : n + 4] for n in range(0, len(listed), 4)}
        work = WorkFolder(root / "work")
        for part in (work.shards, work.attempts):
            part.mkdir(parents=True)
        progress = Progress("triplets", clips)
        digests = digests_of_models(config)
        began_s = time.monotonic()
        for summary in run_stages(shards, config, work, source, digests, progress):
            assert not summary["stage"], summary
            progress.update([""])
        spent_s = time.monotonic() - began_s
        progress.close()
        ray.shutdown()
    return share_of_least(progress, clips, spent_s)


def start_cluster(sleep_s: float) -> None:
    """Start Ray on two CPUs and a GPU that it is told of."""
    import ray

    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    given = {"PYTHONPATH": path, "DYNAFLIP_SLEEP_S": str(sleep_s)}
    given["DYNAFLIP_HOME"] = os.environ["DYNAFLIP_HOME"]
    ray.init(
        "local",
        num_cpus=CPUS,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=300 << 20,
        runtime_env={"env_vars": given},
    )


def share_of_least(progress: Progress, clips: int, spent_s: float) -> float:
    """The slowest stage's time as a share of the run's; both are printed."""
    model_s = progress.seconds["depth"]
    read_s, write_s = progress.seconds["read"], progress.seconds["write"]
    print(
        f"{clips} clips in {spent_s:.1f} s, the model worked {model_s:.1f} s of them, "
        f"{progress.busy_shares()['depth']:.0%} of the time from the first shard on; CPU stages: "
        f"read {read_s:.1f} s, write {write_s:.1f} s on {CPUS} CPUs"
    )
    if (read_s + write_s) / CPUS > model_s:
        print("the CPU stages limit: repeat it with a longer sleep, or on a quieter machine")
    return model_s / spent_s


def main() -> float:
    """Print the share of what the slowest stage allows, which is also returned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("--sleep-s", type=float, default=1.0)
    args = parser.parse_args()
    sys.path.insert(0, str(HERE))
    return measured(args.clips, args.sleep_s)


if __name__ == "__main__":
    print(f"{main():.2f} of what the slowest stage allows (bar: 0.9)")
