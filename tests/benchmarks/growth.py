"""Preprocessing of 1,000, 5,000 and 20,000 tiny clips: time, the driver's CPU and its memory.

    python tests/benchmarks/growth.py [--clips 20000] [--folder FOLDER]

Each size runs in a process and a Ray cluster of its own, of two CPUs. What a clip more costs is
compared between the sizes, and reckoned to 260,000 and 10 million clips. Of the largest set a
second run is measured, and one to which 1 % was added. Begun again with ``--folder``, it goes on
with the sizes that are left.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "platform" / "triplets"))
import numpy as np
from expectation import show
from tiny_lerobot import EPISODES_A_FILE, FPS, FRAMES, write_set
from triplet_recordings import moving_square, write_video

from dynaflip.platform.cluster import start_ray
from dynaflip.platform.free_memory import share_arenas
from dynaflip.platform.triplets.config import FilterConfig, PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.flow.config import (
    CameraConfig,
    RigidSmoothingConfig,
    StaticPointsConfig,
    TrackConfig,
)
from dynaflip.platform.triplets.pipeline import preprocess

CPUS = 2
REPORTED = (260_000, 10_000_000)
_SAMPLE_EVERY_S = 0.1
_WARM_CLIPS = 8


class Driver:
    """Wall time, CPU time and the most memory of this process alone, while a block runs."""

    def __enter__(self) -> Driver:
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._began = time.perf_counter(), _cpu_s()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.perf_counter() - self._began[0]
        self.cpu_s = _cpu_s() - self._began[1]
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_EVERY_S):
            status = Path("/proc/self/status").read_text()
            kib = int(status.split("RssAnon:")[1].split()[0])
            self.peak_mb = max(self.peak_mb, kib / 1024)

    def measured(self, clips: int) -> dict[str, float]:
        """Values to print."""
        return {
            "clips": clips,
            "wall_s": self.wall_s,
            "driver_cpu_s": self.cpu_s,
            "driver_mb": self.peak_mb,
        }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def settings(root: Path, max_clips: int = 0) -> PreprocessConfig:
    """Those by which a tiny clip costs little."""
    return PreprocessConfig(
        source=SourceConfig(path=str(root), max_clips=max_clips),
        depth="plane",
        draws_per_clip=1,
        flow_window_s=0.2,
        image_px=64,
        part_mb=8,
        example_images=0,
        track=TrackConfig(short_side_px=48, lk_levels=1),
        camera=CameraConfig(motion="none"),
        static_points=StaticPointsConfig(enabled=False),
        rigid_smoothing=RigidSmoothingConfig(enabled=False),
        filter=FilterConfig(min_moving_share=0, max_cut_score=1, min_sharpness=0),
    )


def run(folder: Path, clips: int) -> dict[str, Any]:
    """Preprocess sets of one size; in a process of its own."""
    video = folder / "video.mp4"
    share_arenas()  # as the job does before Ray starts
    start_ray(num_cpus=CPUS)
    write_set(folder / "warm", EPISODES_A_FILE, video)
    preprocess(settings(folder / "warm", max_clips=_WARM_CLIPS), str(folder / f"warm-{clips}"))
    root, out = folder / f"set-{clips}", str(folder / f"triplets-{clips}")
    write_set(root, clips, video)
    found: dict[str, Any] = {}
    added = max(EPISODES_A_FILE, clips // 100)
    for name, count in (("first", clips), ("second", clips), ("more", clips + added)):
        write_set(root, count, video)
        with Driver() as driver:
            outcome = preprocess(settings(root), out)
        assert outcome.counts["kept"] == count, outcome.counts
        assert outcome.reused == (name == "second")
        found[name] = driver.measured(count)
    return found


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the measurements, what they are reckoned to, and a verdict; its ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=20_000, help="of the largest set")
    parser.add_argument("--folder", type=Path, help="to keep sets and results in")
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.run:
        (args.folder / f"{args.run}.json").write_text(json.dumps(run(args.folder, args.run)))
        return {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        step = 20 * EPISODES_A_FILE  # whole files in each size
        most = max(step, args.clips // step * step)
        sizes = [most // 20, most // 4, most]
        return report([measured(folder, clips) for clips in sizes])


def measured(folder: Path, clips: int) -> dict[str, Any]:
    """Measurements of a size, made by another process unless they are there."""
    path, video = folder / f"{clips}.json", folder / "video.mp4"
    if not video.exists():
        episodes = [moving_square(FRAMES, 96, 128, step_px=1.5, seed=n) for n in range(8)]
        frames = np.concatenate([episodes[n % 8] for n in range(EPISODES_A_FILE)])
        write_video(video, frames, FPS, {"g": str(FRAMES), "bf": "0"})
    if not path.exists():
        command = [sys.executable, __file__, "--run", str(clips), "--folder", str(folder)]
        environment = {**os.environ, "DYNAFLIP_HOME": str(folder / "home")}
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    found: dict[str, Any] = json.loads(path.read_text())
    for name, values in found.items():
        share = values["driver_cpu_s"] / (CPUS * values["wall_s"])
        print(
            f"{name:<7}{values['clips']:>7} clips {values['wall_s']:8.1f} s   driver: "
            f"{values['driver_cpu_s']:6.1f} CPU s ({share:.1%} of {CPUS} CPUs), "
            f"{values['driver_mb']:.0f} MB",
            flush=True,
        )
    return found


def report(found: list[dict[str, Any]]) -> dict[str, float]:
    """Compare what a clip more costs between the sizes, and reckon it to larger sets."""
    small, middle, large = (of_size["first"] for of_size in found)

    def each(key: str, fewer: dict[str, float], more: dict[str, float]) -> float:
        return (more[key] - fewer[key]) / (more["clips"] - fewer["clips"])

    time_ratio = each("wall_s", middle, large) / each("wall_s", small, middle)
    cpu_ratio = each("driver_cpu_s", middle, large) / each("driver_cpu_s", small, middle)
    memory_ratio = large["driver_mb"] / middle["driver_mb"]
    for clips in REPORTED:
        more = clips - large["clips"]
        hours = (large["wall_s"] + more * each("wall_s", middle, large)) / 3600
        driver_h = (large["driver_cpu_s"] + more * each("driver_cpu_s", middle, large)) / 3600
        memory_mb = large["driver_mb"] + more * max(0, each("driver_mb", middle, large))
        print(
            f"reckoned to {clips:,} of these clips on {CPUS} CPUs: {hours:.1f} h, driver "
            f"{driver_h:.2f} CPU h and {memory_mb:.0f} MB"
        )
    again, more = found[-1]["second"]["wall_s"], found[-1]["more"]
    added = more["clips"] - large["clips"]
    show("time of a clip more: from 1/4 on, to the first quarter", time_ratio, at_most=1.1)
    show("the driver's CPU time of a clip more, likewise", cpu_ratio, at_most=1.1)
    show("the driver's memory at the largest set / at 1/4 of it", memory_ratio, at_most=1.1)
    print(f"a second run over the largest set takes {again / large['wall_s']:.2%} of the first")
    print(
        f"{added / large['clips']:.1%} more clips take {more['wall_s'] / large['wall_s']:.2%} of "
        f"its time"
    )
    good = max(time_ratio, cpu_ratio, memory_ratio) <= 1.1
    print("HOLDS" if good else "DOES NOT HOLD")
    return {"time": time_ratio, "driver CPU": cpu_ratio, "driver memory": memory_ratio}


if __name__ == "__main__":
    main()
