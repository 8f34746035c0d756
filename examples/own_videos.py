"""Turn a folder of videos into triplets and look at them.

    python examples/own_videos.py [FOLDER]

FOLDER holds videos and a captions.csv (file,caption); by default my_videos.
"""

import subprocess
import sys
from pathlib import Path

import polars

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Preprocess, then count triplets by caption and rejected clips by reason."""
    videos = Path(sys.argv[1] if len(sys.argv) > 1 else "my_videos")
    output = videos.with_name(f"{videos.name}_triplets").absolute()
    words = ["--source", str(videos), "--output", str(output), "--depth", "plane"]
    job = [sys.executable, str(ROOT / "jobs" / "preprocess.py"), *words]
    if code := subprocess.run(job, check=False).returncode:
        sys.exit(code)

    triplets = polars.scan_parquet(output / "triplets" / "*.parquet")
    print(triplets.group_by("split", "caption").len().sort("split", "caption").collect())
    rejected = polars.read_parquet(output / "rejected.parquet")
    print(rejected.group_by("stage", "reason").len())


if __name__ == "__main__":
    main()
