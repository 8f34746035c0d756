"""Pretrain an encoder on a folder of triplets and register it."""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

import argparse
import sys
from pathlib import Path

from dynaflip.errors import UserError
from dynaflip.platform.cli import config_parser, parse_config, run_job
from dynaflip.platform.training.ablations import VARIANTS, apply_variant
from dynaflip.platform.training.config import PretrainConfig


def main(argv: list[str]) -> int:
    """Parse, train, say where the result is; 1 when a loss or a collapse stopped it."""
    parser = config_parser(__doc__ or "", PretrainConfig)
    parser.add_argument(
        "--arm",
        metavar="NAME",
        help=f"lay a named variant over the settings: {', '.join(VARIANTS)}",
    )
    parser.add_argument("--alias", help="move this alias (candidate, say) to the new version")
    parser.add_argument(
        "--resume", metavar="RUN", help="go on with a stopped run, with the settings it began with"
    )
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="do nothing where an encoder with these settings and triplets is registered",
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="evaluate policies on the new version: the headline's settings, on dev",
    )
    args, config = parse_config(parser, PretrainConfig, argv, aliases={}, adjust=_with_variant)
    if args.resume and (args.config or args.arm or config != PretrainConfig()):
        raise UserError("--resume goes on with the run's own settings: give no others beside it")

    from dynaflip.platform.training import run as training
    from dynaflip.platform.training.diagnostics import Collapsed
    from dynaflip.platform.training.step import NonFiniteLoss

    if args.reuse and (uri := training.find_finished(config)):
        if args.alias:
            training.move_alias(uri, args.alias)
        print(f"these settings and triplets have an encoder already: {uri}")
        if args.evaluate:
            _evaluate(uri)
        return 0
    try:
        if args.resume:
            outcome = training.resume(args.resume, alias=args.alias)
        else:
            outcome = training.pretrain(config, alias=args.alias)
    except (NonFiniteLoss, Collapsed) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    print(f"run {outcome.run_name}  MLflow run {outcome.run_id}")
    print(f"registered {outcome.uri()}" + (f", alias {args.alias}" if args.alias else ""))
    print(f"load it with dynaflip.load_encoder({outcome.uri()!r}); look at it with `make ui`")
    if args.evaluate:
        _evaluate(outcome.uri())
    return 0


def _evaluate(uri: str) -> None:
    from dynaflip.platform.config_loader import load_config
    from dynaflip.platform.evaluation.rollout_config import RolloutConfig
    from dynaflip.platform.evaluation.suites.rollouts import evaluate_policies

    headline = Path(__file__).parent / "configs" / "headline.yaml"
    config = load_config(RolloutConfig, str(headline), {"encoder": uri, "split": "dev"})
    scored = evaluate_policies(config)
    print(f"\n{scored.table}\nreport: {scored.report}")


def _with_variant(args: argparse.Namespace, config: PretrainConfig) -> PretrainConfig:
    return apply_variant(config, args.arm) if args.arm else config


if __name__ == "__main__":
    run_job(main)
