"""Peak memory of preprocessing one video of an hour: as one clip, and narrated.

    python tests/benchmarks/long_video.py [--minutes 60]

Counts what the job and all processes that it starts hold, Ray's own and its object store
included, each shared page once. On a machine that a control group limits, the limit holds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "platform" / "triplets"))
from peak_memory import PeakMemory
from triplet_recordings import textured

from dynaflip.platform.cluster import start_ray
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.pipeline import preprocess

FPS, HEIGHT, WIDTH = 15, 360, 640
NARRATED_EVERY_S = 20


def write_long_video(path: Path, minutes: int) -> Path:
    """A textured square that goes round over still ground, never twice at one speed."""
    ground, square = textured(HEIGHT, WIDTH, 1), textured(96, 96, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "28", "g": "60"}
        for n in range(minutes * 60 * FPS):
            angle = n / 40 + n * n * 1e-9
            x = round((WIDTH - 96) * (0.5 + 0.45 * np.cos(angle)))
            y = round((HEIGHT - 96) * (0.5 + 0.45 * np.sin(angle)))
            frame = ground.copy()
            frame[y : y + 96, x : x + 96] = square
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def narrate(root: Path, video: Path, minutes: int) -> None:
    """Write Ego4D's narrations of the video, one every 20 seconds."""
    moments = [
        {"narration_text": f"#C C moves the square {at}", "timestamp_sec": float(at)}
        for at in range(10, minutes * 60 - 10, NARRATED_EVERY_S)
    ]
    (root / "clips").mkdir(parents=True)
    (root / "clips" / "hour-1.mp4").symlink_to(video)
    content = {"videos": {"hour-1": {"narration_pass_1": {"narrations": moments}}}}
    (root / "narration.json").write_text(json.dumps(content))


def main() -> dict[str, int]:
    """Print clips, triplets and peak memory of both; peak bytes by name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=60)
    args = parser.parse_args()
    start_ray(num_cpus=2)
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        whole, narrated = Path(name) / "whole", Path(name) / "narrated"
        video = write_long_video(whole / "hour.mp4", args.minutes)
        (whole / "captions.csv").write_text("file,caption\nhour.mp4,move the square\n")
        narrate(narrated, video, args.minutes)
        size_mib = video.stat().st_size / 2**20
        print(f"{args.minutes} minutes, {WIDTH} x {HEIGHT}, {FPS} fps, {size_mib:.0f} MiB")
        for root in (whole, narrated):
            config = PreprocessConfig(source=SourceConfig(path=str(root)), depth="plane")
            with PeakMemory() as memory:
                outcome = preprocess(config, str(Path(name) / f"{root.name}_triplets"))
            peaks[root.name] = memory.peak
            print(
                f"{root.name}: {outcome.counts['read']} clips, {outcome.counts['triplets']} "
                f"triplets, peak {memory.peak / 2**20:.0f} MiB",
                flush=True,
            )
            assert outcome.counts["kept"] == outcome.counts["read"]
    return peaks


if __name__ == "__main__":
    main()
