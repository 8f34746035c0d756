"""Pretrain without Ray and MLflow: the same loop in one process, or under torchrun.

    python jobs/pretrain_plain.py --output runs/one --config jobs/configs/demo.yaml
    torchrun --nproc-per-node 2 jobs/pretrain_plain.py --output runs/two --train.num_workers 2

A second call with the same output goes on from the newest checkpoint there.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

import argparse
import dataclasses
import sys
from pathlib import Path

from dynaflip.errors import UserError
from dynaflip.platform.cli import config_parser, parse_config, run_job
from dynaflip.platform.paths import default_triplets, input_path, output_folder
from dynaflip.platform.training.ablations import VARIANTS, apply_variant
from dynaflip.platform.training.config import PretrainConfig


def main(argv: list[str]) -> int:
    """Parse and train; 1 when a loss or a collapse stopped it."""
    parser = config_parser(__doc__ or "", PretrainConfig)
    parser.add_argument("--output", metavar="DIR", help="folder of the run (required)")
    parser.add_argument("--arm", metavar="NAME", help=f"a named variant: {', '.join(VARIANTS)}")
    args, config = parse_config(parser, PretrainConfig, argv, aliases={}, adjust=_with_variant)
    if not args.output:
        raise UserError("--output: give the folder of the run")
    config = dataclasses.replace(config, triplets=input_path(config.triplets, default_triplets()))

    from dynaflip.platform.training.backends.in_process import pretrain_plain
    from dynaflip.platform.training.diagnostics import Collapsed
    from dynaflip.platform.training.step import NonFiniteLoss

    output = Path(output_folder(args.output, Path(), setting="--output"))
    try:
        pretrain_plain(config, output)
    except (NonFiniteLoss, Collapsed) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    print(f"encoder: {output / 'encoder'}")
    return 0


def _with_variant(args: argparse.Namespace, config: PretrainConfig) -> PretrainConfig:
    return apply_variant(config, args.arm) if args.arm else config


if __name__ == "__main__":
    run_job(main)
