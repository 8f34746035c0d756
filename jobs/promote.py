"""Make a version the champion, if the evidence holds.

    python jobs/promote.py --version 7
    python jobs/promote.py --version 7 --promotion.suite offline      # without a simulator

The champion is what others build on, so it takes evidence on the test split: out of
distribution better than the present champion (the difference's interval above zero), in
distribution not worse (no interval below zero, and a mean above -5 points). A first champion is
compared with its own initialisation. The evidence is recorded with the version before the alias
moves. What it must cover is set by `--promotion.…`; by default it is what the headline covers.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

from dynaflip.platform.cli import config_parser, parse_config, run_job
from dynaflip.platform.promotion_config import PromoteConfig


def main(argv: list[str]) -> int:
    """Promote a version, or print why not; 1 where it is not promoted."""
    parser = config_parser(__doc__ or "", PromoteConfig)
    parser.add_argument("--version", required=True, metavar="N", help="number of the version")
    parser.add_argument(
        "--name", default="dynaflip-encoder", help="registered model (default dynaflip-encoder)"
    )
    parser.add_argument(
        "--force", metavar="REASON", help="promote without evidence; the reason is recorded"
    )
    parser.add_argument(
        "--environment", "--env", metavar="NAME",
        help="the environment that was evaluated in, where it is a class of your own",
    )  # fmt: skip
    args, config = parse_config(parser, PromoteConfig, argv, aliases={})

    from dynaflip.platform.promotion import promote

    decision = promote(
        args.name,
        args.version,
        force=args.force,
        needed=config.promotion,
        environment=args.environment,
    )
    print(decision.explanation)
    return 0 if decision.promoted else 1


if __name__ == "__main__":
    run_job(main)
