"""Turn recordings into image-language-3D-flow triplets.

    python jobs/preprocess.py preview --source data/demo
    python jobs/preprocess.py --source data/demo --output data/triplets
    python jobs/preprocess.py inspect data/triplets
    python jobs/preprocess.py merge data/triplets data/more --output data/both

Reads LeRobot (v3.0, v2.1), RLDS, Something-Something V2, Ego4D-style narrations, a folder of
videos with captions, or a format of your own (`source.format`), from a folder or s3://, one
source or a mix (`sources:` in YAML); writes Parquet files, their index, rejected.parquet and
manifest.json.

``preview`` makes a dozen clips with the same settings and shows them, what is rejected, and what
the whole would cost. ``inspect`` prints what a triplet folder holds, writes data_card.html into it
and logs it as a data set. ``merge`` makes the union of finished folders.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from inspect import cleandoc
from pathlib import Path

from dynaflip.errors import UserError
from dynaflip.platform import paths
from dynaflip.platform.cli import config_parser, job_parser, parse_config, run_job
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig


def main(argv: list[str]) -> int:
    """Run the subcommand that is named first; without one, preprocess."""
    subcommand = SUBCOMMANDS.get(argv[0]) if argv else None
    return subcommand(argv[1:]) if subcommand else make(argv)


def make(argv: list[str]) -> int:
    """Preprocess, print what came of it; 1 when too many clips were rejected."""
    parser = _settings_parser(__doc__ or "")
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="triplet folder or s3://bucket/prefix (default: triplets/demo in the home)",
    )
    args, config = parse_config(parser, PreprocessConfig, argv, {"source": "source.path"})
    config = _with_absolute_paths(config)
    output = paths.output_path(args.output, paths.default_triplets(), setting="--output")

    from dynaflip.platform.triplets.pipeline import preprocess
    from dynaflip.platform.triplets.report.summary import summary_lines

    began_s = time.monotonic()
    print(f"reading {', '.join(one.path for one in config.sources or (config.source,))}")
    outcome = preprocess(config, output)
    for line in summary_lines(outcome, time.monotonic() - began_s):
        print(line)
    if outcome.failure:
        print(f"failed: {outcome.failure}", file=sys.stderr)
        return 1
    return 0


def _settings_parser(description: str) -> argparse.ArgumentParser:
    """A parser of all settings of preprocessing, with the flag for its source."""
    parser = config_parser(cleandoc(description), PreprocessConfig)
    parser.add_argument(
        "--source", metavar="PATH", help="recordings (default: data/demo in the home)"
    )
    return parser


def _with_absolute_paths(config: PreprocessConfig) -> PreprocessConfig:
    """Workers have another working directory."""

    def absolute(one: SourceConfig) -> SourceConfig:
        path = paths.input_path(one.path or None, paths.default_data())
        captions = paths.input_path(one.captions, paths.default_data()) if one.captions else ""
        return replace(
            one,
            path=path,
            captions=captions,
            depth=_absolute_model(one.depth),
            captioner=_absolute_model(_absolute(one.captioner)),
        )

    config = replace(
        config,
        depth=_absolute_model(config.depth),
        track=replace(config.track, tracker=_absolute_model(config.track.tracker)),
    )
    if config.sources:
        return replace(config, sources=tuple(absolute(one) for one in config.sources))
    return replace(config, source=absolute(config.source))


def _absolute_model(setting: str) -> str:
    """``model:FOLDER`` and ``torchscript:FILE`` with an absolute path; others as they are."""
    kind, _, path = setting.partition(":")
    return f"{kind}:{_absolute(path)}" if kind in ("model", "torchscript") else setting


def _absolute(name: str) -> str:
    """A path of what lies there; a hub id as it is."""
    path = Path(name).expanduser()
    return str(path.absolute()) if name and path.exists() else name


def inspect(argv: list[str]) -> int:
    """Print what a triplet folder holds, write its data card and log it to MLflow."""
    parser = job_parser(inspect.__doc__ or "", prog="preprocess.py inspect")
    parser.add_argument(
        "folder", nargs="?", help="or s3://bucket/prefix (default: triplets/demo in the home)"
    )
    parser.add_argument("--examples", type=int, default=12, help="triplets shown in the card")
    args = parser.parse_args(argv)
    folder = paths.input_path(args.folder, paths.default_triplets())

    from dynaflip.platform.triplets import place
    from dynaflip.platform.triplets.report.data_card import write_card
    from dynaflip.platform.triplets.report.inspection import inspect_folder, inspection_lines

    with place.one_line_errors("folder"):
        found = inspect_folder(folder)
        for line in inspection_lines(found):
            print(line)
        card = write_card(found, args.examples)

    from dynaflip.platform.tracking import ending, open_run
    from dynaflip.platform.tracking.version_card import TRIPLET_RUNS

    with ending(open_run(TRIPLET_RUNS, paths.new_run_name("triplets"))) as run:
        counts = json.dumps(found.manifest["counts"])
        run.log_dataset(found.folder.name, found.manifest["digest"], folder, counts)
        run.log_text(card.read_text(), card.name)
    print(f"look at {card}")
    return 0


def preview(argv: list[str]) -> int:
    """Make a dozen clips of a source and show them, before the whole is paid for.

        python jobs/preprocess.py preview --source data/demo --clips 12

    Takes every setting of jobs/preprocess.py. The clips are spread over the source; the page shows
    their tracks and 3D flow, what is rejected and why, and how long the whole set would take.
    """
    parser = _settings_parser(preview.__doc__ or "")
    parser.prog = "preprocess.py preview"
    parser.add_argument("--clips", type=int, default=12, help="how many clips are made")
    parser.add_argument(
        "--output",
        metavar="FILE.html",
        help="the page (default: previews/NAME/preview.html in the home)",
    )
    args, config = parse_config(parser, PreprocessConfig, argv, {"source": "source.path"})
    if args.clips < 1:
        raise UserError(f"--clips: must be at least 1, not {args.clips}")
    if args.output and not args.output.endswith(".html"):
        raise UserError(
            f"--output: {args.output}: a preview writes one page and no triplets; name it with "
            f".html, or leave the flag out"
        )
    config = _with_absolute_paths(config)

    from dynaflip.platform.triplets.report.preview_run import run_preview

    print(f"reading {', '.join(one.path for one in config.sources or (config.source,))}")
    default = paths.home() / "previews"
    page = args.output and paths.output_folder(args.output, default, setting="--output")
    written = run_preview(config, args.clips, Path(page) if page else None)
    print(f"look at {written}")
    return 0


def merge(argv: list[str]) -> int:
    """Make the union of finished triplet folders; nothing is encoded again.

        python jobs/preprocess.py merge triplets/bridge triplets/droid --output triplets/both

    Clips that two folders hold alike come once. Where they hold other triplets of a clip, say which
    folder's are taken. The folders stay as they are.
    """
    parser = job_parser(merge.__doc__ or "", prog="preprocess.py merge")
    parser.add_argument("folders", nargs="+", help="or s3://bucket/prefix")
    parser.add_argument("--output", metavar="PATH", required=True, help="or s3://bucket/prefix")
    parser.add_argument(
        "--prefer", metavar="FOLDER", help="whose triplets are taken where another's differ"
    )
    args = parser.parse_args(argv)
    default = paths.default_triplets()
    folders = [paths.input_path(name, default) for name in args.folders]
    prefer = paths.input_path(args.prefer, default) if args.prefer else ""
    output = paths.output_path(args.output, default, setting="--output")

    from dynaflip.platform.triplets.merge import merge_folders
    from dynaflip.platform.triplets.report.summary import summary_lines

    began_s = time.monotonic()
    outcome, lines = merge_folders(folders, output, prefer)
    for line in [*lines, *summary_lines(outcome, time.monotonic() - began_s)]:
        print(line)
    return 0


# The first word of the command line → what it runs.
SUBCOMMANDS: dict[str, Callable[[list[str]], int]] = {
    "inspect": inspect,
    "merge": merge,
    "preview": preview,
}


if __name__ == "__main__":
    run_job(main)
