"""Pretrain an encoder on a folder of triplets.

    python jobs/pretrain.py --config jobs/configs/demo.yaml
    python jobs/pretrain.py --backend in_process --output runs/one
    torchrun --nproc-per-node 2 jobs/pretrain.py --backend in_process --output runs/two \\
        --train.num_workers 2

The backend ray_train logs to MLflow and registers the encoder; --resume continues one of its runs,
and --send sends what MLflow has not had of one that ended while MLflow was away.
The backend in_process needs neither Ray nor MLflow and leaves the encoder in the output folder; a
second call with the same output continues from the newest checkpoint there.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

import argparse
import dataclasses
import os
import signal
import sys
from pathlib import Path

from dynaflip.errors import UserError
from dynaflip.platform.cli import config_parser, parse_config, run_job
from dynaflip.platform.paths import default_triplets, input_path, output_folder
from dynaflip.platform.training.ablations import VARIANTS, apply_variant
from dynaflip.platform.training.backends import BACKENDS, IN_PROCESS, RAY_TRAIN
from dynaflip.platform.training.config import PretrainConfig

# Old names of this job's flags.
RENAMED = {"arm": "variant"}


def main(argv: list[str]) -> int:
    """Parse and train; 1 when a loss that is not finite or a collapse stopped it."""
    parser = config_parser(__doc__ or "", PretrainConfig)
    _add_flags(parser)
    args, config = parse_config(
        parser, PretrainConfig, argv, aliases={}, renamed=RENAMED, adjust=_with_variant
    )
    _refuse_ignored(args)
    for flag in ("resume", "send"):
        if getattr(args, flag) and (args.config or args.variant or config != PretrainConfig()):
            raise UserError(
                f"--{flag} is about a run with its own settings: give no others beside it"
            )

    from dynaflip.platform.training.diagnostics import Collapsed
    from dynaflip.platform.training.step import NonFiniteLoss

    try:
        if args.send:
            return _send(args)
        if args.backend == IN_PROCESS:
            return _train_in_process(args, config)
        return _train_on_ray(args, config)
    except (NonFiniteLoss, Collapsed) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1


def _add_flags(parser: argparse.ArgumentParser) -> None:
    backends = "; ".join(f"{name}: {summary}" for name, summary in BACKENDS.items())
    parser.add_argument(
        "--backend", choices=BACKENDS, default=RAY_TRAIN, help=f"what runs the training. {backends}"
    )
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help=f"change the settings to a named variant of the ablation: {', '.join(VARIANTS)}",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="in_process: folder of the run (required there)"
    )
    parser.add_argument(
        "--alias", metavar="NAME", help="move this alias, e.g. candidate, to the new version"
    )
    parser.add_argument(
        "--resume", metavar="RUN", help="continue a stopped run with the settings it began with"
    )
    parser.add_argument(
        "--send",
        metavar="RUN",
        help="send MLflow what it has not had of a run (curves, figures, the encoder), and train "
        "nothing",
    )
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="do nothing where an encoder with these settings and triplets is registered",
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="roll out policies on the new version: configs/headline.yaml on the dev split",
    )


def _refuse_ignored(args: argparse.Namespace) -> None:
    """Refuse flags that the chosen backend would ignore."""
    if args.backend == IN_PROCESS:
        for flag in ("alias", "resume", "send", "reuse", "evaluate"):
            if getattr(args, flag):
                raise UserError(
                    f"--{flag} needs MLflow: use --backend {RAY_TRAIN}, or leave it out"
                )
        if not args.output:
            raise UserError(f"--output: give the folder of the run, for --backend {IN_PROCESS}")
    elif args.send and (args.resume or args.reuse or args.evaluate):
        raise UserError("--send trains nothing: give neither --resume, --reuse nor --evaluate")
    elif args.output:
        raise UserError(
            f"--output goes with --backend {IN_PROCESS}; the runs of {args.backend} lie in "
            "DYNAFLIP_HOME/runs"
        )


def _train_in_process(args: argparse.Namespace, config: PretrainConfig) -> int:
    from dynaflip.platform.training.backends.in_process import train_in_process
    from dynaflip.platform.training.notices import Stopped

    config = dataclasses.replace(config, triplets=input_path(config.triplets, default_triplets()))
    output = Path(output_folder(args.output, Path(), setting="--output"))
    try:
        train_in_process(config, output)
    except Stopped as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"{error}. Go on with the same command.")
        return 128 + signal.SIGTERM
    print(f"encoder: {output / 'encoder'}")
    return 0


def _send(args: argparse.Namespace) -> int:
    from dynaflip.platform.training import run as training

    print(training.send(args.send, alias=args.alias))
    return 0


def _train_on_ray(args: argparse.Namespace, config: PretrainConfig) -> int:
    from dynaflip.platform.training import run as training

    if args.reuse and (uri := training.find_finished(config)):
        if args.alias:
            training.move_alias(uri, args.alias)
        print(f"these settings and triplets have an encoder already: {uri}")
        if args.evaluate:
            _evaluate(uri, config.model.image.name)
        return 0
    if args.resume:
        outcome = training.resume(args.resume, alias=args.alias)
    else:
        outcome = training.pretrain(config, alias=args.alias)
    print(f"run {outcome.run_name}  MLflow run {outcome.run_id}")
    if outcome.version is not None:
        print(f"registered {outcome.uri()}" + (f", alias {args.alias}" if args.alias else ""))
    print(f"load it with dynaflip.load_encoder({outcome.uri()!r}); look at it with `make ui`")
    if args.evaluate:
        from dynaflip.encoders.checkpoint import backbone_name

        _evaluate(outcome.uri(), backbone_name(outcome.encoder_folder))
    return 0


def _evaluate(uri: str, backbone: str) -> None:
    """Roll out policies on a version whose backbone the user's settings name."""
    from dynaflip.encoders.backbones import own_class
    from dynaflip.platform.config_loader import load_config
    from dynaflip.platform.evaluation.config import RolloutConfig
    from dynaflip.platform.evaluation.suites.rollouts import Rollouts

    headline = Path(__file__).parent / "configs" / "headline.yaml"
    given = {"encoder": uri, "split": "dev", "backbone": own_class(backbone)}
    config = load_config(RolloutConfig, str(headline), given)
    outcome = Rollouts().run(config)
    print(f"\n{outcome.table}\nreport: {outcome.report}")


def _with_variant(args: argparse.Namespace, config: PretrainConfig) -> PretrainConfig:
    return apply_variant(config, args.variant) if args.variant else config


if __name__ == "__main__":
    run_job(main)
