"""Search the weights (or any other setting), confirm the best, register its encoder.

    python jobs/sweep.py --config jobs/configs/demo.yaml --trials 20 --concurrent 2 \\
        --search objective.volume=log(0.1,10) objective.contrastive=uniform(0.2,2)
    python jobs/sweep.py --resume NAME      # continue a stopped sweep
    python jobs/sweep.py show NAME          # table, importances, best trial; also while it runs
    python jobs/sweep.py stop NAME          # stop it from another terminal; --resume continues it
    python jobs/sweep.py skip NAME TRIAL    # end one trial now; the sweep goes on
    python jobs/sweep.py check NAME         # study, MLflow and Tune agree about every trial
    python jobs/sweep.py --dry-run ...      # search space, resources, estimated time
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from dynaflip.errors import UserError
from dynaflip.platform.cli import config_parser, job_parser, parse_config, run_job, short_flags
from dynaflip.platform.config_loader import flatten, to_dict
from dynaflip.platform.sweep.config import SweepJobConfig
from dynaflip.renames import current_key

# Flags that stand for the setting of that name in the section `sweep`.
FLAGS = (
    "name",
    "trials",
    "concurrent",
    "objectives",
    "scheduler",
    "sampler",
    "storage",
    "warm-start",
    "confirm",
    "confirm-seeds",
    "promote",
)


def main(argv: list[str]) -> int:
    """Run, resume, show or check a sweep."""
    if argv[:1] and argv[0] in _WORDS:
        return _WORDS[argv[0]](argv[1:])
    parser = _parser()
    aliases = {name: f"sweep.{name.replace('-', '_')}" for name in (*FLAGS, "search")}
    args, job = parse_config(parser, SweepJobConfig, argv, aliases)
    _refuse_set_and_searched(argv, job.sweep.search)

    from dynaflip.platform.sweep import run

    if args.dry_run:
        from dynaflip.platform.sweep.dry_run import dry_run

        print(dry_run(job))
        return 0
    from dynaflip.platform.sweep.ledger import Interrupted

    try:
        if args.resume:
            name = run.resume(args.resume, _typed(args, argv, job, aliases))
        else:
            name = run.start(job)
    except Interrupted as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    print(f"look again: python jobs/sweep.py show {name}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = config_parser(__doc__ or "", SweepJobConfig)
    parser.add_argument(
        "--search",
        nargs="+",
        action="extend",
        metavar="KEY=log(a,b)",
        help="short for --sweep.search, see below",
    )
    for name in FLAGS:
        key = name.replace("-", "_")
        spellings = dict.fromkeys((f"--{name}", f"--{key}"))
        parser.add_argument(*spellings, metavar="VALUE", help=f"short for --sweep.{key}, see below")
    parser.add_argument("--resume", metavar="NAME", help="continue a sweep that was stopped")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print search space, resources and estimated time; train nothing",
    )
    return parser


def _refuse_set_and_searched(argv: list[str], specs: Sequence[str]) -> None:
    keys = {spec.partition("=")[0] for spec in specs}
    for word in argv:
        key = current_key(SweepJobConfig, word.removeprefix("--").partition("=")[0])
        if word.startswith("--") and key in keys:
            raise UserError(f"--{key} is set and searched as well: give one of the two")


def _typed(
    args: argparse.Namespace, argv: list[str], job: SweepJobConfig, aliases: dict[str, str]
) -> dict:
    """Dotted settings that were given by flag, by their own key or in a file."""
    given, default = flatten(to_dict(job)), flatten(to_dict(SweepJobConfig()))
    flags = {
        key for flag, key in aliases.items() if getattr(args, flag.replace("-", "_")) is not None
    }
    # A default that is typed counts: the sweep may have begun with another value.
    short = short_flags(SweepJobConfig)
    for word in argv:
        if word.startswith("--"):
            key = word.removeprefix("--").partition("=")[0]
            flags |= {current_key(SweepJobConfig, full) for full in short.get(key, (key,))}
    return {k: v for k, v in given.items() if v != default[k] or k in flags}


def _show(argv: list[str]) -> int:
    words = _words_of("show", argv)

    from dynaflip.platform.sweep.show import print_sweep

    print_sweep(words.name)
    return 0


def _check(argv: list[str]) -> int:
    words = _words_of("check", argv)

    from dynaflip.platform.sweep.consistency import inconsistencies

    contradictions = inconsistencies(words.name)
    for line in contradictions:
        print(line, file=sys.stderr)
    print(f"{words.name}: {len(contradictions)} inconsistencies")
    return 1 if contradictions else 0


def _stop(argv: list[str]) -> int:
    words = _words_of("stop", argv)

    from dynaflip.platform.sweep.control import stop

    print(stop(words.name))
    return 0


def _skip(argv: list[str]) -> int:
    words = _words_of("skip", argv, "trial")

    from dynaflip.platform.sweep.control import skip

    print(skip(words.name, words.trial))
    return 0


def _words_of(what: str, argv: list[str], *more: str) -> Any:
    parser = job_parser(__doc__ or "", prog=f"sweep.py {what}")
    for word in ("name", *more):
        parser.add_argument(word)
    return parser.parse_args(argv)


# What is done with a sweep that there is: word → function of the words after it.
_WORDS = {"show": _show, "check": _check, "stop": _stop, "skip": _skip}


if __name__ == "__main__":
    run_job(main)
