"""Time and peak memory of preprocessing at 1, 4 and 16 times the clips.

    python tests/benchmarks/growth.py [--clips 6]

Clips are written by the benchmark, each with content of its own. Memory is the peak, over
samples, of what the job and the processes that it started hold, each shared page once.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "platform" / "triplets"))
from triplet_recordings import moving_square, write_video

from dynaflip.platform.cluster import start_ray
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.pipeline import preprocess

FACTORS = (1, 4, 16)
_SAMPLE_EVERY_S = 0.25


class PeakMemory:
    """The most memory that this process and its descendants held together, bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_EVERY_S):
            self.peak = max(self.peak, sum(proportional_bytes(pid) for pid in family(os.getpid())))


def family(root: int) -> list[int]:
    """A process and all that it started, by id (Linux)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold blanks; the parent is the second field after it.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def proportional_bytes(pid: int) -> int:
    """Memory of a process, of shared pages its part (the kernel's Pss); 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def write_clips(root: Path, count: int) -> None:
    """So many videos of a moving square on ground of their own, with captions."""
    rows = ["file,caption"]
    for n in range(count):
        frames = moving_square(60, 240, 320, step_px=1.5, seed=1000 + n)
        write_video(root / f"clip{n:04d}.mp4", frames)
        rows.append(f"clip{n:04d}.mp4,move the square {n}")
    (root / "captions.csv").write_text("\n".join(rows) + "\n")


def main() -> list[int]:
    """Print seconds a clip and peak memory for each size, and their ratios; the peaks, bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=6)
    args = parser.parse_args()
    start_ray(num_cpus=2)
    first_s, peaks = 0.0, []
    with tempfile.TemporaryDirectory() as name:
        for factor in (0, *FACTORS):  # 0 warms the workers up
            root = Path(name) / f"videos{factor}"
            count = args.clips * max(1, factor)
            write_clips(root, count)
            config = PreprocessConfig(
                source=SourceConfig(path=str(root)), depth="plane", clips_per_shard=1
            )
            with PeakMemory() as memory:
                began_s = time.perf_counter()
                outcome = preprocess(config, str(Path(name) / f"out{factor}"))
                spent_s = time.perf_counter() - began_s
            assert outcome.counts["kept"] == count, outcome.counts
            if not factor:
                continue
            each_s = spent_s / count
            first_s = first_s or each_s
            peaks.append(memory.peak)
            print(
                f"{factor:>3} times: {count} clips in {spent_s:.1f} s, {each_s:.3f} s a clip "
                f"({each_s / first_s:.2f} of the first), peak {memory.peak / 2**20:.0f} MiB "
                f"({memory.peak / peaks[0]:.2f} of the first)",
                flush=True,
            )
    return peaks


if __name__ == "__main__":
    main()
