"""Listing of a set of DROID's size: the driver's memory, and when the first shard is there.

    python tests/benchmarks/listing.py [--episodes 95000] [--cameras 3]

The set is LeRobot v3.0 with statistics of every episode, and no image; nothing is decoded. Its
95,000 episodes of 3 cameras are listed as a job lists them, to shards that nobody works on.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from expectation import show
from tiny_lerobot import write_set

from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.ledger import Ledger
from dynaflip.platform.triplets.listing import Listing
from dynaflip.platform.triplets.sources.formats import open_sources

MOST_GB, MOST_S = 1.0, 60.0


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print figures and a verdict; peak memory in GB and seconds to the first shard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=95_000)
    parser.add_argument("--cameras", type=int, default=3)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        os.environ["DYNAFLIP_HOME"] = f"{name}/home"
        root, video = Path(name) / "set", Path(name) / "video.mp4"
        video.write_bytes(os.urandom(2048))  # its fingerprint is all that listing reads
        write_set(root, args.episodes, video, args.cameras, episodes_a_file=5000)
        before_gb = _peak_gb()
        began_s, cpu_s = time.perf_counter(), time.process_time()
        source = open_sources(PreprocessConfig(source=SourceConfig(path=str(root))))
        first_s = 0.0
        with closing(Ledger(Path(name) / "shards")) as ledger:
            listing = Listing(source, ledger, PreprocessConfig().clips_per_shard)
            shards = 0
            for _ in listing.shards():
                first_s = first_s or time.perf_counter() - began_s
                shards += 1
        peak_gb, cpu_s = _peak_gb(), time.process_time() - cpu_s
    print(
        f"{listing.clips:,} clips in {shards:,} shards: the first after {first_s:.1f} s, the last "
        f"after {time.perf_counter() - began_s:.0f} s ({1e3 * cpu_s / listing.clips:.2f} CPU ms a "
        f"clip), peak {peak_gb:.2f} GB ({before_gb:.2f} before)"
    )
    show("peak memory of the driver, GB", peak_gb, at_most=MOST_GB)
    show("seconds to the first shard", first_s, at_most=MOST_S)
    print("HOLDS" if peak_gb < MOST_GB and first_s < MOST_S else "DOES NOT HOLD")
    return {"peak_gb": peak_gb, "first_s": first_s}


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
