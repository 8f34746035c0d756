"""Recordings to image-language-3D-flow triplets.

    python jobs/preprocess.py --source data/demo --output data/triplets

Reads a LeRobot v3.0 data set or a folder of videos with captions.csv; writes
Parquet shards, rejected.parquet and manifest.json.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from dynaflip.platform import home
from dynaflip.platform.cli import config_parser, parse_config, run_job
from dynaflip.platform.triplets.config import PreprocessConfig


def main(argv: list[str]) -> int:
    """Preprocess, print what came of it; 1 when too many clips were rejected."""
    parser = config_parser(__doc__ or "", PreprocessConfig)
    parser.add_argument(
        "--source", metavar="PATH", help=f"recordings (default {home.default_data()})"
    )
    parser.add_argument(
        "--output", metavar="PATH", help=f"triplet folder (default {home.default_triplets()})"
    )
    args, config = parse_config(parser, PreprocessConfig, argv, {"source": "source.path"})
    path = home.input_path(config.source.path or None, home.default_data())
    config = replace(config, source=replace(config.source, path=path))
    output = home.output_path(args.output, home.default_triplets(), setting="--output")

    from dynaflip.platform.triplets.pipeline import preprocess
    from dynaflip.platform.triplets.report import summary_lines

    began_s = time.monotonic()
    print(f"reading {path}")
    outcome = preprocess(config, output)
    for line in summary_lines(outcome, time.monotonic() - began_s):
        print(line)
    if outcome.failure:
        print(f"failed: {outcome.failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_job(main)
